//! Breadth-first looping: every microbatch through one chunk before the next chunk. Nothing about other
//! schedules.

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "looped",
    about: "GPipe over looped chunks: all microbatches through a chunk, then the next; few weight gathers",
    chunks: None,
    build,
};

/// # Source
/// Lamy-Poirier, "Breadth-First Pipeline Parallelism", 2023, figure 3d. Backwards run in microbatch order,
/// so that weight gradients accumulate as under any other schedule.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let (num_ranks, num_microbatches) = (request.num_ranks, request.num_microbatches);
    Ok(request.schedule(GENERATOR.name, Placement::Loop, |rank| {
        let stages = (0..request.chunks).map(|chunk| chunk * num_ranks + rank);
        let microbatches = |stage: usize| (0..num_microbatches).map(move |microbatch| (stage, microbatch));
        let forwards = stages.clone().flat_map(microbatches).map(|(s, m)| Action::forward(s, m));
        let backwards = stages.rev().flat_map(microbatches).map(|(s, m)| Action::backward(s, m));
        forwards.chain(backwards).collect()
    }))
}
