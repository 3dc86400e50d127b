//! Schedules as CSV in PyTorch's form: one line per pipeline rank, one action per cell. Compute actions
//! only: lowered ones (`1SEND_F0`, `0REDUCE_GRAD`) are read over, as lowering puts them where they belong.

use crate::pipeline::check_counts;
use crate::{Action, Schedule, ScheduleError};

/// What PyTorch calls a pair that may run as one: `(0F5;7B2)OVERLAP_F_B`.
const PAIR: &str = "OVERLAP_F_B";

/// PyTorch's lowered actions; a stage stands before them, and behind some a microbatch.
const LOWERED: [&str; 10] = [
    "SEND_F",
    "RECV_F",
    "SEND_B",
    "RECV_B",
    "WAIT_SEND_F",
    "WAIT_SEND_B",
    "UNSHARD",
    "RESHARD",
    "REDUCE_GRAD",
    "WAIT_REDUCE_GRAD",
];

fn is_lowered(text: &str) -> bool {
    let inner = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let word = inner.trim_end_matches(|letter: char| letter.is_ascii_digit());
    inner.len() < text.len() && LOWERED.contains(&word)
}

/// The two actions of a pair.
fn pair(text: &str) -> Option<[&str; 2]> {
    let (one, other) = text.strip_prefix('(')?.strip_suffix(PAIR)?.strip_suffix(')')?.split_once(';')?;
    Some([one.trim(), other.trim()])
}

