//! Large collectives of ranks that read each other's memory (see `neighbours`): the same sums in the same order as over
//! an engine, without its copies. Envelopes carry where things lie instead of a channel.
//!
//! Each rank reads what it needs from all others as soon as all have announced themselves, and nobody goes on before all
//! have said that they have read. What is summed is read in blocks that stay in the cache.

use super::collectives::{Group, Memory, SWAP_BYTES, Trouble, first_round};
use super::endpoint::{Header, Kind, PIECE_BYTES};
use super::link::Link;
use crate::claim::segment;
use crate::pending::Ticket;
use crate::reduce::fold;
use crate::{Collective, Reduce};
use memory::DType;
use std::ops::Range;
use std::ptr;

/// What is read from each rank before it is added up: with the accumulators it fits a second-level cache.
const BLOCK_BYTES: usize = 128 << 10;

/// The large part of a collective: reads.
pub(super) struct Reading<'g, L: Link> {
    pub(super) group: &'g Group<L>,
    /// By member: where what it shares begins.
    pub(super) addresses: Vec<u64>,
}

impl<L: Link> Reading<'_, L> {
    pub(super) fn run(&self, ticket: &Ticket, shared: Memory, target: Memory) -> Result<(), Trouble> {
        let (n, rank) = (self.group.size(), self.group.rank);
        let (dtype, op) = (ticket.dtype.unwrap_or(DType::F32), ticket.reduce.unwrap_or(Reduce::Sum));
        // What a member has for this rank, within what it shares.
        let for_us = |member: usize| first_round(ticket, n, member, rank, shared.bytes);
        match ticket.operation {
            Collective::AllReduce if n == 2 && target.bytes <= SWAP_BYTES => {
                return self.swap(ticket, dtype, op, target);
            }
            Collective::AllReduce => {
                let own = segment(target.bytes, n, rank);
                self.reduce(dtype, op, shared, &own, target.at(&own))?;
                self.meet(ticket)?;
                for peer in self.group.peers() {
                    let theirs = segment(target.bytes, n, peer);
                    self.read(peer, &theirs, target.at(&theirs))?;
                }
            }
            Collective::ReduceScatter => self.reduce(dtype, op, shared, &for_us(rank), target.base)?,
            Collective::AllGather | Collective::AllToAll => {
                let piece = target.bytes / n;
                let place = |member: usize| target.at(&(member * piece..(member + 1) * piece));
                // SAFETY: both ranges are of this rank's regions, which are apart, and of one piece's size.
                unsafe { ptr::copy_nonoverlapping(shared.at(&for_us(rank)), place(rank), piece) }
                for peer in self.group.peers() {
                    self.read(peer, &for_us(peer), place(peer))?;
                }
            }
            Collective::Broadcast if ticket.peer != rank => {
                self.read(ticket.peer, &(0..target.bytes), target.base)?;
            }
            _ => {}
        }
        self.meet(ticket)
    }

    /// Reads a range of what a member shares. `to` is a place for it in this rank's own regions or scratch.
    fn read(&self, peer: usize, range: &Range<usize>, to: *mut u8) -> Result<(), Trouble> {
        let (endpoint, from) = (&self.group.endpoint, self.group.world_ranks[peer]);
        for start in range.clone().step_by(PIECE_BYTES) {
            let (address, len) = (self.addresses[peer] + start as u64, PIECE_BYTES.min(range.end - start));
            let to = to.wrapping_add(start - range.start);
            // SAFETY: the callers read into ranges of this rank that nobody else touches meanwhile.
            let read = unsafe { endpoint.neighbours.read(from, address, to, len) };
            read.map_err(|error| endpoint.watch.explain_broken(from, &error.0))?;
            endpoint.watch.moved();
        }
        Ok(())
    }

    /// Says that this rank has read, and waits until all have.
    fn meet(&self, ticket: &Ticket) -> Result<(), Trouble> {
        let (group, endpoint) = (self.group, &self.group.endpoint);
        for peer in group.peers() {
            let from = group.world_ranks[peer];
            if !endpoint.neighbours.is_whole(from) {
                return Err(endpoint.watch.explain_broken(from, "it let go of what was read").into());
            }
        }
        let (kind, number) = (Kind::Read, ticket.sequence);
        let header = Header { group: group.id, kind, number, what: 0, bytes: 0, channel: 0 };
        for peer in group.peers() {
            endpoint.post(group.world_ranks[peer], header, &[])?;
        }
        for peer in group.peers() {
            let from = group.world_ranks[peer];
            let envelope = endpoint.take(from, group.id, kind, number)?;
            endpoint.recycle(from, envelope);
        }
        Ok(())
    }

    /// Reduces `range` of what all share into `result`, which is apart from what others read meanwhile.
    fn reduce(
        &self,
        dtype: DType,
        op: Reduce,
        shared: Memory,
        range: &Range<usize>,
        result: *mut u8,
    ) -> Result<(), Trouble> {
        let (n, rank) = (self.group.size(), self.group.rank);
        let mut scratch = self.group.scratch(n * BLOCK_BYTES);
        let room = scratch.as_mut_ptr().cast::<u8>();
        let slot = |peer: usize| room.wrapping_add(peer * BLOCK_BYTES);
        for start in range.clone().step_by(BLOCK_BYTES) {
            let block = start..(start + BLOCK_BYTES).min(range.end);
            for peer in self.group.peers() {
                self.read(peer, &block, slot(peer))?;
            }
            let source = |member: usize| match member == rank {
                true => shared.at(&block).cast_const(),
                false => slot(member).cast_const(),
            };
            // SAFETY: what was read is in our scratch; all sources have the length of `block`, which is whole elements
            // because segments and blocks start at multiples of 64. `result` is ours: in an all_reduce our own source.
            unsafe {
                fold(dtype, op, result.wrapping_add(start - range.start), source, n, block.len());
            }
        }
        Ok(())
    }

    /// Reduces `target` of two ranks, each of which reads all of the other's.
    fn swap(&self, ticket: &Ticket, dtype: DType, op: Reduce, target: Memory) -> Result<(), Trouble> {
        let rank = self.group.rank;
        let mut scratch = self.group.scratch(target.bytes);
        let theirs = scratch.as_mut_ptr().cast::<u8>();
        self.read(1 - rank, &(0..target.bytes), theirs)?;
        // The other one may still be reading what the sum is about to replace.
        self.meet(ticket)?;
        let source = |of: usize| if of == rank { target.base.cast_const() } else { theirs.cast_const() };
        // SAFETY: both vectors are ours, of the same size, and nobody reads them any more; the result takes the place
        // of our own.
        unsafe { fold(dtype, op, target.base, source, 2, target.bytes) }
        Ok(())
    }
}
