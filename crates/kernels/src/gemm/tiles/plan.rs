//! How large the blocks of a product are, and what is packed for how long. Nothing is computed here.

use super::unit::{SIDE, STEP};
use half::bf16;

/// Depth of a cut, at most: a panel of a, read again for each panel of b, takes 36 of 48 KB.
pub(super) const DEPTH: usize = 576;
/// Elements of packed b that stay in the second cache, of 2 MB, while rows of a and of c pass.
const RESIDENT: usize = 600 << 10;
/// Columns below which a block of c that wide would have a read too often.
const NARROWEST: usize = 256;
/// Rows and columns of a block of c of which all sums wait while factors too deep to be resident pass.
const WAITING: [usize; 2] = [512, 384];
/// Elements of packed a that are kept while columns pass, at most.
const KEPT_A: usize = 800 << 10;
/// Elements of packed b that are kept while rows pass, at most.
const KEPT_B: usize = 800 << 10;
/// Rows of a transposed a that are worth keeping.
const FEWEST_KEPT: usize = 128;

/// The blocks of a product, by its extents alone, so that results and scratch are theirs too.
///
/// A block of c is summed over all of k, cut after cut, before the next begins, and blocks that share columns
/// follow each other. If all depths of a few hundred columns of b are resident, a block has 32 rows, whose sums
/// stay close; otherwise as many as it takes to make good for each cut of b that comes and goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Rows and columns of a block of c.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows of a transposed a that are packed, all depths of them, before the blocks they belong to; 0 if a panel
    /// is packed whenever it is needed.
    pub(super) kept_rows: usize,
    /// Whether packed columns of b are kept for the next block.
    pub(super) keeps_b: bool,
    /// Elements of one part's packed a and packed b, and of its sums.
    pub(super) lengths: [usize; 3],
}

impl Plan {
    pub(super) fn new([m, n, k]: [usize; 3]) -> Plan {
        let [m, n] = [m, n].map(|extent| extent.next_multiple_of(SIDE));
        let deep = k.next_multiple_of(STEP);
        let resident = RESIDENT / deep / SIDE * SIDE;
        let [rows, columns] = if resident >= NARROWEST { [SIDE, resident] } else { WAITING };
        let [rows, columns] = [rows.min(m), columns.min(n)];
        let kept_rows = match KEPT_A / deep / SIDE * SIDE {
            few if few < FEWEST_KEPT => 0,
            many => many.min(m),
        };
        let keeps_b = columns * deep <= KEPT_B;
        let a = if kept_rows == 0 { SIDE * DEPTH } else { (kept_rows * deep).max(SIDE * DEPTH) };
        let b = columns * if keeps_b { deep } else { DEPTH };
        let sums = if k > DEPTH { rows * columns } else { 0 };
        Plan { rows, columns, kept_rows, keeps_b, lengths: [a, b, sums] }
    }

    /// Bytes of scratch for one part of the product; a multiple of 64.
    pub(super) fn scratch_bytes(&self) -> usize {
        let [a, b, sums] = self.lengths;
        (a + b) * size_of::<bf16>() + sums * size_of::<f32>()
    }
}
