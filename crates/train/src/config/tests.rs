//! Tests of the configuration: what is read, and the message for each fault.

use std::path::Path;

use proptest::prelude::*;

use super::{Config, ConfigError, Family, LrSchedule, MeshSizes, Name, Optimizer, Parallel, Precision};
use super::{keys::TABLES, parse_layout, parse_mesh};

const LLAMA: &str = "[model]\nfamily = \"llama\"\n";

fn load(text: &str, sets: &[&str], mesh: Option<&str>) -> Result<Config, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Config::from_bytes(Path::new("/runs/tiny.toml"), text.as_bytes(), &sets, mesh)
}

#[test]
fn the_contracts_example_and_its_defaults() {
    let config = load(include_str!("tests/contract.toml"), &[], None).unwrap();
    assert_eq!(config.name, "tiny");
    assert_eq!((config.model.num_kv_heads, config.model.vocab_size), (Some(2), Some(8192)));
    assert_eq!(config.data.text, [Path::new("/runs/a.txt"), Path::new("/runs/b.txt")]);
    assert_eq!(config.data.tokenizer.as_deref(), Some(Path::new("/runs/tokenizer.json")));
    assert_eq!(config.parallel.mesh, MeshSizes { dp: 2, tp: 2, ..MeshSizes::default() });
    assert_eq!(config.parallel.mesh.world_size(), 4);

    let bare = load(LLAMA, &[], None).unwrap();
    assert_eq!(bare.train, config.train);
    assert_eq!(bare.parallel, Parallel { mesh: MeshSizes::default(), ..config.parallel });
    let model = super::Model {
        num_kv_heads: None,
        head_dim: None,
        mlp: None,
        vocab_size: None,
        max_positions: None,
        dropout: None,
        ..config.model
    };
    assert_eq!(bare.model, model);
    assert_eq!(bare.parallel.deadline_seconds, 60.0);
    assert_eq!(bare.resolved().model.mlp, Some(1024));
    assert_eq!((bare.resolved().model.max_positions, bare.resolved().model.dropout), (Some(256), Some(0.0)));
    let gpt2 = load("model.family = 'gpt2'\nmodel.embed = 96", &[], None).unwrap();
    assert_eq!(
        (gpt2.model.family, gpt2.model.resolved_mlp(), gpt2.model.resolved_head_dim()),
        (Family::Gpt2, 384, 16)
    );
}

#[test]
fn every_listed_key_is_known_and_written() {
    let mut config = load(LLAMA, &["model.vocab_size=8", "data.tokenizer=t.json"], None).unwrap();
    let mut written = config.to_toml();
    config.data.tokenizer = None;
    config.data.tokenizer_vocab = Some(8);
    written.push_str(&config.to_toml());
    for (task, family) in [("seq2seq", "t5"), ("image-classify", "vit")] {
        let text = format!("task = '{task}'\nmodel.family = '{family}'");
        let sets = [
            "model.num_decoder_layers=2",
            "model.num_labels=3",
            "data.format=csv",
            "data.text_column=a",
            "data.label_column=b",
            "data.target_length=4",
        ];
        written.push_str(&load(&text, &sets, None).unwrap().to_toml());
    }
    let pairs = "task = 'embed'\nmodel.family = 'bert'\ndata.pair_column = 'b'";
    written.push_str(&load(pairs, &[], None).unwrap().to_toml());
    config.model.from = Some("/hf".into());
    written.push_str(&config.to_toml());
    for (table, keys) in TABLES {
        for key in keys {
            assert!(written.contains(&format!("\n{key} = ")), "{table}.{key} is not written");
            // A date is a wrong value for every key, and only then is the key's own fault found.
            let set = format!("[{table}]\n{key} = 1979-05-27");
            let message = load(&set, &[], None).unwrap_err().to_string();
            let expected = format!("`{table}.{key}` must be ");
            assert!(message.starts_with(&expected), "{message}");
            assert!(message.ends_with("not the date 1979-05-27 in /runs/tiny.toml:2"), "{message}");
        }
    }
}

