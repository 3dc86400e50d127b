//! How c is divided among threads, and an extent into blocks. What is done with them is in `panels` and `tiles`.

use std::ops::Range;

/// c cut by rows and by columns into parts of about one size, one a thread.
///
/// A function of the extents and of the number of threads alone, so that results do not depend on timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    extents: [usize; 2],
    /// Rows and columns of a part, but for the last.
    part: [usize; 2],
}

impl Grid {
    /// At most `parts` parts of an `m` by `n` matrix, whose extents are multiples of `unit`.
    ///
    /// Minimises the work of the largest part: its elements, and what it has to pack for them.
    pub(super) fn new(parts: usize, [m, n]: [usize; 2], unit: [usize; 2]) -> Grid {
        /// Elements of c whose sums take the time of packing one row or column.
        const PACKING: usize = 16;
        let cut = |parts: usize| {
            move |by_rows: usize| {
                let rows = m.div_ceil(by_rows).next_multiple_of(unit[0]);
                let columns = n.div_ceil(parts / by_rows).next_multiple_of(unit[1]);
                [rows, columns]
            }
        };
        let cost = |part: &[usize; 2]| part[0] * part[1] + PACKING * (part[0] + part[1]);
        let part = (1..=parts.max(1)).map(cut(parts.max(1))).min_by_key(cost);
        Grid { extents: [m, n], part: part.unwrap_or([m, n]) }
    }

    /// Number of parts.
    pub(super) fn len(&self) -> usize {
        self.extents[0].div_ceil(self.part[0]) * self.extents[1].div_ceil(self.part[1])
    }

    /// Rows and columns of one part.
    pub(super) fn part(&self, index: usize) -> [Range<usize>; 2] {
        let across = self.extents[1].div_ceil(self.part[1]);
        let range = |axis: usize, at: usize| {
            at * self.part[axis]..((at + 1) * self.part[axis]).min(self.extents[axis])
        };
        [range(0, index / across), range(1, index % across)]
    }
}

/// `range` in blocks of at most `most` elements, of nearly one length, a multiple of `unit` but for the last.
pub(super) fn blocks(
    range: Range<usize>,
    most: usize,
    unit: usize,
) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = range.len().div_ceil(most).max(1);
    let step = range.len().div_ceil(count).next_multiple_of(unit).max(1);
    range.clone().step_by(step).map(move |start| start..(start + step).min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_every_element_once(m in 1usize..90, n in 1usize..90, parts in 1usize..9) {
            let grid = Grid::new(parts, [m, n], [8, 32]);
            prop_assert!(grid.len() <= parts);
            let mut hits = vec![0; m * n];
            for index in 0..grid.len() {
                let [rows, columns] = grid.part(index);
                for row in rows {
                    columns.clone().for_each(|column| hits[row * n + column] += 1);
                }
            }
            prop_assert!(hits.iter().all(|&hits| hits == 1));
        }
    }

    #[test]
    fn cuts_the_longer_side() {
        assert_eq!(Grid::new(2, [2048, 384], [8, 32]).part(0), [0..1024, 0..384]);
        assert_eq!(Grid::new(2, [384, 2048], [8, 32]).part(1), [0..384, 1024..2048]);
        assert_eq!(Grid::new(4, [1024, 1024], [8, 32]).part(3), [512..1024, 512..1024]);
    }
}
