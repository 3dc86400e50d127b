//! Heads that hold a NaN or an infinity, key by key: slow, and only what a query sees touches it. No tile here.
//!
//! The passes over tiles multiply by weights of 0 for keys that a query does not see, and 0 times infinity is NaN.

use super::relative::{BiasGradient, RelativeBias};
use super::{AttentionShape, Head, HeadDropout};
use crate::float::Float;
use crate::parts::Shared;
use crate::storage::Storage;

const LANES: usize = 16;

/// Whether all elements are finite.
#[inline(always)]
pub(super) fn is_finite<'a, S: Storage>(rows: impl Iterator<Item = &'a [S]>) -> bool {
    // 0 times a number is 0, and times anything else NaN, which stays. Several vectors, for each waits for itself.
    const LANES: usize = 64;
    let mut sums = [S::Wide::ZERO; LANES];
    for row in rows {
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &x) in sums.iter_mut().zip(chunk) {
                *sum = x.widen().mul_add(S::Wide::ZERO, *sum);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(rest) {
            *sum = x.widen().mul_add(S::Wide::ZERO, *sum);
        }
    }
    sums.iter().all(|&sum| sum == S::Wide::ZERO)
}

/// The keys that a query sees and the positions of their rows.
#[inline(always)]
fn seen<'a>(
    shape: &'a AttentionShape,
    batch: usize,
    kv: usize,
    query: usize,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let limit = shape.limit(query);
    let keys = shape.k_index.iter().enumerate().filter(move |&(_, &index)| index < limit);
    keys.map(move |(key, _)| (key, shape.k_row(batch, key, kv) * shape.head_dim))
}

#[inline(always)]
fn dot<S: Storage>(a: &[S], b: &[S]) -> S::Wide {
    let mut sums = [S::Wide::ZERO; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.widen().mul_add(b.widen(), *sum);
        }
    }
    sums.into_iter().fold(S::Wide::ZERO, |sum, x| sum + x)
}

/// `sum += factor x`
#[inline(always)]
fn add_row<S: Storage>(x: &[S], factor: S::Wide, sum: &mut [S::Wide]) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum = x.widen().mul_add(factor, *sum);
    }
}

#[inline(always)]
fn factor_of<T: Float>(
    shape: &AttentionShape,
    dropout: Option<&HeadDropout<T>>,
    query: usize,
    key: usize,
) -> T {
    let mut factor = [T::ONE];
    if let Some(dropout) = dropout {
        dropout.factors(query, &shape.k_index[key..=key], &mut factor);
    }
    factor[0]
}

/// The forward pass of one key-value head. `sums` holds a row, or more.
#[inline(always)]
pub(super) fn forward<S: Storage>(
    shape: &AttentionShape,
    batch: usize,
    kv: usize,
    [q, k, v]: [&[S]; 3],
    bias: Option<&RelativeBias<S::Wide>>,
    o: &Shared<S>,
    lse: &Shared<S::Wide>,
    sums: &mut [S::Wide],
) {
    let head_dim = shape.head_dim;
    let scale = S::Wide::from_f64(shape.scale);
    let out = &mut sums[..head_dim];
    for head in (0..shape.group).map(|group| Head { kv, group }) {
        let dropout = HeadDropout::new(shape, batch, head);
        for query in 0..shape.q_len {
            let row = shape.q_row(batch, query, head);
            let columns = row * head_dim..(row + 1) * head_dim;
            let q = &q[columns.clone()];
            let score = |key: usize, at: usize| {
                let bias = bias.map_or(S::Wide::ZERO, |bias| bias.of(shape, head, query, key));
                scale * dot(q, &k[at..][..head_dim]) + bias
            };
            let mut max = S::Wide::NEG_INFINITY;
            for (key, at) in seen(shape, batch, kv, query) {
                max = score(key, at).max(max);
            }
            let shift = if max == S::Wide::NEG_INFINITY { S::Wide::ZERO } else { max };
            let mut sum = S::Wide::ZERO;
            out.fill(S::Wide::ZERO);
            for (key, at) in seen(shape, batch, kv, query) {
                let weight = Float::exp(score(key, at) - shift);
                sum += weight;
                let weight = weight * factor_of(shape, dropout.as_ref(), query, key);
                add_row(&v[at..][..head_dim], weight, out);
            }
            let unseen = sum == S::Wide::ZERO;
            let inverse = if unseen { S::Wide::ZERO } else { S::Wide::ONE / sum };
            // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
            let (lse, o) = unsafe { (lse.part(row..row + 1), o.part(columns)) };
            lse[0] = if unseen { S::Wide::NEG_INFINITY } else { max + Float::ln(sum) };
            super::narrow_row(out, inverse, o);
        }
    }
}

/// The backward pass of one key-value head. The sums hold a row, and twice as much as its keys, or more.
#[inline(always)]
pub(super) fn backward<S: Storage>(
    shape: &AttentionShape,
    batch: usize,
    kv: usize,
    [q, k, v, o, d_o]: [&[S]; 5],
    lse: &[S::Wide],
    bias: Option<&BiasGradient<S::Wide>>,
    [to_dq, to_dk, to_dv]: [&Shared<S>; 3],
    [dq, dk, dv]: [&mut [S::Wide]; 3],
) {
    let head_dim = shape.head_dim;
    let scale = S::Wide::from_f64(shape.scale);
    let dq = &mut dq[..head_dim];
    dk.fill(S::Wide::ZERO);
    dv.fill(S::Wide::ZERO);
    for head in (0..shape.group).map(|group| Head { kv, group }) {
        let dropout = HeadDropout::new(shape, batch, head);
        for query in 0..shape.q_len {
            let row = shape.q_row(batch, query, head);
            let columns = row * head_dim..(row + 1) * head_dim;
            let (q, o, d_o) = (&q[columns.clone()], &o[columns.clone()], &d_o[columns.clone()]);
            let blind = lse[row] == S::Wide::NEG_INFINITY;
            let shift = if blind { S::Wide::ZERO } else { lse[row] };
            let delta = dot(o, d_o);
            dq.fill(S::Wide::ZERO);
            for (key, at) in seen(shape, batch, kv, query) {
                let (k, v) = (&k[at..][..head_dim], &v[at..][..head_dim]);
                let of_key = bias.map_or(S::Wide::ZERO, |bias| bias.of.of(shape, head, query, key));
                let weight = Float::exp(scale * dot(q, k) + of_key - shift);
                let factor = factor_of(shape, dropout.as_ref(), query, key);
                let d_score = weight * (dot(d_o, v) * factor - delta);
                let row = key * head_dim..(key + 1) * head_dim;
                if let Some(bias) = bias {
                    bias.add(shape, batch, head, query, key, d_score);
                }
                add_row(d_o, weight * factor, &mut dv[row.clone()]);
                add_row(q, d_score * scale, &mut dk[row]);
                add_row(k, d_score, dq);
            }
            // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
            super::narrow_row(dq, scale, unsafe { to_dq.part(columns) });
        }
    }
    for key in 0..shape.k_len {
        let (at, row) = (shape.k_row(batch, key, kv) * head_dim, key * head_dim..(key + 1) * head_dim);
        // SAFETY: as above.
        let (to_dk, to_dv) = unsafe { (to_dk.part(at..at + head_dim), to_dv.part(at..at + head_dim)) };
        super::narrow_row(&dk[row.clone()], S::Wide::ONE, to_dk);
        super::narrow_row(&dv[row], S::Wide::ONE, to_dv);
    }
}
