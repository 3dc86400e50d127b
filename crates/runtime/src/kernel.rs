//! Bound kernels: one variant per operation with everything but the data, and the one `match` that calls them.

use std::sync::Arc;

use kernels::{AdamStep, Float, NamedKey, NormKind, SgdStep};
use memory::Plain;

use crate::executor::StepContext;

/// Attention with the extents and tables of one rank.
#[derive(Debug)]
pub(crate) struct Attention {
    pub batch: usize,
    pub q_len: usize,
    pub k_len: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub head_dim: usize,
    pub q_index: Arc<[u32]>,
    pub k_index: Arc<[u32]>,
    pub k_size: usize,
    pub causal: bool,
    pub scale: f64,
    pub dropout: Option<AttentionKeys>,
}

/// What keys the random numbers of attention dropout.
#[derive(Debug)]
pub(crate) struct AttentionKeys {
    pub p: f64,
    pub key: NamedKey,
    /// One table per microbatch.
    pub batch_index: Vec<Arc<[u32]>>,
    pub kv_index: Arc<[u32]>,
    pub group_index: Arc<[u32]>,
    /// Global key-value heads, group, queries.
    pub sizes: [usize; 3],
}

/// An operation, bound.
#[derive(Debug)]
pub(crate) enum Kernel {
    Embedding {
        width: usize,
        local_row: Arc<[u32]>,
    },
    EmbeddingBackward {
        width: usize,
        local_row: Arc<[u32]>,
    },
    Gemm {
        m: usize,
        n: usize,
        k: usize,
        trans_a: bool,
        trans_b: bool,
        accumulate: bool,
    },
    Add,
    Sum {
        outer: usize,
        reduced: usize,
        inner: usize,
    },
    WeightedSum {
        outer: usize,
        reduced: usize,
        inner: usize,
    },
    Norm {
        kind: NormKind,
        eps: f64,
    },
    NormBackwardInput {
        kind: NormKind,
        eps: f64,
    },
    NormBackwardWeight {
        kind: NormKind,
        eps: f64,
    },
    Rotary {
        heads: usize,
        head_dim: usize,
        theta: f64,
        inverse: bool,
    },
    Attention(Attention),
    AttentionBackward(Attention),
    Gelu,
    GeluBackward,
    SwiGlu,
    SwiGluBackward,
    /// `outer`: for each outer dim, one table per microbatch.
    Dropout {
        p: f64,
        key: NamedKey,
        outer: Vec<Vec<Arc<[u32]>>>,
        sizes: Vec<usize>,
        inner: Arc<[u32]>,
    },
    RowMax {
        index: Arc<[u32]>,
        size: usize,
    },
    SumExp {
        index: Arc<[u32]>,
        size: usize,
        local_row: Arc<[u32]>,
    },
    SumExpBackward {
        index: Arc<[u32]>,
        size: usize,
        local_row: Arc<[u32]>,
    },
    TokenLoss,
    TokenLossBackward,
    SumSquares {
        len: usize,
    },
    ClipScale {
        max_norm: f64,
    },
    Adam {
        betas: [f64; 2],
        eps: f64,
        weight_decay: f64,
        decoupled: bool,
        len: usize,
    },
    Sgd {
        momentum: f64,
        nesterov: bool,
        weight_decay: f64,
        len: usize,
    },
}

/// Operands of a kernel: floats, and at most one integer tensor.
pub(crate) struct Operands<'a, T> {
    pub floats: &'a [&'a [T]],
    pub ints: &'a [i32],
}

