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

#[cfg(test)]
mod tests {
    use crate::{Times, generate};

    #[test]
    fn closed_forms() {
        for p in 1..=6 {
            for m in 1..=10 {
                let schedule = generate("1f1b", p, m, 1).unwrap();
                let timeline = schedule.simulate(&Times::new(3.0, 2.0, 4.0)).unwrap();
                assert_eq!(timeline.bubble, (p - 1) as f64 * 9.0, "p {p} m {m}");
                let live: Vec<usize> = (0..p).map(|d| m.min(p - d)).collect();
                assert_eq!(schedule.peak_live(), live);
                assert_eq!(schedule.slots().num_slots, live);
            }
        }
    }

    #[test]
    fn measured_bubbles_of_zero_bubble_pipelines() {
        // Qi et al., "Zero Bubble Pipeline Parallelism", 2023, tables of profiles and bubbles (ms).
        let measured = [
            (8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431),
            (8, 24, 29.718, 29.444, 19.927, 0.527, 0.2347),
            (16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552),
            (32, 96, 10.419, 10.207, 7.715, 0.408, 0.2646),
        ];
        for (p, m, forward, input, weight, comm, bubble) in measured {
            let times = Times { forward, input, weight, comm };
            let timeline = generate("1f1b", p, m, 1).unwrap().simulate(&times).unwrap();
            assert!(
                (timeline.bubble_fraction() - bubble).abs() < 5e-5,
                "p {p}: {}",
                timeline.bubble_fraction()
            );
        }
    }
}
