//! Bytes: where they are, who may touch them, how many there are.
//!
//! **Invariant: nothing here knows what the bytes mean, and no two live regions overlap unless both only read.**
//! One [`Arena`] per rank holds everything a step touches; a [`Region`] or [`RegionMut`] is checked out of it and
//! comes back on drop. Layout, names of tensors and placements belong to `plan`; arithmetic belongs to `kernels`.

mod arena;
mod backing;
mod dtype;
mod error;
mod file;
mod machine;
mod region;

pub use arena::{Arena, LIVE_REGIONS, SPAN_ALIGN, Span};
pub use dtype::{DType, Element, Plain};
pub use error::MemoryError;
pub use file::{MappedFile, map_file};
pub use machine::{available_bytes, keep_heap_small, peak_resident_bytes, release_freed, thread_cpu_seconds};
pub use region::{Region, RegionMut};
