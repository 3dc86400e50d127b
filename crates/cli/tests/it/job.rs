//! Runs in several processes as tests see them: started by `phalanx launch`, watched line by line, and nothing of them
//! left afterwards.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::place::Place;

/// All shards of a checkpoint, byte for byte.
pub fn shards(run: &Path, step: u64) -> Vec<Vec<u8>> {
    let dir = run.join(format!("checkpoints/step-{step:08}"));
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    paths.iter().map(|p| fs::read(p).unwrap()).collect()
}

/// `phalanx launch BEFORE -- train small.toml TRAIN`.
pub fn launch(place: &Place, before: &[&str], train: &[&str]) -> Command {
    launched(place, before, &[&["train", "small.toml"], train].concat())
}

/// `phalanx launch BEFORE -- WORDS`.
pub fn launched(place: &Place, before: &[&str], words: &[&str]) -> Command {
    let mut command = place.command([&["launch"], before, &["--"], words].concat());
    // Test machines are often containers whose only user is root, which OpenMPI refuses unless asked twice.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end of a process, for at most `limit`.
pub fn finish(child: Child, limit: Duration) -> Output {
    let pid = child.id();
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        signal(pid, "KILL");
        panic!("still running after {limit:?}");
    })
}

pub fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
}

pub fn wait_until(what: &str, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that a launcher has started, by rank.
pub fn children(launcher: u32) -> Vec<u32> {
    let path = format!("/proc/{launcher}/task/{launcher}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub fn is_alive(pid: u32) -> bool {
    // A zombie is dead, and its parent's business.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

/// Processes that work in a test's directory, whoever their parent is by now.
pub fn processes_in(place: &Place) -> Vec<u32> {
    let home = place.path().canonicalize().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let is_there = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&home)) && is_alive(*pid)
    };
    pids.filter(is_there).collect()
}

/// That every checkpoint is whole, and where a run is `over`, that nothing partial is left.
pub fn assert_no_torn_checkpoint(run: &Path, over: bool) {
    for entry in fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten() {
        let is_partial = entry.file_name().to_string_lossy().ends_with(".partial");
        let is_whole = entry.path().join("manifest.json").exists();
        assert!(is_whole || is_partial && !over, "{} is torn", entry.path().display());
    }
}

/// A launcher whose lines on stderr are read with the time at which they came.
pub struct Watched {
    child: Child,
    lines: Receiver<(Instant, String)>,
    seen: Vec<(Instant, String)>,
}

impl Watched {
    pub fn start(mut command: Command) -> Watched {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Watched { child, lines, seen: Vec::new() }
    }

    /// Waits for the end, for at most `limit`; returns how it ended and every line with its time.
    pub fn finish(mut self, limit: Duration) -> (ExitStatus, Vec<(Instant, String)>) {
        let begun = Instant::now();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if begun.elapsed() > limit {
                signal(self.child.id(), "KILL");
                panic!("still running after {limit:?}:\n{}", text(&self.seen));
            }
        }
        (self.child.wait().unwrap(), self.seen)
    }
}

/// Lines without their times.
pub fn text(lines: &[(Instant, String)]) -> String {
    lines.iter().map(|(_, line)| format!("{line}\n")).collect()
}
