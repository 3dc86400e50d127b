//! [`Lane`]: a rank's communication thread. Groups that it serves make progress while the rank computes; what an
//! operation does is its group's own business.
//!
//! Operations of all groups of a lane are executed one after another in the order in which they were started, so the
//! ranks of a group must start the operations of *all* groups that their lanes share in the same order. Whatever was
//! started is announced to the peers at once (see the backend), before what came earlier has ended: a communicator that
//! stands before another one must not wait for peers in some starts and not in others.

use crate::pending::{Finish, Ticket};
use crate::threads::wait_in_background;
use crate::{AbortHandle, Collective, CommError, Communicator, OperationRecord, Pending, Place, Reduce};
use memory::{DType, Region, RegionMut};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

/// Operations under way for which there is room from the beginning: starting one allocates nothing.
const ROOM: usize = 256;

/// A communication thread. It ends with the last communicator that it serves.
#[derive(Clone)]
pub struct Lane(Arc<Thread>);

struct Thread {
    /// In the world.
    rank: usize,
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    desk: Mutex<Desk>,
    /// A job was brought, or none will be any more.
    brought: Condvar,
    /// An operation ended.
    ended: Condvar,
}

/// What passes between the rank and its communication thread.
#[derive(Default)]
struct Desk {
    jobs: VecDeque<Job>,
    /// Operations ever started.
    started: u64,
    /// Those that ended and were not asked for yet.
    ended: Vec<(u64, Result<Instant, CommError>)>,
    /// Nobody brings jobs any more.
    closed: bool,
    /// The thread takes no more.
    gone: bool,
}

type Groups = Vec<Box<dyn Communicator>>;

enum Job {
    Start(Operation),
    Call(Box<dyn FnOnce(&mut Groups) + Send>),
}

struct Operation {
    number: u64,
    group: usize,
    ticket: Ticket,
    /// Loans of what the [`Pending`] owns.
    send: Option<Region<'static>>,
    recv: Option<RegionMut<'static>>,
}

// SAFETY: a loan is an address range whose owner, the rank's `Pending`, leaves it alone and alive until the thread has
// reported the operation's end, which it does after the loan is gone.
unsafe impl Send for Operation {}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A queue and a list of results, which no panic can leave half done.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bring(&self, job: Job) {
        self.desk().jobs.push_back(job);
        self.brought.notify_one();
    }

    /// The next job. With `patient`, waits for one; none is then the end.
    fn take(&self, patient: bool) -> Option<Job> {
        let mut desk = self.desk();
        while patient && desk.jobs.is_empty() && !desk.closed {
            desk = self.brought.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
        desk.jobs.pop_front()
    }

    fn end(&self, number: u64, result: Result<Instant, CommError>) {
        self.desk().ended.push((number, result));
        self.ended.notify_all();
    }

    /// The result of operation `number`, once it ended; none if the thread is gone.
    fn result(&self, number: u64) -> Option<Result<Instant, CommError>> {
        let mut desk = self.desk();
        loop {
            if let Some(at) = desk.ended.iter().position(|(of, _)| *of == number) {
                return Some(desk.ended.swap_remove(at).1);
            }
            if desk.gone {
                return None;
            }
            desk = self.ended.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Says that the thread is gone, however it went.
struct Gone<'s>(&'s Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut desk = self.0.desk();
        desk.gone = true;
        // Loans among them must not outlive what they are of.
        desk.jobs.clear();
        drop(desk);
        self.0.ended.notify_all();
    }
}

fn serve(shared: &Shared) {
    let _gone = Gone(shared);
    wait_in_background();
    let mut groups: Groups = Vec::new();
    // Started, oldest first.
    let mut flight: VecDeque<(u64, Pending<'static>)> = VecDeque::new();
    loop {
        match shared.take(flight.is_empty()) {
            Some(Job::Start(operation)) => {
                let number = operation.number;
                match start(&groups, operation) {
                    Ok(pending) => flight.push_back((number, pending)),
                    Err(error) => shared.end(number, Err(error)),
                }
            }
            Some(Job::Call(call)) => call(&mut groups),
            None => match flight.pop_front() {
                Some((number, pending)) => shared.end(number, pending.completion()),
                None => return,
            },
        }
    }
}

fn start(groups: &Groups, operation: Operation) -> Result<Pending<'static>, CommError> {
    let Operation { group, ticket, send, recv, .. } = operation;
    let group = &groups[group];
    let (dtype, reduce) = (ticket.dtype.unwrap_or(DType::F32), ticket.reduce.unwrap_or(Reduce::Sum));
    match (ticket.operation, send, recv) {
        (Collective::AllReduce, None, Some(data)) => group.all_reduce(data, dtype, reduce),
        (Collective::ReduceScatter, Some(send), Some(recv)) => {
            group.reduce_scatter(send, recv, dtype, reduce)
        }
        (Collective::AllGather, Some(send), Some(recv)) => group.all_gather(send, recv),
        (Collective::AllToAll, Some(send), Some(recv)) => group.all_to_all(send, recv),
        (Collective::Broadcast, None, Some(data)) => group.broadcast(data, ticket.peer),
        (Collective::Send, Some(data), None) => group.send(data, ticket.peer, ticket.tag),
        (Collective::Recv, None, Some(data)) => group.recv(data, ticket.peer, ticket.tag),
        (operation, ..) => unreachable!("{operation} is no job with regions"),
    }
}

impl Lane {
    /// Starts the communication thread of rank `rank`.
    ///
    /// # Errors
    /// If the system refuses another thread.
    pub fn start(rank: usize) -> io::Result<Lane> {
        let shared = Arc::new(Shared::default());
        {
            let mut desk = shared.desk();
            desk.jobs.reserve(ROOM);
            desk.ended.reserve(ROOM);
        }
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("communication {rank}"));
        let handle = Some(thread.spawn(move || serve(&of_thread))?);
        Ok(Lane(Arc::new(Thread { rank, shared, handle })))
    }

    /// The same group, served by this lane: its operations make progress from their start on, and its collectives may
    /// be waited for in any order. Wrong arguments are errors of the wait. A receive holds up what is started after it.
    pub fn serve(&self, group: Box<dyn Communicator>) -> Box<dyn Communicator> {
        let (rank, size, name) = (group.rank(), group.world_size(), group.name().into());
        let abort = group.abort_handle();
        let index = self.0.call(move |groups| {
            groups.push(group);
            groups.len() - 1
        });
        // Without the thread every operation fails anyway.
        let index = index.unwrap_or(0);
        Box::new(Served(Arc::new(Member { thread: Arc::clone(&self.0), index, rank, size, name, abort })))
    }
}

