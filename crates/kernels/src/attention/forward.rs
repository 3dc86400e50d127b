//! The forward pass on vectors: online softmax over chunks of keys.

use super::lanes::{Mask, maxima, rescale, weights};
use super::relative::{self, RelativeBias};
use super::tile::{COLUMNS, Left, multiply, transpose};
use super::*;

/// Queries that are computed with keys together, in two parts: a part is spared keys that only the other sees.
const QUERIES: usize = 2 * COLUMNS;

/// Arguments of [`attention_forward`], for some of the heads.
pub(super) struct Forward<'a, S: Storage> {
    pub(super) shape: &'a AttentionShape<'a>,
    /// (Sequence, key-value head) pairs.
    pub(super) heads: Range<usize>,
    pub(super) q: &'a [S],
    pub(super) k: &'a [S],
    pub(super) v: &'a [S],
    pub(super) bias: Option<&'a RelativeBias<'a, S::Wide>>,
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

/// Pieces of scratch: one head's keys and values, and what some queries need.
struct Pieces<'a, T> {
    /// Chunks `[padded_head_dim][KEY_STRIDE]`.
    keys: &'a mut [T],
    /// Rows `row_stride` apart.
    values: &'a mut [T],
    rows: &'a mut [T],
    queries: &'a mut [T],
    /// `[padded_head_dim][QUERIES]`
    queries_transposed: &'a mut [T],
    /// `[KEYS][QUERIES]`: scores, then weights.
    scores: &'a mut [T],
    /// `[factor_rows][QUERIES]`, and a place for the same by query.
    factors: &'a mut [T],
    factors_by_query: &'a mut [T],
    /// `[padded_head_dim][QUERIES]`
    out: &'a mut [T],
    /// One head's bias by distance.
    bias: &'a mut [T],
}

pub(super) fn scratch(shape: &AttentionShape) -> usize {
    let (row, width) = (shape.row_stride(), shape.padded_head_dim());
    shape.transposed_len()
        + (shape.k_len + KEYS + QUERIES) * row
        + (KEYS + 2 * shape.factor_rows() + 2 * width) * QUERIES
}

