//! The backward pass on tiles: weights are computed again from `lse`, square by square.

use super::pack::{Tile, put_columns, put_row};
use super::softmax::{Known, gradients};
use super::tiles::{Depth, along, multiply};
use super::*;
use crate::attention::exact;

/// Blocks of keys, and of queries, whose weights and gradients are kept for the products that sum over them.
const SPAN: usize = 4;

/// Arguments of [`attention_backward`](super::super::attention_backward), for some of the heads.
pub(in super::super) struct Backward<'a> {
    pub(in super::super) shape: &'a AttentionShape<'a>,
    /// (Sequence, key-value head) pairs.
    pub(in super::super) heads: Range<usize>,
    pub(in super::super) q: &'a [bf16],
    pub(in super::super) k: &'a [bf16],
    pub(in super::super) v: &'a [bf16],
    pub(in super::super) o: &'a [bf16],
    pub(in super::super) lse: &'a [f32],
    pub(in super::super) d_o: &'a [bf16],
    /// Rows of `heads` are written, as in `dk` and `dv`.
    pub(in super::super) dq: &'a Shared<'a, bf16>,
    pub(in super::super) dk: &'a Shared<'a, bf16>,
    pub(in super::super) dv: &'a Shared<'a, bf16>,
    pub(in super::super) scratch: Scratch<'a, f32>,
}

pub(super) fn scratch(shape: &AttentionShape) -> usize {
    let (keys, steps) = extents(shape);
    let squares = 3 * keys * steps + 4 * SPAN * steps + 3 * SPAN * SPAN;
    let blocks = 2 * keys * steps + SPAN * steps + 4;
    squares * SQUARE + blocks * BLOCK
}

/// Pieces of scratch: one head's keys, values and their gradients, and what a span of queries needs.
struct Pieces<'a> {
    /// Left operands `[key block][step]`.
    keys: &'a mut [Square],
    values: &'a mut [Square],
    /// Left operands `[step][key block]`.
    keys_transposed: &'a mut [Square],
    /// Right operands `[query block of the span][step]`, lanes queries.
    queries: &'a mut [Square],
    d_out: &'a mut [Square],
    /// The same, lanes head dims.
    queries_transposed: &'a mut [Square],
    d_out_transposed: &'a mut [Square],
    /// Left operands `[key block of the span][query block of the span]`, lanes keys.
    weights: &'a mut [Square],
    d_scores: &'a mut [Square],
    /// The same as right operands, lanes queries.
    d_scores_right: &'a mut [Square],
    /// Keys by head dims `[key block][step]`.
    dk: &'a mut [Block],
    dv: &'a mut [Block],
    /// Head dims by queries `[query block of the span][step]`.
    dq: &'a mut [Block],
    /// Scores, gradients by the weights; dropout's factors, and a place to turn them in.
    transient: &'a mut [Block],
}

/// What is known of a span of queries.
struct Span {
    first: usize,
    /// Blocks of queries.
    blocks: usize,
    limits: [Limits; SPAN],
    known: [Known; SPAN],
}

