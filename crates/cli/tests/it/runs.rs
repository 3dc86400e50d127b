//! Whole runs: train, evaluate, save, resume in another layout, generate.

use std::fs;

use serde_json::Value;

use crate::place::{Place, stderr, stdout};

fn lines(path: &std::path::Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_run_from_text_to_generation() {
    let place = Place::new();
    let mesh = ["--mesh", "dp=2,tp=2"];
    let summary =
        place.json(&[&["train", "small.toml", "--json", "--metrics", "m.jsonl"], &mesh[..]].concat());
    let explained = place.json(&[&["explain", "small.toml", "--json"], &mesh[..]].concat());
    assert_eq!(summary["run_dir"], "runs/small-1");
    assert_eq!(summary["arena_bytes_total"], explained["total_arena_bytes"]);
    let metrics = lines(&place.path().join("m.jsonl"));
    let steps: Vec<&Value> = metrics.iter().filter(|l| l.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 6);
    for key in ["step", "loss", "grad_norm", "lr", "tokens", "tokens_per_second", "step_seconds"] {
        assert!(steps.iter().all(|l| l[key].is_number()), "{key}");
    }
    let evaluations: Vec<&Value> = metrics.iter().filter(|l| l.get("validation_loss").is_some()).collect();
    assert_eq!(evaluations.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 6]);
    assert!(evaluations.iter().all(|l| l["bits_per_byte"].is_number()));
    let checkpoint = summary["checkpoint"].as_str().unwrap();
    let greedy = |mesh: &str| {
        place.succeed(&["generate", checkpoint, "--prompt", "Line 1", "--tokens", "8", "--mesh", mesh])
    };
    assert_eq!(greedy("dp=1"), greedy("pp=2,tp=2"));
    let drawn = |seed: &str| {
        let drawing = ["--temperature", "1.5", "--top-k", "20", "--seed", seed, "--json"];
        place.json(
            &[&["generate", "runs/small-1", "--prompt", "Line", "--tokens", "12"], &drawing[..]].concat(),
        )
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    let again = place.run([&["train", "small.toml", "--out", "runs/small-1"], &mesh[..]].concat());
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("--resume"), "{}", stderr(&again));
}

#[test]
fn lines_and_a_summary_where_there_is_no_terminal() {
    let place = Place::new();
    let output = place.run(["train", "small.toml", "--steps", "30", "--set", "train.eval_every=10"]);
    let (out, err) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{err}");
    for part in [
        "step 1/30: loss",
        "step 30/30: loss",
        "tokens/s",
        "left",
        "step 10: held-out",
        "checkpoint runs/small-1",
    ] {
        assert!(err.contains(part), "no `{part}` in\n{err}");
    }
    assert!((10..30).contains(&err.lines().filter(|l| l.contains("/30: loss")).count()), "{err}");
    for part in [
        "trained in",
        "bits per byte (unigram model",
        "bigram model",
        "sample:",
        "checkpoint: ",
        "generate runs/small-1/",
    ] {
        assert!(out.contains(part), "no `{part}` in\n{out}");
    }
    assert!(!err.contains('\x1b') && !out.contains('\x1b'));
}

#[test]
fn a_run_goes_on_in_another_layout() {
    let place = Place::new();
    let f64 = [
        "--set",
        "train.precision=f64",
        "--set",
        "train.checkpoint_every=3",
        "--set",
        "train.lr_schedule=constant",
    ];
    let run = |more: &[&str]| place.json(&[&["train", "small.toml", "--json"], &f64[..], more].concat());
    let whole = run(&["--out", "whole"]);
    run(&["--out", "first", "--steps", "3", "--mesh", "dp=2"]);
    let second = run(&["--resume", "first", "--mesh", "tp=2,pp=2"]);
    let loss = |summary: &Value| summary["last_loss"].as_f64().unwrap();
    assert!((loss(&whole) - loss(&second)).abs() < 1e-10, "{whole} {second}");
    assert_eq!(second["run_dir"].as_str().map(|d| d.ends_with("first")), Some(true));
    let steps: Vec<u64> = lines(&place.path().join("first/metrics.jsonl"))
        .iter()
        .filter(|l| l.get("loss").is_some())
        .map(|l| l["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
}

/// PyTorch's `ScheduleInterleavedZeroBubble`, which is no generator of ours.
const OF_PYTORCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schedule/fixtures/interleaved-zb.csv");

#[test]
fn a_schedule_that_pytorch_wrote_trains_with_the_bits_of_our_own() {
    let place = Place::new();
    fs::copy(OF_PYTORCH, place.path().join("theirs.csv")).unwrap();
    let run = |schedule: &str| {
        let mesh = format!("pp=4;num_microbatches=8;chunks=2;schedule={schedule}");
        let out = schedule.replace('.', "-");
        let sets = ["--set", "model.num_layers=8", "--set", "train.batch=8", "--steps", "3"];
        let summary = place
            .json(&[&["train", "small.toml", "--json", "--mesh", &mesh, "--out", &out], &sets[..]].concat());
        place.path().join(summary["checkpoint"].as_str().unwrap())
    };
    let (ours, theirs) = (run("interleaved"), run("theirs.csv"));
    let shards: Vec<_> = fs::read_dir(&ours)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".safetensors"))
        .collect();
    assert_eq!(shards.len(), 4);
    for shard in shards {
        assert!(fs::read(ours.join(&shard)).unwrap() == fs::read(theirs.join(&shard)).unwrap(), "{shard:?}");
    }
}
