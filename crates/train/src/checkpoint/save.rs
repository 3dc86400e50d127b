//! Writing a checkpoint: [`begin`], [`write_shard`] on every rank, [`commit`]. The caller has the barriers between
//! them, and the lock that keeps a second run away ([`RunDir`](crate::run_dir::RunDir)).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use mesh::Tile;
use serde::{Deserialize, Serialize};

use super::cover::{self, Cover, Fault};
use super::dtype::DType;
use super::error::CheckpointError;
use super::files;
use super::manifest::{FORMAT_VERSION, Manifest, Piece, ShardEntry, TensorEntry};
use super::names::{self, Kind, MANIFEST, dir_of, partial_dir, report_file, shard_file};
use super::shard::{self, Content, METADATA_KEY};

/// Largest report that is read.
const MAX_REPORT_BYTES: u64 = 1 << 30;

/// A buffer that one rank holds and is to write.
#[derive(Debug, Clone)]
pub struct LocalTensor<'a> {
    /// Name of the global tensor: `layers.0.attention.query.weight`, `first_moment:...`.
    pub name: &'a str,
    /// The elements that the buffer holds.
    pub tile: Tile,
    /// Their bytes in local order, padding included.
    pub data: &'a [u8],
    /// Their type.
    pub dtype: DType,
}

/// What one rank wrote. It lies beside the shard as JSON until the commit, so ranks need no channel to rank 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Number of the shard.
    pub index: usize,
    /// Its file; `None` if the rank had nothing to write.
    pub shard: Option<ShardEntry>,
    /// Its pieces.
    pub pieces: Vec<PieceReport>,
}

/// One piece of a [`ShardReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceReport {
    /// Name of the tensor.
    pub tensor: String,
    /// Name of the array in the file.
    pub key: String,
    /// Type of the elements.
    pub dtype: DType,
    /// Which elements.
    pub tile: Tile,
}

/// A finished save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The checkpoint.
    pub dir: PathBuf,
    /// Bytes of its shards.
    pub bytes: u64,
    /// Checkpoints that were removed because there are newer ones.
    pub removed: Vec<PathBuf>,
    /// Directories that should be gone and could not be removed, with the reason; the next save tries again.
    pub not_removed: Vec<(PathBuf, String)>,
}

/// Rank 0, before the first barrier: removes leftovers of earlier saves and creates the directory to write into.
///
/// # Errors
/// Whatever the file system refuses; the checkpoints that exist are not touched.
pub fn begin(checkpoints: &Path, step: u64) -> Result<PathBuf, CheckpointError> {
    files::create_dirs(checkpoints)?;
    for (leftover, kind) in names::list(checkpoints)?.leftovers {
        let path = dir_of(checkpoints, leftover, kind);
        let successor = dir_of(checkpoints, leftover, Kind::Committed);
        if kind == Kind::Old && !successor.exists() {
            files::rename(&path, &successor)?;
        } else {
            files::remove_tree(&path)?;
        }
    }
    let partial = partial_dir(checkpoints, step);
    files::create_dir(&partial)?;
    files::sync_dir(checkpoints)?;
    Ok(partial)
}

/// Every rank, between the barriers: writes the buffers it owns into shard `index` of the save in `partial`
/// ([`partial_dir`]).
///
/// Replicated tensors are written by one of the replicas; padding is not written. A rank that owns nothing calls this
/// with an empty list.
///
/// # Errors
/// A full disk and other refusals; tiles, buffers and names that cannot be saved. Rank 0 may then [`abandon`] the
/// save, or leave it to the next [`begin`].
pub fn write_shard(
    partial: &Path,
    index: usize,
    tensors: &[LocalTensor],
) -> Result<ShardReport, CheckpointError> {
    let mut contents = Vec::new();
    let mut pieces = Vec::new();
    let mut keys = BTreeSet::new();
    for tensor in tensors {
        let real_len = check_local(tensor)?;
        if real_len == 0 && tensor.tile.global_len() != 0 {
            continue;
        }
        let mut key = tensor.name.to_owned();
        let mut again = 1;
        while !keys.insert(key.clone()) {
            again += 1;
            key = format!("{}#{again}", tensor.name);
        }
        let tile = &tensor.tile;
        pieces.push(PieceReport {
            tensor: tensor.name.into(),
            key: key.clone(),
            dtype: tensor.dtype,
            tile: tile.clone(),
        });
        contents.push(Content { key, dtype: tensor.dtype, tile, real_len, data: tensor.data });
    }
    let shard = if contents.is_empty() {
        None
    } else {
        let file = shard_file(index);
        let path = partial.join(&file);
        let (bytes, blake3) = shard::write(&path, &mut contents).inspect_err(|_| {
            let _ = files::remove_file(&path); // gives space back; the next `begin` removes it otherwise
        })?;
        Some(ShardEntry { file, bytes, blake3 })
    };
    let report = ShardReport { index, shard, pieces };
    let path = partial.join(report_file(index));
    let text = serde_json::to_vec(&report).map_err(|e| CheckpointError::io("encode", &path)(e.into()))?;
    files::write_whole(&path, &text)?;
    files::sync_dir(partial)?;
    Ok(report)
}

