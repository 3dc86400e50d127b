//! A run that is continued, in the same layout or another, ends where the undisturbed run ends.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use train::checkpoint::Checkpoint;
use train::config::{Config, Precision};
use train::generate::{GenerateOptions, generate};
use train::trainer::{Event, RunOptions, Summary, train};

/// A thousand short lines that a small tokenizer can learn from.
fn write_text(dir: &Path) -> PathBuf {
    let words =
        ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "nine", "birds", "fly", "south", "at", "dawn"];
    let mut text = String::new();
    let mut state = 1u64;
    for _ in 0..1000 {
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(words[(state >> 60) as usize % words.len()]);
            text.push(' ');
        }
        text.push('\n');
    }
    let path = dir.join("text.txt");
    std::fs::write(&path, text).unwrap();
    path
}

fn config(text: &Path, optimizer: &str) -> Config {
    let toml = format!(
        "[model]\nfamily = \"llama\"\nnum_layers = 3\nembed = 16\nnum_heads = 4\nnum_kv_heads = 2\nmlp = 20\n\
         tied = true\ndropout = 0.1\n[data]\ntext = [{text:?}]\ntokenizer_vocab = 277\nsequence_length = 16\n\
         validation = 0.05\n[train]\nsteps = 20\nbatch = 7\nprecision = \"f64\"\noptimizer = \"{optimizer}\"\n\
         lr = 1e-2\nwarmup_steps = 3\neval_every = 10\ncheckpoint_every = 10\nkeep_checkpoints = 3\n"
    );
    Config::from_bytes(&text.with_file_name("tiny.toml"), toml.as_bytes(), &[], None).unwrap()
}

fn run(config: &Config, dir: &Path, out: &str, resume: Option<PathBuf>) -> Summary {
    let options =
        RunOptions { out: Some(dir.join(out)), resume, runs: dir.join("runs"), ..RunOptions::default() };
    train(config, &options, &|_: Event<'_>| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn states(dir: &Path) -> Vec<(String, Vec<f64>)> {
    let checkpoint = Checkpoint::open_verified(dir).unwrap();
    let read = |name: &String| {
        let bytes = checkpoint.read_whole(name).unwrap();
        bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    checkpoint.manifest().tensors.keys().map(|name| (name.clone(), read(name))).collect()
}

fn largest_error(a: &[(String, Vec<f64>)], b: &[(String, Vec<f64>)]) -> f64 {
    assert_eq!(a.iter().map(|(n, _)| n).collect::<Vec<_>>(), b.iter().map(|(n, _)| n).collect::<Vec<_>>());
    let mut worst = 0.0f64;
    for ((_, a), (_, b)) in a.iter().zip(b) {
        let largest = b.iter().fold(1e-12f64, |m, x| m.max(x.abs()));
        let apart = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        worst = worst.max(apart / largest);
    }
    worst
}

#[test]
fn a_run_goes_on_in_any_layout_with_its_optimizer_state() {
    let dir = tempfile::tempdir().unwrap();
    let text = write_text(dir.path());
    for (optimizer, tolerance) in [("adamw", 1e-8), ("sgd", 1e-10)] {
        let base = config(&text, optimizer);
        let two = base.with_layout("dp=2;zero=1").unwrap();
        let whole = run(&two, dir.path(), &format!("{optimizer}-whole"), None);
        let undisturbed = states(whole.checkpoint.as_deref().unwrap());
        let middle = dir.path().join(format!("{optimizer}-whole/checkpoints/step-00000010"));
        for layout in ["dp=2;zero=1", "dp=1", "tp=2,pp=2", "dp=2,cp=2;zero=3", "tp=4;sequence=true"] {
            let config = base.with_layout(layout).unwrap();
            let out = format!("{optimizer}-{}", layout.replace(['=', ',', ';'], "-"));
            let summary = run(&config, dir.path(), &out, Some(middle.clone()));
            let resumed = states(summary.checkpoint.as_deref().unwrap());
            let error = largest_error(&resumed, &undisturbed);
            let limit = if layout == "dp=2;zero=1" { 0.0 } else { tolerance };
            assert!(error <= limit, "{optimizer} on {layout}: {error:e}");
        }
    }
}

/// What a run says and leaves behind.
#[derive(Debug, PartialEq)]
struct Told {
    /// Number of each step; loss, norm and learning rate: bits.
    steps: Vec<(u64, [u64; 3])>,
    validations: Vec<f64>,
    states: Vec<(String, Vec<f64>)>,
}

fn told(config: &Config, dir: &Path, out: &str) -> Told {
    let told = Mutex::new((Vec::new(), Vec::new()));
    let options = RunOptions { out: Some(dir.join(out)), runs: dir.join("runs"), ..RunOptions::default() };
    let observer = |event: Event<'_>| match event {
        Event::Step(s) => {
            told.lock().unwrap().0.push((s.step, [s.loss, s.grad_norm, s.lr].map(f64::to_bits)));
        }
        Event::Evaluation(e) => told.lock().unwrap().1.push(e.validation_loss),
        _ => {}
    };
    let summary = train(config, &options, &observer).unwrap_or_else(|e| panic!("{e}"));
    let (steps, validations) = told.into_inner().unwrap();
    Told { steps, validations, states: states(summary.checkpoint.as_deref().unwrap()) }
}

#[test]
fn a_run_that_validates_its_updates_afterwards_is_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let text = write_text(dir.path());
    // About half of the steps are clipped.
    for (number, clip_norm) in [1.0, 1.35, 1e9].into_iter().enumerate() {
        let layout = "pp=2;schedule=zb-h2;num_microbatches=4";
        let of = |post_validation: bool| {
            let layout = format!("{layout};post_validation={post_validation}");
            let mut config = config(&text, "adamw").with_layout(&layout).unwrap();
            config.train.clip_norm = clip_norm;
            told(&config, dir.path(), &format!("{number}-{post_validation}"))
        };
        let (waits, does_not) = (of(false), of(true));
        assert!(waits.steps.iter().map(|(step, _)| *step).eq(1..=20));
        assert!(waits == does_not, "{clip_norm}: {:?} {:?}", waits.steps, does_not.steps);
    }
}