impl Thread {
    /// Runs `work` between two operations of the thread; none if it is gone.
    fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Groups) -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.shared.bring(Job::Call(Box::new(move |groups| {
            // Nobody waits if the caller is gone.
            let _ = sender.send(work(groups));
        })));
        if self.shared.desk().gone {
            return None;
        }
        receiver.recv().ok()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.desk().closed = true;
        self.shared.brought.notify_one();
        if let Some(handle) = self.handle.take() {
            // A panic of the thread was an error of the operation that saw it.
            let _ = handle.join();
        }
    }
}

/// A group that a lane serves.
struct Served(Arc<Member>);

struct Member {
    thread: Arc<Thread>,
    /// Among the lane's groups.
    index: usize,
    rank: usize,
    size: usize,
    name: Arc<str>,
    abort: AbortHandle,
}

impl Member {
    fn gone(&self, operation: Collective, sequence: u64, started: Instant) -> CommError {
        let (group, elapsed) = (Arc::clone(&self.name), started.elapsed());
        let place = Place { rank: self.rank, host: None, group, operation, sequence, elapsed };
        CommError::Aborted { place, reason: "its communication thread is gone".into() }
    }

    fn call<T: Send + 'static>(
        &self,
        operation: Collective,
        work: impl FnOnce(&dyn Communicator) -> Result<T, CommError> + Send + 'static,
    ) -> Result<T, CommError> {
        let (index, started) = (self.index, Instant::now());
        let result = self.thread.call(move |groups| work(&*groups[index]));
        result.unwrap_or_else(|| Err(self.gone(operation, 0, started)))
    }
}

impl Served {
    fn begin<'a>(
        &self,
        operation: Collective,
        reduction: Option<(DType, Reduce)>,
        (peer, tag): (usize, u64),
        send: Option<Region<'a>>,
        mut recv: Option<RegionMut<'a>>,
    ) -> Pending<'a> {
        let shared = &self.0.thread.shared;
        let sizes = [send.as_ref().map(Region::len_bytes), recv.as_ref().map(RegionMut::len_bytes)];
        let bytes = sizes.into_iter().flatten().min().unwrap_or(0);
        let (dtype, reduce) = reduction.unzip();
        let mut desk = shared.desk();
        let number = desk.started;
        desk.started += 1;
        let started = Instant::now();
        let ticket =
            Ticket { operation, dtype, reduce, bytes, peer, tag, sequence: number, started, record: 0 };
        // SAFETY: the regions go into the `Pending`, which touches and gives them back only after `finish` or
        // `abandon`; both wait until the thread has reported the end, and then the loans are gone. (A `Pending` that
        // is leaked keeps its regions for ever.)
        let (send_loan, recv_loan) =
            unsafe { (send.as_ref().map(|region| region.lend()), recv.as_mut().map(|region| region.lend())) };
        let operation = Operation { number, group: self.0.index, ticket, send: send_loan, recv: recv_loan };
        if !desk.gone {
            desk.jobs.push_back(Job::Start(operation));
        }
        drop(desk);
        shared.brought.notify_one();
        Pending::new(Arc::clone(&self.0) as Arc<dyn Finish>, ticket, send, recv)
    }
}

