//! How large the blocks of a product are, and what is packed for how long. Nothing is computed here.

use super::unit::{SIDE, STEP};
use half::bf16;

/// Depth of a cut, at most: a panel of a, read again for each panel of b, takes 36 of 48 KB.
pub(super) const DEPTH: usize = 576;
/// Elements of packed b that stay in the second cache, of 2 MB, while rows of a and of c pass.
const RESIDENT: usize = 450 << 10;
/// Columns below which a block of c that wide would have a read too often.
const NARROWEST: usize = 256;
/// Rows and columns of a block of c of which all sums wait while factors too deep to be resident pass.
const WAITING: [usize; 2] = [1024, 384];
/// Elements of packed a that are kept while columns pass, at most.
const KEPT_A: usize = 800 << 10;
/// Rows of a transposed a that are worth keeping.
const FEWEST_KEPT: usize = 128;

/// Elements of c whose sums take the time of packing one row or column, or of reading it.
const PACKING: usize = 150;
const READING: usize = 100;

/// The blocks of a product, by its extents alone, so that results and scratch are theirs too.
///
/// Chunks of b, some columns and as many depths as are resident, come one after the other. Rows of a pass each, 32
/// at a time, cut after cut. If one chunk has all depths, so do the sums of 32 rows before the next begin;
/// otherwise those of many rows wait for the next chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Rows and columns of a block of c, all of whose chunks come before the next block's.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Depth of a chunk.
    pub(super) chunk: usize,
    /// Rows of a transposed a that are packed, all depths of them, before the blocks they belong to; 0 if a panel
    /// is packed whenever it is needed.
    pub(super) kept_rows: usize,
    /// Elements of one part's packed a and packed b, and of its sums.
    pub(super) lengths: [usize; 3],
}

impl Plan {
    pub(super) fn new([m, n, k]: [usize; 3]) -> Plan {
        let [m, n] = [m, n].map(|extent| extent.next_multiple_of(SIDE));
        let deep = k.next_multiple_of(STEP);
        let resident = RESIDENT / deep / SIDE * SIDE;
        let [rows, columns, chunk] = if resident >= NARROWEST.min(n) {
            [m, resident.min(n), deep]
        } else {
            let [rows, columns] = [WAITING[0].min(m), WAITING[1].min(n)];
            [rows, columns, (RESIDENT / columns / STEP * STEP).min(deep)]
        };
        let kept_rows = match KEPT_A / deep / SIDE * SIDE {
            few if few < FEWEST_KEPT => 0,
            many => many.min(m),
        };
        let a = (kept_rows * deep).max(SIDE * DEPTH);
        let sums = match (chunk < deep, k > DEPTH) {
            (true, _) => rows * columns,
            (false, true) => SIDE * columns,
            (false, false) => 0,
        };
        Plan { rows, columns, chunk, kept_rows, lengths: [a, columns * chunk, sums] }
    }

    /// Whether one chunk has all depths.
    pub(super) fn is_resident(&self, k: usize) -> bool {
        self.chunk >= k
    }

    /// Bytes of scratch for one part of the product; a multiple of 64.
    pub(super) fn scratch_bytes(&self) -> usize {
        let [a, b, sums] = self.lengths;
        (a + b) * size_of::<bf16>() + sums * size_of::<f32>()
    }
}

/// By how many rows and columns of parts, at most `parts` in all, c is divided among threads.
///
/// Minimises the largest part's elements and what it reads or packs for them, `packs` saying which factor is packed.
pub(super) fn division(parts: usize, [m, n]: [usize; 2], packs: [bool; 2]) -> [usize; 2] {
    let [row_cost, column_cost] = packs.map(|packs| if packs { PACKING } else { READING });
    let cost = |&[by_rows, by_columns]: &[usize; 2]| {
        let [rows, columns] = [m.div_ceil(by_rows), n.div_ceil(by_columns)].map(|x| x.next_multiple_of(SIDE));
        rows * columns + row_cost * rows + column_cost * columns
    };
    let divisions = (1..=parts).map(|by_rows| [by_rows, parts / by_rows]);
    divisions.min_by_key(cost).unwrap_or([1, 1])
}
