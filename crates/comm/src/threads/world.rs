//! What all ranks of a world share: its options, its first failure, its groups. No operation lives here.

use super::ThreadCommunicator;
use super::group::Group;
use super::patience::Patience;
use crate::communicator::Abort;
use crate::recorder::Recorder;
use crate::{Collective, CommError, Place};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How a world of threads behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long any operation may wait for its peers.
    pub deadline: Duration,
    /// Compare the bits of every result that must be equal on all ranks. (Operation, type, size and sequence are
    /// compared always: that costs nothing here.)
    pub verify: bool,
    /// How many operations each rank remembers.
    pub flight_recorder: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { deadline: Duration::from_secs(60), verify: false, flight_recorder: 256 }
    }
}

/// A world whose ranks are threads of this process.
pub struct World;

impl World {
    /// Makes a world: one communicator per rank, each to be moved into its thread.
    #[expect(clippy::new_ret_no_self, reason = "a world is nothing but its ranks")]
    pub fn new(world_size: usize, options: Options) -> Vec<ThreadCommunicator> {
        let origin = Instant::now();
        let recorder_capacity = options.flight_recorder;
        let world = Arc::new(WorldState {
            patience: Patience::of_world(world_size),
            options,
            failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            groups: Mutex::default(),
            num_groups: AtomicU64::new(0),
            forming: Mutex::default(),
        });
        let group =
            WorldState::new_group(&world, format!("world[0..{world_size}]"), (0..world_size).collect());
        (0..world_size)
            .map(|rank| {
                let recorder = Arc::new(Recorder::new(recorder_capacity, origin));
                ThreadCommunicator::new(Arc::clone(&group), rank, recorder)
            })
            .collect()
    }
}

/// How a thread goes: it returned or panicked.
pub(super) const LEFT: &str = "it dropped its communicator";

/// The first failure: what every other rank is told.
#[derive(Debug)]
pub(super) enum Failure {
    /// By a handle, or by an error that only one rank saw.
    Aborted(Arc<str>),
    /// A rank is gone (its rank in the world).
    Gone(usize),
    /// Ranks did not come to this operation of this group.
    Deadline { group: u64, sequence: u64, missing: Vec<usize>, reason: Arc<str> },
}

/// A group that some members have joined and others not yet, and how many have.
type Forming = HashMap<SplitKey, (Arc<Group>, usize)>;

/// What makes the members of a new group find each other.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct SplitKey {
    pub(super) parent: u64,
    pub(super) name: String,
    pub(super) members: Vec<usize>,
    /// How many groups of this name and members the parent had before.
    pub(super) occurrence: u64,
}

pub(super) struct WorldState {
    pub(super) options: Options,
    pub(super) patience: Patience,
    failed: AtomicBool,
    failure: OnceLock<Failure>,
    groups: Mutex<Vec<Weak<Group>>>,
    num_groups: AtomicU64,
    forming: Mutex<Forming>,
}

/// A poisoned lock guards plain bookkeeping here, which no panic can leave half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorldState {
    /// Makes a group and lists it among those to be woken on failure.
    pub(super) fn new_group(world: &Arc<WorldState>, name: String, world_ranks: Vec<usize>) -> Arc<Group> {
        let id = world.num_groups.fetch_add(1, Ordering::Relaxed);
        let group = Arc::new(Group::new(Arc::clone(world), id, name.into(), world_ranks));
        let mut groups = lock(&world.groups);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(&group));
        group
    }

    /// Joins the group of this key, making it if this rank is the first to come.
    pub(super) fn join(
        world: &Arc<WorldState>,
        key: SplitKey,
        name: String,
        world_ranks: Vec<usize>,
    ) -> Arc<Group> {
        let num_members = key.members.len();
        let mut forming = lock(&world.forming);
        let (group, joined) = forming
            .entry(key.clone())
            .or_insert_with(|| (WorldState::new_group(world, name, world_ranks), 0));
        *joined += 1;
        let (group, complete) = (Arc::clone(group), *joined == num_members);
        if complete {
            forming.remove(&key);
        }
        group
    }

    /// Whether the world has failed. Sequentially consistent: see `Group::touch`.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Fails the world and wakes everyone. The first failure is the one that is told.
    pub(super) fn fail(&self, failure: Failure) {
        let first = self.failure.set(failure).is_ok();
        // Also by those who come second: whoever returns from here may count on it (see `Group::quiesce`).
        self.failed.store(true, Ordering::SeqCst);
        if first {
            let groups: Vec<_> = lock(&self.groups).iter().filter_map(Weak::upgrade).collect();
            groups.iter().for_each(|group| group.wake_all());
            // Nobody will complete these, and they own this world.
            drop(std::mem::take(&mut *lock(&self.forming)));
        }
    }

    /// The error that the world's failure is for an operation at `place`.
    pub(super) fn error(&self, place: Place, group: u64) -> CommError {
        match self.failure.get() {
            Some(Failure::Gone(peer)) => CommError::PeerGone { place, peer: *peer, how: LEFT.into() },
            Some(Failure::Deadline { group: g, sequence, missing, .. })
                if (*g, *sequence) == (group, place.sequence)
                    && !missing.contains(&place.rank)
                    && !matches!(place.operation, Collective::Send | Collective::Recv) =>
            {
                let deadline = self.options.deadline;
                CommError::DeadlineExceeded { place, deadline, missing: missing.clone() }
            }
            Some(Failure::Deadline { reason, .. } | Failure::Aborted(reason)) => {
                CommError::Aborted { place, reason: Arc::clone(reason) }
            }
            None => CommError::Aborted { place, reason: "no reason given".into() },
        }
    }
}

impl Abort for WorldState {
    fn abort(&self, reason: &str) {
        self.fail(Failure::Aborted(reason.into()));
    }

    fn is_aborted(&self) -> bool {
        self.has_failed()
    }
}