#[test]
fn the_command_line_overrides_the_file() {
    let sets = [
        "train.steps=7",
        "train.lr = 1e-2",
        "train.precision=bf16",
        "train.lr_schedule=\"wsd\"",
        "train.betas=[0.8, 0.99]",
        "data.text=[\"x.txt\"]",
        "data.tokenizer=2024",
        "parallel.mesh.pp=2",
        "train.steps=8",
        "train.optimizer=sgd",
        "train.momentum=0.9",
        "train.nesterov=true",
        "train.batch=1_000",
    ];
    let config = load(LLAMA, &sets, None).unwrap();
    assert_eq!((config.train.steps, config.train.lr, config.train.batch), (8, 1e-2, 1000));
    assert_eq!((config.train.precision, config.train.lr_schedule), (Precision::Bf16, LrSchedule::Wsd));
    assert_eq!((config.train.betas, config.train.optimizer), ([0.8, 0.99], Optimizer::Sgd));
    assert_eq!((config.parallel.mesh.pp, config.train.nesterov), (2, true));
    // On the command line paths start from the working directory.
    let here = std::env::current_dir().unwrap();
    assert_eq!(config.data.text, [here.join("x.txt")]);
    assert_eq!(config.data.tokenizer, Some(here.join("2024")));

    let file = format!("{LLAMA}[parallel]\nmesh = {{ dp = 4, pp = 2 }}\nzero = 1\n");
    let replaced = load(&file, &["parallel.mesh=dp=8"], Some("tp=2")).unwrap();
    assert_eq!(replaced.parallel.mesh, MeshSizes { tp: 2, ..MeshSizes::default() });
    assert_eq!(replaced.parallel.zero, 1);
    let more =
        replaced.with_layout("dp=2,pp=3;zero=3;sequence=true;schedule=gpipe;num_microbatches=4").unwrap();
    assert_eq!((more.parallel.zero, more.parallel.sequence, more.parallel.num_microbatches), (3, true, 4));
    assert_eq!(
        (more.parallel.schedule.as_str(), more.parallel.mesh.to_string().as_str()),
        ("gpipe", "dp=2,pp=3")
    );
}

#[test]
fn a_written_configuration_reads_back() {
    let from = load("model.from = 'hf'\nmodel.dropout = 0.1", &[], None).unwrap();
    assert_eq!(from.model.from.as_deref(), Some(Path::new("/runs/hf")));
    let odd = "[data]\ntext = [\"quote \\\" tab \\t \\\\.txt\", \"ü.txt\"]\n";
    let sets = [
        "train.eps=1e-300",
        "train.lr=0.1",
        "train.seed=9223372036854775807",
        "model.mlp=7",
        "train.clip_norm=3",
    ];
    let odd = load(&format!("{LLAMA}{odd}"), &sets, Some("dp=2;zero=2")).unwrap();
    for config in [from, odd, load(include_str!("tests/contract.toml"), &[], None).unwrap()] {
        let text = config.to_toml();
        let back = load(&text, &[], None).unwrap();
        assert_eq!(back, config.resolved(), "{text}");
        assert_eq!(back.to_toml(), text);
    }
}

#[test]
fn names_are_complete() {
    for name in ["f32", "f64", "bf16", "fp16"] {
        assert_eq!(Precision::from_name(name).unwrap().to_string(), name);
    }
    for name in ["sgd", "adam", "adamw"] {
        assert_eq!(Optimizer::from_name(name).unwrap().to_string(), name);
    }
    for name in ["constant", "linear", "cosine", "wsd"] {
        assert_eq!(LrSchedule::from_name(name).unwrap().to_string(), name);
    }
}

