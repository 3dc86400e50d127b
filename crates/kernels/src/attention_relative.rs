//! Attention whose scores have a learned bias by the relative position of query and key, as T5 has it. Query by query,
//! without tiles: the bias is looked up, never held as queries x keys. What a call is told is `attention`'s.

use crate::attention::AttentionShape;
use crate::float::Float;
use crate::storage::Storage;

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
}

/// Elements of scratch that either pass needs.
pub fn relative_attention_scratch(shape: &AttentionShape) -> usize {
    // Weights of one query and a sum for it; keys' and values' gradients of one head.
    shape.k_len * (1 + 2 * shape.head_dim) + shape.head_dim
}

/// `o = softmax(scale q k^T + bias) v`, and `lse`, the logarithm of each softmax's denominator. A query that sees no key
/// gets `o = 0` and `lse = -inf`. Dropout is not supported.
///
/// # Shape
/// As [`attention_forward`](crate::attention_forward); `table` `[buckets, kv_heads, group]`; `key_index`
/// `[batch, k_len]`, if each sequence has keys of its own (see
/// [`masked_attention_forward`](crate::masked_attention_forward)).
pub fn relative_attention_forward<S: Storage>(
    shape: &AttentionShape,
    buckets: &RelativeBuckets,
    table: &[S::Wide],
    key_index: Option<&[u32]>,
    q: &[S],
    k: &[S],
    v: &[S],
    o: &mut [S],
    lse: &mut [S::Wide],
    scratch: &mut [S::Wide],
) {
    let heads = Heads::new(shape, buckets, table, key_index, q.len(), k.len());
    let dim = shape.head_dim;
    let (weights, scratch) = scratch.split_at_mut(shape.k_len);
    let sum = &mut scratch[..dim];
    for row in 0..q.len() / dim {
        let place = heads.place(row);
        let q = &q[row * dim..][..dim];
        let max = heads.scores(&place, q, k, weights);
        let shift = if max == S::Wide::NEG_INFINITY { S::Wide::ZERO } else { max };
        sum.fill(S::Wide::ZERO);
        let mut total = S::Wide::ZERO;
        for (t, weight) in weights.iter().enumerate() {
            if *weight == S::Wide::NEG_INFINITY {
                continue;
            }
            let p = Float::exp(*weight - shift);
            total += p;
            for (sum, v) in sum.iter_mut().zip(&v[heads.key(&place, t)..][..dim]) {
                *sum += p * v.widen();
            }
        }
        lse[row] = if total == S::Wide::ZERO { S::Wide::NEG_INFINITY } else { shift + Float::ln(total) };
        let inverse = if total == S::Wide::ZERO { S::Wide::ZERO } else { S::Wide::ONE / total };
        for (o, sum) in o[row * dim..][..dim].iter_mut().zip(&*sum) {
            *o = S::narrow(*sum * inverse);
        }
    }
}

/// The gradients of [`relative_attention_forward`] by `q`, `k`, `v` and `table`, all overwritten.
pub fn relative_attention_backward<S: Storage>(
    shape: &AttentionShape,
    buckets: &RelativeBuckets,
    table: &[S::Wide],
    key_index: Option<&[u32]>,
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
    let heads = Heads::new(shape, buckets, table, key_index, q.len(), k.len());
    assert_eq!(d_table.len(), table.len(), "d_table like table");
    let (dim, scale) = (shape.head_dim, S::Wide::from_f64(shape.scale));
    let (weights, scratch) = scratch.split_at_mut(shape.k_len);
    let (dk_head, scratch) = scratch.split_at_mut(shape.k_len * dim);
    let (dv_head, scratch) = scratch.split_at_mut(shape.k_len * dim);
    let sum = &mut scratch[..dim];
    d_table.fill(S::Wide::ZERO);
    for batch in 0..shape.batch {
        for kv in 0..shape.kv_heads {
            dk_head.fill(S::Wide::ZERO);
            dv_head.fill(S::Wide::ZERO);
            for (query, group) in (0..shape.q_len).flat_map(|s| (0..shape.group).map(move |g| (s, g))) {
                let place = Place { batch, query, kv, group };
                let row = ((batch * shape.q_len + query) * shape.kv_heads + kv) * shape.group + group;
                let range = row * dim..(row + 1) * dim;
                let (q, o, d_o) = (&q[range.clone()], &o[range.clone()], &d_o[range.clone()]);
                let dq = &mut dq[range];
                heads.scores(&place, q, k, weights);
                let delta = dot(d_o, o);
                sum.fill(S::Wide::ZERO);
                for (t, score) in weights.iter().enumerate() {
                    if *score == S::Wide::NEG_INFINITY {
                        continue;
                    }
                    let p = Float::exp(*score - lse[row]);
                    let at = heads.key(&place, t);
                    let (k, v) = (&k[at..][..dim], &v[at..][..dim]);
                    let d_score = p * (dot(d_o, v) - delta);
                    d_table[heads.bias(&place, t)] += d_score;
                    let d_product = d_score * scale;
                    for i in 0..dim {
                        sum[i] += d_product * k[i].widen();
                        dk_head[t * dim + i] += d_product * q[i].widen();
                        dv_head[t * dim + i] += p * d_o[i].widen();
                    }
                }
                dq.iter_mut().zip(&*sum).for_each(|(dq, sum)| *dq = S::narrow(*sum));
            }
            for t in 0..shape.k_len {
                let at = ((batch * shape.k_len + t) * shape.kv_heads + kv) * dim;
                for i in 0..dim {
                    dk[at + i] = S::narrow(dk_head[t * dim + i]);
                    dv[at + i] = S::narrow(dv_head[t * dim + i]);
                }
            }
        }
    }
}

