//! Products of bf16 on tiles: the loops over blocks that fit the caches. Instructions are in `unit`, the orders
//! of packed squares in `square`.
//!
//! A block of c as large as the second cache allows is summed over all of k before the next begins: c is written
//! once, and both factors are read from beyond that cache as seldom as possible. Within it the depth is cut so
//! that a panel of b stays in the first cache while rows of a pass; between cuts the sums wait in scratch.

mod panel;
mod square;
#[cfg(test)]
mod tests;
mod unit;

use super::grid::{Grid, blocks};
use super::{Output, Right, Shared, View, same_type};
use crate::cpu::{Cpu, InstructionSet};
use crate::storage::Storage;
use half::{bf16, f16};
use panel::Source;
use std::mem::MaybeUninit;
use std::ops::Range;
use unit::{Amx, Block, SIDE, SQUARE, STEP, Unit};

/// Rows and columns of a block of c: its sums and a cut of its factors fill two thirds of 2 MB.
const BLOCK: usize = 384;
/// Depth of a cut: a panel of b is 32 KB.
const DEPTH: usize = 512;
/// Greatest depth of which a packed factor is kept while blocks along the other one pass.
const KEPT: usize = 4096;
/// Multiplications below which a thread more costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 24;
/// Elements to pack below which a thread more costs more than it saves.
const WORTH_A_THREAD_TO_PACK: usize = 1 << 16;

/// Elements of one part's packed a and packed b, and of its sums.
fn lengths([m, n, k]: [usize; 3]) -> [usize; 3] {
    let [m, n] = [m, n].map(|extent| extent.next_multiple_of(SIDE).min(BLOCK));
    let depth = kept_depth(k);
    [m * depth, n * depth, if k > DEPTH { m * n } else { 0 }]
}

/// Depth that packed factors have room for.
fn kept_depth(k: usize) -> usize {
    if k <= KEPT { k.next_multiple_of(STEP) } else { DEPTH }
}

/// Bytes of scratch for one part of a product; a multiple of 64.
pub(super) fn scratch_bytes(extents: [usize; 3]) -> usize {
    let [a, b, sums] = lengths(extents);
    (a + b) * size_of::<bf16>() + sums * size_of::<f32>()
}

/// Whether products of S are computed here.
pub(super) fn serve<S: 'static>(cpu: &Cpu) -> bool {
    cpu.instruction_set() == InstructionSet::Amx && same_type::<S, bf16>()
}

/// The product on all threads of `cpu`, which this module [serves](serve); `scratch` holds [`scratch_bytes`] for
/// each.
pub(super) fn multiply_on_amx<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    extents: [usize; 3],
    a: View<S>,
    b: Right<S>,
    c: Output<C>,
    scratch: &mut [u8],
) {
    assert!(serve::<S>(cpu));
    fn of<C, T>(c: Output<C>) -> Output<T> {
        Output { start: c.start.cast(), stride: c.stride, accumulate: c.accumulate }
    }
    let a = View { data: bf16_of(a.data), stride: a.stride, transposed: a.transposed };
    let b = match b {
        Right::Plain(b) => {
            Right::Plain(View { data: bf16_of(b.data), stride: b.stride, transposed: b.transposed })
        }
        Right::Packed(b) => Right::Packed(bf16_of(b)),
    };
    // SAFETY: a `Cpu` has only instructions that the machine has; c is cast to what it is.
    unsafe {
        if same_type::<C, f32>() {
            multiply::<Amx, f32>(cpu, extents, a, b, of(c), scratch);
        } else if same_type::<C, bf16>() {
            multiply::<Amx, bf16>(cpu, extents, a, b, of(c), scratch);
        } else {
            assert!(same_type::<C, f16>(), "f32 is the wide type of no other");
            multiply::<Amx, f16>(cpu, extents, a, b, of(c), scratch);
        }
    }
}

/// A slice of bf16 as what it is.
fn bf16_of<S: 'static>(data: &[S]) -> &[bf16] {
    assert!(same_type::<S, bf16>());
    // SAFETY: the types are the same.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
}

