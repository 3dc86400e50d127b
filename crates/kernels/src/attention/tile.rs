//! Products of small tiles that sit in cache: the inner loops of attention. No masks, no softmax.

use crate::float::Float;
use pulp::{Simd, WithSimd};

/// Column extents are padded to whole multiples of this: no instruction set has longer vectors.
pub(super) const COLUMNS: usize = 16;

/// The left operand: element (row, depth) is at `row * row_stride + depth * depth_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, T> {
    pub(super) data: &'a [T],
    pub(super) row_stride: usize,
    pub(super) depth_stride: usize,
}

/// `c = left b`, or `c += left b` with `accumulate`; `b` and `c` have contiguous rows.
///
/// `columns` is a multiple of [`COLUMNS`]. Compiled once for each type and instruction set, not for each call:
/// that is most of the time this crate takes to compile.
#[inline(always)]
pub(super) fn multiply<T: Float, V: Simd>(
    simd: V,
    extents: [usize; 3],
    left: Left<T>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
    accumulate: bool,
) {
    simd.vectorize(Multiply { extents, left, b, b_stride, c, c_stride, accumulate });
}

struct Multiply<'a, T> {
    extents: [usize; 3],
    left: Left<'a, T>,
    b: &'a [T],
    b_stride: usize,
    c: &'a mut [T],
    c_stride: usize,
    accumulate: bool,
}

impl<T: Float> WithSimd for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) {
        let Multiply { extents, left, b, b_stride, c, c_stride, accumulate } = self;
        multiply_inline(simd, extents, left, b, b_stride, c, c_stride, accumulate);
    }
}

#[inline(always)]
fn multiply_inline<T: Float, S: Simd>(
    simd: S,
    [rows, columns, depth]: [usize; 3],
    left: Left<T>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
    accumulate: bool,
) {
    if rows == 0 || columns == 0 || depth == 0 {
        return;
    }
    // These are what makes the unchecked accesses of `block` sound.
    let last = (rows - 1) * left.row_stride + (depth - 1) * left.depth_stride;
    assert!(last < left.data.len());
    assert!(b.len() >= (depth - 1) * b_stride + columns);
    assert!(c.len() >= (rows - 1) * c_stride + columns);
    assert!(columns.is_multiple_of(COLUMNS));
    let lanes = size_of::<T::Vector<S>>() / size_of::<T>();
    debug_assert!(COLUMNS.is_multiple_of(lanes));
    let mut column = 0;
    // Two vectors per row while they fit, then one: `lanes` divides the number of columns.
    macro_rules! columns_of {
        ($vectors:literal) => {
            while columns - column >= $vectors * lanes {
                let b = &b[column..];
                let mut row = 0;
                // Tallest first: a remainder of any height takes few steps.
                macro_rules! rows_of {
                    ($height:literal) => {
                        while rows - row >= $height {
                            let a = Left { data: &left.data[row * left.row_stride..], ..left };
                            let c = &mut c[row * c_stride + column..];
                            // SAFETY: rows row..row+height and this strip of columns lie inside
                            // the extents whose last elements were asserted to exist above.
                            unsafe {
                                block::<T, S, $height, $vectors>(
                                    simd, depth, a, b, b_stride, c, c_stride, accumulate,
                                )
                            };
                            row += $height;
                        }
                    };
                }
                // The sums take height x vectors registers; b and a take three more.
                if S::REGISTER_COUNT >= 32 {
                    rows_of!(12);
                }
                rows_of!(6);
                rows_of!(4);
                rows_of!(2);
                rows_of!(1);
                column += $vectors * lanes;
            }
        };
    }
    columns_of!(2);
    columns_of!(1);
}

