//! Which (stage, microbatch) chunks are live at once, and the stash slot of each. Bytes are not known here.

use std::collections::{BTreeSet, HashMap};

use crate::{Action, Kind, Schedule};

/// The stash slots of every stage: fixed before step 0, so that a set of buffers per slot can be laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// For each stage, how many slots its stash has.
    pub num_slots: Vec<usize>,
    /// For each stage, the slot of each microbatch.
    pub slot: Vec<Vec<usize>>,
}

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

    /// A stash slot for each (stage, microbatch), by a walk over each rank's list: the lowest free
    /// slot of the stage at `F`, free again after `B`, or after the later of `I` and `W`; without
    /// backwards after `F` itself.
    ///
    /// Meant for a schedule that [`check`](Schedule::check) has passed; of another it skips what lies
    /// outside of its counts, and what has no `F` stays in slot 0.
    pub fn slots(&self) -> Slots {
        let mut slots =
            Slots { num_slots: vec![0; self.num_stages], slot: vec![Vec::new(); self.num_stages] };
        for actions in &self.ranks {
            let last = self.last_uses(actions);
            let mut free: HashMap<usize, BTreeSet<usize>> = HashMap::new();
            for action in actions {
                let (stage, microbatch) = (action.stage, action.microbatch);
                if stage >= self.num_stages || microbatch >= self.num_microbatches {
                    continue;
                }
                let row = &mut slots.slot[stage];
                if row.is_empty() {
                    row.resize(self.num_microbatches, 0);
                }
                let free = free.entry(stage).or_default();
                if action.kind == Kind::Forward {
                    row[microbatch] = free.pop_first().unwrap_or_else(|| {
                        slots.num_slots[stage] += 1;
                        slots.num_slots[stage] - 1
                    });
                }
                if last.get(&(stage, microbatch)) == Some(action) {
                    free.insert(row[microbatch]);
                }
            }
        }
        slots
    }

    /// The action after which each chunk of one rank is no longer live.
    fn last_uses(&self, actions: &[Action]) -> HashMap<(usize, usize), Action> {
        actions.iter().map(|action| ((action.stage, action.microbatch), *action)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    #[test]
    fn slots_are_reused_in_turn() {
        let slots = generate("1f1b", 3, 5, 1).unwrap().slots();
        assert_eq!(slots.num_slots, [3, 2, 1]);
        assert_eq!(slots.slot, [[0, 1, 2, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]);
    }

    #[test]
    fn a_slot_is_held_until_the_later_of_input_and_weight() {
        let rows = "0F0,0I0,0F1,0I1,0W0,0F2,0I2,0W1,0W2\n";
        let schedule = Schedule::from_csv("late weights", rows).unwrap();
        schedule.check().unwrap();
        assert_eq!(schedule.peak_live(), [2]);
        assert_eq!(schedule.slots(), Slots { num_slots: vec![2], slot: vec![vec![0, 1, 0]] });
    }

    #[test]
    fn no_two_live_chunks_share_a_slot() {
        for name in ["gpipe", "1f1b"] {
            let schedule = generate(name, 4, 7, 1).unwrap();
            let slots = schedule.slots();
            for (stage, actions) in schedule.ranks.iter().enumerate() {
                let mut held = vec![None; slots.num_slots[stage]];
                for action in actions {
                    let slot = &mut held[slots.slot[stage][action.microbatch]];
                    if action.kind == Kind::Forward {
                        assert_eq!(slot.replace(action.microbatch), None);
                    } else {
                        assert_eq!(slot.take(), Some(action.microbatch));
                    }
                }
            }
        }
    }
}
