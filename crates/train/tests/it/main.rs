//! Whole runs on a little text: what a checkpoint keeps, and that a run goes on in any layout.

mod precision;
mod resume;