impl<S: Storage> Forward<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(mut self, simd: V) {
        let shape = self.shape;
        let (row, width) = (shape.row_stride(), shape.padded_head_dim());
        let mut pieces = Pieces {
            keys: self.scratch.take(shape.transposed_len()),
            values: self.scratch.take(shape.k_len * row),
            rows: self.scratch.take(KEYS * row),
            queries: self.scratch.take(QUERIES * row),
            queries_transposed: self.scratch.take(width * QUERIES),
            scores: self.scratch.take(KEYS * QUERIES),
            factors: self.scratch.take(shape.factor_rows() * QUERIES),
            factors_by_query: self.scratch.take(shape.factor_rows() * QUERIES),
            out: self.scratch.take(width * QUERIES),
            bias: self.scratch.take(self.bias.map_or(0, |bias| bias.rows.len())),
        };
        for head in self.heads.clone() {
            let (batch, kv) = (head / shape.kv_heads, head % shape.kv_heads);
            pack_keys(shape, batch, kv, 0, self.v, pieces.values);
            if !exact::is_finite(std::iter::once(&*pieces.values)) {
                let inputs = [self.q, self.k, self.v];
                exact::forward(shape, batch, kv, inputs, self.bias, self.o, self.lse, pieces.out);
                continue;
            }
            pack_keys_transposed(simd, shape, batch, kv, self.k, pieces.rows, pieces.keys);
            for group in 0..shape.group {
                let head = Head { kv, group };
                let dropout = HeadDropout::new(shape, batch, head);
                if let Some(bias) = self.bias {
                    bias.by_distance(shape, head, pieces.bias);
                }
                for first in (0..shape.q_len).step_by(QUERIES) {
                    self.queries(simd, batch, head, first, dropout.as_ref(), &mut pieces);
                }
            }
        }
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
        let by_query = [QUERIES, width];
        transpose(simd, by_query, pieces.queries, stride, pieces.queries_transposed, QUERIES);
        let limits: [[u32; COLUMNS]; 2] = [shape.limits(first), shape.limits(first + COLUMNS)];
        let mut max = [[S::Wide::NEG_INFINITY; COLUMNS]; 2];
        let mut sum = [[S::Wide::ZERO; COLUMNS]; 2];
        pieces.out.fill(S::Wide::ZERO);
        for start in (0..shape.k_len).step_by(KEYS) {
            let index = &shape.k_index[start..shape.k_len.min(start + KEYS)];
            let seen = [keys_seen(index, &limits[0]), keys_seen(index, &limits[1])];
            for (keys, columns) in products(seen, COLUMNS) {
                let data = &pieces.keys[start / KEYS * width * KEY_STRIDE + keys.start..];
                multiply(
                    simd,
                    [keys.len(), columns.len(), head_dim],
                    Left::<_, 1> { data, depth_stride: KEY_STRIDE },
                    &pieces.queries_transposed[columns.start..],
                    QUERIES,
                    &mut pieces.scores[keys.start * QUERIES + columns.start..],
                    QUERIES,
                    false,
                );
            }
            if let Some(dropout) = dropout {
                dropout.columns(simd, first, index, pieces.factors_by_query, pieces.factors, QUERIES);
            }
            if self.bias.is_some() {
                for part in 0..2 {
                    let (queries, keys) =
                        (shape.q_part(first + part * COLUMNS, COLUMNS), &index[..seen[part]]);
                    let scores = &mut pieces.scores[part * COLUMNS..];
                    relative::add(pieces.bias, queries, keys, scores, QUERIES);
                }
            }
            for part in 0..2 {
                let mask = Mask::new(&index[..seen[part]], &limits[part]);
                let scores = pieces.scores.as_chunks_mut::<QUERIES>().0;
                let before = max[part];
                maxima(scores, part, mask, &mut max[part]);
                // While no key was seen every score is -inf (or NaN): shift by 0, not by -inf, so that the
                // weights become 0 (or NaN).
                let mut shift = max[part];
                for shift in &mut shift {
                    *shift = if *shift == S::Wide::NEG_INFINITY { S::Wide::ZERO } else { *shift };
                }
                if max[part] != before {
                    let out = pieces.out.as_chunks_mut::<QUERIES>().0;
                    rescale(simd, &before, &shift, part, &mut sum[part], out);
                }
                let factors = dropout.map(|_| pieces.factors.as_chunks::<QUERIES>().0);
                weights(simd, scores, part, mask, &shift, factors, &mut sum[part]);
            }
            for (keys, columns) in products(seen, COLUMNS) {
                let data = &pieces.values[(start + keys.start) * stride..];
                multiply(
                    simd,
                    [head_dim, columns.len(), keys.len()],
                    Left::<_, 1> { data, depth_stride: stride },
                    &pieces.scores[keys.start * QUERIES + columns.start..],
                    QUERIES,
                    &mut pieces.out[columns.start..],
                    QUERIES,
                    true,
                );
            }
        }
        transpose(simd, [width, QUERIES], pieces.out, QUERIES, pieces.queries, stride);
        let (max, sum) = (max.as_flattened(), sum.as_flattened());
        for i in 0..QUERIES.min(shape.q_len - first) {
            let row = shape.q_row(batch, first + i, head);
            let unseen = sum[i] == S::Wide::ZERO;
            let inverse = if unseen { S::Wide::ZERO } else { S::Wide::ONE / sum[i] };
            // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
            let (lse, o) =
                unsafe { (self.lse.part(row..row + 1), self.o.part(row * head_dim..(row + 1) * head_dim)) };
            lse[0] = if unseen { S::Wide::NEG_INFINITY } else { max[i] + Float::ln(sum[i]) };
            narrow_row(&pieces.queries[i * stride..], inverse, o);
        }
    }
}
