//! Interleaved 1F1B: 1F1B over looped chunks, in rounds of one microbatch per rank. Nothing about other
//! schedules.

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "interleaved",
    about: "1F1B over looped chunks: the bubble of one chunk instead of all of a rank's",
    chunks: None,
    build,
};

/// Rank `d` takes `p` microbatches through its first chunk, the same through its second, and so on, then
/// the next `p`; backwards likewise from the last chunk. It warms up with `(v - 1) p + 2 (p - 1 - d)`
/// forwards.
///
/// # Source
/// Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
/// 2021, section 2.2.2.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let Request { num_ranks, num_microbatches, chunks, .. } = *request;
    if !num_microbatches.is_multiple_of(num_ranks) {
        return Err(ScheduleError::Rounds { name: GENERATOR.name.to_string(), num_ranks, num_microbatches });
    }
    let total = num_microbatches * chunks;
    Ok(request.schedule(GENERATOR.name, Placement::Loop, |rank| {
        let place = |step: usize| {
            let (round, within) = (step / (num_ranks * chunks), step % (num_ranks * chunks));
            (within / num_ranks, round * num_ranks + within % num_ranks)
        };
        let forward = |step: usize| {
            let (chunk, microbatch) = place(step);
            Action::forward(chunk * num_ranks + rank, microbatch)
        };
        let backward = |step: usize| {
            let (chunk, microbatch) = place(step);
            Action::backward((chunks - 1 - chunk) * num_ranks + rank, microbatch)
        };
        let warmup = total.min((chunks - 1) * num_ranks + 2 * (num_ranks - 1 - rank));
        let mut actions: Vec<Action> = (0..warmup).map(forward).collect();
        actions.extend((warmup..total).flat_map(|step| [forward(step), backward(step - warmup)]));
        actions.extend((total - warmup..total).map(backward));
        actions
    }))
}
