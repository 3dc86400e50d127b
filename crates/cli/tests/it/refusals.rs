//! Everything the user can get wrong: exit code 2, one line that names the place and the remedy, nothing left behind.

use std::fs;

use crate::place::{Place, stderr, stdout};

pub struct Case {
    arguments: Vec<String>,
    /// What the message must contain: the place and the remedy.
    says: Vec<String>,
}

pub fn case(arguments: &[&str], says: &[&str]) -> Case {
    let owned = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
    Case { arguments: owned(arguments), says: owned(says) }
}

/// `phalanx train small.toml` with these arguments.
fn train(arguments: &[&str], says: &[&str]) -> Case {
    case(&[&["train", "small.toml"], arguments].concat(), says)
}

pub fn refuse(place: &Place, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for Case { arguments, says } in cases {
        let before = place.contents();
        let output = place.run(&arguments);
        let (out, message) = (stdout(&output), stderr(&output));
        let name = arguments.join(" ");
        if output.status.code() != Some(2) {
            wrong.push(format!("{name}: exit {:?}: {out}{message}", output.status.code()));
        } else if message.lines().count() != 1 || !message.starts_with("error: ") || !out.is_empty() {
            wrong.push(format!("{name}: not one message: {out}{message}"));
        } else if let Some(part) = says.iter().find(|part| !message.contains(part.as_str())) {
            wrong.push(format!("{name}: no `{part}` in {message}"));
        }
        let left: Vec<_> = place.contents().symmetric_difference(&before).cloned().collect();
        if !left.is_empty() {
            wrong.push(format!("{name}: left behind {left:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn meshes() {
    let place = Place::new();
    for (name, schedule) in [
        ("bad.csv", "0F0,0X0\n1F0,1B0\n"),
        ("two.csv", "0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1\n"),
        ("uneven.csv", "0F0,2F0,2B0,0B0\n1F0,1B0\n"),
        // Each waits for the other.
        ("stuck.csv", "0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n"),
    ] {
        fs::write(place.path().join(name), schedule).unwrap();
    }
    refuse(
        &place,
        vec![
            train(&["--mesh", "xp=2"], &["`xp`", "in --mesh xp=2", "did you mean"]),
            train(&["--mesh", "dp=0"], &["mesh.dp", "0", "in --mesh dp=0", "from 1"]),
            train(&["--mesh", "tp=-2"], &["mesh.tp", "-2", "in --mesh tp=-2", "from 1"]),
            train(&["--mesh", "dp=two"], &["mesh.dp", "in --mesh dp=two", "integer"]),
            train(&["--mesh", "dp=2,dp=2"], &["`dp`", "twice", "keep one"]),
            train(&["--mesh", "dp"], &["in --mesh dp", "dp=2,tp=2"]),
            train(&["--mesh", "dp=99999999999"], &["mesh.dp", "in --mesh", "from 1 to"]),
            train(&["--mesh", "tp=3"], &["tp", "3", "choose"]),
            train(&["--mesh", "tp=8"], &["tp = ", "choose"]),
            train(&["--mesh", "cp=32"], &["cp = 32", "`seq` = 16"]),
            train(&["--mesh", "ep=2"], &["ep = 2", "leave ep at 1"]),
            train(&["--mesh", "pp=8"], &["in --mesh pp=8", "`model.num_layers` = 4", "smaller pp"]),
            train(&["--mesh", "dp=2;zero=4"], &["parallel.zero", "in --mesh", "0 to 3"]),
            train(&["--mesh", "dp=2;zerro=1"], &["parallel.zerro", "did you mean `parallel.zero`"]),
            train(&["--mesh", "dp=2;schedule=1b1f"], &["1b1f", "did you mean `1f1b`"]),
            train(
                &["--mesh", "pp=2;schedule=none.csv"],
                &["parallel.schedule", "none.csv", "cannot be read"],
            ),
            train(&["--mesh", "pp=2;schedule=bad.csv"], &["bad.csv", "line 1, cell 2", "`0X0` is no action"]),
            train(
                &["--mesh", "pp=2;schedule=two.csv"],
                &["of 2 pipeline ranks, 2 microbatches and 1 stages", "num_microbatches = 1", "set these"],
            ),
            train(
                &["--mesh", "pp=2;schedule=uneven.csv"],
                &["1 stages on rank 1 and 2 on rank 0", "every rank has as many"],
            ),
            train(
                &["--mesh", "pp=2;num_microbatches=2;schedule=stuck.csv"],
                &["stuck.csv", "0B0", "1F1", "0F1"],
            ),
            train(&["--mesh", "dp=8"], &["in --mesh dp=8", "`train.batch` = 4", "raise the batch"]),
            train(&["--mesh", "dp=2;num_microbatches=3"], &["num_microbatches", "`train.batch`", "raise"]),
        ],
    );
}

#[test]
fn keys_and_values() {
    let place = Place::new();
    place.write("unknown.toml", "[model]\nfamily = \"llama\"\nnum_layer = 2\n");
    place.write("table.toml", "[modell]\nfamily = \"llama\"\n");
    place.write("type.toml", "[model]\nfamily = \"llama\"\nembed = \"wide\"\n");
    place.write("nan.toml", "[model]\nfamily = \"llama\"\n[train]\nlr = nan\n");
    place.write("nothing.toml", "");
    refuse(
        &place,
        vec![
            case(&["train", "unknown.toml"], &["`model.num_layer`", "unknown.toml:3", "`model.num_layers`"]),
            case(&["train", "table.toml"], &["`modell`", "table.toml:1", "`model`"]),
            case(&["train", "type.toml"], &["`model.embed`", "type.toml:3", "an integer"]),
            case(&["train", "nan.toml"], &["`train.lr`", "nan.toml:4", "finite"]),
            case(&["train", "nothing.toml"], &["`model.family`", "gpt2, llama, bert, t5 or vit"]),
            train(&["--set", "train.stepz=3"], &["`train.stepz`", "in --set", "`train.steps`"]),
            train(&["--set", "train.steps=many"], &["`train.steps`", "in --set", "an integer"]),
            train(&["--set", "train.lr=inf"], &["`train.lr`", "in --set", "finite"]),
            train(&["--set", "train.betas=[0.9, nan]"], &["`train.betas`", "in --set"]),
            train(&["--set", "model.dropout=1.0"], &["`model.dropout`", "below 1"]),
            train(&["--set", "train"], &["--set train", "table.key=value"]),
            train(&["--set", "model.family=bert"], &["bert", "bert does not do"]),
            train(&["--set", "train.precision=fp8"], &["train.precision", "fp8", "bf16"]),
            train(&["--set", "parallel.instruction_set=neon"], &["parallel.instruction_set", "neon", "avx2"]),
            train(&["--set", "parallel.exact=true"], &["parallel.exact"]),
            train(&["--set", "model.num_heads=5"], &["num_heads", "multiple"]),
            train(&["--steps", "0"], &["`train.steps`", "from 1"]),
        ],
    );
}

#[test]
fn configurations_that_are_none() {
    let place = Place::new();
    fs::create_dir(place.path().join("folder")).unwrap();
    place.write("binary.toml", [0u8, 159, 146, 150, 1, 2, 3]);
    place.write("latin.toml", [b'[', b'm', 0xe9, b']']);
    place.write("broken.toml", "[model\nfamily = 3");
    for command in ["train", "explain", "parity"] {
        refuse(
            &place,
            vec![
                case(&[command, "missing.toml"], &["missing.toml", "no such file", "check the path"]),
                case(&[command, "folder"], &["folder", "directory"]),
                case(&[command, "binary.toml"], &["binary.toml", "not a text file", "TOML"]),
                case(&[command, "latin.toml"], &["latin.toml", "UTF-8"]),
                case(&[command, "broken.toml"], &["broken.toml:1", "not valid TOML"]),
            ],
        );
    }
}

#[test]
fn texts_and_tokenizers() {
    let place = Place::new();
    place.write("empty.txt", "");
    place.write("blank.txt", " \n\n ");
    place.write("binary.txt", [b'a', 0, b'b']);
    place.write("short.txt", "Too short.");
    place.write("broken.json", "{ \"model\": ");
    place.succeed(&["tokenizer", "train", "text.txt", "--vocab", "300", "--out", "tokenizer.json"]);
    let text = |name: &str| format!("data.text=[\"{name}\"]");
    let set = |name: &str, says: &[&str]| train(&["--set", &text(name)], says);
    refuse(
        &place,
        vec![
            set("missing.txt", &["missing.txt", "no such file", "check the path"]),
            set("empty.txt", &["empty.txt", "no text"]),
            set("blank.txt", &["blank.txt", "no text"]),
            set("binary.txt", &["binary.txt", "binary"]),
            set("short.txt", &["training text", "sequence", "lower"]),
            train(&["--set", "data.text=[]"], &["data.text", "name at least one"]),
            train(&["--set", "data.sequence_length=100000"], &["training text", "sequence", "lower"]),
            train(&["--set", "data.tokenizer_vocab=100", "--set", "model.vocab_size=100"], &["100", "258"]),
            // a token id beyond the vocabulary
            train(
                &["--set", "data.tokenizer_vocab=400"],
                &["data.tokenizer_vocab", "`model.vocab_size` = 300"],
            ),
        ],
    );
    let without =
        fs::read_to_string(place.path().join("small.toml")).unwrap().replace("tokenizer_vocab = 300\n", "");
    place.write("small.toml", without);
    refuse(
        &place,
        vec![
            train(&[], &["data.tokenizer", "tokenizer.json"]),
            train(&["--set", "data.tokenizer=missing.json"], &["missing.json", "no such file"]),
            train(&["--set", "data.tokenizer=broken.json"], &["broken.json", "tokenizer"]),
            train(
                &["--set", "data.tokenizer=tokenizer.json", "--set", "model.vocab_size=280"],
                &["300", "280", "tokenizer"],
            ),
            train(
                &[
                    "--set",
                    "model.family=gpt2",
                    "--set",
                    "model.num_kv_heads=4",
                    "--set",
                    "model.max_positions=8",
                ],
                &["data.sequence_length", "`model.max_positions` = 8", "shorten"],
            ),
        ],
    );
}

#[test]
fn plans_that_no_machine_holds() {
    let place = Place::new();
    let arithmetic = ["the plan needs", "MiB (4 ranks x", "MiB free", "use a smaller"];
    let huge = ["--set", "model.mlp=1000000000", "--mesh", "dp=4"];
    let absurd = ["--set", "model.num_layers=1000000"];
    refuse(
        &place,
        vec![
            train(&huge, &arithmetic),
            case(&[&["parity", "small.toml"], &huge[..2], &["--mesh", "dp=4"]].concat(), &arithmetic),
            case(&[&["explain", "small.toml"], &absurd[..]].concat(), &["model.num_layers", "65536"]),
        ],
    );
}

#[test]
fn directories_and_files() {
    let place = Place::new();
    place.write("file", "not a directory");
    place.write("live/.lock", "4711\n");
    let lock = fs::File::options().write(true).open(place.path().join("live/.lock")).unwrap();
    lock.lock().unwrap();
    // A resumed run looks for its checkpoint first, so only a new run is refused here.
    refuse(
        &place,
        vec![
            train(&["--resume", "missing"], &["missing"]),
            train(&["--resume", "live"], &["live"]),
            train(&["--resume", "text.txt"], &["text.txt"]),
            case(&["generate", "missing", "--prompt", "a"], &["missing"]),
            case(&["generate", "live", "--prompt", "a"], &["live"]),
            case(
                &["tokenizer", "train", "missing.txt", "--vocab", "300", "--out", "t.json"],
                &["missing.txt"],
            ),
            case(&["tokenizer", "train", "text.txt", "--vocab", "9", "--out", "t.json"], &["9", "258"]),
            case(
                &["tokenizer", "train", "text.txt", "--vocab", "300", "--out", "text.txt/t.json"],
                &["text.txt"],
            ),
            case(&["data", "prepare", "missing.toml"], &["missing.toml"]),
        ],
    );
    // Text comes before directories, and its cache may stay: it is not the run's.
    place.succeed(&["data", "prepare", "small.toml"]);
    refuse(
        &place,
        vec![
            train(&["--out", "live"], &["live", "live run (process 4711)", "--out"]),
            train(&["--out", "file"], &["file", "check the path"]),
        ],
    );
}

#[test]
fn schedules() {
    let place = Place::new();
    place.write("bad.csv", "0F0,0X0\n");
    place.write("twice.csv", "0F0,0F0,0B0\n");
    let of = |arguments: &[&str], says: &[&str]| case(&[&["schedule"], arguments].concat(), says);
    refuse(
        &place,
        vec![
            of(&["1b1f", "--stages", "2", "--microbatches", "2"], &["1b1f", "did you mean `1f1b`"]),
            of(&["gpipe", "--stages", "0", "--microbatches", "2"], &["is 0", "at least 1"]),
            of(&["gpipe", "--stages", "2", "--microbatches", "99999999999"], &["use fewer"]),
            of(
                &["gpipe", "--stages", "2", "--microbatches", "2", "--chunks", "2"],
                &["chunks = 2", "set chunks"],
            ),
            of(&["--from-csv", "missing.csv"], &["missing.csv", "--from-csv"]),
            of(&["--from-csv", "bad.csv"], &["bad.csv", "line 1, cell 2"]),
            of(&["--from-csv", "twice.csv"], &["0F0", "2 times"]),
            of(
                &["gpipe", "--stages", "1", "--microbatches", "1", "--csv", "no/x.csv"],
                &["no/x.csv", "--csv"],
            ),
        ],
    );
}

#[test]
fn arguments_that_are_none_exit_with_2_and_a_hint() {
    let place = Place::new();
    for (arguments, hint) in [
        (&["trian", "small.toml"][..], "train"),
        (&["train"], "<CONFIG>"),
        (&["train", "small.toml", "--mush", "dp=2"], "--mesh"),
        (&["train", "small.toml", "--steps", "-3"], "--steps"),
        (&["generate", "x", "--prompt", "a", "--temperature", "nan"], "at least 0"),
        (&["generate", "x", "--prompt", "a", "--top-k", "0"], "at least 1"),
        (&["generate", "x"], "--prompt"),
        (&["parity", "small.toml", "--tolerance", "-1"], "--tolerance"),
        (&["parity", "small.toml", "--precision", "f16"], "f64"),
        (&["schedule", "gpipe"], "--stages"),
        (&["schedule", "gpipe", "--stages", "2", "--microbatches", "2", "--times", "1,2"], "three or four"),
        (&["completions", "cmd"], "bash"),
        (&[], "Usage"),
    ] {
        let before = place.contents();
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(hint), "{arguments:?}: {}", stderr(&output));
        assert_eq!(place.contents(), before, "{arguments:?}");
    }
}