/// Bad lines after `[model]`, `family` on line 2, and the whole message; `F` stands for the file.
const BAD_LINES: &[(&str, &str)] = &[
    ("[train]\nstpes = 3", "unknown key `train.stpes` in F:4; did you mean `train.steps`?"),
    ("lr = 0.1", "unknown key `model.lr` in F:3; did you mean `train.lr`?"),
    ("[modle]\nembed = 3", "unknown table `modle` in F:3; did you mean `model`?"),
    ("[[data]]\ntext = []", "`data` must be a table, not array in F:3"),
    ("[train]\nsteps = \"many\"", "`train.steps` must be an integer, not the string \"many\" in F:4"),
    ("[train]\nsteps = 300.0", "`train.steps` must be an integer, not the float 300.0 in F:4"),
    ("[train]\nsteps = 0", "`train.steps` is 0 in F:4; it must be an integer from 1 to 1099511627776"),
    ("[train]\nbatch = -1", "`train.batch` is -1 in F:4; it must be an integer from 1 to 1099511627776"),
    (
        "[train]\nseed = 99999999999999999999",
        "`train.seed` is 99999999999999999999 in F:4; it must be an integer from 0 to 9223372036854775807",
    ),
    ("[train]\nlr = nan", "`train.lr` is nan in F:4; it must be a finite number of at least 0"),
    ("[train]\nlr = inf", "`train.lr` is inf in F:4; it must be a finite number of at least 0"),
    ("[train]\nlr = 1e999", "`train.lr` is 1e999 in F:4; it must be a finite number of at least 0"),
    ("[train]\nlr = -1e-3", "`train.lr` is -1e-3 in F:4; it must be a finite number of at least 0"),
    ("[train]\nlr = true", "`train.lr` must be a number, not true in F:4"),
    ("[train]\neps = 0", "`train.eps` is 0 in F:4; it must be a finite number above 0"),
    ("[train]\nbetas = [0.9, 1.0]", "`train.betas` is 1.0 in F:4; it must be a number from 0 to below 1"),
    ("[train]\nbetas = [0.9]", "`train.betas` must be an array of two numbers, not an array of 1 in F:4"),
    (
        "[train]\noptimizer = \"adamv\"",
        "`train.optimizer` is \"adamv\" in F:4; did you mean \"adam\"? Known: sgd, adam, adamw",
    ),
    (
        "[train]\nmin_lr = 0.5",
        "`train.min_lr` = 0.5 in F:4 is more than `train.lr` = 0.001; the learning rate falls to min_lr: lower it",
    ),
    (
        "[train]\nnesterov = true",
        "`train.nesterov` in F:4 cannot stand beside `train.optimizer`: only sgd has a Nesterov momentum; remove one of them",
    ),
    ("dropout = 1.0", "`model.dropout` is 1.0 in F:3; it must be a number from 0 to below 1"),
    (
        "num_heads = 5",
        "`model.embed` = 384 (the default) is not a multiple of `model.num_heads` = 5 in F:3; change one of them",
    ),
    (
        "num_kv_heads = 4",
        "`model.num_heads` = 6 (the default) is not a multiple of `model.num_kv_heads` = 4 in F:3; change one of them",
    ),
    ("head_dim = 5", "`model.head_dim` is 5 in F:3; it must be even, since rotary positions turn pairs"),
    (
        "from = \"hf\"",
        "`model.family` in F:2 cannot stand beside `model.from`: the directory's config.json gives it; remove one of them",
    ),
    ("tied = 1", "`model.tied` must be true or false, not the integer 1 in F:3"),
    ("[data]\nvalidation = 1", "`data.validation` is 1 in F:4; it must be a number from 0 to below 1"),
    (
        "[data]\nsequence_length = 0",
        "`data.sequence_length` is 0 in F:4; it must be an integer from 1 to 1099511627776",
    ),
    ("[data]\ntext = [1]", "`data.text` must be an array of strings, not an array of 1 in F:4"),
    ("[data]\ntokenizer = \"\"", "`data.tokenizer` is \"\" in F:4; it must be a path"),
    (
        "[data]\ntokenizer = \"t\"\ntokenizer_vocab = 512",
        "`data.tokenizer_vocab` in F:5 cannot stand beside `data.tokenizer`: one trains a tokenizer, the other reads one; remove one of them",
    ),
    (
        "vocab_size = 300\n[data]\ntokenizer_vocab = 512",
        "`data.tokenizer_vocab` = 512 in F:5 is more than `model.vocab_size` = 300; raise the model's or lower the tokenizer's",
    ),
    (
        "[parallel]\nmesh = { dp = 0 }",
        "`parallel.mesh.dp` is 0 in F:4; it must be an integer from 1 to 16777216",
    ),
    (
        "[parallel]\nmesh = { dp = 2, pd = 2 }",
        "unknown mesh axis `pd` in F:4; did you mean `dp`? Axes are dp, cp, tp, pp, ep",
    ),
    ("[parallel.mesh]\ntp = -2", "`parallel.mesh.tp` is -2 in F:4; it must be an integer from 1 to 16777216"),
    (
        "[parallel]\nmesh = 4",
        "`parallel.mesh` must be a table of axes, as { dp = 2, tp = 2 }, not the integer 4 in F:4",
    ),
    (
        "[parallel]\nmesh = { dp = 16777216, tp = 16777216 }",
        "`parallel.mesh` = dp=16777216,tp=16777216 in F:4 is more than the largest world = 16777216; use fewer ranks",
    ),
    ("[parallel]\nzero = 4", "`parallel.zero` is 4 in F:4; it must be an integer from 0 to 3"),
    (
        "[parallel]\nschedule = \"1b1f\"",
        "`parallel.schedule` in F:4: unknown schedule `1b1f`; did you mean `1f1b`? Known: gpipe, looped, 1f1b, interleaved, zb-h1, zb-h2, zb-v, dualpipe-v, auto",
    ),
    (
        "[parallel]\nchunks = 2",
        "`parallel.schedule` in F:4: schedule `1f1b` has one stage per pipeline rank, not chunks = 2; set chunks = 1",
    ),
    (
        "[parallel]\nnum_microbatches = 17",
        "`parallel.num_microbatches` = 17 for each of dp = 1 in F:4 is more than `train.batch` = 16; each microbatch needs a sequence: raise the batch or use fewer microbatches",
    ),
    (
        "[parallel]\nmesh = { pp = 7 }",
        "`parallel.mesh` = 7 x 1 stages in F:4 is more than `model.num_layers` = 6; use a smaller pp or fewer chunks, or add layers",
    ),
    (
        "[parallel]\nrecompute = \"ful\"",
        "`parallel.recompute` is \"ful\" in F:4; did you mean \"full\"? Known: none, selective, full, norm, activation, dropout, rotary, attention, linear",
    ),
    (
        "[parallel]\nrecompute = [\"norm\", \"atention\"]",
        "`parallel.recompute` is \"atention\" in F:4; did you mean \"attention\"? Known: norm, activation, dropout, rotary, attention, linear",
    ),
    (
        "[parallel]\nrecompute_layers = 2",
        "`parallel.recompute_layers` in F:4 cannot stand beside `parallel.recompute = none`: in no layer is anything computed again: set parallel.recompute",
    ),
    (
        "[parallel]\ndeadline_seconds = 0",
        "`parallel.deadline_seconds` is 0 in F:4; it must be a finite number above 0",
    ),
];

