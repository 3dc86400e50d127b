//! The one error type of this crate: what is wrong, in which file, at which key or tensor, and what to do.

use std::io;
use std::path::PathBuf;

use crate::StoredType;

/// Everything that can be wrong with a Hugging Face directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {source}: choose a writable directory with free space", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A pipe, a directory or a device where a file is needed.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The directory has no `config.json`.
    #[error("{}: no config.json here: `model.from` must name a directory with config.json and model.safetensors", dir.display())]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// `config.json` is not a JSON object.
    #[error("{}: not a JSON object ({reason}); fetch or write it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// A key that has no default is absent.
    #[error("{}: the key `{key}` is missing; a {model_type} model needs it", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The family.
        model_type: String,
    },
    /// A key has a value of the wrong kind, or one that is not supported.
    #[error("{}: `{key}` = {value} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key, with dots for what is nested.
        key: String,
        /// Its value as the file has it, shortened.
        value: String,
        /// What would be accepted.
        supported: String,
    },
    /// A family that cannot do a task.
    #[error("{}: `model_type` = \"{model_type}\" does not do task = \"{task}\"; it does {supported}", path.display())]
    Task {
        /// The file.
        path: PathBuf,
        /// The family.
        model_type: &'static str,
        /// The task.
        task: &'static str,
        /// Tasks of the family.
        supported: String,
    },
    /// The directory has no safetensors.
    #[error(
        "{}: no model.safetensors and no model.safetensors.index.json{}", dir.display(),
        present.map_or(String::new(), |p| format!(
            "; {p} is another format: write it anew with `save_pretrained(..., safe_serialization=True)`"
        ))
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// Weights of another form that are there.
        present: Option<&'static str>,
    },
    /// A file that is not safetensors, or is damaged.
    #[error("{}: not a sound safetensors file: {reason}; fetch or write it again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor whose entry in the header is wrong.
    #[error("{}: tensor `{tensor}`: {reason}; fetch or write the file again", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// An index that is not what `transformers` writes.
    #[error("{}: not an index of shards: {reason}; fetch or write it again", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// An index that names a file outside the directory.
    #[error(
        "{}: tensor `{tensor}` is said to lie in `{shard}`; a shard must be a file name in the same directory, without \
         separators", path.display()
    )]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name.
        shard: String,
    },
    /// A shard that is not there.
    #[error("{}: missing, though {} lists it: fetch the missing file", path.display(), index.display())]
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// The index.
        index: PathBuf,
    },
    /// A tensor that is not in the shard that the index names.
    #[error(
        "{}: tensor `{tensor}` is not here, though {} says so: index and shards are of different versions; fetch \
         both again", path.display(), index.display()
    )]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The index.
        index: PathBuf,
    },
    /// A tensor that two shards have.
    #[error("tensor `{tensor}` is both in {} and in {}: remove the shard that does not belong", first.display(), second.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Tensors that the model needs are not there.
    #[error(
        "{}: {num} of {of} tensors of a {model_type} model are missing, first {}{hint}", path.display(),
        names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
    )]
    MissingTensors {
        /// The directory.
        path: PathBuf,
        /// The first few names.
        names: Vec<String>,
        /// How many are missing.
        num: usize,
        /// How many the model has.
        of: usize,
        /// The family.
        model_type: &'static str,
        /// What to do, if that is known.
        hint: &'static str,
    },
    /// A tensor whose shape is not what `config.json` makes it.
    #[error(
        "{}: tensor `{tensor}` has shape {actual:?}, config.json makes it {expected:?}: config.json and weights do not \
         belong together", path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The stored shape.
        actual: Vec<usize>,
        /// The shape that follows from `config.json`.
        expected: Vec<usize>,
    },
    /// A tensor of a type that does not fit its use.
    #[error("{}: tensor `{tensor}` has type {actual}; it must be {wanted}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The stored type.
        actual: StoredType,
        /// What it must be.
        wanted: &'static str,
    },
    /// A name that the table does not have.
    #[error("the model has no parameter `{name}`")]
    NoParameter {
        /// The name.
        name: String,
    },
    /// Numbers for a parameter that are too few or too many.
    #[error("parameter `{name}` has {expected} elements, {actual} were given")]
    Elements {
        /// The parameter.
        name: String,
        /// Its elements.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A repository could not be fetched.
    #[cfg(feature = "download")]
    #[error(
        "{id}: cannot fetch {file}: {reason}; without a network, fetch the directory elsewhere and set `model.from` to it"
    )]
    Download {
        /// The repository's id.
        id: String,
        /// The file.
        file: String,
        /// The client's reason.
        reason: String,
    },
}
