//! The errors of this crate and the place they name. No recovery lives here: callers match on the variants.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which operation.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// [`crate::Communicator::all_reduce`].
    AllReduce,
    /// [`crate::Communicator::reduce_scatter`].
    ReduceScatter,
    /// [`crate::Communicator::all_gather`].
    AllGather,
    /// [`crate::Communicator::all_to_all`].
    AllToAll,
    /// [`crate::Communicator::broadcast`].
    Broadcast,
    /// [`crate::Communicator::send`].
    Send,
    /// [`crate::Communicator::recv`].
    Recv,
    /// [`crate::Communicator::barrier`].
    Barrier,
    /// [`crate::Communicator::split`].
    Split,
}

impl Collective {
    /// The name of the operation, as in the trait.
    pub const fn name(self) -> &'static str {
        match self {
            Collective::AllReduce => "all_reduce",
            Collective::ReduceScatter => "reduce_scatter",
            Collective::AllGather => "all_gather",
            Collective::AllToAll => "all_to_all",
            Collective::Broadcast => "broadcast",
            Collective::Send => "send",
            Collective::Recv => "recv",
            Collective::Barrier => "barrier",
            Collective::Split => "split",
        }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The rank that reports, in the world.
    pub rank: usize,
    /// The host it runs on; none where all ranks are threads of one process.
    pub host: Option<Arc<str>>,
    /// The group's name, with the world ranks in it: `tp[0,1]`.
    pub group: Arc<str>,
    /// The operation.
    pub operation: Collective,
    /// Its number: collectives of a group are counted alike on every rank, sends and receives by each rank alone.
    pub sequence: u64,
    /// How long ago it was started.
    pub elapsed: Duration,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { rank, host, group, operation, sequence, elapsed } = self;
        write!(f, "rank {rank}")?;
        if let Some(host) = host {
            write!(f, " on {host}")?;
        }
        write!(f, ", {operation} #{sequence} on {group}, after {:.3} s", elapsed.as_secs_f64())
    }
}

/// What can go wrong between ranks. All ranks named here are ranks in the world, except in `InvalidRank`.
#[non_exhaustive]
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommError {
    /// Nothing moved for the time allowed.
    #[error("{place}: ranks {missing:?} did not arrive within {:.3} s", deadline.as_secs_f64())]
    DeadlineExceeded {
        /// Where.
        place: Place,
        /// The time allowed.
        deadline: Duration,
        /// Who had not arrived.
        missing: Vec<usize>,
    },
    /// The world was aborted, by a handle or by an error on another rank.
    #[error("{place}: the world was aborted: {reason}")]
    Aborted {
        /// Where.
        place: Place,
        /// Why.
        reason: Arc<str>,
    },
    /// A rank that is needed has left, died or fallen silent.
    #[error("{place}: rank {peer} is gone: {how}")]
    PeerGone {
        /// Where.
        place: Place,
        /// Who is gone.
        peer: usize,
        /// How that showed, and on which host it was, if known.
        how: Arc<str>,
    },
    /// Ranks met with different operations, sizes or sequence numbers, or (with `verify`) got different bits.
    #[error("{place}: this rank has {ours}, rank {peer} has {theirs}")]
    Mismatch {
        /// Where.
        place: Place,
        /// What this rank came with.
        ours: Box<str>,
        /// The first rank that differs.
        peer: usize,
        /// What that rank came with.
        theirs: Box<str>,
    },
    /// Operations were not waited for in the order they were started.
    #[error("{place}: waited for before #{expected}, which was started earlier")]
    OutOfOrder {
        /// Where.
        place: Place,
        /// The number whose turn it is.
        expected: u64,
    },
    /// The regions do not fit the operation.
    #[error(
        "{place}: send of {send_bytes} bytes and recv of {recv_bytes} bytes do not fit {group_size} ranks and elements of {element_bytes} bytes"
    )]
    InvalidSize {
        /// Where.
        place: Place,
        /// The length of what is sent.
        send_bytes: usize,
        /// The length of what is received.
        recv_bytes: usize,
        /// The size of the group.
        group_size: usize,
        /// The size of one element.
        element_bytes: usize,
    },
    /// A root or peer that is not in the group.
    #[error("{place}: rank {peer} is not among the {group_size} ranks of the group")]
    InvalidRank {
        /// Where.
        place: Place,
        /// The rank within the group that was asked for.
        peer: usize,
        /// The size of the group.
        group_size: usize,
    },
    /// The members of a new group are not distinct ranks of the old one, this rank among them.
    #[error(
        "{place}: {members:?} are not distinct ranks of the {group_size} in the group, the caller among them"
    )]
    InvalidSplit {
        /// Where.
        place: Place,
        /// The members asked for.
        members: Vec<usize>,
        /// The size of the old group.
        group_size: usize,
    },
}

impl CommError {
    /// Where it happened.
    pub fn place(&self) -> &Place {
        match self {
            CommError::DeadlineExceeded { place, .. }
            | CommError::Aborted { place, .. }
            | CommError::PeerGone { place, .. }
            | CommError::Mismatch { place, .. }
            | CommError::OutOfOrder { place, .. }
            | CommError::InvalidSize { place, .. }
            | CommError::InvalidRank { place, .. }
            | CommError::InvalidSplit { place, .. } => place,
        }
    }
}
