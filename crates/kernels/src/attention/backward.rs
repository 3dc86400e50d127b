//! The backward pass on vectors: weights are computed again from `lse`, chunk by chunk.

use super::lanes::{Mask, gradients};
use super::relative::{self, BiasGradient};
use super::tile::{COLUMNS, Left, multiply, transpose};
use super::*;
use crate::reduce::lane_sum;

/// Queries of a part. Two parts are computed with keys together, but a part is spared keys that only the other sees.
const PART: usize = 2 * COLUMNS;
const QUERIES: usize = 2 * PART;

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
    pub(super) bias: Option<BiasGradient<'a, S::Wide>>,
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

/// Pieces of scratch: one head's keys, values and their gradients, and what some queries need.
struct Pieces<'a, T> {
    /// Rows `row_stride` apart, as the others that are not said to be otherwise.
    keys: &'a mut [T],
    /// Chunks `[padded_head_dim][KEY_STRIDE]`.
    keys_transposed: &'a mut [T],
    values_transposed: &'a mut [T],
    dk: &'a mut [T],
    dv: &'a mut [T],
    queries: &'a mut [T],
    d_out: &'a mut [T],
    dq: &'a mut [T],
    /// `[padded_head_dim][QUERIES]`
    queries_transposed: &'a mut [T],
    d_out_transposed: &'a mut [T],
    /// `[KEYS][QUERIES]`: scores, then weights after dropout.
    weights: &'a mut [T],
    /// `[KEYS][QUERIES]`: gradients by the weights, then by the scores.
    d_scores: &'a mut [T],
    /// `[factor_rows][QUERIES]`, and a place for the same by query.
    factors: &'a mut [T],
    factors_by_query: &'a mut [T],
    /// One head's bias by distance, and the gradient by it.
    bias: &'a mut [T],
    d_bias: &'a mut [T],
}

pub(super) fn scratch(shape: &AttentionShape) -> usize {
    let (row, width) = (shape.row_stride(), shape.padded_head_dim());
    2 * shape.transposed_len()
        + (3 * shape.k_len + KEYS + 3 * QUERIES) * row
        + (2 * width + 2 * KEYS + 2 * shape.factor_rows()) * QUERIES
}

