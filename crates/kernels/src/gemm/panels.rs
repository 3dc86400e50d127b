//! Products through packed panels and register tiles of vectors: the loops over blocks that fit the caches.
//! The innermost loops are in `micro`.

use super::grid::{Grid, blocks};
use super::micro::{DEEPEST, Multiply, Shape};
use super::pack::Pack;
use super::{Output, Shared, View, same_type};
use crate::cpu::Cpu;
use crate::storage::Storage;
use std::ops::Range;

/// Rows of a block of a, which stays in the second cache; a multiple of every tile's rows.
const ROWS: usize = 96;
/// Columns of a block of b, which stays in the last cache; a multiple of every tile's columns.
const COLUMNS: usize = 1024;
/// Rows of wide sums of narrow factors kept until they are rounded into a narrow c.
const SUM_ROWS: usize = 576;
/// Multiplications below which a thread more costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 20;
/// Multiples of every tile's rows and columns.
const UNIT: [usize; 2] = [12, 32];

/// Elements of one part's packed a, packed b and wide sums.
fn lengths<S: Storage>([m, n, k]: [usize; 3]) -> [usize; 3] {
    let depth = k.min(DEEPEST);
    let rows = m.next_multiple_of(UNIT[0]);
    let columns = n.next_multiple_of(UNIT[1]).min(COLUMNS);
    let sums = rows.min(sum_rows::<S>()) * columns;
    [rows.min(ROWS) * depth, columns * depth, sums].map(|len| len.next_multiple_of(16))
}

/// Bytes of scratch for one part of a product.
pub(super) fn scratch_bytes<S: Storage>(extents: [usize; 3]) -> usize {
    lengths::<S>(extents).iter().sum::<usize>() * size_of::<S::Wide>()
}

/// Rows of wide sums kept until they are rounded. From wide factors a narrow c is rare: fewer are kept for it.
fn sum_rows<S: Storage>() -> usize {
    if same_type::<S, S::Wide>() { ROWS } else { SUM_ROWS }
}

/// The product on all threads of `cpu`; `scratch` holds [`scratch_bytes`] for each, aligned.
pub(super) fn multiply<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: View<S>,
    b: View<S>,
    c: Output<C>,
    scratch: &mut [u8],
) {
    let parts = cpu.threads().min(m * n * k / WORTH_A_THREAD).max(1);
    let grid = Grid::new(parts, [m, n], UNIT);
    let lengths = lengths::<S>([m, n, k]);
    let share = lengths.iter().sum::<usize>();
    assert!(scratch.len() >= grid.len() * share * size_of::<S::Wide>());
    assert!(scratch.as_ptr().addr().is_multiple_of(align_of::<S::Wide>()));
    let scratch = Shared { start: scratch.as_mut_ptr().cast::<S::Wide>(), stride: share };
    cpu.split(grid.len(), 1, 1, |indices| {
        for index in indices {
            // SAFETY: share `index` of the scratch lies inside it, as asserted, and is borrowed here alone; any
            // bytes are floats.
            let share = unsafe { scratch.rows(index..index + 1) };
            let (packed_a, rest) = share.split_at_mut(lengths[0]);
            let (packed_b, sums) = rest.split_at_mut(lengths[1]);
            let [rows, columns] = grid.part(index);
            Part { cpu, a, b, c, k, packed_a, packed_b, sums }.multiply(rows, columns);
        }
    });
}

/// What one thread computes with, and into.
struct Part<'a, S: Storage, C> {
    cpu: &'a Cpu,
    a: View<'a, S>,
    b: View<'a, S>,
    c: Output<C>,
    k: usize,
    packed_a: &'a mut [S::Wide],
    packed_b: &'a mut [S::Wide],
    sums: &'a mut [S::Wide],
}

impl<S: Storage, C: Storage<Wide = S::Wide>> Part<'_, S, C> {
    fn multiply(&mut self, rows: Range<usize>, columns: Range<usize>) {
        for columns in blocks(columns, COLUMNS, UNIT[1]) {
            if same_type::<C, C::Wide>() {
                let Output { start, stride, accumulate } = self.c;
                // C is its own wide type, so this is a pointer to what it always was.
                let start = start.cast::<S::Wide>().wrapping_add(rows.start * stride + columns.start);
                self.multiply_into(rows.clone(), columns, Output { start, stride, accumulate });
            } else {
                for rows in blocks(rows.clone(), sum_rows::<S>(), UNIT[0]) {
                    let start = self.sums.as_mut_ptr();
                    let sums = Output { start, stride: columns.len(), accumulate: false };
                    self.multiply_into(rows.clone(), columns.clone(), sums);
                    self.round(rows, columns.clone());
                }
            }
        }
    }

    /// Sums over all of k for a block of c, into `out`, whose start is the block's.
    fn multiply_into(&mut self, rows: Range<usize>, columns: Range<usize>, out: Output<S::Wide>) {
        let shape = Shape::of::<S::Wide>(self.cpu.instruction_set());
        for depths in blocks(0..self.k, shape.depth, 1) {
            self.cpu.vectorised(Pack {
                data: &self.b.data
                    [columns.start * self.b.column_stride() + depths.start * self.b.row_stride()..],
                lane_stride: self.b.column_stride(),
                depth_stride: self.b.row_stride(),
                lanes: columns.len(),
                depth: depths.len(),
                width: shape.columns,
                out: self.packed_b,
            });
            for block in blocks(rows.clone(), ROWS, UNIT[0]) {
                self.cpu.vectorised(Pack {
                    data: &self.a.data
                        [block.start * self.a.row_stride() + depths.start * self.a.column_stride()..],
                    lane_stride: self.a.row_stride(),
                    depth_stride: self.a.column_stride(),
                    lanes: block.len(),
                    depth: depths.len(),
                    width: shape.rows,
                    out: self.packed_a,
                });
                self.cpu.vectorised(Multiply {
                    shape,
                    rows: block.len(),
                    columns: columns.len(),
                    depth: depths.len(),
                    a: self.packed_a,
                    b: self.packed_b,
                    c: out.start.wrapping_add((block.start - rows.start) * out.stride),
                    c_stride: out.stride,
                    add: out.accumulate || depths.start > 0,
                });
            }
        }
    }

    /// The wide sums of a block, rounded into c.
    fn round(&mut self, rows: Range<usize>, columns: Range<usize>) {
        let Output { start, stride, accumulate } = self.c;
        let sums = &*self.sums;
        self.cpu.vectorised(
            #[inline(always)]
            || {
                for (row, sums) in rows.zip(sums.chunks_exact(columns.len())) {
                    // SAFETY: this row of this part of c, which is this thread's alone.
                    let c = unsafe {
                        std::slice::from_raw_parts_mut(start.add(row * stride + columns.start), columns.len())
                    };
                    for (c, &sum) in c.iter_mut().zip(sums) {
                        *c = C::narrow(if accumulate { c.widen() + sum } else { sum });
                    }
                }
            },
        );
    }
}
