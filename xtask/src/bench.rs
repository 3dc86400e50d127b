//! `cargo xtask bench`: Phalanx beside PyTorch on this machine, in one call, taking turns. What is measured and how to
//! read it is in `bench/README.md`; nothing here is a test, and nothing asserts a time.

mod gemm;
mod machine;
mod model;
mod options;
mod python;
mod ranks;
mod report;
mod run;
mod statistics;
mod tokens;
mod training;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use model::Model;
use options::{Options, Subject};
use python::Python;

/// Where things are, and the two programs.
struct Place {
    /// For environment, corpora and results.
    dir: PathBuf,
    phalanx: PathBuf,
    python: Option<Python>,
}

/// Runs the bench as the flags say and writes its results.
pub fn bench(args: &[String]) -> Result<(), Failure> {
    if args.iter().any(|arg| ["help", "--help", "-h"].contains(&arg.as_str())) {
        print!("{}", options::HELP);
        return Ok(());
    }
    let options = Options::parse(args, machine::cores())?;
    if !Path::new("/proc/self/status").exists() {
        return Err(Failure::Usage("the bench reads /proc: it runs on Linux alone".to_owned()));
    }
    let target = crate::target_dir()?;
    let dir = target.join("bench");
    fs::create_dir_all(&dir).map_err(|error| Failure::file(&dir, &error))?;
    let mut build = crate::cargo(&["build", "--release", "-p", "phalanx-cli"]);
    if options.gloo {
        build.args(["--features", "gloo"]);
    }
    crate::run(build).map_err(Failure::Failed)?;
    let python = if options.torch { Some(Python::prepare(&dir)?) } else { None };
    let place = Place { phalanx: target.join("release/phalanx"), python, dir };

    let name = match options.subject {
        Subject::Training => format!("{}-{}", options.model.name, options.precision),
        Subject::Ranks => format!("ranks-{}-{}", options.model.name, options.precision),
        Subject::Gemm => format!("gemm-{}", options.precision),
    };
    let (tables, runs) = match options.subject {
        Subject::Training => training::measure(&place, &options)?,
        Subject::Ranks => ranks::measure(&place, &options)?,
        Subject::Gemm => gemm::measure(&place, &options)?,
    };
    let machine = machine::description();
    let command = format!("cargo xtask bench {}", args.join(" "));
    let version = place.python.as_ref().map(|python| python.version.as_str());
    println!("{command}\n{machine}; PyTorch {}", version.unwrap_or("not measured"));
    for table in &tables {
        println!("\n{}", table.text().trim_end());
    }
    let document = report::document(&command, &machine, version, &tables);
    for (extension, text) in [("json", document), ("csv", runs)] {
        let path = place.dir.join(format!("{name}.{extension}"));
        write(&path, text.as_bytes())?;
        println!("{}{}", if extension == "json" { "\nwritten: " } else { "written: " }, path.display());
    }
    Ok(())
}

impl Place {
    /// The folder of a model, with its corpus and settings in it.
    fn corpus(&self, model: &Model) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(model.name);
        fs::create_dir_all(&dir).map_err(|error| Failure::file(&dir, &error))?;
        tokens::write_corpus(model, &dir)?;
        model.write_settings(&dir)?;
        let mut prepare = Command::new(&self.phalanx);
        prepare.args(["data", "prepare", "config.toml"]).current_dir(&dir);
        let output = prepare.output().map_err(|error| Failure::file(&self.phalanx, &error))?;
        match output.status.success() {
            true => Ok(dir),
            false => Err(Failure::Failed(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }

    /// A training run on the first `cores` cores; `sets` are keys of the configuration, `before` are words before the
    /// command `train`.
    fn train(
        &self,
        corpus: &Path,
        cores: usize,
        before: &[&str],
        sets: &[String],
    ) -> Result<Command, Failure> {
        let out = corpus.join("run");
        if out.exists() {
            fs::remove_dir_all(&out).map_err(|error| Failure::file(&out, &error))?;
        }
        let mut command = run::pinned(&self.phalanx, cores);
        command.args(before).args(["train", "config.toml", "--metrics", "/dev/stdout", "--out"]).arg(out);
        for set in sets {
            command.args(["--set", set]);
        }
        command.current_dir(corpus);
        Ok(command)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|error| Failure::file(path, &error))
}
