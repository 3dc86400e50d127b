//! What the fixtures' models write against what `transformers` wrote (`crates/hub/fixtures`), and what trained ones write
//! against what they were trained to, with and without caches and in every kind of layout.

use std::ops::Range;

use serde_json::Value;
use train::config::Precision;
use train::generate::{Continuation, EarlyStopping, GenerateOptions, Written, generate, generate_tokens};

use crate::gradients::fixture;
use crate::tasks;

const MODELS: [&str; 5] = ["gpt2", "llama", "llama-untied", "t5-gated", "t5-plain"];
const LAYOUTS: [&str; 7] = ["tp=2", "tp=4", "pp=2", "dp=2", "dp=3", "tp=2,pp=2", "dp=2,tp=2,pp=2"];

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

struct Case {
    prompts: Vec<Vec<u32>>,
    options: GenerateOptions,
    /// By prompt, best first.
    tokens: Vec<Vec<Vec<u32>>>,
    scores: Vec<f64>,
}

/// The cases of a fixture.
fn cases(name: &str) -> Vec<Case> {
    let report: Value =
        serde_json::from_slice(&std::fs::read(fixture(name).join("generation.json")).unwrap()).unwrap();
    let prompts: Vec<Vec<u32>> = report["prompts"].as_array().unwrap().iter().map(ids).collect();
    let case = |case: &Value| {
        let best = case.get("num_return_sequences").map_or(1, |n| n.as_u64().unwrap() as usize);
        let early_stopping = match case.get("early_stopping") {
            None | Some(Value::Bool(false)) => EarlyStopping::Estimate,
            Some(Value::Bool(true)) => EarlyStopping::Always,
            Some(_) => EarlyStopping::Never,
        };
        let tokens: Vec<Vec<u32>> = case["tokens"].as_array().unwrap().iter().map(ids).collect();
        let scores = case["scores"].as_array().into_iter().flatten().map(|s| s.as_f64().unwrap());
        Case {
            prompts: prompts.clone(),
            options: GenerateOptions {
                tokens: report["max_new_tokens"].as_u64().unwrap() as usize,
                repetition_penalty: case["repetition_penalty"].as_f64().unwrap(),
                beams: case["num_beams"].as_u64().unwrap() as usize,
                length_penalty: case.get("length_penalty").map_or(1.0, |p| p.as_f64().unwrap()),
                early_stopping,
                best,
                precision: Some(Precision::F64),
                ends: Some(case["eos_token_id"].as_u64().map(|id| id as u32).into_iter().collect()),
                ..GenerateOptions::default()
            },
            tokens: tokens.chunks_exact(best).map(<[Vec<u32>]>::to_vec).collect(),
            scores: scores.collect(),
        }
    };
    report["cases"].as_array().unwrap().iter().map(case).collect()
}

/// The tokenizer's end token ends nothing where the directory's files say that no token does, as in `transformers`.
#[test]
fn a_directory_says_what_ends_its_texts() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("gpt2").join(file), dir.path().join(file)).unwrap();
    }
    // A token that the model writes becomes the tokenizer's end token.
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(fixture("gpt2").join("tokenizer.json")).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let written = vocab.iter().find(|(_, id)| **id == 3).unwrap().0.clone();
    vocab.extend([("</s>".to_owned(), 3.into()), (written, 1.into())]);
    tokenizer["added_tokens"][1]["id"] = 3.into();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let case = &cases("gpt2")[0];
    let options = GenerateOptions { ends: None, ..case.options.clone() };
    for (ends, whole) in [("null", true), ("[3]", false)] {
        let text = format!("{{\"eos_token_id\": {ends}}}");
        std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        let found = generate_tokens(dir.path(), &case.prompts, &options).unwrap();
        let first = &found.continuations[0][0].tokens;
        assert_eq!(first == &case.tokens[0][0], whole, "{ends}: {first:?}");
    }
}

