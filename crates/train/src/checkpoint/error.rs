//! Everything that can be wrong with a checkpoint: what, where, and what to do.

use std::fmt;
use std::path::PathBuf;

use super::dtype::DType;

/// The newest checkpoint of the same run that is older than a damaged one and passes every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback(pub Option<(u64, PathBuf)>);

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((step, dir)) => {
                write!(
                    f,
                    "the previous good checkpoint is step {step}; continue with `--resume {}`",
                    dir.display()
                )
            }
            None => f.write_str("no earlier good checkpoint lies beside it; restore a copy or start anew"),
        }
    }
}

/// What can go wrong when a checkpoint is written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check the path, its permissions and the disk", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// No space, or quota, is left.
    #[error(
        "cannot {action} {}: {source}; earlier checkpoints are untouched; free some space, keep fewer checkpoints \
         (`train.keep_checkpoints`) or put the run on another disk (`--out`)", .path.display()
    )]
    DiskFull {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Nothing to load.
    #[error(
        "no checkpoint in {} ({partial} unfinished); give a run directory, its `checkpoints` directory or one \
         `step-N` directory", .path.display()
    )]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// Saves that began there and never finished.
        partial: usize,
    },
    /// The path is a save that never finished.
    #[error("{} is a save that did not finish; give the run directory to use its newest whole checkpoint", .path.display())]
    Unfinished {
        /// The directory.
        path: PathBuf,
    },
    /// A committed checkpoint fails its checks.
    #[error("checkpoint {} is damaged: {problem}. Remedy: {fallback}", .dir.display())]
    Damaged {
        /// The checkpoint.
        dir: PathBuf,
        /// What is wrong with it.
        problem: Box<CheckpointError>,
        /// The next best one.
        fallback: Fallback,
    },
    /// A file that the checkpoint needs is not there.
    #[error("file {} is missing; restore it, or use another checkpoint", .path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file is shorter or longer than the manifest says.
    #[error("file {} has {actual} bytes instead of {expected}; restore it, or use another checkpoint", .path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual: u64,
        /// Its size when it was written.
        expected: u64,
    },
    /// The bytes of a file are not those that were written.
    #[error(
        "file {} has changed since it was written (blake3 {actual} instead of {expected}); restore it, or use \
         another checkpoint", .path.display()
    )]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// Hash of its bytes now.
        actual: String,
        /// Hash of what was written.
        expected: String,
    },
    /// The manifest cannot be understood.
    #[error("manifest {} is not valid: {reason}; restore it, or use another checkpoint", .path.display())]
    BadManifest {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The checkpoint was written in a format that this version does not know.
    #[error("manifest {} has format version {found}, this program reads version {supported}; use a program of the \
             version that wrote it", .path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version read here.
        supported: u64,
    },
    /// A shard is not the safetensors file that the manifest describes.
    #[error("shard {} is not valid: {reason}; restore it, or use another checkpoint", .path.display())]
    BadShard {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A tile does not fit its tensor.
    #[error("tensor `{tensor}` has an impossible piece: {reason}; the layout that wrote it is wrong")]
    BadTile {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// Two pieces, or one piece twice, hold the same element.
    #[error(
        "element {element} of tensor `{tensor}` is held by more than one piece (again by piece {piece}); exactly \
             one rank may write each element: pass replicated tensors on one of the replicas alone"
    )]
    Overlap {
        /// The tensor.
        tensor: String,
        /// Row-major index of the element.
        element: usize,
        /// Position of the piece in the tensor's list.
        piece: usize,
    },
    /// No piece holds an element.
    #[error(
        "element {element} of tensor `{tensor}` is in no piece ({covered} of {total} elements are); every element \
             must be written by one rank"
    )]
    Hole {
        /// The tensor.
        tensor: String,
        /// Row-major index of the first element that is missing.
        element: usize,
        /// Elements that some piece holds.
        covered: usize,
        /// Elements of the tensor.
        total: usize,
    },
    /// Ranks disagree about a tensor.
    #[error(
        "rank reports disagree on tensor `{tensor}`: shard {index} says {found}, an earlier one {expected}; all \
             ranks must save the same model in the same precision"
    )]
    Conflict {
        /// The tensor.
        tensor: String,
        /// The shard that differs.
        index: usize,
        /// Its shape and type.
        found: String,
        /// Shape and type in earlier shards.
        expected: String,
    },
    /// A rank did not finish its part of a save.
    #[error("shard {index} of {num_shards} has no report in {}; every rank must finish `write_shard` before rank 0 \
             commits", .dir.display())]
    MissingReport {
        /// The unfinished save.
        dir: PathBuf,
        /// The shard without report.
        index: usize,
        /// Shards that were to be written.
        num_shards: usize,
    },
    /// The checkpoint holds another model.
    #[error("checkpoint {} is of another model: `{key}` is {saved} in the checkpoint and {wanted} here; use the \
             configuration that it was trained with", .dir.display())]
    ModelMismatch {
        /// The checkpoint.
        dir: PathBuf,
        /// The first key that differs.
        key: String,
        /// Its value in the checkpoint.
        saved: String,
        /// Its value in the configuration.
        wanted: String,
    },
    /// The checkpoint was trained with another tokenizer.
    #[error("checkpoint {} was trained with tokenizer {saved}, not {wanted}; use the tokenizer file that it was \
             trained with", .dir.display())]
    TokenizerMismatch {
        /// The checkpoint.
        dir: PathBuf,
        /// Hash of its tokenizer.
        saved: String,
        /// Hash of the tokenizer given.
        wanted: String,
    },
    /// The checkpoint has no such tensor.
    #[error("checkpoint {} has no tensor `{tensor}` (it has {count}); was it saved with the same model and \
             optimizer?", .dir.display())]
    MissingTensor {
        /// The checkpoint.
        dir: PathBuf,
        /// The name asked for.
        tensor: String,
        /// Number of tensors in it.
        count: usize,
    },
    /// The tensor has another shape.
    #[error(
        "tensor `{tensor}` has shape {saved:?} in the checkpoint and {wanted:?} here; use the configuration that \
             it was trained with"
    )]
    ShapeMismatch {
        /// The tensor.
        tensor: String,
        /// Shape in the checkpoint.
        saved: Vec<usize>,
        /// Shape asked for.
        wanted: Vec<usize>,
    },
    /// The tensor has another element type.
    #[error(
        "tensor `{tensor}` holds {saved} in the checkpoint and {wanted} is wanted; use the precision that it was \
             trained with"
    )]
    DTypeMismatch {
        /// The tensor.
        tensor: String,
        /// Type in the checkpoint.
        saved: DType,
        /// Type asked for.
        wanted: DType,
    },
    /// A buffer does not have the size of its tile.
    #[error(
        "the buffer of tensor `{tensor}` has {actual} bytes, its tile needs {expected}; this is a bug of the caller"
    )]
    WrongBuffer {
        /// The tensor.
        tensor: String,
        /// Bytes given.
        actual: usize,
        /// Bytes of the tile, padding included.
        expected: usize,
    },
    /// A tensor name that a shard cannot hold.
    #[error("`{tensor}` cannot be the name of a saved tensor: {reason}; rename the parameter")]
    BadName {
        /// The name.
        tensor: String,
        /// Why.
        reason: &'static str,
    },
}

impl CheckpointError {
    /// A closure that dresses an I/O error with what was tried and where, for `map_err`.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> CheckpointError {
        use std::io::ErrorKind::{FileTooLarge, NotFound, QuotaExceeded, StorageFull};
        let path = path.into();
        move |source| match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => CheckpointError::DiskFull { action, path, source },
            NotFound if action == "open" => CheckpointError::MissingFile { path },
            _ => CheckpointError::Io { action, path, source },
        }
    }
}
