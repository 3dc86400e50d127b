//! Rotary position embedding by given frequencies: plain powers or one of the scalings for long contexts.

use crate::cpu::Cpu;
use crate::float::Float;
use crate::math;
use crate::parts::{COSTLY, min_rows, rows_of};
use crate::storage::Storage;
use std::ops::Range;

/// Pairs rotated at a time; their frequencies, sines and cosines sit on the stack.
const PAIRS: usize = 32;

/// Rotates pairs (i, i + head_dim/2) of each head by position * frequencies\[i\] and scales them by `factor`.
///
/// `inverse` rotates back, which with the same factor is also the gradient. Angles are computed in `f64`.
///
/// # Shape
/// `x`, `out` `[rows, heads, head_dim]`; `positions` `[rows]`; `frequencies` `[head_dim / 2]`.
///
/// # Source
/// Su et al., "RoFormer", 2021, with the half-split pairing of Hugging Face's Llama.
pub fn rotary<S: Storage>(
    cpu: &Cpu,
    x: &[S],
    positions: &[i32],
    heads: usize,
    frequencies: &[f64],
    factor: f64,
    inverse: bool,
    out: &mut [S],
) {
    let (half, head_dim) = (frequencies.len(), 2 * frequencies.len());
    let row_len = heads * head_dim;
    assert_eq!(x.len(), positions.len() * row_len, "x has the wrong length");
    assert_eq!(out.len(), x.len(), "out has the wrong length");
    let direction = if inverse { -1.0 } else { 1.0 };
    for start in (0..half).step_by(PAIRS) {
        let width = PAIRS.min(half - start);
        let mut frequency = [0.0; PAIRS];
        for (i, f) in frequency.iter_mut().enumerate().take(width) {
            *f = direction * frequencies[start + i];
        }
        cpu.divide(
            positions.len(),
            1,
            min_rows(COSTLY, row_len),
            &mut *out,
            #[inline(always)]
            |rows, out| {
                let x = rows_of(x, &rows, row_len);
                rotate_pairs(x, &positions[rows], head_dim, start..start + width, &frequency, factor, out);
            },
        );
    }
}

/// Rotates the pairs in `pairs` of every head of every row.
#[inline(always)]
fn rotate_pairs<S: Storage>(
    x: &[S],
    positions: &[i32],
    head_dim: usize,
    pairs: Range<usize>,
    frequency: &[f64; PAIRS],
    factor: f64,
    out: &mut [S],
) {
    let (half, width) = (head_dim / 2, pairs.len());
    let row_len = x.len() / positions.len().max(1);
    let (mut cos, mut sin) = ([S::Wide::ZERO; PAIRS], [S::Wide::ZERO; PAIRS]);
    for (row, &position) in positions.iter().enumerate() {
        let position = f64::from(position);
        for ((c, s), f) in cos.iter_mut().zip(&mut sin).zip(frequency) {
            let (sine, cosine) = math::sin_cos(position * f);
            (*s, *c) = (S::Wide::from_f64(factor * sine), S::Wide::from_f64(factor * cosine));
        }
        for head in (0..row_len).step_by(head_dim) {
            let at = row * row_len + head + pairs.start;
            let first = &x[at..][..width];
            let second = &x[at + half..][..width];
            let (out_first, out_second) = out[at..][..half + width].split_at_mut(half);
            let (out_first, out_second) = (&mut out_first[..width], &mut out_second[..width]);
            for i in 0..width {
                let (a, b) = (first[i].widen(), second[i].widen());
                out_first[i] = S::narrow(a * cos[i] - b * sin[i]);
                out_second[i] = S::narrow(b * cos[i] + a * sin[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, poisoned, random, scalar};
    use proptest::prelude::*;

    fn check<T: Float>(positions: &[i32], heads: usize, half: usize, factor: f64, tolerance: f64) {
        let (head_dim, theta) = (2 * half, 10_000.0_f64);
        let frequencies: Vec<f64> =
            (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let x: Vec<T> = random(1, positions.len() * heads * head_dim);
        let mut expected = vec![0.0; x.len()];
        for (row, &position) in positions.iter().enumerate() {
            for head in 0..heads {
                let at = (row * heads + head) * head_dim;
                for i in 0..half {
                    let angle = f64::from(position) * theta.powf(-2.0 * i as f64 / head_dim as f64);
                    let (a, b) = (x[at + i].to_f64(), x[at + half + i].to_f64());
                    expected[at + i] = factor * (a * angle.cos() - b * angle.sin());
                    expected[at + half + i] = factor * (b * angle.cos() + a * angle.sin());
                }
            }
        }
        let mut y = poisoned::<T>(x.len());
        rotary(&scalar(), &x, positions, heads, &frequencies, factor, false, &mut y);
        assert_close(&y, &expected, tolerance);
        let mut back = poisoned::<T>(x.len());
        rotary(&scalar(), &y, positions, heads, &frequencies, factor, true, &mut back);
        let x: Vec<f64> = x.iter().map(|x| factor * factor * x.to_f64()).collect();
        assert_close(&back, &x, tolerance);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn rotates_and_rotates_back(
            positions in prop::collection::vec(0i32..100_000, 0..6), heads in 1usize..4, half in 1usize..70,
            factor in 0.5..1.5,
        ) {
            check::<f64>(&positions, heads, half, factor, 1e-14);
            check::<f32>(&positions, heads, half, factor, 1e-6);
        }
    }
}
