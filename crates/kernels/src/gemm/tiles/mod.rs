//! Products of bf16 on tiles: the loops over blocks that fit the caches. Instructions are in `unit`, the orders
//! of packed squares in `square`, sizes and the division among threads in `plan`.
//!
//! The second cache holds a chunk of b. A panel of a, 32 rows deep as a cut, stays in the first cache while the
//! panels of that chunk pass; between cuts sums wait in scratch. Rows of a c of bf16 are rounded, from a patch of
//! sums, while the tiles compute the next.

mod panel;
mod plan;
mod square;
#[cfg(test)]
mod tests;
mod unit;

use super::grid::blocks;
use super::{Output, Right, Shared, View, same_type};
use crate::cpu::{Cpu, InstructionSet};
use crate::storage::Storage;
use half::{bf16, f16};
use panel::Source;
use plan::{DEPTH, Plan, division};
use std::mem::MaybeUninit;
use std::ops::Range;
use unit::{Amx, Block, MOST_AHEAD, SIDE, SQUARE, STEP, Sums, Unit};

/// Multiplications below which a thread more costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 24;
/// Elements to pack below which a thread more costs more than it saves.
const WORTH_A_THREAD_TO_PACK: usize = 1 << 16;

/// Bytes of a c of bf16 above which it is written past the caches. A smaller one is read again before it has left them:
/// at 4 MiB a training step was 1.4 % slower than without, at 16 MiB it is 2.5 % faster.
pub(super) const STREAMED: usize = 16 << 20;

/// Bytes of scratch for one part of a product; a multiple of 64.
pub(super) fn scratch_bytes(extents: [usize; 3]) -> usize {
    Plan::new(extents).scratch_bytes()
}

/// Whether products of S are computed here.
pub(super) fn serve<S: 'static>(cpu: &Cpu) -> bool {
    cpu.instruction_set() == InstructionSet::Amx && same_type::<S, bf16>()
}

