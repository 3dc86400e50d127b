//! Attention of few queries over a cache of keys and values, of which each query sees some: what decoding does for each
//! token. Nothing is packed or transposed: a key is read once, where it lies.

use std::ops::Range;

use crate::attention::relative::RelativeBuckets;
use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{COSTLY, Rows, min_rows};
use crate::reduce::dot;
use crate::storage::Storage;
use pulp::Simd;

/// Extents of a call.
///
/// # Shape
/// `q`, `o` `[batch, q_len, kv_heads, group, head_dim]`; `k`, `v` `[batch, slots, kv_heads, head_dim]`. All local.
#[derive(Clone, Copy, Debug)]
pub struct CachedShape {
    /// Sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys that the cache has room for, per sequence.
    pub slots: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Query heads per key-value head.
    pub group: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f64,
}

/// Copies each row to its slot of its sequence; a row whose slot is negative is left out.
///
/// # Shape
/// `slots` `[batch, seq]`, `rows` `[batch, seq, width]`, `cache` `[batch, num_slots, width]`.
pub fn cache_write<S: Storage>(
    slots: &[i32],
    rows: &[S],
    seq: usize,
    num_slots: usize,
    width: usize,
    cache: &mut [S],
) {
    assert_eq!(rows.len(), slots.len() * width, "rows has the wrong length");
    for (at, slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(*slot) else { continue };
        assert!(slot < num_slots, "slot {slot} of {num_slots}");
        let to = at / seq * num_slots + slot;
        cache[to * width..][..width].copy_from_slice(&rows[at * width..][..width]);
    }
}

/// `o = softmax(scale q k^T + bias) v` over the slots that a query sees; 0 for one that sees none.
///
/// `bias`: buckets of distances and the table of biases `[buckets, kv_heads, group]`. `scratch`: an element for every
/// query head and slot, and `head_dim` more for every query head; contents are neither used nor kept.
///
/// # Shape
/// See [`CachedShape`]; `distance` `[batch, q_len, slots]`: positions from the key to the query, negative if it is not
/// seen.
pub fn cached_attention<S: Storage>(
    cpu: &Cpu,
    shape: &CachedShape,
    bias: Option<(&RelativeBuckets, &[S::Wide])>,
    distance: &[i32],
    q: &[S],
    k: &[S],
    v: &[S],
    o: &mut [S],
    scratch: &mut [S::Wide],
) {
    let CachedShape { batch, q_len, slots, kv_heads, group, head_dim, .. } = *shape;
    let heads = batch * q_len * kv_heads;
    assert_eq!(q.len(), heads * group * head_dim, "q has the wrong length");
    assert_eq!(o.len(), q.len(), "o like q");
    assert_eq!(k.len(), batch * slots * kv_heads * head_dim, "k has the wrong length");
    assert_eq!(v.len(), k.len(), "v like k");
    assert_eq!(distance.len(), batch * q_len * slots, "distance has the wrong length");
    if let Some((buckets, table)) = bias {
        assert_eq!(table.len(), buckets.num * kv_heads * group, "table has the wrong length");
    }
    let scratch = &mut scratch[..heads * group * (slots + head_dim)];
    let call = Call { shape, bias, distance, q, k, v };
    cpu.divide_rows(heads, 1, min_rows(COSTLY, slots * group * head_dim), (o, scratch), call);
}

struct Call<'a, S: Storage> {
    shape: &'a CachedShape,
    bias: Option<(&'a RelativeBuckets, &'a [S::Wide])>,
    distance: &'a [i32],
    q: &'a [S],
    k: &'a [S],
    v: &'a [S],
}

/// Rows are (sequence, query, key-value head) triples.
impl<S: Storage> Rows<(&mut [S], &mut [S::Wide])> for Call<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, (o, scratch): (&mut [S], &mut [S::Wide])) {
        let CachedShape { slots, group, head_dim, .. } = *self.shape;
        let members = o.chunks_exact_mut(head_dim).zip(scratch.chunks_exact_mut(slots + head_dim));
        for (i, (o, scratch)) in members.enumerate() {
            let (weights, sums) = scratch.split_at_mut(slots);
            self.query(simd, rows.start + i / group, i % group, o, weights, sums);
        }
    }
}

