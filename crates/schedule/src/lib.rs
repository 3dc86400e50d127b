//! A schedule is data; nothing here knows a tensor.
//!
//! A pipeline schedule is, for each pipeline rank, an ordered list of actions `F I W B` on
//! (stage, microbatch). This crate makes such lists ([`generate()`]), refuses wrong ones
//! ([`Schedule::check`]), counts what is live at once ([`Schedule::peak_live`]), predicts their time
//! ([`Schedule::simulate`]), draws them and writes them in PyTorch's form. What an action computes,
//! what it sends and how long it really takes is known elsewhere.
//!
//! ```
//! let pipeline = schedule::generate("1f1b", 4, 8, 1)?;
//! let timeline = pipeline.simulate(&schedule::Times::new(1.0, 1.0, 1.0))?;
//! assert_eq!(timeline.bubble, 9.0); // (p - 1)(F + I + W)
//! assert_eq!(pipeline.peak_live(), [4, 3, 2, 1]);
//! # Ok::<(), schedule::ScheduleError>(())
//! ```
#![forbid(unsafe_code)]

mod action;
mod check;
mod csv;
mod draw;
mod edges;
mod error;
mod generate;
mod live;
mod pipeline;
mod placement;
mod simulate;
mod svg;
mod transfers;

pub use action::{Action, Kind};
pub use error::{ScheduleError, show_actions};
pub use generate::{Generator, Request, find, generate, generators};
pub use pipeline::Schedule;
pub use placement::Placement;
pub use simulate::{Costs, Span, Timeline, Times};
pub use transfers::Step;

#[cfg(test)]
mod mutant_tests;
#[cfg(test)]
mod mutate;
