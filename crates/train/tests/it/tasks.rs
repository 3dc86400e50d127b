//! Every task from files to scores: training in several layouts, exact resuming, evaluation, and what is said of data
//! that do not fit.

use std::fs;
use std::path::{Path, PathBuf};

use train::TrainError;
use train::config::Config;
use train::evaluate::{EvaluateOptions, evaluate};
use train::trainer::{RunOptions, Summary, train};

use crate::gradients::fixture;

pub struct Case {
    pub name: &'static str,
    pub text: &'static str,
    files: &'static [(&'static str, &'static str)],
}

const BERT: &str = "[model]\nfamily = 'bert'\nnum_layers = 2\nembed = 16\nnum_heads = 2\nmlp = 24\n";
const LINES: &str = "The cat sat on the mat.\nA dog ran after it, and the cat ran too.\n";
const CLASSES: &str = "{\"text\": \"good and fine\", \"label\": \"yes\"}\n{\"text\": \"bad\", \"label\": \"no\"}\n\
                       {\"text\": \"fine, very good indeed\", \"label\": \"yes\"}\n{\"text\": \"a bad thing\", \"label\": \"no\"}\n\
                       {\"text\": \"\", \"label\": \"yes\"}\n{\"text\": \"good\", \"label\": \"yes\"}\n";
const TAGS: &str =
    "John B-PER\nlives O\nin O\nNew B-LOC\nYork I-LOC\n\nMary B-PER\nlives O\n\nNew B-LOC\nYork I-LOC\n\n";
const PAIRS: &str = "source\ttarget\none\teins\ntwo\tzwei\nthree\tdrei\nfour\tvier\nfive\tfünf\n";

const TEXT_PAIRS: &str = "premise,claim,label\nit rains,the street is wet,yes\nit rains,the street is dry,no\n\
                          the cat sleeps,a cat,yes\n,nothing,no\n\"a, b\",a,yes\n";
const SCORED_PAIRS: &str =
    "a\tb\tscore\ngood\tfine\t0.9\nbad\tgood\t-0.5\nthe cat\ta cat\t0.75\nrain\tthe cat\t0\n";

pub const CASES: &[Case] = &[
    Case {
        name: "masked",
        text: "task = 'masked-lm'\nMODEL[data]\ntext = ['a.txt']\ntokenizer_vocab = 270\nsequence_length = 12\nvalidation = 0.0\nheldout = ['a.txt']\n",
        files: &[("a.txt", LINES)],
    },
    Case {
        name: "classify",
        text: "task = 'classify'\nMODEL[data]\ntrain = ['a.jsonl']\nheldout = ['a.jsonl']\nsampler = 'balanced'\ntokenizer_vocab = 270\nsequence_length = 12\n",
        files: &[("a.jsonl", CLASSES)],
    },
    Case {
        name: "tag",
        text: "task = 'tag'\nMODEL[data]\ntrain = ['a.iob']\nheldout = ['a.iob']\nsampler = 'length'\ntokenizer_vocab = 270\nsequence_length = 16\n",
        files: &[("a.iob", TAGS)],
    },
    Case {
        name: "seq2seq",
        text: "task = 'seq2seq'\n[model]\nfamily = 't5'\nnum_layers = 1\nembed = 16\nnum_heads = 2\nmlp = 24\n[data]\ntrain = ['a.tsv']\nheldout = ['a.tsv']\ntokenizer_vocab = 270\nsequence_length = 10\ntarget_length = 9\n",
        files: &[("a.tsv", PAIRS)],
    },
    Case {
        name: "spans",
        text: "task = 'seq2seq'\n[model]\nfamily = 't5'\nnum_layers = 1\nembed = 16\nnum_heads = 2\nmlp = 24\n[data]\ntext = ['a.txt']\nheldout = ['a.txt']\nspan_corruption = true\ntokenizer_vocab = 370\nsequence_length = 20\ntarget_length = 9\n",
        files: &[("a.txt", LINES)],
    },
    Case {
        name: "images",
        text: "task = 'image-classify'\n[model]\nfamily = 'vit'\nnum_layers = 2\nembed = 16\nnum_heads = 2\nmlp = 24\nimage_size = 4\npatch_size = 2\nnum_channels = 1\n[data]\nimages = ['x.idx']\nlabels = ['y.idx']\nvalidation = 0.4\n",
        files: &[],
    },
    Case {
        name: "causal",
        text: "task = 'causal-lm'\n[model]\nfamily = 'gpt2'\nnum_layers = 2\nembed = 16\nnum_heads = 2\nmlp = 24\n[data]\ntrain = ['a.jsonl']\nvalidation = 0.4\ntokenizer_vocab = 270\nsequence_length = 12\n",
        files: &[("a.jsonl", CLASSES)],
    },
    Case {
        name: "text pairs",
        text: "task = 'classify'\nMODEL[data]\ntrain = ['a.csv']\nheldout = ['a.csv']\ntext_column = 'premise'\npair_column = 'claim'\ntoken_dropout = 0.2\ntokenizer_vocab = 270\nsequence_length = 16\n",
        files: &[("a.csv", TEXT_PAIRS)],
    },
    Case {
        name: "embeddings",
        text: "task = 'embed'\nMODEL[data]\ntrain = ['a.tsv']\nheldout = ['a.tsv']\ntext_column = 'source'\npair_column = 'target'\ntoken_dropout = 0.2\ntokenizer_vocab = 270\nsequence_length = 12\n",
        files: &[("a.tsv", PAIRS)],
    },
    Case {
        name: "scored pairs",
        text: "task = 'embed'\nMODEL[data]\ntrain = ['b.tsv']\nheldout = ['b.tsv']\ntext_column = 'a'\npair_column = 'b'\nlabel_column = 'score'\ntokenizer_vocab = 270\nsequence_length = 12\n",
        files: &[("b.tsv", SCORED_PAIRS)],
    },
];