/// Packs a whole right factor on a machine with AMX; `out` is [`packed_len`] long.
pub(super) fn pack_on_amx<S: Storage>(cpu: &Cpu, extents: [usize; 2], b: View<S>, out: &mut [S]) {
    assert!(serve::<S>(cpu));
    let b = View { data: bf16_of(b.data), stride: b.stride, transposed: b.transposed };
    // SAFETY: S is bf16, as `bf16_of` asserts; a `Cpu` has only instructions that the machine has.
    unsafe {
        let out = std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<bf16>(), out.len());
        pack_whole::<Amx>(cpu, extents, b, out);
    }
}

/// Elements of a packed right factor.
pub(super) fn packed_len(k: usize, n: usize) -> usize {
    k.next_multiple_of(STEP) * n.next_multiple_of(SIDE)
}

/// Packs a whole right factor, panel after panel.
///
/// # Safety
/// The machine has the unit's instructions.
unsafe fn pack_whole<U: Unit>(cpu: &Cpu, [k, n]: [usize; 2], b: View<bf16>, out: &mut [bf16]) {
    assert_eq!(out.len(), packed_len(k, n), "the packed matrix has the wrong length");
    let steps = k.div_ceil(STEP);
    let out = Shared { start: out.as_mut_ptr(), stride: steps * SQUARE };
    cpu.split(n, SIDE, WORTH_A_THREAD_TO_PACK / k.max(1), |columns| {
        let panels = columns.start / SIDE..columns.end.div_ceil(SIDE);
        // SAFETY: panels of these columns are packed by this part alone, and lie inside `out` by its length; the
        // caller vouches for the instructions.
        unsafe { Source::<U>::of_b(b).pack(columns, 0..k, steps, out.rows(panels)) };
    });
}

/// The product on all threads of `cpu`; `scratch` holds [`scratch_bytes`] for each, aligned to 64.
///
/// # Safety
/// The machine has the unit's instructions.
unsafe fn multiply<U: Unit, C: Storage<Wide = f32>>(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: View<bf16>,
    b: Right<bf16>,
    c: Output<C>,
    scratch: &mut [u8],
) {
    let parts = cpu.threads().min(m * n * k / WORTH_A_THREAD).max(1);
    let grid = Grid::new(parts, [m, n], [SIDE, SIDE]);
    let (share, lengths) = (scratch_bytes([m, n, k]), lengths([m, n, k]));
    assert!(scratch.len() >= grid.len() * share && scratch.as_ptr().addr().is_multiple_of(64));
    let scratch = Shared { start: scratch.as_mut_ptr(), stride: share };
    cpu.split(grid.len(), 1, 1, |indices| {
        for index in indices {
            let [rows, columns] = grid.part(index);
            // SAFETY: this share of the scratch lies inside it, as asserted, and is borrowed here alone; its parts
            // are as long as their elements need, aligned, and any bytes are numbers. The caller vouches for the
            // instructions; `begin` and `end` enclose their use on this thread.
            unsafe {
                let bytes = scratch.rows(index..index + 1);
                let (sums, factors) = bytes.split_at_mut(lengths[2] * size_of::<f32>());
                let (packed_a, packed_b) = factors.split_at_mut(lengths[0] * size_of::<bf16>());
                let part = Part::<U, C> {
                    cpu,
                    k,
                    a: Source::of_a(a),
                    b,
                    c,
                    packed_a: packed_a.align_to_mut().1,
                    packed_b: packed_b.align_to_mut().1,
                    sums: sums.align_to_mut().1,
                };
                U::begin();
                part.multiply(rows, columns);
                U::end();
            }
        }
    });
}

/// What one thread computes with, and into.
struct Part<'a, U, C> {
    cpu: &'a Cpu,
    k: usize,
    a: Source<'a, U>,
    b: Right<'a, bf16>,
    c: Output<C>,
    packed_a: &'a mut [bf16],
    packed_b: &'a mut [bf16],
    sums: &'a mut [f32],
}