fn dot<S: Storage>(a: &[S], b: &[S]) -> S::Wide {
    let mut sum = S::Wide::ZERO;
    for (a, b) in a.iter().zip(b) {
        sum += a.widen() * b.widen();
    }
    sum
}

/// A query of one head.
struct Place {
    batch: usize,
    query: usize,
    kv: usize,
    group: usize,
}

/// Where things are, and the scores of a query.
struct Heads<'a, T> {
    shape: &'a AttentionShape<'a>,
    buckets: &'a RelativeBuckets,
    table: &'a [T],
    key_index: Option<&'a [u32]>,
}

impl<'a, T: Float> Heads<'a, T> {
    fn new(
        shape: &'a AttentionShape<'a>,
        buckets: &'a RelativeBuckets,
        table: &'a [T],
        key_index: Option<&'a [u32]>,
        q: usize,
        k: usize,
    ) -> Self {
        let heads = shape.kv_heads * shape.group;
        assert_eq!(table.len(), buckets.num * heads, "table has the wrong length");
        assert_eq!(q, shape.batch * shape.q_len * heads * shape.head_dim, "q has the wrong length");
        let keys = shape.batch * shape.k_len;
        assert_eq!(k, keys * shape.kv_heads * shape.head_dim, "k has the wrong length");
        assert!(key_index.is_none_or(|index| index.len() == keys), "key_index has the wrong length");
        assert!(shape.dropout.is_none(), "no dropout here");
        Heads { shape, buckets, table, key_index }
    }

    fn place(&self, row: usize) -> Place {
        let (group, rest) = (row % self.shape.group, row / self.shape.group);
        let (kv, rest) = (rest % self.shape.kv_heads, rest / self.shape.kv_heads);
        Place { batch: rest / self.shape.q_len, query: rest % self.shape.q_len, kv, group }
    }

    /// First element of a key or value.
    fn key(&self, place: &Place, t: usize) -> usize {
        ((place.batch * self.shape.k_len + t) * self.shape.kv_heads + place.kv) * self.shape.head_dim
    }

    fn index(&self, place: &Place, t: usize) -> u32 {
        match self.key_index {
            Some(index) => index[place.batch * self.shape.k_len + t],
            None => self.shape.k_index[t],
        }
    }

    /// Element of the table.
    fn bias(&self, place: &Place, t: usize) -> usize {
        let bucket = self.buckets.of(self.shape.q_index[place.query], self.index(place, t));
        (bucket * self.shape.kv_heads + place.kv) * self.shape.group + place.group
    }