/// One register tile of H rows and W vectors of columns, summed over the whole depth.
///
/// # Safety
/// With n the number of elements in W vectors: `a` holds element (H-1, depth-1); `b` holds
/// `(depth-1) * b_stride + n` elements; `c` holds `(H-1) * c_stride + n`.
#[inline(always)]
unsafe fn block<T: Float, S: Simd, const H: usize, const W: usize>(
    simd: S,
    depth: usize,
    a: Left<T>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
    accumulate: bool,
) {
    let zero = T::splat(simd, T::ZERO);
    let mut sums = [[zero; W]; H];
    // A pointer for each row: one index then serves all.
    let rows: [*const T; H] = std::array::from_fn(
        #[inline(always)]
        |i| {
            // SAFETY: i < H, and the caller vouches for row H-1.
            unsafe { a.data.as_ptr().add(i * a.row_stride) }
        },
    );
    for p in 0..depth {
        // SAFETY: p < depth, and the caller vouches for depth-1; a vector is plain elements, here
        // read without any demand on alignment.
        let b: [T::Vector<S>; W] =
            unsafe { b.as_ptr().add(p * b_stride).cast::<[T::Vector<S>; W]>().read_unaligned() };
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: p < depth, and the caller vouches for (H-1, depth-1).
            let a = T::splat(simd, unsafe { *row.add(p * a.depth_stride) });
            for (sum, &b) in sums.iter_mut().zip(&b) {
                *sum = T::mul_add_vectors(simd, a, b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter_mut().enumerate() {
        // SAFETY: i < H, and the caller vouches for row H-1 of c; c is a unique borrow.
        unsafe {
            let c = c.as_mut_ptr().add(i * c_stride).cast::<[T::Vector<S>; W]>();
            if accumulate {
                for (sum, c) in sums.iter_mut().zip(c.read_unaligned()) {
                    *sum = T::add_vectors(simd, c, *sum);
                }
            }
            c.write_unaligned(*sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    fn check<T: Float>(extents: [usize; 3], transposed: bool, tolerance: f64) {
        let [rows, columns, depth] = extents;
        let (b_stride, c_stride) = (columns + 3, columns + 1);
        let a: Vec<T> = random(1, rows * depth);
        let b: Vec<T> = random(2, depth * b_stride);
        let mut c: Vec<T> = random(3, rows * c_stride);
        let (row_stride, depth_stride) = if transposed { (1, rows) } else { (depth, 1) };
        let left = Left { data: &a, row_stride, depth_stride };
        let mut expected: Vec<f64> = c.iter().map(|x| x.to_f64()).collect();
        for accumulate in [false, true] {
            for i in 0..rows {
                for j in 0..columns {
                    let sum: f64 = (0..depth)
                        .map(|p| a[i * row_stride + p * depth_stride].to_f64() * b[p * b_stride + j].to_f64())
                        .sum();
                    let c = &mut expected[i * c_stride + j];
                    *c = if accumulate { *c + sum } else { sum };
                }
            }
            Cpu::single().vectorised(Multiply {
                extents,
                left,
                b: &b,
                b_stride,
                c: &mut c,
                c_stride,
                accumulate,
            });
            assert_close(&c, &expected, tolerance);
        }
    }

    struct TallBlock<'a> {
        depth: usize,
        a: Left<'a, f32>,
        b: &'a [f32],
        c: &'a mut [f32],
    }

    impl pulp::WithSimd for TallBlock<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = size_of::<S::f32s>() / size_of::<f32>();
            assert!(self.a.data.len() == 12 * self.depth && self.c.len() == 12 * 2 * COLUMNS);
            assert!(self.b.len() == self.depth * 2 * COLUMNS);
            for column in (0..2 * COLUMNS).step_by(2 * lanes) {
                let (b, c) = (&self.b[column..], &mut self.c[column..]);
                let stride = 2 * COLUMNS;
                // SAFETY: the lengths asserted above hold 12 rows and two vectors from each column.
                unsafe { block::<_, S, 12, 2>(simd, self.depth, self.a, b, stride, c, stride, false) };
            }
        }
    }

    /// The register tile for 32 vector registers, which machines without AVX-512 never choose.
    #[test]
    fn tall_block_agrees_with_the_definition() {
        let depth = 9;
        let (a, b): (Vec<f32>, Vec<f32>) = (random(1, 12 * depth), random(2, depth * 2 * COLUMNS));
        let mut c = vec![f32::NAN; 12 * 2 * COLUMNS];
        let left = Left { data: &a, row_stride: depth, depth_stride: 1 };
        Cpu::single().vectorised(TallBlock { depth, a: left, b: &b, c: &mut c });
        let mut expected = vec![0.0; c.len()];
        for (at, sum) in expected.iter_mut().enumerate() {
            let (i, j) = (at / (2 * COLUMNS), at % (2 * COLUMNS));
            *sum = (0..depth).map(|p| f64::from(a[i * depth + p] * b[p * 2 * COLUMNS + j])).sum();
        }
        assert_close(&c, &expected, 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn agrees_with_the_definition(rows in 1usize..30, strips in 1usize..4, depth in 1usize..20, transposed: bool) {
            let extents = [rows, strips * COLUMNS, depth];
            check::<f32>(extents, transposed, 1e-5);
            check::<f64>(extents, transposed, 1e-13);
        }
    }
}
