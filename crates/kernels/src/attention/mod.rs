//! Flash attention: softmax(scale Q K^T) V in tiles, never holding queries x keys.
//!
//! Here: what a call is told (`AttentionShape`), which keys a query may see, the entry points.
//! `tile` multiplies small tiles, `forward` and `backward` are the two passes.
//!
//! Source: Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023.

mod backward;
mod forward;
#[cfg(test)]
mod tests;
mod tile;

use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{Shared, min_rows, part_index};
use crate::random::{DropoutRule, Key};
use crate::storage::Storage;
use pulp::{Simd, WithSimd};
use std::ops::Range;
use tile::COLUMNS;

/// Queries per tile and keys per tile: a tile of scores and its operands stay in the L1/L2 cache.
const QUERIES: usize = 64;
const KEYS: usize = 64;

/// Queries whose keys are counted together: of a tile on the diagonal they see a part.
const STRIP: usize = 16;

/// Distance of rows of [`KEYS`] elements. Not a power of two: the rows of a column would fall into few sets of
/// the L1 cache.
const KEY_STRIDE: usize = KEYS + COLUMNS;

/// Products of a query's and a key's element that pay for a second thread.
const WORTHWHILE: usize = if cfg!(test) { 1 } else { 1 << 18 };

/// Extents of an attention call and the global indices behind its local positions.
///
/// # Shape
/// `q`, `o` and their gradients `[batch, q_len, kv_heads, group, head_dim]`; `k`, `v` and theirs
/// `[batch, k_len, kv_heads, head_dim]`; `lse` `[batch, q_len, kv_heads, group]`. All extents local.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// Sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys per sequence.
    pub k_len: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Query heads per key-value head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Global position of each local query, `[q_len]`.
    pub q_index: &'a [u32],
    /// Global position of each local key, `[k_len]`.
    pub k_index: &'a [u32],
    /// Global number of keys: a key whose index reaches it is padding and never seen.
    pub k_size: usize,
    /// Whether a query sees only keys at or before its own global position.
    pub causal: bool,
    /// Factor of the scores, usually 1 / sqrt(head_dim).
    pub scale: f64,
    /// Dropout of attention weights.
    pub dropout: Option<AttentionDropout<'a>>,
}

/// Dropout of attention weights after softmax, by global (batch, kv head, group, query, key) index.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDropout<'a> {
    /// Probability that a weight is dropped.
    pub p: f64,
    /// Random stream of this op and step.
    pub key: Key,
    /// Global index of each local sequence, `[batch]`.
    pub batch_index: &'a [u32],
    /// Global index of each local key-value head, `[kv_heads]`.
    pub kv_index: &'a [u32],
    /// Global index of each local group member, `[group]`.
    pub group_index: &'a [u32],
    /// Global number of key-value heads.
    pub kv_heads: usize,
    /// Global group size.
    pub group: usize,
    /// Global number of queries.
    pub q_size: usize,
    /// Global number of keys.
    pub k_size: usize,
}

/// Elements of scratch that either pass needs on so many threads: O(k_len head_dim) for each.
///
/// The same for every instruction set.
pub fn attention_scratch(shape: &AttentionShape, threads: usize) -> usize {
    // Slack to align the start.
    shape.threads(threads) * shape.scratch_per_thread() + COLUMNS
}

/// `o = dropout(softmax(scale q k^T)) v`, and `lse`, the logarithm of each softmax's denominator.
///
/// A query that sees no key gets `o = 0` and `lse = -inf`. Keys and values at padding positions are
/// never read as numbers. `scratch` holds at least [`attention_scratch`] elements, contents ignored.
/// Threads share the (sequence, key-value head) pairs.
pub fn attention_forward<S: Storage>(
    cpu: &Cpu,
    shape: &AttentionShape,
    q: &[S],
    k: &[S],
    v: &[S],
    o: &mut [S],
    lse: &mut [S::Wide],
    scratch: &mut [S::Wide],
) {
    shape.check(q.len(), k.len(), lse.len());
    assert!(v.len() == k.len() && o.len() == q.len(), "v like k, o like q");
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    shape.divide(cpu, scratch, |heads, scratch| {
        cpu.vectorised(forward::Forward { shape, heads, q, k, v, o: &o, lse: &lse, scratch });
    });
}