    /// The score of every key, -inf where the query does not see it, and the largest.
    fn scores<S: Storage<Wide = T>>(&self, place: &Place, q: &[S], k: &[S], scores: &mut [T]) -> T {
        let shape = self.shape;
        let size = shape.k_size as u32;
        let limit = match shape.causal {
            true => shape.q_index[place.query].saturating_add(1).min(size),
            false => size,
        };
        let scale = T::from_f64(shape.scale);
        let mut max = T::NEG_INFINITY;
        for (t, score) in scores.iter_mut().enumerate() {
            if self.index(place, t) >= limit {
                *score = T::NEG_INFINITY;
                continue;
            }
            let product = dot(q, &k[self.key(place, t)..][..shape.head_dim]);
            *score = scale * product + self.table[self.bias(place, t)];
            max = score.max(max);
        }
        max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random};

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

    fn reference(shape: &AttentionShape, keys: &[u32], x: [&[f64]; 4]) -> Vec<f64> {
        let [q, k, v, table] = x;
        let buckets = RelativeBuckets { bidirectional: !shape.causal, ..BUCKETS };
        let mut o = vec![0.0; q.len()];
        for row in 0..q.len() / DIM {
            let (g, kv, s) = (row % GROUP, row / GROUP % KV, row / (GROUP * KV) % shape.q_len);
            let b = row / (GROUP * KV * shape.q_len);
            let query = shape.q_index[s];
            let weight = |t: usize| {
                let key = keys[b * shape.k_len + t];
                if key as usize >= shape.k_size || (shape.causal && key > query) {
                    return 0.0;
                }
                let at = ((b * shape.k_len + t) * KV + kv) * DIM;
                let bias = table[(buckets.of(query, key) * KV + kv) * GROUP + g];
                (shape.scale * dot(&q[row * DIM..][..DIM], &k[at..][..DIM]) + bias).exp()
            };
            let sum: f64 = (0..shape.k_len).map(weight).sum();
            for t in (0..shape.k_len).filter(|_| sum > 0.0) {
                for i in 0..DIM {
                    o[row * DIM + i] += weight(t) / sum * v[((b * shape.k_len + t) * KV + kv) * DIM + i];
                }
            }
        }
        o
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        let (q_len, k_len) = (5, 7);
        // padding on the right, on the left, everywhere, nowhere
        let mut keys: Vec<u32> = Vec::new();
        for seen in [0..4, 2..7, 0..0, 0..7] {
            keys.extend((0..k_len as u32).map(|t| if seen.contains(&t) { t } else { u32::MAX }));
        }
        for causal in [true, false] {
            let shape = AttentionShape {
                batch: 4,
                q_len,
                k_len,
                kv_heads: KV,
                group: GROUP,
                head_dim: DIM,
                q_index: &[0, 2, 3, 5, 6],
                k_index: &[],
                k_size: k_len,
                causal,
                scale: 0.7,
                dropout: None,
            };
            let buckets = RelativeBuckets { bidirectional: !causal, ..BUCKETS };
            let q = random::<f64>(1, 4 * q_len * KV * GROUP * DIM);
            let [k, v] = [2, 3].map(|seed| random::<f64>(seed, 4 * k_len * KV * DIM));
            let (table, d_o) = (random::<f64>(4, 8 * KV * GROUP), random::<f64>(5, q.len()));
            let (mut o, mut lse) = (poisoned::<f64>(q.len()), poisoned::<f64>(q.len() / DIM));
            let mut scratch = poisoned::<f64>(relative_attention_scratch(&shape));
            let index = Some(&keys[..]);
            relative_attention_forward(
                &shape,
                &buckets,
                &table,
                index,
                &q,
                &k,
                &v,
                &mut o,
                &mut lse,
                &mut scratch,
            );
            assert_close(&o, &reference(&shape, &keys, [&q, &k, &v, &table]), 1e-13);
            let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| poisoned::<f64>(x.len()));
            let mut d_table = poisoned::<f64>(table.len());
            relative_attention_backward(
                &shape,
                &buckets,
                &table,
                index,
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
            let slope =
                |x: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>| finite_difference(x, |x| dot(&f(x), &d_o));
            assert_close(&dq, &slope(&q, &|q| reference(&shape, &keys, [q, &k, &v, &table])), 1e-8);
            assert_close(&dk, &slope(&k, &|k| reference(&shape, &keys, [&q, k, &v, &table])), 1e-8);
            assert_close(&dv, &slope(&v, &|v| reference(&shape, &keys, [&q, &k, v, &table])), 1e-8);
            assert_close(
                &d_table,
                &slope(&table, &|table| reference(&shape, &keys, [&q, &k, &v, table])),
                1e-8,
            );
        }
    }
}