/// Number of real elements of a buffer that may be saved.
fn check_local(tensor: &LocalTensor) -> Result<usize, CheckpointError> {
    let name = || tensor.name.to_owned();
    if tensor.name == METADATA_KEY || tensor.name.is_empty() {
        let reason = "safetensors reserves it";
        return Err(CheckpointError::BadName { tensor: name(), reason });
    }
    cover::check_tile(&tensor.tile, &tensor.tile.global_shape())
        .map_err(|reason| CheckpointError::BadTile { tensor: name(), reason })?;
    let expected = tensor.tile.local_len().saturating_mul(tensor.dtype.size_bytes());
    if tensor.data.len() != expected {
        return Err(CheckpointError::WrongBuffer { tensor: name(), actual: tensor.data.len(), expected });
    }
    Ok(tensor.tile.real_len())
}

/// Rank 0, after every rank has returned from [`write_shard`]: makes the save of `manifest.step` the newest
/// checkpoint, then keeps the `keep` newest ones (at least one).
///
/// Checkpoints of later steps are removed too: they belong to a history that this run has left behind by resuming from
/// an earlier step.
///
/// # Errors
/// A rank whose report is missing, pieces that do not hold each element exactly once, refusals of the file system. The
/// checkpoints that exist are then untouched. Old checkpoints that cannot be removed are no error:
/// [`Committed::not_removed`].
pub fn commit(
    checkpoints: &Path,
    num_shards: usize,
    mut manifest: Manifest,
    keep: usize,
) -> Result<Committed, CheckpointError> {
    let step = manifest.step;
    let partial = partial_dir(checkpoints, step);
    let written = Manifest::new(serde_json::Value::Null, step);
    manifest.format_version = FORMAT_VERSION;
    manifest.phalanx_version = written.phalanx_version;
    manifest.tensors.clear();
    manifest.shards.clear();
    for index in 0..num_shards {
        let report = read_report(&partial, index, num_shards)?;
        add_report(&mut manifest, &partial, report)?;
    }
    let bytes = manifest.shards.iter().fold(0u64, |n, s| n.saturating_add(s.bytes));
    check_pieces(&manifest, bytes, &mut |_, _, _| Ok(()))?;

    let path = partial.join(MANIFEST);
    let text = manifest.seal().map_err(|e| CheckpointError::io("encode", &path)(e.into()))?;
    files::write_whole(&path, &text)?;
    for index in 0..num_shards {
        files::remove_file(&partial.join(report_file(index)))?;
    }
    files::sync_dir(&partial)?;
    let dir = dir_of(checkpoints, step, Kind::Committed);
    if dir.exists() {
        files::rename(&dir, &dir_of(checkpoints, step, Kind::Old))?;
    }
    files::rename(&partial, &dir)?;
    files::sync_dir(checkpoints)?;

    let mut committed = Committed { dir, bytes, removed: Vec::new(), not_removed: Vec::new() };
    prune(checkpoints, step, keep.max(1), &mut committed);
    Ok(committed)
}

/// Rank 0, after a failed save: gives its space back now rather than at the next [`begin`].
///
/// # Errors
/// The directory cannot be removed.
pub fn abandon(checkpoints: &Path, step: u64) -> Result<(), CheckpointError> {
    let partial = partial_dir(checkpoints, step);
    if partial.exists() { files::remove_tree(&partial) } else { Ok(()) }
}

/// The three parts of a save in one call, for a world of one rank.
///
/// # Errors
/// Those of [`begin`], [`write_shard`] and [`commit`]; what was written is removed.
pub fn save(
    checkpoints: &Path,
    manifest: Manifest,
    tensors: &[LocalTensor],
    keep: usize,
) -> Result<Committed, CheckpointError> {
    let step = manifest.step;
    let partial = begin(checkpoints, step)?;
    write_shard(&partial, 0, tensors).and_then(|_| commit(checkpoints, 1, manifest, keep)).inspect_err(|_| {
        let _ = abandon(checkpoints, step); // the first error is the one to report
    })
}

