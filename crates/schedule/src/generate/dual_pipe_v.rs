//! DualPipeV: two chunks per rank in a V, forwards and backwards in pairs that may overlap. Nothing about
//! other schedules.

use std::collections::VecDeque;

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "dualpipe-v",
    about: "two chunks per rank in a V; each F paired with a B that may hide the other's communication",
    chunks: Some(2),
    build,
};

const DOWN: usize = 0;
const UP: usize = 1;

/// Made for at least `2p` microbatches; of fewer, the missing ones are left out.
///
/// # Source
/// DeepSeek, <https://github.com/deepseek-ai/DualPipe> (`dualpipev.py`), 2025, as PyTorch lists it; the cut
/// in half of DualPipe is by Qi et al. (sail-sg), 2025.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let mut overlaps = Vec::new();
    let mut schedule = request.schedule(GENERATOR.name, Placement::V, |rank| {
        let mut rows = Rows::new(request, rank);
        rows.fill(request.num_ranks, rank, request.num_microbatches.max(2 * request.num_ranks));
        let mut actions = Vec::with_capacity(rows.cells.len());
        for cell in rows.cells {
            let kept = cell.iter().flatten().filter(|action| action.microbatch < request.num_microbatches);
            let start = actions.len();
            actions.extend(kept);
            if actions.len() == start + 2 {
                overlaps.push((rank, start));
            }
        }
        actions
    });
    schedule.overlaps = overlaps;
    Ok(schedule)
}

/// The list of one rank in the making: cells of one action or of a pair.
struct Rows {
    stages: [usize; 2],
    cells: Vec<[Option<Action>; 2]>,
    forwards: [usize; 2],
    backwards: [usize; 2],
    put_off: VecDeque<Action>,
}

impl Rows {
    fn new(request: &Request, rank: usize) -> Rows {
        let stages = [rank, 2 * request.num_ranks - 1 - rank];
        Rows { stages, cells: Vec::new(), forwards: [0; 2], backwards: [0; 2], put_off: VecDeque::new() }
    }

    fn next_forward(&mut self, chunk: usize) -> Option<Action> {
        self.forwards[chunk] += 1;
        Some(Action::forward(self.stages[chunk], self.forwards[chunk] - 1))
    }

    fn next_backward(&mut self, chunk: usize) -> Option<Action> {
        self.backwards[chunk] += 1;
        Some(Action::backward(self.stages[chunk], self.backwards[chunk] - 1))
    }

    fn forward(&mut self, chunk: usize) {
        let forward = self.next_forward(chunk);
        self.cells.push([forward, None]);
    }

    /// `B`, or `I` with its `W` put off.
    fn backward(&mut self, chunk: usize, split: bool) {
        let Some(Action { stage, microbatch, .. }) = self.next_backward(chunk) else { return };
        if split {
            self.put_off.push_back(Action::backward_weight(stage, microbatch));
            self.cells.push([Some(Action::backward_input(stage, microbatch)), None]);
        } else {
            self.cells.push([Some(Action::backward(stage, microbatch)), None]);
        }
    }

    /// The oldest `W` put off, if any.
    fn weight(&mut self) {
        let oldest = self.put_off.pop_front();
        self.cells.extend(oldest.map(|action| [Some(action), None]));
    }

    fn pair(&mut self, forward: usize, backward: usize) {
        let pair = [self.next_forward(forward), self.next_backward(backward)];
        self.cells.push(pair);
    }

    fn fill(&mut self, num_ranks: usize, rank: usize, num_microbatches: usize) {
        let after = num_ranks - 1 - rank;
        (0..2 * after).for_each(|_| self.forward(DOWN));
        for _ in 0..=rank {
            self.forward(DOWN);
            self.forward(UP);
        }
        for _ in 0..after {
            self.backward(UP, true);
            self.weight();
            self.forward(UP);
        }
        for round in 0..num_microbatches + rank + 1 - 2 * num_ranks {
            if round == 0 && after == 0 {
                // Apart, for a smaller bubble.
                self.forward(DOWN);
                self.backward(UP, false);
            } else {
                self.pair(DOWN, UP);
            }
            self.pair(UP, DOWN);
        }
        for _ in 0..after {
            self.backward(UP, false);
            self.pair(UP, DOWN);
        }
        // Half way the weight gradients begin to wait for the end.
        let half = rank.div_ceil(2);
        for round in 0..=rank {
            self.backward(UP, round > half || (round == half && rank % 2 == 1));
            self.backward(DOWN, round >= half);
        }
        for _ in 0..after {
            self.weight();
            self.backward(DOWN, true);
        }
        while !self.put_off.is_empty() {
            self.weight();
        }
    }
}
