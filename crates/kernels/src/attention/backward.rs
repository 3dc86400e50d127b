//! The backward pass: weights are computed again from `lse`, tile by tile.

use super::tile::{Left, multiply};
use super::*;
use crate::reduce::lane_sum;

/// Arguments of [`attention_backward`], for some of the heads.
pub(super) struct Backward<'a, S: Storage> {
    pub(super) shape: &'a AttentionShape<'a>,
    /// (Sequence, key-value head) pairs.
    pub(super) heads: Range<usize>,
    pub(super) q: &'a [S],
    pub(super) k: &'a [S],
    pub(super) v: &'a [S],
    pub(super) o: &'a [S],
    pub(super) lse: &'a [S::Wide],
    pub(super) d_o: &'a [S],
    /// Rows of `heads` are written, as in `dk` and `dv`.
    pub(super) dq: &'a Shared<'a, S>,
    pub(super) dk: &'a Shared<'a, S>,
    pub(super) dv: &'a Shared<'a, S>,
    pub(super) scratch: Scratch<'a, S::Wide>,
}

impl<S: Storage> WithSimd for Backward<'_, S> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, simd: V) {
        self.run(simd);
    }
}

/// Pieces of scratch: one head's keys, values and their gradients, and one tile of everything else.
struct Tiles<'a, T> {
    keys: &'a mut [T],
    keys_transposed: &'a mut [T],
    values_transposed: &'a mut [T],
    dk: &'a mut [T],
    dv: &'a mut [T],
    queries: &'a mut [T],
    d_out: &'a mut [T],
    dq: &'a mut [T],
    /// Scores, then weights after dropout.
    weights: &'a mut [T],
    /// Gradient by the weights, then by the scores.
    d_scores: &'a mut [T],
}

