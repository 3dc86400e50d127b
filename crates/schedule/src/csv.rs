//! Schedules as CSV in PyTorch's form: one line per pipeline rank, one action per cell. Compute
//! actions only; lowered actions (`SEND_F` and the like) are refused as no actions.

use crate::pipeline::check_counts;
use crate::{Action, Schedule, ScheduleError};

impl Schedule {
    /// One line per pipeline rank, its actions separated by commas: `0F0,0F1,0B0,0B1`.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        for actions in &self.ranks {
            let cells: Vec<String> = actions.iter().map(Action::to_string).collect();
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }

    /// Reads what [`to_csv`](Schedule::to_csv) or PyTorch wrote. Counts and placement are read off the
    /// actions; empty cells (PyTorch's idle slots) are skipped. The result is not checked yet.
    ///
    /// # Errors
    /// A cell that is no action, no action at all, a stage on two ranks, or counts that the number of
    /// actions cannot fill.
    pub fn from_csv(name: &str, text: &str) -> Result<Schedule, ScheduleError> {
        let mut ranks: Vec<Vec<Action>> = Vec::new();
        for (row, line) in text.trim_end().lines().enumerate() {
            let mut actions = Vec::new();
            for (cell, text) in line.split(',').enumerate() {
                let text = text.trim().trim_matches('"').trim();
                if !text.is_empty() {
                    let bad =
                        |_| ScheduleError::BadCell { line: row + 1, cell: cell + 1, text: text.to_string() };
                    actions.push(text.parse::<Action>().map_err(bad)?);
                }
            }
            ranks.push(actions);
        }
        let num_actions: usize = ranks.iter().map(Vec::len).sum();
        let most =
            |of: fn(&Action) -> usize| ranks.iter().flatten().map(of).max().ok_or(ScheduleError::Empty);
        let last_stage = most(|action| action.stage)?;
        let last_microbatch = most(|action| action.microbatch)?;
        let (num_ranks, num_stages) = (ranks.len(), last_stage.saturating_add(1));
        let num_microbatches = last_microbatch.saturating_add(1);
        check_counts(num_ranks, num_stages, num_microbatches)?;
        let mut placement = vec![None; num_stages.min(num_actions)];
        for (rank, actions) in ranks.iter().enumerate() {
            for &action in actions {
                let Some(place) = placement.get_mut(action.stage) else { continue };
                let expected = *place.get_or_insert(rank);
                if expected != rank {
                    return Err(ScheduleError::WrongRank { action, rank, expected });
                }
            }
        }
        let unplaced = |stage| ScheduleError::Missing { action: Action::forward(stage, 0), rank: 0 };
        if num_stages > num_actions {
            return Err(unplaced(placement.iter().position(Option::is_none).unwrap_or(num_actions)));
        }
        let placement = placement.into_iter().enumerate();
        let placement =
            placement.map(|(stage, rank)| rank.ok_or_else(|| unplaced(stage))).collect::<Result<_, _>>()?;
        Ok(Schedule { name: name.to_string(), num_ranks, num_stages, num_microbatches, placement, ranks })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::generate;

    #[test]
    fn round_trip() {
        for name in ["gpipe", "1f1b"] {
            let schedule = generate(name, 3, 4, 1).unwrap();
            assert_eq!(Schedule::from_csv(name, &schedule.to_csv()).unwrap(), schedule);
        }
        insta::assert_snapshot!(generate("1f1b", 2, 3, 1).unwrap().to_csv(), @r"
        0F0,0F1,0B0,0F2,0B1,0B2
        1F0,1B0,1F1,1B1,1F2,1B2
        ");
    }

    #[test]
    fn idle_slots_and_line_ends_of_pytorch_are_read() {
        let schedule = Schedule::from_csv("idle", "0F0,,,0B0\r\n,1F0, \"1B0\",\r\n\r\n").unwrap();
        assert_eq!(schedule.ranks, generate("gpipe", 2, 1, 1).unwrap().ranks);
        schedule.check().unwrap();
    }

    #[test]
    fn refusals() {
        let message = |text| Schedule::from_csv("bad", text).unwrap_err().to_string();
        assert_eq!(
            message("0F0\n1F0,1X0"),
            "line 2, cell 2: `1X0` is no action; write stage, one of F I W B, microbatch, as in `2F0`"
        );
        assert!(message("\n \n").contains("no actions"));
        assert_eq!(message("0F0\n0B0"), "`0B0` is listed on rank 1, but stage 0 is on rank 0");
        assert_eq!(message("0F0,2F0"), "`1F0` is missing from rank 0");
        assert!(message("0F18446744073709551615").contains("use fewer"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_is_read_or_refused(text in "[0-3FIWB,\n]{0,60}", other in any::<String>()) {
            if let Ok(schedule) = Schedule::from_csv("any", &text) {
                schedule.check().ok();
                schedule.simulate(&crate::Times::new(1.0, 1.0, 1.0)).ok();
                schedule.slots();
                schedule.peak_live();
            }
            Schedule::from_csv("any", &other).ok();
        }
    }
}