impl<S: Storage> Backward<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(mut self, simd: V) {
        let shape = self.shape;
        let (row, width) = (shape.row_stride(), shape.padded_head_dim());
        let scratch = &mut self.scratch;
        let distances = self.bias.as_ref().map_or(0, |bias| bias.of.rows.len());
        let mut pieces = Pieces {
            keys: scratch.take(shape.k_len * row),
            keys_transposed: scratch.take(shape.transposed_len()),
            values_transposed: scratch.take(shape.transposed_len()),
            dk: scratch.take(shape.k_len * row),
            dv: scratch.take(shape.k_len * row),
            queries: scratch.take(QUERIES * row),
            d_out: scratch.take(QUERIES * row),
            dq: scratch.take(QUERIES * row),
            queries_transposed: scratch.take(width * QUERIES),
            d_out_transposed: scratch.take(width * QUERIES),
            weights: scratch.take(KEYS * QUERIES),
            d_scores: scratch.take(KEYS * QUERIES),
            factors: scratch.take(shape.factor_rows() * QUERIES),
            factors_by_query: scratch.take(shape.factor_rows() * QUERIES),
            bias: scratch.take(distances),
            d_bias: scratch.take(distances),
        };
        let rows = scratch.take(KEYS * row);
        for head in self.heads.clone() {
            let (batch, kv) = (head / shape.kv_heads, head % shape.kv_heads);
            pack_keys(shape, batch, kv, 0, self.k, pieces.keys);
            if !self.is_finite(batch, kv, pieces.keys) {
                let inputs = [self.q, self.k, self.v, self.o, self.d_o];
                let results = [self.dq, self.dk, self.dv];
                let sums = [&mut *pieces.dq, pieces.dk, pieces.dv];
                exact::backward(shape, batch, kv, inputs, self.lse, self.bias.as_ref(), results, sums);
                continue;
            }
            pack_keys_transposed(simd, shape, batch, kv, self.k, rows, pieces.keys_transposed);
            pack_keys_transposed(simd, shape, batch, kv, self.v, rows, pieces.values_transposed);
            pieces.dk.fill(S::Wide::ZERO);
            pieces.dv.fill(S::Wide::ZERO);
            for group in 0..shape.group {
                let head = Head { kv, group };
                let dropout = HeadDropout::new(shape, batch, head);
                if let Some(bias) = &self.bias {
                    bias.of.by_distance(shape, head, pieces.bias);
                    pieces.d_bias.fill(S::Wide::ZERO);
                }
                for first in (0..shape.q_len).step_by(QUERIES) {
                    self.queries(simd, batch, head, first, dropout.as_ref(), &mut pieces);
                }
                if let Some(bias) = &self.bias {
                    bias.put(shape, batch, head, pieces.d_bias);
                }
            }
            for key in 0..shape.k_len {
                let at = shape.k_row(batch, key, kv) * shape.head_dim;
                // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
                let (dk, dv) =
                    unsafe { (self.dk.part(at..at + shape.head_dim), self.dv.part(at..at + shape.head_dim)) };
                narrow_row(&pieces.dk[key * row..], S::Wide::ONE, dk);
                narrow_row(&pieces.dv[key * row..], S::Wide::ONE, dv);
            }
        }
    }

    /// Whether the head's right operands of products with weights, some of them 0, are.
    #[inline(always)]
    fn is_finite(&self, batch: usize, kv: usize, keys: &[S::Wide]) -> bool {
        let shape = self.shape;
        let width = shape.group * shape.head_dim;
        let rows = |x: &'_ [S]| {
            exact::is_finite((0..shape.q_len).map(
                #[inline(always)]
                |query| &x[shape.q_row(batch, query, Head { kv, group: 0 }) * shape.head_dim..][..width],
            ))
        };
        exact::is_finite(std::iter::once(keys)) && rows(self.q) && rows(self.d_o)
    }

    /// What the forward pass's results say of up to [`QUERIES`] queries: `lse`, and the inner products of outputs
    /// and their gradients.
    #[inline(always)]
    fn known(&self, batch: usize, head: Head, first: usize) -> [[[S::Wide; COLUMNS]; QUERIES / COLUMNS]; 2] {
        let (shape, head_dim) = (self.shape, self.shape.head_dim);
        let mut known = [[[S::Wide::ZERO; COLUMNS]; QUERIES / COLUMNS]; 2];
        let [lse, delta] = known.each_mut().map(|x| x.as_flattened_mut());
        for i in 0..QUERIES.min(shape.q_len - first) {
            let row = shape.q_row(batch, first + i, head);
            let range = row * head_dim..(row + 1) * head_dim;
            let (o, d_o) = (&self.o[range.clone()], &self.d_o[range]);
            delta[i] = S::Wide::from_f64(lane_sum(
                o,
                d_o,
                d_o,
                #[inline(always)]
                |o, d, _| o.widen().to_f64() * d.widen().to_f64(),
            ));
            // Queries that see no key: what their scores are shifted by does not matter, if it is finite.
            if self.lse[row] != S::Wide::NEG_INFINITY {
                lse[i] = self.lse[row];
            }
        }
        known
    }

    /// All keys for up to [`QUERIES`] queries of one head.
    #[inline(always)]
    fn queries<V: Simd>(
        &self,
        simd: V,
        batch: usize,
        head: Head,
        first: usize,
        dropout: Option<&HeadDropout<S::Wide>>,
        pieces: &mut Pieces<S::Wide>,
    ) {
        let shape = self.shape;
        let (width, head_dim, stride) = (shape.padded_head_dim(), shape.head_dim, shape.row_stride());
        let scale = S::Wide::from_f64(shape.scale);
        pack_queries(shape, batch, head, first, self.q, scale, pieces.queries);
        pack_queries(shape, batch, head, first, self.d_o, S::Wide::ONE, pieces.d_out);
        let by_query = [QUERIES, width];
        transpose(simd, by_query, pieces.queries, stride, pieces.queries_transposed, QUERIES);
        transpose(simd, by_query, pieces.d_out, stride, pieces.d_out_transposed, QUERIES);
        let [lse, delta] = self.known(batch, head, first);
        let limits: [[u32; PART]; 2] = [shape.limits(first), shape.limits(first + PART)];
        pieces.dq.fill(S::Wide::ZERO);
        for start in (0..shape.k_len).step_by(KEYS) {
            let index = &shape.k_index[start..shape.k_len.min(start + KEYS)];
            let seen = [keys_seen(index, &limits[0]), keys_seen(index, &limits[1])];
            for (keys, columns) in products(seen, PART) {
                let at = keys.start * QUERIES + columns.start;
                for (left, right, to) in [
                    (&*pieces.keys_transposed, &*pieces.queries_transposed, &mut *pieces.weights),
                    (&*pieces.values_transposed, &*pieces.d_out_transposed, &mut *pieces.d_scores),
                ] {
                    let data = &left[start / KEYS * width * KEY_STRIDE + keys.start..];
                    multiply(
                        simd,
                        [keys.len(), columns.len(), head_dim],
                        Left::<_, 1> { data, depth_stride: KEY_STRIDE },
                        &right[columns.start..],
                        QUERIES,
                        &mut to[at..],
                        QUERIES,
                        false,
                    );
                }
            }
            if let Some(dropout) = dropout {
                dropout.columns(simd, first, index, pieces.factors_by_query, pieces.factors, QUERIES);
            }
            if self.bias.is_some() {
                for half in 0..2 {
                    let (queries, keys) = (shape.q_part(first + half * PART, PART), &index[..seen[half]]);
                    relative::add(pieces.bias, queries, keys, &mut pieces.weights[half * PART..], QUERIES);
                }
            }
            for i in 0..QUERIES / COLUMNS {
                let half = i * COLUMNS / PART;
                let limits = &limits[half].as_chunks().0[i % (PART / COLUMNS)];
                let mask = Mask::new(&index[..seen[half]], limits);
                let weights = pieces.weights.as_chunks_mut::<QUERIES>().0;
                let d_scores = pieces.d_scores.as_chunks_mut::<QUERIES>().0;
                let factors = dropout.map(|_| pieces.factors.as_chunks::<QUERIES>().0);
                gradients(simd, weights, d_scores, i, mask, &lse[i], &delta[i], factors);
            }
            if self.bias.is_some() {
                for half in 0..2 {
                    let (queries, keys) = (shape.q_part(first + half * PART, PART), &index[..seen[half]]);
                    relative::collect(pieces.d_bias, queries, keys, &pieces.d_scores[half * PART..], QUERIES);
                }
            }
            for (keys, columns) in products(seen, PART) {
                let at = keys.start * QUERIES + columns.start;
                let key_rows = (start + keys.start) * stride;
                // The queries are already scaled, so dk needs no factor.
                for (left, right, to) in [
                    (&*pieces.weights, &*pieces.d_out, &mut *pieces.dv),
                    (&*pieces.d_scores, &*pieces.queries, &mut *pieces.dk),
                ] {
                    multiply(
                        simd,
                        [keys.len(), width, columns.len()],
                        Left::<_, QUERIES> { data: &left[at..], depth_stride: 1 },
                        &right[columns.start * stride..],
                        stride,
                        &mut to[key_rows..],
                        stride,
                        true,
                    );
                }
                multiply(
                    simd,
                    [columns.len(), width, keys.len()],
                    Left::<_, 1> { data: &pieces.d_scores[at..], depth_stride: QUERIES },
                    &pieces.keys[key_rows..],
                    stride,
                    &mut pieces.dq[columns.start * stride..],
                    stride,
                    true,
                );
            }
        }
        for i in 0..QUERIES.min(shape.q_len - first) {
            let row = shape.q_row(batch, first + i, head);
            // SAFETY: as in `run`.
            let dq = unsafe { self.dq.part(row * head_dim..(row + 1) * head_dim) };
            narrow_row(&pieces.dq[i * stride..], scale, dq);
        }
    }
}
