//! Directories out: safetensors in shards, the index, `config.json`, and the tokenizer's files beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::weights::{INDEX_FILE, METADATA, SINGLE_FILE, encode};
use crate::{Config, HubError, Parameter, Real, StoredType, Table, Task, Weights};

/// Files beside the weights that make a checkpoint usable; copied as they are.
pub(crate) const COMPANIONS: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "generation_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
];
/// The alignment of a header's end, and so of wide elements.
const ALIGN: usize = 8;

/// What a directory is written from.
#[derive(Debug, Clone, Copy)]
pub struct Export<'a> {
    /// What the model is.
    pub config: &'a Config,
    /// What it is saved for.
    pub task: Task,
    /// Its names.
    pub table: &'a Table,
    /// Type of the stored elements; a real one.
    pub dtype: StoredType,
    /// Largest size of a file of weights; a tensor that is larger has a file of its own.
    pub max_shard_bytes: u64,
    /// Tensors to copy as they are, such as a pooler that the task does not use: their files and names.
    pub carry: Option<(&'a Weights, &'a [String])>,
    /// A directory whose tokenizer and other small files are copied.
    pub companions: Option<&'a Path>,
}

/// A tensor to be written by [`write_tensors`].
#[derive(Debug, Clone)]
pub struct NewTensor<'a> {
    /// Its name.
    pub name: String,
    /// Sizes of its dims.
    pub shape: Vec<usize>,
    /// Type of its elements.
    pub dtype: StoredType,
    /// Its elements, little-endian, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl NewTensor<'_> {
    /// A tensor of real numbers, stored as `dtype` (a real one).
    pub fn reals<T: Real>(name: impl Into<String>, shape: &[usize], dtype: StoredType, values: &[T]) -> Self {
        let mut bytes = vec![0; values.len() * dtype.size_bytes()];
        for (i, value) in values.iter().enumerate() {
            encode(dtype, &mut bytes, i, value.to_f64());
        }
        NewTensor { name: name.into(), shape: shape.to_vec(), dtype, bytes: bytes.into() }
    }
}

impl Table {
    /// Names and shapes of the stored tensors, sorted by name.
    pub fn tensors(&self) -> BTreeMap<&str, &[usize]> {
        self.parameters().iter().map(|p| (p.piece.tensor(), p.piece.tensor_shape())).collect()
    }

    /// The elements of a stored tensor, put together from the parameters that are its pieces. `source` gives a
    /// parameter's elements, row-major.
    ///
    /// # Errors
    /// Those of `source`; too few or too many elements.
    pub fn assemble<T: Real, E: From<HubError>>(
        &self,
        tensor: &str,
        dtype: StoredType,
        source: &mut impl FnMut(&Parameter) -> Result<Vec<T>, E>,
    ) -> Result<Vec<u8>, E> {
        let mut bytes = Vec::new();
        for parameter in self.parameters().iter().filter(|p| p.piece.tensor() == tensor) {
            let piece = &parameter.piece;
            if bytes.is_empty() {
                bytes = vec![0; piece.tensor_shape().iter().product::<usize>() * dtype.size_bytes()];
            }
            let values = source(parameter)?;
            if values.len() != piece.len() {
                let (name, expected) = (parameter.name.clone(), piece.len());
                return Err(HubError::Elements { name, expected, actual: values.len() }.into());
            }
            piece.for_each(0..values.len(), |i, at| encode(dtype, &mut bytes, at, values[i].to_f64()));
        }
        Ok(bytes)
    }
}

/// A tensor of the directory before its bytes are made.
struct Planned<'a> {
    name: &'a str,
    shape: &'a [usize],
    dtype: StoredType,
    bytes: u64,
    carried: Option<&'a [u8]>,
}

