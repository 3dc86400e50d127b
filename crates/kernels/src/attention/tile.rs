//! Products and transposes of small matrices that sit in cache: the inner loops of attention. No mask, no softmax.

use crate::float::Float;
use pulp::{Simd, WithSimd};
#[cfg(target_arch = "x86_64")]
use std::any::TypeId;

/// Column extents are padded to whole multiples of this: no instruction set has longer vectors.
pub(super) const COLUMNS: usize = 16;

/// The left operand: element (row, depth) is at `row * ROW + depth * depth_stride`.
///
/// With `ROW` known the elements of a column are at constant distances, and take no instructions to find.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, T, const ROW: usize> {
    pub(super) data: &'a [T],
    pub(super) depth_stride: usize,
}

/// `c = left b`, or `c += left b` with `accumulate`; `b` and `c` have contiguous rows.
///
/// `columns` is a multiple of [`COLUMNS`]. Compiled once for each type and instruction set, not for each call:
/// that is most of the time this crate takes to compile.
#[inline(always)]
pub(super) fn multiply<T: Float, V: Simd, const ROW: usize>(
    simd: V,
    extents: [usize; 3],
    left: Left<T, ROW>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
    accumulate: bool,
) {
    simd.vectorize(Multiply { extents, left, b, b_stride, c, c_stride, accumulate });
}

struct Multiply<'a, T, const ROW: usize> {
    extents: [usize; 3],
    left: Left<'a, T, ROW>,
    b: &'a [T],
    b_stride: usize,
    c: &'a mut [T],
    c_stride: usize,
    accumulate: bool,
}

impl<T: Float, const ROW: usize> WithSimd for Multiply<'_, T, ROW> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) {
        let Multiply { extents, left, b, b_stride, c, c_stride, accumulate } = self;
        multiply_inline(simd, extents, left, b, b_stride, c, c_stride, accumulate);
    }
}

#[inline(always)]
fn multiply_inline<T: Float, S: Simd, const ROW: usize>(
    simd: S,
    [rows, columns, depth]: [usize; 3],
    left: Left<T, ROW>,
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
    let last = (rows - 1) * ROW + (depth - 1) * left.depth_stride;
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
                macro_rules! block_of {
                    ($height:literal) => {{
                        let a = Left { data: &left.data[row * ROW..], ..left };
                        let c = &mut c[row * c_stride + column..];
                        // SAFETY: rows row..row+height and this strip of columns lie inside
                        // the extents whose last elements were asserted to exist above.
                        unsafe {
                            block::<T, S, ROW, $height, $vectors>(
                                simd, depth, a, b, b_stride, c, c_stride, accumulate,
                            )
                        };
                        row += $height;
                    }};
                }
                // Tallest first: a remainder of any height takes few steps. The sums take height x vectors
                // registers; b and a take three more. Few sums are slow, for each waits for the one before it:
                // 16 rows are better 8 and 8.
                while row < rows {
                    match rows - row {
                        8 | 16 if S::REGISTER_COUNT >= 32 => block_of!(8),
                        12.. if S::REGISTER_COUNT >= 32 => block_of!(12),
                        9..12 if S::REGISTER_COUNT >= 32 => block_of!(8),
                        6.. => block_of!(6),
                        4.. => block_of!(4),
                        2.. => block_of!(2),
                        _ => block_of!(1),
                    }
                }
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
unsafe fn block<T: Float, S: Simd, const ROW: usize, const H: usize, const W: usize>(
    simd: S,
    depth: usize,
    a: Left<T, ROW>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
    accumulate: bool,
) {
    let zero = T::splat(simd, T::ZERO);
    let mut sums = [[zero; W]; H];
    for p in 0..depth {
        // SAFETY: p < depth, and the caller vouches for depth-1; a vector is plain elements, here
        // read without any demand on alignment.
        let b: [T::Vector<S>; W] =
            unsafe { b.as_ptr().add(p * b_stride).cast::<[T::Vector<S>; W]>().read_unaligned() };
        // SAFETY: as above for p; rows 0..H of this column are read below.
        let column = unsafe { a.data.as_ptr().add(p * a.depth_stride) };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: p < depth and i < H, and the caller vouches for (H-1, depth-1).
            let a = T::splat(simd, unsafe { *column.add(i * ROW) });
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

/// `to = from` transposed, of which `rows` and `columns` are multiples of [`COLUMNS`].
#[inline(always)]
pub(super) fn transpose<T: Float, V: Simd>(
    simd: V,
    [rows, columns]: [usize; 2],
    from: &[T],
    from_stride: usize,
    to: &mut [T],
    to_stride: usize,
) {
    simd.vectorize(Transpose { extents: [rows, columns], from, from_stride, to, to_stride });
}

/// Compiled once, as [`Multiply`].
struct Transpose<'a, T> {
    extents: [usize; 2],
    from: &'a [T],
    from_stride: usize,
    to: &'a mut [T],
    to_stride: usize,
}

impl<T: Float> WithSimd for Transpose<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, _: V) {
        let Transpose { extents: [rows, columns], from, from_stride, to, to_stride } = self;
        assert!(rows.is_multiple_of(COLUMNS) && columns.is_multiple_of(COLUMNS));
        for row in (0..rows).step_by(COLUMNS) {
            for column in (0..columns).step_by(COLUMNS) {
                let from = &from[row * from_stride + column..];
                let to = &mut to[column * to_stride + row..];
                #[cfg(target_arch = "x86_64")]
                if TypeId::of::<V>() == TypeId::of::<pulp::x86::V4>() && size_of::<T>() == 4 {
                    // SAFETY: the vectors of V4 are those of AVX-512.
                    unsafe { transpose_words(from, from_stride, to, to_stride) };
                    continue;
                }
                for i in 0..COLUMNS {
                    for j in 0..COLUMNS {
                        to[j * to_stride + i] = from[i * from_stride + j];
                    }
                }
            }
        }
    }
}

