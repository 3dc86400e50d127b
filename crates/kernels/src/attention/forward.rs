//! The forward pass: online softmax over tiles of keys.

use super::tile::{COLUMNS, Left, multiply};
use super::*;

/// Arguments of [`attention_forward`], for some of the heads.
pub(super) struct Forward<'a, S: Storage> {
    pub(super) shape: &'a AttentionShape<'a>,
    /// (Sequence, key-value head) pairs.
    pub(super) heads: Range<usize>,
    pub(super) q: &'a [S],
    pub(super) k: &'a [S],
    pub(super) v: &'a [S],
    /// Rows of `heads` are written.
    pub(super) o: &'a Shared<'a, S>,
    /// Rows of `heads` are written.
    pub(super) lse: &'a Shared<'a, S::Wide>,
    pub(super) scratch: Scratch<'a, S::Wide>,
}

impl<S: Storage> WithSimd for Forward<'_, S> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) {
        self.run(simd);
    }
}

/// Pieces of scratch: one head's keys and values, and one tile of everything else.
struct Tiles<'a, T> {
    keys_transposed: &'a mut [T],
    values: &'a mut [T],
    queries: &'a mut [T],
    scores: &'a mut [T],
    out: &'a mut [T],
}

impl<S: Storage> Forward<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(mut self, simd: V) {
        let shape = self.shape;
        let (keys, row) = (shape.padded_keys(), shape.row_stride());
        let mut tiles = Tiles {
            keys_transposed: self.scratch.take(keys / KEYS * shape.padded_head_dim() * KEY_STRIDE),
            values: self.scratch.take(keys * row),
            queries: self.scratch.take(QUERIES * row),
            scores: self.scratch.take(QUERIES * KEY_STRIDE),
            out: self.scratch.take(QUERIES * row),
        };
        for head in self.heads.clone() {
            let (batch, kv) = (head / shape.kv_heads, head % shape.kv_heads);
            pack_transposed(shape, batch, kv, self.k, tiles.keys_transposed);
            pack_rows(shape, batch, kv, self.v, tiles.values);
            for group in 0..shape.group {
                let head = Head { kv, group };
                let dropout = HeadDropout::new(shape, batch, head);
                for first in (0..shape.q_len).step_by(QUERIES) {
                    self.query_tile(simd, batch, head, first, dropout.as_ref(), &mut tiles);
                }
            }
        }
    }

    /// All keys for up to [`QUERIES`] queries of one head.
    #[inline(always)]
    fn query_tile<V: Simd>(
        &self,
        simd: V,
        batch: usize,
        head: Head,
        first: usize,
        dropout: Option<&HeadDropout<S::Wide>>,
        tiles: &mut Tiles<S::Wide>,
    ) {
        let shape = self.shape;
        let (width, head_dim, stride) = (shape.padded_head_dim(), shape.head_dim, shape.row_stride());
        let rows = QUERIES.min(shape.q_len - first);
        let scale = S::Wide::from_f64(shape.scale);
        for i in 0..rows {
            let q = &self.q[shape.q_row(batch, first + i, head) * head_dim..][..head_dim];
            for (to, &q) in tiles.queries[i * stride..].iter_mut().zip(q) {
                *to = q.widen() * scale;
            }
        }
        tiles.out[..rows * stride].fill(S::Wide::ZERO);
        let mut max = [S::Wide::NEG_INFINITY; QUERIES];
        let mut sum = [S::Wide::ZERO; QUERIES];
        let (limits, highest) = shape.limits(first, rows);
        for start in (0..shape.k_len).step_by(KEYS) {
            let keys = KeyTile::new(shape, start);
            if keys.lowest >= highest {
                continue; // Padding, or in the future of every query of the tile.
            }
            let transposed = &tiles.keys_transposed[start / KEYS * width * KEY_STRIDE..];
            for strip in (0..rows).step_by(STRIP) {
                let end = rows.min(strip + STRIP);
                let columns = keys.columns_seen(&limits[strip..end]);
                if columns == 0 {
                    continue;
                }
                let queries =
                    Left { data: &tiles.queries[strip * stride..], row_stride: stride, depth_stride: 1 };
                let scores = &mut tiles.scores[strip * KEY_STRIDE..];
                let extents = [end - strip, columns, head_dim];
                multiply(simd, extents, queries, transposed, KEY_STRIDE, scores, KEY_STRIDE, false);
                for i in strip..end {
                    let scores = &mut tiles.scores[i * KEY_STRIDE..][..columns];
                    let shrink = online_softmax(scores, &keys.index, limits[i], &mut max[i], &mut sum[i]);
                    if let Some(dropout) = dropout {
                        let factors = dropout.factors(first + i, &keys);
                        for (p, &factor) in scores.iter_mut().zip(&factors) {
                            *p *= factor;
                        }
                    }
                    if shrink != S::Wide::ONE {
                        for o in &mut tiles.out[i * stride..][..width] {
                            *o *= shrink;
                        }
                    }
                }
                let data = &tiles.scores[strip * KEY_STRIDE..];
                let weights = Left { data, row_stride: KEY_STRIDE, depth_stride: 1 };
                let (values, out) = (&tiles.values[start * stride..], &mut tiles.out[strip * stride..]);
                let extents = [end - strip, width, columns.min(keys.len)];
                multiply(simd, extents, weights, values, stride, out, stride, true);
            }
        }
        for i in 0..rows {
            let row = shape.q_row(batch, first + i, head);
            let unseen = sum[i] == S::Wide::ZERO;
            let inverse = if unseen { S::Wide::ZERO } else { S::Wide::ONE / sum[i] };
            // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
            let (lse, o) =
                unsafe { (self.lse.part(row..row + 1), self.o.part(row * head_dim..(row + 1) * head_dim)) };
            lse[0] = if unseen { S::Wide::NEG_INFINITY } else { max[i] + Float::ln(sum[i]) };
            narrow_row(&tiles.out[i * stride..], inverse, o);
        }
    }
}

/// One row's step of the online softmax: turns the scores of seen keys into exp(score - running
/// maximum) and the others into 0, brings `max` and `sum` up to date, and returns the factor by
/// which earlier sums over this row shrink.
#[inline(always)]
fn online_softmax<T: Float>(
    scores: &mut [T],
    index: &[u32; KEYS],
    limit: u32,
    max: &mut T,
    sum: &mut T,
) -> T {
    let (scores, _) = scores.as_chunks_mut::<COLUMNS>();
    let (index, _) = index.as_chunks::<COLUMNS>();
    let mut lanes = [T::NEG_INFINITY; COLUMNS];
    for (scores, index) in scores.iter().zip(index) {
        for ((lane, &s), &index) in lanes.iter_mut().zip(scores).zip(index) {
            *lane = seen(s, index, limit).max(*lane);
        }
    }
    let mut new_max = *max;
    for lane in lanes {
        new_max = lane.max(new_max);
    }
    // While no key was seen every score is -inf (or NaN): shift by 0, not by -inf, so that the
    // weights become 0 (or NaN).
    let shift = if new_max == T::NEG_INFINITY { T::ZERO } else { new_max };
    let mut lanes = [T::ZERO; COLUMNS];
    for (scores, index) in scores.iter_mut().zip(index) {
        for ((lane, s), &index) in lanes.iter_mut().zip(scores).zip(index) {
            *s = Float::exp(seen(*s, index, limit) - shift);
            *lane += *s;
        }
    }
    let shrink = Float::exp(*max - shift);
    let mut total = *sum * shrink;
    let mut half = COLUMNS / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    total += lanes[0];
    (*max, *sum) = (new_max, total);
    shrink
}
