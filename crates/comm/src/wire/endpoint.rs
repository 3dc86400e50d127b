//! One rank's post office: envelopes to and from every other rank, and the wait for them. What they are about is
//! known to `collectives` and `member`.
//!
//! An envelope is a header with up to [`INLINE_BYTES`] of content. Receives for envelopes are posted ahead, so that a
//! small message costs one way and not a handshake. What is larger follows on a channel that the header names, into
//! memory that the receiver posts once it has compared the header with what it expects: so nothing arrives where it
//! does not fit. Headers also say how much of the other side has been received, so that each side knows, without asking
//! the engine, which of its own buffers are free again.

use super::link::{Link, LinkError};
use super::neighbours::Neighbours;
use super::watch::{Interruption, Watch};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Content of at most this many bytes travels in the envelope.
pub(super) const INLINE_BYTES: usize = 8192;
/// Larger content travels in pieces of this size; each piece that arrives counts as progress.
pub(super) const PIECE_BYTES: usize = 512 << 10;
const HEADER_BYTES: usize = 64;
/// The channel of envelopes; contents have higher ones.
const ENVELOPES: u64 = 0;
/// Receives for envelopes posted ahead, per peer.
const AHEAD: usize = 4;
/// How often one that another thread of the rank receives for looks up, to see whether it may go on.
const LOOK_UP: Duration = Duration::from_millis(10);
/// How long a rank that leaves waits for its last messages to go out, and then for the others to leave.
const GRACE: Duration = Duration::from_secs(10);

/// What an envelope is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The group.
    pub(super) group: u64,
    pub(super) kind: Kind,
    /// The sequence number of a collective, the tag of a message.
    pub(super) number: u64,
    /// Operation, type, reduction and root; a checksum.
    pub(super) what: u64,
    /// The size that must be agreed on.
    pub(super) bytes: u64,
    /// Where the content is: 0 if in the envelope, else a channel, or an address between ranks that read each other's
    /// memory.
    pub(super) channel: u64,
}

/// What a rank has received from another: so many envelopes, and so many whole messages that follow theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Received {
    envelopes: u64,
    copies: u64,
}

/// Which numbering an envelope belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Collective = 1,
    Message = 2,
    Checksum = 3,
    /// A rank has read what it needed of the others' memory.
    Read = 4,
}

impl Header {
    fn write(&self, received: Received, to: &mut [u8]) {
        let own = [self.group, self.kind as u64, self.number, self.what, self.bytes, self.channel];
        let words = own.into_iter().chain([received.envelopes, received.copies]);
        for (word, place) in words.zip(to.as_chunks_mut::<8>().0) {
            *place = word.to_le_bytes();
        }
    }

    fn read(from: &[u8]) -> (Header, Received) {
        let (words, _) = from[..HEADER_BYTES].as_chunks::<8>();
        let word = |i: usize| u64::from_le_bytes(words[i]);
        let kind = match word(1) {
            1 => Kind::Collective,
            2 => Kind::Message,
            3 => Kind::Checksum,
            _ => Kind::Read,
        };
        let header =
            Header { group: word(0), kind, number: word(2), what: word(3), bytes: word(4), channel: word(5) };
        (header, Received { envelopes: word(6), copies: word(7) })
    }
}

/// An envelope that arrived.
pub(super) struct Envelope {
    pub(super) header: Header,
    buffer: Vec<u8>,
}

impl Envelope {
    /// The content, if it is in the envelope: `len` bytes as agreed on.
    pub(super) fn content(&self, len: usize) -> &[u8] {
        &self.buffer[HEADER_BYTES..HEADER_BYTES + len]
    }
}

struct Incoming<L: Link> {
    // The transfer is dropped before the buffer that it writes to.
    posted: VecDeque<(L::Transfer, Vec<u8>)>,
    arrived: VecDeque<Envelope>,
    free: Vec<Vec<u8>>,
    /// Whether a thread of this rank waits for the next envelope, whomever it is for.
    watched: bool,
}

