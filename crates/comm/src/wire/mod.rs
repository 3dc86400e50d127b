//! Ranks that share no memory: collectives over messages, the same for every engine that can carry bytes.
//!
//! An engine ([`link::Link`]: Gloo, MPI) moves bytes between two ranks and knows nothing else. Here are the envelopes
//! by which ranks compare what they came for ([`endpoint`]), the movement of each collective ([`collectives`]), the
//! communicator ([`member`]), and the watch that turns a death, a stop or a silence anywhere into one error
//! everywhere ([`watch`]). Ranks on one host read large contents out of each other's memory instead, where they may
//! ([`neighbours`], [`direct`]). Reductions sum in the order of ranks, so the bits are those of the thread backend.
//!
//! Collectives that do not fit an envelope make progress while a thread of the rank waits. Several may: the rank's own
//! and its communication thread ([`crate::Lane`]), in different groups.

mod collectives;
mod direct;
mod endpoint;
mod frame;
mod hub;
pub(crate) mod link;
mod member;
mod neighbours;
mod watch;

pub(crate) use endpoint::Endpoint;
pub(crate) use frame::Failure;
pub(crate) use hub::HubError;
pub(crate) use member::world;
pub(crate) use neighbours::Neighbours;
pub(crate) use watch::{Watch, WatchOptions};
