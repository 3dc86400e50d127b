//! train
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod run_dir;