pub fn write_files(dir: &Path, case: &Case) {
    for (name, content) in case.files {
        fs::write(dir.join(name), content).unwrap();
    }
    let images: Vec<u8> = (0..10u32 * 16).map(|i| (i * 37 % 256) as u8).collect();
    let header = |kind: u8, sizes: &[u32]| {
        let mut bytes = vec![0, 0, 8, kind];
        bytes.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
        bytes
    };
    fs::write(dir.join("x.idx"), [header(3, &[10, 4, 4]), images].concat()).unwrap();
    let labels: Vec<u8> = (0..10).map(|i| i % 3).collect();
    fs::write(dir.join("y.idx"), [header(1, &[10]), labels].concat()).unwrap();
}

pub fn config(dir: &Path, text: &str, mesh: &str) -> Result<Config, TrainError> {
    let text = text.replace("MODEL", BERT)
        + "[train]\nsteps = 4\nbatch = 6\nprecision = 'f64'\neval_every = 2\ncheckpoint_every = 2\nlr = 0.01\n";
    Ok(Config::from_bytes(&dir.join("run.toml"), text.as_bytes(), &[], Some(mesh))?)
}

pub fn run(config: &Config, out: PathBuf, resume: Option<PathBuf>) -> Result<Summary, TrainError> {
    let options = RunOptions { out: Some(out), resume, ..RunOptions::default() };
    train(config, &options, &|_| {})
}

#[test]
fn every_task_trains_alike_in_every_layout_resumes_and_is_evaluated() {
    for case in CASES {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), case);
        let name = case.name;
        let one = config(dir.path(), case.text, "dp=1").unwrap();
        let first = run(&one, dir.path().join("one"), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let validation = first.validation.clone().unwrap();
        let meshes = match one.task {
            // Pairs are compared with all of their batch.
            hub::Task::Embed => ["dp=2,tp=2", "dp=3,pp=2;zero=1"],
            _ => ["dp=2,tp=2;num_microbatches=2", "pp=2;num_microbatches=3;zero=1"],
        };
        for mesh in meshes {
            let other = config(dir.path(), case.text, mesh).unwrap();
            let out = dir.path().join(mesh.replace([',', '=', ';'], "-"));
            let summary = run(&other, out, None).unwrap_or_else(|e| panic!("{name} on {mesh}: {e}"));
            let apart = (summary.last_loss - first.last_loss).abs() / first.last_loss;
            assert!(apart < 1e-10, "{name} on {mesh}: {apart:e}");
            let found = summary.validation.unwrap();
            assert!((found.validation_loss - validation.validation_loss).abs() < 1e-9, "{name} on {mesh}");
            for (metric, value) in &validation.metrics {
                assert!((found.metrics[metric] - value).abs() < 1e-8, "{name} on {mesh}: {metric}");
            }
            assert_eq!(found.baseline, validation.baseline, "{name} on {mesh}");
        }
        // From the middle of an epoch, with the same bits.
        let middle = dir.path().join("one/checkpoints/step-00000002");
        let resumed = run(&one, dir.path().join("resumed"), Some(middle)).unwrap();
        assert_eq!(resumed.last_loss.to_bits(), first.last_loss.to_bits(), "{name}");
        assert_eq!(resumed.validation, first.validation, "{name}");
        let options = EvaluateOptions { mesh: Some("tp=2".to_owned()), ..EvaluateOptions::default() };
        let report = evaluate(&dir.path().join("one"), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!((report.loss - validation.validation_loss).abs() < 1e-9, "{name}");
        for (metric, value) in &validation.metrics {
            assert!((report.metrics[metric] - value).abs() < 1e-8, "{name}: {metric}");
        }
        assert_eq!(report.baseline, validation.baseline, "{name}");
        assert!(report.baseline.is_some() || name == "spans", "{name}");
    }
}

