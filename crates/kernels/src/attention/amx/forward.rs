//! The forward pass on tiles: online softmax over chunks of keys.

use super::pack::{put_columns, unpack_lanes};
use super::softmax::{Lanes, exp2, log2, maxima, weights};
use super::tiles::{along, multiply};
use super::*;
use crate::attention::exact;
use std::f32::consts::LN_2;

/// Blocks of keys in a chunk, whose scores and weights (24 KiB) stay in the L1 cache.
const CHUNK: usize = 4;

/// Arguments of [`attention_forward`](super::super::attention_forward), for some of the heads.
pub(in super::super) struct Forward<'a> {
    pub(in super::super) shape: &'a AttentionShape<'a>,
    /// (Sequence, key-value head) pairs.
    pub(in super::super) heads: Range<usize>,
    pub(in super::super) q: &'a [bf16],
    pub(in super::super) k: &'a [bf16],
    pub(in super::super) v: &'a [bf16],
    /// Rows of `heads` are written.
    pub(in super::super) o: &'a Shared<'a, bf16>,
    /// Rows of `heads` are written.
    pub(in super::super) lse: &'a Shared<'a, f32>,
    pub(in super::super) scratch: Scratch<'a, f32>,
}

pub(super) fn scratch(shape: &AttentionShape) -> usize {
    let (keys, steps) = extents(shape);
    (2 * keys * steps + steps + CHUNK) * SQUARE + (CHUNK + steps + 2) * BLOCK
}

/// Pieces of scratch: one head's keys and values, and what 32 queries need.
struct Pieces<'a> {
    /// Left operands `[key block][step]`.
    keys: &'a mut [Square],
    /// Left operands `[step][key block]`, transposed.
    values: &'a mut [Square],
    /// Right operands `[step]`.
    queries: &'a mut [Square],
    /// Right operands `[key block of the chunk]`.
    weights: &'a mut [Square],
    /// Keys by queries `[key block of the chunk]`.
    scores: &'a mut [Block],
    /// Head dims by queries `[step]`.
    out: &'a mut [Block],
    /// Dropout's factors, and a place to turn them in.
    factors: &'a mut [Block],
}

