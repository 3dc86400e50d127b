//! [`ThreadCommunicator`]: one rank's membership. It checks arguments, numbers operations, records them, and turns
//! trouble into errors; the data movement is in `collectives` and `mailbox`.

use super::collectives::{Trouble, execute};
use super::group::Group;
use super::patience::Interruption;
use super::world::{Failure, LEFT, SplitKey, WorldState, lock};
use crate::claim;
use crate::pending::{Finish, Ticket};
use crate::recorder::{Outcome, Recorder};
use crate::{AbortHandle, Collective, CommError, Communicator, OperationRecord, Pending, Place, Reduce};
use memory::{DType, Region, RegionMut};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A rank of a [`super::World`], or of a group split from one. Move it into the rank's thread.
pub struct ThreadCommunicator(Arc<Member>);

struct Member {
    group: Arc<Group>,
    rank: usize,
    recorder: Arc<Recorder>,
    /// Collectives started and completed. Only the one numbered `completed` may execute: that makes execution in a
    /// group exclusive even if a `Pending` stays in one thread while the communicator moves to another.
    started: AtomicU64,
    completed: AtomicU64,
    /// Sends and receives started.
    messages: AtomicU64,
    /// Receives not yet waited for: (from, tag, sequence), oldest first.
    receives: Mutex<Vec<(usize, u64, u64)>>,
    /// How often each group was split off.
    splits: Mutex<HashMap<(String, Vec<usize>), u64>>,
}

impl ThreadCommunicator {
    pub(super) fn new(group: Arc<Group>, rank: usize, recorder: Arc<Recorder>) -> ThreadCommunicator {
        ThreadCommunicator(Arc::new(Member {
            group,
            rank,
            recorder,
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            receives: Mutex::new(Vec::with_capacity(64)),
            splits: Mutex::default(),
        }))
    }

    fn start<'a>(
        &self,
        operation: Collective,
        reduction: Option<(DType, Reduce)>,
        (bytes, peer, tag): (usize, usize, u64),
        send: Option<Region<'a>>,
        recv: Option<RegionMut<'a>>,
    ) -> Result<Pending<'a>, CommError> {
        let ticket = self.0.begin(operation, reduction, bytes, peer, tag)?;
        Ok(Pending::new(Arc::clone(&self.0) as Arc<dyn Finish>, ticket, send, recv))
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

    /// A collective without data, at once.
    fn meet(&self, operation: Collective) -> Result<(), CommError> {
        self.start(operation, None, (0, 0, 0), None, None)?.wait()
    }
}

impl Communicator for ThreadCommunicator {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn world_size(&self) -> usize {
        self.0.group.size()
    }

