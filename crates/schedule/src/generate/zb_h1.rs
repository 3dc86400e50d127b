//! ZB-H1: 1F1B with the weight gradients put off, in 1F1B's memory. Nothing about other schedules.

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "zb-h1",
    about: "1F1B with weight gradients put off: a third of its bubble, at most p live on each rank",
    chunks: Some(1),
    build,
};

/// Rank `d` of `p` warms up as 1F1B does, with `p - 1 - d` forwards, and its `W` lag `d` behind its `I`.
///
/// # Source
/// Qi et al., "Zero Bubble Pipeline Parallelism", 2023, section 2.1 and figure 2.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let num_microbatches = request.num_microbatches;
    Ok(request.schedule(GENERATOR.name, Placement::Linear, |stage| {
        let warmup = num_microbatches.min(request.num_ranks - 1 - stage);
        let lag = num_microbatches.min(stage);
        let mut actions = Vec::with_capacity(3 * num_microbatches);
        actions.extend((0..warmup).map(|microbatch| Action::forward(stage, microbatch)));
        for microbatch in 0..num_microbatches {
            if warmup + microbatch < num_microbatches {
                actions.push(Action::forward(stage, warmup + microbatch));
            }
            actions.push(Action::backward_input(stage, microbatch));
            if microbatch >= lag {
                actions.push(Action::backward_weight(stage, microbatch - lag));
            }
        }
        let left = num_microbatches - lag..num_microbatches;
        actions.extend(left.map(|microbatch| Action::backward_weight(stage, microbatch)));
        actions
    }))
}
