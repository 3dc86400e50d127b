//! One shard file: safetensors with 1-D arrays. Writes it synced and hashed; reads its header without trusting it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mesh::Tile;
use serde::Deserialize;
use serde_json::json;

use super::dtype::DType;
use super::error::CheckpointError;
use super::files::HashedFile;

/// Largest header that the safetensors format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The one key of a header that is not a tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";
/// Bytes read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The real elements of one buffer, to be written.
pub(super) struct Content<'a> {
    pub key: String,
    pub dtype: DType,
    pub tile: &'a Tile,
    pub real_len: usize,
    pub data: &'a [u8],
}

/// Writes a shard and makes it durable; returns its size and hash. Wide elements come first so that all are aligned.
pub(super) fn write(path: &Path, contents: &mut [Content]) -> Result<(u64, String), CheckpointError> {
    contents.sort_by(|a, b| {
        (Reverse(a.dtype.size_bytes()), &a.key).cmp(&(Reverse(b.dtype.size_bytes()), &b.key))
    });
    let mut header = serde_json::Map::new();
    header.insert(METADATA_KEY.into(), json!({ "written_by": "phalanx checkpoint" }));
    let mut at = 0;
    for content in contents.iter() {
        let end = at + content.real_len * content.dtype.size_bytes();
        let entry =
            json!({ "dtype": content.dtype.name(), "shape": [content.real_len], "data_offsets": [at, end] });
        header.insert(content.key.clone(), entry);
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut file = HashedFile::create(path)?;
    write_contents(&mut file, &text, contents)
        .and_then(|()| file.finish())
        .map_err(CheckpointError::io("write", path))
}

fn write_contents(file: &mut HashedFile, header: &str, contents: &[Content]) -> io::Result<()> {
    file.push(&(header.len() as u64).to_le_bytes())?;
    file.push(header.as_bytes())?;
    for content in contents {
        let size = content.dtype.size_bytes();
        if content.real_len * size == content.data.len() {
            file.push(content.data)?;
            continue;
        }
        let mut result = Ok(());
        content.tile.for_each_run(|run| {
            if result.is_ok() {
                result = file.push(&content.data[run.local * size..(run.local + run.len) * size]);
            }
        });
        result?;
    }
    Ok(())
}

/// Where an array lies in a shard file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    pub dtype: DType,
    pub start: u64,
    pub bytes: u64,
}

/// An open shard whose header has been checked.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    file: File,
    bytes: u64,
    regions: BTreeMap<String, Region>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Shard {
    /// Opens a file that must have `expected_bytes`, and reads where its arrays are.
    pub(super) fn open(path: PathBuf, expected_bytes: u64) -> Result<Shard, CheckpointError> {
        // asked before it is opened: opening a pipe would wait for ever
        let meta = std::fs::metadata(&path).map_err(CheckpointError::io("open", &path))?;
        if !meta.is_file() {
            return Err(CheckpointError::BadShard { path, reason: "it is not a regular file".into() });
        }
        let file = File::open(&path).map_err(CheckpointError::io("open", &path))?;
        let actual = file.metadata().map_err(CheckpointError::io("open", &path))?.len();
        if actual != expected_bytes {
            return Err(CheckpointError::WrongSize { path, actual, expected: expected_bytes });
        }
        match read_header(&file, actual) {
            Ok(regions) => Ok(Shard { path, file, bytes: actual, regions }),
            Err(Problem::Io(e)) => Err(CheckpointError::io("read", path)(e)),
            Err(Problem::Format(reason)) => Err(CheckpointError::BadShard { path, reason }),
        }
    }

    /// The array called `key`.
    pub(super) fn region(&self, key: &str) -> Option<Region> {
        self.regions.get(key).copied()
    }

    /// Hash of the bytes that are on disk now.
    pub(super) fn hash(&self) -> Result<String, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut section = Section { file: &self.file, at: 0, end: self.bytes };
        loop {
            match section.read(&mut chunk).map_err(CheckpointError::io("read", &self.path))? {
                0 => return Ok(hasher.finalize().to_hex().to_string()),
                n => hasher.update(&chunk[..n]),
            };
        }
    }

    /// Copies the elements of `tile`, stored in `region` in run order, to where `place` says they start in `out` (an
    /// element index from a run).
    pub(super) fn copy(
        &self,
        region: Region,
        tile: &Tile,
        out: &mut [u8],
        place: impl Fn(mesh::Run) -> usize,
    ) -> Result<(), CheckpointError> {
        let size = region.dtype.size_bytes();
        let section = Section { file: &self.file, at: region.start, end: region.start + region.bytes };
        let mut reader = BufReader::with_capacity(CHUNK_BYTES.min(region.bytes as usize), section);
        let mut result = Ok(());
        tile.for_each_run(|run| {
            if result.is_ok() {
                let at = place(run) * size;
                result = reader.read_exact(&mut out[at..at + run.len * size]);
            }
        });
        result.map_err(CheckpointError::io("read", &self.path))
    }
}

enum Problem {
    Io(io::Error),
    Format(String),
}

fn read_header(file: &File, file_bytes: u64) -> Result<BTreeMap<String, Region>, Problem> {
    let bad = |reason: String| Err(Problem::Format(reason));
    let mut length = [0; 8];
    if file_bytes < 8 {
        return bad(format!("{file_bytes} bytes hold no safetensors header"));
    }
    file.read_exact_at(&mut length, 0).map_err(Problem::Io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
        return bad(format!("a header of {length} bytes does not fit a file of {file_bytes}"));
    }
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, 8).map_err(Problem::Io)?;
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(|e| Problem::Format(format!("its header is not JSON: {e}")))?;
    header.remove(METADATA_KEY);
    let data_start = 8 + length;
    let data_bytes = file_bytes - data_start;
    let mut regions = BTreeMap::new();
    for (key, value) in header {
        let raw = RawEntry::deserialize(value).map_err(|e| Problem::Format(format!("entry `{key}`: {e}")))?;
        let Some(dtype) = DType::from_name(&raw.dtype) else {
            return bad(format!("entry `{key}` has type `{}`; known are F32, F64, I32", raw.dtype));
        };
        let (start, end) = raw.data_offsets;
        let bytes = raw.shape.iter().try_fold(dtype.size_bytes() as u64, |n, d| n.checked_mul(*d));
        if start > end || end > data_bytes || bytes != Some(end - start) {
            return bad(format!(
                "entry `{key}` of shape {:?} cannot lie at bytes {start}..{end} of {data_bytes}",
                raw.shape
            ));
        }
        regions.insert(key, Region { dtype, start: data_start + start, bytes: end - start });
    }
    let mut order: Vec<&Region> = regions.values().collect();
    order.sort_by_key(|r| (r.start, r.bytes));
    let end = order.iter().try_fold(data_start, |at, r| (r.start == at).then_some(at + r.bytes));
    if end != Some(file_bytes) {
        return bad("its arrays overlap or leave gaps".into());
    }
    Ok(regions)
}

/// A stretch of a file as a reader that shares the file with other threads.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut out[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