struct Outgoing<L: Link> {
    /// Envelopes not known to have arrived, oldest first, and how many are.
    envelopes: VecDeque<(L::Transfer, Vec<u8>)>,
    arrived: u64,
    /// Copies not known to have arrived, and how many were ever sent.
    copies: Vec<(Vec<L::Transfer>, Vec<u8>)>,
    num_copies: u64,
    free: Vec<Vec<u8>>,
}

struct Peer<L: Link> {
    incoming: Mutex<Incoming<L>>,
    /// An envelope arrived, or nobody waits for the next one any more.
    came: Condvar,
    outgoing: Mutex<Outgoing<L>>,
    /// What we have received from it.
    envelopes_from: AtomicU64,
    copies_from: AtomicU64,
    /// What it has received from us, as far as we know.
    envelopes_to: AtomicU64,
    copies_to: AtomicU64,
}

impl<L: Link> Peer<L> {
    fn new() -> Peer<L> {
        let (posted, arrived) = (VecDeque::new(), VecDeque::new());
        Peer {
            incoming: Mutex::new(Incoming { posted, arrived, free: Vec::new(), watched: false }),
            came: Condvar::new(),
            outgoing: Mutex::new(Outgoing {
                envelopes: VecDeque::new(),
                arrived: 0,
                copies: Vec::new(),
                num_copies: 0,
                free: Vec::new(),
            }),
            envelopes_from: AtomicU64::new(0),
            copies_from: AtomicU64::new(0),
            envelopes_to: AtomicU64::new(0),
            copies_to: AtomicU64::new(0),
        }
    }

    fn received(&self) -> Received {
        Received {
            envelopes: self.envelopes_from.load(Ordering::Relaxed),
            copies: self.copies_from.load(Ordering::Relaxed),
        }
    }
}