fn read_report(partial: &Path, index: usize, num_shards: usize) -> Result<ShardReport, CheckpointError> {
    let path = partial.join(report_file(index));
    let missing = || CheckpointError::MissingReport { dir: partial.to_owned(), index, num_shards };
    let bytes = fs::metadata(&path).map_err(|_| missing())?.len();
    let bad = |reason: String| CheckpointError::BadShard { path: path.clone(), reason };
    if bytes > MAX_REPORT_BYTES {
        return Err(bad(format!("a report of {bytes} bytes")));
    }
    let text = fs::read(&path).map_err(CheckpointError::io("read", &path))?;
    let report: ShardReport = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let file = report.shard.as_ref().map(|s| s.file.as_str());
    if report.index != index || file.is_some_and(|f| f != shard_file(index)) {
        return Err(bad(format!("it reports shard {} in file {file:?}", report.index)));
    }
    Ok(report)
}

fn add_report(manifest: &mut Manifest, partial: &Path, report: ShardReport) -> Result<(), CheckpointError> {
    let Some(shard) = report.shard else { return Ok(()) };
    let path = partial.join(&shard.file);
    let actual = fs::metadata(&path).map_err(CheckpointError::io("open", &path))?.len();
    if actual != shard.bytes {
        return Err(CheckpointError::WrongSize { path, actual, expected: shard.bytes });
    }
    for piece in report.pieces {
        let shape = piece.tile.global_shape();
        let entry = manifest.tensors.entry(piece.tensor.clone()).or_insert_with(|| TensorEntry {
            dtype: piece.dtype,
            shape: shape.clone(),
            pieces: Vec::new(),
        });
        if (entry.dtype, &entry.shape) != (piece.dtype, &shape) {
            return Err(CheckpointError::Conflict {
                tensor: piece.tensor,
                index: report.index,
                found: format!("{}{shape:?}", piece.dtype),
                expected: format!("{}{:?}", entry.dtype, entry.shape),
            });
        }
        entry.pieces.push(Piece { shard: shard.file.clone(), key: piece.key, tile: piece.tile });
    }
    manifest.shards.push(shard);
    Ok(())
}

/// Checks that the pieces of each tensor hold each element once and that they can fit `bytes`; gives each piece with
/// its number of real elements to `visit`.
pub(super) fn check_pieces(
    manifest: &Manifest,
    bytes: u64,
    visit: &mut dyn FnMut(&TensorEntry, &Piece, usize) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut cover = Cover::default();
    for (name, entry) in &manifest.tensors {
        let tensor = || name.clone();
        let size = entry.dtype.size_bytes();
        let needed = cover::num_elements(&entry.shape).and_then(|n| n.checked_mul(size));
        if needed.is_none_or(|n| n as u64 > bytes) {
            let reason = format!("shape {:?} needs more than the {bytes} bytes of all shards", entry.shape);
            return Err(CheckpointError::BadTile { tensor: tensor(), reason });
        }
        let tiles = entry.pieces.iter().map(|p| p.tile.clone()).collect();
        let lens = cover.check(&entry.shape, tiles).map_err(|fault| match fault {
            Fault::Tile { piece, reason } => {
                CheckpointError::BadTile { tensor: tensor(), reason: format!("piece {piece}: {reason}") }
            }
            Fault::Overlap { piece, element } => {
                CheckpointError::Overlap { tensor: tensor(), element, piece }
            }
            Fault::Hole { element, covered, total } => {
                CheckpointError::Hole { tensor: tensor(), element, covered, total }
            }
        })?;
        for (piece, len) in entry.pieces.iter().zip(lens) {
            visit(entry, piece, *len)?;
        }
    }
    Ok(())
}

/// Removes what the checkpoint of `step` has replaced. It is durable by now, so failures are only recorded.
fn prune(checkpoints: &Path, step: u64, keep: usize, committed: &mut Committed) {
    let listing = match names::list(checkpoints) {
        Ok(listing) => listing,
        Err(e) => return committed.not_removed.push((checkpoints.to_owned(), e.to_string())),
    };
    let older = listing.committed.iter().rev().filter(|(s, _)| *s <= step).skip(keep);
    let later = listing.committed.iter().filter(|(s, _)| *s > step);
    for (s, path) in older.chain(later) {
        let doomed = dir_of(checkpoints, *s, Kind::Removing);
        let result = if doomed.exists() { files::remove_tree(&doomed) } else { Ok(()) };
        match result.and_then(|()| files::rename(path, &doomed)).and_then(|()| files::remove_tree(&doomed)) {
            Ok(()) => committed.removed.push(path.clone()),
            Err(e) => committed.not_removed.push((path.clone(), e.to_string())),
        }
    }
    let replaced = dir_of(checkpoints, step, Kind::Old);
    if replaced.exists()
        && let Err(e) = files::remove_tree(&replaced)
    {
        committed.not_removed.push((replaced, e.to_string()));
    }
}
