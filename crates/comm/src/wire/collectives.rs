//! What the ranks of a group do in each collective, over envelopes and pieces. Starting, numbering and recording are
//! in `member`.
//!
//! First everyone tells everyone what it came for, with the content where it is small, so that a difference is an
//! error and never a hang. Large reductions are direct: rank r receives segment r of all others, adds them in the
//! order of ranks, and sends the result to all. That moves the least that can be moved, 2 (n-1)/n, and gives the bits
//! of the thread backend. Blocks are pipelined: while one is added up, the next is on its way.
//! *Source:* Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005,
//! section 4.5 (reduce_scatter and all_gather), here with direct exchanges instead of recursive halving.

use super::direct::Reading;
use super::endpoint::{Endpoint, Envelope, Header, INLINE_BYTES, Kind, PIECE_BYTES};
use super::link::Link;
use super::watch::Interruption;
use crate::claim::{Claim, checksum, describe, pack, segment};
use crate::pending::Ticket;
use crate::reduce::fold;
use crate::{Collective, Reduce};
use memory::{DType, Region, RegionMut};
use std::collections::VecDeque;
use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Pieces of one range on their way at a time. Fewer leave connections idle while threads that sleep are woken: all_reduce
/// of 100 MB between two processes takes 76 ms with 4 and 113 with 2, of 512 KiB each, and 68 with 4 of 2 MiB (medians).
const AHEAD: usize = 4;

/// What a group's pieces on their way take at most, with one from or to each rank: 2 MiB for each of two.
const ROOM_BYTES: usize = 4 << 20;

/// Two ranks swap whole vectors of at most this size: it moves what segments and results would, in one round instead
/// of two, and both add all of it. Measured over loopback sockets: 92 us instead of 132 at 144 KiB, even at 384 KiB,
/// slower beyond, where adding costs more than a round.
pub(super) const SWAP_BYTES: usize = 256 << 10;

/// Why a collective ended early.
#[derive(Debug)]
pub(super) enum Trouble {
    Interrupted(Interruption),
    /// A peer (rank in the world) came with something else.
    Differs {
        ours: Box<str>,
        peer: usize,
        theirs: Box<str>,
    },
}

impl From<Interruption> for Trouble {
    fn from(why: Interruption) -> Trouble {
        Trouble::Interrupted(why)
    }
}

/// A group as its collectives see it.
pub(super) struct Group<L: Link> {
    pub(super) endpoint: Arc<Endpoint<L>>,
    /// The same on all members, and another for every group.
    pub(super) id: u64,
    pub(super) world_ranks: Vec<usize>,
    /// This rank within the group.
    pub(super) rank: usize,
    /// Room for the pieces of peers that are about to be added up; kept from one reduction to the next.
    scratch: Mutex<Vec<u64>>,
    pub(super) verify: bool,
    /// Whether the members read each other's memory.
    direct: bool,
}

/// A range of this rank's memory that a collective moves.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) base: *mut u8,
    pub(super) bytes: usize,
}

impl Memory {
    pub(super) fn at(self, range: &Range<usize>) -> *mut u8 {
        debug_assert!(range.end <= self.bytes);
        self.base.wrapping_add(range.start)
    }
}

/// What a rank sends to `peer` in its first round: nothing, or a range of what it shares.
pub(super) fn first_round(
    ticket: &Ticket,
    n: usize,
    rank: usize,
    peer: usize,
    shared_bytes: usize,
) -> Range<usize> {
    match ticket.operation {
        Collective::AllReduce if shared_bytes <= INLINE_BYTES => 0..shared_bytes,
        Collective::AllReduce => segment(shared_bytes, n, peer),
        Collective::ReduceScatter | Collective::AllToAll => {
            let piece = shared_bytes / n;
            peer * piece..(peer + 1) * piece
        }
        Collective::AllGather => 0..shared_bytes,
        Collective::Broadcast if ticket.peer == rank => 0..shared_bytes,
        _ => 0..0,
    }
}