impl<S: Storage> Backward<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(mut self, simd: V) {
        let shape = self.shape;
        let width = shape.padded_head_dim();
        let keys_len = shape.padded_keys() * width;
        let mut tiles = Tiles {
            keys: self.scratch.take(keys_len),
            keys_transposed: self.scratch.take(keys_len),
            values_transposed: self.scratch.take(keys_len),
            dk: self.scratch.take(keys_len),
            dv: self.scratch.take(keys_len),
            queries: self.scratch.take(QUERIES * width),
            d_out: self.scratch.take(QUERIES * width),
            dq: self.scratch.take(QUERIES * width),
            weights: self.scratch.take(QUERIES * KEYS),
            d_scores: self.scratch.take(QUERIES * KEYS),
        };
        // Columns beyond head_dim are read as vector columns; they must stay finite.
        tiles.queries.fill(S::Wide::ZERO);
        tiles.d_out.fill(S::Wide::ZERO);
        for head in self.heads.clone() {
            let (batch, kv) = (head / shape.kv_heads, head % shape.kv_heads);
            pack_rows(shape, batch, kv, self.k, tiles.keys);
            pack_transposed(shape, batch, kv, self.k, tiles.keys_transposed);
            pack_transposed(shape, batch, kv, self.v, tiles.values_transposed);
            tiles.dk.fill(S::Wide::ZERO);
            tiles.dv.fill(S::Wide::ZERO);
            for group in 0..shape.group {
                let head = Head { kv, group };
                let dropout = HeadDropout::new(shape, batch, head);
                for first in (0..shape.q_len).step_by(QUERIES) {
                    self.query_tile(simd, batch, head, first, dropout.as_ref(), &mut tiles);
                }
            }
            for key in 0..shape.k_len {
                let at = shape.k_row(batch, key, kv) * shape.head_dim;
                // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
                let (dk, dv) =
                    unsafe { (self.dk.part(at..at + shape.head_dim), self.dv.part(at..at + shape.head_dim)) };
                narrow_row(&tiles.dk[key * width..], S::Wide::ONE, dk);
                narrow_row(&tiles.dv[key * width..], S::Wide::ONE, dv);
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
        let (width, head_dim) = (shape.padded_head_dim(), shape.head_dim);
        let rows = QUERIES.min(shape.q_len - first);
        let scale = S::Wide::from_f64(shape.scale);
        let mut lse = [S::Wide::ZERO; QUERIES];
        // delta is sum_t p_t dp_t for each query, which equals d_o . o also under dropout.
        let mut delta = [S::Wide::ZERO; QUERIES];
        for i in 0..rows {
            let row = shape.q_row(batch, first + i, head);
            let range = row * head_dim..(row + 1) * head_dim;
            let q = &self.q[range.clone()];
            let (o, d_o) = (&self.o[range.clone()], &self.d_o[range]);
            for (to, &q) in tiles.queries[i * width..].iter_mut().zip(q) {
                *to = q.widen() * scale;
            }
            widen_row(d_o, &mut tiles.d_out[i * width..][..head_dim]);
            delta[i] = S::Wide::from_f64(lane_sum(
                o,
                d_o,
                d_o,
                #[inline(always)]
                |o, d, _| o.widen().to_f64() * d.widen().to_f64(),
            ));
            // Queries that see no key: their scores are all -inf, and so stay with any finite shift.
            if self.lse[row] != S::Wide::NEG_INFINITY {
                lse[i] = self.lse[row];
            }
        }
        tiles.dq[..rows * width].fill(S::Wide::ZERO);
        let (limits, highest) = shape.limits(first, rows);
        for start in (0..shape.k_len).step_by(KEYS) {
            let keys = KeyTile::new(shape, start);
            if keys.lowest >= highest {
                continue; // Padding, or in the future of every query of the tile.
            }
            let extents = [rows, keys.columns, head_dim];
            let (packed, scores) = (start * width, KEYS);
            multiply(
                simd,
                extents,
                rows_of(tiles.queries, width),
                &tiles.keys_transposed[packed..],
                KEYS,
                tiles.weights,
                scores,
                false,
            );
            multiply(
                simd,
                extents,
                rows_of(tiles.d_out, width),
                &tiles.values_transposed[packed..],
                KEYS,
                tiles.d_scores,
                scores,
                false,
            );
            for i in 0..rows {
                let weights = &mut tiles.weights[i * KEYS..][..keys.columns];
                let d_scores = &mut tiles.d_scores[i * KEYS..][..keys.columns];
                let (lse, delta, limit) = (lse[i], delta[i], limits[i]);
                let pairs = weights.iter_mut().zip(d_scores).zip(&keys.index);
                if let Some(dropout) = dropout {
                    let factors = dropout.factors(first + i, &keys);
                    for (((w, d), &index), &factor) in pairs.zip(&factors) {
                        let p = Float::exp(seen(*w, index, limit) - lse);
                        *d = p * (*d * factor - delta);
                        *w = p * factor;
                    }
                } else {
                    for ((w, d), &index) in pairs {
                        let p = Float::exp(seen(*w, index, limit) - lse);
                        *d = p * (*d - delta);
                        *w = p;
                    }
                }
            }
            let by_key = [keys.len, width, rows];
            multiply(
                simd,
                by_key,
                columns_of(tiles.weights),
                tiles.d_out,
                width,
                &mut tiles.dv[packed..],
                width,
                true,
            );
            // The queries are already scaled, so dk needs no factor.
            multiply(
                simd,
                by_key,
                columns_of(tiles.d_scores),
                tiles.queries,
                width,
                &mut tiles.dk[packed..],
                width,
                true,
            );
            multiply(
                simd,
                [rows, width, keys.len],
                rows_of(tiles.d_scores, KEYS),
                &tiles.keys[packed..],
                width,
                tiles.dq,
                width,
                true,
            );
        }
        for i in 0..rows {
            let row = shape.q_row(batch, first + i, head);
            // SAFETY: as in `run`.
            let dq = unsafe { self.dq.part(row * head_dim..(row + 1) * head_dim) };
            narrow_row(&tiles.dq[i * width..], scale, dq);
        }
    }
}

/// A tile as a left operand.
#[inline(always)]
fn rows_of<T>(data: &[T], row_stride: usize) -> Left<'_, T> {
    Left { data, row_stride, depth_stride: 1 }
}

/// A tile of scores, transposed, as a left operand.
#[inline(always)]
fn columns_of<T>(data: &[T]) -> Left<'_, T> {
    Left { data, row_stride: 1, depth_stride: KEYS }
}
