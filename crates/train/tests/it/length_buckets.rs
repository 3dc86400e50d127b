//! Runs whose batches are padded to the shortest length that holds them: the same losses and parameters as with the
//! longest for all, in every layout.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use mesh::Axis;
use plan::Chooser;
use runtime::Executor;
use train::checkpoint::Checkpoint;
use train::config::{Config, Sampling};
use train::evaluate::{EvaluateOptions, evaluate};
use train::trainer::{Event, RunOptions, StepReport, train};
use train::{assemble, explain, ranks};

const BERT: &str = "family = 'bert'";
const T5: &str = "family = 't5'\nnum_decoder_layers = 2";
/// Task, model, and where its data are.
const TASKS: [(&str, &str, &str); 8] = [
    ("classify", BERT, "train = ['rows.jsonl']\nheldout = ['rest.jsonl']"),
    ("tag", BERT, "train = ['rows.iob']\nheldout = ['rest.iob']"),
    ("masked-lm", BERT, "train = ['rows.jsonl']\nheldout = ['rest.jsonl']"),
    (
        "embed",
        BERT,
        "train = ['rows.tsv']\nheldout = ['rest.tsv']\ntext_column = 'source'\npair_column = 'target'",
    ),
    ("seq2seq", T5, "train = ['rows.tsv']\nheldout = ['rest.tsv']\ntarget_length = 10"),
    (
        "seq2seq",
        T5,
        "text = ['rows.txt']\nheldout = ['rest.txt']\nspan_corruption = true\ntokenizer_vocab = 370\ntokenizer_kind = 'bytes'\ntarget_length = 12",
    ),
    ("causal-lm", "family = 'gpt2'", "train = ['rows.jsonl']\nheldout = ['rest.jsonl']"),
    (
        "causal-lm",
        "family = 'llama'",
        "text = ['rows.txt']\ntokenizer_vocab = 270\ntokenizer_kind = 'bytes'\npacking = false",
    ),
];
/// Four ranks at most.
const LAYOUTS: [&str; 12] = [
    "dp=2",
    "tp=2",
    "pp=2;num_microbatches=2",
    "cp=2",
    "dp=2;zero=1",
    "dp=2;zero=2;num_microbatches=2",
    "dp=2;zero=3",
    "dp=2,tp=2",
    "dp=1;num_microbatches=2;recompute=full",
    "cp=2,tp=2;sequence=true;context=striped",
    "pp=2,dp=2;zero=1;schedule=zb-h1;num_microbatches=2;recompute=selective",
    "pp=2;num_microbatches=4;schedule=zb-h2;post_validation=true",
];
const BUCKETS: &str = "length_buckets = [8, 12]";

/// Texts of one to thirteen words, in every form; what is hidden of a text leaves less.
fn write_data(dir: &Path) {
    let words = |first: usize, num: usize| -> Vec<String> {
        (0..num).map(|at| format!("w{}", (first * 5 + at * at) % 23)).collect()
    };
    for (name, rows) in [("rows", 0..300), ("rest", 300..330)] {
        let [mut jsonl, mut iob, mut text] = [const { String::new() }; 3];
        let mut tsv = "source\ttarget\n".to_owned();
        for row in rows {
            let read = words(row, 1 + row * 7 % 13);
            let line = read.join(" ");
            writeln!(jsonl, "{{\"text\": \"{line}\", \"label\": \"{}\"}}", ["ham", "spam"][row % 2]).unwrap();
            read.iter()
                .enumerate()
                .for_each(|(at, word)| writeln!(iob, "{word} {}", ["O", "B-X"][at % 2]).unwrap());
            iob.push('\n');
            writeln!(tsv, "{line}\t{}", words(row + 3, 1 + row * 7 % 8).join(" ")).unwrap();
            writeln!(text, "{}\n<|endoftext|>", &line[..line.len().min(1 + row % 13)]).unwrap();
        }
        for (form, content) in [("jsonl", jsonl), ("iob", iob), ("tsv", tsv), ("txt", text)] {
            fs::write(dir.join(format!("{name}.{form}")), content).unwrap();
        }
    }
}

