//! What is read is written back: the same bits, the same description.

use std::fs;

use hub::{Directory, Export, HubError, Parameter, Real, StoredType, Weights};
use serde_json::Value;

use crate::place::{ALL, copy, fixture};

const NO_LIMIT: u64 = u64::MAX;

fn export<T: Real>(directory: &Directory, dtype: StoredType, max_shard_bytes: u64) -> tempfile::TempDir {
    let bound = directory.bind().unwrap();
    let out = tempfile::tempdir().unwrap();
    let export = Export {
        config: directory.config(),
        task: directory.task(),
        table: directory.table(),
        dtype,
        max_shard_bytes,
        carry: Some((directory.weights(), &bound.report().extra)),
        companions: Some(directory.path()),
    };
    let source = |p: &Parameter| Ok::<_, HubError>(bound.read_all::<T>(&p.name)?.unwrap());
    export.write(out.path(), source).unwrap();
    out
}

fn same_tensors(a: &Weights, b: &Weights) {
    assert!(a.names().eq(b.names()));
    for (a, b) in a.tensors().zip(b.tensors()) {
        assert_eq!((a.dtype, a.shape, a.bytes), (b.dtype, b.shape, b.bytes), "{}", a.name);
    }
}

#[test]
fn tensors_are_bit_identical_and_descriptions_equal() {
    for name in ALL {
        let directory = Directory::open(&fixture(name), None).unwrap();
        let out = export::<f32>(&directory, StoredType::F32, NO_LIMIT);
        let again = Directory::open(out.path(), None).unwrap();
        same_tensors(directory.weights(), again.weights());
        assert_eq!(again.config().family, directory.config().family, "{name}");
        let read =
            |path: std::path::PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        assert_eq!(read(out.path().join("config.json")), read(fixture(name).join("config.json")), "{name}");
        assert_eq!(again.tokenizer().is_some(), name == "gpt2");
    }
}

#[test]
fn through_wider_numbers_too() {
    let directory = Directory::open(&fixture("t5-gated"), None).unwrap();
    same_tensors(
        directory.weights(),
        &Weights::open(export::<f64>(&directory, StoredType::F32, NO_LIMIT).path()).unwrap(),
    );
    // half precision survives f32 and back
    let halved = export::<f32>(&directory, StoredType::Bf16, NO_LIMIT);
    let halved = Directory::open(halved.path(), None).unwrap();
    assert_eq!(halved.config().other("dtype").unwrap(), "bfloat16");
    let again = export::<f32>(&halved, StoredType::Bf16, NO_LIMIT);
    same_tensors(halved.weights(), &Weights::open(again.path()).unwrap());
}

#[test]
fn shards_are_of_the_asked_size() {
    let directory = Directory::open(&fixture("gpt2"), None).unwrap();
    let limit = 9_000;
    let out = export::<f32>(&directory, StoredType::F32, limit);
    assert!(!out.path().join("model.safetensors").exists());
    let shards: Vec<_> = fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_name().to_string_lossy().ends_with(".safetensors"))
        .collect();
    assert!(shards.len() > 3);
    for shard in &shards {
        let weights = Weights::open_file(&shard.path()).unwrap();
        assert!(weights.tensors().map(|t| t.bytes.len() as u64).sum::<u64>() <= limit);
    }
    same_tensors(directory.weights(), &Weights::open(out.path()).unwrap());
    // a directory that changes its form does not keep the other one
    let single = directory.bind().unwrap();
    let export = Export {
        config: directory.config(),
        task: directory.task(),
        table: directory.table(),
        dtype: StoredType::F32,
        max_shard_bytes: NO_LIMIT,
        carry: None,
        companions: None,
    };
    export.write(out.path(), |p| Ok::<_, HubError>(single.read_all::<f32>(&p.name)?.unwrap())).unwrap();
    assert!(out.path().join("model.safetensors").exists());
    assert!(!out.path().join("model.safetensors.index.json").exists());
}

#[test]
fn the_formats_own_library_reads_ours_and_we_read_its() {
    let directory = Directory::open(&fixture("bert-classify"), None).unwrap();
    let out = export::<f32>(&directory, StoredType::F32, NO_LIMIT);
    let bytes = fs::read(out.path().join("model.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), directory.weights().names().count());
    for (name, view) in theirs.tensors() {
        let ours = directory.weights().get(&name).unwrap();
        assert_eq!((view.shape(), view.data()), (ours.shape, ours.bytes));
    }
    let path = out.path().join("theirs.safetensors");
    safetensors::serialize_to_file(theirs.tensors(), None, &path).unwrap();
    same_tensors(directory.weights(), &Weights::open_file(&path).unwrap());
}

#[test]
fn a_failing_source_leaves_nothing_half_written() {
    let dir = copy("vit");
    let before = fs::read(dir.path().join("model.safetensors")).unwrap();
    let directory = Directory::open(dir.path(), None).unwrap();
    let export = Export {
        config: directory.config(),
        task: directory.task(),
        table: directory.table(),
        dtype: StoredType::F32,
        max_shard_bytes: NO_LIMIT,
        carry: None,
        companions: None,
    };
    let mut asked = 0;
    let result = export.write(dir.path(), |p| {
        asked += 1;
        let len = if asked == 5 { p.piece.len() - 1 } else { p.piece.len() };
        Ok::<_, HubError>(vec![0f32; len])
    });
    assert!(matches!(result, Err(HubError::Elements { .. })));
    assert_eq!(fs::read(dir.path().join("model.safetensors")).unwrap(), before);
    assert!(
        fs::read_dir(dir.path()).unwrap().all(|e| e.unwrap().path().extension().is_none_or(|x| x != "tmp"))
    );
}
