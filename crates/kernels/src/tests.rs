//! Every kernel but the matrix product on every instruction set, in every type, on one thread and on three, against
//! itself in `f64` on plain instructions. That this is right is for the tests beside each kernel, by definitions and
//! finite differences.

use crate::testing::{Kernel, Lengths, kernel_test};
use crate::*;
use proptest::prelude::*;

fn float<T: Float>(value: f64) -> T {
    T::from_f64(value)
}

/// Ids that repeat, some out of range.
fn ids(n: usize, vocab: usize) -> Vec<i32> {
    (0..n).map(|i| (i * i * 7 + i) as i32 % (vocab as i32 + 2) - 1).collect()
}

/// Every second row is local.
fn half_local(vocab: usize) -> Vec<u32> {
    (0..vocab as u32).map(|id| if id % 2 == 0 { id / 2 } else { NOT_LOCAL }).collect()
}

/// Global indices of every second column, from 0.
fn index(columns: usize) -> Vec<u32> {
    (0..columns as u32).map(|i| 2 * i).collect()
}

fn norm_kind(kind: usize) -> NormKind {
    [NormKind::Layer, NormKind::Rms][kind]
}

const ADAM: AdamStep = AdamStep {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-3,
    weight_decay: 0.1,
    bias_correction1: 0.1,
    bias_correction2: 0.2,
    l2: false,
};

kernel_test!(add_everywhere(len in 0..300usize), shows_nan: true,
    (a[len], b[len]; ) -> (out[len]; ), |cpu| add(cpu, a, b, out));
kernel_test!(add_bias_everywhere(rows in 0..9usize, width in 1..70usize), shows_nan: rows > 0,
    (x[rows * width]; bias[width]) -> (out[rows * width]; ), |cpu| add_bias(cpu, x, bias, out));
kernel_test!(accumulate_everywhere(len in 0..300usize), shows_nan: true, (from[len], before[len]; ) -> (into[len]; ),
|cpu| {
    into.copy_from_slice(before);
    accumulate(cpu, from, into);
});
kernel_test!(cast_everywhere(len in 0..300usize), shows_nan: true,
    (; from[len]) -> (into[len]; ), |cpu| cast(cpu, from, into));
kernel_test!(pack_everywhere(outer in 0..9usize, n in 0..5usize, inner in 0..30usize), shows_nan: true,
(x[outer * n * inner]; ) -> (packed[outer * n * inner], back[outer * n * inner]; ), |cpu| {
    pack(cpu, x, outer, n, inner, packed);
    unpack(cpu, packed, outer, n, inner, back);
    assert!(back.iter().zip(x).all(|(a, b)| a == b || a != a && b != b));
});
kernel_test!(gelu_everywhere(len in 0..300usize), shows_nan: true,
(x[len], dy[len]; ) -> (out[len], dx[len]; ), |cpu| {
    gelu(cpu, x, out);
    gelu_backward(cpu, x, dy, dx);
});
kernel_test!(pointwise_everywhere(len in 0..300usize, kind in 0..4usize), shows_nan: true,
(x[len], dy[len]; ) -> (out[len], dx[len]; ), |cpu| {
    let kind = [PointwiseKind::GeluErf, PointwiseKind::Relu, PointwiseKind::Silu, PointwiseKind::Tanh][kind];
    pointwise(cpu, kind, x, out);
    pointwise_backward(cpu, kind, x, dy, dx);
});
kernel_test!(multiply_everywhere(len in 0..300usize), shows_nan: true,
    (a[len], b[len]; ) -> (out[len]; ), |cpu| multiply(cpu, a, b, out));
