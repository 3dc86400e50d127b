//! Sequences that each see other keys: padded batches.

use super::tests::{reference, run};
use super::*;
use crate::testing::{assert_close, cpus, dot, finite_difference, poisoned, random};

const KV: usize = 2;
const GROUP: usize = 2;

/// Padding on the left, on the right, in the middle, everywhere and nowhere.
fn keys(k_len: usize) -> Vec<u32> {
    let mut keys: Vec<u32> = Vec::new();
    for seen in [2..k_len, 0..4, 0..k_len, 0..0, 0..k_len] {
        keys.extend((0..k_len as u32).map(|t| if seen.contains(&(t as usize)) { t } else { u32::MAX }));
    }
    keys[2 * k_len + 3] = u32::MAX;
    keys
}

fn shape<'a>(
    [q_len, k_len, head_dim]: [usize; 3],
    q_index: &'a [u32],
    k_index: &'a [u32],
    causal: bool,
) -> AttentionShape<'a> {
    AttentionShape {
        batch: 5,
        q_len,
        k_len,
        kv_heads: KV,
        group: GROUP,
        head_dim,
        q_index,
        k_index,
        k_size: k_len,
        causal,
        scale: 0.6,
        dropout: None,
    }
}

#[test]
fn each_sequence_has_its_own_keys() {
    let (keys, q_index) = (keys(7), [0, 1, 2, 5, 6]);
    for causal in [true, false] {
        let shape = shape([5, 7, 3], &q_index, &keys, causal);
        let q = random::<f64>(1, 5 * 5 * KV * GROUP * 3);
        let d_o = random::<f64>(2, q.len());
        let [k, v] = [3, 4].map(|seed| random::<f64>(seed, 5 * 7 * KV * 3));
        let [o, lse, dq, dk, dv] = run(&shape, &q, &k, &v, &d_o);
        let (expected_o, expected_lse) = reference(&shape, &q, &k, &v);
        assert_close(&o, &expected_o, 1e-13);
        let seen = |lse: &[f64]| lse.iter().copied().filter(|x| x.is_finite()).collect::<Vec<_>>();
        assert_close(&seen(&lse), &seen(&expected_lse), 1e-13);
        let slope = |x: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>| finite_difference(x, |x| dot(&f(x), &d_o));
        assert_close(&dq, &slope(&q, &|q| reference(&shape, q, &k, &v).0), 1e-8);
        assert_close(&dk, &slope(&k, &|k| reference(&shape, &q, k, &v).0), 1e-8);
        assert_close(&dv, &slope(&v, &|v| reference(&shape, &q, &k, v).0), 1e-8);
    }
}

/// One call gives the bits of a call for each sequence, on every instruction set and number of threads.
#[test]
fn sequences_do_not_know_each_other() {
    fn check<S: Storage<Wide = f32> + PartialEq>(narrow: impl Fn(f32) -> S) {
        let (keys, q_index) = (keys(101), (0..37).map(|i| 2 * i).collect::<Vec<u32>>());
        let whole = shape([37, 101, 40], &q_index, &keys, true);
        let (queries, key_rows, rows) = (37 * KV * GROUP * 40, 101 * KV * 40, 37 * KV * GROUP);
        let draw = |seed, len| random::<f32>(seed, len).into_iter().map(&narrow).collect::<Vec<S>>();
        let [q, d_o] = [1, 2].map(|seed| draw(seed, 5 * queries));
        let [k, v] = [3, 4].map(|seed| draw(seed, 5 * key_rows));
        for cpu in cpus() {
            let call = |shape: &AttentionShape, from: usize| {
                let (q_at, k_at) = (from * queries, from * key_rows);
                let (q_end, k_end) = (q_at + shape.batch * queries, k_at + shape.batch * key_rows);
                let (q, d_o) = (&q[q_at..q_end], &d_o[q_at..q_end]);
                let (k, v) = (&k[k_at..k_end], &v[k_at..k_end]);
                let mut scratch = poisoned::<f32>(attention_scratch(shape, cpu.threads()));
                let mut o = draw(9, q.len());
                let mut lse = poisoned::<f32>(shape.batch * rows);
                attention_forward(cpu, shape, q, k, v, &mut o, &mut lse, &mut scratch);
                let [mut dq, mut dk, mut dv] = [draw(9, q.len()), draw(9, k.len()), draw(9, k.len())];
                attention_backward(
                    cpu,
                    shape,
                    q,
                    k,
                    v,
                    &o,
                    &lse,
                    d_o,
                    &mut dq,
                    &mut dk,
                    &mut dv,
                    &mut scratch,
                );
                (o, lse, [dq, dk, dv])
            };
            let (o, lse, gradients) = call(&whole, 0);
            for batch in 0..5 {
                let k_index = &keys[batch * 101..][..101];
                let one = call(&AttentionShape { batch: 1, k_index, ..whole }, batch);
                assert!(one.0 == o[batch * queries..][..queries]);
                assert!(one.1 == lse[batch * rows..][..rows]);
                for ((one, all), len) in one.2.iter().zip(&gradients).zip([queries, key_rows, key_rows]) {
                    assert!(*one == all[batch * len..][..len]);
                }
            }
        }
    }
    check::<f32>(|x| x);
    check::<half::bf16>(half::bf16::from_f32);
}

/// The masks of dropout are those of a table that all sequences share.
#[test]
fn dropout_is_keyed_by_the_sequence() {
    let index: Vec<u32> = (0..4).collect();
    let keys = index.repeat(5);
    let dropout = AttentionDropout {
        p: 0.4,
        key: crate::Key::new(1, 2, "x"),
        batch_index: &[3, 1, 0, 7, 2],
        kv_index: &[0, 1],
        group_index: &[0, 1],
        kv_heads: KV,
        group: GROUP,
        q_size: 4,
        k_size: 4,
    };
    let shared = AttentionShape { dropout: Some(dropout), ..shape([4, 4, 3], &index, &index, true) };
    let q = random::<f64>(1, 5 * 4 * KV * GROUP * 3);
    let [k, v] = [3, 4].map(|seed| random::<f64>(seed, 5 * 4 * KV * 3));
    let own = AttentionShape { k_index: &keys, ..shared };
    assert_eq!(run(&shared, &q, &k, &v, &q), run(&own, &q, &k, &v, &q));
}
