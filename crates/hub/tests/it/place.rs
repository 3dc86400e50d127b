//! Where the fixtures are, and copies of them to spoil.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

/// Every checkpoint of `fixtures/make.py`.
pub const ALL: [&str; 20] = [
    "bert-classify",
    "bert-embed",
    "bert-masked-lm",
    "bert-tag",
    "bert-untied",
    "gpt2",
    "gpt2-inverse",
    "gpt2-unscaled",
    "llama",
    "llama-biases",
    "llama-dynamic",
    "llama-left",
    "llama-linear",
    "llama-relu",
    "llama-untied",
    "llama-yarn",
    "t5-buckets",
    "t5-gated",
    "t5-plain",
    "vit",
];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A copy of a fixture.
pub fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

/// Changes a JSON file of a directory.
pub fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(&path, value.to_string()).unwrap();
}

/// Sets one key of `config.json`.
pub fn set_key(dir: &Path, key: &str, value: impl Into<Value>) {
    let value = value.into();
    edit(dir, "config.json", |config| config[key] = value);
}

/// Rewrites `model.safetensors` with other names; `None` drops a tensor.
pub fn rename(dir: &Path, name: impl Fn(&str) -> Vec<String>) {
    let weights = hub::Weights::open(dir).unwrap();
    let tensors: Vec<hub::NewTensor<'_>> = weights
        .tensors()
        .flat_map(|t| {
            name(t.name)
                .into_iter()
                .map(move |name| hub::NewTensor {
                    name,
                    shape: t.shape.to_vec(),
                    dtype: t.dtype,
                    bytes: t.bytes.into(),
                })
                .collect::<Vec<_>>()
        })
        .collect();
    hub::write_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
}