fn load(dir: &Path, task: usize, buckets: &str, settings: &str, mesh: &str) -> Config {
    let (task, model, data) = TASKS[task];
    let mut data = format!("{data}\n{buckets}");
    for default in ["tokenizer_kind = 'words'", "tokenizer_vocab = 60"] {
        if !data.contains(&default[..default.len() - 8]) {
            write!(data, "\n{default}").unwrap();
        }
    }
    let text = format!(
        "task = '{task}'\n[model]\n{model}\nnum_layers = 2\nembed = 8\nnum_heads = 2\nmlp = 12\n[data]\n{data}\n\
         sequence_length = 16\nsampler = 'length'\n[train]\nsteps = 8\nbatch = 4\neval_every = 4\n\
         checkpoint_every = 4\nlr = 0.02\neps = 1e-6\nclip_norm = 0.5\n{settings}\n"
    );
    let text = if settings.contains("precision") { text } else { text + "precision = 'f64'\n" };
    let mesh = match task {
        // Pairs are compared with all of their batch.
        "embed" => {
            mesh.split(';').filter(|part| !part.starts_with("num_microbatches")).collect::<Vec<_>>().join(";")
        }
        _ => mesh.to_owned(),
    };
    Config::from_bytes(&dir.join("run.toml"), text.as_bytes(), &[], Some(&mesh))
        .unwrap_or_else(|e| panic!("{e}"))
}

/// What a run left.
#[derive(Clone)]
struct Found {
    steps: Vec<StepReport>,
    /// Loss, then metrics.
    validation: Vec<f64>,
    states: BTreeMap<String, Vec<f64>>,
}

fn run(config: &Config, out: PathBuf, resume: Option<PathBuf>) -> Found {
    let steps = Mutex::new(Vec::new());
    let observer = |event: Event<'_>| {
        if let Event::Step(report) = event {
            steps.lock().unwrap().push(*report);
        }
    };
    let options = RunOptions { out: Some(out), resume, ..RunOptions::default() };
    let summary = train(config, &options, &observer).unwrap_or_else(|e| panic!("{e}"));
    let validation = summary.validation.unwrap();
    let checkpoint = Checkpoint::open_verified(&summary.checkpoint.unwrap()).unwrap();
    let read = |name: &String| {
        let bytes = checkpoint.read_whole(name).unwrap();
        (name.clone(), bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect())
    };
    Found {
        steps: steps.into_inner().unwrap(),
        validation: std::iter::once(validation.validation_loss)
            .chain(validation.metrics.into_values())
            .collect(),
        states: checkpoint.manifest().tensors.keys().map(read).collect(),
    }
}

impl Found {
    /// The largest error of a loss or a norm, of what was evaluated, and of a state.
    fn distance(&self, other: &Found) -> [f64; 3] {
        assert_eq!(self.steps.len(), other.steps.len());
        let apart = |a: f64, b: f64| if a == b { 0.0 } else { (a - b).abs() / b.abs() };
        let steps = self.steps.iter().zip(&other.steps);
        let of_steps = steps.flat_map(|(a, b)| [apart(a.loss, b.loss), apart(a.grad_norm, b.grad_norm)]);
        let of_validation = self.validation.iter().zip(&other.validation).map(|(a, b)| apart(*a, *b));
        assert!(self.states.keys().eq(other.states.keys()));
        let largest = |values: &[f64]| values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let floor = 1e-3 * other.states.values().map(|values| largest(values)).fold(0.0, f64::max);
        let of_states = self.states.iter().map(|(name, a)| {
            let b = &other.states[name];
            assert_eq!(a.len(), b.len());
            let apart: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            largest(&apart) / largest(b).max(floor)
        });
        [of_steps.fold(0.0, f64::max), of_validation.fold(0.0, f64::max), of_states.fold(0.0, f64::max)]
    }

    /// How many steps were as long as each length.
    fn lengths(&self) -> BTreeMap<usize, usize> {
        let mut counts = BTreeMap::new();
        self.steps.iter().for_each(|step| *counts.entry(step.sequence_length.unwrap()).or_default() += 1);
        counts
    }
}

