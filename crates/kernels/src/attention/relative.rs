//! A learned bias of scores by the relative position of query and key, as T5 has it: looked up by distance, never held
//! as queries x keys of a tensor. What a tile of scores does with it; no product, no softmax.

use super::backward::Backward;
use super::forward::Forward;
use super::*;

/// Which row of the table of biases belongs to a distance: exact for near keys, logarithmic for far ones.
///
/// # Source
/// Raffel et al., "Exploring the Limits of Transfer Learning", 2020, section 2.1, as published with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeBuckets {
    /// Rows of the table.
    pub num: usize,
    /// Distance from which on all share the last row.
    pub max_distance: usize,
    /// Whether keys before and behind a query have rows of their own; else those behind it are at distance 0.
    pub bidirectional: bool,
}

impl RelativeBuckets {
    /// The row for a key and a query at global positions.
    pub fn of(&self, query: u32, key: u32) -> usize {
        let (query, key) = (u64::from(query), u64::from(key));
        let (num, first, distance) = match self.bidirectional {
            true if key > query => (self.num / 2, self.num / 2, key - query),
            true => (self.num / 2, 0, query - key),
            false => (self.num, 0, query.saturating_sub(key)),
        };
        let (exact, distance) = (num / 2, distance as usize);
        if distance < exact {
            return first + distance;
        }
        let logarithm = |x: usize| (x as f64 / exact as f64).ln();
        let beyond = logarithm(distance) / logarithm(self.max_distance) * (num - exact) as f64;
        first + (exact + beyond as usize).min(num - 1)
    }

    /// The rows for keys from furthest before a query to furthest behind it, where no two positions are further apart
    /// than `positions`: as [`RelativeBias::rows`] wants them.
    pub fn rows(&self, positions: usize) -> Vec<u32> {
        let reach = positions.min(self.max_distance) as u32;
        let before = (1..=reach).rev().map(|distance| self.of(distance, 0));
        let behind = (0..=reach).map(|distance| self.of(0, distance));
        before.chain(behind).map(|row| row as u32).collect()
    }
}

/// The biases of all local heads.
#[derive(Debug, Clone, Copy)]
pub struct RelativeBias<'a, T> {
    /// `[buckets, kv_heads, group]`.
    pub table: &'a [T],
    /// The table's row for each distance of a key from a query, an odd number of them with distance 0 in the middle;
    /// what is further counts as the furthest. See [`RelativeBuckets::rows`].
    pub rows: &'a [u32],
}

/// Elements of scratch that either pass with a bias needs on so many threads: as
/// [`attention_scratch`](super::attention_scratch), and a head's biases by distance.
pub fn relative_attention_scratch(
    shape: &AttentionShape,
    buckets: usize,
    rows: usize,
    threads: usize,
) -> usize {
    attention_scratch(shape, threads)
        + shape.threads(threads) * scratch_per_thread(rows)
        + shape.batch * shape.kv_heads * shape.group * buckets
}

/// A head's biases by distance and the gradients by them.
fn scratch_per_thread(rows: usize) -> usize {
    (2 * rows).next_multiple_of(COLUMNS)
}

/// [`attention_forward`](super::attention_forward) with a bias added to the scaled scores.
///
/// `scratch` holds at least [`relative_attention_scratch`] elements.
pub fn relative_attention_forward<S: Storage>(
    cpu: &Cpu,
    shape: &AttentionShape,
    bias: &RelativeBias<S::Wide>,
    q: &[S],
    k: &[S],
    v: &[S],
    o: &mut [S],
    lse: &mut [S::Wide],
    scratch: &mut [S::Wide],
) {
    shape.check(q.len(), k.len(), lse.len());
    assert!(v.len() == k.len() && o.len() == q.len(), "v like k, o like q");
    bias.check(shape);
    let (o, lse) = (&Shared::new(o), &Shared::new(lse));
    shape.divide(cpu, scratch_per_thread(bias.rows.len()), scratch, |shape, heads, scratch| {
        cpu.vectorised(Forward { shape, heads, q, k, v, bias: Some(bias), o, lse, scratch });
    });
}