impl Kernel {
    /// Runs on local slices. Operands are in the order of the operation, the integer one left out.
    pub fn run<T: Float + Plain>(
        &self,
        context: &StepContext,
        microbatch: usize,
        operands: &Operands<'_, T>,
        results: &mut [&mut [T]],
        scratch: &mut [T],
    ) {
        let x = operands.floats;
        let ids = operands.ints;
        let key = |name: &NamedKey| name.at(context.seed, context.step);
        match self {
            Kernel::Embedding { width, local_row } => {
                kernels::embedding_forward(ids, local_row, x[0], *width, results[0]);
            }
            Kernel::EmbeddingBackward { width, local_row } => {
                kernels::embedding_backward(ids, local_row, x[0], *width, results[0]);
            }
            Kernel::Gemm { m, n, k, trans_a, trans_b, accumulate } => kernels::gemm(
                *m,
                *n,
                *k,
                x[0],
                *trans_a,
                x[1],
                *trans_b,
                results[0],
                *accumulate,
                context.threads,
            ),
            Kernel::Add => add(x, results[0]),
            Kernel::Sum { outer, reduced, inner } => kernels::sum(x[0], *outer, *reduced, *inner, results[0]),
            Kernel::WeightedSum { outer, reduced, inner } => {
                kernels::weighted_sum(x[0], x[1], *outer, *reduced, *inner, results[0]);
            }
            Kernel::Norm { kind, eps } => {
                kernels::norm_forward(*kind, *eps, x[0], x[1], x.get(2).copied(), results[0]);
            }
            Kernel::NormBackwardInput { kind, eps } => {
                kernels::norm_backward_input(*kind, *eps, x[0], x[1], x[2], results[0]);
            }
            Kernel::NormBackwardWeight { kind, eps } => {
                kernels::norm_backward_weight(*kind, *eps, x[0], x[1], results[0]);
            }
            Kernel::Rotary { heads, head_dim, theta, inverse } => {
                kernels::rotary(x[0], ids, *heads, *head_dim, *theta, *inverse, results[0]);
            }
            Kernel::Attention(attention) => {
                let shape = attention.shape(context.seed, context.step, microbatch);
                let [o, lse] = results else { unreachable!("two results") };
                kernels::attention_forward(&shape, x[0], x[1], x[2], o, lse, scratch);
            }
            Kernel::AttentionBackward(attention) => {
                let shape = attention.shape(context.seed, context.step, microbatch);
                let [dq, dk, dv] = results else { unreachable!("three results") };
                kernels::attention_backward(&shape, x[0], x[1], x[2], x[3], x[4], x[5], dq, dk, dv, scratch);
            }
            Kernel::Gelu => kernels::gelu(x[0], results[0]),
            Kernel::GeluBackward => kernels::gelu_backward(x[0], x[1], results[0]),
            Kernel::SwiGlu => kernels::swiglu(x[0], x[1], results[0]),
            Kernel::SwiGluBackward => {
                let [d_gate, d_up] = results else { unreachable!("two results") };
                kernels::swiglu_backward(x[0], x[1], x[2], d_gate, d_up);
            }
            Kernel::Dropout { p, key: name, outer, sizes, inner } => {
                let row_index = |row| global_row(row, outer, sizes, microbatch);
                kernels::dropout(x[0], results[0], *p, &key(name), row_index, inner);
            }
            Kernel::RowMax { index, size } => kernels::row_max(x[0], index, *size, results[0]),
            Kernel::SumExp { index, size, local_row } => {
                let [sum_exp, target] = results else { unreachable!("two results") };
                kernels::sum_exp(x[0], x[1], ids, local_row, index, *size, sum_exp, target);
            }
            Kernel::SumExpBackward { index, size, local_row } => {
                kernels::sum_exp_backward(x[0], x[1], ids, local_row, index, *size, x[2], x[3], results[0]);
            }
            Kernel::TokenLoss => kernels::token_loss(x[0], x[1], x[2], x[3], results[0]),
            Kernel::TokenLossBackward => {
                let [d_sum_exp, d_target] = results else { unreachable!("two results") };
                kernels::token_loss_backward(x[0], x[1], x[2], d_sum_exp, d_target);
            }
            Kernel::SumSquares { len } => results[0][0] = kernels::sum_squares(&x[0][..*len]),
            Kernel::ClipScale { max_norm } => {
                let [scale, norm] = results else { unreachable!("two results") };
                (scale[0], norm[0]) = clip(*max_norm, x[0]);
            }
            Kernel::Adam { betas, eps, weight_decay, decoupled, len } => {
                let [p, first, second] = results else { unreachable!("three results") };
                let [g, scale, lr, step] = x else { unreachable!("four operands") };
                let t = step[0].to_f64();
                let adam = AdamStep {
                    lr: lr[0].to_f64(),
                    beta1: betas[0],
                    beta2: betas[1],
                    eps: *eps,
                    weight_decay: *weight_decay,
                    bias_correction1: 1.0 - betas[0].powf(t),
                    bias_correction2: 1.0 - betas[1].powf(t),
                    l2: !decoupled,
                };
                let n = *len;
                kernels::adam_in_place(
                    &adam,
                    scale[0],
                    &mut p[..n],
                    &g[..n],
                    &mut first[..n],
                    &mut second[..n],
                );
            }
            Kernel::Sgd { momentum, nesterov, weight_decay, len } => {
                let [p, velocity] = results else { unreachable!("two results") };
                let [g, scale, lr, _] = x else { unreachable!("four operands") };
                let sgd = SgdStep {
                    lr: lr[0].to_f64(),
                    momentum: *momentum,
                    nesterov: *nesterov,
                    weight_decay: *weight_decay,
                };
                kernels::sgd_in_place(&sgd, scale[0], &mut p[..*len], &g[..*len], &mut velocity[..*len]);
            }
        }
    }
}

fn add<T: Float>(x: &[&[T]], out: &mut [T]) {
    match x {
        [only] => out.copy_from_slice(only),
        [first, second, rest @ ..] => {
            if second.len() == first.len() {
                kernels::add(first, second, out);
            } else {
                kernels::add_bias(first, second, out);
            }
            for more in rest {
                debug_assert_eq!(more.len(), out.len(), "only the second operand may be a bias");
                kernels::accumulate(more, out);
            }
        }
        [] => unreachable!("a sum has operands"),
    }
}

/// Global linear index of the first element of a local row.
fn global_row(row: usize, outer: &[Vec<Arc<[u32]>>], sizes: &[usize], microbatch: usize) -> u64 {
    let (mut rest, mut index) = (row, 0u64);
    let mut stride = sizes.last().map_or(1, |n| *n as u64);
    for (tables, size) in outer.iter().zip(sizes).rev() {
        let table = &tables[microbatch];
        index += u64::from(table[rest % table.len()]) * stride;
        rest /= table.len();
        stride *= *size as u64;
    }
    index
}

/// The factor on summed gradients and the norm of the mean gradient, from `[loss, tokens, squared norms...]`.
fn clip<T: Float>(max_norm: f64, statistics: &[T]) -> (T, T) {
    let tokens = statistics[1].to_f64();
    if tokens == 0.0 {
        return (T::ZERO, T::ZERO); // nothing was unmasked: the gradient is zero (moments and weights still decay)
    }
    let squares: f64 = statistics[2..].iter().map(|s| s.to_f64()).sum();
    let norm = squares.sqrt() / tokens;
    let clipping = if max_norm > 0.0 { (max_norm / norm).min(1.0) } else { 1.0 };
    (T::from_f64(clipping / tokens), T::from_f64(norm))
}