/// The gradients of [`attention_forward`] by `q`, `k` and `v`, all overwritten.
///
/// `o` and `lse` are the forward's results; weights are computed again from them. `dk` and `dv` are
/// summed over local queries and group members, in one fixed order.
pub fn attention_backward<S: Storage>(
    cpu: &Cpu,
    shape: &AttentionShape,
    q: &[S],
    k: &[S],
    v: &[S],
    o: &[S],
    lse: &[S::Wide],
    d_o: &[S],
    dq: &mut [S],
    dk: &mut [S],
    dv: &mut [S],
    scratch: &mut [S::Wide],
) {
    shape.check(q.len(), k.len(), lse.len());
    assert!(v.len() == k.len() && dk.len() == k.len() && dv.len() == k.len(), "v, dk, dv like k");
    assert!(o.len() == q.len() && d_o.len() == q.len() && dq.len() == q.len(), "o, d_o, dq like q");
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    shape.divide(cpu, scratch, |heads, scratch| {
        let (dq, dk, dv) = (&dq, &dk, &dv);
        cpu.vectorised(backward::Backward { shape, heads, q, k, v, o, lse, d_o, dq, dk, dv, scratch });
    });
}

impl AttentionShape<'_> {
    /// How many threads a call can use.
    fn threads(&self, threads: usize) -> usize {
        threads.min(self.batch * self.kv_heads).max(1)
    }

    /// The backward pass needs more than the forward: five copies of a head's keys or values, three
    /// of a tile of queries, two tiles of scores. Whole cache lines.
    fn scratch_per_thread(&self) -> usize {
        let row = self.row_stride();
        let transposed = self.padded_keys() / KEYS * self.padded_head_dim() * KEY_STRIDE;
        2 * transposed + 3 * self.padded_keys() * row + 3 * QUERIES * row + 2 * QUERIES * KEY_STRIDE
    }

    /// Calls `work` with ranges of (sequence, key-value head) pairs and scratch of its own for each.
    fn divide<T: Float>(
        &self,
        cpu: &Cpu,
        scratch: &mut [T],
        work: impl Fn(Range<usize>, Scratch<T>) + Send + Sync,
    ) {
        let (threads, each) = (self.threads(cpu.threads()), self.scratch_per_thread());
        assert!(scratch.len() >= attention_scratch(self, threads), "scratch is too small");
        let skip = scratch.as_ptr().align_offset(64).min(COLUMNS);
        let scratch = Shared::new(&mut scratch[skip..]);
        let num_heads = self.batch * self.kv_heads;
        let cost = self.q_len * self.k_len * self.head_dim * self.group;
        cpu.split(num_heads, 1, min_rows(WORTHWHILE, cost), |heads| {
            let part = part_index(&heads, num_heads, threads);
            // SAFETY: each part has a number of its own, at most one for each thread.
            let scratch = unsafe { scratch.part(part * each..(part + 1) * each) };
            work(heads, Scratch(scratch));
        });
    }

    fn check(&self, q: usize, k: usize, lse: usize) {
        let rows = self.batch * self.q_len * self.kv_heads * self.group;
        assert_eq!(q, rows * self.head_dim, "q has the wrong length");
        assert_eq!(lse, rows, "lse has the wrong length");
        let k_rows = self.batch * self.k_len * self.kv_heads;
        assert_eq!(k, k_rows * self.head_dim, "k has the wrong length");
        assert_eq!(self.q_index.len(), self.q_len, "q_index");
        assert_eq!(self.k_index.len(), self.k_len, "k_index");
        assert!(u32::try_from(self.k_size).is_ok(), "sequences have fewer than 2^32 keys");
        if let Some(dropout) = &self.dropout {
            assert_eq!(dropout.batch_index.len(), self.batch, "batch_index");
            assert_eq!(dropout.kv_index.len(), self.kv_heads, "kv_index");
            assert_eq!(dropout.group_index.len(), self.group, "group_index");
        }
    }

    /// The head width rounded up to whole vector columns.
    fn padded_head_dim(&self) -> usize {
        self.head_dim.next_multiple_of(COLUMNS)
    }

    /// Distance of rows of [`padded_head_dim`](Self::padded_head_dim) elements, for the reason of [`KEY_STRIDE`].
    fn row_stride(&self) -> usize {
        let width = self.padded_head_dim();
        if width.is_multiple_of(4 * COLUMNS) { width + COLUMNS } else { width }
    }

    /// The number of local keys rounded up to whole tiles.
    fn padded_keys(&self) -> usize {
        self.k_len.next_multiple_of(KEYS)
    }

    /// Offset of a query row in `q` and in `o`, in rows; `lse` is indexed by it directly.
    #[inline(always)]
    fn q_row(&self, batch: usize, query: usize, head: Head) -> usize {
        ((batch * self.q_len + query) * self.kv_heads + head.kv) * self.group + head.group
    }

    /// Offset of a key row in `k` and in `v`, in rows.
    #[inline(always)]
    fn k_row(&self, batch: usize, key: usize, kv: usize) -> usize {
        (batch * self.k_len + key) * self.kv_heads + kv
    }

    /// One past the last global key index that a local query sees.
    #[inline(always)]
    fn limit(&self, query: usize) -> u32 {
        let size = self.k_size as u32;
        if self.causal { self.q_index[query].saturating_add(1).min(size) } else { size }
    }

    /// The limits of up to [`QUERIES`] queries from `first`, and the largest of them.
    #[inline(always)]
    fn limits(&self, first: usize, rows: usize) -> ([u32; QUERIES], u32) {
        let mut limits = [0; QUERIES];
        let mut highest = 0;
        for (i, limit) in limits.iter_mut().enumerate().take(rows) {
            *limit = self.limit(first + i);
            highest = highest.max(*limit);
        }
        (limits, highest)
    }
}

