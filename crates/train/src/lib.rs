//! A run: configuration, training loop, checkpoints, evaluation, generation, and the proof that the layout does not
//! matter.
//!
//! **Invariant: nothing here computes on tensors or chooses a layout.** It feeds Programs with batches and keeps what
//! they leave; every function returns its findings as values, and printing is for the command line.

#![forbid(unsafe_code)]

pub mod assemble;
pub mod checkpoint;
pub mod config;
mod corpus;
mod describe;
mod error;
pub mod evaluate;
mod evaluator;
pub mod explain;
pub mod export;
#[cfg(feature = "faults")]
pub mod faults;
mod feed;
pub mod generate;
pub mod gradients;
mod learning_rate;
pub mod length_buckets;
pub mod loss_scale;
pub mod parity;
mod parity_gather;
pub mod parity_report;
pub mod pipeline_profile;
pub mod prepare;
pub mod pretrained;
mod processes;
pub mod profile;
pub mod ranks;
pub mod run_dir;
mod saving;
pub mod synthetic;
mod tasks;
pub mod text;
pub mod trainer;
pub mod virtual_clock;

pub use error::TrainError;