#[test]
fn other_files_are_evaluated_even_where_the_training_files_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let case = &CASES[1];
    write_files(dir.path(), case);
    run(&config(dir.path(), case.text, "dp=1").unwrap(), dir.path().join("run"), None).unwrap();
    let other = dir.path().join("other.jsonl");
    fs::write(&other, "{\"text\": \"good\", \"label\": \"yes\"}\n{\"text\": \"bad\", \"label\": \"no\"}\n")
        .unwrap();
    let options = EvaluateOptions { data: vec![other.clone()], ..EvaluateOptions::default() };
    let report = evaluate(&dir.path().join("run"), &options).unwrap();
    assert_eq!((report.num_examples, report.baseline.as_ref().unwrap().metrics["accuracy"]), (2, 0.5));
    fs::remove_file(dir.path().join("a.jsonl")).unwrap();
    let without = evaluate(&dir.path().join("run"), &options).unwrap();
    assert_eq!((without.metrics, without.baseline), (report.metrics, None));
    fs::write(&other, "{\"text\": \"good\", \"label\": \"perhaps\"}\n").unwrap();
    let message = evaluate(&dir.path().join("run"), &options).unwrap_err().to_string();
    assert!(message.contains("other.jsonl:1: the label \"perhaps\" is none of the 2"), "{message}");
}

/// A directory that a run was exported to has the run's scores on the same files, and one without the task's head is
/// refused.
#[test]
fn an_exported_directory_is_evaluated_as_its_run() {
    for name in ["classify", "tag", "seq2seq", "causal", "text pairs", "embeddings"] {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), case);
        run(&config(dir.path(), case.text, "dp=1").unwrap(), dir.path().join("run"), None).unwrap();
        let exported = dir.path().join("exported");
        train::export::export(&dir.path().join("run"), &exported, &Default::default()).unwrap();
        let data = vec![dir.path().join(case.files[0].0)];
        let of_run = EvaluateOptions { data: data.clone(), ..EvaluateOptions::default() };
        let expected = evaluate(&dir.path().join("run"), &of_run).unwrap();
        let keys = ["sequence_length", "target_length", "text_column", "pair_column"];
        let said = case.text.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
        let settings = said.map(|line| format!("data.{line}")).chain(["train.precision='f64'".to_owned()]);
        let options = EvaluateOptions {
            settings: settings.chain(["train.batch=6".to_owned()]).collect(),
            task: Some(config(dir.path(), case.text, "dp=1").unwrap().task.name().to_owned()),
            mesh: Some("dp=2,tp=2".to_owned()),
            ..of_run
        };
        let found = evaluate(&exported, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((found.step, expected.step), (None, Some(4)));
        assert!((found.loss - expected.loss).abs() < 1e-9, "{name}: {} {}", found.loss, expected.loss);
        for (metric, value) in &expected.metrics {
            assert!((found.metrics[metric] - value).abs() < 1e-8, "{name}: {metric}");
        }
        if name == "tag" {
            let other = EvaluateOptions { task: Some("classify".to_owned()), ..options };
            let message = evaluate(&exported, &other).unwrap_err().to_string();
            assert!(message.contains("so it is no whole model for classify"), "{message}");
        }
    }
    let message = evaluate(&fixture("bert-classify"), &EvaluateOptions::default()).unwrap_err().to_string();
    assert!(message.contains("name files with --data"), "{message}");
}

