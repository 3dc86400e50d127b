//! Faults on demand: one rank dies, stops, leaves or panics at a chosen moment of a run, so that tests can see what the
//! others make of it. Compiled with the feature `faults` alone, which no shipped binary has; how a rank dies is decided
//! by whoever makes the [`Fault`].
//!
//! A communicator that stands before the real one sees the moments inside a step, a batch that stands before the real
//! one sees the forward: neither the loop nor the executor knows of faults.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use comm::{CommError, Communicator, Pending, Reduce, Wrapper};
use memory::{DType, Region, RegionMut};
use mesh::Tile;
use runtime::{Batch, Destination, RuntimeError};

/// An all_reduce of so many bytes does not fit an envelope: between its start and its end there is something to lose.
const SEVERAL_PIECES: usize = 16 << 10;
/// In a save, all ranks meet before their shards are written, after that, and after the commit: the number of the
/// meeting that this rank does not come to.
const SHARDS_WRITTEN: u64 = 2;

/// When a rank fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The processes know each other; their ranks are about to connect.
    Rendezvous,
    /// The step's batch is asked for.
    Forward,
    /// The first large all_reduce of the step has been announced to the others and moves.
    AllReduce,
    /// The first all_gather of the data-parallel group: with `zero = 1` that of parameters just updated.
    Optimizer,
    /// This rank's shard of the step's checkpoint is written, and the checkpoint not committed.
    Saving,
}

/// One fault of one rank.
#[derive(Clone)]
pub struct Fault {
    /// Whose.
    pub rank: usize,
    /// At which moment.
    pub moment: Moment,
    /// Of which step.
    pub step: u64,
    /// What happens to the rank: need not return.
    pub strike: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault({:?} of rank {} in step {})", self.moment, self.rank, self.step)
    }
}

impl Fault {
    /// Strikes if one of `ranks` is to fail before they connect.
    pub(crate) fn before_connecting(&self, ranks: std::ops::Range<usize>) {
        if self.moment == Moment::Rendezvous && ranks.contains(&self.rank) {
            (self.strike)();
        }
    }
}

/// Follows the rank that is to fail, if it is in this process, through its run.
#[derive(Clone)]
pub(crate) struct Following(Option<Arc<Followed>>);

struct Followed {
    fault: Fault,
    step: AtomicU64,
    /// World barriers of the current step: only saving has any.
    meetings: AtomicU64,
}

impl Following {
    pub(crate) fn new(fault: Option<&Fault>) -> Following {
        let follow = |fault: &Fault| {
            Arc::new(Followed { fault: fault.clone(), step: AtomicU64::new(0), meetings: AtomicU64::new(0) })
        };
        Following(fault.map(follow))
    }

    fn of_rank(&self, rank: usize) -> Option<&Arc<Followed>> {
        self.0.as_ref().filter(|followed| followed.fault.rank == rank)
    }

    /// `world` with the fault of its rank in it.
    pub(crate) fn world(&self, world: Box<dyn Communicator>) -> Box<dyn Communicator> {
        match self.of_rank(world.rank()) {
            Some(followed) => Box::new(Before { inner: world, followed: Arc::clone(followed) }),
            None => world,
        }
    }

    /// A step of a rank begins, with this batch.
    pub(crate) fn step<'a>(&'a self, rank: usize, step: u64, batch: &'a mut dyn Batch) -> BatchBefore<'a> {
        let followed = self.of_rank(rank);
        if let Some(followed) = followed {
            followed.step.store(step, Relaxed);
            followed.meetings.store(0, Relaxed);
        }
        BatchBefore { inner: batch, followed: followed.map(|followed| &**followed) }
    }
}

impl Followed {
    fn at(&self, moment: Moment) {
        if self.fault.moment == moment && self.fault.step == self.step.load(Relaxed) {
            (self.fault.strike)();
        }
    }
}

/// A batch that may be a rank's last.
pub(crate) struct BatchBefore<'a> {
    inner: &'a mut dyn Batch,
    followed: Option<&'a Followed>,
}

impl Batch for BatchBefore<'_> {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        if let Some(followed) = self.followed {
            followed.at(Moment::Forward);
        }
        self.inner.load(input, tile, to)
    }
}

/// A communicator in which a rank may end.
struct Before {
    inner: Box<dyn Communicator>,
    followed: Arc<Followed>,
}

impl Wrapper for Before {
    fn inner(&self) -> &dyn Communicator {
        &*self.inner
    }

    fn around(&self, inner: Box<dyn Communicator>) -> Box<dyn Communicator> {
        Box::new(Before { inner, followed: Arc::clone(&self.followed) })
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let bytes = data.len_bytes();
        let pending = self.inner.all_reduce(data, dtype, op)?;
        if bytes >= SEVERAL_PIECES {
            self.followed.at(Moment::AllReduce);
        }
        Ok(pending)
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        if self.name().starts_with("dp") {
            self.followed.at(Moment::Optimizer);
        }
        self.inner.all_gather(send, recv)
    }

    fn barrier(&self) -> Result<(), CommError> {
        if self.followed.meetings.fetch_add(1, Relaxed) + 1 == SHARDS_WRITTEN {
            self.followed.at(Moment::Saving);
        }
        self.inner.barrier()
    }
}
