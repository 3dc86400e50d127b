//! ZB-H2: no bubble at all for equal times, in twice 1F1B's memory. Nothing about other schedules.

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "zb-h2",
    about: "no bubble if F = I = W and no rank waits before the optimizer; at most 2p - 1 live on each rank",
    chunks: Some(1),
    build,
};

/// Rank `d` of `p` warms up with `2 (p - 1 - d) + 1` forwards, then does `I`, `W`, `F` in turn, its `W`
/// lagging `2 d` behind its `I`. Fewer than `2p - 1` microbatches cannot fill that; for some times it would
/// then be worse than ZB-H1, so the order is ZB-H1's.
///
/// # Source
/// Qi et al., "Zero Bubble Pipeline Parallelism", 2023, section 2.2 and figure 3.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let (num_ranks, num_microbatches) = (request.num_ranks, request.num_microbatches);
    let full = num_microbatches + 1 >= 2 * num_ranks;
    Ok(request.schedule(GENERATOR.name, Placement::Linear, |stage| {
        let after = num_ranks - 1 - stage;
        let warmup = num_microbatches.min(after + 1 + if full { after } else { 0 });
        let lag = num_microbatches.min(if full { 2 * stage } else { stage });
        let mut actions = Vec::with_capacity(3 * num_microbatches);
        actions.extend((0..warmup).map(|microbatch| Action::forward(stage, microbatch)));
        for microbatch in 0..num_microbatches {
            actions.push(Action::backward_input(stage, microbatch));
            if microbatch >= lag {
                actions.push(Action::backward_weight(stage, microbatch - lag));
            }
            if warmup + microbatch < num_microbatches {
                actions.push(Action::forward(stage, warmup + microbatch));
            }
        }
        let left = num_microbatches - lag..num_microbatches;
        actions.extend(left.map(|microbatch| Action::backward_weight(stage, microbatch)));
        actions
    }))
}
