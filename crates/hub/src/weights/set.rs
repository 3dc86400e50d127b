//! The weights of a directory: one file, or shards with an index. Files are mapped; nothing is copied until it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use memory::{MappedFile, MemoryError};
use serde::Deserialize;

use super::dtype::decode;
use super::header::{Header, Problem};
use super::json::Members;
use super::{Real, StoredType};
use crate::HubError;

/// Name of the weights if they are one file.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index if they are several.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// Other projects' forms of weights, named when ours is missing.
const OTHER_FORMS: [&str; 4] =
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];

/// The tensors of one or several safetensors files, mapped and checked.
///
/// The files must not be changed while this lives.
#[derive(Debug)]
pub struct Weights {
    /// What was asked for: a directory or a file.
    path: PathBuf,
    files: Vec<(MappedFile, Header)>,
    /// File of each tensor.
    tensors: BTreeMap<String, usize>,
}

/// A stored tensor: elements are little-endian, row-major, and lie in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The file it lies in.
    pub path: &'a Path,
    /// Type of its elements.
    pub dtype: StoredType,
    /// Sizes of its dims.
    pub shape: &'a [usize],
    /// Its elements.
    pub bytes: &'a [u8],
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Members<String>,
}

impl Weights {
    /// Opens `model.safetensors` of a directory, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// No weights, a missing shard, an index that names files elsewhere, a file that is not safetensors or whose
    /// header does not fit it. Each error names the file, and the tensor if there is one.
    pub fn open(dir: &Path) -> Result<Weights, HubError> {
        let single = dir.join(SINGLE_FILE);
        if single.exists() {
            return Ok(Weights { path: dir.to_path_buf(), ..Weights::open_file(&single)? });
        }
        let index = dir.join(INDEX_FILE);
        if index.exists() {
            return Weights::open_sharded(dir, &index);
        }
        let present = OTHER_FORMS.into_iter().find(|name| dir.join(name).exists());
        Err(HubError::NoWeights { dir: dir.to_path_buf(), present })
    }

    /// Opens one safetensors file, such as a batch.
    ///
    /// # Errors
    /// As for [`Weights::open`].
    pub fn open_file(path: &Path) -> Result<Weights, HubError> {
        let (map, header) = open_one(path)?;
        let tensors = header.entries.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Weights { path: path.to_path_buf(), files: vec![(map, header)], tensors })
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Weights, HubError> {
        let bytes = read_regular(index)?;
        let raw: RawIndex = serde_json::from_slice(&bytes)
            .map_err(|e| HubError::Index { path: index.to_path_buf(), reason: e.to_string() })?;
        drop(bytes);
        let members = raw.weight_map.0;
        // every name is checked before the first file is touched
        for (tensor, shard) in &members {
            if !is_plain_name(shard) {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(HubError::ShardName { path: index.to_path_buf(), tensor, shard });
            }
        }
        let mut files = Vec::new();
        let mut tensors: BTreeMap<String, usize> = BTreeMap::new();
        let mut number = BTreeMap::new();
        let shards: BTreeSet<&String> = members.iter().map(|(_, shard)| shard).collect();
        for shard in shards {
            let path = dir.join(shard);
            if !path.exists() {
                return Err(HubError::MissingShard { path, index: index.to_path_buf() });
            }
            let (map, header) = open_one(&path)?;
            for tensor in header.entries.keys() {
                if let Some(other) = tensors.insert(tensor.clone(), files.len()) {
                    let (first, _): &(MappedFile, Header) = &files[other];
                    return Err(HubError::Duplicate {
                        tensor: tensor.clone(),
                        first: first.path().to_path_buf(),
                        second: path,
                    });
                }
            }
            number.insert(shard.as_str(), files.len());
            files.push((map, header));
        }
        if let Some((tensor, shard)) =
            members.iter().find(|(tensor, shard)| tensors.get(tensor.as_str()) != number.get(shard.as_str()))
        {
            return Err(HubError::NotInShard {
                path: dir.join(shard),
                tensor: tensor.clone(),
                index: index.to_path_buf(),
            });
        }
        Ok(Weights { path: dir.to_path_buf(), files, tensors })
    }

    /// The directory or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, file) = self.tensors.get_key_value(name)?;
        let (map, header) = self.files.get(*file)?;
        let entry = header.entries.get(name)?;
        let bytes = map.as_bytes().get(entry.start..entry.start + entry.bytes)?;
        Some(Tensor { name, path: map.path(), dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.names().filter_map(|name| self.get(name))
    }
}

impl Tensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All elements, converted.
    ///
    /// # Errors
    /// If they are not floating-point numbers.
    pub fn reals<T: Real>(&self) -> Result<Vec<T>, HubError> {
        if !self.dtype.is_real() {
            return Err(self.wrong_type("F16, BF16, F32 or F64"));
        }
        Ok((0..self.len()).filter_map(|i| decode(self.dtype, self.bytes, i)).map(T::from_f64).collect())
    }

    /// All elements of a tensor of integers.
    ///
    /// # Errors
    /// If they are not `BOOL`, `U8`, `I32` or `I64`, the types that ids, masks and labels come in.
    pub fn integers(&self) -> Result<Vec<i64>, HubError> {
        match self.dtype {
            StoredType::Bool | StoredType::U8 => Ok(self.bytes.iter().map(|b| i64::from(*b)).collect()),
            StoredType::I32 => {
                Ok(self.bytes.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect())
            }
            StoredType::I64 => {
                Ok(self.bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
            }
            _ => Err(self.wrong_type("I64, I32, U8 or BOOL")),
        }
    }

    fn wrong_type(&self, wanted: &'static str) -> HubError {
        HubError::WrongType {
            path: self.path.to_path_buf(),
            tensor: self.name.to_owned(),
            actual: self.dtype,
            wanted,
        }
    }
}

fn open_one(path: &Path) -> Result<(MappedFile, Header), HubError> {
    regular(path)?;
    let map = memory::map_file(path).map_err(|e| match e {
        MemoryError::Map { path, source } => HubError::Read { path, source },
        other => HubError::Read { path: path.to_path_buf(), source: io::Error::other(other) },
    })?;
    match Header::parse(map.as_bytes()) {
        Ok(header) => Ok((map, header)),
        Err(Problem { tensor: None, reason }) => Err(HubError::File { path: path.to_path_buf(), reason }),
        Err(Problem { tensor: Some(tensor), reason }) => {
            Err(HubError::Tensor { path: path.to_path_buf(), tensor, reason })
        }
    }
}

/// Asks before opening: opening a pipe would wait for ever.
fn regular(path: &Path) -> Result<(), HubError> {
    let meta = fs::metadata(path).map_err(|source| HubError::Read { path: path.to_path_buf(), source })?;
    if meta.is_file() { Ok(()) } else { Err(HubError::NotAFile { path: path.to_path_buf() }) }
}

/// Reads a text file of a directory whole.
pub(crate) fn read_regular(path: &Path) -> Result<Vec<u8>, HubError> {
    regular(path)?;
    fs::read(path).map_err(|source| HubError::Read { path: path.to_path_buf(), source })
}

/// Whether a shard's name is that of a file right in the directory, on any system.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards() {
        for good in ["model-00001-of-00002.safetensors", "a", "..a", "名.safetensors"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "../../x", "/etc/passwd", "a/b", "a\\b", "C:x", "./a", "a/", "a\0"]
        {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
