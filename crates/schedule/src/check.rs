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
    /// data edges have no cycle; overlapped pairs are a forward and a backward.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), ScheduleError> {
        self.check_shape()?;
        self.check_actions()?;
        self.check_rank_order()?;
        self.check_overlaps()?;
        Edges::new(self).order().map(|_| ()).map_err(|cycle| ScheduleError::Cycle { cycle })
    }

    /// Checks that no rank ever holds more than `cap` live chunks and that none is left at the end.
    ///
    /// # Errors
    /// The first rank that holds more, with the action at which it does; a chunk without a backward.
    pub fn check_memory(&self, cap: usize) -> Result<(), ScheduleError> {
        self.check_shape()?;
        let mut last = vec![None; self.num_stages * self.num_microbatches];
        for action in self.ranks.iter().flatten() {
            last[action.stage * self.num_microbatches + action.microbatch] = Some(*action);
        }
        let has_backward = self.has_backward();
        for (rank, actions) in self.ranks.iter().enumerate() {
            let mut live = 0;
            for &action in actions {
                live += usize::from(action.kind == Kind::Forward);
                if live > cap {
                    return Err(ScheduleError::OverCap { rank, action, live, cap });
                }
                let end = last[action.stage * self.num_microbatches + action.microbatch] == Some(action);
                if end && action.kind == Kind::Forward && has_backward {
                    return Err(ScheduleError::Missing {
                        action: Action { kind: Kind::Backward, ..action },
                        rank,
                    });
                }
                live = live.saturating_sub(usize::from(end));
            }
        }
        Ok(())
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
        const ABSENT: usize = usize::MAX;
        let place = |action: Action| action.place(self.num_microbatches);
        let mut positions = vec![ABSENT; self.num_stages * self.num_microbatches * Kind::ALL.len()];
        for actions in &self.ranks {
            for (position, &action) in actions.iter().enumerate() {
                positions[place(action)] = position;
            }
        }
        let mut last_weight: Vec<Option<Action>> = vec![None; self.num_stages];
        for (rank, actions) in self.ranks.iter().enumerate() {
            for (position, &action) in actions.iter().enumerate() {
                for earlier in needs(action, self.num_stages) {
                    let found = positions[place(earlier)];
                    if self.placement[earlier.stage] == rank && found != ABSENT && found > position {
                        return Err(ScheduleError::Order { rank, later: action, earlier });
                    }
                }
                if matches!(action.kind, Kind::Backward | Kind::BackwardWeight)
                    && let Some(later) = last_weight[action.stage].replace(action)
                    && later.microbatch > action.microbatch
                {
                    return Err(ScheduleError::WeightOrder { rank, later, earlier: action });
                }
            }
        }
        Ok(())
    }

    /// Each overlapped pair is an `F` with the backward of another chunk, and no action is in two pairs.
    fn check_overlaps(&self) -> Result<(), ScheduleError> {
        let mut free_from = (0, 0);
        for &(rank, position) in &self.overlaps {
            let actions = self.ranks.get(rank).map_or(&[][..], |actions| actions);
            let pair = (actions.get(position), actions.get(position.saturating_add(1)));
            let fits = |first: &Action, second: &Action| {
                first.kind == Kind::Forward
                    && matches!(second.kind, Kind::Backward | Kind::BackwardInput)
                    && (first.stage, first.microbatch) != (second.stage, second.microbatch)
            };
            if !matches!(pair, (Some(first), Some(second)) if fits(first, second))
                || (rank, position) < free_from
            {
                return Err(ScheduleError::Overlap { rank, position });
            }
            free_from = (rank, position + 2);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