    fn name(&self) -> &str {
        &self.0.group.name
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let bytes = data.len_bytes();
        self.check_sizes(Collective::AllReduce, bytes, bytes, dtype.size_bytes())?;
        self.start(Collective::AllReduce, Some((dtype, op)), (bytes, 0, 0), None, Some(data))
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
        self.start(Collective::ReduceScatter, Some((dtype, op)), (bytes, 0, 0), Some(send), Some(recv))
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let bytes = send.len_bytes();
        self.check_sizes(Collective::AllGather, bytes, recv.len_bytes(), 1)?;
        self.start(Collective::AllGather, None, (bytes, 0, 0), Some(send), Some(recv))
    }

    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let bytes = send.len_bytes();
        self.check_sizes(Collective::AllToAll, bytes, recv.len_bytes(), 1)?;
        self.start(Collective::AllToAll, None, (bytes, 0, 0), Some(send), Some(recv))
    }

    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        self.check_rank(Collective::Broadcast, root)?;
        self.start(Collective::Broadcast, None, (data.len_bytes(), root, 0), None, Some(data))
    }

    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        self.check_rank(Collective::Send, to)?;
        let (member, group) = (&self.0, &self.0.group);
        let ticket = member.begin(Collective::Send, None, data.len_bytes(), to, tag)?;
        if group.is_gone(to) {
            return Err(member.conclude(&ticket, Err(Interruption::Gone(to).into())).unwrap_err());
        }
        let receiver = &group.seats[to];
        receiver.mailbox.put(member.rank, tag, data.as_slice::<u8>());
        receiver.bed.wake();
        member.conclude(&ticket, Ok(()))?;
        Ok(Pending::new(Arc::clone(member) as Arc<dyn Finish>, ticket, Some(data), None))
    }

    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        self.check_rank(Collective::Recv, from)?;
        let pending = self.start(Collective::Recv, None, (data.len_bytes(), from, tag), None, Some(data))?;
        lock(&self.0.receives).push((from, tag, pending.sequence()));
        Ok(pending)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.meet(Collective::Barrier)
    }

    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError> {
        let (member, group) = (&self.0, &self.0.group);
        let distinct =
            members.iter().enumerate().all(|(i, m)| *m < group.size() && !members[..i].contains(m));
        let Some(rank) = members.iter().position(|&m| m == member.rank).filter(|_| distinct) else {
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
        let full_name = format!("{name}[{}]", listed.join(","));
        let key =
            SplitKey { parent: group.id, name: name.to_string(), members: members.to_vec(), occurrence };
        let new_group = WorldState::join(&group.world, key, full_name, world_ranks);
        let communicator = ThreadCommunicator::new(new_group, rank, Arc::clone(&member.recorder));
        communicator.meet(Collective::Split)?;
        Ok(Box::new(communicator))
    }

    fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::clone(&self.0.group.world) as _)
    }

    fn recent_operations(&self) -> Vec<OperationRecord> {
        self.0.recorder.recent()
    }
}

impl fmt::Debug for ThreadCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadCommunicator(rank {} of {})", self.rank(), self.name())
    }
}

