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

#[cfg(test)]
mod tests {
    use crate::{Times, generate};

    #[test]
    fn closed_forms() {
        for p in 1..=6 {
            for m in 1..=10 {
                let schedule = generate("gpipe", p, m, 1).unwrap();
                let timeline = schedule.simulate(&Times::new(3.0, 2.0, 4.0)).unwrap();
                assert_eq!(timeline.bubble, (p - 1) as f64 * 9.0, "p {p} m {m}");
                assert_eq!(schedule.peak_live(), vec![m; p]);
                assert_eq!(schedule.slots().num_slots, vec![m; p]);
            }
        }
    }
}
