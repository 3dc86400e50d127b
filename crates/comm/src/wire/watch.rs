//! The watch over a world of processes: whether it has failed and why, who has left, and when anything last moved.
//! How ranks tell each other is in `hub`.
//!
//! Every rank has a control connection to the hub, which lives with rank 0. Heartbeats run on it, so that a rank that
//! is stopped or cut off is missed although its sockets stay open; a closed connection is a death and is told to all
//! at once. Heartbeats carry how much a rank has moved, and the hub tells all of them the sum: the deadline of an
//! operation counts the time in which *nothing in the world* moved. So a slow link slows and kills nobody, not even a
//! rank that waits for one that waits for the link.

use super::frame::{Failure, Frame};
use crate::communicator::Abort;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// After a rank has left, what it sent may still be on its way for so long.
const LINGER: Duration = Duration::from_millis(500);
/// A broken connection is often the echo of a failure that the hub is about to explain: how long that may take.
const EXPLANATION: Duration = Duration::from_millis(400);

/// How a world is watched.
#[derive(Clone, Debug)]
pub(crate) struct WatchOptions {
    /// How long an operation may wait while nothing in the world moves.
    pub(crate) deadline: Duration,
    /// How long a rank may be silent.
    pub(crate) silence: Duration,
}

impl WatchOptions {
    /// Time between heartbeats: several in every bound.
    pub(super) fn beat(&self) -> Duration {
        Duration::from_millis(250).min(self.deadline / 8).min(self.silence / 8).max(Duration::from_millis(5))
    }
}

/// Why a wait ended before what was waited for.
#[derive(Debug)]
pub(crate) enum Interruption {
    /// The world has failed; see [`Watch::failure`].
    Failed,
    /// A rank (of the world) is needed and gone.
    Gone { rank: usize, how: Arc<str> },
    /// Nothing moved for the time allowed while this rank was waited for.
    Deadline { missing: usize },
}

/// What one rank knows of its world.
pub(crate) struct Watch {
    pub(crate) rank: usize,
    /// The host of every rank.
    pub(crate) hosts: Vec<Arc<str>>,
    pub(crate) options: WatchOptions,
    origin: Instant,
    failed: AtomicBool,
    failure: OnceLock<Failure>,
    /// How much this rank has moved: anything that grows.
    progress: AtomicU64,
    /// When anything in the world last moved, in milliseconds since `origin`.
    moved_at: AtomicU64,
    /// How much the world had moved when the hub last told.
    world_progress: AtomicU64,
    /// When each rank left, in milliseconds since `origin` plus one; 0: it has not.
    left_at: Vec<AtomicU64>,
    pub(super) all_left: AtomicBool,
    /// This rank is leaving or has left: a closed connection is then no death.
    pub(super) closing: AtomicBool,
    /// Control connections for writing: at the hub one per rank, elsewhere one to the hub.
    pub(super) connections: Mutex<Vec<(usize, TcpStream)>>,
    /// When each connection was last heard, in milliseconds since `origin`, and the progress it told.
    pub(super) heard_at: Vec<AtomicU64>,
    pub(super) told: Vec<AtomicU64>,
    /// Calls into an engine that have not come back, and since when; for the watchdog.
    #[cfg(feature = "mpi")]
    calls: AtomicU64,
    #[cfg(feature = "mpi")]
    call_since: AtomicU64,
}