/// A local query head.
#[derive(Clone, Copy)]
struct Head {
    kv: usize,
    group: usize,
}

/// The global indices of a tile of keys.
struct KeyTile {
    /// Keys in the tile.
    len: usize,
    /// `len` rounded up to whole vector columns; the columns beyond `len` are masked.
    columns: usize,
    index: [u32; KEYS],
    lowest: u32,
}

impl KeyTile {
    #[inline(always)]
    fn new(shape: &AttentionShape, first: usize) -> Self {
        let len = KEYS.min(shape.k_len - first);
        let columns = len.next_multiple_of(COLUMNS);
        // No limit exceeds u32::MAX, so this index is never seen.
        let mut index = [u32::MAX; KEYS];
        index[..len].copy_from_slice(&shape.k_index[first..][..len]);
        let mut lowest = u32::MAX;
        for &i in &index {
            lowest = lowest.min(i);
        }
        KeyTile { len, columns, index, lowest }
    }

    /// How many columns, from the first, hold all keys that a query with one of these limits sees.
    #[inline(always)]
    fn columns_seen(&self, limits: &[u32]) -> usize {
        let mut highest = 0;
        for &limit in limits {
            highest = highest.max(limit);
        }
        let mut columns = self.columns;
        while columns > 0 && self.index[columns - COLUMNS..columns].iter().all(|&index| index >= highest) {
            columns -= COLUMNS;
        }
        columns
    }
}

/// The score of a key, or -inf if a query with this limit does not see it.
#[inline(always)]
fn seen<T: Float>(score: T, index: u32, limit: u32) -> T {
    if index < limit { score } else { T::NEG_INFINITY }
}

