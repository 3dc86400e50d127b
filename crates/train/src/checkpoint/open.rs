//! Finding, opening and verifying a checkpoint. Nothing that a file says is believed before it is checked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{CheckpointError, Fallback};
use super::manifest::{Manifest, TensorEntry, first_difference};
use super::names::{self, Kind, MANIFEST, parse_step_dir};
use super::save::check_pieces;
use super::shard::Shard;

/// An open checkpoint. Threads may share it.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) dir: PathBuf,
    pub(super) manifest: Manifest,
    /// In the order of `manifest.shards`.
    pub(super) shards: Vec<Shard>,
    pub(super) by_file: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens the newest checkpoint under `path`: a run directory, its `checkpoints` directory, or one `step-N`
    /// directory. Checks the manifest, every size, every header and that the pieces hold each element once, but not
    /// the hashes of the data.
    ///
    /// Saves that did not finish are passed over. A damaged checkpoint is not: falling back loses steps, so the error
    /// names the previous good one and leaves the choice to the user.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`], [`CheckpointError::Unfinished`], [`CheckpointError::Damaged`],
    /// [`CheckpointError::UnsupportedVersion`].
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open_with(path, false)
    }

    /// [`open`](Checkpoint::open), then [`verify`](Checkpoint::verify): reads every byte once.
    ///
    /// # Errors
    /// Those of [`open`](Checkpoint::open); a flipped bit anywhere is [`CheckpointError::Damaged`].
    pub fn open_verified(path: &Path) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open_with(path, true)
    }

    fn open_with(path: &Path, verified: bool) -> Result<Checkpoint, CheckpointError> {
        let dir = resolve(path)?;
        match load(&dir, verified) {
            Err(e @ CheckpointError::UnsupportedVersion { .. }) => Err(e),
            Err(problem) => {
                let fallback = Fallback(previous_good(&dir));
                Err(CheckpointError::Damaged { dir, problem: Box::new(problem), fallback })
            }
            checkpoint => checkpoint,
        }
    }

    /// Reads every shard and compares its hash with the manifest.
    ///
    /// # Errors
    /// [`CheckpointError::WrongHash`] names the first file that has changed.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        for (shard, entry) in self.shards.iter().zip(&self.manifest.shards) {
            let actual = shard.hash()?;
            if actual != entry.blake3 {
                let (path, expected) = (shard.path.clone(), entry.blake3.clone());
                return Err(CheckpointError::WrongHash { path, actual, expected });
            }
        }
        Ok(())
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All it says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry, CheckpointError> {
        self.manifest.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            dir: self.dir.clone(),
            tensor: name.to_owned(),
            count: self.manifest.tensors.len(),
        })
    }

    /// Checks that the checkpoint is of the model that `model` describes.
    ///
    /// # Errors
    /// [`CheckpointError::ModelMismatch`] names the first key that differs.
    pub fn check_model(&self, model: &Value) -> Result<(), CheckpointError> {
        match first_difference(&self.manifest.model, model) {
            None => Ok(()),
            Some((key, saved, wanted)) => {
                Err(CheckpointError::ModelMismatch { dir: self.dir.clone(), key, saved, wanted })
            }
        }
    }

    /// Checks that the checkpoint was trained with the tokenizer of this hash; one that recorded none passes.
    ///
    /// # Errors
    /// [`CheckpointError::TokenizerMismatch`].
    pub fn check_tokenizer(&self, hash: &str) -> Result<(), CheckpointError> {
        match &self.manifest.tokenizer_hash {
            Some(saved) if saved != hash => Err(CheckpointError::TokenizerMismatch {
                dir: self.dir.clone(),
                saved: saved.clone(),
                wanted: hash.to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

/// The newest checkpoint in a `checkpoints` directory that passes every check, hashes included; of those before a step
/// if one is given.
///
/// # Errors
/// The directory cannot be listed.
pub fn newest_good(
    checkpoints: &Path,
    before: Option<u64>,
) -> Result<Option<(u64, PathBuf)>, CheckpointError> {
    let listing = names::list(checkpoints)?;
    let mut candidates =
        listing.committed.into_iter().rev().filter(|(step, _)| before.is_none_or(|b| *step < b));
    Ok(candidates.find(|(_, dir)| load(dir, true).is_ok()))
}

fn previous_good(dir: &Path) -> Option<(u64, PathBuf)> {
    let (step, _) = parse_step_dir(dir)?;
    let parent = dir.parent()?;
    let checkpoints = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    newest_good(checkpoints, Some(step)).ok()?
}

/// The step directory that `path` means.
fn resolve(path: &Path) -> Result<PathBuf, CheckpointError> {
    if path.join(MANIFEST).exists() && !is_partial(path) {
        return Ok(path.to_owned());
    }
    if is_partial(path) {
        return Err(CheckpointError::Unfinished { path: path.to_owned() });
    }
    let inside = path.join("checkpoints");
    let checkpoints = if inside.is_dir() { inside.as_path() } else { path };
    let listing = names::list(checkpoints)?;
    if let Some((_, dir)) = listing.committed.last() {
        return Ok(dir.clone());
    }
    if path.is_dir() && parse_step_dir(path).is_some() {
        return Ok(path.to_owned()); // its manifest is gone: opening it says so
    }
    let partial = listing.leftovers.iter().filter(|(_, kind)| *kind == Kind::Partial).count();
    Err(CheckpointError::NotFound { path: path.to_owned(), partial })
}

fn is_partial(path: &Path) -> bool {
    matches!(parse_step_dir(path), Some((_, Kind::Partial | Kind::Removing)))
}

/// Opens one step directory.
fn load(dir: &Path, verified: bool) -> Result<Checkpoint, CheckpointError> {
    let path = dir.join(MANIFEST);
    let manifest = Manifest::load(&path)?;
    let bad = |reason: String| CheckpointError::BadManifest { path: path.clone(), reason };
    if parse_step_dir(dir).is_some_and(|(step, _)| step != manifest.step) {
        return Err(bad(format!("it is of step {}, its directory of another", manifest.step)));
    }
    let mut shards = Vec::new();
    let mut by_file = HashMap::new();
    for entry in &manifest.shards {
        if !names::is_shard_file(&entry.file) {
            return Err(bad(format!(
                "{:?} is not the name of a shard (shard-NNNNN.safetensors)",
                entry.file
            )));
        }
        if by_file.insert(entry.file.clone(), shards.len()).is_some() {
            return Err(bad(format!("shard {} is listed twice", entry.file)));
        }
        shards.push(Shard::open(dir.join(&entry.file), entry.bytes)?);
    }
    let bytes = manifest.shards.iter().fold(0u64, |n, s| n.saturating_add(s.bytes));
    check_pieces(&manifest, bytes, &mut |tensor, piece, len| {
        let shard = by_file.get(&piece.shard).and_then(|i| shards.get(*i));
        let shard: &Shard = shard.ok_or_else(|| bad(format!("{:?} is not among its shards", piece.shard)))?;
        let wanted = (tensor.dtype, (len * tensor.dtype.size_bytes()) as u64);
        match shard.region(&piece.key) {
            Some(region) if (region.dtype, region.bytes) == wanted => Ok(()),
            found => Err(CheckpointError::BadShard {
                path: shard.path.clone(),
                reason: format!(
                    "array `{}` should hold {len} elements of {}, found {}",
                    piece.key,
                    tensor.dtype,
                    found.map_or("none".into(), |r| format!("{} bytes of {}", r.bytes, r.dtype))
                ),
            }),
        }
    })?;
    let checkpoint = Checkpoint { dir: dir.to_owned(), manifest, shards, by_file };
    if verified {
        checkpoint.verify()?;
    }
    Ok(checkpoint)
}
