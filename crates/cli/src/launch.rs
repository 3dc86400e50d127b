//! `phalanx launch`: starts the processes of a job on this host, watches and reaps them, says which rank says what,
//! and starts the job anew from its last checkpoint when a rank fails.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use phalanx::Config;
use phalanx::comm::store::TcpStoreServer;
use phalanx::training::run_dir::RunDir;

use crate::arguments::{
    Arguments, Command as Subcommand, LaunchArguments, LaunchBackend, ParityArguments, TrainArguments,
};
use crate::failure::{PEER_FAILED, Verdict};
use crate::{output, signals};

/// After one process has failed, the others have so long to notice and to say what they saw, and after SIGTERM to end.
const GRACE: Duration = Duration::from_secs(6);
/// The same after a process that missed another: by then all others have noticed as well.
const ECHO_GRACE: Duration = Duration::from_secs(3);
/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(20);
/// Exit code of a command line or environment that is wrong: starting it anew would change nothing, unless steps were
/// made with it.
const WRONG_INPUT: i32 = 2;

/// How one life of the job ended.
enum End {
    Success,
    /// The process that failed first or most gravely, how, and whether another life may end better.
    Failed {
        rank: usize,
        how: String,
        is_hopeless: bool,
    },
    /// The user asked for it.
    Stopped {
        signal: i32,
    },
}

pub fn run(arguments: &LaunchArguments) -> anyhow::Result<Verdict> {
    let job = Launch::new(arguments)?;
    let signals = signals::watch()?;
    for generation in 0.. {
        match job.live(generation, &signals)? {
            End::Success => return Ok(Verdict::Success),
            End::Stopped { signal } => bail!("stopped by signal {signal}; the last checkpoint is kept"),
            End::Failed { rank, how, is_hopeless } => {
                let why = format!("rank {rank} failed ({how})");
                if is_hopeless || generation >= arguments.max_restarts {
                    let restarts = match (generation, is_hopeless) {
                        (0, false) => {
                            "; --max-restarts N would start it anew from its last checkpoint".to_owned()
                        }
                        (0, true) => String::new(),
                        (n, _) => format!(", after {n} restarts"),
                    };
                    bail!("{why}{restarts}; its messages are above");
                }
                output::note(&format!(
                    "launch: {why}; restart {} of {}",
                    generation + 1,
                    arguments.max_restarts
                ));
            }
        }
    }
    Ok(Verdict::Success)
}

