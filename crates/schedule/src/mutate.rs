//! Random changes of schedules for tests, of this crate and of `testkit`, which includes this file: each knows the type by
//! its own path.

use super::Schedule;

/// Xorshift, seeded: the same mutants in every run.
pub(super) struct Draw(pub u64);

impl Draw {
    /// A number less than `limit`, which counts as 1 if it is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
}

/// Drops, doubles, swaps or moves an action, within a rank or to another one.
pub(super) fn mutate(schedule: &mut Schedule, draw: &mut Draw) {
    let rank = draw.below(schedule.num_ranks);
    let (from, to) = (draw.below(schedule.ranks[rank].len()), draw.below(schedule.ranks[rank].len()));
    let neighbour = (from + 1).min(schedule.ranks[rank].len() - 1);
    let other = draw.below(schedule.num_ranks);
    let at = draw.below(schedule.ranks[other].len());
    if schedule.ranks[rank].is_empty() {
        return;
    }
    let row = &mut schedule.ranks[rank];
    match draw.below(6) {
        0 => {
            row.remove(from);
        }
        1 => {
            let action = row[from];
            row.insert(to, action);
        }
        2 => row.swap(from, to),
        // Most swaps of far ones are wrong; of neighbours many are right.
        3 => row.swap(from, neighbour),
        4 => {
            let action = row.remove(from);
            row.insert(to.min(row.len()), action);
        }
        _ => {
            let action = row.remove(from);
            let other = &mut schedule.ranks[other];
            other.insert(at.min(other.len()), action);
        }
    }
}
