//! The project's tasks: `cargo xtask test`, `test-processes`, `lint` and `bench`. They call cargo and read source
//! files; what is tested or linted is not decided here.

mod bench;
mod processes;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask TASK

  test [--full] [ARGS]   all tests in the release profile; --full takes the exhaustive matrices instead of a
                         pairwise selection, and the tests of several processes too; ARGS go to `cargo test` (for
                         example `-p phalanx-plan`)
  test-processes [--full] [--strict]
                         tests of ranks in several processes, over Gloo, MPI and etcd as far as they are installed;
                         what is missing is named, and with --strict a failure
  lint                   formatting, clippy, documentation, length of files
  bench [FLAGS]          Phalanx beside PyTorch on this machine; `cargo xtask bench --help` has the flags
";

/// A file longer than this does more than one thing.
const MAX_LINES: usize = 600;
/// Where the project's own source files are.
const SOURCE_DIRS: [&str; 4] = ["crates", "xtask", "bench", "examples"];
/// What tests could need beyond the Rust toolchain, and why none of `cargo xtask test` needs it.
const SERVICES: [(&str, &str); 3] = [
    ("GPU", "kernels are for the CPU alone"),
    ("Gloo, MPI or etcd", "they have their own: `cargo xtask test-processes`"),
    ("network", "example texts are in the repository"),
];

/// Why a task did not succeed.
#[derive(Debug)]
enum Failure {
    /// The call or its surroundings are wrong: exit 2.
    Usage(String),
    /// A check or a program failed: exit 1.
    Failed(String),
}

impl Failure {
    fn file(path: &Path, error: &io::Error) -> Failure {
        Failure::Usage(format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Usage(message) | Failure::Failed(message)) = self;
        f.write_str(message)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((task, rest)) if task == "test" => test(rest).map_err(Failure::Failed),
        Some((task, rest)) if task == "test-processes" => {
            let has = |flag: &str| rest.iter().any(|word| word == flag);
            match rest.iter().find(|word| !["--full", "--strict"].contains(&word.as_str())) {
                Some(word) => Err(Failure::Usage(format!("test-processes knows no {word}"))),
                None => processes::test(has("--full"), has("--strict")).map_err(Failure::Failed),
            }
        }
        Some((task, [])) if task == "lint" => lint().map_err(Failure::Failed),
        Some((task, rest)) if task == "bench" => bench::bench(rest),
        Some((task, _)) if ["help", "--help", "-h"].contains(&task.as_str()) => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    let Err(failure) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {failure}");
    match failure {
        Failure::Usage(_) => ExitCode::from(2),
        Failure::Failed(_) => ExitCode::FAILURE,
    }
}

/// Runs every test. There is one build profile, release, so that dependencies compile once.
fn test(args: &[String]) -> Result<(), String> {
    let full = args.iter().any(|a| a == "--full");
    let mut cargo = cargo(&["test", "--release"]);
    let all = !args.iter().any(|a| ["-p", "--package"].contains(&a.as_str()));
    if all {
        cargo.arg("--workspace");
    }
    cargo.args(args.iter().filter(|a| *a != "--full"));
    match full {
        true => cargo.env("PHALANX_FULL", "1"),
        false => cargo.env_remove("PHALANX_FULL"),
    };
    for (service, reason) in SERVICES {
        println!("skipped: no test here uses {service} ({reason})");
    }
    let selection = if full { "exhaustive" } else { "a pairwise selection (--full takes all)" };
    println!("matrices: {selection}");
    run(cargo)?;
    if full && all { processes::test(full, false) } else { Ok(()) }
}

/// Runs every check even if an earlier one fails, so that one run shows all there is to mend.
fn lint() -> Result<(), String> {
    let mut clippy = cargo(&["clippy", "--release", "--workspace", "--all-targets"]);
    clippy.args(["--", "-D", "warnings"]);
    // In release too: the documentation then reads the dependencies that clippy has checked already.
    let mut doc = cargo(&["doc", "--release", "--no-deps", "--workspace"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let checks = [
        ("format", run(cargo(&["fmt", "--all", "--check"]))),
        ("clippy", run(clippy)),
        ("documentation", run(doc)),
        ("length of files", check_lengths()),
    ];
    let mut failed = Vec::new();
    println!();
    for (name, result) in checks {
        match result {
            Ok(()) => println!("ok      {name}"),
            Err(reason) => {
                println!("FAILED  {name}: {reason}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("lint failed: {}", failed.join(", "))) }
}

/// Lists source files that are too long.
fn check_lengths() -> Result<(), String> {
    let mut files = Vec::new();
    for dir in SOURCE_DIRS.map(|dir| root().join(dir)).iter().filter(|dir| dir.is_dir()) {
        source_files(dir, &mut files).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    files.sort();
    let mut too_long = 0;
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let lines = text.lines().count();
        if lines > MAX_LINES {
            let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
            eprintln!("error: {name} has {lines} lines; split it, a file has at most {MAX_LINES}");
            too_long += 1;
        }
    }
    if too_long == 0 { Ok(()) } else { Err(format!("{too_long} of more than {MAX_LINES} lines")) }
}

fn source_files(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                source_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The root of the workspace.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    package.and_then(|package| Some(package.parent()?.to_path_buf())).unwrap_or_else(|| PathBuf::from("."))
}

/// Where cargo builds: this program lies in `release` of it.
fn target_dir() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().and_then(fs::canonicalize);
    let program = program.map_err(|error| Failure::Usage(format!("where is this program? {error}")))?;
    let target = program.ancestors().nth(2).map(Path::to_path_buf);
    target.ok_or_else(|| Failure::Usage(format!("{} is in no target directory", program.display())))
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    // This package's own variables are no business of what is built.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(mut command: Command) -> Result<(), String> {
    let shown: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let shown = format!("cargo {}", shown.join(" "));
    println!("$ {shown}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` ended with {status}")),
        Err(error) => Err(format!("`{shown}` could not be started: {error}")),
    }
}
