//! What a model from a Hugging Face directory drops while it trains.

use std::path::{Path, PathBuf};

use graph::{Op, Role};
use models::{Given, Model, Precision, Step, gradients_step};
use serde_json::{Value, json};
use train::assemble::{self, Built};
use train::config::Config;

use crate::gradients::fixture;

/// A fixture with other values of some keys of `config.json`.
fn directory(into: &Path, name: &str, keys: &[(&str, Value)]) -> PathBuf {
    let out = into.join(name);
    std::fs::create_dir_all(&out).unwrap();
    for file in std::fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, out.join(file.file_name().unwrap())).unwrap();
    }
    let path = out.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in keys {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    out
}

fn built(from: &Path, task: &str, setting: &str) -> Built {
    let toml = format!("task = {task:?}\n[model]\nfrom = {from:?}\n{setting}\n[data]\nsequence_length = 8\n");
    let config = Config::from_bytes(Path::new("c.toml"), toml.as_bytes(), &[], None).unwrap();
    assemble::model(&config, None).unwrap()
}

/// Where the forward drops elements, in layers the first stands for all, and with which probability.
fn dropped(built: &Built, model: &dyn Model) -> Vec<(String, f64)> {
    let step = Step::new(2, built.sequence_length);
    let given = Given { labels: true, ..built.given };
    let graph = gradients_step(model, step, &given, Precision::Uniform).unwrap();
    let probability = |op: &Op| match *op {
        Op::Dropout { p, .. } => Some(p),
        Op::Attention { dropout, .. } | Op::RelativeAttention { dropout, .. } => {
            Some(dropout).filter(|p| *p > 0.0)
        }
        _ => None,
    };
    let forward = graph.nodes().iter().filter(|node| node.role == Role::Forward);
    let drops = forward.filter_map(|node| Some((node.name.replace("layers.0.", ""), probability(&node.op)?)));
    drops.filter(|(name, _)| !name.contains("layers.")).collect()
}

/// What every layer of a decoder or encoder drops: probabilities of attention, and what both branches add.
fn layer(attention: f64, residual: f64) -> [(&'static str, f64); 3] {
    [("attention.core", attention), ("attention.dropout", residual), ("mlp.dropout", residual)]
}

#[test]
fn a_directory_trains_with_the_dropout_of_its_config_unless_told_otherwise() {
    let bert = [
        ("hidden_dropout_prob", json!(0.1)),
        ("attention_probs_dropout_prob", json!(0.2)),
        ("classifier_dropout", json!(0.3)),
    ];
    let gpt2 = [("embd_pdrop", json!(0.1)), ("attn_pdrop", json!(0.2)), ("resid_pdrop", json!(0.3))];
    let llama = [("attention_dropout", json!(0.2))];
    let t5 = [("dropout_rate", json!(0.3))];
    let encoder = [&[("embedding.dropout", 0.1)][..], &layer(0.2, 0.1)].concat();
    let t5_stack = |stack: &str, blocks: &[&str]| -> Vec<(String, f64)> {
        blocks.iter().map(|block| (format!("{stack}.{block}"), 0.3)).collect()
    };
    let owned = |places: &[(&str, f64)]| -> Vec<(String, f64)> {
        places.iter().map(|(name, p)| ((*name).to_owned(), *p)).collect()
    };
    let with_head = owned(&[&encoder[..], &[("head.dropout", 0.3)]].concat());
    let cases = [
        ("bert-classify", "classify", &bert[..], with_head.clone()),
        ("bert-tag", "tag", &bert, with_head),
        ("bert-masked-lm", "masked-lm", &bert, owned(&encoder)),
        ("vit", "image-classify", &bert[..2], owned(&encoder)),
        ("gpt2", "causal-lm", &gpt2, owned(&[&[("embedding.dropout", 0.1)][..], &layer(0.2, 0.3)].concat())),
        ("llama", "causal-lm", &llama, owned(&[("attention.core", 0.2)])),
        (
            "t5-gated",
            "seq2seq",
            &t5,
            [
                t5_stack("embedding", &["tokens.dropout", "targets.dropout"]),
                t5_stack("encoder", &["attention.core", "attention.dropout"]),
                t5_stack("encoder", &["mlp.inner_dropout", "mlp.dropout", "dropout"]),
                t5_stack("decoder", &["attention.core", "attention.dropout"]),
                t5_stack("decoder", &["cross_attention.core", "cross_attention.dropout"]),
                t5_stack("decoder", &["mlp.inner_dropout", "mlp.dropout"]),
                t5_stack("head", &["dropout"]),
            ]
            .concat(),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, task, keys, expected) in cases {
        let from = directory(dir.path(), name, keys);
        let as_described = built(&from, task, "");
        assert_eq!(dropped(&as_described, &*as_described.model), expected, "{name}");
        assert_eq!(dropped(&as_described, &*as_described.evaluated), [], "{name}");
        let none = built(&from, task, "dropout = 0.0");
        assert_eq!(dropped(&none, &*none.model), [], "{name}");
        let everywhere = built(&from, task, "dropout = 0.25");
        let probabilities: Vec<f64> =
            dropped(&everywhere, &*everywhere.model).into_iter().map(|(_, p)| p).collect();
        assert!(probabilities.len() >= expected.len() && probabilities.iter().all(|p| *p == 0.25), "{name}");
    }
}