/// Whether what travels first is in the envelopes. All ranks that came for the same thing agree on it.
fn is_inline(ticket: &Ticket, n: usize) -> bool {
    match ticket.operation {
        // The size agreed on is that of the whole vector, elsewhere that of a piece.
        Collective::AllToAll => ticket.bytes / n <= INLINE_BYTES,
        _ => ticket.bytes <= INLINE_BYTES,
    }
}

impl<L: Link> Group<L> {
    /// The group `id` of these ranks of the world, of which this rank is number `rank`.
    pub(super) fn new(
        endpoint: Arc<Endpoint<L>>,
        id: u64,
        world_ranks: Vec<usize>,
        rank: usize,
        verify: bool,
    ) -> Group<L> {
        let direct = endpoint.neighbours.read_each_other(&world_ranks);
        Group { endpoint, id, world_ranks, rank, scratch: Mutex::default(), verify, direct }
    }

    pub(super) fn size(&self) -> usize {
        self.world_ranks.len()
    }

    /// Room for `bytes` bytes of peers.
    pub(super) fn scratch(&self, bytes: usize) -> MutexGuard<'_, Vec<u64>> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let words = bytes.div_ceil(8);
        if scratch.len() < words {
            scratch.resize(words, 0);
        }
        scratch
    }

    /// The other members, beginning with the one after this rank, so that not all send to the same one first.
    pub(super) fn peers(&self) -> impl Iterator<Item = usize> + Clone {
        let (n, rank) = (self.size(), self.rank);
        (1..n).map(move |k| (rank + k) % n)
    }

    /// Tells the others what this rank came for, with the content if it is small.
    pub(super) fn announce(&self, ticket: &Ticket, channel: u64, shared: &[u8]) -> Result<(), Interruption> {
        let inline = is_inline(ticket, self.size());
        let place = match (inline, self.direct) {
            (true, _) => 0,
            (false, true) => shared.as_ptr() as u64,
            (false, false) => channel,
        };
        for peer in self.peers() {
            let range = first_round(ticket, self.size(), self.rank, peer, shared.len());
            let header = Header {
                group: self.id,
                kind: Kind::Collective,
                number: ticket.sequence,
                what: pack(ticket),
                bytes: ticket.bytes as u64,
                channel: place,
            };
            let content = if inline { &shared[range] } else { &[] };
            self.endpoint.post(self.world_ranks[peer], header, content)?;
        }
        Ok(())
    }

    /// Executes a collective that was announced with `channel`.
    pub(super) fn execute(
        &self,
        ticket: &Ticket,
        channel: u64,
        send: Option<&Region<'_>>,
        recv: Option<&mut RegionMut<'_>>,
    ) -> Result<(), Trouble> {
        let target = recv.map_or(Memory { base: ptr::null_mut(), bytes: 0 }, |r| Memory {
            base: r.as_mut_ptr(),
            bytes: r.len_bytes(),
        });
        // What is sent; where there is no `send`, the region that is changed in place. Only read from, then.
        let shared = send.map_or(target, |s| Memory { base: s.as_ptr().cast_mut(), bytes: s.len_bytes() });
        let n = self.size();
        let mut envelopes: Vec<Option<Envelope>> = (0..n).map(|_| None).collect();
        for peer in self.peers() {
            let from = self.world_ranks[peer];
            envelopes[peer] = Some(self.endpoint.take(from, self.id, Kind::Collective, ticket.sequence)?);
        }
        self.compare(ticket, &envelopes)?;
        if n == 1 {
            if shared.base != target.base && target.bytes > 0 {
                // SAFETY: two regions of this rank, apart, of the same size in a group of one.
                unsafe { ptr::copy_nonoverlapping(shared.base, target.base, target.bytes) }
            }
        } else if is_inline(ticket, n) {
            self.finish_inline(ticket, shared, target, &envelopes);
        } else {
            let places = envelopes.iter().map(|e| e.as_ref().map_or(channel, |e| e.header.channel)).collect();
            if self.direct {
                Reading { group: self, addresses: places }.run(ticket, shared, target)?;
            } else {
                let exchange = Exchange { group: self, channels: places, begun: Instant::now() };
                exchange.run(ticket, shared, target)?;
            }
        }
        for (peer, envelope) in envelopes.into_iter().enumerate() {
            if let Some(envelope) = envelope {
                self.endpoint.recycle(self.world_ranks[peer], envelope);
            }
        }
        self.verify_result(ticket, target)
    }

    fn compare(&self, ticket: &Ticket, envelopes: &[Option<Envelope>]) -> Result<(), Trouble> {
        let ours = Claim { what: pack(ticket), bytes: ticket.bytes, sequence: ticket.sequence };
        for (peer, envelope) in envelopes.iter().enumerate() {
            let Some(Envelope { header, .. }) = envelope else { continue };
            let theirs = Claim { what: header.what, bytes: header.bytes as usize, sequence: header.number };
            if theirs != ours {
                let peer = self.world_ranks[peer];
                return Err(Trouble::Differs { ours: describe(ours), peer, theirs: describe(theirs) });
            }
        }
        Ok(())
    }

    /// All that was sent is in the envelopes, or in `shared` itself.
    fn finish_inline(&self, ticket: &Ticket, shared: Memory, target: Memory, envelopes: &[Option<Envelope>]) {
        let (n, rank) = (self.size(), self.rank);
        let part = |peer: usize| {
            let range = first_round(ticket, n, peer, rank, shared.bytes);
            let content = envelopes[peer].as_ref().map(|e| e.content(range.len()).as_ptr());
            (content.unwrap_or(shared.at(&range).cast_const()), range.len())
        };
        // SAFETY (all): the parts have the sizes that all ranks agreed on, checked against the regions when the
        // operation was started; envelopes are ours; `target` is checked out by us, and where it is also a source, it
        // is the same range.
        match ticket.operation {
            Collective::AllReduce | Collective::ReduceScatter => {
                let (dtype, op) = (ticket.dtype.unwrap_or(DType::F32), ticket.reduce.unwrap_or(Reduce::Sum));
                // Envelopes are not aligned for elements, so peers' parts are brought where they are.
                let mut aligned = vec![0u64; n * target.bytes.div_ceil(8)];
                let room = aligned.as_mut_ptr().cast::<u8>();
                let stride = target.bytes.div_ceil(8) * 8;
                for peer in 0..n {
                    let (from, len) = part(peer);
                    unsafe { ptr::copy_nonoverlapping(from, room.wrapping_add(peer * stride), len) }
                }
                let source = |peer: usize| room.wrapping_add(peer * stride).cast_const();
                unsafe { fold(dtype, op, target.base, source, n, target.bytes) }
            }
            Collective::AllGather | Collective::AllToAll => {
                for peer in 0..n {
                    let (from, len) = part(peer);
                    unsafe { ptr::copy_nonoverlapping(from, target.base.wrapping_add(peer * len), len) }
                }
            }
            Collective::Broadcast if ticket.peer != rank => {
                let (from, len) = part(ticket.peer);
                unsafe { ptr::copy_nonoverlapping(from, target.base, len) }
            }
            _ => {}
        }
    }

    /// Whether all ranks have the same bits, where they should.
    fn verify_result(&self, ticket: &Ticket, target: Memory) -> Result<(), Trouble> {
        use Collective::{AllGather, AllReduce, Broadcast};
        if !self.verify || !matches!(ticket.operation, AllReduce | AllGather | Broadcast) {
            return Ok(());
        }
        // SAFETY: our own region, checked out by us; the collective is over.
        let bytes: &[u8] = match target.bytes {
            0 => &[],
            len => unsafe { std::slice::from_raw_parts(target.base, len) },
        };
        let ours = checksum(bytes);
        let (group, kind, number) = (self.id, Kind::Checksum, ticket.sequence);
        let header = Header { group, kind, number, what: ours, bytes: 0, channel: 0 };
        for peer in self.peers() {
            self.endpoint.post(self.world_ranks[peer], header, &[])?;
        }
        for peer in self.peers() {
            let peer = self.world_ranks[peer];
            let theirs = self.endpoint.take(peer, group, kind, number)?.header.what;
            if theirs != ours {
                let ours = format!("a result with checksum {ours:016x}").into();
                return Err(Trouble::Differs {
                    ours,
                    peer,
                    theirs: format!("one with {theirs:016x}").into(),
                });
            }
        }
        Ok(())
    }
}

