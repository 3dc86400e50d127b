//! ZB-V: two chunks per rank, down and up again, no bubble for equal times in 1F1B's memory. Nothing
//! about other schedules.

use super::{Generator, Request};
use crate::Kind::{BackwardInput as I, BackwardWeight as W, Forward as F};
use crate::{Action, Kind, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "zb-v",
    about: "two chunks per rank in a V; no bubble if F = I = W, at most 2p half chunks live on each rank",
    chunks: Some(2),
    build,
};

/// Made for at least `2p - 1` microbatches; of fewer, the missing ones are left out.
///
/// # Source
/// Qi et al., "Zero Bubble Pipeline Parallelism", 2023, section 6 and figure 6.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let num_ranks = request.num_ranks;
    let num_microbatches = request.num_microbatches.max(2 * num_ranks - 1);
    Ok(request.schedule(GENERATOR.name, Placement::V, |rank| {
        let mut row =
            Row { stages: [rank, 2 * num_ranks - 1 - rank], listed: [[0; 2]; 4], actions: Vec::new() };
        row.fill(num_ranks, rank, num_microbatches);
        row.actions.retain(|action| action.microbatch < request.num_microbatches);
        row.actions
    }))
}

const DOWN: usize = 0;
const UP: usize = 1;

/// The list of one rank in the making.
struct Row {
    stages: [usize; 2],
    /// How many of each kind are listed, by chunk.
    listed: [[usize; 2]; 4],
    actions: Vec<Action>,
}

impl Row {
    /// Lists the next microbatch of each kind.
    fn list(&mut self, kinds: &[Kind], chunk: usize) {
        for &kind in kinds {
            let next = &mut self.listed[kind.index()][chunk];
            self.actions.push(Action::new(kind, self.stages[chunk], *next));
            *next += 1;
        }
    }

    fn fill(&mut self, num_ranks: usize, rank: usize, num_microbatches: usize) {
        // Warm up until the V is full.
        (0..2 * (num_ranks - rank) - 1).for_each(|_| self.list(&[F], DOWN));
        for _ in 0..rank {
            self.list(&[F], UP);
            self.list(&[F], DOWN);
        }
        (0..num_ranks - rank).for_each(|_| self.list(&[F, I, W], UP));
        // One of everything for either chunk, while there are forwards.
        while self.listed[F.index()][UP] < num_microbatches {
            if self.listed[F.index()][DOWN] < num_microbatches {
                self.list(&[F], DOWN);
            }
            self.list(&[I, W], DOWN);
            self.list(&[F, I, W], UP);
        }
        // Cool down: the inputs that others wait for first.
        for _ in 0..rank {
            self.list(&[I], DOWN);
            self.list(&[I], UP);
        }
        (0..num_ranks - rank).for_each(|_| self.list(&[I, W], DOWN));
        for chunk in [UP, DOWN] {
            while self.listed[W.index()][chunk] < num_microbatches {
                self.list(&[W], chunk);
            }
        }
    }
}