/// The same images by directories of classes and by paths in a record file give the same run.
#[test]
fn images_by_class_and_by_record_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let images = [
        ("dark", include_bytes!("fixtures/dark.png").as_slice()),
        ("light", include_bytes!("fixtures/light.png")),
    ];
    let mut rows = "image,label\n".to_owned();
    for (class, bytes) in images {
        fs::create_dir_all(dir.path().join("images").join(class)).unwrap();
        for number in 0..3 {
            let name = format!("images/{class}/{number}.png");
            fs::write(dir.path().join(&name), bytes).unwrap();
            rows += &format!("{name},{class}\n");
        }
    }
    fs::write(dir.path().join("a.csv"), rows).unwrap();
    let model = CASES[5].text.split("images = ").next().unwrap();
    let losses = ["images = ['images']\n", "train = ['a.csv']\n"].map(|data| {
        let text = format!("{model}{data}validation = 0.0\n");
        let out = dir.path().join(if data.starts_with("images") { "by-class" } else { "by-record" });
        run(&config(dir.path(), &text, "dp=2").unwrap(), out, None)
            .unwrap_or_else(|e| panic!("{e}"))
            .last_loss
    });
    assert_eq!(losses[0].to_bits(), losses[1].to_bits());
    fs::write(dir.path().join("images/dark/0.png"), b"GIF89a").unwrap();
    let text = format!("{model}train = ['a.csv']\n");
    let message = run(&config(dir.path(), &text, "dp=1").unwrap(), dir.path().join("bad"), None).unwrap_err();
    assert!(message.to_string().contains("0.png: cannot be read as PNG or JPEG"), "{message}");
}

#[test]
fn data_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, case: usize, file: &str, content: &str| {
        write_files(dir.path(), &CASES[case]);
        fs::write(dir.path().join(file), content).unwrap();
        let config = config(dir.path(), CASES[case].text, "dp=1").unwrap();
        let error = run(&config, dir.path().join(name), None).unwrap_err();
        assert!(!error.is_bug() && !dir.path().join(name).exists());
        error.to_string()
    };
    let message = refused("a", 1, "a.jsonl", "{\"text\": \"x\", \"label\": \"yes\"}\n{\"text\": \"x\"}\n");
    assert!(message.contains("a.jsonl:2: no column `label`"), "{message}");
    let empty = "{\"text\": \"x\", \"label\": \"yes\"}\n{\"text\": \"y\", \"label\": \"no\"}\n{\"text\": \"z\", \"label\": \" \"}\n";
    let message = refused("j", 1, "a.jsonl", empty);
    assert!(message.contains("a.jsonl:3: the label is empty"), "{message}");
    let message = refused("b", 1, "a.jsonl", "{\"text\": \"x\", \"label\": \"yes\"}\n");
    assert!(message.contains("all examples have the label yes"), "{message}");
    let message = refused("c", 2, "a.iob", "John B-PER\nlives\n");
    assert!(message.contains("a.iob:2: 1 columns where the first line has 2"), "{message}");
    let message = refused("d", 3, "a.tsv", "source\ttarget\none\teins\ntwo\n");
    assert!(message.contains("a.tsv:3: 1 fields where the first line has 2"), "{message}");
    let message = refused("e", 5, "x.idx", "PK");
    assert!(message.contains("x.idx: ends within its header"), "{message}");
    let gone = CASES[5].text.replace("x.idx", "gone");
    let error = run(&config(dir.path(), &gone, "dp=1").unwrap(), dir.path().join("i"), None).unwrap_err();
    assert!(error.to_string().contains("gone: no such file"), "{error}");
    let message = refused("f", 1, "a.jsonl", "");
    assert!(message.contains("[data] have no rows"), "{message}");
    let message = refused("h", 9, "b.tsv", "a\tb\tscore\nx\ty\t5\n");
    assert!(message.contains("b.tsv:2: the score \"5\" is no number from -1 to 1"), "{message}");
    let message = refused("g", 0, "a.txt", " \n");
    assert!(message.contains("no samples"), "{message}");
}