impl Finish for Member {
    fn finish(
        &self,
        ticket: &Ticket,
        _send: Option<&Region<'_>>,
        _recv: Option<&mut RegionMut<'_>>,
    ) -> Result<Instant, CommError> {
        let result = self.thread.shared.result(ticket.sequence);
        result.unwrap_or_else(|| Err(self.gone(ticket.operation, ticket.sequence, ticket.started)))
    }

    fn abandon(&self, ticket: &Ticket) {
        if ticket.operation != Collective::Send {
            let why = if std::thread::panicking() { "it panicked" } else { "dropped without wait" };
            let rank = self.thread.rank;
            self.abort.abort(&format!("rank {rank}, {} on {}: {why}", ticket.operation, self.name));
        }
        // Ended by the abort, if not before.
        let _ = self.thread.shared.result(ticket.sequence);
    }
}

impl Communicator for Served {
    fn rank(&self) -> usize {
        self.0.rank
    }

    fn world_size(&self) -> usize {
        self.0.size
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
        Ok(self.begin(Collective::AllReduce, Some((dtype, op)), (0, 0), None, Some(data)))
    }

    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        Ok(self.begin(Collective::ReduceScatter, Some((dtype, op)), (0, 0), Some(send), Some(recv)))
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        Ok(self.begin(Collective::AllGather, None, (0, 0), Some(send), Some(recv)))
    }

    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        Ok(self.begin(Collective::AllToAll, None, (0, 0), Some(send), Some(recv)))
    }

    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        Ok(self.begin(Collective::Broadcast, None, (root, 0), None, Some(data)))
    }

    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        Ok(self.begin(Collective::Send, None, (to, tag), Some(data), None))
    }

    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        Ok(self.begin(Collective::Recv, None, (from, tag), None, Some(data)))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.0.call(Collective::Barrier, |group| group.barrier())
    }

    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError> {
        let (members, name) = (members.to_vec(), name.to_owned());
        let group = self.0.call(Collective::Split, move |group| group.split(&members, &name))?;
        Ok(Lane(Arc::clone(&self.0.thread)).serve(group))
    }

    fn abort_handle(&self) -> AbortHandle {
        self.0.abort.clone()
    }

    fn recent_operations(&self) -> Vec<OperationRecord> {
        self.0.call(Collective::Barrier, |group| Ok(group.recent_operations())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::{Options, World};
    use memory::{Arena, Span};
    use std::time::Duration;

    fn run<R: Send>(n: usize, body: impl Fn(Box<dyn Communicator>, Lane, &Arena) -> R + Sync) -> Vec<R> {
        let (options, body) = (Options { deadline: Duration::from_secs(20), ..Options::default() }, &body);
        std::thread::scope(|scope| {
            let rank = |world: crate::threads::ThreadCommunicator| {
                scope.spawn(move || {
                    let (lane, arena) =
                        (Lane::start(world.rank()).unwrap(), Arena::reserve(1 << 20).unwrap());
                    body(Box::new(world), lane, &arena)
                })
            };
            let threads: Vec<_> = World::new(n, options).into_iter().map(rank).collect();
            threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
        })
    }

    fn filled(arena: &Arena, at: usize, len: usize, value: f64) -> RegionMut<'_> {
        let mut region = arena.write(Span::new(at, 8 * len)).unwrap();
        region.as_mut_slice().fill(value);
        region
    }

    #[test]
    fn operations_make_progress_while_nobody_waits_for_them() {
        run(2, |world, lane, arena| {
            let group = lane.serve(world.split(&[0, 1], "dp").unwrap());
            let mine = 1.0 + world.rank() as f64;
            // Beyond what travels inline, and of one element.
            let large = group.all_reduce(filled(arena, 0, 4096, mine), DType::F64, Reduce::Sum).unwrap();
            let small = group.all_reduce(filled(arena, 65536, 1, mine), DType::F64, Reduce::Max).unwrap();
            // Rank 0 waits for its sum only after rank 1 has said that it has its own.
            let token = Span::new(1 << 19, 8);
            if world.rank() == 0 {
                world.recv(arena.write(token).unwrap(), 1, 7).unwrap().wait().unwrap();
                small.wait().unwrap();
                large.wait().unwrap();
            } else {
                large.wait().unwrap();
                let ended = small.completion().unwrap();
                assert!(ended <= Instant::now());
                world.send(arena.read(token).unwrap(), 0, 7).unwrap().wait().unwrap();
            }
            assert_eq!(arena.read(Span::new(0, 8 * 4096)).unwrap().as_slice::<f64>(), [3.0; 4096]);
            assert_eq!(arena.read(Span::new(65536, 8)).unwrap().as_slice::<f64>(), [2.0]);
        });
    }

    #[test]
    fn every_collective_goes_through_and_groups_share_the_lane() {
        run(3, |world, lane, arena| {
            let all = lane.serve(world.split(&[0, 1, 2], "all").unwrap());
            let again = all.split(&[2, 0, 1], "again").unwrap();
            assert_eq!((again.rank(), again.world_size()), ((world.rank() + 1) % 3, 3));
            let rank = world.rank() as f64;
            drop(filled(arena, 0, 3, rank));
            let (send, recv) = (Span::new(0, 24), Span::new(64, 8));
            let read = |span| arena.read(span).unwrap();
            all.reduce_scatter(read(send), arena.write(recv).unwrap(), DType::F64, Reduce::Sum)
                .unwrap()
                .wait()
                .unwrap();
            assert_eq!(read(recv).as_slice::<f64>(), [3.0]);
            drop(filled(arena, 64, 1, rank));
            again.all_gather(read(recv), arena.write(Span::new(128, 24)).unwrap()).unwrap().wait().unwrap();
            assert_eq!(read(Span::new(128, 24)).as_slice::<f64>(), [2.0, 0.0, 1.0]);
            all.all_to_all(read(send), arena.write(Span::new(192, 24)).unwrap()).unwrap().wait().unwrap();
            assert_eq!(read(Span::new(192, 24)).as_slice::<f64>(), [0.0, 1.0, 2.0]);
            all.broadcast(arena.write(recv).unwrap(), 1).unwrap().wait().unwrap();
            assert_eq!(read(recv).as_slice::<f64>(), [1.0]);
            let next = (world.rank() + 1) % 3;
            all.send(read(send), next, 1).unwrap().wait().unwrap();
            let from = (world.rank() + 2) % 3;
            all.recv(arena.write(Span::new(256, 24)).unwrap(), from, 1).unwrap().wait().unwrap();
            assert_eq!(read(Span::new(256, 24)).as_slice::<f64>(), [from as f64; 3]);
            all.barrier().unwrap();
            assert!(all.recent_operations().len() > 5);
        });
    }

    #[test]
    fn wrong_arguments_are_errors_of_the_wait() {
        run(1, |world, lane, arena| {
            let group = lane.serve(world.split(&[0], "one").unwrap());
            let odd = arena.write(Span::new(0, 7)).unwrap();
            let error = group.all_reduce(odd, DType::F64, Reduce::Sum).unwrap().wait().unwrap_err();
            assert!(matches!(error, CommError::InvalidSize { .. }), "{error}");
        });
    }

    #[test]
    fn what_is_dropped_without_wait_is_an_error_for_all_and_gives_its_region_back() {
        let errors = run(2, |world, lane, arena| {
            let group = lane.serve(world.split(&[0, 1], "dp").unwrap());
            let token = Span::new(1 << 19, 8);
            if world.rank() == 0 {
                // Until rank 1 has the group too.
                world.recv(arena.write(token).unwrap(), 1, 7).unwrap().wait().unwrap();
                let pending = group.all_reduce(filled(arena, 0, 4096, 1.0), DType::F64, Reduce::Sum).unwrap();
                assert_eq!(arena.num_live(), 1);
                drop(pending);
                assert_eq!(arena.num_live(), 0);
                return "rank 0 dropped it".to_owned();
            }
            world.send(arena.read(token).unwrap(), 0, 7).unwrap().wait().unwrap();
            while !world.abort_handle().is_aborted() {
                std::thread::yield_now();
            }
            let data = filled(arena, 0, 4096, 1.0);
            let pending = group.all_reduce(data, DType::F64, Reduce::Sum).unwrap();
            pending.wait().unwrap_err().to_string()
        });
        assert!(errors[1].contains("dropped without wait"), "{errors:?}");
    }
}
