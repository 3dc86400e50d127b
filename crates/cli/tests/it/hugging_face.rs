//! `gradients`, `train` from a directory and `export`: what they print, and what they refuse.

use std::path::{Path, PathBuf};

use crate::place::{Place, stderr, stdout};

fn fixture(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hub/fixtures").join(name);
    path.to_str().unwrap().to_owned()
}

fn gradients<'a>(from: &'a str, batch: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["gradients", "--from", from, "--batch", batch, "--out", "out.safetensors"][..], more].concat()
}

#[test]
fn gradients_are_reported_and_written() {
    let place = Place::new();
    for (name, targets, num) in [("gpt2", 14, 28), ("bert-classify", 3, 41), ("t5-plain", 16, 60)] {
        let (from, batch) = (fixture(name), fixture(&format!("{name}/batch.safetensors")));
        let arguments = gradients(&from, &batch, &["--dtype", "f64", "--mesh", "dp=2,tp=2", "--json"]);
        let report = place.json(&arguments);
        assert!(report["loss"].as_f64().unwrap() > 0.5, "{name}: {report}");
        assert_eq!(
            (&report["num_targets"], &report["num_gradients"]),
            (&targets.into(), &num.into()),
            "{name}"
        );
        assert!(place.path().join("out.safetensors").is_file());
        let text = place.succeed(&gradients(&from, &batch, &["--dtype", "bf16"]));
        assert!(text.contains("loss ") && text.contains("out.safetensors"), "{text}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let place = Place::new();
    let (from, batch) = (fixture("gpt2"), fixture("gpt2/batch.safetensors"));
    let bert = fixture("bert-tag/batch.safetensors");
    let broken = place.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let config = std::fs::read_to_string(Path::new(&from).join("config.json")).unwrap();
    place.write("broken/config.json", config.replace("gelu_new", "mish"));
    let broken = broken.to_str().unwrap().to_owned();
    let out = ["--out", "no/such/out.safetensors"];
    for (arguments, parts) in [
        (gradients("nowhere", &batch, &[]), &["nowhere", "no config.json"][..]),
        (gradients(&broken, &batch, &[]), &["broken/config.json", "`activation_function`", "\"gelu_new\""]),
        (gradients(&from, "nowhere.safetensors", &[]), &["nowhere.safetensors"]),
        (gradients(&from, &bert, &[]), &["bert-tag/batch.safetensors", "`token_type_ids`", "remove it"]),
        (gradients(&from, &batch, &["--task", "tag"]), &["config.json", "\"tag\"", "causal-lm"]),
        (gradients(&from, &batch, &["--task", "poetry"]), &["poetry", "causal-lm"]),
        (gradients(&from, &batch, &["--mesh", "tp=3"]), &["tp", "3", "choose"]),
        (gradients(&from, &batch, &["--mesh", "pp=3"]), &["pp=3", "2"]),
        ([&gradients(&from, &batch, &[])[..5], &out].concat(), &["no/such", "--out"]),
        (vec!["export", "nowhere", "--format", "safetensors"], &["nowhere", "checkpoint"]),
        (
            vec!["export", &from, "--format", "safetensors", "--out", "x", "--dtype", "i8"],
            &["--dtype = i8", "bf16"],
        ),
    ] {
        let before = place.contents();
        let output = place.run(&arguments);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}{message}", stdout(&output));
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
        assert_eq!(place.contents(), before, "{arguments:?} left something behind");
    }
}

#[test]
fn a_directory_is_trained_continued_by_a_prompt_and_exported() {
    let place = Place::new();
    let words: String = (0..200).map(|i| format!("w{} w{}\n", 3 + i * 7 % 38, 3 + i * 5 % 38)).collect();
    place.write("words.txt", words);
    let from = fixture("gpt2");
    place.write(
        "words.toml",
        format!(
            "[model]\nfrom = {from:?}\n[data]\ntext = [\"words.txt\"]\nsequence_length = 12\nvalidation = 0.1\n\
             [train]\nsteps = 3\nbatch = 4\n"
        ),
    );
    place.succeed(&["train", "words.toml", "--out", "run", "--mesh", "tp=2,pp=2"]);
    let text = place.succeed(&["generate", "run", "--prompt", "w5 w9", "--tokens", "4"]);
    assert_eq!(
        text,
        place.succeed(&["generate", "run", "--prompt", "w5 w9", "--tokens", "4", "--mesh", "dp=1"])
    );
    let report = place.json(&["export", "run", "--format", "safetensors", "--json"]);
    assert_eq!((&report["model_type"], &report["dtype"]), (&"gpt2".into(), &"F32".into()));
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(place.path().join("run/safetensors").join(file).is_file(), "{file}");
    }
    // What was exported is a directory like any other.
    let batch = fixture("gpt2/batch.safetensors");
    place.succeed(&gradients("run/safetensors", &batch, &[]));
    place.succeed(&["train", "words.toml", "--set", "model.from=run/safetensors", "--out", "again"]);
    // A model that was described here is exported too.
    place.succeed(&["train", "small.toml", "--out", "own"]);
    let report = place.json(&["export", "own", "--format", "safetensors", "--out", "own-hf", "--json"]);
    assert_eq!((&report["model_type"], &report["task"]), (&"llama".into(), &"causal-lm".into()));
    let config = std::fs::read_to_string(place.path().join("own-hf/config.json")).unwrap();
    assert!(config.contains("LlamaForCausalLM") && config.contains("\"num_key_value_heads\": 2"), "{config}");
}
