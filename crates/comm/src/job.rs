//! A job of several processes: who they are, how they find each other, and how a rank joins. Reads no environment:
//! that is the command line's business.

use crate::Communicator;
use crate::store::{Scoped, Store, StoreError};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The engine that carries bytes between processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Gloo over TCP: survivors of a failure go on and may start anew.
    Gloo,
    /// MPI: the cluster's own network; fail-stop.
    Mpi,
}

impl Backend {
    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Gloo => "gloo",
            Backend::Mpi => "mpi",
        }
    }

    /// Whether this binary was built with it.
    pub const fn is_built(self) -> bool {
        match self {
            Backend::Gloo => cfg!(feature = "gloo"),
            Backend::Mpi => cfg!(feature = "mpi"),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a rank could not join its job.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The backend was left out when this binary was built.
    #[error("this binary was built without the backend {backend}; build it with `--features {backend}`")]
    NotBuilt {
        /// The backend.
        backend: Backend,
    },
    /// The rank is taken.
    #[error(
        "rank {rank} of job `{job}` (generation {generation}) is taken by {holder}: it was started twice, another job \
         uses the same store {store}, or an old one left its keys there; stop it, or give this job another name or store"
    )]
    Taken {
        /// The rank.
        rank: usize,
        /// The job.
        job: String,
        /// Its generation.
        generation: u64,
        /// Who has it.
        holder: String,
        /// The store.
        store: String,
    },
    /// Ranks did not come.
    #[error("ranks {missing:?} of {world_size} did not come within {:.1} s; see whether they were started and whether they reach the store {store}", waited.as_secs_f64())]
    Missing {
        /// Who.
        missing: Vec<usize>,
        /// Of how many.
        world_size: usize,
        /// How long they were waited for.
        waited: Duration,
        /// The store.
        store: String,
    },
    /// Connections could not be made.
    #[error(
        "rank {rank} cannot {action} {address}: {problem}; see whether the hosts reach each other, and name this host's address if it has several"
    )]
    Network {
        /// The rank that reports.
        rank: usize,
        /// What was tried.
        action: &'static str,
        /// Where.
        address: String,
        /// The system's answer.
        problem: String,
    },
    /// A rank failed while the others were joining.
    #[error("rank {rank} cannot join: {reason}")]
    Failed {
        /// The rank that reports.
        rank: usize,
        /// What it was told.
        reason: String,
    },
}

/// Called with words when a rank is stuck inside an engine; is expected to end the process.
pub type OnStuck = Arc<dyn Fn(&str) + Send + Sync>;

/// A job as one of its processes sees it.
#[derive(Clone)]
pub struct Job {
    /// The engine.
    pub backend: Backend,
    /// Where the processes meet.
    pub store: Arc<dyn Store>,
    /// Tells jobs on one store apart.
    pub name: String,
    /// How often the job was started anew.
    pub generation: u64,
    /// Processes in all.
    pub num_processes: usize,
    /// This process's number.
    pub process: usize,
    /// Ranks in each process; above 1 with Gloo alone.
    pub ranks_per_process: usize,
    /// The address of this host under which the others reach it.
    pub address: IpAddr,
    /// This host's name.
    pub host: String,
    /// How long to wait for the others at the start.
    pub rendezvous_deadline: Duration,
    /// How long a rank may be silent before it counts as gone.
    pub silence: Duration,
    /// Compare the bits of every result that must be equal on all ranks.
    pub verify: bool,
    /// Read large contents out of the memory of ranks on the same host, where the kernel allows it.
    pub direct: bool,
    /// How many operations each rank remembers.
    pub flight_recorder: usize,
    /// For MPI: what to do when a rank is stuck in a call that nothing can end.
    pub on_stuck: OnStuck,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("backend", &self.backend)
            .field("store", &self.store)
            .field("name", &self.name)
            .field("generation", &self.generation)
            .field("process", &self.process)
            .field("num_processes", &self.num_processes)
            .field("ranks_per_process", &self.ranks_per_process)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// Ranks in all.
    pub fn world_size(&self) -> usize {
        self.num_processes * self.ranks_per_process
    }

    /// The ranks of this process.
    pub fn ranks(&self) -> std::ops::Range<usize> {
        let first = self.process * self.ranks_per_process;
        first..first + self.ranks_per_process
    }

    /// The part of the store that belongs to this job and generation.
    pub fn scope(&self) -> Scoped {
        Scoped::of_generation(Arc::clone(&self.store), &self.name, self.generation)
    }

    /// Joins as `rank`, one of [`Job::ranks`]: claims the number, waits for all others, makes the connections.
    ///
    /// Nothing waits longer than `deadline` in any later operation while nothing in the world moves.
    ///
    /// # Errors
    /// `Taken`, `Missing`, `Network`, `Failed`, `NotBuilt`, and those of the store.
    pub fn join(&self, rank: usize, deadline: Duration) -> Result<Box<dyn Communicator>, JoinError> {
        self.join_with(rank, deadline)
    }

    #[cfg(not(any(feature = "gloo", feature = "mpi")))]
    fn join_with(&self, _rank: usize, _deadline: Duration) -> Result<Box<dyn Communicator>, JoinError> {
        Err(JoinError::NotBuilt { backend: self.backend })
    }
}

#[cfg(any(feature = "gloo", feature = "mpi"))]
mod joining {
    use super::*;
    use crate::store::{Vigil, wait_for};
    use crate::wire::{self, Endpoint, HubError, Neighbours, Watch, WatchOptions, link::LinkError};
    use std::time::Instant;

