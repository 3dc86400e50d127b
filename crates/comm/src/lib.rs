//! Communication between ranks: one object-safe [`Communicator`] per group, and the backends behind it.
//!
//! **Invariant: every rank of a group gets the same bits or an error; nothing here waits beyond its deadline.**
//! A reduction is the sum in rank order, whatever the order of arrival and the size of the message. What is reduced
//! and why is the plan's business; where the bytes lie is `memory`'s.

mod claim;
mod communicator;
mod error;
#[cfg(feature = "gloo")]
mod gloo;
mod job;
mod lane;
#[cfg(feature = "mpi")]
pub mod mpi;
mod pending;
mod recorder;
mod reduce;
pub mod store;
pub mod threads;
#[cfg(any(feature = "gloo", feature = "mpi"))]
mod wire;
mod wrapper;

pub use communicator::{AbortHandle, Communicator, Reduce};
pub use error::{Collective, CommError, Place};
pub use job::{Backend, Job, JoinError, OnStuck};
pub use lane::Lane;
pub use pending::Pending;
pub use recorder::{OperationRecord, Outcome};
pub use wrapper::Wrapper;
