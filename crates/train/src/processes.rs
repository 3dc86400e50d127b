//! A run in several processes: what they compare before step 0, and what the first tells the others. How bytes travel
//! is `comm`'s business; what a rank does is `trainer`'s.
//!
//! Everything here goes through the job's store, before there are connections: a difference is one message that names
//! the rank and the field, on every process, and never a hang.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use comm::store::{Store, StoreError, Vigil, wait_for};
use comm::{Communicator, Job, JoinError};
use plan::{Plan, Program};

use crate::config::Config;
use crate::corpus::Corpus;
use crate::error::TrainError;

/// How long one process may work for all (training a tokenizer, say) while it shows that it lives.
const PREPARATION: Duration = Duration::from_secs(24 * 3600);
/// Key of the first failure.
const FAILED: &str = "failed";

/// This process among those of its job, from before the first file is opened until the ranks are connected.
pub(crate) struct Processes<'a> {
    job: &'a Job,
    store: Arc<dyn Store>,
    vigil: Vigil,
}

/// What must be the same on all processes, by field.
type Facts = BTreeMap<String, String>;

impl<'a> Processes<'a> {
    /// Takes this process's place; a second process with the same number is refused.
    pub(crate) fn begin(job: &'a Job) -> Result<Processes<'a>, TrainError> {
        let store: Arc<dyn Store> = Arc::new(job.scope());
        let key = format!("process/{}", job.process);
        let me = format!("process {} on {}", std::process::id(), job.host);
        if !store.create(&key, me.as_bytes())? {
            let holder = store.get(&key)?.unwrap_or_default();
            return Err(TrainError::from(JoinError::Taken {
                rank: job.ranks().start,
                job: job.name.clone(),
                generation: job.generation,
                holder: String::from_utf8_lossy(&holder).into_owned(),
                store: store.describe(),
            }));
        }
        let vigil = Vigil::begin(Arc::clone(&store), "process", job.process, job.num_processes, job.silence)?;
        Ok(Processes { job, store, vigil })
    }

    /// Whether this is the process that writes what is written once.
    pub(crate) fn is_first(&self) -> bool {
        self.job.process == 0
    }

    /// Waits for what another process sets, unless one fails or falls silent.
    fn wait(&self, key: &str, limit: Duration) -> Result<String, TrainError> {
        let interrupted = || match self.store.get(FAILED) {
            Ok(Some(reason)) => Some(String::from_utf8_lossy(&reason).into_owned()),
            _ => self.vigil.missed(),
        };
        match wait_for(&*self.store, key, limit, &interrupted) {
            Ok(value) => Ok(String::from_utf8_lossy(&value).into_owned()),
            Err(StoreError::Interrupted { reason, .. }) => Err(TrainError::Refused { reason }),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells all that this process cannot go on. The first to say so is heard.
    pub(crate) fn failed(&self, error: &TrainError) {
        // Once the ranks are connected they tell each other, and the store may be out of reach.
        if !matches!(error, TrainError::Refused { .. } | TrainError::Runtime(_)) {
            let (rank, host) = (self.job.ranks().start, &self.job.host);
            // If the store is away too, the others miss this process.
            let _ = self.store.create(FAILED, format!("rank {rank} on {host}: {error}").as_bytes());
        }
    }

    /// Does `work` in the first process, then in the others, which find most of it done.
    pub(crate) fn first_before_others<T>(
        &self,
        what: &str,
        work: impl FnOnce() -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let key = format!("prepared/{what}");
        if self.is_first() {
            let result = work()?;
            self.store.set(&key, b"")?;
            return Ok(result);
        }
        self.wait(&key, PREPARATION)?;
        work()
    }

    /// Compares binary, configuration, Programs and data with those of all others. Returns what the ranks of this host
    /// will reserve.
    pub(crate) fn agree(
        &self,
        config: &Config,
        binary: &str,
        programs: &[Vec<(Arc<Plan>, Arc<Program>)>],
        corpus: &Corpus,
        arena_bytes: &[u64],
    ) -> Result<Vec<u64>, TrainError> {
        let started = self.job.world_size();
        if started != arena_bytes.len() {
            return Err(TrainError::WorldSize {
                mesh: config.parallel.mesh.to_string(),
                ranks: arena_bytes.len(),
                processes: self.job.num_processes,
                per_process: self.job.ranks_per_process,
                started,
            });
        }
        let fingerprints: Vec<u64> = programs.iter().flatten().map(|(l, p)| p.fingerprint(l)).collect();
        // The name of a cache is a hash of the data, the tokenizer and what is held out.
        let data = corpus.cache().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let hosts = self.compare(&facts(binary, config, &fingerprints, &data))?;
        let here = hosts.iter().zip(arena_bytes).filter(|(host, _)| **host == self.job.host);
        Ok(here.map(|(_, bytes)| *bytes).collect())
    }

    /// Compares this process's facts with those of all others. Returns the host of every rank.
    fn compare(&self, facts: &Facts) -> Result<Vec<String>, TrainError> {
        let limit = self.job.rendezvous_deadline;
        let mine = serde_json::to_string(&(&self.job.host, facts)).unwrap_or_default();
        self.store.set(&format!("facts/{}", self.job.process), mine.as_bytes())?;
        if !self.is_first() {
            let hosts = self.wait("hosts", limit + PREPARATION)?;
            return Ok(serde_json::from_str(&hosts).unwrap_or_default());
        }
        let hosts = self.judge(facts, limit)?;
        self.store.set("hosts", serde_json::to_string(&hosts).unwrap_or_default().as_bytes())?;
        Ok(hosts)
    }

    fn judge(&self, ours: &Facts, limit: Duration) -> Result<Vec<String>, TrainError> {
        let begun = Instant::now();
        let mut hosts = vec![self.job.host.clone(); self.job.ranks_per_process];
        for process in 1..self.job.num_processes {
            let rank = process * self.job.ranks_per_process;
            let left = limit.saturating_sub(begun.elapsed());
            let text = self.wait(&format!("facts/{process}"), left).map_err(|error| match error {
                TrainError::Store(e) if matches!(*e, StoreError::Absent { .. }) => {
                    let world_size = self.job.world_size();
                    let absent = |p: &usize| !matches!(self.store.get(&format!("facts/{p}")), Ok(Some(_)));
                    let missing = (1..self.job.num_processes)
                        .filter(absent)
                        .flat_map(|p| p * self.job.ranks_per_process..(p + 1) * self.job.ranks_per_process)
                        .collect();
                    let store = self.store.describe();
                    JoinError::Missing { missing, world_size, waited: limit, store }.into()
                }
                other => other,
            })?;
            let (host, theirs): (String, Facts) = serde_json::from_str(&text).unwrap_or_default();
            difference(ours, &theirs).map_or(Ok(()), |(field, ours, theirs)| {
                Err(TrainError::Disagreement { rank, host: host.clone(), field, ours, theirs })
            })?;
            hosts.extend(vec![host; self.job.ranks_per_process]);
        }
        Ok(hosts)
    }

    /// The directory of the run: made by the first process, told to the others.
    pub(crate) fn share_dir(&self, made: Option<&Path>) -> Result<PathBuf, TrainError> {
        Ok(match made {
            Some(dir) => {
                self.store.set("run", dir.display().to_string().as_bytes())?;
                dir.to_path_buf()
            }
            None => PathBuf::from(self.wait("run", self.job.rendezvous_deadline)?),
        })
    }

    /// The ranks of this process are connected: from here on they watch each other.
    pub(crate) fn connected(&self) {
        self.vigil.end();
    }
}

/// Writes the last operations of a rank beside the run's other files: what each was doing when one failed.
pub(crate) fn write_flight_record(run_dir: &Path, world: &dyn Communicator) {
    let lines: Vec<String> = world.recent_operations().iter().map(ToString::to_string).collect();
    let path = run_dir.join(format!("flight-record-{}.txt", world.rank()));
    // The failure itself is what matters; a disk that is full must not hide it.
    let _ = std::fs::write(path, lines.join("\n") + "\n");
}

/// What all processes must agree on: the binary, every setting that decides what is computed, the Programs, the data.
fn facts(binary: &str, config: &Config, programs: &[u64], data: &str) -> Facts {
    let mut facts = settings(&config.to_toml());
    // Where the files lie may differ between hosts; what is in them may not.
    const PLACES: [&str; 8] = [
        "data.text",
        "data.tokenizer",
        "data.train",
        "data.heldout",
        "data.images",
        "data.labels",
        "data.heldout_images",
        "data.heldout_labels",
    ];
    facts.retain(|key, _| !PLACES.contains(&key.as_str()));
    facts.insert("binary".to_owned(), binary.to_owned());
    let programs: Vec<String> = programs.iter().map(|p| format!("{p:016x}")).collect();
    facts.insert("program fingerprint".to_owned(), programs.join(" "));
    facts.insert("data hash".to_owned(), data.to_owned());
    facts
}

/// The lines of a configuration in canonical form, by dotted key.
fn settings(text: &str) -> Facts {
    let mut facts = Facts::new();
    let mut table = String::new();
    let mut last: Option<String> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            table = name.to_owned();
            last = None;
        } else if let Some((key, value)) = line.split_once(" = ") {
            let key = format!("{table}.{key}");
            facts.insert(key.clone(), value.to_owned());
            last = Some(key);
        } else if let Some(value) = last.as_ref().and_then(|key| facts.get_mut(key)) {
            value.push_str(line);
        }
    }
    facts
}

/// The first field in which two differ, with both values. What explains most comes first.
fn difference(ours: &Facts, theirs: &Facts) -> Option<(String, String, String)> {
    let derived = ["program fingerprint", "data hash"];
    let keys = ours.keys().chain(theirs.keys()).filter(|k| !derived.contains(&k.as_str()));
    keys.map(String::as_str).chain(derived).find_map(|key| {
        let absent = || "nothing".to_owned();
        let (a, b) = (ours.get(key).cloned(), theirs.get(key).cloned());
        (a != b).then(|| (key.to_owned(), a.unwrap_or_else(absent), b.unwrap_or_else(absent)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_that_differs_is_found_and_derived_ones_come_last() {
        let text = "[model]\nembed = 8\n[train]\nlr = 0.1\nbetas = [\n  0.9,\n]\n";
        let ours = settings(text);
        assert_eq!(ours["train.betas"], "[  0.9,]");
        assert_eq!(difference(&ours, &ours), None);
        let mut theirs = settings(&text.replace("lr = 0.1", "lr = 0.2"));
        theirs.insert("program fingerprint".to_owned(), "1".to_owned());
        let (field, a, b) = difference(&ours, &theirs).unwrap();
        assert_eq!((field.as_str(), a.as_str(), b.as_str()), ("train.lr", "0.1", "0.2"));
    }
}
