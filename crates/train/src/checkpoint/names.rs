//! Names of checkpoint directories and files, and what a directory listing says about them. A name in a manifest is
//! compared with the names made here and never used as a path otherwise.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::CheckpointError;

/// The file that makes a checkpoint whole.
pub(super) const MANIFEST: &str = "manifest.json";
/// Suffix of a save in progress.
const PARTIAL: &str = ".partial";
/// Suffix of a checkpoint that a save of the same step replaces.
const OLD: &str = ".old";
/// Suffix of a checkpoint that is being deleted.
const REMOVING: &str = ".removing";

/// What a directory in `checkpoints/` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Committed,
    Partial,
    Old,
    Removing,
}

/// `step-00000010` and its kin.
pub(super) fn dir_of(checkpoints: &Path, step: u64, kind: Kind) -> PathBuf {
    let suffix = match kind {
        Kind::Committed => "",
        Kind::Partial => PARTIAL,
        Kind::Old => OLD,
        Kind::Removing => REMOVING,
    };
    checkpoints.join(format!("step-{step:08}{suffix}"))
}

/// Where the checkpoint of `step` is once it is committed.
pub fn step_dir(checkpoints: &Path, step: u64) -> PathBuf {
    dir_of(checkpoints, step, Kind::Committed)
}

/// The directory that every rank writes its shard of `step` into, between [`begin`](super::begin) and
/// [`commit`](super::commit).
pub fn partial_dir(checkpoints: &Path, step: u64) -> PathBuf {
    dir_of(checkpoints, step, Kind::Partial)
}

/// Step and kind of a directory, `None` if the name is not one of ours.
pub(super) fn parse_step_dir(path: &Path) -> Option<(u64, Kind)> {
    let name = path.file_name()?.to_str()?;
    let digits: &str = name.strip_prefix("step-")?;
    let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
    let step = digits.parse().ok()?;
    [Kind::Committed, Kind::Partial, Kind::Old, Kind::Removing]
        .into_iter()
        .find(|kind| dir_of(Path::new(""), step, *kind).as_os_str() == name)
        .map(|kind| (step, kind))
}

/// The data file of a shard.
pub(super) fn shard_file(index: usize) -> String {
    format!("shard-{index:05}.safetensors")
}

/// The report beside it, which lives until the commit.
pub(super) fn report_file(index: usize) -> String {
    format!("shard-{index:05}.json")
}

/// Whether `name` is exactly what [`shard_file`] makes for some index: no separators, no dots before the suffix.
pub(super) fn is_shard_file(name: &str) -> bool {
    name.strip_prefix("shard-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|digits| digits.parse::<usize>().ok())
        .is_some_and(|index| shard_file(index) == name)
}

/// What lies in a `checkpoints` directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Whole checkpoints by ascending step. One that was moved aside counts while its successor is not in place.
    pub committed: Vec<(u64, PathBuf)>,
    /// Everything else of ours.
    pub leftovers: Vec<(u64, Kind)>,
}

/// Reads a `checkpoints` directory; one that does not exist is empty.
pub(super) fn list(checkpoints: &Path) -> Result<Listing, CheckpointError> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(checkpoints) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(listing),
        entries => entries.map_err(CheckpointError::io("list", checkpoints))?,
    };
    for entry in entries {
        let path = entry.map_err(CheckpointError::io("list", checkpoints))?.path();
        match parse_step_dir(&path) {
            Some((step, Kind::Committed)) if path.is_dir() => listing.committed.push((step, path)),
            Some((step, kind)) if path.is_dir() => listing.leftovers.push((step, kind)),
            _ => {}
        }
    }
    for (step, kind) in &listing.leftovers {
        if *kind == Kind::Old && !listing.committed.iter().any(|(s, _)| s == step) {
            listing.committed.push((*step, dir_of(checkpoints, *step, Kind::Old)));
        }
    }
    listing.committed.sort();
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for kind in [Kind::Committed, Kind::Partial, Kind::Old, Kind::Removing] {
            for step in [0, 10, 99_999_999, 123_456_789_012] {
                assert_eq!(parse_step_dir(&dir_of(Path::new("/a/b"), step, kind)), Some((step, kind)));
            }
        }
        for name in
            ["step-10", "step-", "step-0000000010", "step-00000010.x", "step-00000010.partial2", "x", ".."]
        {
            assert_eq!(parse_step_dir(Path::new(name)), None, "{name}");
        }
        assert!(is_shard_file("shard-00003.safetensors") && is_shard_file("shard-123456.safetensors"));
        for name in [
            "shard-3.safetensors",
            "../shard-00003.safetensors",
            "/etc/passwd",
            "shard-+0003.safetensors",
            "",
        ] {
            assert!(!is_shard_file(name), "{name}");
        }
    }
}
