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
fn directories_write_text_and_several_prompts_a_line_each() {
    let place = Place::new();
    let gpt2 = fixture("gpt2");
    let from = gpt2.as_str();
    place.write("prompts.txt", "w5 w9 w13 w7\n\nw8\n");
    let greedy = |more: &[&str]| place.succeed(&[&["generate", from, "--tokens", "6"], more].concat());
    // as `transformers` wrote them, and a prompt from the command line before those of the file
    let [first, second, third] = ["w3 w3 w21 w3 w21 w3", "w11 w4 w20 w11 w4 w4", "w19 w11 w11 w11 w4 w4"];
    assert_eq!(greedy(&["--prompt", "w8"]).trim(), second);
    let several = greedy(&["--prompt", "w30 w3", "--prompts", "prompts.txt"]);
    assert_eq!(several.lines().collect::<Vec<_>>(), [third, first, second]);
    let more = ["--tokens", "5", "--beams", "3", "--best", "2", "--prompt", "w8", "--json"];
    let beams = place.json(&[&["generate", from], &more[..]].concat());
    let continuations = beams["generations"][0]["continuations"].as_array().unwrap();
    assert_eq!(continuations.len(), 2);
    assert!(continuations[0]["score"].as_f64() >= continuations[1]["score"].as_f64());
    assert_eq!((&beams["prompt"], &beams["continuation"]), (&"w8".into(), &continuations[0]["text"]));
    let drawn = ["--temperature", "2", "--top-p", "0.9", "--repetition-penalty", "1.2", "--prompt", "w8"];
    let layout = ["--mesh", "tp=2,pp=2", "--no-cache", "--ignore-end", "--dtype", "f64"];
    let ignoring = ["--ignore-end", "--dtype", "f64"];
    assert_eq!(greedy(&[&drawn[..], &layout].concat()), greedy(&[&drawn[..], &ignoring].concat()));
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let place = Place::new();
    let (gpt2, llama, bert) = (fixture("gpt2"), fixture("llama"), fixture("bert-tag"));
    place.write("empty.txt", " \n\n");
    place.write("latin.txt", b"w3 \xe9\n");
    let long = "w3 ".repeat(30);
    for (arguments, parts) in [
        (&[&gpt2, "--prompt", &long][..], &["prompt 1", "30 tokens", "24 positions", "shorten"][..]),
        (&[&gpt2, "--prompt", "w3", "--beams", "2"], &["--tokens 64 with --beams 2", "--tokens 24"]),
        (
            &[&gpt2, "--prompt", "w3", "--beams", "2", "--temperature", "1"],
            &["--beams 2 with --temperature", "leave"],
        ),
        (&[&gpt2, "--prompt", "w3", "--beams", "2", "--top-p", "0.5"], &["--beams 2 with --top-p", "leave"]),
        (&[&gpt2, "--prompt", "w3", "--beams", "30", "--tokens", "5"], &["--beams 30", "20 beams"]),
        (&[&gpt2, "--prompt", "w3", "--beams", "0"], &["--beams 0", "from 1"]),
        (&[&gpt2, "--prompt", "w3", "--best", "2"], &["--best 2", "--beams 1"]),
        (&[&gpt2, "--prompt", "w3", "--length-penalty", "2"], &["--length-penalty", "--beams 2"]),
        (
            &[
                &gpt2,
                "--prompt",
                "w3",
                "--beams",
                "2",
                "--tokens",
                "5",
                "--ignore-end",
                "--early-stopping",
                "always",
            ],
            &["--early-stopping", "no end token", "leave it out"],
        ),
        (&[&gpt2, "--prompt", "w3", "--top-p", "1.5"], &["--top-p 1.5", "at most 1"]),
        (&[&gpt2, "--prompt", "w3", "--repetition-penalty", "0"], &["--repetition-penalty 0", "above 0"]),
        (&[&gpt2, "--prompt", "w3", "--tokens", "99999999999"], &["--tokens", "at most 1048576"]),
        (&[&gpt2, "--prompt", "w3", "--mesh", "pp=3"], &["3", "layers"]),
        (&[&gpt2, "--prompts", "missing.txt"], &["--prompts missing.txt", "name a text file"]),
        (&[&gpt2, "--prompts", "empty.txt"], &["--prompts empty.txt", "no prompt"]),
        (&[&gpt2, "--prompts", "latin.txt"], &["--prompts latin.txt", "byte 3", "UTF-8"]),
        (&[&llama, "--prompt", "w3"], &["llama", "no tokenizer.json"]),
        (&[&bert, "--prompt", "w3"], &["config.json", "\"bert\" writes no text"]),
    ] {
        let arguments = [&["generate"], arguments].concat();
        let output = place.run(&arguments);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}{message}", stdout(&output));
        assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
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
