//! How many (stage, microbatch) chunks are live at once. Bytes are not known here.

use std::collections::HashMap;

use crate::{Action, Kind, Schedule};

impl Schedule {
    /// Per rank, the most (stage, microbatch) chunks that wait for their backward at once: from `F` to
    /// `B`, or to the later of `I` and `W`. Without backwards a chunk is live during its `F` alone.
    pub fn peak_live(&self) -> Vec<usize> {
        let peak = |actions: &Vec<Action>| {
            let (mut live, mut peak) = (0usize, 0);
            let last = self.last_uses(actions);
            for action in actions {
                live += usize::from(action.kind == Kind::Forward);
                peak = peak.max(live);
                live -= usize::from(last.get(&(action.stage, action.microbatch)) == Some(action)).min(live);
            }
            peak
        };
        self.ranks.iter().map(peak).collect()
    }

    /// The action after which each chunk of one rank is no longer live.
    fn last_uses(&self, actions: &[Action]) -> HashMap<(usize, usize), Action> {
        actions.iter().map(|action| ((action.stage, action.microbatch), *action)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_lives_until_the_later_of_input_and_weight() {
        let rows = "0F0,0I0,0F1,0I1,0W0,0F2,0I2,0W1,0W2\n";
        let schedule = Schedule::from_csv("late weights", rows).unwrap();
        schedule.check().unwrap();
        assert_eq!(schedule.peak_live(), [2]);
    }
}
