//! What the fixtures' models write against what `transformers` wrote (`crates/hub/fixtures`), with and without caches and
//! in every kind of layout.

use serde_json::Value;
use train::config::Precision;
use train::generate::{Continuation, EarlyStopping, GenerateOptions, generate_tokens};

use crate::gradients::fixture;

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
