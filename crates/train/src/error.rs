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
    /// A Hugging Face directory, or another file of its formats.
    #[error(transparent)]
    Hub(Box<hub::HubError>),
    /// Predictions and references that do not belong together.
    #[error(transparent)]
    Metric(#[from] metrics::MetricError),
    /// A task that nobody knows.
    #[error("--task {name} is no task; tasks are {known}")]
    Task {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The run's directory.
    #[error(transparent)]
    RunDir(Box<RunDirError>),
    /// A rank, while running.
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
    /// The ranks of several processes could not be connected.
    #[error(transparent)]
    Join(Box<comm::JoinError>),
    /// The store where processes meet.
    #[error(transparent)]
    Store(Box<comm::store::StoreError>),
    /// Processes that should do the same came with different things.
    #[error(
        "rank {rank} on {host} differs from rank 0 in {field}: it has {theirs}, rank 0 has {ours}; start all ranks with \
         the same binary, configuration and data"
    )]
    Disagreement {
        /// The rank that differs.
        rank: usize,
        /// Where it runs.
        host: String,
        /// In what.
        field: String,
        /// Rank 0's value.
        ours: String,
        /// The other's.
        theirs: String,
    },
    /// Another process of the job could not go on.
    #[error("{reason}")]
    Refused {
        /// Who, where and why.
        reason: String,
    },
    /// As many processes as ranks were started, or a divisor of them, are needed.
    #[error(
        "the mesh {mesh} has {ranks} ranks but {processes} processes with {per_process} ranks each were started: start \
         {ranks} ranks, or give a mesh of {started} with --mesh"
    )]
    WorldSize {
        /// The mesh.
        mesh: String,
        /// Its ranks.
        ranks: usize,
        /// Processes of the job.
        processes: usize,
        /// Ranks of each.
        per_process: usize,
        /// Their product.
        started: usize,
    },
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
    /// What was asked of generation cannot be.
    #[error("{place}: {problem}")]
    Generate {
        /// The option, or the prompt.
        place: String,
        /// What is wrong, and the remedy.
        problem: String,
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
    Hub(hub::HubError),
    RunDir(RunDirError),
    Join(comm::JoinError),
    Store(comm::store::StoreError),
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

    /// Whether this rank could have gone on if its peers had: the same job, started anew, may end well.
    pub fn is_of_peer(&self) -> bool {
        use comm::CommError::DeadlineExceeded;
        match self {
            TrainError::Refused { .. } => true,
            TrainError::Join(error) => matches!(**error, comm::JoinError::Failed { .. }),
            TrainError::Runtime(runtime::RuntimeError::Comm(DeadlineExceeded { .. })) => true,
            other => other.is_echo(),
        }
    }

    /// Whether this is only the echo of another rank's failure.
    pub fn is_echo(&self) -> bool {
        use comm::CommError::{Aborted, PeerGone};
        matches!(self, TrainError::Runtime(runtime::RuntimeError::Comm(Aborted { .. } | PeerGone { .. })))
    }
}
