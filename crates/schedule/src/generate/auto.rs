//! The order found by search: list scheduling from many starting points, beside every named schedule that
//! fits under the cap; the best wins. How one order is made is in `list`.

use super::list::{Outcome, Policy, Problem};
use super::{Generator, Request, generators};
use crate::{Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "auto",
    about: "searched for the given times under a memory cap; never worse than a named one of its memory",
    chunks: None,
    build,
};

/// About how many actions may be placed in the search: less than a second.
const EFFORT: usize = 3_000_000;

/// # Source
/// Qi et al., "Pipeline Parallelism with Controllable Memory", 2024: a schedule is a building block, laid
/// out once per microbatch, and the distances between its passes decide the memory (V-Min, V-Half, V-ZB
/// are three of them). Here the distances are only the wish: list scheduling makes the order, fills gaps
/// with `W` and keeps to the cap, so that any distances and any times will do.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let Request { num_ranks, chunks, .. } = *request;
    let cap = request.memory_cap.unwrap_or(num_ranks * chunks);
    if cap < chunks {
        return Err(ScheduleError::CapTooSmall { cap, chunks });
    }
    let mut best: Option<(Schedule, f64, f64)> = None;
    let mut offer = |schedule: Schedule, longest_span: f64, makespan: f64| {
        // A difference in the last digits is none.
        let slack = 1e-9 * makespan;
        let wins = best.as_ref().is_none_or(|&(_, span, end)| {
            longest_span < span - slack || (longest_span < span + slack && makespan < end - slack)
        });
        if wins {
            best = Some((schedule, longest_span, makespan));
        }
    };
    let others = generators().iter().filter(|other| other.name != GENERATOR.name);
    for other in others.filter(|other| other.chunks.is_none_or(|needed| needed == chunks)) {
        // Refused is no candidate: too much memory, or counts that it does not serve.
        if let Ok(named) = other.generate(&Request { memory_cap: Some(cap), ..*request }) {
            let timeline = named.simulate(&request.times)?;
            offer(named, timeline.longest_span, timeline.makespan);
        }
    }
    let mut placements = vec![Placement::Loop.ranks(num_ranks, chunks)];
    if chunks > 1 {
        placements.insert(0, Placement::V.ranks(num_ranks, chunks));
    }
    for placement in &placements {
        let problem = Problem::new(request, placement, cap);
        if let Some(outcome) = search(&problem, EFFORT / placements.len()) {
            let Outcome { ranks, longest_span, makespan } = outcome;
            offer(problem.schedule(GENERATOR.name, ranks), longest_span, makespan);
        }
    }
    let (schedule, ..) = best.ok_or(ScheduleError::CapTooSmall { cap, chunks })?;
    Ok(Schedule { name: GENERATOR.name.to_string(), ..schedule })
}

/// The best order of many policies, then of small changes to the best.
fn search(problem: &Problem, effort: usize) -> Option<Outcome> {
    let actions = 3 * problem.placement.len() * problem.request.num_microbatches;
    let tries = (effort / actions).clamp(8, 4000);
    let mut best: Option<(Policy, Outcome)> = None;
    let attempt = |policy: Policy, best: &mut Option<(Policy, Outcome)>| {
        let Some(outcome) = problem.run(&policy) else { return };
        let score = |outcome: &Outcome| (outcome.longest_span, outcome.makespan);
        if best.as_ref().is_none_or(|(_, before)| score(&outcome) < score(before)) {
            *best = Some((policy, outcome));
        }
    };
    for policy in policies(problem, tries / 2) {
        attempt(policy, &mut best);
    }
    let mut random = 1u64;
    let work = problem.request.chunks as f64 * problem.request.num_microbatches as f64 * {
        let times = problem.request.times;
        times.forward + times.input + times.weight
    };
    for _ in 0..tries / 2 {
        if best.as_ref()?.1.longest_span <= work * (1.0 + 1e-9) {
            break;
        }
        let changed = changed(&best.as_ref()?.0, &mut random);
        attempt(changed, &mut best);
    }
    best.map(|(_, outcome)| outcome)
}