#[test]
fn gathers_that_reach_into_the_next_step_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let text = write_text(dir.path());
    let validated = "dp=2,pp=2;zero=1;num_microbatches=3;schedule=zb-h2;post_validation=true";
    for (number, (layout, precision)) in [
        ("dp=2;zero=1", Precision::F64),
        ("dp=2;zero=2;num_microbatches=3", Precision::F64),
        (validated, Precision::F64),
        ("dp=2;zero=1", Precision::Fp16),
        ("dp=2,tp=2;zero=2;num_microbatches=3", Precision::Bf16),
        (validated, Precision::Bf16),
    ]
    .into_iter()
    .enumerate()
    {
        let of = |bucket_bytes: usize| {
            let layout = format!("{layout};bucket_bytes={bucket_bytes}");
            let mut config = config(&text, "adamw").with_layout(&layout).unwrap();
            (config.train.clip_norm, config.train.precision) = (1.2, precision);
            let out = format!("{number}-{bucket_bytes}");
            let told = told(&config, dir.path(), &out);
            let middle = states(&dir.path().join(out).join("checkpoints/step-00000010"));
            (told, middle)
        };
        // Without buckets each gather is waited for where it starts.
        assert!(of(0) == of(4 << 20), "{layout} in {precision}");
    }
}

#[test]
fn greedy_tokens_do_not_depend_on_the_layout() {
    let dir = tempfile::tempdir().unwrap();
    let text = write_text(dir.path());
    let trained = run(&config(&text, "adamw").with_layout("tp=2").unwrap(), dir.path(), "run", None);
    let generate_on = |mesh: Option<&str>| {
        let options = GenerateOptions {
            prompts: vec!["the cat".to_owned()],
            tokens: 12,
            mesh: mesh.map(str::to_owned),
            ..GenerateOptions::default()
        };
        generate(&trained.run_dir, &options).unwrap().texts.concat().concat()
    };
    let here = generate_on(None);
    assert!(!here.is_empty());
    for mesh in ["dp=1", "dp=2", "pp=3", "cp=2,tp=2", "tp=4;sequence=true", "dp=2,pp=2;zero=3"] {
        assert_eq!(generate_on(Some(mesh)), here, "{mesh}");
    }
}