impl Backward<'_> {
    /// # Safety
    /// AMX and AVX-512 with bf16 are available.
    pub(in super::super) unsafe fn run(self) {
        // SAFETY: vouched for by the caller; tiles are ready inside `with_tiles`.
        unsafe { crate::amx::with_tiles(|| self.heads()) }
    }

    /// # Safety
    /// Tiles are ready.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn heads(mut self) {
        let shape = self.shape;
        let (blocks, steps) = extents(shape);
        let scratch = &mut self.scratch;
        let mut pieces = Pieces {
            keys: take_squares(scratch, blocks * steps),
            values: take_squares(scratch, blocks * steps),
            keys_transposed: take_squares(scratch, blocks * steps),
            queries: take_squares(scratch, SPAN * steps),
            d_out: take_squares(scratch, SPAN * steps),
            queries_transposed: take_squares(scratch, SPAN * steps),
            d_out_transposed: take_squares(scratch, SPAN * steps),
            weights: take_squares(scratch, SPAN * SPAN),
            d_scores: take_squares(scratch, SPAN * SPAN),
            d_scores_right: take_squares(scratch, SPAN * SPAN),
            dk: take_blocks(scratch, blocks * steps),
            dv: take_blocks(scratch, blocks * steps),
            dq: take_blocks(scratch, SPAN * steps),
            transient: take_blocks(scratch, 4),
        };
        for head in self.heads.clone() {
            let (batch, kv) = (head / shape.kv_heads, head % shape.kv_heads);
            if !self.is_finite(batch, kv) {
                let inputs = [self.q, self.k, self.v, self.o, self.d_o];
                let results = [self.dq, self.dk, self.dv];
                let sums = [&mut *pieces.dq, pieces.dk, pieces.dv].map(elements);
                exact::backward(shape, batch, kv, inputs, self.lse, None, results, sums);
                continue;
            }
            let (k, v) = (key_rows(shape, self.k, batch, kv), key_rows(shape, self.v, batch, kv));
            for block in 0..blocks {
                let (k, v) = (key_tile(shape, k, block), key_tile(shape, v, block));
                for step in 0..steps {
                    k.left(step, &mut pieces.keys[block * steps + step]);
                    v.left(step, &mut pieces.values[block * steps + step]);
                    k.left_transposed(step, &mut pieces.keys_transposed[step * blocks + block]);
                }
            }
            for row in pieces.dk.iter_mut().chain(&mut *pieces.dv).flat_map(|block| &mut block.0) {
                row.fill([0.0; 16]);
            }
            for group in 0..shape.group {
                for first in (0..shape.q_len).step_by(SPAN * SIDE) {
                    // SAFETY: vouched for by the caller.
                    unsafe { self.queries(batch, Head { kv, group }, first, &mut pieces) };
                }
            }
            self.finish_keys(batch, kv, pieces.dk, pieces.dv);
        }
    }

    /// Whether the head's right operands of products with weights, some of them 0, are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn is_finite(&self, batch: usize, kv: usize) -> bool {
        let shape = self.shape;
        let keys = key_rows(shape, self.k, batch, kv);
        let mut finite = keys.are_finite(shape);
        for group in 0..shape.group {
            for x in [self.q, self.d_o] {
                let rows = query_rows(shape, x, batch, Head { kv, group });
                for first in (0..shape.q_len).step_by(SIDE) {
                    finite &= query_tile(shape, rows, first).is_finite();
                }
            }
        }
        finite
    }

    /// All keys for a span of queries of one head.
    ///
    /// # Safety
    /// Tiles are ready.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn queries(&self, batch: usize, head: Head, first: usize, pieces: &mut Pieces) {
        let shape = self.shape;
        let (key_blocks, steps) = extents(shape);
        let blocks = (shape.q_len - first).div_ceil(SIDE).min(SPAN);
        let dropout = HeadDropout::new(shape, batch, head);
        let [q, o, d_o] = [self.q, self.o, self.d_o].map(|x| query_rows(shape, x, batch, head));
        let mut span = Span { first, blocks, limits: [Limits::NONE; SPAN], known: [Known::default(); SPAN] };
        for block in 0..blocks {
            let first = first + block * SIDE;
            span.limits[block] = Limits::new(shape, first);
            let [o, d_o] = [o, d_o].map(|rows| query_tile(shape, rows, first));
            span.known[block] = self.known(batch, head, o, d_o);
        }
        for block in 0..blocks {
            let [q, d_o] = [q, d_o].map(|rows| query_tile(shape, rows, first + block * SIDE));
            for step in 0..steps {
                let at = block * steps + step;
                q.right(step, &mut pieces.queries[at]);
                d_o.right(step, &mut pieces.d_out[at]);
                q.right_transposed(step, &mut pieces.queries_transposed[at]);
                d_o.right_transposed(step, &mut pieces.d_out_transposed[at]);
            }
        }
        let mut touched = [false; SPAN];
        for start in (0..key_blocks).step_by(SPAN) {
            let count = SPAN.min(key_blocks - start);
            // Squares [key block][query block] of weights that are not all 0.
            let mut seen = [[false; SPAN]; SPAN];
            for (i, seen) in seen.iter_mut().enumerate().take(count) {
                let keys = Keys::new(shape, start + i);
                for (block, seen) in seen.iter_mut().enumerate().take(blocks) {
                    *seen = span.limits[block].see(&keys);
                    if *seen {
                        // SAFETY: vouched for by the caller.
                        unsafe { self.square(&span, block, start + i, &keys, dropout.as_ref(), pieces) };
                    }
                }
            }
            for i in 0..count {
                let Some(range) = range_of(|block| seen[i][block]) else { continue };
                for block in range.clone().filter(|&block| !seen[i][block]) {
                    for squares in [&mut pieces.weights, &mut pieces.d_scores] {
                        squares[i * SPAN + block].0.fill([bf16::ZERO; SIDE]);
                    }
                }
                for step in 0..steps {
                    let sides = [
                        (&*pieces.weights, &*pieces.d_out_transposed, &mut pieces.dv),
                        (&*pieces.d_scores, &*pieces.queries_transposed, &mut pieces.dk),
                    ];
                    for (left, right, to) in sides {
                        let left = along(&left[i * SPAN + range.start..]);
                        let right = Depth { squares: &right[range.start * steps + step..], step: steps };
                        let to = &mut to[(start + i) * steps + step];
                        // SAFETY: vouched for by the caller.
                        unsafe { multiply(range.len(), left, right, to, true) };
                    }
                }
            }
            for (block, touched) in touched.iter_mut().enumerate() {
                let Some(range) = range_of(|i| seen[i][block]) else { continue };
                for i in range.clone().filter(|&i| !seen[i][block]) {
                    pieces.d_scores_right[i * SPAN + block].0.fill([bf16::ZERO; SIDE]);
                }
                for step in 0..steps {
                    let left = along(&pieces.keys_transposed[step * key_blocks + start + range.start..]);
                    let right = &pieces.d_scores_right[range.start * SPAN + block..];
                    let right = Depth { squares: right, step: SPAN };
                    let to = &mut pieces.dq[block * steps + step];
                    // SAFETY: vouched for by the caller.
                    unsafe { multiply(range.len(), left, right, to, *touched) };
                }
                *touched = true;
            }
        }
        self.finish_queries(batch, head, &span, &touched, pieces.dq);
    }

    /// The weights, and the gradients by the scores, of a block of queries and a block of keys.
    ///
    /// # Safety
    /// Tiles are ready.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn square(
        &self,
        span: &Span,
        block: usize,
        key_block: usize,
        keys: &Keys,
        dropout: Option<&HeadDropout<f32>>,
        pieces: &mut Pieces,
    ) {
        let shape = self.shape;
        let (_, steps) = extents(shape);
        let [scores, d_weights, rows, factors] = &mut *pieces.transient else { unreachable!("four blocks") };
        let (queries, d_out) =
            (along(&pieces.queries[block * steps..]), along(&pieces.d_out[block * steps..]));
        // SAFETY: vouched for by the caller.
        unsafe {
            multiply(steps, along(&pieces.keys[key_block * steps..]), queries, scores, false);
            multiply(steps, along(&pieces.values[key_block * steps..]), d_out, d_weights, false);
        }
        let factors = dropout.map(|dropout| {
            factors_of(shape, dropout, span.first + block * SIDE, keys, rows, factors);
            &*factors
        });
        let at = key_block % SPAN * SPAN + block;
        let to = (&mut pieces.weights[at], &mut pieces.d_scores[at], &mut pieces.d_scores_right[at]);
        let scale = _mm512_set1_ps((shape.scale * std::f64::consts::LOG2_E) as f32);
        let (limits, known) = (&span.limits[block], &span.known[block]);
        let mask = limits.mask(keys);
        if limits.see_all(keys) {
            gradients::<false>(scores, d_weights, mask, scale, known, factors, to.0, to.1, to.2);
        } else {
            gradients::<true>(scores, d_weights, mask, scale, known, factors, to.0, to.1, to.2);
        }
    }

    /// What 32 queries' results in the forward pass say.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn known(&self, batch: usize, head: Head, o: Tile, d_o: Tile) -> Known {
        let (mut shift, mut delta) = ([[0.0; 16]; 2], [[0.0; 16]; 2]);
        let rows = SIDE.min(self.shape.q_len - o.first);
        for i in 0..rows {
            let lse = self.lse[self.shape.q_row(batch, o.first + i, head)];
            // Queries that see no key: what they are shifted by does not matter, if it is finite.
            if lse != f32::NEG_INFINITY {
                shift.as_flattened_mut()[i] = lse * std::f32::consts::LOG2_E;
            }
            delta.as_flattened_mut()[i] = o.dot(d_o, i);
        }
        Known { shift, delta }
    }

    /// Writes `dq` of a span; blocks that no product touched are 0.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn finish_queries(&self, batch: usize, head: Head, span: &Span, touched: &[bool; SPAN], dq: &[Block]) {
        let shape = self.shape;
        let (_, steps) = extents(shape);
        let scale = [_mm512_set1_ps(shape.scale as f32); 2];
        for (block, &touched) in touched.iter().enumerate().take(span.blocks) {
            let first = span.first + block * SIDE;
            let rows = SIDE.min(shape.q_len - first);
            let to = query_rows_mut(shape, self.dq, batch, head, first);
            if !touched {
                // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
                (0..rows).for_each(|i| unsafe { to.row(i) }.fill(bf16::ZERO));
                continue;
            }
            for step in 0..steps {
                // SAFETY: as above.
                unsafe { put_columns(&dq[block * steps + step], scale, step, rows, to) };
            }
        }
    }

    /// Writes `dk` and `dv` of a head.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn finish_keys(&self, batch: usize, kv: usize, dk: &[Block], dv: &[Block]) {
        let shape = self.shape;
        let (_, steps) = extents(shape);
        for (from, factor, to) in [(dk, shape.scale as f32, self.dk), (dv, 1.0, self.dv)] {
            let factor = _mm512_set1_ps(factor);
            let to = key_rows_mut(shape, to, batch, kv);
            for key in 0..shape.k_len {
                // SAFETY: as for the queries.
                let row = unsafe { to.row(key) };
                for (step, block) in from[key / SIDE * steps..][..steps].iter().enumerate() {
                    put_row(block, key % SIDE, factor, step, row);
                }
            }
        }
    }
}

/// From the first to the last of a span that is.
#[inline]
fn range_of(is: impl Fn(usize) -> bool) -> Option<Range<usize>> {
    let first = (0..SPAN).find(|&i| is(i))?;
    let last = (first..SPAN).rev().find(|&i| is(i))?;
    Some(first..last + 1)
}