/// Dropout of one head's weights: gives rows of factors 0 or 1 / (1 - p).
struct HeadDropout<'a, T> {
    rule: DropoutRule<T>,
    key: Key,
    /// Global linear index of this head's (query 0, key 0).
    start: u64,
    k_size: u64,
    q_index: &'a [u32],
}

impl<'a, T: Float> HeadDropout<'a, T> {
    #[inline(always)]
    fn new(shape: &AttentionShape<'a>, batch: usize, head: Head) -> Option<Self> {
        let dropout = shape.dropout.as_ref()?;
        let outer = u64::from(dropout.batch_index[batch]) * dropout.kv_heads as u64
            + u64::from(dropout.kv_index[head.kv]);
        let outer = outer * dropout.group as u64 + u64::from(dropout.group_index[head.group]);
        Some(HeadDropout {
            rule: DropoutRule::new(dropout.p),
            key: dropout.key,
            start: outer * dropout.q_size as u64 * dropout.k_size as u64,
            k_size: dropout.k_size as u64,
            q_index: shape.q_index,
        })
    }

    #[inline(always)]
    fn factors(&self, query: usize, keys: &KeyTile) -> [T; KEYS] {
        let row = self.start + u64::from(self.q_index[query]) * self.k_size;
        let mut factors = [T::ONE; KEYS];
        self.rule.factors(&self.key, row, &keys.index, &mut factors);
        factors
    }
}

/// Hands out consecutive pieces of one thread's scratch.
struct Scratch<'a, T>(&'a mut [T]);

impl<'a, T> Scratch<'a, T> {
    #[inline(always)]
    fn take(&mut self, len: usize) -> &'a mut [T] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        piece
    }
}

/// Copies one head's rows into tiles `[tile][padded_head_dim][KEY_STRIDE]`, transposed, zeros for padding keys.
#[inline(always)]
fn pack_transposed<S: Storage>(
    shape: &AttentionShape,
    batch: usize,
    kv: usize,
    x: &[S],
    out: &mut [S::Wide],
) {
    let tile_len = shape.padded_head_dim() * KEY_STRIDE;
    for (tile, out) in out.chunks_exact_mut(tile_len).enumerate() {
        for column in 0..KEYS {
            let key = tile * KEYS + column;
            let real = key < shape.k_len && (shape.k_index[key] as usize) < shape.k_size;
            if real {
                let row = &x[shape.k_row(batch, key, kv) * shape.head_dim..][..shape.head_dim];
                for (d, &x) in row.iter().enumerate() {
                    out[d * KEY_STRIDE + column] = x.widen();
                }
            } else {
                for d in 0..shape.head_dim {
                    out[d * KEY_STRIDE + column] = S::Wide::ZERO;
                }
            }
        }
    }
}

/// Copies one head's rows to `[padded_keys][row_stride]`, zeros for padding.
#[inline(always)]
fn pack_rows<S: Storage>(shape: &AttentionShape, batch: usize, kv: usize, x: &[S], out: &mut [S::Wide]) {
    for (key, out) in out.chunks_exact_mut(shape.row_stride()).enumerate() {
        let real = key < shape.k_len && (shape.k_index[key] as usize) < shape.k_size;
        if real {
            let row = &x[shape.k_row(batch, key, kv) * shape.head_dim..][..shape.head_dim];
            widen_row(row, &mut out[..shape.head_dim]);
            out[shape.head_dim..].fill(S::Wide::ZERO);
        } else {
            out.fill(S::Wide::ZERO);
        }
    }
}

#[inline(always)]
fn widen_row<S: Storage>(from: &[S], into: &mut [S::Wide]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = from.widen();
    }
}

/// `into = factor from`, rounded.
#[inline(always)]
fn narrow_row<S: Storage>(from: &[S::Wide], factor: S::Wide, into: &mut [S]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = S::narrow(from * factor);
    }
}
