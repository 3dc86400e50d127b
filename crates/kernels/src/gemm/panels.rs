//! Products through packed panels and register tiles of vectors: the loops over blocks that fit the caches.
//! The innermost loops are in `micro`.

use super::grid::{Grid, blocks};
use super::micro::{Ahead, Multiply, Shape};
use super::pack::Pack;
use super::{Output, Shared, View, same_type};
use crate::cpu::Cpu;
use crate::storage::Storage;
use std::ops::Range;

/// Bytes of the longest row of a panel, so that a panel of a stays in the first cache.
const DEEP: usize = 2048;
/// Bytes of a shorter one, for more columns.
const SHALLOW: usize = 1536;
/// Bytes of the block of b that stays in the second cache while rows of a pass.
const BLOCK_OF_B: usize = 576 * SHALLOW;
/// Bytes of the block of a that passes several blocks of b, beyond that cache.
const BLOCK_OF_A: usize = 1056 * SHALLOW;
/// The same of narrow factors, beside sums of as many rows.
const NARROW_BLOCK_OF_A: usize = SUM_ROWS * SHALLOW;
/// Rows of a that are packed at once where they lie in memory one by one.
const GROUP: usize = 96;
/// Rows of wide sums of narrow factors kept until they are rounded into a narrow c.
const SUM_ROWS: usize = 576;
/// The same of wide factors, from which a narrow c is rare.
const WIDE_SUM_ROWS: usize = 96;
/// Columns of such sums.
const SUM_COLUMNS: usize = 1024;
/// Multiplications below which a thread more costs more than it saves.
const WORTH_A_THREAD: usize = 1 << 20;
/// Multiples of every tile's rows and columns.
const UNIT: [usize; 2] = [12, 32];

/// Depth of the blocks of a product with so many columns.
fn depth<T>(k: usize, columns: usize) -> usize {
    let deep = columns.next_multiple_of(UNIT[1]) * DEEP <= BLOCK_OF_B;
    k.min(if deep { DEEP } else { SHALLOW } / size_of::<T>())
}

/// Lanes of this depth that fit a block of so many bytes.
fn lanes<T>(bytes: usize, depth: usize, unit: usize) -> usize {
    bytes / (depth * size_of::<T>()) / unit * unit
}

fn block_of_a<S: Storage>() -> usize {
    if same_type::<S, S::Wide>() { BLOCK_OF_A } else { NARROW_BLOCK_OF_A }
}

/// Elements of one part's packed a, packed b and wide sums.
fn lengths<S: Storage>([m, n, k]: [usize; 3]) -> [usize; 3] {
    let [m, n] = [m.next_multiple_of(UNIT[0]), n.next_multiple_of(UNIT[1])];
    let depth = k.min(DEEP / size_of::<S::Wide>());
    let [a, b] = [block_of_a::<S>(), BLOCK_OF_B].map(|bytes| bytes / size_of::<S::Wide>());
    let sums = m.min(sum_rows::<S>()) * n.min(SUM_COLUMNS);
    [a.min(m * depth), b.min(n * depth), sums].map(|len| len.next_multiple_of(16))
}

/// Bytes of scratch for one part of a product.
pub(super) fn scratch_bytes<S: Storage>(extents: [usize; 3]) -> usize {
    lengths::<S>(extents).iter().sum::<usize>() * size_of::<S::Wide>()
}

/// Rows of wide sums kept until they are rounded.
fn sum_rows<S: Storage>() -> usize {
    if same_type::<S, S::Wide>() { WIDE_SUM_ROWS } else { SUM_ROWS }
}

/// The product on all threads of `cpu`; `scratch` holds [`scratch_bytes`] for each, aligned.
pub(super) fn multiply<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    [m, n, k]: [usize; 3],
    a: View<S>,
    b: View<S>,
    c: Output<C>,
    bias: Option<&[S::Wide]>,
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
            let shape = Shape::of::<S::Wide>(cpu.instruction_set());
            Part { cpu, shape, a, b, c, k, bias, packed_a, packed_b, sums }.multiply(rows, columns);
        }
    });
}

/// What one thread computes with, and into.
struct Part<'a, S: Storage, C> {
    cpu: &'a Cpu,
    shape: Shape,
    a: View<'a, S>,
    b: View<'a, S>,
    c: Output<C>,
    k: usize,
    /// A row that every row of c starts from.
    bias: Option<&'a [S::Wide]>,
    packed_a: &'a mut [S::Wide],
    packed_b: &'a mut [S::Wide],
    sums: &'a mut [S::Wide],
}

