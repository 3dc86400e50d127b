//! Parity in f64 of every task's training step: loss, every gradient and the parameters after steps, on every kind of
//! layout, with padded sequences of unequal lengths, labels that do not count, and counts that divide unevenly.

use std::path::Path;

use testkit::pairwise;
use train::config::Config;
use train::parity::{Recorder, Recording, parameter_tolerance, reference};

const TOLERANCE: f64 = 1e-10;
/// Pairs whose cosines are to be their scores.
const SCORED: &str = "embed, scored";

/// A task and its model: three to four layers, heads that tp=4 divides, vocabularies, labels and hidden units that it
/// does not.
const TASKS: &[(&str, &str)] = &[
    ("masked-lm", "family = 'bert'\nnum_layers = 3\ntied = true"),
    ("masked-lm", "family = 'bert'\nnum_layers = 3\ntied = false"),
    ("classify", "family = 'bert'\nnum_layers = 3\nnum_labels = 3\ndropout = 0.2"),
    ("tag", "family = 'bert'\nnum_layers = 3\nnum_labels = 5"),
    ("seq2seq", "family = 't5'\nnum_layers = 2\nnum_decoder_layers = 1\ntied = true"),
    ("seq2seq", "family = 't5'\nnum_layers = 1\nnum_decoder_layers = 2\ntied = false\ndropout = 0.2"),
    ("embed", "family = 'bert'\nnum_layers = 3\ndropout = 0.2"),
    (SCORED, "family = 'bert'\nnum_layers = 3"),
    (
        "image-classify",
        "family = 'vit'\nnum_layers = 3\nnum_labels = 3\nimage_size = 6\npatch_size = 2\nnum_channels = 3",
    ),
];

/// The largest has 8 ranks. `pp=3` is one layer a stage: a T5's encoder ends before the last one.
const LAYOUTS: &[&str] = &[
    "dp=2;num_microbatches=3",
    "dp=4",
    "tp=2;num_microbatches=2",
    "tp=4;sequence=true",
    "cp=2",
    "cp=4;context=striped;num_microbatches=3",
    "pp=2;num_microbatches=3",
    "pp=3;num_microbatches=2;recompute=full",
    "pp=3;num_microbatches=3;schedule=gpipe",
    "dp=2;zero=1",
    "dp=2;zero=2;num_microbatches=3",
    "dp=4;zero=3",
    "cp=2,tp=2;sequence=true",
    "dp=2,tp=2,pp=2;num_microbatches=3",
    "dp=2,cp=2,pp=2;zero=2;recompute=selective;num_microbatches=2",
];

fn config(task: &str, model: &str, optimizer: &str) -> Config {
    let (task, label_column) = match task {
        SCORED => ("embed", "label_column = 'score'\n"),
        task => (task, ""),
    };
    // Embeddings of untrained models are nearly alike, and so are their gradients small. What rounding leaves of those that
    // are zero in exact arithmetic, Adam divides by its eps alone.
    let eps = if task == "embed" { "eps = 1e-6\n" } else { "" };
    let text = format!(
        "task = '{task}'\n[model]\n{model}\nembed = 12\nnum_heads = 4\nmlp = 14\n{}[data]\nsequence_length = 7\n\
         target_length = 5\n{label_column}[train]\n{eps}batch = 13\nprecision = 'f64'\noptimizer = '{optimizer}'\nmomentum = 0.9\nlr = 0.05\n\
         clip_norm = 0.5",
        if task == "image-classify" { "" } else { "vocab_size = 23\n" }
    );
    Config::from_bytes(Path::new("small.toml"), text.as_bytes(), &[], None).unwrap_or_else(|e| panic!("{e}"))
}

/// A layout for a task: pairs are compared with all of their batch, which is then in one microbatch.
fn in_layout(small: &Config, layout: &str) -> Config {
    let settings = layout
        .split(';')
        .filter(|part| small.task != train::config::Task::Embed || !part.starts_with("num_microbatches"));
    let layout = settings.collect::<Vec<_>>().join(";");
    small.with_layout(&layout).unwrap_or_else(|e| panic!("{layout}: {e}"))
}

fn record(config: &Config) -> Recording {
    Recorder { steps: 3, ..Recorder::default() }.record(config).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_layout_trains_every_task() {
    for (t, (task, model)) in TASKS.iter().enumerate() {
        for (o, optimizer) in ["sgd", "adamw"].into_iter().enumerate() {
            let small = config(task, model, optimizer);
            let one = record(&reference(&small).unwrap());
            assert!(one.gradients[2].len() > 20 && one.losses[2] != one.losses[0]);
            for (l, layout) in LAYOUTS.iter().enumerate() {
                if !pairwise(o, l + t, 2) {
                    continue;
                }
                let config = in_layout(&small, layout);
                let recording = record(&config);
                let distance = recording.distance(&one);
                let context = format!("{task} ({model}) with {optimizer} on {layout}: {distance:?}");
                assert_eq!(recording.num_disagreements, 0, "ranks hold different bits: {context}");
                assert!(distance.loss_error <= TOLERANCE, "{context}");
                assert!(distance.gradient_error <= TOLERANCE, "{context}");
                assert!(distance.parameter_error <= parameter_tolerance(&config, TOLERANCE), "{context}");
            }
        }
    }
}

/// Any legal choice gives the same numbers as the policy's.
#[test]
fn random_legal_lowering_of_every_task() {
    for (t, (task, model)) in TASKS.iter().enumerate() {
        let small = config(task, model, "sgd");
        let one = record(&reference(&small).unwrap());
        for layout in ["dp=2,tp=2;num_microbatches=2", "cp=2,tp=2", "pp=2,tp=2;num_microbatches=2"] {
            let config = in_layout(&small, layout);
            let recorder = Recorder { steps: 3, random: Some(t as u64 + 1), ..Recorder::default() };
            let recording = recorder.record(&config).unwrap_or_else(|e| panic!("{task} on {layout}: {e}"));
            let distance = recording.distance(&one);
            assert!(distance.gradient_error <= TOLERANCE, "{task} on {layout}: {distance:?}");
        }
    }
}
