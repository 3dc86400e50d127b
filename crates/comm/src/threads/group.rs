//! A group of ranks and how they meet: seats, headers, the rendezvous, and the guard under which a rank touches its
//! peers' memory. What is done with that memory is in `collectives`.

use super::mailbox::Mailbox;
use super::patience::{Bed, Interruption};
use super::world::WorldState;
use crate::claim::Claim;
use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Messages of at most this many bytes per rank go through the group's own buffers.
pub(super) const INLINE_BYTES: usize = 8192;

/// What a rank brings to a rendezvous. Atomics, so that even a rank that comes long after a failure reads no torn or
/// freed memory here.
#[derive(Default)]
pub(super) struct Header {
    /// Operation, type, reduction and root, packed.
    what: AtomicU64,
    bytes: AtomicUsize,
    sequence: AtomicU64,
    shared: AtomicPtr<u8>,
}

impl Header {
    pub(super) fn post(&self, claim: Claim, shared: *const u8) {
        // Published by the rendezvous that follows.
        self.what.store(claim.what, Ordering::Relaxed);
        self.bytes.store(claim.bytes, Ordering::Relaxed);
        self.sequence.store(claim.sequence, Ordering::Relaxed);
        self.shared.store(shared.cast_mut(), Ordering::Relaxed);
    }

    pub(super) fn claim(&self) -> Claim {
        Claim {
            what: self.what.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            sequence: self.sequence.load(Ordering::Relaxed),
        }
    }

    /// What the rank shares. To be read through only under [`Group::touch`].
    pub(super) fn shared(&self) -> *const u8 {
        self.shared.load(Ordering::Relaxed)
    }
}

/// A small message, readable by all members between two rendezvous.
#[repr(C, align(64))]
pub(super) struct InlineBuffer(UnsafeCell<[u8; INLINE_BYTES]>);

// SAFETY: written by the owner before it arrives at the rendezvous of an operation and read by others after it. The
// next write to the same buffer (there are two, by parity of the sequence) comes after the owner has passed the
// rendezvous of the operation between, at which every reader has arrived, hence finished reading.
unsafe impl Sync for InlineBuffer {}

impl InlineBuffer {
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.0.get().cast()
    }
}

/// One member's place in the group. Aligned so that ranks do not share cache lines.
#[repr(align(128))]
pub(super) struct Seat {
    pub(super) headers: [Header; 2],
    pub(super) checksums: [AtomicU64; 2],
    /// How often this rank has arrived at a rendezvous.
    arrivals: AtomicU64,
    /// Its communicator was dropped.
    gone: AtomicBool,
    /// It reads memory that a peer owns.
    touching: AtomicBool,
    pub(super) bed: Bed,
    pub(super) mailbox: Mailbox,
    pub(super) buffers: [InlineBuffer; 2],
}

impl Seat {
    fn new() -> Seat {
        Seat {
            headers: Default::default(),
            checksums: Default::default(),
            arrivals: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            touching: AtomicBool::new(false),
            bed: Bed::default(),
            mailbox: Mailbox::default(),
            buffers: [const { InlineBuffer(UnsafeCell::new([0; INLINE_BYTES])) }; 2],
        }
    }
}

/// A count that has a cache line for itself.
#[repr(align(128))]
struct Alone<T>(T);

pub(super) struct Group {
    pub(super) world: Arc<WorldState>,
    pub(super) id: u64,
    pub(super) name: Arc<str>,
    /// The rank in the world of each member.
    pub(super) world_ranks: Vec<usize>,
    pub(super) seats: Vec<Seat>,
    arrived: Alone<AtomicU32>,
    /// How many rendezvous are complete.
    generation: Alone<AtomicU64>,
}

impl Group {
    pub(super) fn new(world: Arc<WorldState>, id: u64, name: Arc<str>, world_ranks: Vec<usize>) -> Group {
        let seats = world_ranks.iter().map(|_| Seat::new()).collect();
        let (arrived, generation) = (Alone(AtomicU32::new(0)), Alone(AtomicU64::new(0)));
        Group { world, id, name, world_ranks, seats, arrived, generation }
    }

    pub(super) fn size(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn wake_all(&self) {
        self.seats.iter().for_each(|seat| seat.bed.wake());
    }

    /// Says that a member will never come again.
    pub(super) fn leave(&self, rank: usize) {
        self.seats[rank].gone.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    pub(super) fn is_gone(&self, rank: usize) -> bool {
        self.seats[rank].gone.load(Ordering::SeqCst)
    }

    /// Waits until all members have arrived as often as this one. What each did before is then visible to all.
    pub(super) fn rendezvous(&self, rank: usize) -> Result<(), Interruption> {
        let seat = &self.seats[rank];
        let arrivals = seat.arrivals.load(Ordering::Relaxed) + 1;
        seat.arrivals.store(arrivals, Ordering::SeqCst);
        // It cannot move on before we have arrived.
        let generation = self.generation.0.load(Ordering::Relaxed);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) as usize + 1 == self.size() {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.generation.0.store(generation + 1, Ordering::SeqCst);
            for (peer, seat) in self.seats.iter().enumerate() {
                if peer != rank {
                    seat.bed.wake();
                }
            }
        } else {
            let ready = || self.generation.0.load(Ordering::Acquire) != generation;
            let interrupted = || {
                let lost =
                    |r: &usize| self.is_gone(*r) && self.seats[*r].arrivals.load(Ordering::SeqCst) < arrivals;
                match (0..self.size()).find(lost) {
                    _ if self.world.has_failed() => Some(Interruption::Failed),
                    Some(peer) => Some(Interruption::Gone(peer)),
                    None => None,
                }
            };
            seat.bed.wait(self.world.patience, self.world.options.deadline, ready, interrupted)?;
        }
        if self.world.has_failed() { Err(Interruption::Failed) } else { Ok(()) }
    }

    /// The world ranks of those who have arrived less often than this one.
    pub(super) fn missing(&self, rank: usize) -> Vec<usize> {
        let arrivals = |r: usize| self.seats[r].arrivals.load(Ordering::SeqCst);
        (0..self.size()).filter(|&r| arrivals(r) < arrivals(rank)).map(|r| self.world_ranks[r]).collect()
    }

    /// The right to read peers' regions that were posted, until the guard drops. Refused once the world has failed.
    ///
    /// With `quiesce` this is Dekker's handshake in sequentially consistent order: we say that we touch, then look
    /// whether the world failed; one who leaves makes sure that it failed, then looks whether we touch.
    pub(super) fn touch(&self, rank: usize) -> Result<Touch<'_>, Interruption> {
        let touch = Touch { group: self, rank };
        self.seats[rank].touching.store(true, Ordering::SeqCst);
        if touch.must_stop() { Err(Interruption::Failed) } else { Ok(touch) }
    }

    /// Waits until no other member reads from this one. To be called in a failed world before regions are given back.
    pub(super) fn quiesce(&self, rank: usize) {
        debug_assert!(self.world.has_failed());
        for (peer, seat) in self.seats.iter().enumerate() {
            // Bounded by the longest stretch between two looks at `must_stop`.
            while peer != rank && seat.touching.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }
}

/// See [`Group::touch`].
pub(super) struct Touch<'g> {
    group: &'g Group,
    rank: usize,
}

impl Touch<'_> {
    /// Whether to stop touching soon, because someone may want to leave. To be asked every few megabytes.
    pub(super) fn must_stop(&self) -> bool {
        self.group.world.has_failed()
    }
}

impl Drop for Touch<'_> {
    fn drop(&mut self) {
        self.group.seats[self.rank].touching.store(false, Ordering::SeqCst);
    }
}