impl Export<'_> {
    /// Writes the directory. `source` gives the elements of a parameter, row-major; it is asked tensor by tensor.
    ///
    /// Every file appears whole or not at all, `config.json` last.
    ///
    /// # Errors
    /// Those of `source`; a file that cannot be written or copied.
    pub fn write<T: Real, E: From<HubError>>(
        &self,
        dir: &Path,
        mut source: impl FnMut(&Parameter) -> Result<Vec<T>, E>,
    ) -> Result<(), E> {
        fs::create_dir_all(dir).map_err(writing(dir))?;
        let planned = self.plan();
        let shards = self.shards(&planned);
        let mut weight_map = Map::new();
        for (number, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => SINGLE_FILE.to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", number + 1),
            };
            let entries: Vec<_> = shard.iter().map(|t| (t.name, t.dtype, t.shape)).collect();
            write_file(&dir.join(&name), &entries, |i| match shard[i].carried {
                Some(bytes) => Ok(Cow::Borrowed(bytes)),
                None => self.table.assemble(shard[i].name, self.dtype, &mut source).map(Cow::Owned),
            })?;
            weight_map.extend(shard.iter().map(|t| (t.name.to_owned(), name.as_str().into())));
        }
        // the other form would be read instead of, or beside, the one just written
        let stale = if shards.len() == 1 { INDEX_FILE } else { SINGLE_FILE };
        if shards.len() > 1 {
            let total: u64 = planned.iter().map(|t| t.bytes).sum();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            write_text(&dir.join(INDEX_FILE), &format!("{index:#}\n"))?;
        }
        let stale = dir.join(stale);
        if stale.exists() {
            fs::remove_file(&stale).map_err(writing(&stale))?;
        }
        self.copy_companions(dir)?;
        let config = self.config.to_json(self.task, self.dtype);
        Ok(write_text(&dir.join(crate::config::CONFIG_FILE), &config)?)
    }

    fn plan(&self) -> Vec<Planned<'_>> {
        let mut planned: BTreeMap<&str, Planned<'_>> = BTreeMap::new();
        if let Some((weights, names)) = self.carry {
            for tensor in names.iter().filter_map(|name| weights.get(name)) {
                planned.insert(
                    tensor.name,
                    Planned {
                        name: tensor.name,
                        shape: tensor.shape,
                        dtype: tensor.dtype,
                        bytes: tensor.bytes.len() as u64,
                        carried: Some(tensor.bytes),
                    },
                );
            }
        }
        for (name, shape) in self.table.tensors() {
            let bytes = shape.iter().product::<usize>() as u64 * self.dtype.size_bytes() as u64;
            planned.insert(name, Planned { name, shape, dtype: self.dtype, bytes, carried: None });
        }
        planned.into_values().collect()
    }

    /// Fills one file after another, by name.
    fn shards<'a>(&self, planned: &'a [Planned<'a>]) -> Vec<Vec<&'a Planned<'a>>> {
        let mut shards: Vec<Vec<&Planned<'_>>> = vec![Vec::new()];
        let mut size = 0;
        for tensor in planned {
            if size > 0 && size + tensor.bytes > self.max_shard_bytes {
                shards.push(Vec::new());
                size = 0;
            }
            size += tensor.bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        shards
    }

    fn copy_companions(&self, dir: &Path) -> Result<(), HubError> {
        let Some(from) = self.companions else { return Ok(()) };
        for name in COMPANIONS {
            let (from, to) = (from.join(name), dir.join(name));
            if from.is_file() && from != to {
                let content = fs::read(&from).map_err(|source| HubError::Read { path: from, source })?;
                write_bytes(&to, &content)?;
            }
        }
        Ok(())
    }
}

/// Writes one safetensors file, such as gradients. Tensors are stored widest elements first, then by name.
///
/// # Errors
/// A file that cannot be written.
pub fn write_tensors(path: &Path, tensors: &[NewTensor<'_>]) -> Result<(), HubError> {
    let mut order: Vec<&NewTensor<'_>> = tensors.iter().collect();
    order.sort_by_key(|t| (std::cmp::Reverse(t.dtype.size_bytes()), &t.name));
    let entries: Vec<_> = order.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
    write_file(path, &entries, |i| Ok(Cow::Borrowed(order[i].bytes.as_ref())))
}

fn write_file<'b, E: From<HubError>>(
    path: &Path,
    entries: &[(&str, StoredType, &[usize])],
    mut bytes_of: impl FnMut(usize) -> Result<Cow<'b, [u8]>, E>,
) -> Result<(), E> {
    let mut header = Map::new();
    // `transformers` refuses files that do not say this
    header.insert(METADATA.into(), json!({ "format": "pt" }));
    let mut at = 0;
    for (name, dtype, shape) in entries {
        let end = at + shape.iter().product::<usize>() * dtype.size_bytes();
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [at, end] });
        header.insert((*name).to_owned(), entry);
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(ALIGN) - text.len()));
    let (temporary, file) = Temporary::create(path)?;
    let mut file = BufWriter::new(file);
    let push = |file: &mut BufWriter<File>, bytes: &[u8]| file.write_all(bytes).map_err(writing(path));
    push(&mut file, &(text.len() as u64).to_le_bytes())?;
    push(&mut file, text.as_bytes())?;
    for (i, (name, dtype, shape)) in entries.iter().enumerate() {
        let bytes = bytes_of(i)?;
        let expected = shape.iter().product::<usize>();
        if bytes.len() != expected * dtype.size_bytes() {
            let actual = bytes.len() / dtype.size_bytes();
            return Err(HubError::Elements { name: (*name).to_owned(), expected, actual }.into());
        }
        push(&mut file, &bytes)?;
    }
    let file = file.into_inner().map_err(|e| writing(path)(e.into_error()))?;
    Ok(temporary.finish(file)?)
}

fn write_text(path: &Path, text: &str) -> Result<(), HubError> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &Path, content: &[u8]) -> Result<(), HubError> {
    let (temporary, mut file) = Temporary::create(path)?;
    file.write_all(content).map_err(writing(path))?;
    temporary.finish(file)
}

/// A file beside the wanted one, which takes its place when it is complete and is removed if it never is.
struct Temporary {
    path: PathBuf,
    temporary: PathBuf,
    done: bool,
}

impl Temporary {
    fn create(path: &Path) -> Result<(Temporary, File), HubError> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(writing(path))?;
        Ok((Temporary { path: path.to_path_buf(), temporary, done: false }, file))
    }

    fn finish(mut self, file: File) -> Result<(), HubError> {
        file.sync_all()
            .and_then(|()| fs::rename(&self.temporary, &self.path))
            .map_err(writing(&self.path))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.done {
            // best effort: the error that led here is the one to report
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn writing(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    move |source| HubError::Write { path, source }
}
