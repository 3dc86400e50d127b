//! Whole runs on a little text: what a checkpoint keeps, and that a run goes on in any layout.

mod gradients;
mod names;
mod precision;
mod resume;
