//! Ranks as threads of one process: the reference backend that every other one is compared with.
//!
//! Large messages are not copied to be sent: a rank reduces its own segment straight out of its peers' regions, then
//! copies the segments of the others. Small ones go through a buffer in the group and meet once. Nothing of a rank is
//! visible to its peers before it waits, and a rank that leaves early (deadline, abort) first waits until no peer reads
//! from it: that is what makes [`crate::Pending`] safe to drop and to leak.

mod collectives;
mod group;
mod mailbox;
mod member;
mod patience;
mod world;

#[cfg(test)]
mod tests;

pub use member::ThreadCommunicator;
pub(crate) use patience::wait_in_background;
pub use world::{Options, World};
