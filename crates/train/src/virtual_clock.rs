//! Virtual time: many ranks on few cores, each stretch of compute timed alone. One rank computes at a time (a baton
//! passes between them), its processor time advances its own clock, and messages and collectives carry clocks from
//! rank to rank over links of given speed. What would run beside each other thus counts as if it did.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use comm::{Collective, CommError, Communicator, Pending, Reduce, Wrapper};
use memory::{DType, Region, RegionMut};

/// How fast ranks are connected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Links {
    /// From the end of a send to the begin of its arrival.
    pub latency_seconds: f64,
    /// Of each link; infinite if only latency counts.
    pub bytes_per_second: f64,
}

impl Default for Links {
    /// Links that cost nothing.
    fn default() -> Links {
        Links { latency_seconds: 0.0, bytes_per_second: f64::INFINITY }
    }
}

impl Links {
    /// Time of one message.
    pub fn message_seconds(&self, bytes: usize) -> f64 {
        self.latency_seconds + bytes as f64 / self.bytes_per_second
    }

    /// Time of a collective on a ring of `ranks`, in which each sends `bytes` in `rounds` messages.
    fn ring_seconds(&self, ranks: usize, rounds: usize, bytes: f64) -> f64 {
        if ranks == 1 { 0.0 } else { rounds as f64 * self.latency_seconds + bytes / self.bytes_per_second }
    }
}

/// What all ranks of a virtual world share.
#[derive(Default)]
pub struct VirtualWorld {
    links: Links,
    /// Whether some rank computes.
    busy: Mutex<bool>,
    free: Condvar,
    /// Moments at which messages were sent, by group, ends and tag.
    posts: Mutex<HashMap<Address, VecDeque<f64>>>,
    /// Collectives under way, by group and number.
    meetings: Mutex<HashMap<(String, u64), Meeting>>,
}

/// Group, sender, receiver and tag of messages that arrive in order.
type Address = (String, usize, usize, u64);

#[derive(Default)]
struct Meeting {
    latest: f64,
    to_leave: usize,
}

/// Where a rank's clock met others', in the order of its program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Passage {
    /// The moment at which a message left.
    Sent(f64),
    /// The moment at which a message had arrived, whether or not somebody waited.
    Arrived(f64),
    /// The end of a collective, the same for all members.
    Met(f64),
}

/// One rank's clock.
pub struct RankClock {
    world: Arc<VirtualWorld>,
    state: Mutex<State>,
}

struct State {
    now: f64,
    /// Processor time of the thread when the present stretch of compute began; none while communicating.
    resumed: Option<f64>,
    passages: Vec<Passage>,
}

fn cpu_seconds() -> f64 {
    memory::thread_cpu_seconds().unwrap_or(0.0)
}

impl VirtualWorld {
    /// A world whose ranks are connected by `links`.
    pub fn new(links: Links) -> Arc<VirtualWorld> {
        Arc::new(VirtualWorld { links, ..VirtualWorld::default() })
    }

    /// Puts one rank's communicator into virtual time. To be called on the rank's thread, which computes from now on.
    pub fn join(self: &Arc<Self>, inner: Box<dyn Communicator>) -> (Box<dyn Communicator>, Arc<RankClock>) {
        let state = State { now: 0.0, resumed: None, passages: vec![] };
        let clock = Arc::new(RankClock { world: self.clone(), state: Mutex::new(state) });
        clock.resume(0.0);
        (Box::new(Clocked::new(inner, clock.clone())), clock)
    }

    fn take_baton(&self) {
        let mut busy = lock(&self.busy);
        while *busy {
            busy = self.free.wait(busy).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *busy = true;
    }

    fn give_baton(&self) {
        *lock(&self.busy) = false;
        self.free.notify_one();
    }
}

/// Clocks are plain numbers: what a panicking rank left is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl RankClock {
    /// Virtual seconds since the world began.
    pub fn now(&self) -> f64 {
        let state = lock(&self.state);
        state.now + state.resumed.map_or(0.0, |since| cpu_seconds() - since)
    }

    /// Meetings with other clocks since the last call.
    pub fn take_passages(&self) -> Vec<Passage> {
        std::mem::take(&mut lock(&self.state).passages)
    }

    /// Ends a stretch of compute; returns the time.
    fn pause(&self) -> f64 {
        let mut state = lock(&self.state);
        if let Some(since) = state.resumed.take() {
            state.now += cpu_seconds() - since;
            self.world.give_baton();
        }
        state.now
    }

    /// Begins a stretch of compute at `now`.
    fn resume(&self, now: f64) {
        self.world.take_baton();
        let mut state = lock(&self.state);
        state.now = now;
        state.resumed = Some(cpu_seconds());
    }
}

impl Drop for RankClock {
    fn drop(&mut self) {
        self.pause();
    }
}

