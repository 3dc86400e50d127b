//! How one value lies along one mesh axis, and the table of moves between the ways. No dims of any model here: the
//! type of a dim is the caller's.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The operation that a partial value still owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reduce {
    /// Addition; padding counts as 0.
    Sum,
    /// Maximum; padding counts as negative infinity.
    Max,
}

/// How a value lies along one axis. Nothing else is needed for training: gradients are ordinary values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placement<D> {
    /// Equal on all ranks of the axis.
    Whole,
    /// Each rank holds the elements whose digit of dim `D` for this axis is its own coordinate.
    Shard(D),
    /// The value is the reduction over the ranks of the axis.
    Partial(Reduce),
}

impl<D: fmt::Display> fmt::Display for Placement<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Whole => f.write_str("whole"),
            Placement::Shard(dim) => write!(f, "shard({dim})"),
            Placement::Partial(Reduce::Sum) => f.write_str("partial(sum)"),
            Placement::Partial(Reduce::Max) => f.write_str("partial(max)"),
        }
    }
}

/// A move between two placements along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redistribution {
    /// Nothing to do.
    Keep,
    /// Whole to Shard: each rank keeps its own part; no communication.
    Slice,
    /// Shard to Whole.
    AllGather,
    /// Partial to Whole.
    AllReduce,
    /// Partial to Shard.
    ReduceScatter,
    /// Shard of one dim to Shard of another.
    AllToAll,
}

impl<D: Copy + PartialEq> Placement<D> {
    /// The move that turns `self` into `to`, or `None` where there is none: nothing becomes Partial by a move.
    pub fn redistribution(self, to: Placement<D>) -> Option<Redistribution> {
        use Placement::{Partial, Shard, Whole};
        match (self, to) {
            (Whole, Whole) => Some(Redistribution::Keep),
            (a, b) if a == b => Some(Redistribution::Keep),
            (Whole, Shard(_)) => Some(Redistribution::Slice),
            (Shard(_), Whole) => Some(Redistribution::AllGather),
            (Partial(_), Whole) => Some(Redistribution::AllReduce),
            (Partial(_), Shard(_)) => Some(Redistribution::ReduceScatter),
            (Shard(_), Shard(_)) => Some(Redistribution::AllToAll),
            (_, Partial(_)) => None,
        }
    }

    /// Whether the value still owes a reduction.
    pub fn is_partial(self) -> bool {
        matches!(self, Placement::Partial(_))
    }
}