fn check(name: &str, case: &Case, options: &GenerateOptions, what: &str) {
    let found =
        generate_tokens(&fixture(name), &case.prompts, options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let tokens = |all: &[Continuation]| all.iter().map(|c| c.tokens.clone()).collect::<Vec<_>>();
    let found_tokens: Vec<Vec<Vec<u32>>> = found.continuations.iter().map(|all| tokens(all)).collect();
    assert_eq!(found_tokens, case.tokens, "{name}, {what}: {options:?}");
    let scores: Vec<f64> = found.continuations.iter().flatten().filter_map(|c| c.score).collect();
    assert_eq!(scores.len(), case.scores.len());
    for (a, b) in scores.iter().zip(&case.scores) {
        assert!((a - b).abs() < 1e-9, "{name}, {what}: {a} {b}");
    }
}

#[test]
fn tokens_and_scores_are_those_of_transformers() {
    for name in MODELS {
        for case in cases(name) {
            check(name, &case, &case.options, "cached");
            check(name, &case, &GenerateOptions { cache: false, ..case.options.clone() }, "whole texts");
        }
    }
}

#[test]
fn every_layout_writes_the_same() {
    for name in MODELS {
        for case in cases(name).into_iter().step_by(2) {
            for layout in LAYOUTS {
                let options = GenerateOptions { mesh: Some(layout.to_owned()), ..case.options.clone() };
                check(name, &case, &options, layout);
            }
        }
    }
}

/// What a decoder writes, one token of one text at a time, each behind all that it reads: the whole text, and where that
/// outgrows the `window`, from the last half of one on.
fn one_by_one(name: &str, prompt: &[u32], window: usize, options: &GenerateOptions) -> Vec<u32> {
    let one = GenerateOptions { tokens: 1, ..options.clone() };
    let (mut text, mut first) = (prompt.to_vec(), 0);
    for _ in 0..options.tokens {
        if text.len() - first > window {
            first = text.len() - window / 2;
        }
        let found = generate_tokens(&fixture(name), &[text[first..].to_vec()], &one).unwrap();
        text.extend(&found.continuations[0][0].tokens);
    }
    text.split_off(prompt.len())
}

#[test]
fn texts_that_outgrow_their_positions_are_read_again_from_the_middle() {
    for (name, window) in [("gpt2", 24), ("llama", 64)] {
        let prompts = cases(name)[0].prompts.clone();
        let greedy = GenerateOptions {
            tokens: 2 * window,
            precision: Some(Precision::F64),
            ends: Some(vec![]),
            ..GenerateOptions::default()
        };
        let write = |options: &GenerateOptions| -> Vec<Vec<u32>> {
            let found = generate_tokens(&fixture(name), &prompts, options);
            let found = found.unwrap_or_else(|e| panic!("{name}: {e}"));
            found.continuations.into_iter().map(|all| all[0].tokens.clone()).collect()
        };
        let likeliest = write(&greedy);
        for (prompt, found) in prompts.iter().zip(&likeliest) {
            assert_eq!(found, &one_by_one(name, prompt, window, &greedy), "{name} behind {prompt:?}");
        }
        // Draws tell scores apart of which the same is largest. Of the texts one ends before any is read again, one ends
        // when all were, and one does not.
        let drawn = GenerateOptions { temperature: 1.5, ..greedy.clone() };
        let endless = write(&drawn);
        let until = |end: u32| -> Vec<Vec<u32>> {
            endless.iter().map(|text| text.split_inclusive(|t| *t == end).next().unwrap().to_vec()).collect()
        };
        let some = |texts: &[Vec<u32>], len: Range<usize>| texts.iter().any(|text| len.contains(&text.len()));
        let early = window - prompts.iter().map(Vec::len).max().unwrap();
        let ranges = [0..early, window + 1..2 * window, 2 * window..2 * window + 1];
        let end = (0..41).find(|end| ranges.iter().all(|len| some(&until(*end), len.clone()))).unwrap();
        let drawn = GenerateOptions { ends: Some(vec![end]), ..drawn };
        for (layout, cache) in [("dp=1", true), ("dp=1", false), ("dp=3", true), ("tp=2,pp=2", true)] {
            let on = |options: &GenerateOptions| {
                write(&GenerateOptions { mesh: Some(layout.to_owned()), cache, ..options.clone() })
            };
            assert_eq!(on(&drawn), until(end), "{name} on {layout}, {cache}");
            assert_eq!(on(&greedy), likeliest, "{name} on {layout}, {cache}");
        }
    }
}

#[test]
fn a_trained_encoder_decoder_writes_its_targets() {
    let dir = tempfile::tempdir().unwrap();
    let case = tasks::CASES.iter().find(|case| case.name == "seq2seq").unwrap();
    tasks::write_files(dir.path(), case);
    let mut config = tasks::config(dir.path(), case.text, "dp=2,tp=2;num_microbatches=3").unwrap();
    (config.train.steps, config.train.eval_every, config.train.checkpoint_every) = (150, 150, 0);
    let run_dir = tasks::run(&config, dir.path().join("run"), None).unwrap_or_else(|e| panic!("{e}")).run_dir;
    let prompts = ["one", "two", "three", "four", "five"].map(str::to_owned).to_vec();
    let greedy = GenerateOptions { prompts, tokens: 8, ..GenerateOptions::default() };
    let write = |options: &GenerateOptions| generate(&run_dir, options).unwrap_or_else(|e| panic!("{e}"));
    let beams = GenerateOptions { beams: 3, best: 3, length_penalty: 0.5, ..greedy.clone() };
    let expected = write(&GenerateOptions { cache: false, mesh: Some("dp=1".to_owned()), ..beams.clone() });
    let scores = |written: &Written| -> Vec<f64> {
        written.generated.continuations.iter().flatten().map(|c| c.score.unwrap()).collect()
    };
    // Seven ranks have more than the six sequences of a training step.
    for mesh in [None, Some("dp=1"), Some("tp=2,pp=2"), Some("dp=7")] {
        for cache in [true, false] {
            let on = |options: &GenerateOptions| {
                write(&GenerateOptions { mesh: mesh.map(str::to_owned), cache, ..options.clone() })
            };
            assert_eq!(
                on(&greedy).texts.concat(),
                ["eins", "zwei", "drei", "vier", "fünf"],
                "{mesh:?}, {cache}"
            );
            let found = on(&beams);
            assert_eq!(found.texts, expected.texts, "{mesh:?}, {cache}");
            for (a, b) in scores(&found).iter().zip(scores(&expected)) {
                assert!((a - b).abs() < 1e-9, "{mesh:?}, {cache}: {a} {b}");
            }
        }
    }
}

/// A trained model is so sure of its next token that eight bits of it are enough, in every layout, with caches and without.
#[test]
fn a_trained_encoder_decoder_writes_its_targets_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let case = tasks::CASES.iter().find(|case| case.name == "seq2seq").unwrap();
    tasks::write_files(dir.path(), case);
    let mut config = tasks::config(dir.path(), case.text, "dp=1").unwrap();
    (config.train.steps, config.train.eval_every, config.train.checkpoint_every) = (150, 150, 0);
    config.train.precision = Precision::F32;
    let run_dir = tasks::run(&config, dir.path().join("run"), None).unwrap_or_else(|e| panic!("{e}")).run_dir;
    let prompts = ["one", "two", "three", "four", "five"].map(str::to_owned).to_vec();
    for (mesh, cache) in [("dp=1", true), ("dp=1", false), ("tp=2,pp=2", true), ("dp=3", true)] {
        let options = GenerateOptions {
            prompts: prompts.clone(),
            tokens: 8,
            precision: Some(Precision::Bf16),
            mesh: Some(mesh.to_owned()),
            cache,
            ..GenerateOptions::default()
        };
        let written = generate(&run_dir, &options).unwrap_or_else(|e| panic!("{mesh}: {e}"));
        assert_eq!(written.texts.concat(), ["eins", "zwei", "drei", "vier", "fünf"], "{mesh}, {cache}");
    }
}