impl Schedule {
    /// One line per pipeline rank, its actions separated by commas: `0F0,0F1,0B0,0B1`.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        let mut pairs = self.overlaps.iter().copied().peekable();
        for (rank, actions) in self.ranks.iter().enumerate() {
            let mut cells = Vec::with_capacity(actions.len());
            let mut rest = actions.iter().enumerate();
            while let Some((position, action)) = rest.next() {
                let paired = pairs.next_if_eq(&(rank, position)).and_then(|_| rest.next());
                cells.push(match paired {
                    Some((_, other)) => format!("({action};{other}){PAIR}"),
                    None => action.to_string(),
                });
            }
            text.push_str(&cells.join(","));
            text.push('\n');
        }
        text
    }

    /// Reads what [`to_csv`](Schedule::to_csv) or PyTorch wrote. Counts and placement are read off the
    /// actions; empty cells (PyTorch's idle slots) and lowered actions are skipped. The result is not
    /// checked yet.
    ///
    /// # Errors
    /// A cell that is no action, no action at all, a stage on two ranks, or counts that the number of
    /// actions cannot fill.
    pub fn from_csv(name: &str, text: &str) -> Result<Schedule, ScheduleError> {
        let mut ranks: Vec<Vec<Action>> = Vec::new();
        let mut overlaps = Vec::new();
        for (row, line) in text.trim_end().lines().enumerate() {
            let mut actions = Vec::new();
            for (cell, text) in line.split(',').enumerate() {
                let text = text.trim().trim_matches('"').trim();
                if text.is_empty() || is_lowered(text) {
                    continue;
                }
                let bad =
                    |_| ScheduleError::BadCell { line: row + 1, cell: cell + 1, text: text.to_string() };
                if let Some(pair) = pair(text) {
                    overlaps.push((row, actions.len()));
                    for action in pair {
                        actions.push(action.parse::<Action>().map_err(bad)?);
                    }
                } else {
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
        Ok(Schedule { overlaps, ..Schedule::new(name, num_ranks, num_microbatches, placement, ranks) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{generate, generators};

    #[test]
    fn round_trip() {
        for generator in generators() {
            for (p, m) in [(1, 1), (3, 6), (4, 8)] {
                let schedule = generate(generator.name, p, m, generator.chunks.unwrap_or(2)).unwrap();
                let read = Schedule::from_csv(generator.name, &schedule.to_csv()).unwrap();
                assert_eq!(read, schedule);
            }
        }
        insta::assert_snapshot!(generate("1f1b", 2, 3, 1).unwrap().to_csv(), @r"
        0F0,0F1,0B0,0F2,0B1,0B2
        1F0,1B0,1F1,1B1,1F2,1B2
        ");
        insta::assert_snapshot!(generate("dualpipe-v", 2, 4, 2).unwrap().to_csv(), @r"
        0F0,0F1,0F2,3F0,3I0,3W0,3F1,(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,(3F3;0B1)OVERLAP_F_B,3B3,0I2,0W2,0I3,0W3
        1F0,2F0,1F1,2F1,1F2,2B0,(2F2;1B0)OVERLAP_F_B,(1F3;2B1)OVERLAP_F_B,(2F3;1B1)OVERLAP_F_B,2B2,1B2,2I3,1I3,2W3,1W3
        ");
    }

    /// `fixtures/make.py` wrote these by PyTorch 2.15's own classes.
    #[test]
    fn pytorch_schedules_are_read_and_are_ours() {
        let read = |name: &str, text: &str| Schedule::from_csv(name, text).unwrap();
        let same = [
            ("gpipe", 4, 8, 1, include_str!("../fixtures/gpipe.csv")),
            ("interleaved", 4, 8, 1, include_str!("../fixtures/interleaved-1.csv")),
            ("interleaved", 4, 8, 2, include_str!("../fixtures/interleaved.csv")),
            ("interleaved", 2, 6, 3, include_str!("../fixtures/interleaved-3.csv")),
            ("zb-v", 4, 8, 2, include_str!("../fixtures/zb-v.csv")),
            ("zb-v", 4, 5, 2, include_str!("../fixtures/zb-v-few.csv")),
            ("dualpipe-v", 4, 10, 2, include_str!("../fixtures/dualpipe-v.csv")),
            ("dualpipe-v", 3, 6, 2, include_str!("../fixtures/dualpipe-v-3.csv")),
        ];
        for (name, p, m, v, text) in same {
            let theirs = read(name, text);
            theirs.check().unwrap();
            assert_eq!(theirs, generate(name, p, m, v).unwrap(), "{name} {p} {m} {v}");
        }
        // No class of ours, but right.
        read("interleaved-zb", include_str!("../fixtures/interleaved-zb.csv")).check().unwrap();
        // PyTorch's picture of its 1F1B begins at microbatch 1 on the last rank.
        let error = read("1f1b", include_str!("../fixtures/1f1b.csv")).check().unwrap_err();
        assert!(matches!(error, ScheduleError::OutOfRange { .. } | ScheduleError::Missing { .. }), "{error}");
        // Its breadth-first backwards run from the last microbatch to the first: other bits.
        let error = read("looped", include_str!("../fixtures/looped.csv")).check().unwrap_err();
        assert!(matches!(error, ScheduleError::WeightOrder { .. }), "{error}");
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
        assert!(message("(0F0;0B0)OVERLAP").contains("`(0F0;0B0)OVERLAP` is no action"));
        assert!(message("(0F0;0X0)OVERLAP_F_B").contains("is no action"));
        assert!(message("SEND_F0").contains("is no action"));
        assert!(message("\n \n").contains("no actions"));
        assert_eq!(message("0F0\n0B0"), "`0B0` is listed on rank 1, but stage 0 is on rank 0");
        assert_eq!(message("0F0,2F0"), "`1F0` is missing from rank 0");
        assert!(message("0F18446744073709551615").contains("use fewer"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_is_read_or_refused(text in "([0-1][FIWB][0-1]|[(][0-1]F[0-1];[0-1]B[0-1][)]OVERLAP_F_B|0REDUCE_GRAD|[0-3FIWB]|,|\n){0,40}", other in any::<String>()) {
            if let Ok(schedule) = Schedule::from_csv("any", &text) {
                schedule.check().ok();
                schedule.simulate(&crate::Times::new(1.0, 1.0, 1.0)).ok();
                schedule.peak_live();
            }
            Schedule::from_csv("any", &other).ok();
        }
    }
}
