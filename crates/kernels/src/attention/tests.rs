//! Attention against its definition in f64, and its gradients against finite differences.

use super::*;
use crate::testing::{assert_close, cpus, dot, finite_difference, poisoned, random, scalar};
use half::bf16;
use proptest::prelude::*;

fn no_keys<'a>(shape: &AttentionShape<'a>) -> AttentionShape<'a> {
    AttentionShape { k_size: 0, ..*shape }
}

/// (o, lse) by the definition.
pub(super) fn reference(shape: &AttentionShape, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let dim = shape.head_dim;
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / dim]);
    for b in 0..shape.batch {
        let of_sequence = if shape.k_index.len() == shape.k_len { 0 } else { b * shape.k_len };
        let k_index = &shape.k_index[of_sequence..];
        for s in 0..shape.q_len {
            for kv in 0..shape.kv_heads {
                for g in 0..shape.group {
                    let row = ((b * shape.q_len + s) * shape.kv_heads + kv) * shape.group + g;
                    let q = &q[row * dim..][..dim];
                    let seen: Vec<usize> = (0..shape.k_len)
                        .filter(|&t| (k_index[t] as usize) < shape.k_size)
                        .filter(|&t| !shape.causal || k_index[t] <= shape.q_index[s])
                        .collect();
                    let at = |t: usize| ((b * shape.k_len + t) * shape.kv_heads + kv) * dim;
                    let score = |t: usize| shape.scale * dot(q, &k[at(t)..][..dim]);
                    let max = seen.iter().map(|&t| score(t)).fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = seen.iter().map(|&t| (score(t) - max).exp()).sum();
                    lse[row] = if seen.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
                    for t in seen {
                        let place = [b, kv, g, shape.q_index[s] as usize, k_index[t] as usize];
                        let factor = shape.dropout.as_ref().map_or(1.0, |d| kept(d, place));
                        let p = factor * (score(t) - max).exp() / sum;
                        for i in 0..dim {
                            o[row * dim + i] += p * v[at(t) + i];
                        }
                    }
                }
            }
        }
    }
    (o, lse)
}

/// What dropout multiplies a probability with; `place` has local sequence, kv head and group member, global query and key.
pub(super) fn kept(d: &AttentionDropout, [batch, kv, group, query, key]: [usize; 5]) -> f64 {
    let mut index = d.batch_index[batch] as usize;
    index = index * d.kv_heads + d.kv_index[kv] as usize;
    index = index * d.group + d.group_index[group] as usize;
    index = index * d.q_size + query;
    index = index * d.k_size + key;
    let keep = f64::from(d.key.bits(index as u64)) >= d.p * 4_294_967_296.0;
    if keep { 1.0 / (1.0 - d.p) } else { 0.0 }
}

/// What a call returns: o, lse, dq, dk, dv, from poisoned outputs and scratch.
pub(super) fn run<T: Float>(shape: &AttentionShape, q: &[T], k: &[T], v: &[T], d_o: &[T]) -> [Vec<T>; 5] {
    let (mut o, mut lse) = (poisoned(q.len()), poisoned(q.len() / shape.head_dim));
    let mut scratch = poisoned(attention_scratch(shape, 1) + 1);
    attention_forward(&scalar(), shape, q, k, v, &mut o, &mut lse, &mut scratch[1..]);
    let (mut dq, mut dk, mut dv) = (poisoned(q.len()), poisoned(k.len()), poisoned(k.len()));
    let mut scratch = poisoned(attention_scratch(shape, 1) + 3);
    let scratch = &mut scratch[3..];
    attention_backward(&scalar(), shape, q, k, v, &o, &lse, d_o, &mut dq, &mut dk, &mut dv, scratch);
    [o, lse, dq, dk, dv]
}

fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

/// Inputs that fit a shape; padding keys and values hold NaN in `k` and `v` for the kernels.
struct Inputs {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
}