#[test]
fn each_bad_line_has_its_message() {
    for (lines, expected) in BAD_LINES {
        let message = load(&format!("{LLAMA}{lines}\n"), &[], None).unwrap_err().to_string();
        assert_eq!(message, expected.replace("F:", "/runs/tiny.toml:"), "{lines}");
    }
}

#[test]
fn length_buckets_are_checked() {
    let file = |text: &str| load(text, &[], None);
    let tag = "task = 'tag'\nmodel.family = 'bert'\ndata.sequence_length = 64\n";
    let config = file(&format!("{tag}data.length_buckets = [16, 32, 64]")).unwrap();
    assert_eq!(config.data.length_buckets, [16, 32, 64]);
    let set = load(tag, &["data.length_buckets=[8, 24]"], None).unwrap();
    assert_eq!(set.data.length_buckets, [8, 24]);
    let again = Config::from_bytes(Path::new("again.toml"), set.to_toml().as_bytes(), &[], None).unwrap();
    assert_eq!(again.data.length_buckets, [8, 24]);
    let refused = |settings: &str, part: &str| {
        let message = file(settings).unwrap_err().to_string();
        assert!(message.contains("`data.length_buckets`") && message.contains(part), "{message}");
    };
    let lengths = |list: &str| format!("{tag}data.length_buckets = {list}");
    refused(&lengths("32"), "must be an array of integers, not the integer 32 in /runs/tiny.toml:4");
    refused(&lengths("[8, 0]"), "is 0 in /runs/tiny.toml:4; it must be an integer from 1 to");
    refused(&lengths("[16, 8]"), "is [.., 16, 8, ..] in /runs/tiny.toml:4; it must be in ascending order");
    refused(&lengths("[8, 8]"), "it must be in ascending order");
    refused(&lengths("[16, 65]"), "= 65 in /runs/tiny.toml:4 is more than `data.sequence_length` = 64");
    let many: Vec<String> = (1..=65).map(|length| length.to_string()).collect();
    refused(
        &format!("{tag}data.length_buckets = [{}]\ndata.sequence_length = 65", many.join(", "))
            .replace("data.sequence_length = 64\n", ""),
        "it must be of at most 64 lengths",
    );
    let split = |layout: &str| format!("{}\nparallel.mesh = {layout}", lengths("[2, 8]"));
    refused(&split("{ cp = 4 }"), "it must be at least 4, for each rank of cp has a part of a sequence");
    refused(
        &split("{ tp = 4 }\nparallel.sequence = true\nmodel.num_heads = 8"),
        "each rank of tp has a part",
    );
    assert!(file(&split("{ tp = 4 }\nmodel.num_heads = 8")).is_ok());
    refused(
        "task = 'image-classify'\nmodel.family = 'vit'\ndata.length_buckets = [8]",
        "images have no lengths",
    );
    let text = "model.family = 'gpt2'\ndata.length_buckets = [8]\n";
    refused(text, "cannot stand beside `data.packing`");
    assert!(file(&format!("{text}data.packing = false")).is_ok());
    assert!(file(&format!("{text}data.train = ['a.jsonl']")).is_ok());
}

