//! [`WireCommunicator`]: one rank's membership in a group of processes. It checks arguments, numbers operations,
//! records them, and turns trouble into errors; the data movement is in `collectives` and `endpoint`.

use super::collectives::{Group, Trouble};
use super::endpoint::{Endpoint, Header, INLINE_BYTES, Kind, PIECE_BYTES};
use super::frame::Failure;
use super::link::Link;
use super::watch::Interruption;
use crate::claim;
use crate::pending::{Finish, Ticket};
use crate::recorder::{Outcome, Recorder};
use crate::{AbortHandle, Collective, CommError, Communicator, OperationRecord, Pending, Place, Reduce};
use memory::{DType, Region, RegionMut};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A rank of a world of processes, or of a group split from one.
pub(crate) struct WireCommunicator<L: Link>(Arc<Member<L>>);

struct Member<L: Link> {
    group: Group<L>,
    name: Arc<str>,
    recorder: Arc<Recorder>,
    /// Collectives started and completed; the channels of those between.
    started: AtomicU64,
    completed: AtomicU64,
    channels: Mutex<VecDeque<u64>>,
    /// Sends and receives started.
    messages: AtomicU64,
    /// Receives not yet waited for: (from, tag, sequence), oldest first.
    receives: Mutex<Vec<(usize, u64, u64)>>,
    /// How often each group was split off.
    splits: Mutex<HashMap<(String, Vec<usize>), u64>>,
}

/// The communicator of all ranks over an endpoint.
pub(crate) fn world<L: Link>(
    endpoint: Endpoint<L>,
    flight_recorder: usize,
    verify: bool,
) -> Box<dyn Communicator> {
    let size = endpoint.size();
    let recorder = Arc::new(Recorder::new(flight_recorder, endpoint.watch.origin()));
    let rank = endpoint.rank();
    let group = Group::new(Arc::new(endpoint), hash(&[b"world"]), (0..size).collect(), rank, verify);
    Box::new(WireCommunicator::new(group, format!("world[0..{size}]").into(), recorder))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// FNV-1a with the lengths of the parts, so that they cannot run into each other.
fn hash(parts: &[&[u8]]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let mut all = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        all = (part.len() as u64).to_le_bytes().iter().chain(*part).fold(all, mix);
    }
    all
}

impl<L: Link> WireCommunicator<L> {
    fn new(group: Group<L>, name: Arc<str>, recorder: Arc<Recorder>) -> WireCommunicator<L> {
        WireCommunicator(Arc::new(Member {
            group,
            name,
            recorder,
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            channels: Mutex::default(),
            messages: AtomicU64::new(0),
            receives: Mutex::default(),
            splits: Mutex::default(),
        }))
    }

    /// Numbers, records and announces a collective. `recv` is what is changed in place where there is no `send`.
    fn start<'a>(
        &self,
        operation: Collective,
        reduction: Option<(DType, Reduce)>,
        (bytes, root): (usize, usize),
        send: Option<Region<'a>>,
        recv: Option<RegionMut<'a>>,
    ) -> Result<Pending<'a>, CommError> {
        let member = &self.0;
        let ticket = member.begin(operation, reduction, bytes, root, 0)?;
        let shared = match (&send, &recv) {
            (Some(send), _) => send.as_slice::<u8>(),
            (None, Some(recv)) => recv.as_slice::<u8>(),
            (None, None) => &[],
        };
        let channel = member.group.endpoint.new_channel();
        if let Err(why) = member.group.announce(&ticket, channel, shared) {
            return Err(member.fail(&ticket, why.into()));
        }
        lock(&member.channels).push_back(channel);
        Ok(Pending::new(Arc::clone(member) as Arc<dyn Finish>, ticket, send, recv))
    }

    fn check_sizes(
        &self,
        operation: Collective,
        send_bytes: usize,
        recv_bytes: usize,
        element_bytes: usize,
    ) -> Result<(), CommError> {
        let n = self.world_size();
        if claim::sizes_fit(operation, n, send_bytes, recv_bytes, element_bytes) {
            return Ok(());
        }
        let place = self.0.place(operation, self.0.started.load(Ordering::Relaxed), Instant::now());
        Err(CommError::InvalidSize { place, send_bytes, recv_bytes, group_size: n, element_bytes })
    }

    fn check_rank(&self, operation: Collective, peer: usize) -> Result<(), CommError> {
        if peer < self.world_size() {
            return Ok(());
        }
        let number = if operation == Collective::Broadcast { &self.0.started } else { &self.0.messages };
        let place = self.0.place(operation, number.load(Ordering::Relaxed), Instant::now());
        Err(CommError::InvalidRank { place, peer, group_size: self.world_size() })
    }

    fn meet(&self, operation: Collective) -> Result<(), CommError> {
        self.start(operation, None, (0, 0), None, None)?.wait()
    }
}

