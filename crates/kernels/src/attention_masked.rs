//! Attention over sequences that each see other keys: padded batches. Each sequence is a call of its own with its own
//! table of keys; what a tile does is `attention`'s. (A table per sequence inside one call would share out threads
//! over sequences as well; nothing else would change.)

use crate::attention::{AttentionDropout, AttentionShape, attention_backward, attention_forward};
use crate::cpu::Cpu;
use crate::storage::Storage;

/// [`attention_forward`] with a table of keys for each sequence.
///
/// # Shape
/// `key_index` `[batch, k_len]`: global position of each key; one that reaches `k_size` is never seen. It stands for
/// `shape.k_index`, which is not read.
pub fn masked_attention_forward<S: Storage>(
    cpu: &Cpu,
    shape: &AttentionShape,
    key_index: &[u32],
    q: &[S],
    k: &[S],
    v: &[S],
    o: &mut [S],
    lse: &mut [S::Wide],
    scratch: &mut [S::Wide],
) {
    assert_eq!(key_index.len(), shape.batch * shape.k_len, "key_index has the wrong length");
    let rows = Rows::of(shape);
    for batch in 0..shape.batch {
        let (queries, keys, statistics) = rows.at(batch);
        attention_forward(
            cpu,
            &sequence(shape, key_index, batch),
            &q[queries.clone()],
            &k[keys.clone()],
            &v[keys],
            &mut o[queries],
            &mut lse[statistics],
            scratch,
        );
    }
}

/// The gradients of [`masked_attention_forward`]: see [`attention_backward`].
pub fn masked_attention_backward<S: Storage>(
    cpu: &Cpu,
    shape: &AttentionShape,
    key_index: &[u32],
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
    assert_eq!(key_index.len(), shape.batch * shape.k_len, "key_index has the wrong length");
    let rows = Rows::of(shape);
    for batch in 0..shape.batch {
        let (queries, keys, statistics) = rows.at(batch);
        attention_backward(
            cpu,
            &sequence(shape, key_index, batch),
            &q[queries.clone()],
            &k[keys.clone()],
            &v[keys.clone()],
            &o[queries.clone()],
            &lse[statistics],
            &d_o[queries.clone()],
            &mut dq[queries],
            &mut dk[keys.clone()],
            &mut dv[keys],
            scratch,
        );
    }
}

/// One sequence of a call.
fn sequence<'a>(shape: &AttentionShape<'a>, key_index: &'a [u32], batch: usize) -> AttentionShape<'a> {
    let dropout =
        shape.dropout.map(|d| AttentionDropout { batch_index: &d.batch_index[batch..batch + 1], ..d });
    let k_index = &key_index[batch * shape.k_len..][..shape.k_len];
    AttentionShape { batch: 1, k_index, dropout, ..*shape }
}

/// Elements of one sequence in queries, keys and statistics.
struct Rows {
    queries: usize,
    keys: usize,
    statistics: usize,
}

impl Rows {
    fn of(shape: &AttentionShape) -> Rows {
        let statistics = shape.q_len * shape.kv_heads * shape.group;
        Rows {
            queries: statistics * shape.head_dim,
            keys: shape.k_len * shape.kv_heads * shape.head_dim,
            statistics,
        }
    }

