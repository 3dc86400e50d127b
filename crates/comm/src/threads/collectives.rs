//! What the ranks of a group do once they meet: the data movement of each collective. Starting, numbering and
//! recording are in `member`.

use super::group::{Group, INLINE_BYTES};
use super::patience::Interruption;
use crate::claim::{Claim, checksum, describe, pack, segment};
use crate::pending::Ticket;
use crate::reduce::fold;
use crate::{Collective, Reduce};
use memory::{DType, Region, RegionMut};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering;

/// What is reduced at a time for all ranks: it is still in the cache when it goes to the others.
const BLOCK_BYTES: usize = 64 << 10;

/// Between two looks at whether the world has failed, at most so much is moved.
const STRETCH_BYTES: usize = 4 << 20;

/// Why a collective ended early.
pub(super) enum Trouble {
    Interrupted(Interruption),
    /// A peer (rank in the group) came with something else.
    Differs {
        ours: Box<str>,
        peer: usize,
        theirs: Box<str>,
    },
}

impl From<Interruption> for Trouble {
    fn from(why: Interruption) -> Trouble {
        Trouble::Interrupted(why)
    }
}

/// Executes a collective that this rank is next to execute; the caller guarantees that it executes no other in this
/// group meanwhile, that the regions fit the ticket, and, after an error, that it quiesces before giving them back.
pub(super) fn execute(
    group: &Group,
    rank: usize,
    ticket: &Ticket,
    send: Option<&Region<'_>>,
    recv: Option<&mut RegionMut<'_>>,
) -> Result<(), Trouble> {
    let n = group.size();
    let parity = (ticket.sequence % 2) as usize;
    let seat = &group.seats[rank];
    let (target, target_bytes) = recv.map_or((ptr::null_mut(), 0), |r| (r.as_mut_ptr(), r.len_bytes()));
    // What peers read of us: `send`, or where there is none the region that is changed in place.
    let (shared, shared_bytes) =
        send.map_or((target.cast_const(), target_bytes), |s| (s.as_ptr(), s.len_bytes()));
    let inline = shared_bytes <= INLINE_BYTES;
    if inline && shared_bytes > 0 {
        // SAFETY: our region has `shared_bytes` bytes and is checked out by us; the buffer is ours to write until
        // we arrive (see `InlineBuffer`), and large enough.
        unsafe { ptr::copy_nonoverlapping(shared, seat.buffers[parity].as_ptr(), shared_bytes) }
    }
    let claim = Claim { what: pack(ticket), bytes: ticket.bytes, sequence: ticket.sequence };
    seat.headers[parity].post(claim, shared);
    group.rendezvous(rank)?;
    compare(group, parity, claim, rank)?;

    // All claims are equal, so all ranks agree on sizes, on `inline`, and on the number of rendezvous to come.
    let peers = Peers { group, rank, parity, inline };
    let (dtype, op) = (ticket.dtype.unwrap_or(DType::F32), ticket.reduce.unwrap_or(Reduce::Sum));
    match ticket.operation {
        Collective::AllReduce if inline => peers.reduce(dtype, op, target, 0, target_bytes)?,
        Collective::AllReduce => {
            peers.reduce_everywhere(dtype, op, segment(target_bytes, n, rank))?;
            peers.meet()?;
        }
        Collective::ReduceScatter => {
            peers.reduce(dtype, op, target, rank * target_bytes, target_bytes)?;
            peers.meet()?;
        }
        Collective::AllGather => {
            for peer in 0..n {
                peers.copy(peer, 0, target.wrapping_add(peer * shared_bytes), shared_bytes)?;
            }
            peers.meet()?;
        }
        Collective::AllToAll => {
            let piece = shared_bytes / n;
            for peer in 0..n {
                peers.copy(peer, rank * piece, target.wrapping_add(peer * piece), piece)?;
            }
            peers.meet()?;
        }
        Collective::Broadcast => {
            if rank != ticket.peer {
                peers.copy(ticket.peer, 0, target, target_bytes)?;
            }
            peers.meet()?;
        }
        Collective::Barrier | Collective::Split | Collective::Send | Collective::Recv => {}
    }
    let same_everywhere =
        matches!(ticket.operation, Collective::AllReduce | Collective::AllGather | Collective::Broadcast);
    if group.world.options.verify && same_everywhere {
        // SAFETY: our own region, checked out by us and no longer changed by anyone.
        let bytes: &[u8] =
            if target_bytes == 0 { &[] } else { unsafe { std::slice::from_raw_parts(target, target_bytes) } };
        compare_results(group, rank, parity, checksum(bytes))?;
    }
    Ok(())
}

/// What the other ranks share in one operation, and how to read it.
struct Peers<'g> {
    group: &'g Group,
    rank: usize,
    parity: usize,
    inline: bool,
}

