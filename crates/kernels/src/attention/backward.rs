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
        let (keys, row) = (shape.padded_keys(), shape.row_stride());
        let transposed = keys / KEYS * shape.padded_head_dim() * KEY_STRIDE;
        let mut tiles = Tiles {
            keys: self.scratch.take(keys * row),
            keys_transposed: self.scratch.take(transposed),
            values_transposed: self.scratch.take(transposed),
            dk: self.scratch.take(keys * row),
            dv: self.scratch.take(keys * row),
            queries: self.scratch.take(QUERIES * row),
            d_out: self.scratch.take(QUERIES * row),
            dq: self.scratch.take(QUERIES * row),
            weights: self.scratch.take(QUERIES * KEY_STRIDE),
            d_scores: self.scratch.take(QUERIES * KEY_STRIDE),
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
                narrow_row(&tiles.dk[key * row..], S::Wide::ONE, dk);
                narrow_row(&tiles.dv[key * row..], S::Wide::ONE, dv);
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
        let mut lse = [S::Wide::ZERO; QUERIES];
        // delta is sum_t p_t dp_t for each query, which equals d_o . o also under dropout.
        let mut delta = [S::Wide::ZERO; QUERIES];
        for i in 0..rows {
            let row = shape.q_row(batch, first + i, head);
            let range = row * head_dim..(row + 1) * head_dim;
            let q = &self.q[range.clone()];
            let (o, d_o) = (&self.o[range.clone()], &self.d_o[range]);
            for (to, &q) in tiles.queries[i * stride..].iter_mut().zip(q) {
                *to = q.widen() * scale;
            }
            widen_row(d_o, &mut tiles.d_out[i * stride..][..head_dim]);
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
        tiles.dq[..rows * stride].fill(S::Wide::ZERO);
        let (limits, highest) = shape.limits(first, rows);
        for start in (0..shape.k_len).step_by(KEYS) {
            let keys = KeyTile::new(shape, start);
            if keys.lowest >= highest {
                continue; // Padding, or in the future of every query of the tile.
            }
            let transposed = start / KEYS * width * KEY_STRIDE;
            for strip in (0..rows).step_by(STRIP) {
                let end = rows.min(strip + STRIP);
                let columns = keys.columns_seen(&limits[strip..end]);
                let extents = [end - strip, columns, head_dim];
                let scores = strip * KEY_STRIDE;
                multiply(
                    simd,
                    extents,
                    rows_of(&tiles.queries[strip * stride..], stride),
                    &tiles.keys_transposed[transposed..],
                    KEY_STRIDE,
                    &mut tiles.weights[scores..],
                    KEY_STRIDE,
                    false,
                );
                multiply(
                    simd,
                    extents,
                    rows_of(&tiles.d_out[strip * stride..], stride),
                    &tiles.values_transposed[transposed..],
                    KEY_STRIDE,
                    &mut tiles.d_scores[scores..],
                    KEY_STRIDE,
                    false,
                );
                for i in strip..end {
                    let (weights, unseen) =
                        tiles.weights[i * KEY_STRIDE..][..keys.columns].split_at_mut(columns);
                    unseen.fill(S::Wide::ZERO);
                    let (d_scores, unseen) =
                        tiles.d_scores[i * KEY_STRIDE..][..keys.columns].split_at_mut(columns);
                    unseen.fill(S::Wide::ZERO);
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
                multiply(
                    simd,
                    [end - strip, width, columns.min(keys.len)],
                    rows_of(&tiles.d_scores[scores..], KEY_STRIDE),
                    &tiles.keys[start * stride..],
                    stride,
                    &mut tiles.dq[strip * stride..],
                    stride,
                    true,
                );
            }
            let by_key = [keys.len, width, rows];
            multiply(
                simd,
                by_key,
                columns_of(tiles.weights),
                tiles.d_out,
                stride,
                &mut tiles.dv[start * stride..],
                stride,
                true,
            );
            // The queries are already scaled, so dk needs no factor.
            multiply(
                simd,
                by_key,
                columns_of(tiles.d_scores),
                tiles.queries,
                stride,
                &mut tiles.dk[start * stride..],
                stride,
                true,
            );
        }
        for i in 0..rows {
            let row = shape.q_row(batch, first + i, head);
            // SAFETY: as in `run`.
            let dq = unsafe { self.dq.part(row * head_dim..(row + 1) * head_dim) };
            narrow_row(&tiles.dq[i * stride..], scale, dq);
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
    Left { data, row_stride: 1, depth_stride: KEY_STRIDE }
}
