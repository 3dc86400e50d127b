//! The [`Communicator`] trait: what any backend offers a rank. No backend lives here.

use crate::{CommError, OperationRecord, Pending};
use memory::{DType, Region, RegionMut};
use std::fmt;
use std::sync::Arc;

/// How elements of several ranks become one.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The sum in rank order: rank 0 + rank 1 + ...; integers wrap.
    Sum,
    /// The maximum; a NaN wins.
    Max,
}

impl Reduce {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Reduce::Sum => "sum",
            Reduce::Max => "max",
        }
    }
}

impl fmt::Display for Reduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rank's membership in one group.
///
/// Operations start here and end in [`Pending::wait`]. Several may be outstanding, in one group or in many, under
/// these rules, which hold for every backend:
/// - all ranks of a group start the same collectives in the same order;
/// - the collectives of one group are waited for in the order they were started ([`CommError::OutOfOrder`]);
/// - over several groups, waits must not form a cycle between ranks: progress is made while waiting;
/// - after any error but `Invalid*` the whole world is aborted and a new one must be made.
///
/// Ranks in arguments are ranks within this group. A group of one is served by the same calls.
pub trait Communicator: Send {
    /// This rank within the group.
    fn rank(&self) -> usize;

    /// How many ranks the group has.
    fn world_size(&self) -> usize;

    /// The group's name, with the world ranks in it: `tp[0,1]`.
    fn name(&self) -> &str;

    /// Replaces `data` by its reduction over the group, with the same bits on every rank.
    ///
    /// # Communication
    /// Whole group; each rank moves 2 (n-1)/n of `data`.
    ///
    /// # Errors
    /// `InvalidSize` if `data` is no whole number of elements; the rest from [`Pending::wait`].
    fn all_reduce<'a>(&self, data: RegionMut<'a>, dtype: DType, op: Reduce)
    -> Result<Pending<'a>, CommError>;

    /// Reduces `send` over the group; piece i of n goes to rank i. The bits are those of `all_reduce`.
    ///
    /// # Shape
    /// `send` is n times `recv`.
    ///
    /// # Communication
    /// Whole group; each rank moves (n-1)/n of `send`.
    ///
    /// # Errors
    /// `InvalidSize`; the rest from [`Pending::wait`].
    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError>;

    /// Puts the `send` of every rank one after another into `recv`, in rank order.
    ///
    /// # Shape
    /// `recv` is n times `send`.
    ///
    /// # Communication
    /// Whole group; each rank moves (n-1)/n of `recv`.
    ///
    /// # Errors
    /// `InvalidSize`; the rest from [`Pending::wait`].
    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError>;

    /// Sends piece i of `send` to rank i and puts what rank i sent into piece i of `recv`.
    ///
    /// # Shape
    /// Both have n pieces of equal size.
    ///
    /// # Communication
    /// Whole group; each rank moves (n-1)/n of `send`.
    ///
    /// # Errors
    /// `InvalidSize`; the rest from [`Pending::wait`].
    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError>;

    /// Replaces `data` by what rank `root` has there.
    ///
    /// # Communication
    /// Whole group; each rank but the root receives `data` once.
    ///
    /// # Errors
    /// `InvalidRank`; the rest from [`Pending::wait`].
    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError>;

    /// Sends `data` to rank `to`, which receives it with the same tag. It completes without the receiver.
    ///
    /// # Communication
    /// One message. Messages of equal (from, to, tag) arrive in the order they were sent.
    ///
    /// # Errors
    /// `InvalidRank`; `PeerGone` if the receiver is gone already; `Aborted`.
    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError>;

    /// Receives into `data` the next message of rank `from` with this tag. Receives of equal (from, tag) are waited
    /// for in the order they were started; others in any order.
    ///
    /// # Communication
    /// One message of exactly the size of `data`.
    ///
    /// # Errors
    /// `InvalidRank`; the rest from [`Pending::wait`].
    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError>;

    /// Returns once every rank of the group has called it. It counts as a collective that is waited for at once.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    fn barrier(&self) -> Result<(), CommError>;

    /// Makes a group of `members`, given as ranks of this group in the order of their new ranks.
    ///
    /// Only the members call it, all with the same arguments. `name` is the axis alone (`tp`); the world ranks are
    /// appended. Groups of the same members may be made again and are apart from each other.
    ///
    /// # Communication
    /// A barrier over the members.
    ///
    /// # Errors
    /// `InvalidSplit`; as [`Pending::wait`] for the barrier.
    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError>;

    /// Whether every operation is complete when its start returns, so that nothing is gained by a [`crate::Lane`].
    fn completes_at_start(&self) -> bool {
        false
    }

    /// A handle that wakes every waiter of the whole world.
    fn abort_handle(&self) -> AbortHandle;

    /// The last operations of this rank in all its groups, oldest first: the flight recorder.
    fn recent_operations(&self) -> Vec<OperationRecord>;
}

/// What a backend does to end a world at once.
pub(crate) trait Abort: Send + Sync {
    fn abort(&self, reason: &str);
    fn is_aborted(&self) -> bool;
}

/// Ends the world at once: every rank that waits, or will, gets [`CommError::Aborted`].
#[derive(Clone)]
pub struct AbortHandle(pub(crate) Arc<dyn Abort>);

impl AbortHandle {
    /// Wakes every waiter of the world. The first reason stands; later calls do nothing.
    pub fn abort(&self, reason: &str) {
        self.0.abort(reason);
    }

    /// Whether the world has failed, by this handle or by any error.
    pub fn is_aborted(&self) -> bool {
        self.0.is_aborted()
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("is_aborted", &self.is_aborted()).finish()
    }
}
