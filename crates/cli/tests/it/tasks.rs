//! Tasks by the command line: trained, evaluated, exported, and everything that can be wrong with their data.

use crate::place::Place;
use crate::refusals::{Case, case, refuse};

const SPAM: &str = "task = 'classify'\n[model]\nfamily = 'bert'\nnum_layers = 2\nembed = 16\nnum_heads = 2\nmlp = 24\n\
                    [data]\ntrain = ['a.csv']\ntokenizer_vocab = 280\nsequence_length = 16\nvalidation = 0.3\n\
                    [train]\nsteps = 4\nbatch = 4\neval_every = 2\n";

/// Texts that one word tells apart.
fn texts() -> String {
    let row =
        |i: usize| format!("\"a {} thing, number {i}\",{}\n", ["good", "bad"][i % 2], ["yes", "no"][i % 2]);
    std::iter::once("text,label\n".to_owned()).chain((0..40).map(row)).collect()
}

fn place() -> Place {
    let place = Place::new();
    place.write("spam.toml", SPAM);
    place.write("a.csv", texts());
    place
}

#[test]
fn a_classifier_is_trained_evaluated_exported_and_fine_tuned() {
    let place = place();
    let train = ["train", "spam.toml", "--set", "train.steps=150", "--set", "train.lr=5e-3", "--out", "run"];
    let text = place.succeed(&train);
    assert!(text.contains("accuracy") && text.contains("(baseline "), "{text}");
    let report = place.json(&["evaluate", "run", "--json"]);
    assert_eq!((report["task"].as_str(), report["num_examples"].as_u64()), (Some("classify"), Some(12)));
    assert!(report["metrics"]["accuracy"].as_f64().unwrap() > 0.9, "{report}");
    assert!(report["baseline"]["metrics"]["accuracy"].as_f64().unwrap() < 0.6, "{report}");
    let other = place.json(&["evaluate", "run", "--mesh", "dp=2,tp=2", "--json"]);
    assert_eq!(other["metrics"]["accuracy"], report["metrics"]["accuracy"]);
    let bar = place.run(["evaluate", "run", "--at-least", "accuracy=1.1"]);
    assert_eq!(bar.status.code(), Some(1));
    assert_eq!(place.run(["evaluate", "run", "--at-least", "bleu=1"]).status.code(), Some(2));
    place.succeed(&["export", "run", "--format", "safetensors", "--out", "hf"]);
    let config = std::fs::read_to_string(place.path().join("hf/config.json")).unwrap();
    assert!(config.contains("BertForSequenceClassification") && config.contains("\"yes\""), "{config}");
    // The same labels are kept and start well; others start anew.
    let tuned = "task = 'classify'\nmodel.from = 'hf'\n[data]\ntrain = ['a.csv']\nheldout = ['a.csv']\nsequence_length = 16\n\
                 [train]\nsteps = 1\nbatch = 4\nlr = 0.0\n";
    place.write("tuned.toml", tuned);
    place.succeed(&["train", "tuned.toml", "--out", "tuned"]);
    let report = place.json(&["evaluate", "tuned", "--json"]);
    assert!(report["metrics"]["accuracy"].as_f64().unwrap() > 0.9, "{report}");
    place.write("a.csv", texts().replace("yes", "perhaps"));
    let output = place.run(["train", "tuned.toml", "--out", "anew"]);
    let message = crate::place::stderr(&output);
    assert!(
        message.contains("2 parameters are not in the directory and start anew: head.classifier"),
        "{message}"
    );
}

/// A tokenizer of words has no more of them than the texts, whatever it may learn.
#[test]
fn a_run_whose_texts_have_few_words_is_evaluated_and_continued() {
    let place = place();
    let words = ["--set", "data.tokenizer_kind=words", "--set", "data.tokenizer_vocab=2000"];
    place.succeed(&[&["train", "spam.toml", "--out", "run"], &words[..]].concat());
    let report = place.json(&["evaluate", "run", "--json"]);
    assert_eq!(report["num_examples"].as_u64(), Some(12), "{report}");
    place.succeed(&[&["train", "spam.toml", "--resume", "run", "--steps", "6"], &words[..]].concat());
}

#[test]
fn data_of_tasks() {
    let place = place();
    let bad = |name: &str, content: &[u8], says: &[&str]| -> Case {
        place.write(name, content);
        let set = format!("data.train=[\"{name}\"]");
        case(&["train", "spam.toml", "--set", &set], says)
    };
    let images = "task = 'image-classify'\n[model]\nfamily = 'vit'\nimage_size = 4\npatch_size = 2\nnum_channels = 1\n\
                  [data]\nimages = ['x.idx']\nlabels = ['y.idx']\n";
    place.write("images.toml", images);
    place
        .write("x.idx", [0, 0, 8, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    place.write("y.idx", [0, 0, 8, 1, 0, 0, 0, 2, 0, 1]);
    let cases = vec![
        bad("ragged.csv", b"text,label\na,b\nc\n", &["ragged.csv:3", "1 fields", "add what is missing"]),
        bad("latin.csv", b"text,label\n\xe9,b\n", &["latin.csv:2", "field 1 is not UTF-8", "iconv"]),
        bad("other.csv", b"body,label\na,b\n", &["no column `text`", "body, label", "[data] text_column"]),
        bad("a.jsonl", b"{\"text\": \"x\", \"label\": \"y\"}\n{\"text\n", &["a.jsonl:2", "column", "JSON"]),
        bad("a.parquet", b"PAR1\0\0PAR1", &["a.parquet", "Parquet", "write it again"]),
        bad("a.docx", b"text", &["a.docx", "`[data] format`"]),
        bad("gone/a.csv", b"text,label\na,b\n", &["all examples have the label b", "two or more"]),
        case(&["train", "spam.toml", "--set", "data.train=[\"no.csv\"]"], &["no.csv", "no such file"]),
        case(&["train", "spam.toml", "--set", "data.train=[]"], &["data.train", "record files"]),
        case(&["train", "spam.toml", "--set", "data.text_colunm=x"], &["did you mean `data.text_column`"]),
        case(
            &["train", "spam.toml", "--set", "data.sequence_length=2"],
            &["data.sequence_length = 2", "raise"],
        ),
        case(&["train", "spam.toml", "--set", "task=seq2seq"], &["seq2seq", "bert does not do", "classify"]),
        case(&["train", "images.toml"], &["x.idx", "which no image has"]),
        case(&["evaluate", "gone"], &["gone"]),
    ];
    refuse(&place, cases);
}