/// The gradients of [`relative_attention_forward`] by `q`, `k`, `v` and the table, all overwritten.
pub fn relative_attention_backward<S: Storage>(
    cpu: &Cpu,
    shape: &AttentionShape,
    bias: &RelativeBias<S::Wide>,
    q: &[S],
    k: &[S],
    v: &[S],
    o: &[S],
    lse: &[S::Wide],
    d_o: &[S],
    dq: &mut [S],
    dk: &mut [S],
    dv: &mut [S],
    d_table: &mut [S::Wide],
    scratch: &mut [S::Wide],
) {
    shape.check(q.len(), k.len(), lse.len());
    assert!(v.len() == k.len() && dk.len() == k.len() && dv.len() == k.len(), "v, dk, dv like k");
    assert!(o.len() == q.len() && d_o.len() == q.len() && dq.len() == q.len(), "o, d_o, dq like q");
    assert_eq!(d_table.len(), bias.table.len(), "d_table like table");
    bias.check(shape);
    let heads = shape.kv_heads * shape.group;
    // Sequences are summed afterwards, in one order whatever the number of threads.
    let (by_sequence, scratch) = scratch.split_at_mut(shape.batch * d_table.len());
    by_sequence.fill(S::Wide::ZERO);
    let parts = &Shared::new(by_sequence);
    let (dq, dk, dv) = (&Shared::new(dq), &Shared::new(dk), &Shared::new(dv));
    shape.divide(cpu, scratch_per_thread(bias.rows.len()), scratch, |shape, heads, scratch| {
        let bias = Some(BiasGradient { of: *bias, parts });
        cpu.vectorised(Backward { shape, heads, q, k, v, o, lse, d_o, bias, dq, dk, dv, scratch });
    });
    d_table.fill(S::Wide::ZERO);
    for of_sequence in by_sequence.chunks_exact(d_table.len()) {
        for (head, of_head) in of_sequence.chunks_exact(d_table.len() / heads).enumerate() {
            for (row, d) in of_head.iter().enumerate() {
                d_table[row * heads + head] += *d;
            }
        }
    }
}

impl<T: Float> RelativeBias<'_, T> {
    fn check(&self, shape: &AttentionShape) {
        let heads = shape.kv_heads * shape.group;
        assert!(self.table.len().is_multiple_of(heads), "table has the wrong length");
        assert!(!self.rows.len().is_multiple_of(2), "distance 0 is in the middle");
        let num = self.table.len() / heads;
        assert!(self.rows.iter().all(|row| (*row as usize) < num), "a row beyond the table");
    }

    /// One head's bias by distance.
    #[inline(always)]
    pub(super) fn by_distance(&self, shape: &AttentionShape, head: Head, to: &mut [T]) {
        for (to, row) in to.iter_mut().zip(self.rows) {
            *to = self.table[element(shape, head, *row)];
        }
    }

    /// The bias of one local query and key.
    #[inline(always)]
    pub(super) fn of(&self, shape: &AttentionShape, head: Head, query: usize, key: usize) -> T {
        let at = distance(self.rows.len(), shape.q_index[query], shape.k_index[key]);
        self.table[element(shape, head, self.rows[at])]
    }
}

/// A head's element of a row of the table.
#[inline(always)]
fn element(shape: &AttentionShape, head: Head, row: u32) -> usize {
    (row as usize * shape.kv_heads + head.kv) * shape.group + head.group
}

/// The bias, and where each head of each sequence leaves the gradients by its elements of the table.
pub(super) struct BiasGradient<'a, T> {
    pub(super) of: RelativeBias<'a, T>,
    /// `[batch, kv_heads, group, buckets]`, zero to begin with.
    parts: &'a Shared<'a, T>,
}

impl<T: Float> BiasGradient<'_, T> {
    /// Where the part of a head of a sequence lies.
    #[inline(always)]
    fn part(&self, shape: &AttentionShape, batch: usize, head: Head) -> Range<usize> {
        let num = self.of.table.len() / (shape.kv_heads * shape.group);
        let at = ((batch * shape.kv_heads + head.kv) * shape.group + head.group) * num;
        at..at + num
    }

    /// Adds a head's gradients by distance.
    #[inline(always)]
    pub(super) fn put(&self, shape: &AttentionShape, batch: usize, head: Head, by_distance: &[T]) {
        // SAFETY: parts of this head, which is this thread's, are written by it alone, one at a time.
        let part = unsafe { self.parts.part(self.part(shape, batch, head)) };
        for (d, row) in by_distance.iter().zip(self.of.rows) {
            part[*row as usize] += *d;
        }
    }

    /// Adds the gradient by the score of one local query and key.
    #[inline(always)]
    pub(super) fn add(
        &self,
        shape: &AttentionShape,
        batch: usize,
        head: Head,
        query: usize,
        key: usize,
        d_score: T,
    ) {
        let at = distance(self.of.rows.len(), shape.q_index[query], shape.k_index[key]);
        // SAFETY: as in `put`.
        let part = unsafe { self.parts.part(self.part(shape, batch, head)) };
        part[self.of.rows[at] as usize] += d_score;
    }
}

/// Position of a pair among `len` distances.
#[inline(always)]
fn distance(len: usize, query: u32, key: u32) -> usize {
    let reach = (len / 2) as i64;
    ((i64::from(key) - i64::from(query)).clamp(-reach, reach) + reach) as usize
}

