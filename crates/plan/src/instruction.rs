//! The instructions of a Program, and what they name: collectives, groups, occasions. Pure data.

use std::fmt;

use graph::Op;
use mesh::{Axis, AxisSet, Reduce};

use crate::program::BufferId;

/// A collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Reduction of equal buffers, in place.
    AllReduce(Reduce),
    /// Reduction, each rank keeping one piece.
    ReduceScatter(Reduce),
    /// Pieces of all ranks, in order.
    AllGather,
    /// Piece `j` of rank `i` becomes piece `i` of rank `j`.
    AllToAll,
}

/// Which thread of a rank makes a group's collectives progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// The rank's own, while it waits.
    Own,
    /// Its communication thread, while the rank computes. Collectives of all such groups are executed in the order of
    /// their starts, and may be waited for in any order.
    Background,
}

/// A set of ranks: all that differ from a rank only along `axes`, or only along pp within `pipeline_ranks`. Lanes have
/// groups of their own, so that what is long under way orders against nothing that is waited for at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// Axes in space.
    pub axes: AxisSet,
    /// Pipeline ranks, if the group spans some of them only.
    pub pipeline_ranks: Option<Vec<usize>>,
    /// Who makes its collectives progress.
    pub lane: Lane,
}

impl GroupKey {
    /// All ranks along `axes`, served by the rank's own thread.
    pub fn along(axes: AxisSet) -> GroupKey {
        GroupKey { axes, pipeline_ranks: None, lane: Lane::Own }
    }

    /// The ranks of the group in words, whatever its lane.
    pub fn ranks(&self) -> String {
        match &self.pipeline_ranks {
            Some(ranks) => format!("pp{ranks:?}"),
            None => self.axes.to_string(),
        }
    }
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = if self.lane == Lane::Background { " in background" } else { "" };
        write!(f, "{}{lane}", self.ranks())
    }
}

/// In which runs of its block an instruction is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// In every one.
    Always,
    /// In the first of the step.
    FirstRun,
    /// In the last of the step.
    LastRun,
}

/// One instruction. Buffers of a started collective are in flight until its `Wait`, which may be in another block.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    /// An operation on local parts.
    Compute {
        /// What.
        op: Op,
        /// Operands.
        inputs: Vec<BufferId>,
        /// Results; an in-place operation has its operands here again.
        outputs: Vec<BufferId>,
        /// Add to the result instead of overwriting it (contractions only).
        accumulate: bool,
        /// Path of the node.
        name: String,
        /// In which runs of the block.
        when: When,
    },
    /// Computations for some rows after others, so that what lies between them is never there as a whole: logits.
    /// Results without rows (a weight's gradient) grow from strip to strip.
    Strips {
        /// In order; computations alone.
        body: Vec<Instruction>,
        /// What is held of one strip at a time. All its dims but the last make the rows.
        held: BufferId,
        /// Rows of a strip, but for the last one.
        rows: usize,
    },
    /// Reads this rank's part of a tensor of the batch.
    Load {
        /// Name of the input.
        input: String,
        /// Where to.
        output: BufferId,
    },
    /// A run-time number.
    Scalar {
        /// Name of the number.
        name: String,
        /// Where to.
        output: BufferId,
    },
    /// Sets all elements.
    Fill {
        /// To what.
        value: f64,
        /// Where.
        output: BufferId,
    },
    /// Keeps this rank's piece along `axis` of `[outer][n][inner]`.
    Slice {
        /// From.
        input: BufferId,
        /// To, `[outer][inner]`.
        output: BufferId,
        /// Whose coordinate chooses.
        axis: Axis,
        /// Elements before.
        outer: usize,
        /// Pieces.
        n: usize,
        /// Elements after.
        inner: usize,
    },
    /// `[outer][n][inner]` to `[n][outer][inner]`: pieces side by side, as collectives want them.
    Pack {
        /// From.
        input: BufferId,
        /// To.
        output: BufferId,
        /// Elements before.
        outer: usize,
        /// Pieces.
        n: usize,
        /// Elements after.
        inner: usize,
    },
    /// The inverse of `Pack`.
    Unpack {
        /// From.
        input: BufferId,
        /// To.
        output: BufferId,
        /// Elements before.
        outer: usize,
        /// Pieces.
        n: usize,
        /// Elements after.
        inner: usize,
    },
    /// Starts a collective. An all_reduce works in place: `inputs` are `outputs`; there may be several, one right behind
    /// the other in memory: a bucket. The other collectives have one of each.
    Start {
        /// Which.
        collective: Collective,
        /// Operands.
        inputs: Vec<BufferId>,
        /// Results.
        outputs: Vec<BufferId>,
        /// Elements per piece; of a bucket, from the first one's begin to the last one's end.
        count: usize,
        /// Position in [`groups`](crate::Program::groups).
        group: usize,
        /// Names this start for its wait.
        ticket: usize,
        /// In which runs of the block.
        when: When,
    },
    /// Waits for a started collective.
    Wait {
        /// Of which start.
        ticket: usize,
        /// In which runs of the block.
        when: When,
    },
    /// Sends a value to another pipeline rank.
    Send {
        /// What.
        input: BufferId,
        /// Destination.
        to: usize,
        /// Identity of the value, the same at both ends.
        tag: u64,
    },
    /// Receives a value from another pipeline rank.
    Recv {
        /// Where to.
        output: BufferId,
        /// Origin.
        from: usize,
        /// Identity of the value.
        tag: u64,
    },
    /// `into += from`: the reduction over microbatches.
    Accumulate {
        /// One microbatch's part.
        from: BufferId,
        /// The sum so far.
        into: BufferId,
    },
    /// Puts one microbatch's `[outer][inner]` into `[outer][n][inner]`: the gather over microbatches.
    Store {
        /// One microbatch's part.
        from: BufferId,
        /// The whole.
        into: BufferId,
        /// Elements before.
        outer: usize,
        /// Microbatches.
        n: usize,
        /// Elements after.
        inner: usize,
    },
    /// Writes a scalar into a vector of partial sums, where this rank's coordinate is 0 on all of `owners`: a whole
    /// value counts once.
    Entry {
        /// The scalar.
        from: BufferId,
        /// The vector.
        into: BufferId,
        /// Position.
        index: usize,
        /// Axes along which the scalar is whole.
        owners: AxisSet,
    },
    /// Copies.
    Copy {
        /// From.
        from: BufferId,
        /// To.
        into: BufferId,
    },
}

