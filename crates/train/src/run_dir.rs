//! The directory of a run: its name, the lock that keeps a second live run out, and its metrics file. What is in the
//! checkpoints is the business of [`checkpoint`](crate::checkpoint).
//!
//! ```text
//! RUN/.lock            held (flock) while the run lives; names its process
//!    /checkpoints/     see `checkpoint`
//!    /metrics.jsonl    one JSON object a line
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

const LOCK: &str = ".lock";
const CHECKPOINTS: &str = "checkpoints";
const METRICS: &str = "metrics.jsonl";
/// Longest line of metrics that is kept.
const MAX_LINE_BYTES: u64 = 1 << 24;

/// What can go wrong with a run's directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check the path, its permissions and the disk", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process runs in it.
    #[error("run directory {} is in use by a live run{}; wait for it, stop it, or give another directory (`--out`)",
            .dir.display(), .pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process, if it left its number.
        pid: Option<u32>,
    },
    /// An earlier run left checkpoints in it.
    #[error("run directory {} already holds checkpoints; continue that run with `--resume {}`, or give another \
             directory (`--out`)", .dir.display(), .dir.display())]
    HasCheckpoints {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no such run.
    #[error("{} is not a run directory; give the directory of an earlier run, or leave `--resume` out", .dir.display())]
    NotARun {
        /// The path.
        dir: PathBuf,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_owned();
    move |source| RunDirError::Io { action, path, source }
}

/// A run's directory, held by this process until it is dropped.
#[derive(Debug)]
#[must_use = "the directory is free for others when this is dropped"]
pub struct RunDir {
    dir: PathBuf,
    /// The lock lives as long as this file is open; the system releases it when the process dies.
    _lock: File,
}

impl RunDir {
    /// Creates and locks `parent/<name>-<n>`, with `n` one above the highest there is. Characters of `name` that are
    /// not letters, digits, `.`, `_` or `-` become `-`.
    ///
    /// # Errors
    /// Refusals of the file system.
    pub fn create(parent: &Path, name: &str) -> Result<RunDir, RunDirError> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = name.chars().map(plain).collect();
        let name = if name.trim_matches('.').is_empty() { "run" } else { name.trim_start_matches('.') };
        fs::create_dir_all(parent).map_err(failed("create directory", parent))?;
        let mut highest = 0u64;
        for entry in fs::read_dir(parent).map_err(failed("list", parent))? {
            let entry = entry.map_err(failed("list", parent))?.file_name();
            let number = entry.to_str().and_then(|e| e.strip_prefix(name)?.strip_prefix('-')?.parse().ok());
            highest = highest.max(number.filter(|n| *n < u64::MAX).unwrap_or(0));
        }
        for number in highest + 1.. {
            let dir = parent.join(format!("{name}-{number}"));
            match fs::create_dir(&dir) {
                Ok(()) => return RunDir::lock(dir),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {} // another run was faster
                Err(e) => return Err(failed("create directory", &dir)(e)),
            }
        }
        Err(failed("create directory", parent)(io::ErrorKind::AlreadyExists.into()))
    }

    /// Locks `dir` for a new run, creating it if need be.
    ///
    /// # Errors
    /// [`RunDirError::InUse`]; [`RunDirError::HasCheckpoints`] rather than mixing two runs.
    pub fn create_at(dir: &Path) -> Result<RunDir, RunDirError> {
        fs::create_dir_all(dir).map_err(failed("create directory", dir))?;
        let run = RunDir::lock(dir.to_owned())?;
        let checkpoints = run.checkpoints();
        let used = fs::read_dir(&checkpoints).is_ok_and(|mut entries| {
            entries.any(|e| e.is_ok_and(|e| e.path().join("manifest.json").exists()))
        });
        if used { Err(RunDirError::HasCheckpoints { dir: dir.to_owned() }) } else { Ok(run) }
    }

    /// Locks the directory of an earlier run to continue it. `path` is the run's directory, its `checkpoints`
    /// directory, or a step directory in that.
    ///
    /// # Errors
    /// [`RunDirError::NotARun`], [`RunDirError::InUse`].
    pub fn open_for_resume(path: &Path) -> Result<RunDir, RunDirError> {
        let not_a_run = || RunDirError::NotARun { dir: path.to_owned() };
        let path = path.canonicalize().map_err(|_| not_a_run())?;
        let of_checkpoints =
            path.ancestors().take(2).find(|p| p.file_name().is_some_and(|n| n == CHECKPOINTS));
        let dir = of_checkpoints.and_then(Path::parent).unwrap_or(&path);
        if !dir.join(CHECKPOINTS).is_dir() {
            return Err(not_a_run());
        }
        RunDir::lock(dir.to_owned())
    }

    fn lock(dir: PathBuf) -> Result<RunDir, RunDirError> {
        let path = dir.join(LOCK);
        // not truncated on opening: it may name the process that holds it
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(RunDirError::InUse { dir, pid });
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock", &path)(e)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write", &path))?;
        Ok(RunDir { dir, _lock: file })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        RunDir::checkpoints_in(&self.dir)
    }

    /// Where the checkpoints of a run in `dir` are, for processes that write there while another holds the directory.
    pub fn checkpoints_in(dir: &Path) -> PathBuf {
        dir.join(CHECKPOINTS)
    }

    /// Where its metrics go unless the user names another file.
    pub fn metrics(&self) -> PathBuf {
        self.dir.join(METRICS)
    }
}

