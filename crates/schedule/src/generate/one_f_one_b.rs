//! 1F1B: one forward, one backward, in turn. Nothing about other schedules.

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "1f1b",
    about: "one forward, one backward in turn; GPipe's bubble, at most p live",
    chunks: Some(1),
    build,
};

/// Rank `d` of `p` warms up with `min(m, p - 1 - d)` forwards, then does one forward and one backward
/// in turn, then the backwards that are left.
///
/// # Source
/// Narayanan et al., "PipeDream-Flush" in "Memory-Efficient Pipeline-Parallel DNN Training", 2021.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let num_microbatches = request.num_microbatches;
    Ok(request.schedule(GENERATOR.name, Placement::Linear, |stage| {
        let warmup = num_microbatches.min(request.num_ranks - 1 - stage);
        let mut actions = Vec::with_capacity(2 * num_microbatches);
        actions.extend((0..warmup).map(|microbatch| Action::forward(stage, microbatch)));
        for microbatch in warmup..num_microbatches {
            actions.push(Action::forward(stage, microbatch));
            actions.push(Action::backward(stage, microbatch - warmup));
        }
        let left = num_microbatches - warmup..num_microbatches;
        actions.extend(left.map(|microbatch| Action::backward(stage, microbatch)));
        actions
    }))
}