#[test]
fn every_task_trains_alike_with_and_without_buckets_in_every_layout() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let mut used = BTreeSet::new();
    for (t, (name, ..)) in TASKS.iter().enumerate() {
        for (o, optimizer) in
            ["optimizer = 'sgd'\nmomentum = 0.9", "optimizer = 'adamw'"].into_iter().enumerate()
        {
            let out = |name: &str| dir.path().join(format!("{t}-{o}-{}", name.replace([',', '=', ';'], "-")));
            let plain = run(&load(dir.path(), t, "", optimizer, "dp=1"), out("plain"), None);
            assert!(plain.steps.iter().all(|step| step.sequence_length.is_none()));
            assert_ne!(plain.steps[0].loss, plain.steps[7].loss);
            let check = |layout: &str| {
                let config = load(dir.path(), t, BUCKETS, optimizer, layout);
                let found = run(&config, out(layout), None);
                let [steps, validation, states] = found.distance(&plain);
                // What is hidden in an evaluation follows from the size of its batches, which microbatches change.
                let is_hidden = [2, 5].contains(&t) && layout.contains("num_microbatches");
                let validation = if is_hidden { 0.0 } else { validation };
                let context =
                    format!("{name} ({t}) with {optimizer} on {layout}: {steps:e} {validation:e} {states:e}");
                assert!(steps <= 1e-10 && validation <= 1e-8 && states <= [1e-10, 1e-8][o], "{context}");
                found
            };
            let one = check("dp=1");
            let lengths = one.lengths();
            assert!(lengths.len() > 1, "{name} ({t}): {lengths:?}");
            used.extend(lengths.keys().copied());
            for (l, layout) in LAYOUTS.iter().enumerate() {
                if (l + t + o) % 2 == 0 {
                    assert_eq!(check(layout).lengths(), lengths, "{name} on {layout}");
                }
            }
        }
    }
    assert!(used.into_iter().eq([8, 12, 16]));
}

#[test]
fn an_order_by_length_pads_less() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    for task in [0, 7] {
        let [random, length] = [Sampling::Random, Sampling::Length].map(|sampler| {
            let mut config = load(dir.path(), task, BUCKETS, "", "dp=1");
            config.data.sampler = sampler;
            let found = run(&config, dir.path().join(format!("{task}-{sampler}")), None);
            found.steps.iter().filter_map(|step| step.sequence_length).sum::<usize>()
        });
        assert!(length < random, "{task}: {length} {random}");
    }
}

#[test]
fn dropout_with_buckets_is_the_same_in_every_layout() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let with = |task: usize, layout: &str| {
        let mut config = load(dir.path(), task, BUCKETS, "", layout);
        config.model.dropout = Some(0.1);
        run(&config, dir.path().join(format!("{task}-{}", layout.replace([',', '=', ';'], "-"))), None)
    };
    for task in [0, 4, 7] {
        let one = with(task, "dp=1");
        for layout in [LAYOUTS[7], LAYOUTS[9], LAYOUTS[10]] {
            let [steps, validation, states] = with(task, layout).distance(&one);
            assert!(
                steps <= 1e-10 && validation <= 1e-8 && states <= 1e-8,
                "{task}, {layout}: {steps:e} {states:e}"
            );
        }
    }
}

#[test]
fn a_run_goes_on_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let cases = [
        (0, "precision = 'f64'", "dp=2;zero=1"),
        (4, "precision = 'f64'", "dp=1"),
        (7, "precision = 'f64'", LAYOUTS[11]),
        // Narrow copies are shared by all Programs.
        (0, "precision = 'bf16'", "dp=2;zero=1"),
        (6, "precision = 'bf16'", "dp=2;zero=2"),
        (4, "precision = 'fp16'", "dp=2;zero=3"),
    ];
    for (number, (task, precision, layout)) in cases.into_iter().enumerate() {
        let out = |name: &str| dir.path().join(format!("{number}-{name}"));
        let config = load(dir.path(), task, BUCKETS, precision, layout);
        let whole = run(&config, out("whole"), None);
        let middle = out("whole").join("checkpoints/step-00000004");
        let resumed = run(&config, out("resumed"), Some(middle));
        assert_eq!(resumed.steps.len(), 4);
        for (a, b) in resumed.steps.iter().zip(&whole.steps[4..]) {
            let bits = |step: &StepReport| [step.loss, step.grad_norm].map(f64::to_bits);
            assert_eq!(bits(a), bits(b), "{number}, step {}", a.step);
        }
        assert!(resumed.states == whole.states && resumed.validation == whole.validation, "{number}");
    }
}

