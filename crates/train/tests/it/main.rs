//! Whole runs on a little text: what a checkpoint keeps, and that a run goes on in any layout.

mod dropout;
mod from_directory;
mod generation;
mod gradients;
mod length_buckets;
mod names;
mod precision;
mod resume;
mod tasks;