    fn key(rank: usize) -> String {
        format!("rank/{rank}")
    }

    impl Job {
        pub(super) fn join_with(
            &self,
            rank: usize,
            deadline: Duration,
        ) -> Result<Box<dyn Communicator>, JoinError> {
            if !self.backend.is_built() {
                return Err(JoinError::NotBuilt { backend: self.backend });
            }
            let store: Arc<dyn Store> = Arc::new(self.scope());
            self.claim(&*store, rank)?;
            let vigil = Vigil::begin(Arc::clone(&store), "rank", rank, self.world_size(), self.silence)?;
            // A process may be lost before its ranks begin.
            let vigil = vigil.and_watch("process", self.num_processes);
            let hosts = self.gather(&*store, rank, &vigil)?;
            let watch = Watch::new(rank, hosts, WatchOptions { deadline, silence: self.silence });
            let joined = self.connect(&store, &watch, &vigil);
            match &joined {
                Ok(_) => vigil.end(),
                Err(_) => {
                    watch.fail(wire::Failure::Gone { rank, how: "it could not join".into() });
                    watch.close();
                }
            }
            joined
        }

        /// Claims the rank.
        fn claim(&self, store: &dyn Store, rank: usize) -> Result<(), JoinError> {
            let me = format!("{}\nprocess {}", self.host, std::process::id());
            if !store.create(&key(rank), me.as_bytes())? {
                let holder = store.get(&key(rank))?.unwrap_or_default();
                let holder = String::from_utf8_lossy(&holder).into_owned();
                let holder =
                    holder.split_once('\n').map_or(holder.clone(), |(host, id)| format!("{id} on {host}"));
                return Err(JoinError::Taken {
                    rank,
                    job: self.name.clone(),
                    generation: self.generation,
                    holder,
                    store: store.describe(),
                });
            }
            Ok(())
        }

        /// Waits until all ranks are claimed; returns their hosts.
        fn gather(&self, store: &dyn Store, rank: usize, vigil: &Vigil) -> Result<Vec<Arc<str>>, JoinError> {
            let begun = Instant::now();
            let mut hosts = Vec::with_capacity(self.world_size());
            for other in 0..self.world_size() {
                let left = self.rendezvous_deadline.saturating_sub(begun.elapsed());
                match wait_for(store, &key(other), left, &|| vigil.missed()) {
                    Ok(value) => {
                        let text = String::from_utf8_lossy(&value).into_owned();
                        hosts.push(Arc::from(text.split('\n').next().unwrap_or_default()));
                    }
                    Err(StoreError::Absent { .. }) => return Err(self.missing(store, begun.elapsed())),
                    Err(StoreError::Interrupted { reason, .. }) => {
                        return Err(JoinError::Failed { rank, reason });
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(hosts)
        }

        fn missing(&self, store: &dyn Store, waited: Duration) -> JoinError {
            let absent = |rank: &usize| !matches!(store.get(&key(*rank)), Ok(Some(_)));
            let world_size = self.world_size();
            let missing = (0..world_size).filter(absent).collect();
            JoinError::Missing { missing, world_size, waited, store: store.describe() }
        }

        fn connect(
            &self,
            store: &Arc<dyn Store>,
            watch: &Arc<Watch>,
            vigil: &Vigil,
        ) -> Result<Box<dyn Communicator>, JoinError> {
            let rank = watch.rank;
            watch.connect(&**store, self.address, self.rendezvous_deadline, vigil).map_err(|error| {
                match error {
                    HubError::Store(StoreError::Interrupted { reason, .. }) => {
                        JoinError::Failed { rank, reason }
                    }
                    HubError::Store(error) => JoinError::Store(error),
                    HubError::Network { action, address, problem } => {
                        JoinError::Network { rank, action, address, problem: problem.to_string() }
                    }
                }
            })?;
            let failed = |error: LinkError| match watch.failure() {
                Some(failure) => JoinError::Failed { rank, reason: failure.to_string() },
                None => JoinError::Network {
                    rank,
                    action: "connect to the other ranks from",
                    address: self.address.to_string(),
                    problem: error.0,
                },
            };
            let (limit, missed) = (self.rendezvous_deadline, || vigil.missed());
            let neighbours = Neighbours::meet(&**store, rank, &watch.hosts, self.direct, limit, &missed);
            let neighbours = neighbours.map_err(|error| match error {
                StoreError::Interrupted { reason, .. } => JoinError::Failed { rank, reason },
                error => JoinError::Store(error),
            })?;
            match self.backend {
                #[cfg(feature = "gloo")]
                Backend::Gloo => {
                    let store = Arc::clone(store);
                    let link =
                        crate::gloo::GlooLink::connect(store, watch, self.address, limit).map_err(failed)?;
                    let endpoint = Endpoint::open(link, Arc::clone(watch), neighbours).map_err(failed)?;
                    Ok(wire::world(endpoint, self.flight_recorder, self.verify))
                }
                #[cfg(feature = "mpi")]
                Backend::Mpi => {
                    let link = crate::mpi::MpiLink::new(watch, Arc::clone(&self.on_stuck)).map_err(failed)?;
                    let endpoint = Endpoint::open(link, Arc::clone(watch), neighbours).map_err(failed)?;
                    Ok(wire::world(endpoint, self.flight_recorder, self.verify))
                }
                #[allow(unreachable_patterns, reason = "with both features all are covered")]
                backend => Err(JoinError::NotBuilt { backend }),
            }
        }
    }
}