impl<S: Storage, C: Storage<Wide = S::Wide>> Part<'_, S, C> {
    fn multiply(&mut self, rows: Range<usize>, columns: Range<usize>) {
        if same_type::<C, C::Wide>() {
            let Output { start, stride, accumulate } = self.c;
            // C is its own wide type, so this is a pointer to what it always was.
            let start = start.cast::<S::Wide>().wrapping_add(rows.start * stride + columns.start);
            self.multiply_into(rows, columns, Output { start, stride, accumulate });
            return;
        }
        for columns in blocks(columns, SUM_COLUMNS, UNIT[1]) {
            for rows in blocks(rows.clone(), sum_rows::<S>(), UNIT[0]) {
                let start = self.sums.as_mut_ptr();
                let sums = Output { start, stride: columns.len(), accumulate: false };
                self.multiply_into(rows.clone(), columns.clone(), sums);
                self.round(rows, columns.clone());
            }
        }
    }

    /// Sums over all of k for a block of c, into `out`, whose start is the block's.
    ///
    /// A block of b stays in the second cache while rows of a pass. If there are several, a block of a is packed as
    /// it passes the first, and passes the others as it then is.
    fn multiply_into(&mut self, rows: Range<usize>, columns: Range<usize>, out: Output<S::Wide>) {
        let origin = [rows.start, columns.start];
        let deepest = depth::<S::Wide>(self.k, columns.len());
        let widest = lanes::<S::Wide>(BLOCK_OF_B, deepest, UNIT[1]);
        let most = lanes::<S::Wide>(block_of_a::<S>(), deepest, UNIT[0]);
        let several = columns.len() > widest;
        for rows in blocks(rows.clone(), if several { most } else { rows.len() }, UNIT[0]) {
            for depths in blocks(0..self.k, deepest, 1) {
                for block in blocks(columns.clone(), widest, UNIT[1]) {
                    self.pack_b(&block, &depths);
                    if block.start > columns.start {
                        self.block(&rows, &block, &depths, 0, origin, out, None);
                        continue;
                    }
                    let group = if self.a.transposed { most } else { GROUP };
                    let mut groups = blocks(rows.clone(), group, UNIT[0]).peekable();
                    while let Some(group) = groups.next() {
                        let at = if several { (group.start - rows.start) * depths.len() } else { 0 };
                        self.pack_a(&group, &depths, at);
                        let ahead = groups.peek().and_then(|next| self.ahead(next, &depths));
                        self.block(&group, &block, &depths, at, origin, out, ahead);
                    }
                }
            }
        }
    }

    /// Rows of a that are packed next, unless they lie across memory.
    fn ahead(&self, rows: &Range<usize>, depths: &Range<usize>) -> Option<Ahead> {
        let start = &self.a.data[rows.start * self.a.row_stride() + depths.start * self.a.column_stride()..];
        (!self.a.transposed).then(|| Ahead::new(start.as_ptr(), self.a.stride, rows.len()))
    }

    /// Packs rows of a to place `at`.
    fn pack_a(&mut self, rows: &Range<usize>, depths: &Range<usize>, at: usize) {
        let (lane_stride, depth_stride) = (self.a.row_stride(), self.a.column_stride());
        self.cpu.vectorised(Pack {
            data: &self.a.data[rows.start * lane_stride + depths.start * depth_stride..],
            lane_stride,
            depth_stride,
            lanes: rows.len(),
            depth: depths.len(),
            width: self.shape.rows,
            out: &mut self.packed_a[at..],
        });
    }

    fn pack_b(&mut self, columns: &Range<usize>, depths: &Range<usize>) {
        let (lane_stride, depth_stride) = (self.b.column_stride(), self.b.row_stride());
        self.cpu.vectorised(Pack {
            data: &self.b.data[columns.start * lane_stride + depths.start * depth_stride..],
            lane_stride,
            depth_stride,
            lanes: columns.len(),
            depth: depths.len(),
            width: self.shape.columns,
            out: self.packed_b,
        });
    }

    /// Adds the packed depths to a block of `out`, whose first element is at `origin`; packed rows begin at `at`.
    fn block(
        &mut self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        depths: &Range<usize>,
        at: usize,
        origin: [usize; 2],
        out: Output<S::Wide>,
        ahead: Option<Ahead>,
    ) {
        let c = out.start.wrapping_add((rows.start - origin[0]) * out.stride + columns.start - origin[1]);
        let base = match self.bias {
            _ if depths.start > 0 || out.accumulate => Some((c.cast_const(), out.stride)),
            Some(bias) => Some((bias[columns.clone()].as_ptr(), 0)),
            None => None,
        };
        self.cpu.vectorised(Multiply {
            shape: self.shape,
            rows: rows.len(),
            columns: columns.len(),
            depth: depths.len(),
            a: &self.packed_a[at..],
            b: self.packed_b,
            c,
            c_stride: out.stride,
            base,
            ahead,
        });
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