kernel_test!(relative_attention_everywhere(q_len in 1..6usize, k_len in 1..7usize, dim in 1..9usize, flags in 0..4usize),
shows_nan: false,
(q[4 * q_len * dim], k[2 * k_len * dim], v[2 * k_len * dim], given_o[4 * q_len * dim], d_o[4 * q_len * dim];
    table[32], given_lse[4 * q_len])
    -> (o[4 * q_len * dim], dq[4 * q_len * dim], dk[2 * k_len * dim], dv[2 * k_len * dim];
        lse[4 * q_len], d_table[32]), |cpu| {
    let causal = flags % 2 == 1;
    let buckets = RelativeBuckets { num: 8, max_distance: 6, bidirectional: !causal };
    let dropout = AttentionDropout {
        p: 0.3, key: Key::new(5, 1, "attention"), batch_index: &[3], kv_index: &[1, 4], group_index: &[2, 0],
        kv_heads: 6, group: 3, q_size: 200, k_size: 400,
    };
    let (q_index, k_index) = ((0..q_len as u32).collect::<Vec<_>>(), (0..k_len as u32).collect::<Vec<_>>());
    let shape = AttentionShape {
        batch: 1, q_len, k_len, kv_heads: 2, group: 2, head_dim: dim, q_index: &q_index, k_index: &k_index,
        k_size: k_len, causal, scale: 0.5, dropout: (flags > 1).then_some(dropout),
    };
    let rows = buckets.rows(q_len.max(k_len));
    let bias = RelativeBias { table, rows: &rows };
    let mut scratch = vec![float(0.0); relative_attention_scratch(&shape, 8, rows.len(), cpu.threads())];
    relative_attention_forward(cpu, &shape, &bias, q, k, v, o, lse, &mut scratch);
    // Not the forward's own results: those are rounded, and would be inputs that differ.
    relative_attention_backward(
        cpu, &shape, &bias, q, k, v, given_o, given_lse, d_o, dq, dk, dv, d_table, &mut scratch,
    );
});
kernel_test!(swiglu_everywhere(len in 0..300usize), shows_nan: true,
(gate[len], up[len], d_out[len]; ) -> (out[len], d_gate[len], d_up[len]; ), |cpu| {
    swiglu(cpu, gate, up, out);
    swiglu_backward(cpu, gate, up, d_out, d_gate, d_up);
});
kernel_test!(dropout_everywhere(rows in 0..9usize, width in 1..600usize, step in 1..3usize), shows_nan: false,
(x[rows * width]; ) -> (out[rows * width]; ), |cpu| {
    let inner: Vec<u32> = (0..width).map(|i| (i * step) as u32).collect();
    dropout(cpu, x, out, 0.3, &Key::new(1, 2, "mask"), |row| (row * 4000) as u64, &inner);
});
kernel_test!(rotary_everywhere(rows in 0..9usize, heads in 1..4usize, half in 1..40usize, inverse in 0..2usize),
shows_nan: true, (x[rows * heads * half * 2]; ) -> (out[rows * heads * half * 2]; ), |cpu| {
    let positions: Vec<i32> = (0..rows as i32).map(|row| row * 37).collect();
    let frequencies: Vec<f64> = (0..half).map(|i| 1e4f64.powf(-(i as f64) / half as f64)).collect();
    rotary(cpu, x, &positions, heads, &frequencies, 1.1, inverse == 1, out);
});
kernel_test!(embedding_everywhere(n in 0..40usize, width in 0..30usize, vocab in 1..12usize), shows_nan: false,
(table[vocab.div_ceil(2) * width], d_out[n * width]; )
    -> (out[n * width]; d_table[vocab.div_ceil(2) * width]), |cpu| {
    embedding_forward(cpu, &ids(n, vocab), &half_local(vocab), table, width, out);
    embedding_backward(cpu, &ids(n, vocab), &half_local(vocab), d_out, width, d_table);
});
kernel_test!(norm_everywhere(rows in 0..90usize, width in 9..60usize, kind in 0..2usize, with_bias in 0..2usize),
shows_nan: false, (x[rows * width], dy[rows * width]; gain[width], bias[width])
    -> (out[rows * width], dx[rows * width]; d_gain[width]), |cpu| {
    let (kind, bias) = (norm_kind(kind), (with_bias == 1).then_some(bias));
    norm_forward(cpu, kind, 1e-5, x, gain, bias, out);
    norm_backward_input(cpu, kind, 1e-5, x, gain, dy, dx);
    norm_backward_weight(cpu, kind, 1e-5, x, dy, d_gain);
});
kernel_test!(add_norm_is_add_and_norm_everywhere(rows in 0..20usize, width in 1..60usize, kind in 0..2usize),
shows_nan: false, (x[rows * width], y[rows * width]; gain[width], bias[width]) -> (sum[rows * width]; ), |cpu| {
    let bias = Some(bias);
    let (mut out, mut first, mut second) = (sum.to_vec(), sum.to_vec(), sum.to_vec());
    add_norm_forward(cpu, norm_kind(kind), 1e-5, x, y, gain, bias, sum, &mut out);
    add(cpu, x, y, &mut first);
    norm_forward(cpu, norm_kind(kind), 1e-5, &first, gain, bias, &mut second);
    assert!(out.iter().zip(&second).all(|(a, b)| a == b || a != a && b != b));
});
kernel_test!(sums_everywhere(outer in 0..5usize, reduced in 0..40usize, inner in 0..400usize), shows_nan: false,
(x[outer * reduced * inner]; weights[outer * reduced])
    -> (weighted[outer * inner]; sums[outer * inner], squares[1]), |cpu| {
    sum(cpu, x, outer, reduced, inner, sums);
    weighted_sum(cpu, x, weights, outer, reduced, inner, weighted);
    squares[0] = sum_squares(cpu, x);
});
kernel_test!(spread_everywhere(outer in 0..9usize, n in 1..9usize, inner in 1..60usize), shows_nan: outer > 0,
    (y[outer * inner]; weights[outer * n]) -> (out[outer * n * inner]; ), |cpu| spread(cpu, y, weights, outer, n, inner, out));