/// A communicator in virtual time. Every operation is complete when it returns.
struct Clocked {
    inner: Box<dyn Communicator>,
    clock: Arc<RankClock>,
    num_collectives: AtomicU64,
}

impl Clocked {
    fn new(inner: Box<dyn Communicator>, clock: Arc<RankClock>) -> Clocked {
        Clocked { inner, clock, num_collectives: AtomicU64::new(0) }
    }

    /// Runs a collective: it begins when the last member is there, and ends `seconds` later for all.
    fn meet<T>(&self, seconds: f64, run: impl FnOnce() -> Result<T, CommError>) -> Result<T, CommError> {
        let now = self.clock.pause();
        let world = &self.clock.world;
        let key = (self.inner.name().to_owned(), self.num_collectives.fetch_add(1, Ordering::Relaxed));
        {
            let mut meetings = lock(&world.meetings);
            let meeting = meetings.entry(key.clone()).or_default();
            meeting.latest = meeting.latest.max(now);
            meeting.to_leave += 1;
        }
        // All members have entered when it returns.
        let result = run();
        let mut latest = now;
        {
            let mut meetings = lock(&world.meetings);
            if let Some(meeting) = meetings.get_mut(&key) {
                latest = meeting.latest;
                meeting.to_leave -= 1;
                if meeting.to_leave == 0 {
                    meetings.remove(&key);
                }
            }
        }
        lock(&self.clock.state).passages.push(Passage::Met(latest + seconds));
        self.clock.resume(latest + seconds);
        result
    }

    fn ring(&self, rounds_per_rank: usize, bytes: usize) -> f64 {
        let ranks = self.inner.world_size();
        let share = (ranks - 1) as f64 / ranks as f64;
        let rounds = rounds_per_rank * (ranks - 1);
        self.clock.world.links.ring_seconds(ranks, rounds, rounds_per_rank as f64 * share * bytes as f64)
    }

    fn post(&self, from: usize, to: usize, tag: u64) -> Address {
        (self.inner.name().to_owned(), from, to, tag)
    }
}

impl Wrapper for Clocked {
    fn inner(&self) -> &dyn Communicator {
        &*self.inner
    }

    fn around(&self, group: Box<dyn Communicator>) -> Box<dyn Communicator> {
        Box::new(Clocked::new(group, self.clock.clone()))
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let seconds = self.ring(2, data.len_bytes());
        self.meet(seconds, || self.inner.all_reduce(data, dtype, op)?.wait())?;
        Ok(Pending::done(Collective::AllReduce))
    }

    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let seconds = self.ring(1, send.len_bytes());
        self.meet(seconds, || self.inner.reduce_scatter(send, recv, dtype, op)?.wait())?;
        Ok(Pending::done(Collective::ReduceScatter))
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let seconds = self.ring(1, recv.len_bytes());
        self.meet(seconds, || self.inner.all_gather(send, recv)?.wait())?;
        Ok(Pending::done(Collective::AllGather))
    }

    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let seconds = self.ring(1, send.len_bytes());
        self.meet(seconds, || self.inner.all_to_all(send, recv)?.wait())?;
        Ok(Pending::done(Collective::AllToAll))
    }

    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        let seconds = self.ring(1, data.len_bytes());
        self.meet(seconds, || self.inner.broadcast(data, root)?.wait())?;
        Ok(Pending::done(Collective::Broadcast))
    }

    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        let now = self.clock.pause();
        // Two stages of one rank pass values without a link.
        let is_own = to == self.rank();
        let seconds = if is_own { 0.0 } else { self.clock.world.links.message_seconds(data.len_bytes()) };
        let arrival = now + seconds;
        let key = self.post(self.rank(), to, tag);
        lock(&self.clock.world.posts).entry(key).or_default().push_back(arrival);
        lock(&self.clock.state).passages.push(Passage::Sent(now));
        let result = self.inner.send(data, to, tag).and_then(Pending::wait);
        self.clock.resume(now);
        result?;
        Ok(Pending::done(Collective::Send))
    }

    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        let now = self.clock.pause();
        let result = self.inner.recv(data, from, tag).and_then(Pending::wait);
        // The stamp was posted before the message was.
        let key = self.post(from, self.rank(), tag);
        let arrival =
            lock(&self.clock.world.posts).get_mut(&key).and_then(VecDeque::pop_front).unwrap_or(now);
        lock(&self.clock.state).passages.push(Passage::Arrived(arrival));
        self.clock.resume(now.max(arrival));
        result?;
        Ok(Pending::done(Collective::Recv))
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.meet(0.0, || self.inner.barrier())
    }

    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError> {
        let now = self.clock.pause();
        let group = self.inner.split(members, name);
        self.clock.resume(now);
        Ok(self.around(group?))
    }

    fn completes_at_start(&self) -> bool {
        true
    }
}
