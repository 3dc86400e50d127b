//! From scores to weights and to their gradients, where rows are keys and lanes are queries, so that nothing is
//! summed across lanes. No product, no memory of tensors.
//!
//! Matrices have rows of `N` elements, of which these functions touch the [`COLUMNS`] of one `part`, in as many rows
//! as `mask` has keys. Loops over lanes either choose or compute: compilers make vectors of either, not of both.

use super::tile::COLUMNS;
use crate::float::Float;
use pulp::Simd;

/// A value for each of some queries.
type Lanes<T> = [T; COLUMNS];

/// Which keys each query sees.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    /// The keys' global indices.
    index: &'a [u32],
    limits: &'a Lanes<u32>,
    /// Whether all queries see all keys.
    full: bool,
}

impl<'a> Mask<'a> {
    #[inline(always)]
    pub(super) fn new(index: &'a [u32], limits: &'a Lanes<u32>) -> Self {
        let highest = index.iter().fold(0, |highest: u32, &index| highest.max(index));
        Mask { index, limits, full: limits.iter().all(|&limit| highest < limit) }
    }
}

#[inline(always)]
fn lanes<T, const N: usize>(row: &[T; N], part: usize) -> &Lanes<T> {
    &row.as_chunks().0[part]
}

#[inline(always)]
fn lanes_mut<T, const N: usize>(row: &mut [T; N], part: usize) -> &mut Lanes<T> {
    &mut row.as_chunks_mut().0[part]
}

#[inline(always)]
fn larger<T: Float>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

/// The largest of `max` and the scores that each query sees; NaN is no score.
#[inline(always)]
pub(super) fn maxima<T: Float, const N: usize>(
    scores: &[[T; N]],
    part: usize,
    mask: Mask,
    max: &mut Lanes<T>,
) {
    let scores = &scores[..mask.index.len()];
    let mut max_of = *max;
    if mask.full {
        // Two chains, for a maximum takes four cycles.
        let mut odd = *max;
        let (pairs, rest) = scores.as_chunks::<2>();
        for [even_row, odd_row] in pairs {
            let (even_row, odd_row) = (lanes(even_row, part), lanes(odd_row, part));
            for i in 0..COLUMNS {
                max_of[i] = larger(even_row[i], max_of[i]);
            }
            for i in 0..COLUMNS {
                odd[i] = larger(odd_row[i], odd[i]);
            }
        }
        for row in rest {
            let row = lanes(row, part);
            for i in 0..COLUMNS {
                max_of[i] = larger(row[i], max_of[i]);
            }
        }
        for i in 0..COLUMNS {
            max_of[i] = larger(odd[i], max_of[i]);
        }
    } else {
        for (row, &index) in scores.iter().zip(mask.index) {
            let row = lanes(row, part);
            for i in 0..COLUMNS {
                // One choice: two would not be vectorised.
                let larger = (index < mask.limits[i]) & (row[i] > max_of[i]);
                max_of[i] = if larger { row[i] } else { max_of[i] };
            }
        }
    }
    *max = max_of;
}

/// Brings sums of weights, and rows that were summed with them, from one shift to a later one.
#[inline(always)]
pub(super) fn rescale<T: Float, V: Simd, const N: usize>(
    simd: V,
    before: &Lanes<T>,
    shift: &Lanes<T>,
    part: usize,
    sum: &mut Lanes<T>,
    out: &mut [[T; N]],
) {
    let mut factors = [T::ZERO; COLUMNS];
    for i in 0..COLUMNS {
        factors[i] = Float::exp(before[i] - shift[i]);
    }
    for i in 0..COLUMNS {
        sum[i] *= factors[i];
    }
    multiply_rows(simd, out, part, |_| &factors);
}