/// Building blocks whose memory is nearest to the cap, each in some variants.
fn policies(problem: &Problem, limit: usize) -> Vec<Policy> {
    let Request { num_ranks, chunks, times, .. } = *problem.request;
    let period = (times.forward + times.input + times.weight) * chunks as f64;
    let unit = period / (6 * chunks) as f64;
    // Extra distance from rank to rank, in units: by chunk of the V, else alike.
    let steps: &[usize] = if chunks == 2 { &[0, 1, 2, 3, 4, 6] } else { &[0, 1, 2, 3, 4, 5, 6, 8, 10, 12] };
    let mut blocks = Vec::new();
    for code in 0..steps.len().pow(if chunks == 2 { 4 } else { 2 }) {
        let digit = |place: u32| steps[code / steps.len().pow(place) % steps.len()] as f64 * unit;
        let extra = if chunks == 2 { [0, 1, 2, 3].map(digit) } else { [0, 0, 1, 1].map(digit) };
        let (forward, input) = offsets(problem, &extra);
        let widest = forward[0].max(input[0]) * num_ranks as f64 / period;
        let memory = widest * chunks as f64 / num_ranks as f64;
        blocks.push(((memory - problem.cap as f64).abs(), forward, input));
    }
    blocks.sort_by(|one, other| one.0.total_cmp(&other.0));
    let variants = [(true, 1.0), (false, 1.0), (true, 0.5), (false, 0.0), (true, 0.0), (false, 0.5)];
    let variant = |forward: &Vec<f64>, input: &Vec<f64>, (strict, patience)| {
        let (forward, input) = (forward.clone(), input.clone());
        Policy { forward, input, period: period.max(f64::MIN_POSITIVE), strict, patience }
    };
    // The greedy ones: oldest work first, or backwards first. One of them always fits.
    let alike = vec![0.0; problem.placement.len()];
    let late = vec![period * 1e6; problem.placement.len()];
    let mut policies = vec![variant(&alike, &alike, (false, 1.0)), variant(&late, &alike, (false, 1.0))];
    for (_, forward, input) in &blocks {
        policies.extend(variants.map(|kind| variant(forward, input, kind)));
        if policies.len() >= limit {
            break;
        }
    }
    policies
}

/// When `F` and `I` of microbatch 0 would run, with extra distances between ranks: forward in even and
/// odd chunks, backward in even and odd chunks.
fn offsets(problem: &Problem, extra: &[f64; 4]) -> (Vec<f64>, Vec<f64>) {
    let Request { num_ranks, times, .. } = *problem.request;
    let num_stages = problem.placement.len();
    let distance = |stage: usize, pass: usize| {
        let away = problem.placement[stage] != problem.placement[stage + 1];
        if away { times.comm + extra[2 * pass + stage / num_ranks % 2] } else { 0.0 }
    };
    let tiny = 1e-6 * (times.forward + times.input + times.weight) + f64::MIN_POSITIVE;
    let mut forward = vec![0.0; num_stages];
    for stage in 1..num_stages {
        forward[stage] = forward[stage - 1] + times.forward.max(tiny) + distance(stage - 1, 0);
    }
    let mut input = vec![forward[num_stages - 1] + times.forward.max(tiny); num_stages];
    for stage in (0..num_stages - 1).rev() {
        input[stage] = input[stage + 1] + times.input.max(tiny) + distance(stage, 1);
    }
    (forward, input)
}

/// A policy with one stretch of its building block a little longer or shorter, or with other patience.
fn changed(policy: &Policy, random: &mut u64) -> Policy {
    let mut draw = |below: usize| {
        // Knuth's linear congruential generator; the high bits are the good ones.
        *random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*random >> 33) as usize % below
    };
    let mut changed = policy.clone();
    let num_stages = policy.forward.len();
    let amount = (draw(9) as f64 - 4.0) / 8.0 * policy.period / 2.0;
    match draw(8) {
        0 => changed.patience = [0.0, 0.25, 0.5, 0.75, 1.0][draw(5)],
        1 => changed.strict = !policy.strict,
        2 | 3 => {
            let from = draw(num_stages);
            changed.forward[from..].iter_mut().for_each(|at| *at += amount);
            changed.input.iter_mut().for_each(|at| *at += amount);
        }
        4 | 5 => {
            let to = draw(num_stages);
            changed.input[..=to].iter_mut().for_each(|at| *at += amount);
        }
        6 => changed.forward[draw(num_stages)] += amount,
        _ => changed.input[draw(num_stages)] += amount,
    }
    changed
}