#[test]
fn families_and_syntax_have_their_messages() {
    let file = |text: &str| load(text, &[], None).unwrap_err().to_string();
    for (family, tasks) in
        [("bert", "masked-lm, classify, tag, embed"), ("t5", "seq2seq"), ("vit", "image-classify")]
    {
        let expected =
            format!("`task` is \"causal-lm\" (the default), which {family} does not do; it does {tasks}");
        assert_eq!(file(&format!("model.family = \"{family}\"")), expected);
    }
    assert!(
        file("task = 'taggg'\n").contains("`task` is \"taggg\" in /runs/tiny.toml:1; did you mean \"tag\"?")
    );
    assert!(file("tsk = 'tag'\n").contains("unknown table `tsk` in /runs/tiny.toml:1; did you mean `task`?"));
    let bert = "task = 'tag'\nmodel.family = 'bert'\n";
    assert!(load(bert, &["task=masked-lm"], None).is_ok_and(|config| config.task == super::Task::MaskedLm));
    assert!(
        file(&format!("{bert}data.sampler = 'balanced'"))
            .contains("only classify and image-classify have classes")
    );
    let classify = "task = 'classify'\nmodel.family = 'bert'\ndata.sampler = 'weighted'\n";
    assert!(file(classify).starts_with("`data.class_weights` is missing; say how often"));
    assert!(load(&format!("{classify}data.class_weights = {{ a = 2, b = 0.5 }}"), &[], None).is_ok());
    assert!(file(&format!("{classify}data.class_weights = {{ a = -2 }}")).contains("at least 0"));
    let vit = "task = 'image-classify'\nmodel.family = 'vit'\nmodel.patch_size = 15";
    assert!(
        file(vit)
            .contains("`model.image_size` = 224 (the default) is not a multiple of `model.patch_size` = 15")
    );
    assert!(file("model.family = \"lama\"").contains("did you mean \"llama\"? Known: gpt2, llama, bert"));
    assert!(
        file("")
            .starts_with("`model.family` is missing; set it to gpt2, llama, bert, t5 or vit, or set `model")
    );
    assert!(
        file("steps = 3").contains("unknown table `steps` in /runs/tiny.toml:1; did you mean `train.steps`?")
    );
    assert!(file("[model]\nembed = = 3").starts_with("/runs/tiny.toml:2:9 is not valid TOML: "));
    let twice = file("[model]\nembed = 3\nembed = 4");
    assert!(twice.starts_with("/runs/tiny.toml:3:1 is not valid TOML: duplicate key"), "{twice}");
    let gpt2 = "model.family = 'gpt2'\n";
    let grouped = file(&format!("{gpt2}model.num_kv_heads = 2"));
    assert!(
        grouped.ends_with("it must be num_heads, since only llama has grouped heads; remove it"),
        "{grouped}"
    );
    let positions = file(&format!("{gpt2}model.max_positions = 128"));
    assert!(
        positions
            .contains("`data.sequence_length` = 256 (the default) is more than `model.max_positions` = 128")
    );
}

