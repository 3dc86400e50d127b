//! Instruments for tests: small models in many layouts, and communicators that break a promise on purpose or are slow.
//!
//! **Invariant: nothing here is reachable from a shipped binary.** The parity measure itself is `train::parity`, because
//! users run it too.

#![forbid(unsafe_code)]

mod measure;
mod mutant;
pub mod slow_link;
mod small;
mod throttled;

pub use measure::measure;
pub use mutant::{Drop, Mutant, collectives};
pub use small::{Small, full, pairwise};
pub use throttled::Throttled;
