//! The schedule itself and what can be read off it directly. Making one is in `generate`, judging
//! one in `check`, timing one in `simulate`.

use crate::{Action, ScheduleError};

/// The most actions a schedule may hold; far beyond any pipeline, and soon enough to refuse a typo.
pub(crate) const MAX_ACTIONS: usize = 1 << 24;

/// A pipeline schedule: for each pipeline rank the actions it performs, in order.
///
/// Fields are open, so a schedule can be written by hand or by another program;
/// [`Schedule::check`] then says whether it can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The generator's name, or where the schedule was read from.
    pub name: String,
    /// Number of pipeline ranks.
    pub num_ranks: usize,
    /// Number of stages (chunks of the model) over all ranks.
    pub num_stages: usize,
    /// Number of microbatches in a step.
    pub num_microbatches: usize,
    /// The pipeline rank of each stage.
    pub placement: Vec<usize>,
    /// The actions of each pipeline rank, in order.
    pub ranks: Vec<Vec<Action>>,
    /// Pairs that may run as one: (rank, position of an `F`) whose next action is a backward of another
    /// chunk, in order. PyTorch's `OVERLAP_F_B`. Running the two one after the other is right as well.
    pub overlaps: Vec<(usize, usize)>,
}

impl Schedule {
    /// Checks that this schedule is one of so many ranks and microbatches with `chunks` stages on each rank.
    ///
    /// # Errors
    /// [`ScheduleError::UnevenRanks`] and [`ScheduleError::OtherCounts`].
    pub fn check_fits(
        &self,
        num_ranks: usize,
        num_microbatches: usize,
        chunks: usize,
    ) -> Result<(), ScheduleError> {
        let name = || self.name.clone();
        let stages = |rank: usize| self.placement.iter().filter(|&&of| of == rank).count();
        let first = stages(0);
        if let Some(rank) = (1..self.num_ranks).find(|&rank| stages(rank) != first) {
            return Err(ScheduleError::UnevenRanks { name: name(), rank, stages: stages(rank), first });
        }
        let (has, asked) =
            ([self.num_ranks, self.num_microbatches, first], [num_ranks, num_microbatches, chunks]);
        if has != asked {
            return Err(ScheduleError::OtherCounts { name: name(), has, asked });
        }
        Ok(())
    }

    /// A schedule of these lists, without overlapped pairs. Nothing is checked.
    pub fn new(
        name: &str,
        num_ranks: usize,
        num_microbatches: usize,
        placement: Vec<usize>,
        ranks: Vec<Vec<Action>>,
    ) -> Schedule {
        let (name, num_stages, overlaps) = (name.to_string(), placement.len(), Vec::new());
        Schedule { name, num_ranks, num_stages, num_microbatches, placement, ranks, overlaps }
    }

    /// Forwards alone, for evaluation: every microbatch in order, stage after stage on each rank.
    ///
    /// # Errors
    /// A count of 0, a placement outside of the ranks, or too many actions.
    pub fn forward_only(
        num_ranks: usize,
        placement: &[usize],
        num_microbatches: usize,
    ) -> Result<Schedule, ScheduleError> {
        let num_stages = placement.len();
        check_counts(num_ranks, num_stages, num_microbatches)?;
        let mut ranks = vec![Vec::new(); num_ranks];
        for (stage, &rank) in placement.iter().enumerate() {
            let actions = ranks.get_mut(rank).ok_or(ScheduleError::Placement { stage, rank, num_ranks })?;
            actions.extend((0..num_microbatches).map(|microbatch| Action::forward(stage, microbatch)));
        }
        Ok(Schedule::new("forward", num_ranks, num_microbatches, placement.to_vec(), ranks))
    }

    /// The stages of a pipeline rank, in model order.
    pub fn stages_of(&self, rank: usize) -> Vec<usize> {
        (0..self.num_stages).filter(|&stage| self.placement.get(stage) == Some(&rank)).collect()
    }

    /// Whether any microbatch has a backward; evaluation has none.
    pub fn has_backward(&self) -> bool {
        self.ranks.iter().flatten().any(|action| action.kind.is_backward())
    }

    /// Whether any backward is split into `I` and `W`.
    pub fn splits_backward(&self) -> bool {
        use crate::Kind::{BackwardInput, BackwardWeight};
        self.ranks.iter().flatten().any(|action| matches!(action.kind, BackwardInput | BackwardWeight))
    }
}

/// Refuses counts of zero and sizes beyond [`MAX_ACTIONS`].
pub(crate) fn check_counts(
    num_ranks: usize,
    num_stages: usize,
    num_microbatches: usize,
) -> Result<(), ScheduleError> {
    let counts =
        [("num_ranks", num_ranks), ("num_stages", num_stages), ("num_microbatches", num_microbatches)];
    if let Some(&(what, _)) = counts.iter().find(|(_, count)| *count == 0) {
        return Err(ScheduleError::ZeroCount { what });
    }
    let limit = MAX_ACTIONS;
    let too_large = num_stages.checked_mul(num_microbatches).is_none_or(|pairs| pairs > limit / 3);
    if too_large || num_ranks > limit {
        return Err(ScheduleError::TooLarge { num_stages, num_microbatches, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_only_serves_any_placement() {
        for placement in [vec![0, 1, 2], vec![0, 1, 2, 0, 1, 2], vec![0, 1, 2, 2, 1, 0]] {
            let evaluation = Schedule::forward_only(3, &placement, 5).unwrap();
            evaluation.check().unwrap();
            assert!(!evaluation.has_backward() && !evaluation.splits_backward());
            assert_eq!(evaluation.peak_live(), [1; 3]);
        }
        assert_eq!(Schedule::forward_only(2, &[0, 1, 1, 0], 1).unwrap().stages_of(0), [0, 3]);
    }

    #[test]
    fn forward_only_refuses_senseless_counts() {
        let zero = Schedule::forward_only(0, &[0], 1);
        assert_eq!(zero.unwrap_err(), ScheduleError::ZeroCount { what: "num_ranks" });
        let outside = Schedule::forward_only(1, &[0, 1], 1);
        assert_eq!(outside.unwrap_err(), ScheduleError::Placement { stage: 1, rank: 1, num_ranks: 1 });
        let huge = Schedule::forward_only(1, &[0, 0], usize::MAX);
        assert!(matches!(huge, Err(ScheduleError::TooLarge { .. })));
    }
}