#[test]
fn bad_arguments_have_their_messages() {
    let set = |set: &str| load(LLAMA, &[set], None).unwrap_err().to_string();
    let table = [
        ("train.stpes=3", "unknown key `train.stpes` in --set train.stpes=3; did you mean `train.steps`?"),
        ("seed=3", "unknown table `seed` in --set seed=3; did you mean `train.seed`?"),
        ("trian.seed=3", "unknown table `trian` in --set trian.seed=3; did you mean `train`?"),
        (
            "train.seed",
            "cannot read \"train.seed\" in --set train.seed; write table.key=value, as in train.steps=100",
        ),
        (
            "train.=1",
            "cannot read \"train.=1\" in --set train.=1; write table.key=value, as in train.steps=100",
        ),
        ("=1", "cannot read \"=1\" in --set =1; write table.key=value, as in train.steps=100"),
        ("train.steps=", "`train.steps` must be an integer, not the string \"\" in --set train.steps="),
        (
            "train.steps=ten",
            "`train.steps` must be an integer, not the string \"ten\" in --set train.steps=ten",
        ),
        (
            "parallel.mesh.td=2",
            "unknown mesh axis `td` in --set parallel.mesh.td=2; did you mean `tp`? Axes are dp, cp, tp, pp, ep",
        ),
    ];
    for (argument, expected) in table {
        assert_eq!(set(argument), expected);
    }
    let mesh = |text: &str| parse_mesh(text).unwrap_err().to_string();
    let table = [
        ("dp=0", "`mesh.dp` is 0 in --mesh dp=0; it must be an integer from 1 to 16777216"),
        ("dp=-2", "`mesh.dp` is -2 in --mesh dp=-2; it must be an integer from 1 to 16777216"),
        ("dp=two", "`mesh.dp` must be an integer, not the string \"two\" in --mesh dp=two"),
        ("dp2", "cannot read \"dp2\" in --mesh dp2; write a mesh as dp=2,tp=2"),
        ("", "cannot read \"\" in --mesh ; write a mesh as dp=2,tp=2"),
        ("dp=2,dp=3", "mesh axis `dp` is given twice in --mesh dp=2,dp=3; keep one"),
        (
            "zero=3",
            "cannot read \"zero\" in --mesh zero=3; other settings go after a mesh and a semicolon, as in dp=2;zero=3",
        ),
        ("tpp=2", "unknown mesh axis `tpp` in --mesh tpp=2; did you mean `tp`? Axes are dp, cp, tp, pp, ep"),
    ];
    for (argument, expected) in table {
        assert_eq!(mesh(argument), expected);
    }
    let layout = |text: &str| parse_layout(text, &Parallel::default()).unwrap_err().to_string();
    assert!(
        layout("dp=2;zeor=1")
            .starts_with("unknown key `parallel.zeor` in --mesh dp=2;zeor=1; did you mean `parallel.zero`?")
    );
    assert!(layout("dp=2;zero").starts_with("cannot read \"zero\" in --mesh dp=2;zero; after the mesh"));
    assert!(layout("dp=2;zero=x").contains("`parallel.zero` must be an integer, not the string \"x\""));
    let many = load(LLAMA, &[], Some("dp=32")).unwrap_err().to_string();
    assert!(many.contains("for each of dp = 32 in --mesh dp=32 is more than `train.batch` = 16"), "{many}");
}

