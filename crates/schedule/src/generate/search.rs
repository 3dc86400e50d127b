//! The search for a good order: building blocks on a grid, then small changes to the best. What it is held
//! against is in `auto`, how a block becomes an order in `list`.

use super::Request;
use super::list::{Outcome, Policy, Problem};

/// A building block: distances between its passes, in units of [`Block::unit`].
#[derive(Debug, Clone, PartialEq)]
struct Block {
    /// Extra distance from rank to rank: of `F` in even and odd chunks, of `I` in even and odd chunks.
    extra: [i32; 4],
    /// Extra distance from chunk to chunk: of `F`, from the last `F` to its `I`, and of `I`.
    turn: [i32; 3],
    /// Whether the order of the block binds.
    strict: bool,
    /// How patiently gaps are kept, in quarters of a `W`.
    patience: i32,
}

/// The best blocks so far, best first, with their longest span and makespan.
struct Elite<'a> {
    problem: &'a Problem<'a>,
    best: Vec<(Block, f64, f64)>,
}

impl Elite<'_> {
    /// How many are kept.
    const SIZE: usize = 8;

    fn attempt(&mut self, block: Block) {
        let Some(outcome) = self.problem.run(&block.policy(self.problem)) else { return };
        let Outcome { longest_span, makespan, .. } = outcome;
        let better = |other: &&(Block, f64, f64)| (other.1, other.2) < (longest_span, makespan);
        let place = self.best.iter().take_while(better).count();
        if place < Elite::SIZE && self.best.iter().all(|other| other.0 != block) {
            self.best.insert(place, (block, longest_span, makespan));
            self.best.truncate(Elite::SIZE);
        }
    }

    /// Tries small changes to the best.
    fn climb(&mut self, tries: usize, draw: &mut impl FnMut(usize) -> usize) {
        for _ in 0..tries {
            let size = self.best.len().max(1);
            let chosen = draw(size).min(draw(size));
            let Some((block, ..)) = self.best.get(chosen) else { return };
            let mut block = block.clone();
            for _ in 0..=draw(3) {
                let amount = [-4, -2, -1, 1, 2, 4][draw(6)];
                match draw(10) {
                    place @ 0..4 => block.extra[place] = (block.extra[place] + amount).max(0),
                    place @ 4..7 => block.turn[place - 4] = (block.turn[place - 4] + amount).max(0),
                    7 => block.strict = !block.strict,
                    _ => block.patience = draw(5) as i32,
                }
            }
            self.attempt(block);
        }
    }
}

/// The best order of many blocks and of small changes to the best of them: most of it on few
/// microbatches, the last part on all.
pub(super) fn search(problem: &Problem, effort: usize) -> Option<Outcome> {
    let few = problem.request.num_microbatches.min((2 * problem.request.num_ranks).max(24));
    let request = Request { num_microbatches: few, ..*problem.request };
    let short = Problem::new(&request, problem.placement, problem.cap);
    let tries = |microbatches: usize| effort / (3 * problem.placement.len() * microbatches);
    let mut draw = draws();
    let mut elite = Elite { problem: &short, best: Vec::new() };
    let most = tries(few).clamp(16, 4000);
    blocks(&short, most / 3).into_iter().for_each(|block| elite.attempt(block));
    elite.climb(most / 2, &mut draw);
    let mut full = Elite { problem, best: Vec::new() };
    elite.best.into_iter().for_each(|(block, ..)| full.attempt(block));
    full.climb(tries(problem.request.num_microbatches).min(2000) / 3, &mut draw);
    problem.run(&full.best.first()?.0.policy(problem))
}

/// Small whole numbers below a limit, the same in every run: Knuth's linear congruential generator, of
/// which the high bits are the good ones.
fn draws() -> impl FnMut(usize) -> usize {
    let mut state = 1u64;
    move |limit| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    }
}

/// To begin with: blocks on a grid whose memory is nearest to the cap, each in some variants, behind two
/// that always fit.
fn blocks(problem: &Problem, limit: usize) -> Vec<Block> {
    let Request { num_ranks, chunks, times, .. } = *problem.request;
    let period = (times.forward + times.input + times.weight) * chunks as f64;
    let by_chunk = chunks == 2;
    let steps: &[i32] = if by_chunk { &[0, 2, 4, 6, 8, 12] } else { &[0, 2, 4, 6, 8, 10, 12, 16, 20, 24] };
    let mut grid = Vec::new();
    for code in 0..steps.len().pow(if by_chunk { 4 } else { 2 }) {
        let digit = |place: u32| steps[code / steps.len().pow(place) % steps.len()];
        let extra = if by_chunk { [0, 1, 2, 3].map(digit) } else { [0, 0, 1, 1].map(digit) };
        let block = Block { extra, turn: [0; 3], strict: true, patience: 4 };
        // What is live of a stage: from its F to its I, in periods. Counted on the first and the last rank.
        let Policy { forward, input, .. } = block.policy(problem);
        let live = |stage: &usize| ((input[*stage] - forward[*stage]) / period).floor() + 1.0;
        let of_rank = |rank: usize| problem.stages[rank].iter().map(live).sum::<f64>();
        let memory = of_rank(0).max(of_rank(num_ranks - 1));
        grid.push(((memory - problem.cap as f64).abs(), block));
    }
    grid.sort_by(|one, other| one.0.total_cmp(&other.0));
    let greedy = |late: i32| Block { extra: [0; 4], turn: [0, late, 0], strict: false, patience: 4 };
    let mut blocks = vec![greedy(0), greedy(1000)];
    for (_, block) in grid {
        for (strict, patience) in [(true, 4), (false, 4), (true, 2), (false, 0)] {
            blocks.push(Block { strict, patience, ..block.clone() });
        }
        if blocks.len() >= limit {
            break;
        }
    }
    blocks
}

impl Block {
    /// A quarter of the mean time of a pass: fine enough for any times, coarse enough to search.
    fn unit(problem: &Problem) -> f64 {
        let Request { times, .. } = *problem.request;
        (times.forward + times.input + times.weight) / 12.0
    }

    /// When each pass of microbatch 0 would run.
    fn policy(&self, problem: &Problem) -> Policy {
        let Request { num_ranks, chunks, times, .. } = *problem.request;
        let (num_stages, unit) = (problem.placement.len(), Block::unit(problem));
        // From a stage to the next, for F, and back, for I.
        let distance = |stage: usize, pass: usize| {
            let away = problem.placement[stage] != problem.placement[stage + 1];
            let turns = (stage + 1).is_multiple_of(num_ranks);
            let extra =
                if turns { self.turn[2 * pass] } else { self.extra[2 * pass + stage / num_ranks % 2] };
            extra as f64 * unit + if away { times.comm } else { 0.0 }
        };
        // Some distance even where nothing takes time, so that the order is one.
        let tiny = 1e-6 * unit + f64::MIN_POSITIVE;
        let (after_forward, after_input) = (times.forward.max(tiny), times.input.max(tiny));
        let mut forward = vec![0.0; num_stages];
        for stage in 1..num_stages {
            forward[stage] = forward[stage - 1] + after_forward + distance(stage - 1, 0);
        }
        let last = forward[num_stages - 1] + after_forward + self.turn[1] as f64 * unit;
        let mut input = vec![last; num_stages];
        for stage in (0..num_stages - 1).rev() {
            input[stage] = input[stage + 1] + after_input + distance(stage, 1);
        }
        let period = ((times.forward + times.input + times.weight) * chunks as f64).max(f64::MIN_POSITIVE);
        Policy { forward, input, period, strict: self.strict, patience: self.patience as f64 / 4.0 }
    }
}