/// How much a failure explains: that a rank died or panicked, more than that it said what is wrong, and that more than
/// that it missed another.
fn gravity(status: ExitStatus) -> u8 {
    match status.code() {
        Some(code) if code == i32::from(PEER_FAILED) => 0,
        Some(WRONG_INPUT) => 1,
        _ => 2,
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A job to be started, perhaps several times.
struct Launch {
    ranks: usize,
    backend: LaunchBackend,
    mpirun: Vec<String>,
    /// What is run, without the program.
    words: Vec<String>,
    /// Where the run goes, if the command trains.
    run: Option<PathBuf>,
    program: PathBuf,
    /// Whether stdout is one document, to be passed on as it is.
    is_json: bool,
    /// Serves the store of all generations; lives as long as this process.
    store: TcpStoreServer,
}

impl Launch {
    fn new(arguments: &LaunchArguments) -> anyhow::Result<Launch> {
        let mut words = arguments.command.clone();
        let line = std::iter::once("phalanx".to_owned()).chain(words.iter().cloned());
        let parsed = Arguments::try_parse_from(line).map_err(|error| anyhow!("after `--`: {error}"))?;
        let (run, mesh_ranks) = match parsed.command {
            Subcommand::Train(train) => prepare(&train, &mut words)?,
            Subcommand::BenchComm(_) => (None, None),
            Subcommand::Parity(parity) => (None, Some(ranks_of(&parity)?)),
            _ => bail!(
                "launch runs `train`, `parity` or `bench-comm`: write `phalanx launch --ranks N -- train CONFIG`"
            ),
        };
        let ranks =
            arguments.ranks.or(mesh_ranks).context("say how many processes to start with --ranks N")?;
        let backend = arguments.backend;
        let built = match backend {
            LaunchBackend::Gloo => phalanx::comm::Backend::Gloo,
            LaunchBackend::Mpi => phalanx::comm::Backend::Mpi,
        };
        if !built.is_built() {
            bail!(
                "this binary was built without the backend {built}; build it with `cargo build --release --features \
                 {built}`, or train with threads: `phalanx {}`",
                arguments.command.join(" ")
            );
        }
        let store = TcpStoreServer::listen("127.0.0.1:0".parse().context("the loopback address")?)?;
        let program = std::env::current_exe().context("cannot tell where this program lies")?;
        let mpirun = arguments.mpirun.split_whitespace().map(str::to_owned).collect();
        let is_json = words.iter().any(|word| word == "--json");
        Ok(Launch { ranks, backend, mpirun, words, run, program, is_json, store })
    }

    /// The words of one life: what was given, or from the last checkpoint on if there is one.
    fn words(&self, generation: usize) -> Vec<String> {
        match &self.run {
            Some(run) if generation > 0 && has_checkpoint(run) => {
                let mut words = without(&self.words, &["--out", "--resume"]);
                words.extend(["--resume".to_owned(), run.display().to_string()]);
                words
            }
            _ => self.words.clone(),
        }
    }

    /// Runs the job once.
    fn live(&self, generation: usize, signals: &Receiver<i32>) -> anyhow::Result<End> {
        let words = self.words(generation);
        let (sender, lines) = channel();
        let mut processes = Vec::new();
        let started = match self.backend {
            LaunchBackend::Gloo => (0..self.ranks).try_for_each(|rank| {
                let mut command = Command::new(&self.program);
                command.args(&words);
                command.env("RANK", rank.to_string()).env("WORLD_SIZE", self.ranks.to_string());
                command.env("LOCAL_RANK", rank.to_string());
                command.env(signals::PARENT, std::process::id().to_string());
                command.env("PHALANX_STORE", format!("tcp://{}", self.store.address()));
                processes.push(Process::start(command, rank, generation, "gloo", &sender)?);
                Ok::<(), anyhow::Error>(())
            }),
            LaunchBackend::Mpi => {
                let (mpirun, flags) = self.mpirun.split_first().context("--mpirun names no program")?;
                let mut command = Command::new(mpirun);
                command.args(flags).arg("-n").arg(self.ranks.to_string()).arg(&self.program).args(&words);
                Process::start(command, 0, generation, "mpi", &sender).map(|p| processes.push(p))
            }
        };
        drop(sender);
        let end = started.and_then(|()| watch(&mut processes, &lines, self.is_json, signals));
        for process in &mut processes {
            process.end(signals::KILL);
        }
        drain(&lines, self.is_json);
        end
    }
}

/// Where a training run goes and how many ranks it has. Without `--out` or `--resume` a directory is made for it, so
/// that a restart finds it.
fn prepare(
    train: &TrainArguments,
    words: &mut Vec<String>,
) -> anyhow::Result<(Option<PathBuf>, Option<usize>)> {
    let config: Config = train.config.load(&[], train.mesh.as_deref())?;
    let run = match (&train.out, &train.resume) {
        (Some(out), _) => out.clone(),
        (None, Some(resume)) => RunDir::open_for_resume(resume)?.path().to_path_buf(),
        (None, None) => {
            let made = RunDir::create(Path::new("runs"), &config.name)?.path().to_path_buf();
            words.extend(["--out".to_owned(), made.display().to_string()]);
            made
        }
    };
    Ok((Some(run), Some(config.parallel.mesh.world_size())))
}

/// The ranks of the first layout to be compared.
fn ranks_of(parity: &ParityArguments) -> anyhow::Result<usize> {
    let config = parity.config.load(&[], None)?;
    let config = match parity.meshes.first() {
        Some(layout) => config.with_layout(layout)?,
        None => config,
    };
    Ok(config.parallel.mesh.world_size())
}

fn has_checkpoint(run: &Path) -> bool {
    let entries = std::fs::read_dir(RunDir::checkpoints_in(run));
    entries.is_ok_and(|mut all| all.any(|e| e.is_ok_and(|e| e.path().join("manifest.json").exists())))
}

/// The words without some options and their values.
fn without(words: &[String], options: &[&str]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if options.contains(&word.as_str()) {
            words.next();
        } else if !options.iter().any(|o| word.strip_prefix(o).is_some_and(|rest| rest.starts_with('='))) {
            kept.push(word.clone());
        }
    }
    kept
}

/// A line that a process wrote.
struct Line {
    rank: usize,
    is_error: bool,
    bytes: Vec<u8>,
}

/// A process of the job, in a process group of its own: a signal reaches all that it started.
struct Process {
    rank: usize,
    child: Child,
    status: Option<ExitStatus>,
    steps_began: Arc<Mutex<bool>>,
}

impl Process {
    fn start(
        mut command: Command,
        rank: usize,
        generation: usize,
        backend: &str,
        lines: &Sender<Line>,
    ) -> anyhow::Result<Process> {
        use std::os::unix::process::CommandExt;
        command.env("PHALANX_BACKEND", backend).env("PHALANX_GENERATION", generation.to_string());
        command.env(signals::LAUNCHED, "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot start {program} for rank {rank}"))?;
        let steps_began = Arc::new(Mutex::new(false));
        if let Some(stdout) = child.stdout.take() {
            forward(stdout, rank, false, lines.clone(), Arc::clone(&steps_began));
        }
        if let Some(stderr) = child.stderr.take() {
            forward(stderr, rank, true, lines.clone(), Arc::clone(&steps_began));
        }
        Ok(Process { rank, child, status: None, steps_began })
    }

    fn look(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    fn send(&self, signal: i32) {
        if self.status.is_none() {
            signals::send_to_group(self.child.id(), signal);
        }
    }

    /// Ends it and what it started, and reaps it.
    fn end(&mut self, signal: i32) {
        signals::send_to_group(self.child.id(), signal);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }
}

/// Passes on the lines of a stream. A last line without an end, as a killed process leaves, is a line too.
fn forward(
    stream: impl Read + Send + 'static,
    rank: usize,
    is_error: bool,
    lines: Sender<Line>,
    steps_began: Arc<Mutex<bool>>,
) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let is_step = untagged(&String::from_utf8_lossy(&bytes))
                .map_or(bytes.starts_with(b"step "), |(_, t)| t.starts_with("step "));
            if is_error
                && is_step
                && let Ok(mut began) = steps_began.lock()
            {
                *began = true;
            }
            if lines.send(Line { rank, is_error, bytes: std::mem::take(&mut bytes) }).is_err() {
                return;
            }
        }
    });
}

