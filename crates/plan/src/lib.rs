//! From a graph and a mesh to a Program: where every value lives, what moves, in which order, at which address.
//!
//! **Invariant: pure.** No clock, no file, no randomness but a given seed, no peer. The same arguments give the same
//! Program on every rank, so a Program can be printed, checked, priced and tested without running it.

#![forbid(unsafe_code)]

mod addresses;
#[cfg(test)]
mod addresses_tests;
mod apart;
mod buckets;
mod carry;
#[cfg(test)]
mod carry_tests;
mod check;
mod error;
mod flight;
mod fuse;
mod instruction;
mod layout;
mod legal;
mod lower;
#[cfg(test)]
mod lower_tests;
mod overlap;
mod pack;
mod placing;
mod plan;
mod program;
mod redistribute;
mod reuse;
mod runs;
mod strips;
#[cfg(test)]
mod strips_tests;

pub use buckets::IN_FLIGHT;
pub use check::{check, check_world};
pub use error::PlanError;
pub use instruction::{Collective, GroupKey, Instruction, Lane, When};
pub use layout::Layout;
pub use legal::{Choice, Chooser};
pub use lower::lower;
pub use plan::{BUCKET_BYTES, Parallel, Plan, StateHome};
pub use program::{Block, Buffer, BufferId, Class, Phase, Program, ProgramMemory, SlotRegion};
pub use runs::{Run, Unread, Validation};
pub use strips::STRIP_ALIGN;