impl Inputs {
    fn new(shape: &AttentionShape, seed: u64) -> Self {
        let rows = shape.batch * shape.q_len * shape.kv_heads * shape.group;
        let keys = shape.batch * shape.k_len * shape.kv_heads;
        Inputs {
            q: random(4 * seed, rows * shape.head_dim),
            k: random(4 * seed + 1, keys * shape.head_dim),
            v: random(4 * seed + 2, keys * shape.head_dim),
            d_o: random(4 * seed + 3, rows * shape.head_dim),
        }
    }

    fn poison_padding(&self, shape: &AttentionShape) -> (Vec<f64>, Vec<f64>) {
        let (mut k, mut v) = (self.k.clone(), self.v.clone());
        let row_len = shape.kv_heads * shape.head_dim;
        for (row, (k, v)) in k.chunks_mut(row_len).zip(v.chunks_mut(row_len)).enumerate() {
            if shape.k_index[row % shape.k_len] as usize >= shape.k_size {
                k.fill(f64::NAN);
                v.fill(f64::NAN);
            }
        }
        (k, v)
    }
}

fn check(shape: &AttentionShape, seed: u64, differences: bool) {
    let x = Inputs::new(shape, seed);
    let (k, v) = x.poison_padding(shape);
    let wide = run::<f64>(shape, &x.q, &k, &v, &x.d_o);
    let thin = run::<f32>(shape, &narrow(&x.q), &narrow(&k), &narrow(&v), &narrow(&x.d_o));
    let (o, lse) = reference(shape, &x.q, &x.k, &x.v);
    assert_close(&wide[0], &o, 1e-13);
    assert_close(&wide[1], &lse, 1e-13);
    assert_close(&thin[0], &o, 1e-5);
    assert_close(&thin[1], &lse, 1e-5);
    if differences {
        let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&reference(shape, q, k, v).0, &x.d_o);
        assert_close(&wide[2], &finite_difference(&x.q, |q| loss(q, &x.k, &x.v)), 1e-7);
        assert_close(&wide[3], &finite_difference(&x.k, |k| loss(&x.q, k, &x.v)), 1e-7);
        assert_close(&wide[4], &finite_difference(&x.v, |v| loss(&x.q, &x.k, v)), 1e-7);
    }
    for (thin, wide) in thin[2..].iter().zip(&wide[2..]) {
        assert_close(thin, wide, 5e-5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn agrees_with_the_definition_and_its_differences(
        extents in (1usize..3, 1usize..7, 1usize..9, 1usize..3, 1usize..3, 1usize..6),
        causal: bool, dropped: bool, start in 0u32..4, stride in 1u32..3, k_size in 0usize..14, seed in 0u64..99,
    ) {
        let (batch, q_len, k_len, kv_heads, group, head_dim) = extents;
        let q_index: Vec<u32> = (0..q_len as u32).map(|i| i * stride + start).collect();
        // Keys in an order that is not monotone.
        let k_index: Vec<u32> = (0..k_len as u32).map(|i| (i * 5 + start) % 13).collect();
        let dropout = AttentionDropout {
            p: 0.3,
            key: Key::new(seed, 1, "attention"),
            batch_index: &[5, 2][..batch],
            kv_index: &[1, 4][..kv_heads],
            group_index: &[2, 0][..group],
            kv_heads: 6,
            group: 3,
            q_size: 20,
            k_size: 14,
        };
        let shape = AttentionShape {
            batch, q_len, k_len, kv_heads, group, head_dim,
            q_index: &q_index, k_index: &k_index, k_size, causal,
            scale: 0.7, dropout: dropped.then_some(dropout),
        };
        check(&shape, seed, true);
    }
}

/// Extents that cross tiles of queries and keys, striped as under context parallelism.
#[test]
fn several_tiles() {
    for (q_len, k_len, head_dim, causal) in
        [(70, 150, 8, true), (129, 64, 20, true), (200, 200, 32, true), (65, 130, 33, false)]
    {
        let q_index: Vec<u32> = (0..q_len as u32).map(|i| 2 * i + 1).collect();
        let k_index: Vec<u32> = (0..k_len as u32).map(|i| 3 * i).collect();
        let shape = AttentionShape {
            batch: 2,
            q_len,
            k_len,
            kv_heads: 1,
            group: 3,
            head_dim,
            q_index: &q_index,
            k_index: &k_index,
            k_size: 3 * k_len - 20,
            causal,
            scale: 1.0 / (head_dim as f64).sqrt(),
            dropout: None,
        };
        check(&shape, 3, false);
    }
}

/// The gradients over several tiles, against finite differences along random directions.
#[test]
fn several_tiles_backward() {
    let (q_index, k_index): (Vec<u32>, Vec<u32>) = ((0..70).collect(), (0..70).rev().collect());
    let shape = AttentionShape {
        batch: 1,
        q_len: 70,
        k_len: 70,
        kv_heads: 2,
        group: 2,
        head_dim: 5,
        q_index: &q_index,
        k_index: &k_index,
        k_size: 68,
        causal: true,
        scale: 0.4,
        dropout: None,
    };
    let x = Inputs::new(&shape, 9);
    let [_, _, dq, dk, dv] = run(&shape, &x.q, &x.k, &x.v, &x.d_o);
    let move_along =
        |x: &[f64], d: &[f64], t: f64| -> Vec<f64> { x.iter().zip(d).map(|(x, d)| x + t * d).collect() };
    for seed in 0..4 {
        let direction: [Vec<f64>; 3] =
            [random(90 + seed, x.q.len()), random(190 + seed, x.k.len()), random(290 + seed, x.k.len())];
        let slope = finite_difference(&[0.0], |t| {
            let q = move_along(&x.q, &direction[0], t[0]);
            let k = move_along(&x.k, &direction[1], t[0]);
            let v = move_along(&x.v, &direction[2], t[0]);
            dot(&reference(&shape, &q, &k, &v).0, &x.d_o)
        });
        let ours = dot(&dq, &direction[0]) + dot(&dk, &direction[1]) + dot(&dv, &direction[2]);
        assert_close(&[ours], &slope, 1e-6);
    }
}

#[test]
fn a_query_without_keys_is_zero_and_nan_propagates() {
    let index: Vec<u32> = (0..4).collect();
    let shape = AttentionShape {
        batch: 1,
        q_len: 4,
        k_len: 4,
        kv_heads: 1,
        group: 1,
        head_dim: 3,
        q_index: &index,
        k_index: &index,
        k_size: 4,
        causal: true,
        scale: 1.0,
        dropout: None,
    };
    let x = Inputs::new(&shape, 1);
    let blind = no_keys(&shape);
    let [o, lse, dq, dk, dv] =
        run::<f32>(&blind, &narrow(&x.q), &narrow(&x.k), &narrow(&x.v), &narrow(&x.d_o));
    assert!(lse.iter().all(|&l| l == f32::NEG_INFINITY));
    assert!([o, dq, dk, dv].iter().flatten().all(|&x| x == 0.0));

    let mut q = x.q.clone();
    q[6] = f64::NAN;
    let [o, lse, ..] = run(&shape, &q, &x.k, &x.v, &x.d_o);
    assert!(o.chunks(3).enumerate().all(|(row, o)| o.iter().all(|x| x.is_nan() == (row == 2))));
    assert!(lse.iter().enumerate().all(|(row, l)| l.is_nan() == (row == 2)));
}

/// A rank that holds a strided part of batch, heads and queries draws the same mask as one rank.
#[test]
fn dropout_does_not_depend_on_the_split() {
    let (all_q, all_k): (Vec<u32>, Vec<u32>) = ((0..6).collect(), (0..7).collect());
    let dropout = AttentionDropout {
        p: 0.5,
        key: Key::new(3, 4, "attention"),
        batch_index: &[0, 1],
        kv_index: &[0, 1],
        group_index: &[0, 1],
        kv_heads: 2,
        group: 2,
        q_size: 6,
        k_size: 7,
    };
    let whole = AttentionShape {
        batch: 2,
        q_len: 6,
        k_len: 7,
        kv_heads: 2,
        group: 2,
        head_dim: 2,
        q_index: &all_q,
        k_index: &all_k,
        k_size: 7,
        causal: false,
        scale: 1.0,
        dropout: Some(dropout),
    };
    let x = Inputs::new(&whole, 2);
    let [o, ..] = run(&whole, &x.q, &x.k, &x.v, &x.d_o);
    // My part: sequence 1, kv head 1, group member 0, odd queries.
    let part = AttentionShape {
        batch: 1,
        q_len: 3,
        kv_heads: 1,
        group: 1,
        q_index: &[1, 3, 5],
        dropout: Some(AttentionDropout { batch_index: &[1], kv_index: &[1], group_index: &[0], ..dropout }),
        ..whole
    };
    let q_at = |s: usize| (((6 + s) * 2 + 1) * 2) * 2;
    let q: Vec<f64> = [1, 3, 5].iter().flat_map(|&s| x.q[q_at(s)..][..2].to_vec()).collect();
    let key_rows =
        |x: &[f64]| -> Vec<f64> { (0..7).flat_map(|t| x[((7 + t) * 2 + 1) * 2..][..2].to_vec()).collect() };
    let [mine, ..] = run(&part, &q, &key_rows(&x.k), &key_rows(&x.v), &q);
    let expected: Vec<f64> = [1, 3, 5].iter().flat_map(|&s| o[q_at(s)..][..2].to_vec()).collect();
    assert_close(&mine, &expected, 1e-14);
}

/// bf16 on every processor against the definition, by what rounding allows.
///
/// Inputs are exact, and results are rounded once, by at most 2^-9 of their size. On tiles the weights p and the
/// gradients by the scores d are rounded to bf16 before the products that sum over them, each by at most 2^-9 of its
/// size: that changes o = sum p v by at most 2^-9 sum |p v|, and likewise dv = sum p do, dq = scale sum d k and dk =
/// scale sum d q. The backward pass reads o as it was rounded, by 2^-9 |o|, which changes delta = sum o do by at most
/// 2^-9 sum |o do|, and so d by p times that. All else is in f32; 2^-8 instead of 2^-9 leaves room for it and for
/// terms of second order.
fn check_bf16(extents: [usize; 5], causal: bool, dropped: bool, stride: u32, seed: u64) {
    const ROUNDING: f64 = 1.0 / 256.0;
    let [q_len, k_len, kv_heads, group, head_dim] = extents;
    let index = |len: usize| -> Vec<u32> { (0..len as u32).map(|i| stride * i).collect() };
    let (q_index, k_index) = (index(q_len), index(k_len));
    let dropout = AttentionDropout {
        p: 0.2,
        key: Key::new(seed, 1, "attention"),
        batch_index: &[0],
        kv_index: &[0, 1][..kv_heads],
        group_index: &[0, 1][..group],
        kv_heads,
        group,
        q_size: stride as usize * q_len,
        k_size: stride as usize * k_len,
    };
    let shape = AttentionShape {
        batch: 1,
        q_len,
        k_len,
        kv_heads,
        group,
        head_dim,
        q_index: &q_index,
        k_index: &k_index,
        k_size: stride as usize * k_len,
        causal,
        scale: 1.0 / (head_dim as f64).sqrt(),
        dropout: dropped.then_some(dropout),
    };
    let round = |x: &[f64]| -> Vec<bf16> { x.iter().map(|&x| bf16::from_f64(x)).collect() };
    let wide = |x: &[bf16]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
    let x = Inputs::new(&shape, seed);
    let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(|x| round(x));
    let [wide_q, wide_k, wide_v, wide_d_o] = [&q, &k, &v, &d_o].map(|x| wide(x));
    let expected = run::<f64>(&shape, &wide_q, &wide_k, &wide_v, &wide_d_o);
    let magnitudes = magnitudes(&shape, [&wide_q, &wide_k, &wide_v, &wide_d_o], &expected);
    for cpu in cpus() {
        let poison = |len| vec![bf16::NAN; len];
        let (mut o, mut lse) = (poison(q.len()), vec![f32::NAN; q.len() / head_dim]);
        let mut scratch = vec![f32::NAN; attention_scratch(&shape, cpu.threads())];
        attention_forward(cpu, &shape, &q, &k, &v, &mut o, &mut lse, &mut scratch);
        let (mut dq, mut dk, mut dv) = (poison(q.len()), poison(k.len()), poison(k.len()));
        scratch.fill(f32::NAN);
        attention_backward(cpu, &shape, &q, &k, &v, &o, &lse, &d_o, &mut dq, &mut dk, &mut dv, &mut scratch);
        assert_close(&lse, &expected[1], 1e-5);
        for (name, actual, expected, magnitude) in [
            ("o", &o, &expected[0], &magnitudes[0]),
            ("dq", &dq, &expected[2], &magnitudes[1]),
            ("dk", &dk, &expected[3], &magnitudes[2]),
            ("dv", &dv, &expected[4], &magnitudes[3]),
        ] {
            for (i, ((a, e), m)) in wide(actual).iter().zip(expected).zip(magnitude).enumerate() {
                let allowed = ROUNDING * (e.abs() + m) + 1e-6;
                assert!((a - e).abs() <= allowed, "{name} {i}: {a}, expected {e}; {cpu:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn bf16_is_right_but_for_rounding(
        extents in (1usize..200, 1usize..200, 1usize..3, 1usize..3, 1usize..140),
        causal: bool, dropped: bool, stride in 1u32..3, seed in 0u64..99,
    ) {
        let (q_len, k_len, kv_heads, group, head_dim) = extents;
        check_bf16([q_len, k_len, kv_heads, group, head_dim], causal, dropped, stride, seed);
    }
}

/// Extents at the edges of blocks, chunks and spans.
#[test]
fn bf16_is_right_at_the_edges_of_blocks() {
    for (extents, causal, dropped) in [
        ([32, 32, 2, 1, 64], true, false),
        ([31, 33, 1, 2, 32], false, false),
        ([160, 160, 1, 1, 64], true, true),
        ([129, 300, 1, 1, 80], true, false),
        ([257, 65, 1, 2, 40], false, true),
        ([300, 300, 1, 1, 128], true, false),
        ([96, 128, 2, 1, 7], false, false),
    ] {
        check_bf16(extents, causal, dropped, 1, 5);
    }
}

/// For o, dq, dk and dv the sums of the sizes of what is summed, with the sizes of the gradients by the scores taken
/// as p (|dp| + |delta| + sum |o do|): what rounding is measured by.
fn magnitudes(shape: &AttentionShape, [q, k, v, d_o]: [&[f64]; 4], results: &[Vec<f64>; 5]) -> [Vec<f64>; 4] {
    let dim = shape.head_dim;
    let size = |x: &[f64]| -> Vec<f64> { x.iter().map(|x| x.abs()).collect() };
    let [o, lse, ..] = results;
    let mut sums = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()]];
    for row in 0..q.len() / dim {
        let head = row % (shape.kv_heads * shape.group) / shape.group;
        let query = row / (shape.kv_heads * shape.group);
        let row_range = row * dim..(row + 1) * dim;
        let [q, d_o, o] = [q, d_o, o.as_slice()].map(|x| &x[row_range.clone()]);
        for key in 0..shape.k_len {
            if shape.causal && shape.k_index[key] > shape.q_index[query] {
                continue;
            }
            let key_range = (key * shape.kv_heads + head) * dim..(key * shape.kv_heads + head + 1) * dim;
            let [k, v] = [k, v].map(|x| &x[key_range.clone()]);
            // Dropout makes a weight larger by its factor, or removes it.
            let factor = shape.dropout.as_ref().map_or(1.0, |dropout| 1.0 / (1.0 - dropout.p));
            let p = (shape.scale * dot(q, k) - lse[row]).exp();
            let d = p * (factor * dot(d_o, v).abs() + dot(o, d_o).abs() + dot(&size(o), &size(d_o)));
            for i in 0..dim {
                sums[0][row * dim + i] += p * factor * v[i].abs();
                sums[1][row * dim + i] += shape.scale * d * k[i].abs();
                sums[2][key_range.start + i] += shape.scale * d * q[i].abs();
                sums[3][key_range.start + i] += p * factor * d_o[i].abs();
            }
        }
    }
    sums
}

/// An infinity or a NaN reaches what sees it and nothing else, whatever is computed beside it.
#[test]
fn what_is_not_seen_does_not_reach() {
    let index: Vec<u32> = (0..150).collect();
    let shape = AttentionShape {
        batch: 1,
        q_len: 150,
        k_len: 150,
        kv_heads: 1,
        group: 1,
        head_dim: 16,
        q_index: &index,
        k_index: &index,
        k_size: 150,
        causal: true,
        scale: 0.25,
        dropout: None,
    };
    let x = Inputs::new(&shape, 4);
    let finite =
        |x: &[f64]| -> Vec<bool> { x.chunks(16).map(|row| row.iter().all(|x| x.is_finite())).collect() };
    for (at, value) in [(70, f64::NAN), (100, f64::INFINITY)] {
        // Of a value, all queries from it on know.
        let mut v = x.v.clone();
        v[at * 16 + 3] = value;
        let [o, ..] = run(&shape, &x.q, &x.k, &v, &x.d_o);
        assert!(finite(&o).iter().enumerate().all(|(query, &finite)| finite == (query < at)));
        // Of a query's gradient, all keys up to it.
        let mut d_o = x.d_o.clone();
        d_o[at * 16 + 3] = value;
        let [_, _, dq, dk, dv] = run(&shape, &x.q, &x.k, &x.v, &d_o);
        assert!(finite(&dq).iter().enumerate().all(|(query, &finite)| finite == (query != at)));
        for gradient in [dk, dv] {
            assert!(finite(&gradient).iter().enumerate().all(|(key, &finite)| finite == (key > at)));
        }
    }
}

/// Nor does what no query sees: not even to the queries that fill up a block.
#[test]
fn keys_that_no_query_sees_may_be_anything() {
    let index: Vec<u32> = (0..150).collect();
    let shape = AttentionShape {
        batch: 1,
        q_len: 41,
        k_len: 150,
        kv_heads: 1,
        group: 2,
        head_dim: 24,
        q_index: &index[..41],
        k_index: &index,
        k_size: 150,
        causal: true,
        scale: 0.25,
        dropout: None,
    };
    let x = Inputs::new(&shape, 4);
    let round = |x: &[f64]| -> Vec<bf16> { x.iter().map(|&x| bf16::from_f64(x)).collect() };
    let [q, mut k, mut v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(|x| round(x));
    for stain_keys in [false, true] {
        for key in [41, 60, 149] {
            v[key * 24 + 5] = bf16::NAN;
            if stain_keys {
                k[key * 24 + 7] = bf16::INFINITY;
            }
        }
        for cpu in cpus() {
            let poison = |len| vec![bf16::NAN; len];
            let (mut o, mut lse) = (poison(q.len()), vec![f32::NAN; q.len() / 24]);
            let mut scratch = vec![f32::NAN; attention_scratch(&shape, cpu.threads())];
            attention_forward(cpu, &shape, &q, &k, &v, &mut o, &mut lse, &mut scratch);
            let (mut dq, mut dk, mut dv) = (poison(q.len()), poison(k.len()), poison(k.len()));
            attention_backward(
                cpu,
                &shape,
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
            for results in [o, dq, dk, dv] {
                assert!(results.iter().all(|x| x.is_finite()), "{cpu:?}");
            }
        }
    }
}
