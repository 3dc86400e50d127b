//! Runs that start from a Hugging Face directory, and what they write back.

use std::path::{Path, PathBuf};

use hub::Weights;
use train::config::Config;
use train::export::{ExportOptions, export};
use train::generate::{GenerateOptions, generate};
use train::trainer::{RunOptions, train};

use crate::gradients::fixture;

/// Words of the fixtures' tokenizers, in lines.
fn text(dir: &Path) -> PathBuf {
    let words: String = (0..300)
        .map(|line| {
            let words: Vec<String> = (0..12).map(|i| format!("w{}", 3 + (line * 7 + i * i) % 38)).collect();
            words.join(" ") + "\n"
        })
        .collect();
    let path = dir.join("text.txt");
    std::fs::write(&path, words).unwrap();
    path
}

fn run(dir: &Path, from: &Path, out: &str, settings: &str, mesh: &str) -> PathBuf {
    let text = text(dir);
    // LLaMA's fixtures have no tokenizer of their own; that of GPT-2 has the same words.
    let tokenizer = fixture("gpt2").join("tokenizer.json");
    let toml = format!(
        "[model]\nfrom = {from:?}\n[data]\ntext = [{text:?}]\ntokenizer = {tokenizer:?}\nsequence_length = 16\n\
         validation = 0.1\n[train]\nbatch = 4\nwarmup_steps = 0\nlr_schedule = \"constant\"\n{settings}\n"
    );
    let config = Config::from_bytes(&dir.join("c.toml"), toml.as_bytes(), &[], Some(mesh)).unwrap();
    let options = RunOptions { out: Some(dir.join(out)), runs: dir.join("runs"), ..RunOptions::default() };
    train(&config, &options, &|_| {}).unwrap_or_else(|e| panic!("{e}"));
    dir.join(out)
}

fn exported(run: &Path, dtype: Option<&str>) -> PathBuf {
    let out = run.join("exported");
    export(run, &out, &ExportOptions { dtype: dtype.map(str::to_owned) }).unwrap();
    out
}

#[test]
fn what_is_not_trained_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt2", "gpt2-inverse", "llama", "llama-biases", "llama-untied"] {
        let still = "steps = 1\nlr = 0.0\nweight_decay = 0.0\nprecision = \"f32\"";
        let out = exported(&run(dir.path(), &fixture(name), name, still, "tp=2"), None);
        let [ours, theirs] = [&out, &fixture(name)].map(|dir| Weights::open(dir).unwrap());
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>(), "{name}");
        for tensor in theirs.tensors() {
            let other = ours.get(tensor.name).unwrap();
            assert_eq!((other.dtype, other.shape), (tensor.dtype, tensor.shape), "{name}: {}", tensor.name);
            assert!(other.bytes == tensor.bytes, "{name}: {}", tensor.name);
        }
        // the description says the same, whatever the order of its keys
        let [ours, theirs] = [&out, &fixture(name)].map(|dir| hub::Config::open(dir).unwrap().family);
        assert_eq!(ours, theirs, "{name}");
        assert!(out.join("tokenizer.json").is_file());
    }
}

#[test]
fn layouts_export_the_same_and_runs_need_the_directory_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    for entry in std::fs::read_dir(fixture("llama-untied")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, from.join(path.file_name().unwrap())).unwrap();
    }
    let settings = "steps = 4\nlr = 1e-3\noptimizer = \"sgd\"\nprecision = \"f64\"";
    let runs = [("one", "dp=1"), ("four", "tp=2,pp=2")]
        .map(|(out, mesh)| run(dir.path(), &from, out, settings, mesh));
    std::fs::remove_dir_all(&from).unwrap();
    let [one, four] = runs.each_ref().map(|run| Weights::open(&exported(run, None)).unwrap());
    let (mut moved, untrained) = (false, Weights::open(&fixture("llama-untied")).unwrap());
    for tensor in one.tensors() {
        let [a, b, before] =
            [&one, &four, &untrained].map(|w| w.get(tensor.name).unwrap().reals::<f64>().unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-10), "{}", tensor.name);
        moved |= a.iter().zip(&before).any(|(a, b)| (a - b).abs() > 1e-5);
    }
    assert!(moved, "it was trained");
    let options =
        GenerateOptions { prompts: vec!["w5 w9".to_owned()], tokens: 5, ..GenerateOptions::default() };
    let texts = runs.map(|run| generate(&run, &options).unwrap().texts.concat().concat());
    assert!(!texts[0].is_empty() && texts[0] == texts[1], "{texts:?}");
    let half = exported(&dir.path().join("one"), Some("bf16"));
    assert!(Weights::open(&half).unwrap().tensors().all(|t| t.dtype == hub::StoredType::Bf16));
}

#[test]
fn a_directory_is_written_anew_with_everything_in_it() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bert-embed", "t5-gated", "vit", "llama-untied"] {
        let out = dir.path().join(name);
        let report = export(&fixture(name), &out, &ExportOptions::default()).unwrap();
        assert_eq!(report.dtype, "F32");
        let [ours, theirs] = [&out, &fixture(name)].map(|dir| Weights::open(dir).unwrap());
        assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>(), "{name}");
        assert!(theirs.tensors().all(|t| ours.get(t.name).unwrap().bytes == t.bytes), "{name}");
    }
    let same = export(&fixture("vit"), &fixture("vit"), &ExportOptions::default()).unwrap_err();
    assert!(same.to_string().contains("name another one"), "{same}");
    let none = export(dir.path(), &dir.path().join("x"), &ExportOptions::default()).unwrap_err();
    assert!(none.to_string().contains("no checkpoint"), "{none}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |from: &Path, sets: &[&str]| {
        let text = text(dir.path());
        let toml = format!("[model]\nfrom = {from:?}\n[data]\ntext = [{text:?}]\n");
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        let config = Config::from_bytes(&dir.path().join("c.toml"), toml.as_bytes(), &sets, None).unwrap();
        let options = RunOptions { out: Some(dir.path().join("refused")), ..RunOptions::default() };
        let error = train(&config, &options, &|_| {}).unwrap_err().to_string();
        assert!(!dir.path().join("refused").exists());
        error
    };
    for (from, sets, part) in [
        ("gpt2", &["data.sequence_length=32"][..], "model.max_positions = 24"),
        ("llama", &["data.sequence_length=8"], "data.tokenizer is missing"),
        ("bert-tag", &["data.sequence_length=8"], "task = \"causal-lm\""),
        ("nowhere", &["data.sequence_length=8"], "no config.json"),
    ] {
        let message = refusal(&fixture(from), sets);
        assert!(message.contains(part), "{from}: {message}");
    }
}