impl<L: Link> Communicator for WireCommunicator<L> {
    fn rank(&self) -> usize {
        self.0.group.rank
    }

    fn world_size(&self) -> usize {
        self.0.group.size()
    }

    fn name(&self) -> &str {
        &self.0.name
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let bytes = data.len_bytes();
        self.check_sizes(Collective::AllReduce, bytes, bytes, dtype.size_bytes())?;
        self.start(Collective::AllReduce, Some((dtype, op)), (bytes, 0), None, Some(data))
    }

    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let bytes = recv.len_bytes();
        self.check_sizes(Collective::ReduceScatter, send.len_bytes(), bytes, dtype.size_bytes())?;
        self.start(Collective::ReduceScatter, Some((dtype, op)), (bytes, 0), Some(send), Some(recv))
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let bytes = send.len_bytes();
        self.check_sizes(Collective::AllGather, bytes, recv.len_bytes(), 1)?;
        self.start(Collective::AllGather, None, (bytes, 0), Some(send), Some(recv))
    }

    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let bytes = send.len_bytes();
        self.check_sizes(Collective::AllToAll, bytes, recv.len_bytes(), 1)?;
        self.start(Collective::AllToAll, None, (bytes, 0), Some(send), Some(recv))
    }

    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        self.check_rank(Collective::Broadcast, root)?;
        self.start(Collective::Broadcast, None, (data.len_bytes(), root), None, Some(data))
    }

    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        self.check_rank(Collective::Send, to)?;
        let member = &self.0;
        let ticket = member.begin(Collective::Send, None, data.len_bytes(), to, tag)?;
        member.conclude(&ticket, member.post_message(&ticket, data.as_slice()))?;
        Ok(Pending::new(Arc::clone(member) as Arc<dyn Finish>, ticket, Some(data), None))
    }

    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        self.check_rank(Collective::Recv, from)?;
        let ticket = self.0.begin(Collective::Recv, None, data.len_bytes(), from, tag)?;
        lock(&self.0.receives).push((from, tag, ticket.sequence));
        Ok(Pending::new(Arc::clone(&self.0) as Arc<dyn Finish>, ticket, None, Some(data)))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.meet(Collective::Barrier)
    }

    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError> {
        let (member, group) = (&self.0, &self.0.group);
        let distinct =
            members.iter().enumerate().all(|(i, m)| *m < group.size() && !members[..i].contains(m));
        let Some(rank) = members.iter().position(|&m| m == group.rank).filter(|_| distinct) else {
            let place =
                member.place(Collective::Split, member.started.load(Ordering::Relaxed), Instant::now());
            let (members, group_size) = (members.to_vec(), group.size());
            return Err(CommError::InvalidSplit { place, members, group_size });
        };
        let occurrence = {
            let mut splits = lock(&member.splits);
            let count = splits.entry((name.to_string(), members.to_vec())).or_default();
            *count += 1;
            *count
        };
        let world_ranks: Vec<usize> = members.iter().map(|&m| group.world_ranks[m]).collect();
        let listed: Vec<String> = world_ranks.iter().map(usize::to_string).collect();
        let listed = listed.join(",");
        // All members come to the same number without a word; no two groups that share a rank come to the same one.
        let id =
            hash(&[&group.id.to_le_bytes(), name.as_bytes(), listed.as_bytes(), &occurrence.to_le_bytes()]);
        let endpoint = Arc::clone(&group.endpoint);
        let new_group = Group::new(endpoint, id, world_ranks, rank, group.verify);
        let name = format!("{name}[{listed}]").into();
        let communicator = WireCommunicator::new(new_group, name, Arc::clone(&member.recorder));
        communicator.meet(Collective::Split)?;
        Ok(Box::new(communicator))
    }

    fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::clone(&self.0.group.endpoint.watch) as _)
    }

    fn recent_operations(&self) -> Vec<OperationRecord> {
        self.0.recorder.recent()
    }
}