kernel_test!(sums_of_rows_everywhere(outer in 0..40usize, reduced in 0..200usize), shows_nan: reduced > 0,
(x[outer * reduced]; ) -> (; sums[outer], squares[1]), |cpu| {
    sum(cpu, x, outer, reduced, 1, sums);
    squares[0] = sum_squares(cpu, x);
});
kernel_test!(cross_entropy_everywhere(rows in 0..20usize, columns in 1..90usize, padding in 0..3usize), shows_nan: false,
(logits[rows * columns]; given[rows], d_sum_exp[rows], d_target[rows])
    -> (d_logits[rows * columns]; max[rows], sums[rows], target[rows]), |cpu| {
    let (vocab, targets) = (2 * columns - padding.min(columns), ids(rows, 2 * columns - padding.min(columns)));
    let (index, local_row) = (index(columns), half_local(vocab));
    row_max(cpu, logits, &index, vocab, max);
    sum_exp(cpu, logits, given, &targets, &local_row, &index, vocab, sums, target);
    d_logits.copy_from_slice(logits);
    sum_exp_backward(cpu, d_logits, given, &targets, &local_row, &index, vocab, d_sum_exp, d_target);
});
kernel_test!(token_loss_everywhere(rows in 0..90usize), shows_nan: false,
(; max[rows], root[rows], target[rows], weights[rows], d_nll[rows])
    -> (; nll[rows], d_sum_exp[rows], d_target[rows]), |cpu| {
    let sums: Vec<_> = root.iter().map(|&x| x * x + float(0.5)).collect();
    let weights: Vec<_> = weights.iter().map(|&x| if x.abs() < float(0.3) { float(0.0) } else { x }).collect();
    token_loss(cpu, max, &sums, target, &weights, nll);
    token_loss_backward(cpu, &sums, &weights, d_nll, d_sum_exp, d_target);
});
kernel_test!(optimizers_everywhere(len in 0..300usize, l2 in 0..2usize, momentum in 0..2usize), shows_nan: true,
(; before[len], g[len], root[len])
    -> (adam_copy[len], sgd_copy[len]; p[len], m[len], v[len], q[len], velocity[len]), |cpu| {
    for state in [&mut *p, &mut *m, &mut *q, &mut *velocity] {
        state.copy_from_slice(before);
    }
    v.iter_mut().zip(root).for_each(|(v, &root)| *v = root * root);
    let adam = AdamStep { l2: l2 == 1, ..ADAM };
    adam_with_copy(cpu, &adam, float(0.5), p, g, m, v, Some(adam_copy));
    let sgd = SgdStep { lr: 0.1, momentum: 0.9 * momentum as f64, nesterov: l2 == 1, weight_decay: 0.01 };
    sgd_with_copy(cpu, &sgd, float(0.5), q, g, velocity, Some(sgd_copy));
});

