//! How one rank waits for others: spin, yield, then park. Knows no operation.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Spins before yielding where every rank has a core: about a microsecond. Spinning longer gains nothing on an idle
/// machine (measured: 1.4 us for an all_reduce of 4 KiB either way), and on a busy one it keeps the peer off the core
/// (2000 spins: 100 us instead of 15).
const SPINS: u32 = 50;
/// Yields before parking.
const YIELDS: u32 = 40;
/// A parked rank looks up this often even if nobody wakes it. Wake-ups are not lost between the owner and its peers;
/// this bounds the delay in the odd case that two threads wait on one membership (a pending receive stayed behind
/// when the communicator moved).
const LOOK_UP: Duration = Duration::from_millis(50);

thread_local! {
    /// Whether this thread waits while its rank computes.
    static IN_BACKGROUND: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread parks at once when it waits. Its rank computes on the same core meanwhile: to yield there is
/// to come back only when the scheduler takes the core from the rank, milliseconds later, where a wake-up takes
/// microseconds (measured: a bucket of 256 KiB took up to 3 ms longer).
pub(crate) fn wait_in_background() {
    IN_BACKGROUND.set(true);
}

/// How long to spin and yield before parking.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    spins: u32,
    yields: u32,
}

impl Patience {
    /// Spinning pays only while each rank has a core of its own.
    pub(super) fn of_world(world_size: usize) -> Patience {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Patience { spins: if world_size <= cores { SPINS } else { 0 }, yields: YIELDS }
    }
}

/// Why a wait ended before what was waited for.
pub(super) enum Interruption {
    /// The world has failed.
    Failed,
    /// This rank (of the group) is needed and gone.
    Gone(usize),
    /// The deadline passed.
    Deadline,
}

/// Where a rank sleeps.
#[derive(Default)]
pub(super) struct Bed {
    occupied: AtomicBool,
    sleeper: Mutex<Option<Thread>>,
}

impl Bed {
    /// Wakes the rank if it sleeps. To be called after the change it may be waiting for.
    pub(super) fn wake(&self) {
        // Pairs with the fence in `wait`: either we see it asleep, or it sees the change before it sleeps.
        fence(SeqCst);
        if self.occupied.load(SeqCst)
            && let Some(sleeper) = &*self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
        {
            sleeper.unpark();
        }
    }

    /// Waits until `ready`, or until `interrupted` says why not (asked seldom), or for `limit`.
    pub(super) fn wait(
        &self,
        patience: Patience,
        limit: Duration,
        ready: impl Fn() -> bool,
        interrupted: impl Fn() -> Option<Interruption>,
    ) -> Result<(), Interruption> {
        let patience = match IN_BACKGROUND.get() {
            true => Patience { spins: 0, yields: 0 },
            false => patience,
        };
        for _ in 0..patience.spins {
            if ready() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        for _ in 0..patience.yields {
            if ready() {
                return Ok(());
            }
            thread::yield_now();
        }
        let begun = Instant::now();
        *self.sleeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        let outcome = loop {
            self.occupied.store(true, SeqCst);
            fence(SeqCst);
            if ready() {
                break Ok(());
            }
            if let Some(why) = interrupted() {
                // What was waited for may have come just before the interruption, and then counts.
                break if ready() { Ok(()) } else { Err(why) };
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break Err(Interruption::Deadline);
            }
            thread::park_timeout(left.min(LOOK_UP));
        };
        self.occupied.store(false, SeqCst);
        outcome
    }
}