impl Watch {
    pub(crate) fn new(rank: usize, hosts: Vec<Arc<str>>, options: WatchOptions) -> Arc<Watch> {
        let size = hosts.len();
        let zeros = || (0..size).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Watch {
            rank,
            hosts,
            options,
            origin: Instant::now(),
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            progress: AtomicU64::new(0),
            moved_at: AtomicU64::new(0),
            world_progress: AtomicU64::new(0),
            left_at: zeros(),
            all_left: AtomicBool::new(size == 1),
            closing: AtomicBool::new(false),
            connections: Mutex::default(),
            heard_at: zeros(),
            told: zeros(),
            #[cfg(feature = "mpi")]
            calls: AtomicU64::new(0),
            #[cfg(feature = "mpi")]
            call_since: AtomicU64::new(0),
        })
    }

    /// How many ranks the world has.
    pub(crate) fn size(&self) -> usize {
        self.hosts.len()
    }

    pub(super) fn now(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64
    }

    /// When the watch began, for the flight recorder.
    pub(crate) fn origin(&self) -> Instant {
        self.origin
    }

    pub(super) fn is_hub(&self) -> bool {
        self.rank == 0
    }

    pub(super) fn connections(&self) -> MutexGuard<'_, Vec<(usize, TcpStream)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of this rank moved.
    pub(crate) fn moved(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.moved_at.store(self.now(), Ordering::Relaxed);
    }

    /// How much this rank has moved.
    pub(super) fn own_progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// The hub told, or knows, how much the world has moved.
    pub(super) fn world_moved(&self, progress: u64) {
        if self.world_progress.swap(progress, Ordering::Relaxed) != progress {
            self.moved_at.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Fails the world here and tells the others. The first failure stands.
    pub(crate) fn fail(&self, failure: Failure) {
        if self.learn(failure.clone()) {
            self.tell(&Frame::Failed(failure));
        }
    }

    /// Fails the world here; says whether this is the first failure.
    pub(super) fn learn(&self, failure: Failure) -> bool {
        let first = self.failure.set(failure).is_ok();
        self.failed.store(true, Ordering::SeqCst);
        first
    }

    /// Sends a frame on every control connection: to the hub, or from it to all.
    pub(super) fn tell(&self, frame: &Frame) {
        for (_, connection) in self.connections().iter_mut() {
            // One that cannot be written to is noticed by its reader.
            let _ = frame.write(connection);
        }
    }

    pub(super) fn note_left(&self, rank: usize) {
        if let Some(at) = self.left_at.get(rank) {
            at.store(self.now() + 1, Ordering::SeqCst);
        }
    }

    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.left_at.get(rank).is_some_and(|at| at.load(Ordering::SeqCst) != 0)
    }

    /// Whether a rank has left so long ago that nothing of it is on its way any more.
    pub(super) fn has_left_for_good(&self, rank: usize) -> bool {
        let left = self.left_at[rank].load(Ordering::SeqCst);
        left != 0 && self.now().saturating_sub(left) > LINGER.as_millis() as u64
    }

    pub(super) fn num_left(&self) -> usize {
        (0..self.size()).filter(|&rank| self.has_left(rank)).count()
    }

    /// Where a rank runs, in words.
    pub(crate) fn whereabouts(&self, rank: usize) -> &str {
        self.hosts.get(rank).map_or("an unknown host", |host| host)
    }

    /// Whether a wait for `peer` that began at `begun` may go on.
    pub(crate) fn check(&self, peer: usize, begun: Instant) -> Result<(), Interruption> {
        if self.has_failed() {
            return Err(Interruption::Failed);
        }
        let now = self.now();
        if self.has_left_for_good(peer) {
            let how = format!("it left its world on {}", self.whereabouts(peer)).into();
            return Err(Interruption::Gone { rank: peer, how });
        }
        let moved = self.moved_at.load(Ordering::Relaxed);
        let still = Duration::from_millis(now.saturating_sub(moved)).min(begun.elapsed());
        if still > self.options.deadline {
            return Err(Interruption::Deadline { missing: peer });
        }
        Ok(())
    }

    /// The connection to `peer` broke: the failure that the hub tells of, or that peer's death.
    pub(crate) fn explain_broken(&self, peer: usize, words: &str) -> Interruption {
        let begun = Instant::now();
        while begun.elapsed() < EXPLANATION {
            if self.has_failed() {
                return Interruption::Failed;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let how = format!("its connection from {} broke: {words}", self.whereabouts(peer)).into();
        Interruption::Gone { rank: peer, how }
    }

    /// Whether this rank is leaving or has left.
    #[cfg(feature = "mpi")]
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Marks a call into an engine that might not come back, for the watchdog.
    #[cfg(feature = "mpi")]
    pub(crate) fn calling<T>(&self, call: impl FnOnce() -> T) -> T {
        self.call_since.store(self.now(), Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::SeqCst);
        let result = call();
        self.calls.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// How long the last call into an engine has been away, if it has not come back.
    #[cfg(feature = "mpi")]
    pub(crate) fn stuck_for(&self) -> Option<Duration> {
        let away = self.calls.load(Ordering::SeqCst) > 0;
        let since = self.call_since.load(Ordering::Relaxed);
        away.then(|| Duration::from_millis(self.now().saturating_sub(since)))
    }
}

impl Abort for Watch {
    fn abort(&self, reason: &str) {
        self.fail(Failure::Aborted(reason.into()));
    }

    fn is_aborted(&self) -> bool {
        self.has_failed()
    }
}
