//! The order found by search: list scheduling from many starting points, beside every named schedule that
//! fits under the cap; the best wins. How the search goes is in `search`, how one order is made in `list`.

use super::list::{Outcome, Problem};
use super::search::search;
use super::{Generator, Request, generators};
use crate::{Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "auto",
    about: "searched for the given times under a memory cap; never worse than a named one of its memory",
    chunks: None,
    build,
};

/// About how many actions may be placed in the search: half a second.
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
    // Two chunks serve best in a V; of more, either may win.
    let placements: &[Placement] = match chunks {
        1 => &[Placement::Linear],
        2 => &[Placement::V],
        _ => &[Placement::V, Placement::Loop],
    };
    for placement in placements {
        let placement_ranks = placement.ranks(num_ranks, chunks);
        let problem = Problem::new(request, &placement_ranks, cap);
        if let Some(outcome) = search(&problem, EFFORT / placements.len()) {
            let Outcome { ranks, longest_span, makespan } = outcome;
            offer(problem.schedule(GENERATOR.name, ranks), longest_span, makespan);
        }
    }
    let (schedule, ..) = best.ok_or(ScheduleError::CapTooSmall { cap, chunks })?;
    Ok(Schedule { name: GENERATOR.name.to_string(), ..schedule })
}