impl<L: Link> fmt::Debug for WireCommunicator<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireCommunicator(rank {} of {})", self.rank(), self.name())
    }
}

impl<L: Link> Member<L> {
    fn place(&self, operation: Collective, sequence: u64, started: Instant) -> Place {
        let watch = &self.group.endpoint.watch;
        Place {
            rank: watch.rank,
            host: watch.hosts.get(watch.rank).cloned(),
            group: Arc::clone(&self.name),
            operation,
            sequence,
            elapsed: started.elapsed(),
        }
    }

    fn place_of(&self, ticket: &Ticket) -> Place {
        self.place(ticket.operation, ticket.sequence, ticket.started)
    }

    /// Numbers and records an operation, unless the world has failed.
    fn begin(
        &self,
        operation: Collective,
        reduction: Option<(DType, Reduce)>,
        bytes: usize,
        peer: usize,
        tag: u64,
    ) -> Result<Ticket, CommError> {
        let started = Instant::now();
        let message = matches!(operation, Collective::Send | Collective::Recv);
        let counter = if message { &self.messages } else { &self.started };
        if self.group.endpoint.watch.has_failed() {
            let sequence = counter.load(Ordering::Relaxed);
            // Where this rank was when it heard: the flight recorder's last line.
            let record = self.recorder.begin(&self.name, operation, sequence, bytes, started);
            self.recorder.end(record, Outcome::Failed(started.elapsed()));
            return Err(self.failure_at(self.place(operation, sequence, started)));
        }
        let sequence = counter.fetch_add(1, Ordering::Relaxed);
        let record = self.recorder.begin(&self.name, operation, sequence, bytes, started);
        let (dtype, reduce) = reduction.unzip();
        Ok(Ticket { operation, dtype, reduce, bytes, peer, tag, sequence, started, record })
    }

    /// Records how an operation ended and, if it failed, fails the world and names the error.
    fn conclude(&self, ticket: &Ticket, result: Result<(), Trouble>) -> Result<(), CommError> {
        match result {
            Ok(()) => {
                self.recorder.end(ticket.record, Outcome::Done(ticket.started.elapsed()));
                Ok(())
            }
            Err(trouble) => Err(self.fail(ticket, trouble)),
        }
    }

    /// The error that the world's failure is for an operation at `place`.
    fn failure_at(&self, place: Place) -> CommError {
        match self.group.endpoint.watch.failure() {
            Some(Failure::Gone { rank, how }) => {
                CommError::PeerGone { place, peer: *rank, how: Arc::clone(how) }
            }
            Some(Failure::Aborted(reason)) => CommError::Aborted { place, reason: Arc::clone(reason) },
            None => CommError::Aborted { place, reason: "no reason given".into() },
        }
    }

    #[cold]
    fn fail(&self, ticket: &Ticket, trouble: Trouble) -> CommError {
        self.group.endpoint.let_go();
        self.recorder.end(ticket.record, Outcome::Failed(ticket.started.elapsed()));
        let (watch, place) = (&self.group.endpoint.watch, self.place_of(ticket));
        match trouble {
            Trouble::Differs { ours, peer, theirs } => {
                let error = CommError::Mismatch { place, ours, peer, theirs };
                watch.fail(Failure::Aborted(error.to_string().into()));
                error
            }
            Trouble::Interrupted(Interruption::Gone { rank: peer, how }) => {
                watch.fail(Failure::Gone { rank: peer, how: Arc::clone(&how) });
                CommError::PeerGone { place, peer, how }
            }
            Trouble::Interrupted(Interruption::Deadline { missing }) => {
                let deadline = watch.options.deadline;
                let error = CommError::DeadlineExceeded { place, deadline, missing: vec![missing] };
                watch.fail(Failure::Aborted(error.to_string().into()));
                error
            }
            Trouble::Interrupted(Interruption::Failed) => self.failure_at(place),
        }
    }

    fn out_of_order(&self, ticket: &Ticket, expected: u64) -> CommError {
        self.group.endpoint.let_go();
        let error = CommError::OutOfOrder { place: self.place_of(ticket), expected };
        self.recorder.end(ticket.record, Outcome::Failed(ticket.started.elapsed()));
        self.group.endpoint.watch.fail(Failure::Aborted(error.to_string().into()));
        error
    }