/// The large part of a collective: pieces on channels.
struct Exchange<'g, L: Link> {
    group: &'g Group<L>,
    /// By member: the channel on which it sends; our own for what we send.
    channels: Vec<u64>,
    begun: Instant,
}

/// Pieces under way, oldest first, with the peer (rank in the world) of each.
type Flight<T> = VecDeque<(usize, T)>;

impl<L: Link> Exchange<'_, L> {
    fn run(&self, ticket: &Ticket, shared: Memory, target: Memory) -> Result<(), Trouble> {
        let (n, rank) = (self.group.size(), self.group.rank);
        let (dtype, op) = (ticket.dtype.unwrap_or(DType::F32), ticket.reduce.unwrap_or(Reduce::Sum));
        let first = |of: usize, to: usize| first_round(ticket, n, of, to, shared.bytes);
        match ticket.operation {
            Collective::AllReduce if n == 2 && target.bytes <= SWAP_BYTES => self.swap(dtype, op, target),
            Collective::AllReduce => {
                let own = segment(target.bytes, n, rank);
                self.reduce(dtype, op, shared, target, own.start, |peer| segment(target.bytes, n, peer), true)
            }
            Collective::ReduceScatter => {
                self.reduce(dtype, op, shared, target, 0, |peer| first(rank, peer), false)
            }
            Collective::AllGather | Collective::AllToAll => {
                let piece = target.bytes / n;
                let own = first(rank, rank);
                // SAFETY: both ranges are of this rank's regions, which are apart, and of one piece's size.
                unsafe {
                    ptr::copy_nonoverlapping(shared.at(&own), target.base.wrapping_add(rank * piece), piece)
                }
                let place = |peer: usize| peer * piece..(peer + 1) * piece;
                self.exchange(shared, |peer| first(rank, peer), target, place)
            }
            Collective::Broadcast => {
                let all = |is_for: bool| if is_for { 0..target.bytes } else { 0..0 };
                let (root, i_am) = (ticket.peer, ticket.peer == rank);
                self.exchange(shared, |_| all(i_am), target, |peer| all(peer == root))
            }
            Collective::Barrier | Collective::Split | Collective::Send | Collective::Recv => Ok(()),
        }
    }

    fn send(
        &self,
        peer: usize,
        from: *const u8,
        len: usize,
        flight: &mut Flight<L::Transfer>,
    ) -> Result<(), Trouble> {
        if len > 0 {
            let (endpoint, to) = (&self.group.endpoint, self.group.world_ranks[peer]);
            let channel = self.channels[self.group.rank];
            // SAFETY: the callers send from this rank's regions or scratch, which stay put until the flight, which is
            // theirs, is done or dropped.
            let sent = unsafe { endpoint.link().send(to, channel, from, len) };
            flight.push_back((to, sent.map_err(|e| endpoint.watch.explain_broken(to, &e.0))?));
        }
        Ok(())
    }

    fn recv(
        &self,
        peer: usize,
        to: *mut u8,
        len: usize,
        flight: &mut Flight<L::Transfer>,
    ) -> Result<(), Trouble> {
        if len > 0 {
            let (endpoint, from) = (&self.group.endpoint, self.group.world_ranks[peer]);
            // SAFETY: as in `send`; the callers receive into ranges that nobody else touches meanwhile.
            let received = unsafe { endpoint.link().recv(from, self.channels[peer], to, len) };
            flight.push_back((from, received.map_err(|e| endpoint.watch.explain_broken(from, &e.0))?));
        }
        Ok(())
    }

    fn wait(&self, flight: &mut Flight<L::Transfer>, leave: usize) -> Result<(), Trouble> {
        while flight.len() > leave {
            if let Some((peer, mut transfer)) = flight.pop_front() {
                self.group.endpoint.wait(peer, &mut transfer, self.begun)?;
            }
        }
        Ok(())
    }

    /// Sends `what(peer)` of `shared` to each peer and receives `place(peer)` of `target` from it, in pieces.
    fn exchange(
        &self,
        shared: Memory,
        what: impl Fn(usize) -> Range<usize>,
        target: Memory,
        place: impl Fn(usize) -> Range<usize>,
    ) -> Result<(), Trouble> {
        let mut flight = Flight::new();
        let num_peers = self.group.size() - 1;
        let longest = self.group.peers().map(|p| what(p).len().max(place(p).len())).max().unwrap_or(0);
        let pieces = Pieces::of(longest, self.group.size());
        for block in 0..pieces.number {
            for peer in self.group.peers() {
                let (out, into) = (pieces.nth(&what(peer), block), pieces.nth(&place(peer), block));
                self.recv(peer, target.at(&into), into.len(), &mut flight)?;
                self.send(peer, shared.at(&out), out.len(), &mut flight)?;
            }
            self.wait(&mut flight, 2 * AHEAD * num_peers)?;
        }
        self.wait(&mut flight, 0)
    }

    /// Reduces `target` of two ranks, each of which receives all of the other's.
    fn swap(&self, dtype: DType, op: Reduce, target: Memory) -> Result<(), Trouble> {
        let (rank, peer) = (self.group.rank, 1 - self.group.rank);
        let mut scratch = self.group.scratch(target.bytes);
        let theirs = scratch.as_mut_ptr().cast::<u8>();
        // Dropped before `scratch`, also when an error leaves early.
        let mut flight = Flight::new();
        self.recv(peer, theirs, target.bytes, &mut flight)?;
        self.send(peer, target.base, target.bytes, &mut flight)?;
        self.wait(&mut flight, 0)?;
        let source = |of: usize| if of == rank { target.base.cast_const() } else { theirs.cast_const() };
        // SAFETY: both vectors are ours, of the same size, and what was sent is out; the result takes the place of our
        // own.
        unsafe { fold(dtype, op, target.base, source, 2, target.bytes) }
        Ok(())
    }

    /// Reduces this rank's segment of everyone's `shared` into `target` at `own_at`; with `spread` (in place), sends
    /// the result to all and receives theirs.
    fn reduce(
        &self,
        dtype: DType,
        op: Reduce,
        shared: Memory,
        target: Memory,
        own_at: usize,
        segment_of: impl Fn(usize) -> Range<usize>,
        spread: bool,
    ) -> Result<(), Trouble> {
        let (n, rank) = (self.group.size(), self.group.rank);
        let own = segment_of(rank);
        let pieces = Pieces::of((0..n).map(|p| segment_of(p).len()).max().unwrap_or(0), n);
        // As many blocks have a place; one is added up while the others travel.
        let places = pieces.number.min(AHEAD);
        let mut scratch = self.group.scratch(places * n * pieces.bytes);
        let room = scratch.as_mut_ptr().cast::<u8>();
        let slot = |block: usize, peer: usize| room.wrapping_add((block % places * n + peer) * pieces.bytes);
        // Dropped before `scratch`, also when an error leaves early.
        let mut scattered: [Flight<L::Transfer>; AHEAD] = Default::default();
        let mut sent: [Flight<L::Transfer>; AHEAD] = Default::default();
        let mut gathered = Flight::new();
        let scatter = |block: usize, received: &mut Flight<L::Transfer>, sent: &mut Flight<L::Transfer>| {
            for peer in self.group.peers() {
                self.recv(peer, slot(block, peer), pieces.nth(&own, block).len(), received)?;
                let out = pieces.nth(&segment_of(peer), block);
                self.send(peer, shared.at(&out), out.len(), sent)?;
            }
            Ok::<(), Trouble>(())
        };
        for block in 0..places.saturating_sub(1) {
            scatter(block, &mut scattered[block], &mut sent[block])?;
        }
        for block in 0..pieces.number {
            let (now, last) = (block % places, block + places - 1);
            if last < pieces.number {
                scatter(last, &mut scattered[last % places], &mut sent[last % places])?;
            }
            self.wait(&mut scattered[now], 0)?;
            let mine = pieces.nth(&own, block);
            let result = target.base.wrapping_add(own_at + mine.start - own.start);
            let source = |peer: usize| match peer == rank {
                true => shared.at(&mine).cast_const(),
                false => slot(block, peer).cast_const(),
            };
            // SAFETY: the pieces have arrived and are ours; all have the length of `mine`, which is whole elements
            // because segments and pieces start at multiples of 64; in an all_reduce `result` is our own source.
            unsafe { fold(dtype, op, result, source, n, mine.len()) }
            // The parts that were sent may be replaced now that they are out.
            self.wait(&mut sent[now], 0)?;
            if spread {
                for peer in self.group.peers() {
                    let into = pieces.nth(&segment_of(peer), block);
                    self.recv(peer, target.at(&into), into.len(), &mut gathered)?;
                    self.send(peer, result, mine.len(), &mut gathered)?;
                }
                self.wait(&mut gathered, 2 * AHEAD * (n - 1))?;
            }
        }
        self.wait(&mut gathered, 0)
    }
}