    fn at(&self, batch: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>, std::ops::Range<usize>) {
        let range = |len: usize| batch * len..(batch + 1) * len;
        (range(self.queries), range(self.keys), range(self.statistics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention_scratch;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random, scalar};

    const KV: usize = 2;
    const GROUP: usize = 2;
    const DIM: usize = 3;

    /// `o` by the definition: softmax over the keys that a query sees; 0 if there are none.
    fn reference(shape: &AttentionShape, keys: &[u32], q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let mut o = vec![0.0; q.len()];
        for row in 0..q.len() / DIM {
            let (kv, s) = (row / GROUP % KV, row / (GROUP * KV) % shape.q_len);
            let b = row / (GROUP * KV * shape.q_len);
            let at = |t: usize| ((b * shape.k_len + t) * KV + kv) * DIM;
            let seen = (0..shape.k_len).filter(|t| {
                let key = keys[b * shape.k_len + t];
                (key as usize) < shape.k_size && (!shape.causal || key <= shape.q_index[s])
            });
            let weights: Vec<(usize, f64)> = seen
                .map(|t| (t, (shape.scale * dot(&q[row * DIM..][..DIM], &k[at(t)..][..DIM])).exp()))
                .collect();
            let sum: f64 = weights.iter().map(|(_, w)| w).sum();
            for (t, w) in weights {
                for i in 0..DIM {
                    o[row * DIM + i] += w / sum * v[at(t) + i];
                }
            }
        }
        o
    }

    /// Padding on the left, on the right, in the middle, everywhere and nowhere.
    #[test]
    fn each_sequence_has_its_own_keys() {
        let (q_len, k_len) = (5, 7);
        let lengths = [(2, 7), (0, 4), (0, 7), (7, 7)];
        let mut keys: Vec<u32> = Vec::new();
        for (from, to) in lengths {
            keys.extend((0..k_len as u32).map(|t| if (from..to).contains(&t) { t } else { u32::MAX }));
        }
        keys[2 * k_len + 3] = u32::MAX;
        for causal in [true, false] {
            let shape = AttentionShape {
                batch: lengths.len(),
                q_len,
                k_len,
                kv_heads: KV,
                group: GROUP,
                head_dim: DIM,
                q_index: &[0, 1, 2, 5, 6],
                k_index: &[],
                k_size: k_len,
                causal,
                scale: 0.6,
                dropout: None,
            };
            let q = random::<f64>(1, lengths.len() * q_len * KV * GROUP * DIM);
            let d_o = random::<f64>(2, q.len());
            let [k, v] = [3, 4].map(|seed| random::<f64>(seed, lengths.len() * k_len * KV * DIM));
            let (mut o, mut lse) = (poisoned::<f64>(q.len()), poisoned::<f64>(q.len() / DIM));
            let mut scratch = poisoned::<f64>(attention_scratch(&shape, 1));
            masked_attention_forward(&scalar(), &shape, &keys, &q, &k, &v, &mut o, &mut lse, &mut scratch);
            assert_close(&o, &reference(&shape, &keys, &q, &k, &v), 1e-13);
            let (mut dq, mut dk, mut dv) =
                (poisoned::<f64>(q.len()), poisoned::<f64>(k.len()), poisoned::<f64>(k.len()));
            masked_attention_backward(
                &scalar(),
                &shape,
                &keys,
                &q,
                &k,
                &v,
                &o,
                &lse,
                &d_o,
                &mut dq,
                &mut dk,
                &mut dv,
                &mut scratch,
            );
            let slope =
                |x: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>| finite_difference(x, |x| dot(&f(x), &d_o));
            assert_close(&dq, &slope(&q, &|q| reference(&shape, &keys, q, &k, &v)), 1e-8);
            assert_close(&dk, &slope(&k, &|k| reference(&shape, &keys, &q, k, &v)), 1e-8);
            assert_close(&dv, &slope(&v, &|v| reference(&shape, &keys, &q, &k, v)), 1e-8);
        }
    }

    /// The masks of dropout are those of one call over all sequences.
    #[test]
    fn dropout_is_keyed_by_the_sequence() {
        let index: Vec<u32> = (0..4).collect();
        let dropout = AttentionDropout {
            p: 0.4,
            key: crate::Key::new(1, 2, "x"),
            batch_index: &[3, 1],
            kv_index: &[0, 1],
            group_index: &[0, 1],
            kv_heads: KV,
            group: GROUP,
            q_size: 4,
            k_size: 4,
        };
        let shape = AttentionShape {
            batch: 2,
            q_len: 4,
            k_len: 4,
            kv_heads: KV,
            group: GROUP,
            head_dim: DIM,
            q_index: &index,
            k_index: &index,
            k_size: 4,
            causal: true,
            scale: 0.6,
            dropout: Some(dropout),
        };
        let q = random::<f64>(1, 2 * 4 * KV * GROUP * DIM);
        let [k, v] = [3, 4].map(|seed| random::<f64>(seed, 2 * 4 * KV * DIM));
        let mut scratch = poisoned::<f64>(attention_scratch(&shape, 1));
        let (mut o, mut lse) = (poisoned::<f64>(q.len()), poisoned::<f64>(q.len() / DIM));
        attention_forward(&scalar(), &shape, &q, &k, &v, &mut o, &mut lse, &mut scratch);
        let keys = [&index[..], &index[..]].concat();
        let (mut masked, mut masked_lse) = (poisoned::<f64>(q.len()), poisoned::<f64>(q.len() / DIM));
        masked_attention_forward(
            &scalar(),
            &shape,
            &keys,
            &q,
            &k,
            &v,
            &mut masked,
            &mut masked_lse,
            &mut scratch,
        );
        assert_eq!((o, lse), (masked, masked_lse));
    }
}
