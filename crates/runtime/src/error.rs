//! What can fail once a plan has been accepted: peers, memory, the data.

/// Why a rank could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A peer failed, or did not come in time.
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    /// The arena could not be reserved.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The system refused the communication thread.
    #[error(
        "a rank's communication thread cannot be started: {0}; set parallel.bucket_bytes = 0 to do without"
    )]
    Thread(std::io::Error),
    /// Ranks do not execute the same plan.
    #[error(
        "rank {rank}: the {what} differs between ranks; start all ranks with the same binary, configuration and mesh"
    )]
    Mismatch {
        /// The rank that noticed.
        rank: usize,
        /// What differs.
        what: &'static str,
    },
    /// The batch could not be read.
    #[error("batch: {0}")]
    Batch(String),
    /// Programs of one run disagree about a state tensor.
    #[error("state `{name}` lies differently in two programs of one run")]
    State {
        /// The tensor.
        name: String,
    },
    /// A run-time number was not given.
    #[error("no value was given for the run-time number `{name}`")]
    Scalar {
        /// The number.
        name: String,
    },
    /// States are asked for while the last update is under way, or it is open whether it stands.
    #[error("the last step is not settled; settle it before states are read")]
    Unsettled,
    /// A result that the program does not keep.
    #[error("the program keeps no result `{name}`")]
    Output {
        /// The result.
        name: String,
    },
}
