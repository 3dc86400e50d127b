//! What a plan refuses, before anything is allocated.

use mesh::Axis;

/// Why a model cannot be planned, or a Program is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A dim whose elements cannot be padded does not divide over an axis.
    #[error(
        "`{dim}` has size {size}, which mesh axis {axis} = {ranks} cannot split evenly; choose {axis} among {choices}"
    )]
    CannotSplit {
        /// Name of the dim, as the configuration has it.
        dim: String,
        /// Its size.
        size: usize,
        /// The axis, as the configuration has it.
        axis: Axis,
        /// Extent of the axis, as the configuration has it.
        ranks: usize,
        /// Extents that would do.
        choices: String,
    },
    /// An axis larger than what it splits.
    #[error("mesh axis {axis} = {ranks} is larger than `{dim}` = {size}: some ranks would hold only padding")]
    TooManyRanks {
        /// Name of the dim.
        dim: String,
        /// Its size.
        size: usize,
        /// The axis.
        axis: Axis,
        /// Extent of the axis.
        ranks: usize,
    },
    /// No dim of the model can be split by the axis.
    #[error(
        "mesh axis {axis} = {ranks}, but this model has nothing that {axis} can split; leave {axis} at 1"
    )]
    NothingToSplit {
        /// The axis.
        axis: Axis,
        /// Extent of the axis.
        ranks: usize,
    },
    /// More stages than layers.
    #[error(
        "{stages} pipeline stages but model.num_layers = {layers}; each stage needs a layer: lower pp (or chunks) to \
         at most {layers}"
    )]
    TooManyStages {
        /// Stages asked for.
        stages: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// Microbatches beyond the batch.
    #[error(
        "parallel.num_microbatches = {num_microbatches} x dp = {dp} is more than train.batch = {batch} sequences; \
         lower num_microbatches or raise the batch"
    )]
    TooManyMicrobatches {
        /// Microbatches.
        num_microbatches: usize,
        /// Data-parallel ranks.
        dp: usize,
        /// Sequences per step.
        batch: usize,
    },
    /// A setting outside its range.
    #[error("{key} = {value} is not supported: {remedy}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: String,
    },
    /// The schedule is not correct.
    #[error("schedule: {0}")]
    Schedule(#[from] schedule::ScheduleError),
    /// A Program breaks a rule: a bug in lowering or a rewrite, found before launch.
    #[error("program of pipeline rank {pipeline_rank}, block {block}, instruction {index}: {problem}")]
    Program {
        /// Pipeline rank of the Program.
        pipeline_rank: usize,
        /// The block.
        block: String,
        /// Position in the block.
        index: usize,
        /// What is wrong.
        problem: String,
    },
}