#[test]
fn a_run_goes_on_with_other_buckets() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let with = |buckets: &str| load(dir.path(), 0, buckets, "", "dp=2;zero=1");
    let whole = run(&with(BUCKETS), dir.path().join("whole"), None);
    for (name, buckets) in [("none", ""), ("others", "length_buckets = [4, 5, 9, 16]")] {
        let middle = dir.path().join("whole/checkpoints/step-00000004");
        let other = run(&with(buckets), dir.path().join(name), Some(middle));
        let whole = Found { steps: whole.steps[4..].to_vec(), ..whole.clone() };
        let [steps, validation, states] = other.distance(&whole);
        assert!(steps <= 1e-10 && validation <= 1e-8 && states <= 1e-8, "{name}: {steps:e} {states:e}");
    }
}

#[test]
fn what_is_evaluated_later_has_the_scores_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    // In bf16 every Program reads the narrow copies of parameters, which a run keeps and an evaluation makes anew.
    let wide = [1, 4, 6].map(|task| (task, "", ["dp=1", "dp=2,tp=2"], 1e-8));
    let narrow =
        [1, 4, 6].map(|task| (task, "precision = 'bf16'", ["dp=2;zero=1", "dp=2"], f64::MIN_POSITIVE));
    for (task, precision, [layout, mesh], most) in wide.into_iter().chain(narrow) {
        let out = dir.path().join(format!("run-{task}-{precision}"));
        let found = run(&load(dir.path(), task, BUCKETS, precision, layout), out.clone(), None);
        let options = EvaluateOptions { mesh: Some(mesh.to_owned()), ..EvaluateOptions::default() };
        let report = evaluate(&out, &options).unwrap_or_else(|e| panic!("{e}"));
        let scores: Vec<f64> = std::iter::once(report.loss).chain(report.metrics.into_values()).collect();
        assert_eq!(scores.len(), found.validation.len());
        for (a, b) in scores.iter().zip(&found.validation) {
            assert!((a - b).abs() < most, "{task} {precision}: {scores:?} {:?}", found.validation);
        }
    }
}

#[test]
fn what_is_explained_is_what_is_reserved() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    for (task, layout) in [(0, "dp=2;zero=1"), (4, "pp=2;num_microbatches=2"), (7, "cp=2,tp=2")] {
        let mut config = load(dir.path(), task, BUCKETS, "", layout);
        config.model.vocab_size = Some(60);
        config.model.num_labels = Some(2);
        let explained = explain::explain(&config).unwrap();
        assert_eq!(explained.length_buckets, [8, 12, 16]);
        assert!(explained.to_string().contains("Batches are padded to 8, 12 or 16 tokens"));
        let built = assemble::model(&config, None).unwrap();
        let steps = assemble::steps(&config, &built).unwrap();
        let plan = &steps[0].plan;
        let reserved = ranks::run(plan.mesh.world_size(), Duration::from_secs(60), |world| {
            let stage = plan.mesh.coord(world.rank()).get(Axis::Pp);
            let programs =
                steps.iter().map(|s| s.shared(stage, &Chooser::Policy, false)).collect::<Result<_, _>>()?;
            Ok(Executor::new(world, programs, assemble::cpu(&config)?, None)?.arena_bytes() as u64)
        });
        let expected: Vec<u64> = explained.per_rank.iter().map(|rank| rank.arena_bytes).collect();
        assert_eq!(reserved.unwrap(), expected, "{task} on {layout}");
    }
}
