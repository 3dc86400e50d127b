//! Sums over a dim and over everything, in an order that depends on lengths alone, but for the sum of
//! squares, where it depends on the number of threads too.
//! Accumulation is in `f64`, whatever the element type. Maxima over the vocabulary are in `loss`.

use crate::cpu::Cpu;
use crate::float::{Float, Sealed};
use crate::parts::{CHEAP, LINE, Loop, Shared, min_rows, part_index};
use crate::storage::{BLOCK, Buffer, Storage};
use pulp::Simd;
use std::ops::Range;

/// Columns summed at a time; their partial sums sit on the stack (8 KiB). Many, so that rows are read in long runs.
const COLUMNS: usize = 1024;

/// Rows added at a time to the partial sums.
const ROWS: usize = 4;

/// Independent partial sums of [`lane_sum`]: enough to hide the latency of an addition.
const LANES: usize = 16;

/// Parts of a sum over everything, at most.
const PARTS: usize = 64;

/// The sum of `term` over three equally long slices, as 16 interleaved partial sums combined by a tree.
///
/// A sum over fewer slices names one of them again: what `term` does not look at is not read.
#[inline(always)]
pub(crate) fn lane_sum<A: Copy, B: Copy, C: Copy>(
    a: &[A],
    b: &[B],
    c: &[C],
    term: impl Fn(A, B, C) -> f64,
) -> f64 {
    assert!(a.len() == b.len() && a.len() == c.len());
    let mut lanes = [0.0_f64; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(a[lane], b[lane], c[lane]);
        }
    }
    for (sum, ((&a, &b), &c)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest).zip(c_rest)) {
        *sum += term(a, b, c);
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

/// The sum of products of two slices of one length, in the wide type.
#[inline(always)]
pub(crate) fn dot<S: Storage, V: Simd>(simd: V, a: &[S], b: &[S]) -> S::Wide {
    let (mut wide_a, mut wide_b) = (Buffer::new(), Buffer::new());
    let mut sum = S::Wide::ZERO;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        sum += S::Wide::dot_short(simd, S::wide_block(a, &mut wide_a), S::wide_block(b, &mut wide_b));
    }
    sum
}

/// Sums over the middle dim.
///
/// # Shape
/// `x` `[outer, reduced, inner]`, `out` `[outer, inner]`.
pub fn sum<S: Storage>(cpu: &Cpu, x: &[S], outer: usize, reduced: usize, inner: usize, out: &mut [S::Wide]) {
    assert_eq!(x.len(), outer * reduced * inner, "x has the wrong length");
    assert_eq!(out.len(), outer * inner, "out has the wrong length");
    if inner == 1 {
        cpu.divide(
            outer,
            LINE,
            min_rows(CHEAP, reduced),
            out,
            #[inline(always)]
            |rows, out| {
                for (row, out) in rows.zip(out) {
                    let row = &x[row * reduced..][..reduced];
                    let total = lane_sum(
                        row,
                        row,
                        row,
                        #[inline(always)]
                        |x, _, _| x.widen().to_f64(),
                    );
                    *out = Float::from_f64(total);
                }
            },
        );
        return;
    }
    cpu.divide(
        out.len(),
        LINE,
        min_rows(CHEAP, reduced),
        out,
        #[inline(always)]
        |part, out| {
            sum_columns(
                x,
                reduced,
                inner,
                part,
                out,
                #[inline(always)]
                |_| 1.0,
            )
        },
    );
}

/// Sums over the middle dim with a weight for each (outer, reduced) pair.
///
/// A weight of exactly zero leaves its row out, even if that row holds NaN.
///
/// # Shape
/// `x` `[outer, reduced, inner]`, `weights` `[outer, reduced]`, `out` `[outer, inner]`.
pub fn weighted_sum<S: Storage>(
    cpu: &Cpu,
    x: &[S],
    weights: &[S::Wide],
    outer: usize,
    reduced: usize,
    inner: usize,
    out: &mut [S],
) {
    assert_eq!(x.len(), outer * reduced * inner, "x has the wrong length");
    assert_eq!(weights.len(), outer * reduced, "weights has the wrong length");
    assert_eq!(out.len(), outer * inner, "out has the wrong length");
    cpu.divide(
        out.len(),
        LINE,
        min_rows(CHEAP, reduced),
        out,
        #[inline(always)]
        |part, out| {
            sum_columns(
                x,
                reduced,
                inner,
                part,
                out,
                #[inline(always)]
                |row| weights[row].to_f64(),
            );
        },
    );
}