/// Metrics as JSON lines, each written at once, so that a reader never waits for a buffer.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// An empty file, replacing what was there.
    ///
    /// # Errors
    /// Refusals of the file system.
    pub fn create(path: &Path) -> Result<MetricsWriter, RunDirError> {
        let file = File::create(path).map_err(failed("create", path))?;
        Ok(MetricsWriter { path: path.to_owned(), file })
    }

    /// Continues a file from the checkpoint of `step`: lines of later steps, which are about to be written again, and
    /// lines that a crash cut short are dropped. A file that does not exist is created; a pipe is only appended to.
    ///
    /// # Errors
    /// Refusals of the file system; the old file is then whole.
    pub fn resume(path: &Path, step: u64) -> Result<MetricsWriter, RunDirError> {
        if fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
            let mut name = path.as_os_str().to_owned();
            name.push(".tmp");
            let temporary = PathBuf::from(name);
            keep_until(path, &temporary, step).map_err(failed("shorten", path))?;
            fs::rename(&temporary, path).map_err(failed("rename", &temporary))?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(failed("open", path))?;
        Ok(MetricsWriter { path: path.to_owned(), file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// A full disk, a closed pipe.
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), RunDirError> {
        let mut text =
            serde_json::to_vec(line).map_err(|e| failed("encode metrics for", &self.path)(e.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(failed("write", &self.path))
    }
}

/// Copies the whole lines of `from` whose `step` is at most `step`, or that have none.
fn keep_until(from: &Path, to: &Path, step: u64) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(from)?);
    let mut out = BufWriter::new(File::create(to)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&line) else { continue };
        if line.ends_with(b"\n") && value.get("step").and_then(|s| s.as_u64()).is_none_or(|s| s <= step) {
            out.write_all(&line)?;
        }
    }
    out.into_inner()?.sync_all()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn runs_are_numbered_and_names_stay_inside_the_parent() {
        let parent = tempfile::tempdir().unwrap();
        let parent = &parent.path().join("runs");
        let path = |name: &str| RunDir::create(parent, name).unwrap().path().to_owned();
        assert_eq!(path("small"), parent.join("small-1"));
        assert_eq!(path("small"), parent.join("small-2"));
        fs::remove_dir_all(parent.join("small-1")).unwrap();
        assert_eq!(path("small"), parent.join("small-3"));
        assert_eq!(path("../../x y"), parent.join("-..-x-y-1"));
        assert_eq!(path(".."), parent.join("run-1"));
        assert_eq!(path("a/b"), parent.join("a-b-1"));
    }

    #[test]
    fn two_runs_never_get_the_same_directory() {
        let parent = tempfile::tempdir().unwrap();
        let mut dirs: Vec<PathBuf> = std::thread::scope(|scope| {
            let many: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| RunDir::create(parent.path(), "x").unwrap().path().to_owned()))
                .collect();
            many.into_iter().map(|t| t.join().unwrap()).collect()
        });
        dirs.sort();
        dirs.dedup();
        assert_eq!(dirs.len(), 8);
    }

    #[test]
    fn a_live_run_is_not_disturbed_and_a_dead_one_is_no_obstacle() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("out");
        let run = RunDir::create_at(&dir).unwrap();
        fs::create_dir(run.checkpoints()).unwrap();
        let message = RunDir::open_for_resume(&dir).unwrap_err().to_string();
        assert!(message.contains(&dir.display().to_string()), "{message}");
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert!(matches!(RunDir::create_at(&dir), Err(RunDirError::InUse { .. })));
        drop(run);
        // the file and its number stay behind, as after a kill
        assert!(dir.join(LOCK).exists());
        for path in [dir.clone(), dir.join(CHECKPOINTS), dir.join("checkpoints/step-00000010")] {
            fs::create_dir_all(&path).unwrap();
            assert_eq!(RunDir::open_for_resume(&path).unwrap().path(), dir.canonicalize().unwrap());
        }
        assert!(RunDir::create_at(&dir).is_ok());
        fs::write(dir.join("checkpoints/step-00000010/manifest.json"), "{}").unwrap();
        assert!(matches!(RunDir::create_at(&dir), Err(RunDirError::HasCheckpoints { .. })));
        for path in [parent.path(), Path::new("/nonexistent")] {
            assert!(matches!(RunDir::open_for_resume(path), Err(RunDirError::NotARun { .. })));
        }
    }

    #[test]
    fn metrics_continue_from_the_step_of_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let mut metrics = MetricsWriter::create(&path).unwrap();
        metrics.write(&json!({ "config": "small" })).unwrap();
        for step in 1..=5u64 {
            metrics.write(&json!({ "step": step, "loss": 0.1 + step as f64 })).unwrap();
        }
        metrics.write(&json!({ "step": 3, "validation_loss": 2.5 })).unwrap();
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\": 2, \"lo").unwrap();
        let mut metrics = MetricsWriter::resume(&path, 3).unwrap();
        metrics.write(&json!({ "step": 4, "loss": 9.0 })).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<Option<u64>> = text
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64())
            .collect();
        assert_eq!(steps, [None, Some(1), Some(2), Some(3), Some(3), Some(4)]);
        MetricsWriter::resume(&dir.path().join("new.jsonl"), 3).unwrap();
    }
}
