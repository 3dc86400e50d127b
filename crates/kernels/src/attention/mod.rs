//! Flash attention: softmax(scale Q K^T) V in tiles, never holding queries x keys.
//!
//! Here: what a call is told (`AttentionShape`), which keys a query may see, the entry points.
//! `forward` and `backward` are the two passes, in which `tile` multiplies and `lanes` is what happens between
//! products. `relative` adds biases by relative position to scores. `amx` is both passes for bf16 on a processor with
//! tiles, `exact` for heads that are not finite.
//!
//! Source: Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023.

#[cfg(target_arch = "x86_64")]
mod amx;
mod backward;
mod exact;
mod forward;
mod lanes;
#[cfg(test)]
mod padded_tests;
pub(crate) mod relative;
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
use tile::{COLUMNS, transpose};

/// Keys whose scores are computed together: these, and the rows they are made of, stay in the L1/L2 cache. Whole
/// register tiles of 12 rows, and whole vectors.
const KEYS: usize = 96;

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
    /// Global position of each local key, `[k_len]`; `[batch, k_len]` if each sequence has keys of its own, as in
    /// padded batches.
    pub k_index: &'a [u32],
    /// Global number of keys: a key whose index reaches it is padding or masked, and never seen.
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
    #[cfg(target_arch = "x86_64")]
    if let Some([q, k, v]) = amx::serve(cpu, [q, k, v]) {
        let (o, lse, scratch) = (amx::cast_mut(o), amx::cast_mut(lse), amx::cast_mut(scratch));
        return amx::forward(cpu, shape, q, k, v, o, lse, scratch);
    }
    let (o, lse) = (Shared::new(o), Shared::new(lse));
    shape.divide(cpu, 0, scratch, |shape, heads, scratch| {
        let (o, lse) = (&o, &lse);
        cpu.vectorised(forward::Forward { shape, heads, q, k, v, bias: None, o, lse, scratch });
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
    #[cfg(target_arch = "x86_64")]
    if let Some([q, k, v, o, d_o]) = amx::serve(cpu, [q, k, v, o, d_o]) {
        let [dq, dk, dv] = [dq, dk, dv].map(amx::cast_mut);
        let (lse, scratch) = (amx::cast(lse), amx::cast_mut(scratch));
        return amx::backward(cpu, shape, q, k, v, o, lse, d_o, dq, dk, dv, scratch);
    }
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    shape.divide(cpu, 0, scratch, |shape, heads, scratch| {
        let (dq, dk, dv) = (&dq, &dk, &dv);
        let bias = None;
        cpu.vectorised(backward::Backward { shape, heads, q, k, v, o, lse, d_o, bias, dq, dk, dv, scratch });
    });
}

impl AttentionShape<'_> {
    /// How many threads a call can use.
    fn threads(&self, threads: usize) -> usize {
        threads.min(self.batch * self.kv_heads).max(1)
    }

    /// Whole cache lines, the same for every type and instruction set.
    fn scratch_per_thread(&self) -> usize {
        let vectors = forward::scratch(self).max(backward::scratch(self));
        #[cfg(target_arch = "x86_64")]
        let vectors = vectors.max(amx::scratch_per_thread(self));
        vectors
    }

    /// Calls `work` with ranges of (sequence, key-value head) pairs, a shape whose table of keys is theirs, and scratch
    /// of its own, of `more` elements than the passes need without a bias (whole cache lines).
    fn divide<T: Float>(
        &self,
        cpu: &Cpu,
        more: usize,
        scratch: &mut [T],
        work: impl Fn(&AttentionShape, Range<usize>, Scratch<T>) + Send + Sync,
    ) {
        let (threads, each) = (self.threads(cpu.threads()), self.scratch_per_thread() + more);
        assert!(scratch.len() >= threads * each + COLUMNS, "scratch is too small");
        let skip = scratch.as_ptr().align_offset(64).min(COLUMNS);
        let scratch = Shared::new(&mut scratch[skip..]);
        let num_heads = self.batch * self.kv_heads;
        let cost = self.q_len * self.k_len * self.head_dim * self.group;
        cpu.split(num_heads, 1, min_rows(WORTHWHILE, cost), |heads| {
            let part = part_index(&heads, num_heads, threads);
            // SAFETY: each part has a number of its own, at most one for each thread.
            let scratch = unsafe { scratch.part(part * each..(part + 1) * each) };
            if self.k_index.len() == self.k_len {
                return work(self, heads, Scratch(scratch));
            }
            for batch in heads.start / self.kv_heads..heads.end.div_ceil(self.kv_heads) {
                let k_index = &self.k_index[batch * self.k_len..][..self.k_len];
                let of_sequence = batch * self.kv_heads..(batch + 1) * self.kv_heads;
                let heads = heads.start.max(of_sequence.start)..heads.end.min(of_sequence.end);
                work(&AttentionShape { k_index, ..*self }, heads, Scratch(&mut *scratch));
            }
        });
    }

    fn check(&self, q: usize, k: usize, lse: usize) {
        let rows = self.batch * self.q_len * self.kv_heads * self.group;
        assert_eq!(q, rows * self.head_dim, "q has the wrong length");
        assert_eq!(lse, rows, "lse has the wrong length");
        let k_rows = self.batch * self.k_len * self.kv_heads;
        assert_eq!(k, k_rows * self.head_dim, "k has the wrong length");
        assert_eq!(self.q_index.len(), self.q_len, "q_index");
        let shared = self.k_index.len() == self.k_len;
        assert!(shared || self.k_index.len() == self.batch * self.k_len, "k_index");
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

    /// Distance of rows of [`padded_head_dim`](Self::padded_head_dim) elements. Not a power of two: the rows of a
    /// column would fall into few sets of the L1 cache.
    fn row_stride(&self) -> usize {
        let width = self.padded_head_dim();
        if width.is_multiple_of(4 * COLUMNS) { width + COLUMNS } else { width }
    }

    /// Elements of a head's keys or values, transposed in chunks.
    fn transposed_len(&self) -> usize {
        self.k_len.div_ceil(KEYS) * self.padded_head_dim() * KEY_STRIDE
    }

    /// Rows of dropout's factors that are kept.
    fn factor_rows(&self) -> usize {
        if self.dropout.is_some() { KEYS } else { 0 }
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

    /// The global positions of `len` queries from `first`, without those beyond the last.
    #[inline(always)]
    fn q_part(&self, first: usize, len: usize) -> &[u32] {
        &self.q_index[first.min(self.q_len)..self.q_len.min(first + len)]
    }

    /// The limits of some queries from `first`. Those beyond the last are as the last: they make no difference.
    #[inline(always)]
    fn limits<const N: usize>(&self, first: usize) -> [u32; N] {
        let mut limits = [0; N];
        for (i, limit) in limits.iter_mut().enumerate() {
            *limit = self.limit((first + i).min(self.q_len - 1));
        }
        limits
    }
}

/// A local query head.
#[derive(Clone, Copy)]
struct Head {
    kv: usize,
    group: usize,
}

/// How many of some keys, from the first, hold all that a query with one of these limits sees.
#[inline(always)]
fn keys_seen(index: &[u32], limits: &[u32]) -> usize {
    let highest = limits.iter().fold(0, |highest: u32, &limit| highest.max(limit));
    // Most chunks are seen to the end or not at all.
    let lowest = index.iter().fold(u32::MAX, |lowest: u32, &index| lowest.min(index));
    if lowest >= highest {
        return 0;
    }
    index.iter().rposition(|&index| index < highest).map_or(0, |last| last + 1)
}

/// Ranges of keys and of queries that together hold all pairs that are seen, for two parts of `part` queries, of
/// which each sees that many keys: first what both see, then what one sees alone. Empty ones are left out.
#[inline(always)]
fn products(seen: [usize; 2], part: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let more = usize::from(seen[1] > seen[0]);
    let both = (0..seen[1 - more], 0..2 * part);
    let one = (seen[1 - more]..seen[more], more * part..(more + 1) * part);
    [both, one].into_iter().filter(|(keys, _)| !keys.is_empty())
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
    fn factors(&self, query: usize, k_index: &[u32], factors: &mut [T]) {
        let row = self.start + u64::from(self.q_index[query]) * self.k_size;
        self.rule.factors(&self.key, row, k_index, factors);
    }

    /// The factors of `queries` queries from `first`, a row for each of at most [`KEYS`] keys. `rows` is a place for
    /// as many.
    #[inline(always)]
    fn columns<V: Simd>(
        &self,
        simd: V,
        first: usize,
        k_index: &[u32],
        rows: &mut [T],
        factors: &mut [T],
        queries: usize,
    ) {
        for (i, row) in rows.chunks_exact_mut(KEYS).take(queries).enumerate() {
            let query = (first + i).min(self.q_index.len() - 1);
            self.factors(query, k_index, &mut row[..k_index.len()]);
        }
        transpose(simd, [queries, KEYS], rows, KEYS, factors, queries);
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

/// Copies one head's keys or values from `first` to rows [`row_stride`](AttentionShape::row_stride) apart, zeros
/// for padding.
#[inline(always)]
fn pack_keys<S: Storage>(
    shape: &AttentionShape,
    batch: usize,
    kv: usize,
    first: usize,
    x: &[S],
    out: &mut [S::Wide],
) {
    for (key, out) in (first..).zip(out.chunks_exact_mut(shape.row_stride())) {
        if (shape.k_index[key] as usize) < shape.k_size {
            let row = &x[shape.k_row(batch, key, kv) * shape.head_dim..][..shape.head_dim];
            widen_row(row, S::Wide::ONE, out);
        } else {
            out.fill(S::Wide::ZERO);
        }
    }
}

/// Copies one head's keys or values to chunks `[padded_head_dim][KEY_STRIDE]`, transposed, zeros for padding.
/// `rows` is a place for [`KEYS`] rows.
#[inline(always)]
fn pack_keys_transposed<S: Storage, V: Simd>(
    simd: V,
    shape: &AttentionShape,
    batch: usize,
    kv: usize,
    x: &[S],
    rows: &mut [S::Wide],
    out: &mut [S::Wide],
) {
    let (width, stride) = (shape.padded_head_dim(), shape.row_stride());
    let rows = &mut rows[..KEYS * stride];
    for (chunk, out) in out.chunks_exact_mut(width * KEY_STRIDE).enumerate() {
        let first = chunk * KEYS;
        let count = KEYS.min(shape.k_len - first);
        pack_keys(shape, batch, kv, first, x, &mut rows[..count * stride]);
        rows[count * stride..].fill(S::Wide::ZERO);
        transpose(simd, [KEYS, width], rows, stride, out, KEY_STRIDE);
    }
}

/// Copies some queries from `first`, times a factor, to rows likewise, zeros for those beyond the last.
#[inline(always)]
fn pack_queries<S: Storage>(
    shape: &AttentionShape,
    batch: usize,
    head: Head,
    first: usize,
    x: &[S],
    factor: S::Wide,
    out: &mut [S::Wide],
) {
    for (i, out) in out.chunks_exact_mut(shape.row_stride()).enumerate() {
        if first + i < shape.q_len {
            let row = &x[shape.q_row(batch, first + i, head) * shape.head_dim..][..shape.head_dim];
            widen_row(row, factor, out);
        } else {
            out.fill(S::Wide::ZERO);
        }
    }
}

/// `into = factor from`, and zeros after it.
#[inline(always)]
fn widen_row<S: Storage>(from: &[S], factor: S::Wide, into: &mut [S::Wide]) {
    let (into, rest) = into.split_at_mut(from.len());
    for (into, &from) in into.iter_mut().zip(from) {
        *into = from.widen() * factor;
    }
    rest.fill(S::Wide::ZERO);
}

/// `into = factor from`, rounded.
#[inline(always)]
fn narrow_row<S: Storage>(from: &[S::Wide], factor: S::Wide, into: &mut [S]) {
    for (into, &from) in into.iter_mut().zip(from) {
        *into = S::narrow(from * factor);
    }
}
