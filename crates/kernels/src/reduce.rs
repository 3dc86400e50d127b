//! Sums over a dim and over everything, in an order that depends on lengths alone.
//! Accumulation is in `f64`, whatever the element type. Maxima over the vocabulary are in `loss`.

use crate::float::{Float, vectorised};

/// Columns summed at a time; their partial sums sit on the stack (2 KiB).
const COLUMNS: usize = 256;

/// Independent partial sums of [`lane_sum`]: enough to hide the latency of an addition.
const LANES: usize = 16;

/// The sum of `term` over equally long slices, as 16 interleaved partial sums combined by a tree.
#[inline(always)]
pub(crate) fn lane_sum<T: Float, const S: usize>(slices: [&[T]; S], term: impl Fn([T; S]) -> f64) -> f64 {
    let len = slices[0].len();
    assert!(slices.iter().all(|s| s.len() == len));
    let mut lanes = [0.0_f64; LANES];
    let split = slices.map(
        #[inline(always)]
        |s| s.as_chunks::<LANES>(),
    );
    for block in 0..len / LANES {
        let chunk: [&[T; LANES]; S] = std::array::from_fn(
            #[inline(always)]
            |s| &split[s].0[block],
        );
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(std::array::from_fn(
                #[inline(always)]
                |s| chunk[s][lane],
            ));
        }
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(len % LANES) {
        *sum += term(std::array::from_fn(
            #[inline(always)]
            |s| split[s].1[lane],
        ));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sums over the middle dim.
///
/// # Shape
/// `x` `[outer, reduced, inner]`, `out` `[outer, inner]`.
pub fn sum<T: Float>(x: &[T], outer: usize, reduced: usize, inner: usize, out: &mut [T]) {
    assert_eq!(x.len(), outer * reduced * inner, "x has the wrong length");
    assert_eq!(out.len(), outer * inner, "out has the wrong length");
    vectorised(
        #[inline(always)]
        || {
            if inner == 1 {
                for (o, out) in out.iter_mut().enumerate() {
                    let row = &x[o * reduced..][..reduced];
                    *out = T::from_f64(lane_sum(
                        [row],
                        #[inline(always)]
                        |[x]| x.to_f64(),
                    ));
                }
            } else {
                sum_columns(
                    x,
                    reduced,
                    inner,
                    out,
                    #[inline(always)]
                    |_| 1.0,
                );
            }
        },
    );
}

/// Sums over the middle dim with a weight for each (outer, reduced) pair.
///
/// A weight of exactly zero leaves its row out, even if that row holds NaN.
///
/// # Shape
/// `x` `[outer, reduced, inner]`, `w` `[outer, reduced]`, `out` `[outer, inner]`.
pub fn weighted_sum<T: Float>(x: &[T], w: &[T], outer: usize, reduced: usize, inner: usize, out: &mut [T]) {
    assert_eq!(x.len(), outer * reduced * inner, "x has the wrong length");
    assert_eq!(w.len(), outer * reduced, "w has the wrong length");
    assert_eq!(out.len(), outer * inner, "out has the wrong length");
    vectorised(
        #[inline(always)]
        || {
            sum_columns(
                x,
                reduced,
                inner,
                out,
                #[inline(always)]
                |row| w[row].to_f64(),
            );
        },
    );
}

/// Weighted sums of columns; `weight` takes the flat (outer, reduced) index.
#[inline(always)]
fn sum_columns<T: Float>(
    x: &[T],
    reduced: usize,
    inner: usize,
    out: &mut [T],
    weight: impl Fn(usize) -> f64,
) {
    if inner == 0 {
        return;
    }
    let mut sums = [0.0_f64; COLUMNS];
    for (o, out) in out.chunks_exact_mut(inner).enumerate() {
        for (block, out) in out.chunks_mut(COLUMNS).enumerate() {
            let sums = &mut sums[..out.len()];
            sums.fill(0.0);
            for r in o * reduced..(o + 1) * reduced {
                let w = weight(r);
                if w == 0.0 {
                    continue;
                }
                let row = &x[r * inner + block * COLUMNS..][..sums.len()];
                for (sum, &x) in sums.iter_mut().zip(row) {
                    *sum = x.to_f64().mul_add(w, *sum);
                }
            }
            for (out, &sum) in out.iter_mut().zip(sums.iter()) {
                *out = T::from_f64(sum);
            }
        }
    }
}

/// The sum of squares of all elements, accumulated in `f64`.
pub fn sum_squares<T: Float>(x: &[T]) -> T {
    T::from_f64(vectorised(
        #[inline(always)]
        || {
            lane_sum(
                [x],
                #[inline(always)]
                |[x]| x.to_f64() * x.to_f64(),
            )
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, poisoned, random};
    use proptest::prelude::*;

    fn check<T: Float>(outer: usize, reduced: usize, inner: usize, tolerance: f64) {
        let x: Vec<T> = random(1, outer * reduced * inner);
        let w: Vec<T> = random(2, outer * reduced);
        let (mut plain, mut weighted) = (vec![0.0; outer * inner], vec![0.0; outer * inner]);
        for o in 0..outer {
            for r in 0..reduced {
                for i in 0..inner {
                    let value = x[(o * reduced + r) * inner + i].to_f64();
                    plain[o * inner + i] += value;
                    weighted[o * inner + i] += value * w[o * reduced + r].to_f64();
                }
            }
        }
        let mut out = poisoned::<T>(outer * inner);
        sum(&x, outer, reduced, inner, &mut out);
        assert_close(&out, &plain, tolerance);
        let mut out = poisoned::<T>(outer * inner);
        weighted_sum(&x, &w, outer, reduced, inner, &mut out);
        assert_close(&out, &weighted, tolerance);
        let squares: f64 = x.iter().map(|x| x.to_f64() * x.to_f64()).sum();
        assert_close(&[sum_squares(&x)], &[squares], tolerance);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(outer in 0usize..4, reduced in 0usize..40, inner in 0usize..20) {
            check::<f64>(outer, reduced, inner, 1e-13);
            check::<f32>(outer, reduced, inner, 1e-6);
        }
    }

    #[test]
    fn wide_rows_cross_column_blocks() {
        check::<f32>(2, 3, 2 * COLUMNS + 5, 1e-6);
    }

    #[test]
    fn zero_weight_hides_nan_and_other_weights_show_it() {
        let x = [f32::NAN, 2.0];
        let mut out = poisoned(1);
        weighted_sum(&x, &[0.0, 3.0], 1, 2, 1, &mut out);
        assert_eq!(out, [6.0]);
        weighted_sum(&x, &[1.0, 3.0], 1, 2, 1, &mut out);
        assert!(out[0].is_nan());
        assert!(sum_squares(&x).is_nan());
    }
}
