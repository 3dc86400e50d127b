//! Weights that lie, are torn or point elsewhere are refused by file and tensor.

use std::fs;
use std::path::Path;

use hub::{Directory, HubError, Weights};
use serde_json::{Value, json};

use crate::place::{copy, edit, set_key};

/// A file with this header text and as many bytes of data.
fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn open(bytes: &[u8]) -> Result<Weights, HubError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    Weights::open_file(&path)
}

fn refused(header: Value, data: usize) -> String {
    open(&file(header.to_string().as_bytes(), data)).unwrap_err().to_string()
}

#[test]
fn headers_that_lie() {
    let good = json!({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}});
    assert!(open(&file(good.to_string().as_bytes(), 8)).is_ok());
    for (bytes, part) in [
        (vec![], "0 bytes hold no safetensors header"),
        (vec![1, 2, 3], "3 bytes hold no"),
        (u64::MAX.to_le_bytes().to_vec(), "does not fit a file of 8"),
        ((1u64 << 40).to_le_bytes().to_vec(), "does not fit a file of 8"),
        (file(b"", 0), "not what safetensors writes"),
        (file(b"[]", 0), "not what safetensors writes"),
        (file(&[b'{', 0xff, b'}'], 0), "not what safetensors writes"),
        (file("[".repeat(50_000).as_bytes(), 0), "not what safetensors writes"),
        (file(&good.to_string().into_bytes(), 7), "cannot lie at bytes 0..8 of 7"),
        (file(&good.to_string().into_bytes(), 9), "end at byte"),
        (file(b"{\"a\": 1}", 0), "`a`"),
        (
            file(br#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1),
            "`a` is given twice",
        ),
        (file(br#"{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1), "duplicate field"),
    ] {
        let message = open(&bytes).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("model.safetensors"), "{part}: {message}");
    }
    for (entry, part) in [
        (json!({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}), "type `F8_E4M3` is not known"),
        (
            json!({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}),
            "of shape [3] cannot lie at bytes 0..8",
        ),
        (json!({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}), "cannot lie"),
        (json!({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}), "cannot lie"),
        (json!({"dtype": "F32", "shape": [u64::MAX, u64::MAX], "data_offsets": [0, 8]}), "cannot lie"),
        (json!({"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}), "header entry"),
        (json!({"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}), "header entry"),
        (json!({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}), "header entry"),
        (json!({"dtype": "F32", "shape": [2]}), "data_offsets"),
        (json!({"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "scale": 2}), "unknown field"),
        (json!({"dtype": "U8", "shape": vec![1; 100], "data_offsets": [0, 8]}), "more than 16 dims"),
    ] {
        let message = refused(json!({ "a": entry }), 8);
        assert!(message.contains("`a`") && message.contains(part), "{part}: {message}");
    }
    let two = |second: [usize; 2]| {
        let entry = |at: [usize; 2]| json!({"dtype": "U8", "shape": [at[1] - at[0]], "data_offsets": at});
        refused(json!({"a": entry([0, 4]), "b": entry(second)}), 8)
    };
    assert!(two([2, 8]).contains("`b`: at byte") && two([2, 8]).contains("overlaps"));
    assert!(two([5, 8]).contains("gap"));
}

#[test]
fn an_empty_tensor_is_no_overlap() {
    let entry = |shape: usize, at: [usize; 2]| json!({"dtype": "U8", "shape": [shape], "data_offsets": at});
    let header = json!({"a": entry(0, [0, 0]), "b": entry(4, [0, 4]), "c": entry(0, [4, 4])});
    assert!(open(&file(header.to_string().as_bytes(), 4)).is_ok());
}

#[test]
fn no_weights_and_other_formats() {
    let dir = copy("vit");
    fs::rename(dir.path().join("model.safetensors"), dir.path().join("pytorch_model.bin")).unwrap();
    let error = Directory::open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("no model.safetensors") && error.contains("pytorch_model.bin"), "{error}");
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(matches!(Directory::open(dir.path(), None), Err(HubError::NotAFile { .. })));
}

const INDEX: &str = "model.safetensors.index.json";

fn sharded(change: impl FnOnce(&Path)) -> String {
    let dir = copy("llama-untied");
    change(dir.path());
    Weights::open(dir.path()).unwrap_err().to_string()
}

#[test]
fn indices_that_lie() {
    let missing = sharded(|dir| fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap());
    assert!(
        missing.contains("model-00002-of-00002.safetensors: missing") && missing.contains(INDEX),
        "{missing}"
    );
    for name in ["../../x", "/etc/passwd", "sub/x.safetensors", "..", "", "C:\\x"] {
        let message =
            sharded(|dir| edit(dir, INDEX, |index| index["weight_map"]["model.norm.weight"] = name.into()));
        assert!(message.contains("`model.norm.weight`") && message.contains("same directory"), "{message}");
    }
    let absent = sharded(|dir| {
        edit(dir, INDEX, |index| index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors".into());
    });
    assert!(absent.contains("`ghost` is not here"), "{absent}");
    let both = sharded(|dir| {
        fs::copy(dir.join("model-00001-of-00002.safetensors"), dir.join("copy.safetensors")).unwrap();
        edit(dir, INDEX, |index| index["weight_map"]["ghost"] = "copy.safetensors".into());
    });
    assert!(both.contains("is both in"), "{both}");
    for text in
        [&b"{}"[..], b"{\"weight_map\": 3}", b"\xff", b"{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}"]
    {
        let message = sharded(|dir| fs::write(dir.join(INDEX), text).unwrap());
        assert!(message.contains("not an index of shards"), "{message}");
    }
}

#[test]
fn weights_of_another_model() {
    let dir = copy("bert-tag");
    set_key(dir.path(), "intermediate_size", 40);
    let error = Directory::open(dir.path(), None).unwrap().bind().unwrap_err().to_string();
    assert!(
        error.contains("`bert.encoder.layer.0.intermediate.dense.weight` has shape [32, 16]")
            && error.contains("[40, 16]"),
        "{error}"
    );
    let dir = copy("bert-tag");
    set_key(dir.path(), "num_hidden_layers", 3);
    let error = Directory::open(dir.path(), None).unwrap().bind().unwrap_err().to_string();
    assert!(error.contains("16 of 55 tensors") && error.contains("encoder.layer.2"), "{error}");
}
