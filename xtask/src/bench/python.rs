//! PyTorch in an environment of the bench's own, and its scripts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::run::pinned;
use crate::{Failure, root};

/// A Python that has PyTorch.
pub struct Python {
    program: PathBuf,
    /// Where compiled graphs are kept, so that only the first run compiles them.
    compiled: PathBuf,
    /// PyTorch's version.
    pub version: String,
}

impl Python {
    /// The environment under `dir`, made if it is not there.
    pub fn prepare(dir: &Path) -> Result<Python, Failure> {
        let environment = dir.join("venv");
        let program = environment.join("bin/python");
        if version(&program).is_none() {
            eprintln!("installing PyTorch into {} (several GB, once)", environment.display());
            let mut venv = Command::new("python3");
            step(
                venv.args(["-m", "venv", "--clear"]).arg(&environment),
                "install python3 with its venv module",
            )?;
            let mut pip = Command::new(&program);
            step(pip.args(["-m", "pip", "install", "torch"]), "see pip's messages, or give --no-torch")?;
        }
        let missing = || {
            let remedy = format!("remove {} and try again, or give --no-torch", environment.display());
            Failure::Usage(format!("PyTorch cannot be imported: {remedy}"))
        };
        Ok(Python {
            version: version(&program).ok_or_else(missing)?,
            compiled: dir.join("compiled"),
            program,
        })
    }

    /// A script of `bench/` on the first `cores` cores.
    pub fn script(&self, name: &str, cores: usize, threads: usize) -> Command {
        let mut command = pinned(&self.program, cores);
        command.arg(root().join("bench").join(name));
        command.env("OMP_NUM_THREADS", threads.to_string()).env("TORCHINDUCTOR_CACHE_DIR", &self.compiled);
        // Byte code beside the sources would be rubbish in the repository.
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

fn version(program: &Path) -> Option<String> {
    let mut python = Command::new(program);
    python.args(["-c", "import torch; print(torch.__version__)"]).stderr(Stdio::null());
    let output = python.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn step(command: &mut Command, remedy: &str) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Stdout is for results.
    match command.stdout(std::io::stderr()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Usage(format!("{program} ended with {status}: {remedy}"))),
        Err(error) => Err(Failure::Usage(format!("{program} cannot be run: {error}: {remedy}"))),
    }
}