#[test]
fn bad_files_have_their_messages() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| Config::load(path, &[], None).unwrap_err().to_string();
    let path = folder.path().join("none.toml");
    assert_eq!(
        message(&path),
        format!("cannot read configuration {}: there is no such file; check the path", path.display())
    );
    assert!(message(folder.path()).ends_with("it is a directory; name a TOML file in it"));
    let path = folder.path().join("bad.toml");
    for (bytes, reason) in [
        (&b"a = \"\xff\""[..], "(byte 5 is not UTF-8)"),
        (&b"\x7fELF\0\0"[..], "(byte 4 is 0)"),
        (&vec![b'#'; (1 << 20) + 1][..], "(it has more than 1048576 bytes)"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let expected =
            format!("{} is not a text file {reason}; a configuration is TOML in UTF-8", path.display());
        assert_eq!(message(&path), expected);
    }
    std::fs::write(&path, format!("{LLAMA}[data]\ntext = [\"a.txt\"]\r\n")).unwrap();
    let config = Config::load(&path, &[], None).unwrap();
    assert_eq!((config.name.as_str(), config.data.text), ("bad", vec![folder.path().join("a.txt")]));
}

#[test]
fn deep_nesting_is_refused() {
    for text in [
        format!("model = {}", "[".repeat(100_000)),
        format!("{} = 1", vec!["a"; 100_000].join(".")),
        format!("[{}]", vec!["model"; 100_000].join(".")),
        format!("model.x = {}1", "{a=".repeat(100_000)),
    ] {
        assert!(load(&text, &[], None).is_err());
        assert!(load(LLAMA, &[&format!("train.{text}")], Some(&text)).is_err());
    }
}

/// Text made of the pieces of configurations, which gets further than noise does.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("[model]\n".to_string()),
        Just("[parallel]\n".to_string()),
        Just("[train]\n".to_string()),
        Just("mesh = {".to_string()),
        Just("}".to_string()),
        Just("\n".to_string()),
        Just(" = ".to_string()),
        Just("dp=".to_string()),
        Just(",".to_string()),
        Just(";".to_string()),
        Just(".".to_string()),
        Just("family = 'llama'\n".to_string()),
        Just("num_heads = ".to_string()),
        Just("embed = ".to_string()),
        Just("zero=".to_string()),
        Just("betas = [".to_string()),
        Just("]".to_string()),
        Just("pp=".to_string()),
        Just("train.steps=".to_string()),
        Just("parallel.mesh.".to_string()),
        Just("num_microbatches=".to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        (0..9i64).prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<String>(),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        Config::from_bytes(Path::new("any.toml"), &bytes, &[], None).ok();
    }

    #[test]
    fn any_pieces_are_read_or_refused(file in pieces(), set in pieces(), mesh in pieces()) {
        for (file, sets, mesh) in [
            (file.as_str(), vec![], None), (LLAMA, vec![set.as_str()], None), (LLAMA, vec![], Some(mesh.as_str())),
        ] {
            match load(file, &sets, mesh) {
                Ok(config) => prop_assert_eq!(load(&config.to_toml(), &[], None).unwrap(), config.resolved()),
                Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
            }
        }
    }
}
