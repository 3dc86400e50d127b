//! Blocks of a matrix packed square by square into panels of 32 lanes, padded with zeros.

use super::square::Order;
use super::unit::{SIDE, SQUARE, STEP, Unit};
use crate::gemm::View;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix as lanes (rows of a, columns of b) of some depth, and the order its squares are packed in.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, U> {
    data: &'a [bf16],
    /// Elements from one row in memory to the next; rows are depths or lanes, as the order says.
    stride: usize,
    order: Order,
    unit: PhantomData<U>,
}

impl<'a, U: Unit> Source<'a, U> {
    pub(super) fn of_a(a: View<'a, bf16>) -> Self {
        let order = if a.transposed { Order::LanesFromDepths } else { Order::Lanes };
        Source { data: a.data, stride: a.stride, order, unit: PhantomData }
    }

    pub(super) fn of_b(b: View<'a, bf16>) -> Self {
        let order = if b.transposed { Order::PairsFromLanes } else { Order::Pairs };
        Source { data: b.data, stride: b.stride, order, unit: PhantomData }
    }

    /// Whether rows in memory are depths of a.
    pub(super) fn is_transposed(&self) -> bool {
        self.order == Order::LanesFromDepths
    }

    /// Whether tiles are to be loaded from it as it is: its rows end with a step, and do not compete for a few
    /// sets of the first cache, which repeat after 4 KB.
    pub(super) fn serves_tiles(&self) -> bool {
        self.order == Order::Lanes && self.stride.is_multiple_of(STEP) && !self.stride.is_multiple_of(1024)
    }

    /// Where a lane begins at some depth, if what follows are its further depths.
    pub(super) fn row(&self, lane: usize, depth: usize) -> Option<*const bf16> {
        let contiguous = !self.order.reads_depths();
        contiguous.then(|| self.data.as_ptr().wrapping_add(self.index(lane, depth)))
    }

    /// 32 lanes from `lane` on, of these depths, as they are: a row each, [`Source::stride`] apart.
    pub(super) fn plain(&self, lane: usize, depths: Range<usize>) -> &[bf16] {
        debug_assert!(self.serves_tiles());
        &self.data[self.index(lane, depths.start)..self.index(lane + SIDE - 1, depths.end)]
    }

    fn index(&self, lane: usize, depth: usize) -> usize {
        if self.order.reads_depths() { depth * self.stride + lane } else { lane * self.stride + depth }
    }

    /// Elements from one row in memory to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Packs a block: square (panel, step) goes to square `panel * panel_stride + step` of `out`.
    ///
    /// # Safety
    /// The machine has the unit's instructions.
    pub(super) unsafe fn pack(
        &self,
        lanes: Range<usize>,
        depths: Range<usize>,
        panel_stride: usize,
        out: &mut [bf16],
    ) {
        let (panels, steps) = (lanes.len().div_ceil(SIDE), depths.len().div_ceil(STEP));
        if panels == 0 || steps == 0 {
            return;
        }
        let (rows, columns) = if self.order.reads_depths() { (&depths, &lanes) } else { (&lanes, &depths) };
        assert!(columns.end <= self.stride && rows.end * self.stride <= self.data.len());
        assert!(out.len() >= ((panels - 1) * panel_stride + steps) * SQUARE);
        let mut square = |panel: usize, step: usize| {
            let lane = lanes.start + panel * SIDE;
            let depth = depths.start + step * STEP;
            let out = &mut out[(panel * panel_stride + step) * SQUARE..][..SQUARE];
            let counts = [(lanes.end - lane).min(SIDE), (depths.end - depth).min(STEP)];
            // SAFETY: a whole square lies inside the matrix, as asserted; the caller vouches for the instructions.
            unsafe {
                if counts == [SIDE, STEP] {
                    let from = self.data.as_ptr().add(self.index(lane, depth));
                    U::pack(self.order, from, self.stride, out.as_mut_ptr());
                } else {
                    self.edge(lane, depth, counts, out);
                }
            }
        };
        // Along what is contiguous in memory.
        if self.order.reads_depths() {
            (0..steps).for_each(|step| (0..panels).for_each(|panel| square(panel, step)));
        } else {
            (0..panels).for_each(|panel| (0..steps).for_each(|step| square(panel, step)));
        }
    }

    /// A square of which only `counts` lanes and depths exist.
    ///
    /// # Safety
    /// The machine has the unit's instructions.
    #[cold]
    unsafe fn edge(&self, lane: usize, depth: usize, counts: [usize; 2], out: &mut [bf16]) {
        let mut whole = [bf16::ZERO; SQUARE];
        let data = &self.data[self.index(lane, depth)..];
        let [lanes, depths] = counts;
        let (rows, columns) = if self.order.reads_depths() { (depths, lanes) } else { (lanes, depths) };
        for (row, whole) in whole.chunks_exact_mut(STEP).take(rows).enumerate() {
            whole[..columns].copy_from_slice(&data[row * self.stride..][..columns]);
        }
        assert!(out.len() >= SQUARE);
        // SAFETY: `whole` has 32 rows of 32, `out` is long enough; the caller vouches for the instructions.
        unsafe { U::pack(self.order, whole.as_ptr(), STEP, out.as_mut_ptr()) };
    }
}