/// Where the panels of one cut of a block are.
struct Panels {
    /// Rows of a that tiles are loaded from as they are; those after them are packed.
    plain_rows: usize,
    /// Squares from one packed panel to the next.
    stride: usize,
    /// Squares from a panel's start to the cut.
    offset: usize,
}

impl<U: Unit, C: Storage<Wide = f32>> Part<'_, U, C> {
    /// # Safety
    /// After the unit's `begin`, on a machine that has its instructions; the rows and columns of c are this part's
    /// alone.
    unsafe fn multiply(mut self, rows: Range<usize>, columns: Range<usize>) {
        let row_blocks = blocks(rows, BLOCK, SIDE);
        let column_blocks = blocks(columns, BLOCK, SIDE);
        // First row and first column of the blocks whose packed factors the scratch holds.
        let mut held = [None; 2];
        let rows_inside = self.a.is_plain();
        let mut visit = |rows: &Range<usize>, columns: &Range<usize>| {
            // SAFETY: vouched for by the caller.
            unsafe { self.block(rows, columns, &mut held) }
        };
        // The outer factor is packed once; let it be the one that costs more to pack.
        if rows_inside {
            column_blocks.for_each(|columns| row_blocks.clone().for_each(|rows| visit(&rows, &columns)));
        } else {
            row_blocks.for_each(|rows| column_blocks.clone().for_each(|columns| visit(&rows, &columns)));
        }
    }

    /// One block of c over all of k.
    ///
    /// # Safety
    /// As [`Part::multiply`].
    unsafe fn block(&mut self, rows: &Range<usize>, columns: &Range<usize>, held: &mut [Option<usize>; 2]) {
        let wanted = [Some(rows.start), Some(columns.start)];
        for cut in blocks(0..self.k, DEPTH, STEP) {
            // SAFETY: as the caller vouches.
            unsafe {
                let panels = self.pack(rows, columns, &cut, [held[0] == wanted[0], held[1] == wanted[1]]);
                self.cut(rows, columns, &cut, &panels);
            }
        }
        *held = if self.k <= KEPT { wanted } else { [None; 2] };
    }

    /// Packs what a cut needs and the scratch does not hold yet.
    ///
    /// # Safety
    /// As [`Part::multiply`].
    unsafe fn pack(
        &mut self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        cut: &Range<usize>,
        [holds_a, holds_b]: [bool; 2],
    ) -> Panels {
        let plain_rows = if self.a.is_plain() { rows.len() / SIDE * SIDE } else { 0 };
        let stride = kept_depth(self.k) / STEP;
        let offset = if self.k <= KEPT { cut.start / STEP } else { 0 };
        // SAFETY: as the caller vouches.
        unsafe {
            if !holds_a {
                let rows = rows.start + plain_rows..rows.end;
                self.a.pack(rows, cut.clone(), stride, &mut self.packed_a[offset * SQUARE..]);
            }
            if let (Right::Plain(b), false) = (self.b, holds_b) {
                let out = &mut self.packed_b[offset * SQUARE..];
                Source::<U>::of_b(b).pack(columns.clone(), cut.clone(), stride, out);
            }
        }
        Panels { plain_rows, stride, offset }
    }

    /// Adds one cut to the sums of a block, which the first cut begins and the last brings to c.
    ///
    /// # Safety
    /// As [`Part::multiply`]; the panels are those of this cut.
    unsafe fn cut(
        &mut self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        cut: &Range<usize>,
        panels: &Panels,
    ) {
        let (first, last) = (cut.start == 0, cut.end == self.k);
        let steps = cut.len().div_ceil(STEP);
        let mut rounded = MaybeUninit::<Sums>::uninit();
        let rounded = rounded.as_mut_ptr().cast::<f32>();
        let mut sums = self.sums.as_mut_ptr();
        for column in (0..columns.len()).step_by(SIDE) {
            let b = match self.b {
                Right::Plain(_) => &self.packed_b[(column / SIDE * panels.stride + panels.offset) * SQUARE..],
                Right::Packed(b) => {
                    let panel = (columns.start + column) / SIDE;
                    &b[(panel * self.k.div_ceil(STEP) + cut.start / STEP) * SQUARE..]
                }
            };
            assert!(b.len() >= steps * SQUARE);
            for row in (0..rows.len()).step_by(SIDE) {
                let (a, a_stride, a_step) = self.left(rows, row, cut, panels, steps);
                // Of rows read as they are, the next have not been seen before the first panel of b passes them.
                let comes = column == 0 && row + SIDE < panels.plain_rows;
                let ahead = if comes { a.wrapping_add(SIDE * a_stride) } else { std::ptr::null() };
                let extents = [SIDE.min(rows.len() - row), SIDE.min(columns.len() - column)];
                let Output { start, stride, accumulate } = self.c;
                let c = start.wrapping_add((rows.start + row) * stride + columns.start + column);
                // Sums that need neither rounding nor trimming go to c, and come from it, without a stop.
                let straight = same_type::<C, f32>() && extents == [SIDE; 2];
                let (from, from_stride) = match (first, straight && accumulate) {
                    (true, true) => (c.cast_const().cast::<f32>(), stride),
                    (true, false) => (std::ptr::null(), 0),
                    (false, _) => (sums.cast_const(), SIDE),
                };
                let (to, to_stride) = match (last, straight) {
                    (true, true) => (c.cast::<f32>(), stride),
                    (true, false) => (rounded, SIDE),
                    (false, _) => (sums, SIDE),
                };
                // SAFETY: a and b hold `steps` steps, as `left` and the line above assert; c has a whole block here
                // if `straight`, and is this part's alone as the caller vouches. `sums` has a block for each of
                // this one's, by its length, wherever there is more than one cut.
                unsafe {
                    U::multiply(Block {
                        steps,
                        a,
                        a_stride,
                        a_step,
                        b: b.as_ptr(),
                        from,
                        from_stride,
                        to,
                        to_stride,
                        ahead,
                    });
                    if last && !straight {
                        self.round(&*rounded.cast(), c, extents);
                    }
                }
                sums = sums.wrapping_add(SIDE * SIDE);
            }
        }
    }

    /// Steps of the panel of a that begins at `row` of a block: start, elements between rows and between steps.
    fn left(
        &self,
        rows: &Range<usize>,
        row: usize,
        cut: &Range<usize>,
        panels: &Panels,
        steps: usize,
    ) -> (*const bf16, usize, usize) {
        if row < panels.plain_rows {
            return (self.a.plain(rows.start + row, cut.clone()).as_ptr(), self.a.stride(), STEP);
        }
        let panel = (row - panels.plain_rows) / SIDE;
        let a = &self.packed_a[(panel * panels.stride + panels.offset) * SQUARE..];
        assert!(a.len() >= steps * SQUARE);
        (a.as_ptr(), STEP, SQUARE)
    }

    /// Brings whole sums to the part of them that c has.
    ///
    /// # Safety
    /// c has these rows and columns at this pointer, this part's alone; the machine has the unit's instructions.
    unsafe fn round(&self, sums: &Sums, c: *mut C, [rows, columns]: [usize; 2]) {
        let Output { stride, accumulate, .. } = self.c;
        let whole = same_type::<C, bf16>() && columns == SIDE && !accumulate;
        self.cpu.vectorised(
            #[inline(always)]
            || {
                for (row, sums) in sums.0.iter().enumerate().take(rows) {
                    // SAFETY: a row of c, as the caller vouches; of 32 bf16 if `whole`.
                    unsafe {
                        let c = c.add(row * stride);
                        if whole {
                            U::round(sums, &mut *c.cast());
                            continue;
                        }
                        let c = std::slice::from_raw_parts_mut(c, columns);
                        for (c, &sum) in c.iter_mut().zip(sums) {
                            *c = C::narrow(if accumulate { c.widen() + sum } else { sum });
                        }
                    }
                }
            },
        );
    }
}

/// The sums of a block of tiles before they are rounded.
#[repr(align(64))]
struct Sums([[f32; SIDE]; SIDE]);
