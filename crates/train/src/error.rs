//! The one error of a run. Whether it is the user's (exit 2) or a peer's is a question to it, not to the caller.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::run_dir::RunDirError;

/// Why a run could not be started or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration.
    #[error(transparent)]
    Config(Box<ConfigError>),
    /// The model's shape.
    #[error(transparent)]
    Model(#[from] models::ModelError),
    /// The graph.
    #[error(transparent)]
    Graph(#[from] graph::GraphError),
    /// The division over ranks.
    #[error(transparent)]
    Plan(Box<plan::PlanError>),
    /// Text, tokenizer or token cache.
    #[error(transparent)]
    Data(Box<data::DataError>),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// The run's directory.
    #[error(transparent)]
    RunDir(Box<RunDirError>),
    /// A rank, while running.
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
    /// A setting that this version does not serve.
    #[error("{key} = {value} is not supported yet: {remedy}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A setting that is needed for this command.
    #[error("{key} is missing: {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to do.
        remedy: String,
    },
    /// More memory than the machine has.
    #[error(
        "the plan needs {needed_mib} MiB ({arithmetic}) but the machine has {available_mib} MiB free: use a smaller \
         model, batch or sequence, more microbatches, ZeRO, recompute, or more machines"
    )]
    Memory {
        /// What all ranks of this machine reserve together.
        needed_mib: u64,
        /// The sum, in words.
        arithmetic: String,
        /// What is there.
        available_mib: u64,
    },
    /// Nothing is left to do.
    #[error("{dir} is at step {step} and train.steps = {steps}: raise train.steps (or --steps) to train on")]
    Finished {
        /// The checkpoint.
        dir: String,
        /// Steps it holds.
        step: u64,
        /// Steps asked for.
        steps: u64,
    },
    /// A file could not be used.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// Training went astray.
    #[error(
        "step {step}: the loss is {loss} and the gradient's norm {grad_norm}; lower train.lr, raise train.warmup_steps or set train.clip_norm (the last \
         good checkpoint is kept)"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Norm of its gradient.
        grad_norm: f64,
    },
    /// Threads could not be made.
    #[error("parallel.threads_per_rank = {threads}: the system refuses the threads ({error}); ask for fewer")]
    Threads {
        /// Asked for.
        threads: usize,
        /// The system's answer.
        error: std::io::Error,
    },
    /// Half precision cannot hold the gradients.
    #[error(
        "step {step}: gradients overflow even at a loss scale of {loss_scale:e}; train with precision = \"bf16\" or \
         \"f32\", or lower train.lr (the last good checkpoint is kept)"
    )]
    Overflow {
        /// The step.
        step: u64,
        /// The scale that was left.
        loss_scale: f64,
    },
    /// A rank's thread panicked: a bug.
    #[error("rank {rank} panicked: {message}")]
    Panicked {
        /// The rank.
        rank: usize,
        /// What it said.
        message: String,
    },
}

/// The larger errors travel in a box, so that every `Result` stays small.
macro_rules! boxed {
    ($($variant:ident($error:ty)),* $(,)?) => {$(
        impl From<$error> for TrainError {
            fn from(error: $error) -> TrainError {
                TrainError::$variant(Box::new(error))
            }
        }
    )*};
}

boxed! {
    Config(ConfigError),
    Plan(plan::PlanError),
    Checkpoint(CheckpointError),
    Data(data::DataError),
    RunDir(RunDirError),
}

impl TrainError {
    /// Whether the fault is ours: a rank that panicked, a Program that the checker refuses.
    pub fn is_bug(&self) -> bool {
        match self {
            TrainError::Panicked { .. } => true,
            TrainError::Plan(error) => matches!(**error, plan::PlanError::Program { .. }),
            _ => false,
        }
    }

    /// Whether this is only the echo of another rank's failure.
    pub fn is_echo(&self) -> bool {
        use comm::CommError::{Aborted, PeerGone};
        matches!(self, TrainError::Runtime(runtime::RuntimeError::Comm(Aborted { .. } | PeerGone { .. })))
    }
}
