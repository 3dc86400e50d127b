//! Sharded checkpoints: every rank writes the elements it owns, and any layout reads them back bit for bit.
//!
//! What lives here: the format on disk, the protocol that makes a save atomic, and the checks that make a load safe.
//! What must not: how a training loop decides when to save, and any communicator. Ranks meet on the file system; the
//! caller puts a barrier between the three parts of a save:
//!
//! 1. rank 0: [`begin`] removes leftovers of earlier failed saves and creates `step-N.partial/`;
//! 2. every rank: [`write_shard`] writes one safetensors file and a small report beside it, both synced;
//! 3. rank 0: [`commit`] reads the reports, checks that the pieces cover each tensor exactly once, writes the manifest
//!    last, renames the directory to `step-N/`, and removes checkpoints beyond the number to keep.
//!
//! A save that stops anywhere leaves the previous checkpoint untouched; what it wrote is ignored by [`Checkpoint::open`]
//! and removed by the next [`begin`].
//!
//! ```text
//! RUN/checkpoints/step-00000010/manifest.json               sealed by its own checksum
//!                              /shard-00000.safetensors     1-D arrays: the real elements of a tile, in run order
//! ```

mod cover;
mod dtype;
mod error;
mod files;
mod manifest;
mod names;
mod open;
mod read;
mod save;
mod shard;
#[cfg(test)]
mod tests;

pub use dtype::{DType, Element};
pub use error::{CheckpointError, Fallback};
pub use manifest::{FORMAT_VERSION, Manifest, Piece, ShardEntry, TensorEntry};
pub use names::{partial_dir, step_dir};
pub use open::{Checkpoint, newest_good};
pub use save::{Committed, LocalTensor, PieceReport, ShardReport, abandon, begin, commit, save, write_shard};