impl Forward<'_> {
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
        let mut pieces = Pieces {
            keys: take_squares(&mut self.scratch, blocks * steps),
            values: take_squares(&mut self.scratch, blocks * steps),
            queries: take_squares(&mut self.scratch, steps),
            weights: take_squares(&mut self.scratch, CHUNK),
            scores: take_blocks(&mut self.scratch, CHUNK),
            out: take_blocks(&mut self.scratch, steps),
            factors: take_blocks(&mut self.scratch, 2),
        };
        for head in self.heads.clone() {
            let (batch, kv) = (head / shape.kv_heads, head % shape.kv_heads);
            let (k, v) = (key_rows(shape, self.k, batch, kv), key_rows(shape, self.v, batch, kv));
            if !v.are_finite(shape) {
                let (inputs, sums) = ([self.q, self.k, self.v], elements(pieces.out));
                exact::forward(shape, batch, kv, inputs, None, self.o, self.lse, sums);
                continue;
            }
            for block in 0..blocks {
                let (k, v) = (key_tile(shape, k, block), key_tile(shape, v, block));
                for step in 0..steps {
                    k.left(step, &mut pieces.keys[block * steps + step]);
                    v.left_transposed(step, &mut pieces.values[step * blocks + block]);
                }
            }
            for group in 0..shape.group {
                let head = Head { kv, group };
                let dropout = HeadDropout::new(shape, batch, head);
                for first in (0..shape.q_len).step_by(SIDE) {
                    // SAFETY: vouched for by the caller.
                    unsafe { self.queries(batch, head, first, dropout.as_ref(), &mut pieces) };
                }
            }
        }
    }

    /// All keys for up to 32 queries of one head.
    ///
    /// # Safety
    /// Tiles are ready.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn queries(
        &self,
        batch: usize,
        head: Head,
        first: usize,
        dropout: Option<&HeadDropout<f32>>,
        pieces: &mut Pieces,
    ) {
        let shape = self.shape;
        let (blocks, steps) = extents(shape);
        let limits = Limits::new(shape, first);
        let tile = query_tile(shape, query_rows(shape, self.q, batch, head), first);
        for (step, queries) in pieces.queries.iter_mut().enumerate() {
            tile.right(step, queries);
        }
        // Scores in units of ln 2.
        let scale = _mm512_set1_ps((shape.scale * std::f64::consts::LOG2_E) as f32);
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let (mut max, mut sum): (Lanes, Lanes) = ([lowest; 2], [_mm512_setzero_ps(); 2]);
        let seen = limits.blocks_seen(shape);
        for start in seen.clone().step_by(CHUNK) {
            let chunk = start..seen.end.min(start + CHUNK);
            let before = max;
            for (block, scores) in chunk.clone().zip(pieces.scores.iter_mut()) {
                let keys = along(&pieces.keys[block * steps..]);
                // SAFETY: vouched for by the caller.
                unsafe { multiply(steps, keys, along(pieces.queries), scores, false) };
                let keys = Keys::new(shape, block);
                if limits.see_all(&keys) {
                    maxima::<false>(scores, limits.mask(&keys), scale, &mut max);
                } else {
                    maxima::<true>(scores, limits.mask(&keys), scale, &mut max);
                }
            }
            // While no key was seen the maximum is -inf: shift by 0, so that the weights become 0 (or NaN).
            let mut shift = max;
            let mut shrink = max;
            for half in 0..2 {
                let none = _mm512_cmpeq_ps_mask(max[half], lowest);
                shift[half] = _mm512_mask_mov_ps(max[half], none, _mm512_setzero_ps());
                shrink[half] = exp2(_mm512_sub_ps(before[half], shift[half]));
                sum[half] = _mm512_mul_ps(sum[half], shrink[half]);
            }
            for (i, block) in chunk.clone().enumerate() {
                let keys = Keys::new(shape, block);
                let (scores, to) = (&pieces.scores[i], &mut pieces.weights[i]);
                let factors = dropout.map(|dropout| {
                    let [rows, factors] = &mut *pieces.factors else { unreachable!("two blocks") };
                    factors_of(shape, dropout, first, &keys, rows, factors);
                    &*factors
                });
                let mask = limits.mask(&keys);
                if limits.see_all(&keys) {
                    weights::<false>(scores, mask, scale, shift, factors, to, &mut sum);
                } else {
                    weights::<true>(scores, mask, scale, shift, factors, to, &mut sum);
                }
            }
            let earlier = start > seen.start;
            if earlier {
                let shrink = unpack_lanes(shrink);
                for row in pieces.out.iter_mut().flat_map(|out| &mut out.0) {
                    for half in 0..2 {
                        let shrunk = _mm512_mul_ps(pack::floats(&row[half]), shrink[half]);
                        pack::put(&mut row[half], shrunk);
                    }
                }
            }
            for (step, out) in pieces.out.iter_mut().enumerate() {
                let values = along(&pieces.values[step * blocks + start..]);
                // SAFETY: vouched for by the caller.
                unsafe { multiply(chunk.len(), values, along(pieces.weights), out, earlier) };
            }
        }
        self.finish(batch, head, first, max, sum, !seen.is_empty(), pieces.out);
    }

    /// Writes the results of up to 32 queries; `out` counts only if `any` key was seen.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn finish(
        &self,
        batch: usize,
        head: Head,
        first: usize,
        max: Lanes,
        sum: Lanes,
        any: bool,
        out: &[Block],
    ) {
        let shape = self.shape;
        let rows = SIDE.min(shape.q_len - first);
        let (mut inverse, mut lse) = (sum, [[0.0; 16]; 2]);
        for half in 0..2 {
            let unseen = _mm512_cmpeq_ps_mask(sum[half], _mm512_setzero_ps());
            inverse[half] = _mm512_maskz_div_ps(!unseen, _mm512_set1_ps(1.0), sum[half]);
            let known = _mm512_mul_ps(_mm512_add_ps(max[half], log2(sum[half])), _mm512_set1_ps(LN_2));
            let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
            pack::put(&mut lse[half], _mm512_mask_mov_ps(known, unseen, lowest));
        }
        let row_of = |i: usize| shape.q_row(batch, first + i, head);
        for (i, &lse) in lse.as_flattened()[..rows].iter().enumerate() {
            // SAFETY: rows of this head, which is this thread's, are written by it alone, one at a time.
            unsafe { self.lse.part(row_of(i)..row_of(i) + 1)[0] = lse };
        }
        let to = query_rows_mut(shape, self.o, batch, head, first);
        if !any {
            // SAFETY: as above.
            (0..rows).for_each(|i| unsafe { to.row(i) }.fill(bf16::ZERO));
            return;
        }
        let inverse = unpack_lanes(inverse);
        for (step, out) in out.iter().enumerate() {
            // SAFETY: as above.
            unsafe { put_columns(out, inverse, step, rows, to) };
        }
    }
}
