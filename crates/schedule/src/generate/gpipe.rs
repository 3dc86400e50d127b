//! GPipe: every forward, then every backward. Nothing about other schedules.

use super::{Generator, Request};
use crate::{Action, Placement, Schedule, ScheduleError};

pub(super) const GENERATOR: Generator = Generator {
    name: "gpipe",
    about: "all forwards, then all backwards; every microbatch is live at once",
    chunks: Some(1),
    build,
};

/// # Source
/// Huang et al., "GPipe", 2019, figure 2c. The paper runs backwards in reverse microbatch order; here
/// they run in microbatch order, so that weight gradients accumulate as under any other schedule.
fn build(request: &Request) -> Result<Schedule, ScheduleError> {
    let num_microbatches = request.num_microbatches;
    Ok(request.schedule(GENERATOR.name, Placement::Linear, |stage| {
        let forwards = (0..num_microbatches).map(|microbatch| Action::forward(stage, microbatch));
        let backwards = (0..num_microbatches).map(|microbatch| Action::backward(stage, microbatch));
        forwards.chain(backwards).collect()
    }))
}