impl Member {
    fn place(&self, operation: Collective, sequence: u64, started: Instant) -> Place {
        let group = Arc::clone(&self.group.name);
        Place {
            rank: self.group.world_ranks[self.rank],
            host: None,
            group,
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
        if self.group.world.has_failed() {
            let place = self.place(operation, counter.load(Ordering::Relaxed), started);
            return Err(self.group.world.error(place, self.group.id));
        }
        let sequence = counter.fetch_add(1, Ordering::Relaxed);
        let record = self.recorder.begin(&self.group.name, operation, sequence, bytes, started);
        let (dtype, reduce) = reduction.unzip();
        Ok(Ticket { operation, dtype, reduce, bytes, peer, tag, sequence, started, record })
    }

    /// Records how an operation ended and, if it failed, fails the world and names the error.
    fn conclude(&self, ticket: &Ticket, result: Result<(), Trouble>) -> Result<(), CommError> {
        let elapsed = ticket.started.elapsed();
        let outcome = if result.is_ok() { Outcome::Done(elapsed) } else { Outcome::Failed(elapsed) };
        self.recorder.end(ticket.record, outcome);
        result.map_err(|trouble| self.fail(ticket, trouble))
    }

    #[cold]
    fn fail(&self, ticket: &Ticket, trouble: Trouble) -> CommError {
        let (group, world, place) = (&self.group, &self.group.world, self.place_of(ticket));
        let error = match trouble {
            Trouble::Differs { ours, peer, theirs } => {
                let peer = group.world_ranks[peer];
                let error = CommError::Mismatch { place, ours, peer, theirs };
                world.fail(Failure::Aborted(error.to_string().into()));
                error
            }
            Trouble::Interrupted(Interruption::Gone(peer)) => {
                let peer = group.world_ranks[peer];
                world.fail(Failure::Gone(peer));
                CommError::PeerGone { place, peer, how: LEFT.into() }
            }
            Trouble::Interrupted(Interruption::Deadline) => {
                let missing = match ticket.operation {
                    Collective::Recv => vec![group.world_ranks[ticket.peer]],
                    _ => group.missing(self.rank),
                };
                let deadline = world.options.deadline;
                let error = CommError::DeadlineExceeded { place, deadline, missing: missing.clone() };
                // A receive is numbered by this rank alone: its failure is nobody else's operation.
                let id = if ticket.operation == Collective::Recv { u64::MAX } else { group.id };
                let (sequence, reason) = (ticket.sequence, error.to_string().into());
                world.fail(Failure::Deadline { group: id, sequence, missing, reason });
                error
            }
            Trouble::Interrupted(Interruption::Failed) => world.error(place, group.id),
        };
        // The regions go back to their owner now: nobody may be reading them any more.
        group.quiesce(self.rank);
        error
    }

    fn out_of_order(&self, ticket: &Ticket, expected: u64) -> CommError {
        let error = CommError::OutOfOrder { place: self.place_of(ticket), expected };
        self.recorder.end(ticket.record, Outcome::Failed(ticket.started.elapsed()));
        self.group.world.fail(Failure::Aborted(error.to_string().into()));
        error
    }

    fn receive(&self, ticket: &Ticket, target: &mut [u8]) -> Result<(), Trouble> {
        let (from, tag, group) = (ticket.peer, ticket.tag, &self.group);
        let (seat, world, begun) = (&group.seats[self.rank], &group.world, Instant::now());
        let message = loop {
            let seen = seat.mailbox.arrivals();
            if let Some(message) = seat.mailbox.take(from, tag) {
                break message;
            }
            let interrupted = || match group.is_gone(from) {
                _ if world.has_failed() => Some(Interruption::Failed),
                true => Some(Interruption::Gone(from)),
                false => None,
            };
            let ready = || seat.mailbox.arrivals() != seen;
            // Other messages that come meanwhile do not prolong the wait.
            let limit = world.options.deadline.saturating_sub(begun.elapsed());
            seat.bed.wait(world.patience, limit, ready, interrupted)?;
        };
        if message.len() != target.len() {
            return Err(Trouble::Differs {
                ours: format!("recv of {} bytes with tag {tag}", target.len()).into(),
                peer: from,
                theirs: format!("sent {} bytes", message.len()).into(),
            });
        }
        target.copy_from_slice(&message);
        seat.mailbox.recycle(message);
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

impl Finish for Member {
    fn finish(
        &self,
        ticket: &Ticket,
        send: Option<&Region<'_>>,
        recv: Option<&mut RegionMut<'_>>,
    ) -> Result<Instant, CommError> {
        match (ticket.operation, recv) {
            (Collective::Send, _) => {}
            _ if self.group.world.has_failed() => self.conclude(ticket, Err(Interruption::Failed.into()))?,
            (Collective::Recv, Some(recv)) => {
                self.claim_receive(ticket).map_err(|expected| self.out_of_order(ticket, expected))?;
                self.conclude(ticket, self.receive(ticket, recv.as_mut_slice::<u8>()))?;
            }
            (_, recv) => {
                let expected = self.completed.load(Ordering::Acquire);
                if expected != ticket.sequence {
                    return Err(self.out_of_order(ticket, expected));
                }
                self.conclude(ticket, execute(&self.group, self.rank, ticket, send, recv))?;
                self.completed.store(ticket.sequence + 1, Ordering::Release);
            }
        }
        Ok(Instant::now())
    }

    fn abandon(&self, ticket: &Ticket) {
        if ticket.operation == Collective::Send {
            return;
        }
        self.recorder.end(ticket.record, Outcome::Failed(ticket.started.elapsed()));
        let world_rank = self.group.world_ranks[self.rank];
        self.group.world.fail(match std::thread::panicking() {
            true => Failure::Gone(world_rank),
            false => Failure::Aborted(format!("{}: dropped without wait", self.place_of(ticket)).into()),
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Its other groups go in a moment too; their ranks need not wait for that.
            self.group.world.fail(Failure::Gone(self.group.world_ranks[self.rank]));
        }
        self.group.leave(self.rank);
    }
}