/// One rank's post office.
pub(crate) struct Endpoint<L: Link> {
    // Peers go before the link that carries their transfers.
    peers: Vec<Peer<L>>,
    link: L,
    pub(super) watch: Arc<Watch>,
    pub(super) neighbours: Neighbours,
    channels: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<L: Link> Endpoint<L> {
    /// Opens the office over a link whose connections stand.
    pub(crate) fn open(link: L, watch: Arc<Watch>, neighbours: Neighbours) -> Result<Endpoint<L>, LinkError> {
        let peers = (0..watch.size()).map(|_| Peer::new()).collect();
        let endpoint = Endpoint { peers, link, watch, neighbours, channels: AtomicU64::new(ENVELOPES + 1) };
        for from in (0..endpoint.size()).filter(|&p| p != endpoint.rank()) {
            let mut incoming = lock(&endpoint.peers[from].incoming);
            for _ in 0..AHEAD {
                endpoint.post_ahead(from, &mut incoming)?;
            }
        }
        Ok(endpoint)
    }

    pub(super) fn rank(&self) -> usize {
        self.watch.rank
    }

    pub(super) fn size(&self) -> usize {
        self.peers.len()
    }

    /// A channel that this rank has not used before.
    pub(super) fn new_channel(&self) -> u64 {
        self.channels.fetch_add(1, Ordering::Relaxed)
    }

    fn post_ahead(&self, from: usize, incoming: &mut Incoming<L>) -> Result<(), LinkError> {
        let mut buffer = incoming.free.pop().unwrap_or_else(|| vec![0; HEADER_BYTES + INLINE_BYTES]);
        // SAFETY: the buffer's heap memory stays where it is and is touched by nobody until the transfer is done or,
        // as a field before it, dropped.
        let transfer = unsafe { self.link.recv(from, ENVELOPES, buffer.as_mut_ptr(), buffer.len())? };
        incoming.posted.push_back((transfer, buffer));
        Ok(())
    }

    /// Sends an envelope. To oneself it is delivered at once, whatever its size.
    pub(super) fn post(&self, to: usize, header: Header, content: &[u8]) -> Result<(), Interruption> {
        if to == self.rank() {
            let mut buffer = vec![0; HEADER_BYTES + content.len()];
            buffer[HEADER_BYTES..].copy_from_slice(content);
            lock(&self.peers[to].incoming).arrived.push_back(Envelope { header, buffer });
            self.peers[to].came.notify_all();
            return Ok(());
        }
        let mut outgoing = lock(&self.peers[to].outgoing);
        self.reclaim(to, &mut outgoing)?;
        let mut buffer = outgoing.free.pop().unwrap_or_else(|| vec![0; HEADER_BYTES + INLINE_BYTES]);
        header.write(self.peers[to].received(), &mut buffer);
        buffer[HEADER_BYTES..HEADER_BYTES + content.len()].copy_from_slice(content);
        // SAFETY: the queue keeps the buffer, unchanged, until the transfer is done or dropped.
        let sent = unsafe { self.link.send(to, ENVELOPES, buffer.as_ptr(), HEADER_BYTES + content.len()) };
        let transfer = sent.map_err(|e| self.watch.explain_broken(to, &e.0))?;
        outgoing.envelopes.push_back((transfer, buffer));
        Ok(())
    }

    /// Sends a copy of `content` in pieces on a channel: it completes without the receiver.
    pub(super) fn post_copy(&self, to: usize, channel: u64, content: &[u8]) -> Result<(), Interruption> {
        let mut outgoing = lock(&self.peers[to].outgoing);
        self.reclaim(to, &mut outgoing)?;
        let copy = content.to_vec();
        let mut pieces = Vec::with_capacity(copy.len().div_ceil(PIECE_BYTES));
        for piece in copy.chunks(PIECE_BYTES) {
            // SAFETY: the copy is kept, unchanged, until its transfers are done or, before it, dropped.
            let sent = unsafe { self.link.send(to, channel, piece.as_ptr(), piece.len()) };
            pieces.push(sent.map_err(|e| self.watch.explain_broken(to, &e.0))?);
        }
        outgoing.copies.push((pieces, copy));
        outgoing.num_copies += 1;
        Ok(())
    }

    /// A copy of `from` has been received whole.
    pub(super) fn received_copy(&self, from: usize) {
        self.peers[from].copies_from.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back the buffers of what has arrived. Waits for nothing: what has arrived is out.
    fn reclaim(&self, to: usize, outgoing: &mut Outgoing<L>) -> Result<(), Interruption> {
        let peer = &self.peers[to];
        let begun = Instant::now();
        while outgoing.arrived < peer.envelopes_to.load(Ordering::Relaxed) {
            let Some((mut transfer, buffer)) = outgoing.envelopes.pop_front() else { break };
            self.wait(to, &mut transfer, begun)?;
            drop(transfer);
            outgoing.free.push(buffer);
            outgoing.arrived += 1;
        }
        // They are received in any order, so only "all" is sure.
        if outgoing.num_copies == peer.copies_to.load(Ordering::Relaxed) {
            for (pieces, _copy) in outgoing.copies.drain(..) {
                for mut transfer in pieces {
                    self.wait(to, &mut transfer, begun)?;
                }
            }
        }
        Ok(())
    }

    /// The next envelope of `from` for this group, kind and number; others that arrive meanwhile are kept. Of several
    /// threads that wait for one peer, one receives and tells the others.
    pub(super) fn take(
        &self,
        from: usize,
        group: u64,
        kind: Kind,
        number: u64,
    ) -> Result<Envelope, Interruption> {
        let begun = Instant::now();
        let peer = &self.peers[from];
        let mut incoming = lock(&peer.incoming);
        let wanted = |e: &Envelope| (e.header.group, e.header.kind, e.header.number) == (group, kind, number);
        loop {
            if let Some(at) = incoming.arrived.iter().position(wanted)
                && let Some(envelope) = incoming.arrived.remove(at)
            {
                return Ok(envelope);
            }
            if incoming.watched || from == self.rank() {
                self.watch.check(from, begun)?;
                let looked = peer.came.wait_timeout(incoming, LOOK_UP);
                incoming = looked.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let Some((mut transfer, buffer)) = incoming.posted.pop_front() else {
                return Err(Interruption::Failed);
            };
            incoming.watched = true;
            drop(incoming);
            let waited = self.wait(from, &mut transfer, begun);
            incoming = lock(&peer.incoming);
            incoming.watched = false;
            peer.came.notify_all();
            if let Err(why) = waited {
                incoming.posted.push_front((transfer, buffer));
                return Err(why);
            }
            drop(transfer);
            let (header, received) = Header::read(&buffer);
            peer.envelopes_from.fetch_add(1, Ordering::Relaxed);
            peer.envelopes_to.store(received.envelopes, Ordering::Relaxed);
            peer.copies_to.store(received.copies, Ordering::Relaxed);
            incoming.arrived.push_back(Envelope { header, buffer });
            self.post_ahead(from, &mut incoming).map_err(|e| self.watch.explain_broken(from, &e.0))?;
        }
    }

    /// Gives an envelope's buffer back.
    pub(super) fn recycle(&self, from: usize, envelope: Envelope) {
        if envelope.buffer.len() == HEADER_BYTES + INLINE_BYTES {
            lock(&self.peers[from].incoming).free.push(envelope.buffer);
        }
    }

    /// Waits for a transfer with `peer`.
    pub(super) fn wait(
        &self,
        peer: usize,
        transfer: &mut L::Transfer,
        begun: Instant,
    ) -> Result<(), Interruption> {
        loop {
            match self.link.wait(transfer) {
                Ok(true) => {
                    self.watch.moved();
                    return Ok(());
                }
                Ok(false) => self.watch.check(peer, begun)?,
                Err(e) => return Err(self.watch.explain_broken(peer, &e.0)),
            }
        }
    }

    /// Says that what this rank shares may change although others have not read it: before an operation fails.
    pub(super) fn let_go(&self) {
        self.neighbours.break_seal();
    }

    /// The link, for the pieces of a collective.
    pub(super) fn link(&self) -> &L {
        &self.link
    }

    /// Waits until what was sent is out, as far as it can.
    fn flush(&self) {
        let begun = Instant::now();
        for (to, peer) in self.peers.iter().enumerate() {
            let mut outgoing = lock(&peer.outgoing);
            let mut out = |mut transfer: L::Transfer| {
                let may_go_on = || {
                    !self.watch.has_failed() && begun.elapsed() < GRACE && !self.watch.has_left_for_good(to)
                };
                while may_go_on() && matches!(self.link.wait(&mut transfer), Ok(false)) {}
            };
            for (transfer, _buffer) in outgoing.envelopes.drain(..) {
                out(transfer);
            }
            for (pieces, _copy) in outgoing.copies.drain(..) {
                pieces.into_iter().for_each(&mut out);
            }
        }
    }
}

impl<L: Link> Drop for Endpoint<L> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let how = format!("it panicked on {}", self.watch.whereabouts(self.rank()));
            self.watch.fail(super::frame::Failure::Gone { rank: self.rank(), how: how.into() });
        }
        self.flush();
        self.watch.leave(GRACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_went() {
        for kind in [Kind::Collective, Kind::Message, Kind::Checksum, Kind::Read] {
            let header =
                Header { group: u64::MAX, kind, number: 1 << 60, what: 5, bytes: 1 << 40, channel: 77 };
            let received = Received { envelopes: 3, copies: u64::MAX };
            let mut bytes = [0; HEADER_BYTES];
            header.write(received, &mut bytes);
            assert_eq!(Header::read(&bytes), (header, received));
        }
    }
}