/// Weighted sums of the columns whose flat (outer, inner) indices are in `part`; `weight` takes the flat
/// (outer, reduced) index.
#[inline(always)]
fn sum_columns<S: Storage, O: Storage<Wide = S::Wide>>(
    x: &[S],
    reduced: usize,
    inner: usize,
    part: Range<usize>,
    mut out: &mut [O],
    weight: impl Fn(usize) -> f64,
) {
    let mut sums = [0.0_f64; COLUMNS];
    let mut at = part.start;
    while at < part.end {
        let (o, column) = (at / inner, at % inner);
        let (here, rest) = out.split_at_mut(COLUMNS.min(inner - column).min(part.end - at));
        let sums = &mut sums[..here.len()];
        sums.fill(0.0);
        let len = sums.len();
        let mut r = o * reduced;
        while r < (o + 1) * reduced {
            let row = |row: usize| &x[row * inner + column..][..len];
            if r + ROWS <= (o + 1) * reduced && (r..r + ROWS).all(|r| weight(r) != 0.0) {
                let [w0, w1, w2, w3] = [weight(r), weight(r + 1), weight(r + 2), weight(r + 3)];
                let rows = row(r).iter().zip(row(r + 1)).zip(row(r + 2)).zip(row(r + 3));
                for (sum, (((&x0, &x1), &x2), &x3)) in sums.iter_mut().zip(rows) {
                    let sum01 = x1.widen().to_f64().mul_add(w1, x0.widen().to_f64().mul_add(w0, *sum));
                    *sum = x3.widen().to_f64().mul_add(w3, x2.widen().to_f64().mul_add(w2, sum01));
                }
                r += ROWS;
                continue;
            }
            let w = weight(r);
            if w != 0.0 {
                for (sum, &x) in sums.iter_mut().zip(row(r)) {
                    *sum = x.widen().to_f64().mul_add(w, *sum);
                }
            }
            r += 1;
        }
        for (out, &sum) in here.iter_mut().zip(sums.iter()) {
            *out = O::narrow(Float::from_f64(sum));
        }
        at += here.len();
        out = rest;
    }
}

/// The sum of squares of all elements, accumulated in `f64`.
pub fn sum_squares<S: Storage>(cpu: &Cpu, x: &[S]) -> S::Wide {
    let mut sums = [0.0_f64; PARTS];
    let shared = Shared::new(&mut sums);
    cpu.split(x.len(), LINE, CHEAP.max(x.len().div_ceil(PARTS)), |part| {
        let index = part_index(&part, x.len(), PARTS);
        // SAFETY: there are at most PARTS parts, and each has an index of its own.
        let sum = unsafe { shared.part(index..index + 1) };
        let x = &x[part];
        sum[0] = cpu.vectorised(Loop(
            #[inline(always)]
            || {
                lane_sum(
                    x,
                    x,
                    x,
                    #[inline(always)]
                    |x, _, _| {
                        let x = x.widen().to_f64();
                        x * x
                    },
                )
            },
        ));
    });
    Float::from_f64(sums.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, poisoned, random, scalar};
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
        sum(&scalar(), &x, outer, reduced, inner, &mut out);
        assert_close(&out, &plain, tolerance);
        let mut out = poisoned::<T>(outer * inner);
        weighted_sum(&scalar(), &x, &w, outer, reduced, inner, &mut out);
        assert_close(&out, &weighted, tolerance);
        let squares: f64 = x.iter().map(|x| x.to_f64() * x.to_f64()).sum();
        assert_close(&[sum_squares(&scalar(), &x)], &[squares], tolerance);
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
        weighted_sum(&scalar(), &x, &[0.0, 3.0], 1, 2, 1, &mut out);
        assert_eq!(out, [6.0]);
        weighted_sum(&scalar(), &x, &[1.0, 3.0], 1, 2, 1, &mut out);
        assert!(out[0].is_nan());
        assert!(sum_squares(&scalar(), &x).is_nan());
    }
}
