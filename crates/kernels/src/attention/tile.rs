//! Products of small tiles that sit in cache: the inner loops of attention. No masks, no softmax.

use crate::float::Float;

/// Columns of a register tile; column extents are padded to whole multiples of it.
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
/// `columns` is a multiple of [`COLUMNS`]; `R` is the height of the register tile.
#[inline(always)]
pub(super) fn multiply<T: Float, const R: usize>(
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
    // These are what makes the unchecked reads of `block` sound.
    let last = (rows - 1) * left.row_stride + (depth - 1) * left.depth_stride;
    assert!(last < left.data.len());
    assert!((depth - 1) * b_stride + columns <= b.len());
    assert!((rows - 1) * c_stride + columns <= c.len());
    assert!(columns.is_multiple_of(COLUMNS));
    for column in (0..columns).step_by(COLUMNS) {
        let b = &b[column..];
        let mut row = 0;
        // Heights at most R, largest first: a remainder of any size takes few steps.
        macro_rules! rows_of {
            ($height:literal) => {
                while $height <= R && row + $height <= rows {
                    let a = Left { data: &left.data[row * left.row_stride..], ..left };
                    let c = &mut c[row * c_stride + column..];
                    // SAFETY: rows row..row+height and columns column..column+COLUMNS lie inside
                    // the extents whose last elements were asserted to exist above.
                    unsafe { block::<T, $height>(depth, a, b, b_stride, c, c_stride, accumulate) };
                    row += $height;
                }
            };
        }
        rows_of!(12);
        rows_of!(6);
        rows_of!(3);
        rows_of!(2);
        rows_of!(1);
    }
}

/// One register tile of H rows and [`COLUMNS`] columns, summed over the whole depth.
///
/// # Safety
/// `a` holds element (H-1, depth-1); `b` holds `(depth-1) * b_stride + COLUMNS` elements; `c` holds
/// `(H-1) * c_stride + COLUMNS`.
#[inline(always)]
unsafe fn block<T: Float, const H: usize>(
    depth: usize,
    a: Left<T>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
    accumulate: bool,
) {
    debug_assert!((H - 1) * a.row_stride + (depth - 1) * a.depth_stride < a.data.len());
    let mut sums = [[T::ZERO; COLUMNS]; H];
    for p in 0..depth {
        // SAFETY: p < depth, and the caller vouches for depth-1.
        let b = unsafe { &*b.as_ptr().add(p * b_stride).cast::<[T; COLUMNS]>() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: i < H and p < depth, and the caller vouches for (H-1, depth-1).
            let a = unsafe { *a.data.get_unchecked(i * a.row_stride + p * a.depth_stride) };
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = Float::mul_add(a, b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: i < H, and the caller vouches for row H-1 of c; c is a unique borrow.
        let c = unsafe { &mut *c.as_mut_ptr().add(i * c_stride).cast::<[T; COLUMNS]>() };
        for (c, &sum) in c.iter_mut().zip(sums) {
            *c = if accumulate { *c + sum } else { sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, random};
    use proptest::prelude::*;

    fn check<T: Float, const R: usize>(extents: [usize; 3], transposed: bool, tolerance: f64) {
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
            multiply::<T, R>(extents, left, &b, b_stride, &mut c, c_stride, accumulate);
            assert_close(&c, &expected, tolerance);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn agrees_with_the_definition(rows in 1usize..30, strips in 1usize..4, depth in 1usize..20, transposed: bool) {
            let extents = [rows, strips * COLUMNS, depth];
            check::<f32, 12>(extents, transposed, 1e-5);
            check::<f32, 6>(extents, transposed, 1e-5);
            check::<f64, 3>(extents, transposed, 1e-13);
            check::<f64, 1>(extents, transposed, 1e-13);
        }
    }
}