/// Extents of an attention call from one number each; some keys are padding, indices are strided.
fn attention_shape<'a>(
    [batch, q_len, k_len, heads, head_dim]: [usize; 5],
    flags: usize,
    q_index: &'a [u32],
    k_index: &'a [u32],
) -> AttentionShape<'a> {
    let dropout = AttentionDropout {
        p: 0.3,
        key: Key::new(5, 1, "attention"),
        batch_index: &[3, 1][..batch],
        kv_index: &[1, 4][..heads],
        group_index: &[2, 0][..1 + flags % 2],
        kv_heads: 6,
        group: 3,
        q_size: 200,
        k_size: 400,
    };
    AttentionShape {
        batch,
        q_len,
        k_len,
        kv_heads: heads,
        group: 1 + flags % 2,
        head_dim,
        q_index,
        k_index,
        k_size: (2 * k_len).saturating_sub(3 * (flags / 8)),
        causal: flags / 2 % 2 == 1,
        scale: 0.2,
        dropout: (flags / 4 % 2 == 1).then_some(dropout),
    }
}

// Weights are rounded to bf16 on tiles, which changes a sum of many by more than rounding the sum does: the test
// `bf16_is_right_but_for_rounding` beside the kernel derives by how much.
kernel_test!(attention_everywhere(
    batch in 1..3usize, q_len in 1..150usize, k_len in 1..200usize, heads in 1..3usize, head_dim in 1..70usize,
    flags in 0..16usize
), shows_nan: false, rounds_on_tiles: true,
(
    q[batch * q_len * heads * (1 + flags % 2) * head_dim], o[batch * q_len * heads * (1 + flags % 2) * head_dim],
    d_o[batch * q_len * heads * (1 + flags % 2) * head_dim],
    k[batch * k_len * heads * head_dim], v[batch * k_len * heads * head_dim];
    shift[batch * q_len * heads * (1 + flags % 2)]
) -> (
    out[batch * q_len * heads * (1 + flags % 2) * head_dim],
    dq[batch * q_len * heads * (1 + flags % 2) * head_dim],
    dk[batch * k_len * heads * head_dim], dv[batch * k_len * heads * head_dim];
    lse[batch * q_len * heads * (1 + flags % 2)]
), |cpu| {
    let (q_index, k_index): (Vec<u32>, Vec<u32>) = ((0..q_len as u32).collect(), index(k_len));
    let shape = attention_shape([batch, q_len, k_len, heads, head_dim], flags, &q_index, &k_index);
    let mut scratch = vec![float(f64::NAN); attention_scratch(&shape, cpu.threads())];
    attention_forward(cpu, &shape, q, k, v, out, lse, &mut scratch);
    scratch.fill(float(f64::NAN));
    // Any numbers will do, as long as each query's weights sum to at most 1, as they do after a forward pass.
    let given: Vec<_> = lse.iter().zip(shift).map(|(&lse, &x)| lse + if x < float(0.0) { -x } else { x }).collect();
    attention_backward(cpu, &shape, q, k, v, o, &given, d_o, dq, dk, dv, &mut scratch);
});
