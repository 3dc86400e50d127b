//! Executes Programs on one rank: binds them to a coordinate, an arena and communicators, then runs one loop with one
//! `match`.
//!
//! **Invariant: a step allocates nothing and decides nothing.** Everything that could differ between ranks or go wrong
//! in a plan was settled before step 0; afterwards only devices and peers can fail.

#![forbid(unsafe_code)]

mod batch;
mod bind;
mod call;
mod error;
mod executor;
mod groups;
mod init;
mod kernel;
mod moves;
mod profile;
mod states;
mod step;
mod strips;
mod tables;
mod validation;

pub use batch::{Batch, Destination};
pub use bind::scratch_bytes;
pub use error::RuntimeError;
pub use executor::{Executor, RankMemory, StepInput, WrapGroup};
pub use profile::{Clock, Queue, Sample, Work, work};
pub use states::StateView;
pub use validation::Ran;
