//! The checker: whether a schedule can be run, and if not, which action is to blame. It repairs nothing.

use crate::edges::{Edges, needs};
use crate::pipeline::check_counts;
use crate::{Action, Kind, Schedule, ScheduleError};

impl Schedule {
    /// Checks that ranks can perform the lists without waiting for ever and get a right gradient.
    ///
    /// Each (stage, microbatch) has one `F` and either one `B` or one `I` and one `W`, on the rank
    /// that holds the stage; or no action at all is a backward (evaluation). An action follows
    /// what it needs; each stage's weight gradients accumulate in microbatch order; program order and
    /// data edges have no cycle.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), ScheduleError> {
        self.check_shape()?;
        self.check_actions()?;
        self.check_rank_order()?;
        Edges::new(self).order().map(|_| ()).map_err(|cycle| ScheduleError::Cycle { cycle })
    }

    /// Lengths, placements and the bounds of each action: enough to index by them.
    pub(crate) fn check_shape(&self) -> Result<(), ScheduleError> {
        let (num_ranks, num_stages, num_microbatches) =
            (self.num_ranks, self.num_stages, self.num_microbatches);
        check_counts(num_ranks, num_stages, num_microbatches)?;
        let lengths =
            [("placement", self.placement.len(), num_stages), ("ranks", self.ranks.len(), num_ranks)];
        for (what, found, expected) in lengths {
            if found != expected {
                return Err(ScheduleError::Length { what, found, expected });
            }
        }
        let mut holds_stage = vec![false; num_ranks];
        for (stage, &rank) in self.placement.iter().enumerate() {
            *holds_stage.get_mut(rank).ok_or(ScheduleError::Placement { stage, rank, num_ranks })? = true;
        }
        if let Some(rank) = holds_stage.iter().position(|holds| !holds) {
            return Err(ScheduleError::IdleRank { rank });
        }
        for (rank, actions) in self.ranks.iter().enumerate() {
            for &action in actions {
                if action.stage >= num_stages || action.microbatch >= num_microbatches {
                    return Err(ScheduleError::OutOfRange { action, rank, num_stages, num_microbatches });
                }
                let expected = self.placement[action.stage];
                if expected != rank {
                    return Err(ScheduleError::WrongRank { action, rank, expected });
                }
            }
        }
        Ok(())
    }

    /// Each action exactly once.
    fn check_actions(&self) -> Result<(), ScheduleError> {
        let mut counts = vec![[0usize; Kind::ALL.len()]; self.num_stages * self.num_microbatches];
        for action in self.ranks.iter().flatten() {
            counts[action.stage * self.num_microbatches + action.microbatch][action.kind.index()] += 1;
        }
        let has_backward = self.has_backward();
        for (pair, counts) in counts.iter().enumerate() {
            let (stage, microbatch) = (pair / self.num_microbatches, pair % self.num_microbatches);
            let rank = self.placement[stage];
            let action = |kind| Action { kind, stage, microbatch };
            let missing = |kind| Err(ScheduleError::Missing { action: action(kind), rank });
            for (kind, &count) in Kind::ALL.into_iter().zip(counts) {
                if count > 1 {
                    return Err(ScheduleError::Repeated { action: action(kind), rank, count });
                }
            }
            let [forward, input, weight, whole] = *counts;
            match (forward, input, weight, whole) {
                (0, ..) => return missing(Kind::Forward),
                (_, 0, 0, 0) if has_backward => {
                    let kind = if self.splits_backward() { Kind::BackwardInput } else { Kind::Backward };
                    return missing(kind);
                }
                (_, 0, 0, _) | (_, 1, 1, 0) => {}
                (_, 1, 0, 0) => return missing(Kind::BackwardWeight),
                (_, 0, _, 0) => return missing(Kind::BackwardInput),
                (_, input, ..) => {
                    let part = if input > 0 { Kind::BackwardInput } else { Kind::BackwardWeight };
                    return Err(ScheduleError::BackwardTwice { stage, microbatch, part });
                }
            }
        }
        Ok(())
    }

    /// What one rank's list alone shows: needs on the same rank first, weights in microbatch order.
    fn check_rank_order(&self) -> Result<(), ScheduleError> {
        for (rank, actions) in self.ranks.iter().enumerate() {
            let mut done = std::collections::HashSet::with_capacity(actions.len());
            let here: std::collections::HashSet<Action> = actions.iter().copied().collect();
            let mut last_weight = std::collections::HashMap::new();
            for &action in actions {
                for earlier in needs(action, self.num_stages) {
                    if here.contains(&earlier) && !done.contains(&earlier) {
                        return Err(ScheduleError::Order { rank, later: action, earlier });
                    }
                }
                done.insert(action);
                if matches!(action.kind, Kind::Backward | Kind::BackwardWeight)
                    && let Some(later) = last_weight.insert(action.stage, action)
                    && later.microbatch > action.microbatch
                {
                    return Err(ScheduleError::WeightOrder { rank, later, earlier: action });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
