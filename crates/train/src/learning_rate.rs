//! Learning-rate schedules, each with a linear warm-up. Numbers only.

use crate::config::{LrSchedule, Train};

/// Fraction of the steps over which warm-up-stable-decay decays at the end (Hu et al., 2024, use 10 to 20 %).
const DECAY_FRACTION: f64 = 0.2;

/// Learning rate of a step (counted from 1) of a run of `train.steps` steps.
pub(crate) fn learning_rate(train: &Train, step: u64) -> f64 {
    let (step, steps, warmup) = (step as f64, train.steps as f64, train.warmup_steps as f64);
    if step <= warmup {
        return train.lr * step / warmup;
    }
    // From 0 right after the warm-up to 1 at the last step.
    let progress = ((step - warmup) / (steps - warmup).max(1.0)).min(1.0);
    let between = |share: f64| train.min_lr + (train.lr - train.min_lr) * share;
    match train.lr_schedule {
        LrSchedule::Constant => train.lr,
        LrSchedule::Linear => between(1.0 - progress),
        LrSchedule::Cosine => between(0.5 * (1.0 + (std::f64::consts::PI * progress).cos())),
        LrSchedule::Wsd => between(((1.0 - progress) / DECAY_FRACTION).min(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(lr_schedule: LrSchedule) -> Train {
        Train { steps: 110, warmup_steps: 10, lr: 1.0, min_lr: 0.1, lr_schedule, ..Train::default() }
    }

    #[test]
    fn all_warm_up_linearly_and_end_where_they_should() {
        for (schedule, middle, end) in [
            (LrSchedule::Constant, 1.0, 1.0),
            (LrSchedule::Linear, 0.55, 0.1),
            (LrSchedule::Cosine, 0.55, 0.1),
            (LrSchedule::Wsd, 1.0, 0.1),
        ] {
            let train = train(schedule);
            assert_eq!(learning_rate(&train, 5), 0.5);
            assert_eq!(learning_rate(&train, 10), 1.0);
            assert!((learning_rate(&train, 60) - middle).abs() < 1e-12, "{schedule}");
            assert!((learning_rate(&train, 110) - end).abs() < 1e-12, "{schedule}");
        }
    }

    #[test]
    fn stable_decay_starts_at_the_last_fifth() {
        let train = train(LrSchedule::Wsd);
        assert!((learning_rate(&train, 90) - 1.0).abs() < 1e-12);
        assert!((learning_rate(&train, 100) - 0.55).abs() < 1e-12);
    }

    #[test]
    fn no_warm_up_and_a_run_of_one_step_are_fine() {
        let train = Train { steps: 1, warmup_steps: 0, ..train(LrSchedule::Cosine) };
        assert!(learning_rate(&train, 1).is_finite());
    }
}