    fn post_message(&self, ticket: &Ticket, content: &[u8]) -> Result<(), Trouble> {
        let (endpoint, to) = (&self.group.endpoint, self.group.world_ranks[ticket.peer]);
        let inline = content.len() <= INLINE_BYTES || to == endpoint.rank();
        let header = Header {
            group: self.group.id,
            kind: Kind::Message,
            number: ticket.tag,
            what: 0,
            bytes: content.len() as u64,
            channel: if inline { 0 } else { endpoint.new_channel() },
        };
        endpoint.post(to, header, if inline { content } else { &[] })?;
        if !inline {
            endpoint.post_copy(to, header.channel, content)?;
        }
        Ok(())
    }

    fn receive(&self, ticket: &Ticket, target: &mut [u8]) -> Result<(), Trouble> {
        let (endpoint, from) = (&self.group.endpoint, self.group.world_ranks[ticket.peer]);
        let envelope = endpoint.take(from, self.group.id, Kind::Message, ticket.tag)?;
        let header = envelope.header;
        if header.bytes != target.len() as u64 {
            return Err(Trouble::Differs {
                ours: format!("recv of {} bytes with tag {}", target.len(), ticket.tag).into(),
                peer: from,
                theirs: format!("sent {} bytes", header.bytes).into(),
            });
        }
        if header.channel == 0 {
            target.copy_from_slice(envelope.content(target.len()));
        } else {
            let begun = Instant::now();
            let mut pieces = VecDeque::new();
            for piece in target.chunks_mut(PIECE_BYTES) {
                // SAFETY: pieces of a region that is ours until this returns, by when all transfers are done or dropped.
                let posted =
                    unsafe { endpoint.link().recv(from, header.channel, piece.as_mut_ptr(), piece.len()) };
                pieces.push_back(posted.map_err(|e| endpoint.watch.explain_broken(from, &e.0))?);
            }
            while let Some(mut piece) = pieces.pop_front() {
                endpoint.wait(from, &mut piece, begun)?;
            }
            endpoint.received_copy(from);
        }
        endpoint.recycle(from, envelope);
        Ok(())
    }

    /// Takes a receive off the list, if it is the oldest of its sender and tag; otherwise names the oldest.
    fn claim_receive(&self, ticket: &Ticket) -> Result<(), u64> {
        let mut receives = lock(&self.receives);
        match receives.iter().position(|r| (r.0, r.1) == (ticket.peer, ticket.tag)) {
            Some(oldest) if receives[oldest].2 != ticket.sequence => Err(receives[oldest].2),
            Some(oldest) => {
                receives.remove(oldest);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl<L: Link> Finish for Member<L> {
    fn finish(
        &self,
        ticket: &Ticket,
        send: Option<&Region<'_>>,
        recv: Option<&mut RegionMut<'_>>,
    ) -> Result<Instant, CommError> {
        match (ticket.operation, recv) {
            (Collective::Send, _) => {}
            _ if self.group.endpoint.watch.has_failed() => {
                self.conclude(ticket, Err(Interruption::Failed.into()))?;
            }
            (Collective::Recv, Some(recv)) => {
                self.claim_receive(ticket).map_err(|expected| self.out_of_order(ticket, expected))?;
                self.conclude(ticket, self.receive(ticket, recv.as_mut_slice::<u8>()))?;
            }
            (_, recv) => {
                let expected = self.completed.load(Ordering::Acquire);
                if expected != ticket.sequence {
                    return Err(self.out_of_order(ticket, expected));
                }
                let channel = lock(&self.channels).pop_front().unwrap_or_default();
                self.conclude(ticket, self.group.execute(ticket, channel, send, recv))?;
                self.completed.store(ticket.sequence + 1, Ordering::Release);
            }
        }
        Ok(Instant::now())
    }

    fn abandon(&self, ticket: &Ticket) {
        if ticket.operation == Collective::Send {
            return;
        }
        self.group.endpoint.let_go();
        self.recorder.end(ticket.record, Outcome::Failed(ticket.started.elapsed()));
        let watch = &self.group.endpoint.watch;
        watch.fail(match std::thread::panicking() {
            true => Failure::Gone {
                rank: watch.rank,
                how: format!("it panicked on {}", watch.whereabouts(watch.rank)).into(),
            },
            false => Failure::Aborted(format!("{}: dropped without wait", self.place_of(ticket)).into()),
        });
    }
}
