//! A directory of its own for each test, with a small configuration and a text, and the binary run in it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "\
[model]
family = \"llama\"
num_layers = 4
embed = 16
num_heads = 4
num_kv_heads = 2
mlp = 24
vocab_size = 300
[data]
text = [\"text.txt\"]
tokenizer_vocab = 300
sequence_length = 16
validation = 0.1
[train]
steps = 6
batch = 4
warmup_steps = 2
eval_every = 3
";

/// A test's directory.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// With `small.toml` and `text.txt` in it.
    pub fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let lines = (0..400)
            .map(|i| format!("Line {i} says that {} and {} are not alike.\n", i * 7 % 31, i * 5 % 17));
        place.write("text.txt", lines.collect::<String>());
        place.write("small.toml", CONFIG);
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Every file and directory below.
    pub fn contents(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, all: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, all);
                }
                all.insert(path);
            }
        }
        let mut all = BTreeSet::new();
        walk(self.path(), &mut all);
        all
    }

    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        command.args(arguments).current_dir(self.path()).env("RUST_BACKTRACE", "0");
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Stdout of a command that must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    /// The one JSON document on stdout of a command that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.succeed(arguments);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e} in\n{text}"))
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