/// Adds a head's bias to the scores of some queries, a row for each key. Queries beyond the last have none.
#[inline(always)]
pub(super) fn add<T: Float>(
    by_distance: &[T],
    queries: &[u32],
    keys: &[u32],
    scores: &mut [T],
    stride: usize,
) {
    for (row, key) in scores.chunks_mut(stride).zip(keys) {
        for (score, query) in row.iter_mut().zip(queries) {
            *score += by_distance[distance(by_distance.len(), *query, *key)];
        }
    }
}

/// Sums the gradients by such scores by distance.
#[inline(always)]
pub(super) fn collect<T: Float>(
    by_distance: &mut [T],
    queries: &[u32],
    keys: &[u32],
    d_scores: &[T],
    stride: usize,
) {
    let len = by_distance.len();
    for (row, key) in d_scores.chunks(stride).zip(keys) {
        for (d, query) in row.iter().zip(queries) {
            by_distance[distance(len, *query, *key)] += *d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::tests::kept;
    use crate::testing::{assert_close, cpus, dot, finite_difference, poisoned, random};

    const KV: usize = 2;
    const GROUP: usize = 2;
    const DIM: usize = 3;
    const BUCKETS: RelativeBuckets = RelativeBuckets { num: 8, max_distance: 10, bidirectional: true };

    #[test]
    fn near_keys_have_buckets_of_their_own_and_far_ones_share() {
        let of = |distance: u32, bidirectional| {
            let buckets = RelativeBuckets { num: 32, max_distance: 128, bidirectional };
            [buckets.of(1000, 1000 - distance), buckets.of(1000, 1000 + distance)]
        };
        for (distance, both, before) in [
            (0, [0, 0], 0),
            (7, [7, 23], 7),
            (8, [8, 24], 8),
            (16, [10, 26], 16),
            (32, [12, 28], 21),
            (127, [15, 31], 31),
            (900, [15, 31], 31),
        ] {
            assert_eq!(of(distance, true), both, "{distance}");
            assert_eq!(of(distance, false), [before, 0], "{distance}");
        }
    }

    #[test]
    fn rows_are_the_buckets_of_distances() {
        for (positions, bidirectional) in [(5, true), (300, false), (300, true), (0, true)] {
            let buckets = RelativeBuckets { num: 32, max_distance: 128, bidirectional };
            let rows = buckets.rows(positions);
            for apart in 0..=positions as u32 {
                for (query, key) in [(7, 7 + apart), (7 + apart, 7)] {
                    let row = rows[distance(rows.len(), query, key)] as usize;
                    assert_eq!(row, buckets.of(query, key), "{query} {key} {bidirectional}");
                }
            }
        }
    }

    fn reference(shape: &AttentionShape, buckets: &RelativeBuckets, x: [&[f64]; 4]) -> Vec<f64> {
        let [q, k, v, table] = x;
        let mut o = vec![0.0; q.len()];
        for row in 0..q.len() / DIM {
            let (g, kv, s) = (row % GROUP, row / GROUP % KV, row / (GROUP * KV) % shape.q_len);
            let b = row / (GROUP * KV * shape.q_len);
            let query = shape.q_index[s];
            let weight = |t: usize| {
                let key = shape.k_index[b * shape.k_len + t];
                if key as usize >= shape.k_size || (shape.causal && key > query) {
                    return 0.0;
                }
                let at = ((b * shape.k_len + t) * KV + kv) * DIM;
                let bias = table[(buckets.of(query, key) * KV + kv) * GROUP + g];
                (shape.scale * dot(&q[row * DIM..][..DIM], &k[at..][..DIM]) + bias).exp()
            };
            let sum: f64 = (0..shape.k_len).map(weight).sum();
            for t in (0..shape.k_len).filter(|_| sum > 0.0) {
                let place = [b, kv, g, query as usize, shape.k_index[b * shape.k_len + t] as usize];
                let p = weight(t) / sum * shape.dropout.as_ref().map_or(1.0, |d| kept(d, place));
                for i in 0..DIM {
                    o[row * DIM + i] += p * v[((b * shape.k_len + t) * KV + kv) * DIM + i];
                }
            }
        }
        o
    }

    /// Both passes with several widths of tiles, padding on the right, on the left, everywhere and nowhere; with causal
    /// masks also dropout.
    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        for (q_len, k_len) in [(5, 7), (37, 101)] {
            let mut keys: Vec<u32> = Vec::new();
            for seen in [0..4, 2..k_len, 0..0, 0..k_len] {
                keys.extend(
                    (0..k_len as u32).map(|t| if seen.contains(&(t as usize)) { t } else { u32::MAX }),
                );
            }
            let q_index: Vec<u32> = (0..q_len as u32).map(|i| i + i / 3).collect();
            for causal in [true, false] {
                let shape = AttentionShape {
                    batch: 4,
                    q_len,
                    k_len,
                    kv_heads: KV,
                    group: GROUP,
                    head_dim: DIM,
                    q_index: &q_index,
                    k_index: &keys,
                    k_size: k_len,
                    causal,
                    scale: 0.7,
                    dropout: causal.then_some(AttentionDropout {
                        p: 0.3,
                        key: Key::new(5, 1, "attention"),
                        batch_index: &[0, 1, 2, 3],
                        kv_index: &[0, 1],
                        group_index: &[0, 1, 2][..GROUP],
                        kv_heads: KV,
                        group: GROUP,
                        q_size: 2 * q_len,
                        k_size: k_len,
                    }),
                };
                let buckets = RelativeBuckets { bidirectional: !causal, ..BUCKETS };
                let q = random::<f64>(1, 4 * q_len * KV * GROUP * DIM);
                let [k, v] = [2, 3].map(|seed| random::<f64>(seed, 4 * k_len * KV * DIM));
                let (table, d_o) = (random::<f64>(4, 8 * KV * GROUP), random::<f64>(5, q.len()));
                let slope =
                    |x: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>| finite_difference(x, |x| dot(&f(x), &d_o));
                let small = q_len < 10;
                let slopes = small.then(|| {
                    [
                        slope(&q, &|q| reference(&shape, &buckets, [q, &k, &v, &table])),
                        slope(&k, &|k| reference(&shape, &buckets, [&q, k, &v, &table])),
                        slope(&v, &|v| reference(&shape, &buckets, [&q, &k, v, &table])),
                    ]
                });
                let d_expected = slope(&table, &|table| reference(&shape, &buckets, [&q, &k, &v, table]));
                let rows = buckets.rows(shape.k_size.max(q_index.len() * 2));
                let bias = RelativeBias { table: &table, rows: &rows };
                for cpu in cpus() {
                    let (mut o, mut lse) = (poisoned::<f64>(q.len()), poisoned::<f64>(q.len() / DIM));
                    let len = relative_attention_scratch(&shape, 8, rows.len(), cpu.threads());
                    let mut scratch = poisoned::<f64>(len);
                    relative_attention_forward(
                        cpu,
                        &shape,
                        &bias,
                        &q,
                        &k,
                        &v,
                        &mut o,
                        &mut lse,
                        &mut scratch,
                    );
                    assert_close(&o, &reference(&shape, &buckets, [&q, &k, &v, &table]), 1e-13);
                    let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| poisoned::<f64>(x.len()));
                    let mut d_table = poisoned::<f64>(table.len());
                    relative_attention_backward(
                        cpu,
                        &shape,
                        &bias,
                        &q,
                        &k,
                        &v,
                        &o,
                        &lse,
                        &d_o,
                        &mut dq,
                        &mut dk,
                        &mut dv,
                        &mut d_table,
                        &mut scratch,
                    );
                    assert_close(&d_table, &d_expected, 1e-8);
                    if let Some([q, k, v]) = &slopes {
                        assert_close(&dq, q, 1e-8);
                        assert_close(&dk, k, 1e-8);
                        assert_close(&dv, v, 1e-8);
                    }
                }
            }
        }
    }

    /// What nobody has computed for lanes without a query must not reach gradients, however large the bias.
    #[test]
    fn a_large_bias_stays_with_its_queries() {
        let index: Vec<u32> = (0..3).collect();
        let shape = AttentionShape {
            batch: 1,
            q_len: 3,
            k_len: 3,
            kv_heads: 1,
            group: 1,
            head_dim: 2,
            q_index: &index,
            k_index: &index,
            k_size: 3,
            causal: false,
            scale: 1.0,
            dropout: None,
        };
        let table = [900.0_f32; 8];
        let rows = BUCKETS.rows(3);
        let bias = RelativeBias { table: &table, rows: &rows };
        let [q, k, v, d_o] = [1, 2, 3, 4].map(|seed| random::<f32>(seed, 6));
        for cpu in cpus() {
            let mut scratch =
                poisoned::<f32>(relative_attention_scratch(&shape, 8, rows.len(), cpu.threads()));
            let (mut o, mut lse) = (poisoned::<f32>(6), poisoned::<f32>(3));
            relative_attention_forward(cpu, &shape, &bias, &q, &k, &v, &mut o, &mut lse, &mut scratch);
            let [mut dq, mut dk, mut dv] = [(); 3].map(|()| poisoned::<f32>(6));
            let mut d_table = poisoned::<f32>(8);
            relative_attention_backward(
                cpu,
                &shape,
                &bias,
                &q,
                &k,
                &v,
                &o,
                &lse,
                &d_o,
                &mut dq,
                &mut dk,
                &mut dv,
                &mut d_table,
                &mut scratch,
            );
            assert!([o, dq, dk, dv, d_table].iter().flatten().all(|x| x.is_finite()));
        }
    }
}