fn print(line: &Line, is_json: bool) {
    let text = String::from_utf8_lossy(&line.bytes);
    let text = text.trim_end_matches('\n');
    let (rank, text) = untagged(text).unwrap_or((line.rank, text.into()));
    let text = match is_json && !line.is_error {
        true => format!("{text}\n"),
        false => format!("[{rank}] {text}\n"),
    };
    // If nobody reads, the job goes on; it is the files that count.
    let _ = match line.is_error {
        true => std::io::stderr().lock().write_all(text.as_bytes()),
        false => std::io::stdout().lock().write_all(text.as_bytes()),
    };
}

/// Rank and text of a line that OpenMPI's `--tag-output` has marked: `[1,2]<stderr>:text`. A line that it forwarded in
/// pieces (of 2 KiB) has the mark before each.
fn untagged(line: &str) -> Option<(usize, Cow<'_, str>)> {
    let (place, rest) = line.strip_prefix('[')?.split_once(']')?;
    let (_job, rank) = place.split_once(',')?;
    let (_stream, text) = rest.strip_prefix("<std")?.split_once(">:")?;
    let mark = &line[..line.len() - text.len()];
    let text = if text.contains(mark) { Cow::from(text.replace(mark, "")) } else { Cow::from(text) };
    Some((rank.parse().ok()?, text))
}

fn drain(lines: &Receiver<Line>, is_json: bool) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        match lines.recv_timeout(LOOK) {
            Ok(line) => print(&line, is_json),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Watches until all have ended, one has failed, or the user ends it.
fn watch(
    processes: &mut [Process],
    lines: &Receiver<Line>,
    is_json: bool,
    signals: &Receiver<i32>,
) -> anyhow::Result<End> {
    let mut stopped: Option<(i32, Instant)> = None;
    let mut failed: Option<(usize, ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(line) => print(&line, is_json),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        if let Ok(signal) = signals.try_recv() {
            processes.iter().for_each(|p| p.send(signal));
            stopped.get_or_insert((signal, Instant::now()));
        }
        for process in &mut *processes {
            if let Some(status) = process.look()
                && !status.success()
            {
                let (rank, first, since) = failed.unwrap_or((process.rank, status, Instant::now()));
                let is_graver = gravity(status) > gravity(first);
                failed = Some(if is_graver { (process.rank, status, since) } else { (rank, first, since) });
            }
        }
        let all_ended = processes.iter().all(|p| p.status.is_some());
        let grace = match failed {
            Some((_, status, _)) if stopped.is_none() && gravity(status) == 0 => ECHO_GRACE,
            _ => GRACE,
        };
        let waited_enough = |since: Instant| all_ended || since.elapsed() > grace;
        match (stopped, failed) {
            (Some((signal, since)), _) if waited_enough(since) => return Ok(End::Stopped { signal }),
            (None, Some((rank, status, since))) if waited_enough(since) => {
                let steps_began = processes.iter().any(|p| p.steps_began.lock().is_ok_and(|b| *b));
                let still = processes.iter().find(|p| p.status.is_none());
                return Ok(match still {
                    // All others have missed somebody, and this one does not even end.
                    Some(still) if gravity(status) == 0 => {
                        let how = "it stands still".to_owned();
                        End::Failed { rank: still.rank, how, is_hopeless: false }
                    }
                    _ => {
                        let is_hopeless = gravity(status) == 1 && !steps_began;
                        End::Failed { rank, how: describe(status), is_hopeless }
                    }
                });
            }
            (None, None) if all_ended => return Ok(End::Success),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mpirun_name_their_rank() {
        assert_eq!(untagged("[1,12]<stderr>:step 3"), Some((12, "step 3".into())));
        let in_pieces = "[1,0]<stdout>:  [1,0]<stdout>:\"mesh\": \"dp=[1,2]\"";
        assert_eq!(untagged(in_pieces), Some((0, "  \"mesh\": \"dp=[1,2]\"".into())));
        assert_eq!(untagged("[1] a, b"), None);
        assert_eq!(untagged("step 1/2"), None);
    }

    #[test]
    fn options_are_taken_out_with_their_values() {
        let words: Vec<String> =
            ["train", "--out", "a", "x.toml", "--resume=b", "--steps", "3"].map(str::to_owned).to_vec();
        assert_eq!(without(&words, &["--out", "--resume"]), ["train", "x.toml", "--steps", "3"]);
    }
}