/// Multiplies rows by factors, each by its own.
///
/// In vectors by name: compilers see sixteen columns to make vectors of, with a transpose before and after.
#[inline(always)]
fn multiply_rows<'a, T: Float, V: Simd, const N: usize>(
    simd: V,
    rows: &mut [[T; N]],
    part: usize,
    factors: impl Fn(usize) -> &'a Lanes<T>,
) {
    let lanes = size_of::<T::Vector<V>>() / size_of::<T>();
    let zero = T::splat(simd, T::ZERO);
    for (i, row) in rows.iter_mut().enumerate() {
        let (row, factors) = (lanes_mut(row, part), factors(i));
        for first in (0..COLUMNS).step_by(lanes) {
            let (row, factors) = (&mut row[first..first + lanes], &factors[first..first + lanes]);
            let row = row.as_mut_ptr().cast::<T::Vector<V>>();
            // SAFETY: a vector is that many elements, here without any demand on alignment.
            unsafe {
                let factors = factors.as_ptr().cast::<T::Vector<V>>().read_unaligned();
                row.write_unaligned(T::mul_add_vectors(simd, row.read_unaligned(), factors, zero));
            }
        }
    }
}

/// Turns the scores of keys that are seen into exp(score - shift), times the factors, and the others into 0. What
/// they are before the factors is added to `sum`.
#[inline(always)]
pub(super) fn weights<T: Float, V: Simd, const N: usize>(
    simd: V,
    scores: &mut [[T; N]],
    part: usize,
    mask: Mask,
    shift: &Lanes<T>,
    factors: Option<&[[T; N]]>,
    sum: &mut Lanes<T>,
) {
    let scores = &mut scores[..mask.index.len()];
    for (row, &index) in scores.iter_mut().zip(mask.index) {
        let row = lanes_mut(row, part);
        for i in 0..COLUMNS {
            row[i] = unless_unseen(Float::exp(row[i] - shift[i]), index, mask.limits[i]);
        }
    }
    let mut sums = *sum;
    let (quads, rest) = scores.as_chunks::<4>();
    for [a, b, c, d] in quads {
        let [a, b, c, d] = [lanes(a, part), lanes(b, part), lanes(c, part), lanes(d, part)];
        for i in 0..COLUMNS {
            sums[i] += (a[i] + b[i]) + (c[i] + d[i]);
        }
    }
    for row in rest {
        let row = lanes(row, part);
        for i in 0..COLUMNS {
            sums[i] += row[i];
        }
    }
    *sum = sums;
    if let Some(factors) = factors {
        multiply_rows(simd, scores, part, |i| lanes(&factors[i], part));
    }
}

/// `x`, or 0 if a query with this limit does not see the key: after the fact, so that a NaN in what is known of
/// the query does not reach it.
#[inline(always)]
fn unless_unseen<T: Float>(x: T, index: u32, limit: u32) -> T {
    if index < limit { x } else { T::ZERO }
}

/// Turns scores into weights, times the factors, and gradients by the weights into gradients by the scores.
#[inline(always)]
pub(super) fn gradients<T: Float, V: Simd, const N: usize>(
    simd: V,
    scores: &mut [[T; N]],
    d_weights: &mut [[T; N]],
    part: usize,
    mask: Mask,
    lse: &Lanes<T>,
    delta: &Lanes<T>,
    factors: Option<&[[T; N]]>,
) {
    let (scores, d_weights) = (&mut scores[..mask.index.len()], &mut d_weights[..mask.index.len()]);
    if let Some(factors) = factors {
        multiply_rows(simd, d_weights, part, |i| lanes(&factors[i], part));
    }
    for ((w, d), &index) in scores.iter_mut().zip(d_weights).zip(mask.index) {
        let (w, d) = (lanes_mut(w, part), lanes_mut(d, part));
        for i in 0..COLUMNS {
            let p = unless_unseen(Float::exp(w[i] - lse[i]), index, mask.limits[i]);
            d[i] = unless_unseen(p * (d[i] - delta[i]), index, mask.limits[i]);
            w[i] = p;
        }
    }
    if let Some(factors) = factors {
        multiply_rows(simd, scores, part, |i| lanes(&factors[i], part));
    }
}