/// How ranges travel: all ranks cut theirs alike.
#[derive(Clone, Copy)]
struct Pieces {
    bytes: usize,
    /// As many as the longest range has.
    number: usize,
}

impl Pieces {
    /// Of ranges of at most `longest` bytes in a group of `n`: large ones, for each has to be waited for, but enough to
    /// follow each other, and not more memory for many ranks than for few.
    fn of(longest: usize, n: usize) -> Pieces {
        let most = (ROOM_BYTES / n / 64 * 64).max(PIECE_BYTES);
        let bytes = (longest / (2 * AHEAD)).next_multiple_of(64).clamp(PIECE_BYTES, most);
        Pieces { bytes, number: longest.div_ceil(bytes) }
    }

    /// The part of `range` that travels as piece `block`; empty beyond its end.
    fn nth(&self, range: &Range<usize>, block: usize) -> Range<usize> {
        let begin = (range.start + block * self.bytes).min(range.end);
        begin..(begin + self.bytes).min(range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_of_a_range_and_whole_elements() {
        for n in [2, 3, 8, 100] {
            for longest in [1, 64, PIECE_BYTES, PIECE_BYTES + 8, 5 << 20, 16_777_208, 100_000_000] {
                let pieces = Pieces::of(longest, n);
                assert!(pieces.bytes.is_multiple_of(64) && pieces.bytes >= PIECE_BYTES);
                assert!(n * pieces.bytes <= ROOM_BYTES || pieces.bytes == PIECE_BYTES, "{n} {longest}");
                for range in [0..longest, 128..128 + longest / 2, 7..7] {
                    let mut end = range.start;
                    for block in 0..pieces.number {
                        let piece = pieces.nth(&range, block);
                        assert!(piece.start == end && piece.len() <= pieces.bytes);
                        end = piece.end;
                    }
                    assert_eq!(end, range.end);
                }
            }
        }
    }
}