impl Peers<'_> {
    fn shared(&self, peer: usize) -> *const u8 {
        let seat = &self.group.seats[peer];
        if self.inline {
            seat.buffers[self.parity].as_ptr().cast_const()
        } else {
            seat.headers[self.parity].shared()
        }
    }

    /// After reading peers' regions: none may be given back before all have read. (Buffers need no such thing.)
    fn meet(&self) -> Result<(), Interruption> {
        if self.inline { Ok(()) } else { self.group.rendezvous(self.rank) }
    }

    /// Goes through `bytes` bytes by (begin, length), as long as the world has not failed. Until it returns, no peer gives
    /// its region back.
    fn by_stretches(&self, bytes: usize, work: impl Fn(usize, usize)) -> Result<(), Interruption> {
        let touch = self.group.touch(self.rank)?;
        for begin in (0..bytes).step_by(STRETCH_BYTES) {
            if touch.must_stop() {
                return Err(Interruption::Failed);
            }
            work(begin, STRETCH_BYTES.min(bytes - begin));
        }
        Ok(())
    }

    /// `target[..bytes]` becomes the reduction of all ranks' shared bytes from `offset`.
    fn reduce(
        &self,
        dtype: DType,
        op: Reduce,
        target: *mut u8,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Interruption> {
        if self.group.size() == 1 {
            return self.copy(self.rank, offset, target, bytes);
        }
        self.by_stretches(bytes, |begin, len| {
            // SAFETY: each peer posted a region (or wrote a buffer) of the agreed size before the rendezvous we
            // passed, and gives it back only after a rendezvous we have not reached, or in a failed world after
            // `quiesce`, which waits for `touch`. `target` is our own region: of it, peers read only the parts that
            // we do not write. Offsets and lengths are within the agreed sizes and whole elements.
            unsafe {
                let source = |peer: usize| self.shared(peer).add(offset + begin);
                fold(dtype, op, target.add(begin), source, self.group.size(), len);
            }
        })
    }

    /// Of what all ranks share to be changed in place, this range becomes its reduction, on all ranks. Who writes to
    /// the others what it has just read of them brings each line into its cache once, and not twice as one who reads
    /// their results later.
    fn reduce_everywhere(&self, dtype: DType, op: Reduce, range: Range<usize>) -> Result<(), Interruption> {
        if self.group.size() == 1 {
            return Ok(());
        }
        self.by_stretches(range.len(), |stretch, bytes| {
            let end = range.start + stretch + bytes;
            for begin in (range.start + stretch..end).step_by(BLOCK_BYTES) {
                let len = BLOCK_BYTES.min(end - begin);
                // SAFETY: as in `reduce`. All regions were given to be written to, and of each, this range is touched by
                // nobody but us before the next rendezvous.
                unsafe {
                    let source = |peer: usize| self.shared(peer).add(begin);
                    let target = |peer: usize| source(peer).cast_mut();
                    fold(dtype, op, target(self.rank), source, self.group.size(), len);
                    for peer in (0..self.group.size()).filter(|&peer| peer != self.rank) {
                        ptr::copy_nonoverlapping(source(self.rank), target(peer), len);
                    }
                }
            }
        })
    }

    /// `target[..bytes]` becomes what `peer` shares from `offset`.
    fn copy(&self, peer: usize, offset: usize, target: *mut u8, bytes: usize) -> Result<(), Interruption> {
        let source = self.shared(peer).wrapping_add(offset);
        if source == target.cast_const() {
            return Ok(()); // in place, in a group of one
        }
        self.by_stretches(bytes, |begin, len| {
            // SAFETY: as in `reduce`; source and target are different regions, or the same part of different ranks'.
            unsafe { ptr::copy_nonoverlapping(source.add(begin), target.add(begin), len) }
        })
    }
}

/// Whether all ranks came with the same claim. All ranks see the same headers and fail together.
fn compare(group: &Group, parity: usize, ours: Claim, rank: usize) -> Result<(), Trouble> {
    let claim = |peer: usize| group.seats[peer].headers[parity].claim();
    match (0..group.size()).find(|&peer| peer != rank && claim(peer) != ours) {
        Some(peer) => Err(Trouble::Differs { ours: describe(ours), peer, theirs: describe(claim(peer)) }),
        None => Ok(()),
    }
}

/// Whether all ranks have the same bits.
fn compare_results(group: &Group, rank: usize, parity: usize, ours: u64) -> Result<(), Trouble> {
    let sum = |peer: usize| &group.seats[peer].checksums[parity];
    sum(rank).store(ours, Ordering::Relaxed); // published by the rendezvous; safe to write again as headers are
    group.rendezvous(rank)?;
    let theirs = |peer: usize| sum(peer).load(Ordering::Relaxed);
    match (0..group.size()).find(|&peer| theirs(peer) != ours) {
        Some(peer) => Err(Trouble::Differs {
            ours: format!("a result with checksum {ours:016x}").into(),
            peer,
            theirs: format!("one with {:016x}", theirs(peer)).into(),
        }),
        None => Ok(()),
    }
}