impl Instruction {
    /// In which runs of its block it is executed.
    pub fn when(&self) -> When {
        match self {
            Instruction::Compute { when, .. }
            | Instruction::Start { when, .. }
            | Instruction::Wait { when, .. } => *when,
            _ => When::Always,
        }
    }

    /// The computations that it consists of: itself, its body, or none.
    pub fn computations(&self) -> &[Instruction] {
        match self {
            Instruction::Strips { body, .. } => body,
            Instruction::Compute { .. } => std::slice::from_ref(self),
            _ => &[],
        }
    }

    /// The same, to be changed.
    pub(crate) fn computations_mut(&mut self) -> &mut [Instruction] {
        match self {
            Instruction::Strips { body, .. } => body,
            Instruction::Compute { .. } => std::slice::from_mut(self),
            _ => &mut [],
        }
    }

    /// Buffers that are read, then buffers that are written (an updated buffer is in both).
    pub fn uses(&self) -> (Vec<BufferId>, Vec<BufferId>) {
        use Instruction as I;
        match self {
            I::Compute { inputs, outputs, accumulate, op, .. } => {
                let mut reads = inputs.clone();
                if *accumulate {
                    reads.extend(outputs);
                }
                reads.extend(op.in_place().iter().map(|(result, _)| outputs[*result]));
                (reads, outputs.clone())
            }
            I::Strips { body, .. } => {
                let (mut reads, mut writes) = (Vec::new(), Vec::new());
                for (read, written) in body.iter().map(Instruction::uses) {
                    // What the body makes itself is not read from outside.
                    reads.extend(read.into_iter().filter(|id| !writes.contains(id)));
                    writes.extend(written);
                }
                (reads, writes)
            }
            I::Load { output, .. }
            | I::Scalar { output, .. }
            | I::Fill { output, .. }
            | I::Recv { output, .. } => (vec![], vec![*output]),
            I::Slice { input, output, .. }
            | I::Pack { input, output, .. }
            | I::Unpack { input, output, .. } => (vec![*input], vec![*output]),
            I::Start { inputs, outputs, .. } => (inputs.clone(), outputs.clone()),
            I::Wait { .. } => (vec![], vec![]),
            I::Send { input, .. } => (vec![*input], vec![]),
            I::Accumulate { from, into } | I::Store { from, into, .. } | I::Entry { from, into, .. } => {
                (vec![*from, *into], vec![*into])
            }
            I::Copy { from, into } => (vec![*from], vec![*into]),
        }
    }
}