/// The transpose of 16 rows of 16 elements of four bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_words<T: Float>(from: &[T], from_stride: usize, to: &mut [T], to_stride: usize) {
    use std::arch::x86_64::*;
    assert!(size_of::<T>() == 4);
    let mut rows = [_mm512_setzero_si512(); 16];
    for (i, row) in rows.iter_mut().enumerate() {
        let from = &from[i * from_stride..][..16];
        // SAFETY: 64 bytes.
        *row = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
    }
    for (i, column) in super::amx::transpose(rows).into_iter().enumerate() {
        let to = &mut to[i * to_stride..][..16];
        // SAFETY: 64 bytes; any bits that were elements are.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), column) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::testing::{assert_close, cpus, random};
    use proptest::prelude::*;

    fn check<T: Float, const ROW: usize>(extents: [usize; 3], tolerance: f64) {
        let [rows, columns, depth] = extents;
        let (b_stride, c_stride) = (columns + 3, columns + 1);
        // Columns of rows side by side, or rows of elements side by side.
        let depth_stride = if ROW == 1 { rows + 2 } else { 1 };
        let a: Vec<T> = random(1, (rows - 1) * ROW + (depth - 1) * depth_stride + 1);
        let b: Vec<T> = random(2, depth * b_stride);
        let mut c: Vec<T> = random(3, rows * c_stride);
        let left = Left::<T, ROW> { data: &a, depth_stride };
        let mut expected: Vec<f64> = c.iter().map(|x| x.to_f64()).collect();
        for accumulate in [false, true] {
            for i in 0..rows {
                for j in 0..columns {
                    let sum: f64 = (0..depth)
                        .map(|p| a[i * ROW + p * depth_stride].to_f64() * b[p * b_stride + j].to_f64())
                        .sum();
                    let c = &mut expected[i * c_stride + j];
                    *c = if accumulate { *c + sum } else { sum };
                }
            }
            for cpu in cpus() {
                let mut c = c.clone();
                cpu.vectorised(Multiply { extents, left, b: &b, b_stride, c: &mut c, c_stride, accumulate });
                assert_close(&c, &expected, tolerance);
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
        }
    }

    fn check_transpose<T: Float>(rows: usize, columns: usize) {
        let (from_stride, to_stride) = (columns + 3, rows + 1);
        let from: Vec<T> = random(1, rows * from_stride);
        for cpu in cpus() {
            let mut to: Vec<T> = random(2, columns * to_stride);
            let mut expected = to.clone();
            for i in 0..rows {
                for j in 0..columns {
                    expected[j * to_stride + i] = from[i * from_stride + j];
                }
            }
            let extents = [rows, columns];
            cpu.vectorised(Transpose { extents, from: &from, from_stride, to: &mut to, to_stride });
            assert!(to == expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn products_agree_with_the_definition(rows in 1usize..50, strips in 1usize..4, depth in 1usize..20) {
            let extents = [rows, strips * COLUMNS, depth];
            check::<f32, 1>(extents, 1e-5);
            check::<f64, 1>(extents, 1e-13);
            check::<f32, 64>(extents, 1e-5);
            check::<f64, 64>(extents, 1e-13);
        }

        #[test]
        fn transposes_agree_with_the_definition(rows in 1usize..4, columns in 1usize..4) {
            check_transpose::<f32>(rows * COLUMNS, columns * COLUMNS);
            check_transpose::<f64>(rows * COLUMNS, columns * COLUMNS);
        }
    }
}