impl<S: Storage> Call<'_, S> {
    /// One query head of a row.
    #[inline(always)]
    fn query<V: Simd>(
        &self,
        simd: V,
        row: usize,
        member: usize,
        o: &mut [S],
        weights: &mut [S::Wide],
        sums: &mut [S::Wide],
    ) {
        let CachedShape { q_len, slots, kv_heads, group, head_dim, .. } = *self.shape;
        let (kv, query) = (row % kv_heads, row / kv_heads);
        let q = &self.q[(row * group + member) * head_dim..][..head_dim];
        let distance = &self.distance[query * slots..][..slots];
        let key = |slot: usize| ((query / q_len * slots + slot) * kv_heads + kv) * head_dim;
        let scale = S::Wide::from_f64(self.shape.scale);
        let mut max = S::Wide::NEG_INFINITY;
        for (slot, (weight, distance)) in weights.iter_mut().zip(distance).enumerate() {
            let Ok(distance) = u32::try_from(*distance) else { continue };
            *weight = scale * dot(simd, q, &self.k[key(slot)..][..head_dim]);
            if let Some((buckets, table)) = self.bias {
                *weight += table[(buckets.of(distance, 0) * kv_heads + kv) * group + member];
            }
            max = weight.max(max);
        }
        let mut total = S::Wide::ZERO;
        sums.fill(S::Wide::ZERO);
        for (slot, (weight, distance)) in weights.iter().zip(distance).enumerate() {
            if *distance < 0 {
                continue;
            }
            let weight = Float::exp(*weight - max);
            total += weight;
            for (sum, v) in sums.iter_mut().zip(&self.v[key(slot)..][..head_dim]) {
                *sum += weight * v.widen();
            }
        }
        let inverse = if total == S::Wide::ZERO { S::Wide::ZERO } else { S::Wide::ONE / total };
        for (o, sum) in o.iter_mut().zip(sums) {
            *o = S::narrow(*sum * inverse);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, cpus, dot, poisoned, random};

    const BUCKETS: RelativeBuckets = RelativeBuckets { num: 8, max_distance: 10, bidirectional: false };

    fn reference(shape: &CachedShape, table: Option<&[f64]>, distance: &[i32], x: [&[f64]; 3]) -> Vec<f64> {
        let CachedShape { q_len, slots, kv_heads, group, head_dim, .. } = *shape;
        let [q, k, v] = x;
        let mut o = vec![0.0; q.len()];
        for row in 0..q.len() / head_dim {
            let (g, kv, query) = (row % group, row / group % kv_heads, row / (group * kv_heads));
            let at = |slot: usize| ((query / q_len * slots + slot) * kv_heads + kv) * head_dim;
            let weight = |slot: usize| {
                let distance = distance[query * slots + slot];
                if distance < 0 {
                    return 0.0;
                }
                let bias = table
                    .map_or(0.0, |table| table[(BUCKETS.of(distance as u32, 0) * kv_heads + kv) * group + g]);
                let score = dot(&q[row * head_dim..][..head_dim], &k[at(slot)..][..head_dim]);
                (shape.scale * score + bias).exp()
            };
            let sum: f64 = (0..slots).map(weight).sum();
            for slot in (0..slots).filter(|_| sum > 0.0) {
                for i in 0..head_dim {
                    o[row * head_dim + i] += weight(slot) / sum * v[at(slot) + i];
                }
            }
        }
        o
    }

    #[test]
    fn a_query_sees_the_slots_of_its_own_text() {
        for head_dim in [3, 16, 21] {
            let shape =
                CachedShape { batch: 2, q_len: 3, slots: 9, kv_heads: 2, group: 2, head_dim, scale: 0.7 };
            let q = random::<f64>(1, 2 * 3 * 2 * 2 * head_dim);
            let mut k = random::<f64>(2, 2 * 9 * 2 * head_dim);
            let mut v = random::<f64>(3, k.len());
            let table = random::<f64>(4, BUCKETS.num * 4);
            // The last query sees nothing, the first slot of the other sequence is seen by nobody and holds no number.
            let mut distance: Vec<i32> = (0..2 * 3 * 9).map(|i| i * 7 % 12 - 3).collect();
            distance[5 * 9..].fill(-1);
            (3..6).for_each(|query| distance[query * 9] = -1);
            [&mut k, &mut v].into_iter().for_each(|x| x[9 * 2 * head_dim..][..2 * head_dim].fill(f64::NAN));
            for table in [None, Some(&table[..])] {
                let zeros =
                    |x: &[f64]| x.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect::<Vec<_>>();
                let expected = reference(&shape, table, &distance, [&q, &zeros(&k), &zeros(&v)]);
                for cpu in cpus() {
                    let (mut o, mut scratch) =
                        (poisoned::<f64>(q.len()), poisoned::<f64>(2 * 3 * 4 * (9 + head_dim)));
                    let bias = table.map(|table| (&BUCKETS, table));
                    cached_attention(cpu, &shape, bias, &distance, &q, &k, &v, &mut o, &mut scratch);
                    assert_close(&o, &expected, 1e-13);
                }
            }
        }
    }

    #[test]
    fn rows_go_to_their_slots_alone() {
        let mut cache: Vec<f64> = vec![0.0; 2 * 4 * 2];
        let rows: Vec<f64> = (1..=12).map(f64::from).collect();
        cache_write(&[2, -1, 0, -1, -1, 3], &rows, 3, 4, 2, &mut cache);
        let expected = [5.0, 6.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 11.0, 12.0];
        assert_eq!(cache, expected);
    }
}