/// The product on all threads of `cpu`, which this module [serves](serve), with `bias` added to each row of a c
/// that is overwritten; `scratch` holds [`scratch_bytes`] for each.
pub(super) fn multiply_on_amx<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    extents: [usize; 3],
    a: View<S>,
    b: Right<S>,
    c: Output<C>,
    bias: Option<&[S::Wide]>,
    scratch: &mut [u8],
) {
    assert!(serve::<S>(cpu) && same_type::<S::Wide, f32>());
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
    // SAFETY: a `Cpu` has only instructions that the machine has; c and the bias are cast to what they are.
    unsafe {
        let bias = bias.map(|bias| std::slice::from_raw_parts(bias.as_ptr().cast::<f32>(), bias.len()));
        if same_type::<C, f32>() {
            multiply::<Amx, f32>(cpu, extents, a, b, of(c), bias, scratch);
        } else if same_type::<C, bf16>() {
            multiply::<Amx, bf16>(cpu, extents, a, b, of(c), bias, scratch);
        } else {
            assert!(same_type::<C, f16>(), "f32 is the wide type of no other");
            multiply::<Amx, f16>(cpu, extents, a, b, of(c), bias, scratch);
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
    bias: Option<&[f32]>,
    scratch: &mut [u8],
) {
    let parts = cpu.threads().min(m * n * k / WORTH_A_THREAD).max(1);
    let packs = [!Source::<U>::of_a(a).serves_tiles(), matches!(b, Right::Plain(_))];
    let [by_rows, by_columns] = division(parts, [m, n], packs);
    let row_parts = blocks(0..m, m.div_ceil(by_rows), SIDE);
    let column_parts = blocks(0..n, n.div_ceil(by_columns), SIDE);
    let across = column_parts.clone().count();
    let parts = row_parts.clone().count() * across;
    // Rows of whole lines, in a c that would not stay in the caches anyway.
    let streams = m * n * size_of::<C>() > STREAMED
        && c.start.addr().is_multiple_of(64)
        && c.stride.is_multiple_of(SIDE);
    let plan = Plan::new([m, n, k]);
    let share = plan.scratch_bytes();
    assert!(scratch.len() >= parts * share && scratch.as_ptr().addr().is_multiple_of(64));
    let scratch = Shared { start: scratch.as_mut_ptr(), stride: share };
    cpu.split(parts, 1, 1, |indices| {
        for index in indices {
            let place = (row_parts.clone().nth(index / across), column_parts.clone().nth(index % across));
            let (Some(rows), Some(columns)) = place else { continue };
            let mut patch = MaybeUninit::uninit();
            // SAFETY: this share of the scratch lies inside it, as asserted, and is borrowed here alone; its parts
            // are as long as their elements need, aligned, and any bytes are numbers. The caller vouches for the
            // instructions; `ready` encloses their use on this thread.
            unsafe {
                let bytes = scratch.rows(index..index + 1);
                let [a_len, _, sums_len] = plan.lengths;
                let (sums, factors) = bytes.split_at_mut(sums_len * size_of::<f32>());
                let (packed_a, packed_b) = factors.split_at_mut(a_len * size_of::<bf16>());
                let part = Part::<U, C> {
                    cpu,
                    k,
                    plan,
                    a: Source::of_a(a),
                    b,
                    c,
                    bias,
                    packed_a: packed_a.align_to_mut().1,
                    packed_b: packed_b.align_to_mut().1,
                    sums: sums.align_to_mut().1,
                    patch: patch.as_mut_ptr(),
                    unrounded: None,
                    streams,
                };
                U::ready(|| part.multiply(rows, columns));
            }
        }
    });
}

/// What one thread computes with, and into.
struct Part<'a, U, C> {
    cpu: &'a Cpu,
    k: usize,
    plan: Plan,
    a: Source<'a, U>,
    b: Right<'a, bf16>,
    c: Output<C>,
    bias: Option<&'a [f32]>,
    packed_a: &'a mut [bf16],
    packed_b: &'a mut [bf16],
    sums: &'a mut [f32],
    /// Sums on the way to a c that is not f32, or has fewer rows or columns.
    patch: *mut Sums,
    /// Where in a c of bf16 the sums go that wait in the patch.
    unrounded: Option<*mut bf16>,
    /// Whether they go past the caches.
    streams: bool,
}

/// Where 32 rows of a are, over the depths of a cut.
struct Left {
    start: *const bf16,
    /// Elements between rows and between steps.
    stride: usize,
    step: usize,
}

/// Where the next lines of a are, as [`Block`] has it.
struct Ahead {
    start: *const bf16,
    stride: usize,
}

impl<U: Unit, C: Storage<Wide = f32>> Part<'_, U, C> {
    /// # Safety
    /// Inside the unit's `ready`, on a machine that has its instructions; the rows and columns of c are this part's
    /// alone; the patch can be written.
    unsafe fn multiply(mut self, rows: Range<usize>, columns: Range<usize>) {
        let keeps_a = self.keeps_a();
        let most = if keeps_a { self.plan.kept_rows } else { rows.len() };
        // First column of the block whose packed b the scratch holds.
        let mut held = None;
        for rows in blocks(rows, most, SIDE) {
            if keeps_a {
                let steps = self.k.div_ceil(STEP);
                // SAFETY: vouched for by the caller.
                unsafe { self.a.pack(rows.clone(), 0..self.k, steps, self.packed_a) };
            }
            for columns in blocks(columns.clone(), self.plan.columns, SIDE) {
                for block in blocks(rows.clone(), self.plan.rows, SIDE) {
                    for chunk in blocks(0..self.k, self.plan.chunk, STEP) {
                        // SAFETY: vouched for by the caller.
                        unsafe {
                            if held != Some(columns.start) {
                                self.pack_right(&columns, &chunk);
                            }
                            self.chunk(rows.start, &block, &columns, &chunk);
                        }
                    }
                    held = self.plan.is_resident(self.k).then_some(columns.start);
                }
            }
        }
        if let Some(to) = self.unrounded {
            // SAFETY: 32 rows and columns of a c of bf16, this part's alone; the caller vouches for the instructions.
            unsafe { U::round(&*self.patch, to, self.c.stride) };
        }
    }

    /// Whether a is packed before the blocks begin.
    fn keeps_a(&self) -> bool {
        self.a.is_transposed() && self.plan.kept_rows > 0
    }

    /// Packs a chunk of b, unless it came packed.
    ///
    /// # Safety
    /// As [`Part::multiply`].
    unsafe fn pack_right(&mut self, columns: &Range<usize>, chunk: &Range<usize>) {
        if let Right::Plain(b) = self.b {
            let steps = chunk.len().div_ceil(STEP);
            // SAFETY: vouched for by the caller.
            unsafe { Source::<U>::of_b(b).pack(columns.clone(), chunk.clone(), steps, self.packed_b) };
        }
    }

    /// A panel of b from some depth on.
    fn right(&self, columns: &Range<usize>, panel: usize, chunk: &Range<usize>, depth: usize) -> &[bf16] {
        match self.b {
            Right::Plain(_) => {
                let (steps, step) = (chunk.len().div_ceil(STEP), (depth - chunk.start) / STEP);
                &self.packed_b[(panel * steps + step) * SQUARE..]
            }
            Right::Packed(b) => {
                let (panel, steps) = (columns.start / SIDE + panel, self.k.div_ceil(STEP));
                &b[(panel * steps + depth / STEP) * SQUARE..]
            }
        }
    }

    /// The rows of a from `row` on, `count` of them, over a cut; `first` is the first row that is kept, if any are.
    ///
    /// # Safety
    /// As [`Part::multiply`].
    unsafe fn left(&mut self, first: usize, row: usize, count: usize, cut: &Range<usize>) -> Left {
        if self.keeps_a() {
            let panel = (row - first) / SIDE;
            let a = &self.packed_a[(panel * self.k.div_ceil(STEP) + cut.start / STEP) * SQUARE..];
            assert!(a.len() >= cut.len().div_ceil(STEP) * SQUARE);
            return Left { start: a.as_ptr(), stride: STEP, step: SQUARE };
        }
        if self.a.serves_tiles() && count == SIDE {
            let start = self.a.plain(row, cut.clone()).as_ptr();
            return Left { start, stride: self.a.stride(), step: STEP };
        }
        let steps = cut.len().div_ceil(STEP);
        // SAFETY: vouched for by the caller.
        unsafe { self.a.pack(row..row + count, cut.clone(), steps, self.packed_a) };
        Left { start: self.packed_a.as_ptr(), stride: STEP, step: SQUARE }
    }

    /// Where to look for the rows of a from `row` on, over a cut, before they are used; as [`Part::left`].
    fn ahead(&self, first: usize, row: usize, cut: &Range<usize>) -> Option<Ahead> {
        if self.keeps_a() {
            // Contiguous squares, taken for 32 rows.
            let square = (row - first) / SIDE * self.k.div_ceil(STEP) + cut.start / STEP;
            let start = self.packed_a.as_ptr().wrapping_add(square * SQUARE);
            return Some(Ahead { start, stride: cut.len().div_ceil(STEP) * STEP });
        }
        let start = self.a.row(row, cut.start)?;
        Some(Ahead { start, stride: self.a.stride() })
    }

    /// Adds one chunk to the sums of a block, which the first chunk begins and the last brings to c. `first_kept` is
    /// the first row of a that is kept, if any are.
    ///
    /// # Safety
    /// As [`Part::multiply`]; b is packed for this chunk.
    unsafe fn chunk(
        &mut self,
        first_kept: usize,
        rows: &Range<usize>,
        columns: &Range<usize>,
        chunk: &Range<usize>,
    ) {
        let panels = columns.len().div_ceil(SIDE);
        for row in rows.clone().step_by(SIDE) {
            let row = row..(row + SIDE).min(rows.end);
            // Sums that wait for the next chunk have places of their own.
            let waiting =
                if self.plan.is_resident(self.k) { 0 } else { (row.start - rows.start) / SIDE * panels };
            for cut in blocks(chunk.clone(), DEPTH, STEP) {
                let next = if cut.end < chunk.end {
                    (row.start, cut.end..(cut.end + cut.len()).min(chunk.end))
                } else {
                    (row.end, chunk.start..chunk.start + cut.len())
                };
                let next = (next.0 < rows.end).then(|| self.ahead(first_kept, next.0, &next.1)).flatten();
                // SAFETY: as the caller vouches.
                unsafe { self.cut(first_kept, &row, columns, chunk, &cut, waiting, next) };
            }
        }
    }

    /// Adds one cut of 32 rows of a, whose blocks are the `waiting`th and following ones of the sums, and calls for
    /// the next ones.
    ///
    /// # Safety
    /// As [`Part::chunk`].
    unsafe fn cut(
        &mut self,
        first_kept: usize,
        row: &Range<usize>,
        columns: &Range<usize>,
        chunk: &Range<usize>,
        cut: &Range<usize>,
        waiting: usize,
        next: Option<Ahead>,
    ) {
        let steps = cut.len().div_ceil(STEP);
        let panels = columns.len().div_ceil(SIDE);
        let ahead_rows = SIDE.div_ceil(panels).min(MOST_AHEAD);
        let mut sums = self.sums.as_mut_ptr().wrapping_add(waiting * SIDE * SIDE);
        // SAFETY: as the caller vouches.
        let left = unsafe { self.left(first_kept, row.start, row.len(), cut) };
        for panel in 0..panels {
            let column = columns.start + panel * SIDE..(columns.start + (panel + 1) * SIDE).min(columns.end);
            let b = self.right(columns, panel, chunk, cut.start);
            assert!(b.len() >= steps * SQUARE);
            let b = b.as_ptr();
            let ahead = next.as_ref().filter(|_| panel * ahead_rows < SIDE);
            let (ahead, ahead_stride) = ahead.map_or((std::ptr::null(), 0), |ahead| {
                (ahead.start.wrapping_add(panel * ahead_rows * ahead.stride), ahead.stride)
            });
            let ahead_rows = if ahead.is_null() { 0 } else { ahead_rows };
            let Left { start: a, stride: a_stride, step: a_step } = left;
            let block = Block {
                steps,
                a,
                a_stride,
                a_step,
                b,
                from: std::ptr::null(),
                from_stride: 0,
                to: sums,
                to_stride: SIDE,
                ahead_rows,
                ahead,
                ahead_stride,
                round: std::ptr::null(),
                round_to: std::ptr::null_mut(),
                round_stride: 0,
                stream: self.streams,
            };
            // SAFETY: a and b hold `steps` steps, as `left` and the line above assert. `sums` has a block for
            // each of this one's, by its length, wherever there is more than one cut. The rest as the caller
            // vouches.
            unsafe { self.block(block, row.clone(), column, [cut.start == 0, cut.end == self.k]) };
            sums = sums.wrapping_add(SIDE * SIDE);
        }
    }

    /// One block of tiles, whose sums are in `to` unless it is the first of its cuts, and go there unless it is the
    /// last.
    ///
    /// # Safety
    /// As [`Part::multiply`]; the block is as [`Unit::multiply`] wants it, but for what is set here.
    #[inline]
    unsafe fn block(
        &mut self,
        mut block: Block,
        rows: Range<usize>,
        columns: Range<usize>,
        [first, last]: [bool; 2],
    ) {
        let extents = [rows.len(), columns.len()];
        let Output { start, stride, accumulate } = self.c;
        let c = start.wrapping_add(rows.start * stride + columns.start);
        // Sums that need neither rounding nor trimming go to c, and come from it, without a stop.
        let straight = same_type::<C, f32>() && extents == [SIDE; 2];
        let mut padded = [0.0; SIDE];
        if !first {
            (block.from, block.from_stride) = (block.to.cast_const(), block.to_stride);
        } else if straight && accumulate {
            (block.from, block.from_stride) = (c.cast_const().cast(), stride);
        } else if let Some(bias) = self.bias {
            let bias = &bias[columns];
            block.from = if bias.len() == SIDE {
                bias.as_ptr()
            } else {
                padded[..bias.len()].copy_from_slice(bias);
                padded.as_ptr()
            };
        }
        if last {
            (block.to, block.to_stride) =
                if straight { (c.cast(), stride) } else { (self.patch.cast(), SIDE) };
        }
        if let Some(to) = self.unrounded.take() {
            (block.round, block.round_to, block.round_stride) = (self.patch.cast_const().cast(), to, stride);
        }
        // SAFETY: c has a whole block here if `straight`, and is this part's alone, as what waited to be rounded is
        // too; the rest as the caller vouches. The product has filled the patch where it is read.
        unsafe {
            U::multiply(&block);
            if !last || straight {
                return;
            }
            if same_type::<C, bf16>() && extents == [SIDE; 2] && !accumulate {
                self.unrounded = Some(c.cast());
            } else {
                self.trim(&*self.patch, c, extents);
            }
        }
    }

    /// Brings sums to the part of them that c has.
    ///
    /// # Safety
    /// c has these rows and columns at this pointer, this part's alone.
    unsafe fn trim(&self, sums: &Sums, c: *mut C, [rows, columns]: [usize; 2]) {
        let Output { stride, accumulate, .. } = self.c;
        self.cpu.vectorised(
            #[inline(always)]
            || {
                for (row, sums) in sums.0.iter().enumerate().take(rows) {
                    // SAFETY: a row of c, as the caller vouches.
                    let c = unsafe { std::slice::from_raw_parts_mut(c.add(row * stride), columns) };
                    for (c, &sum) in c.iter_mut().zip(sums) {
                        *c = C::narrow(if accumulate { c.widen() + sum } else { sum });
                    }
                }
            },
        );
    }
}
