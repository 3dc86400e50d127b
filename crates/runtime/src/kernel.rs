//! Bound kernels: one variant per operation with everything but the data, and the one `match` that calls them.

use std::sync::Arc;

use half::{bf16, f16};
use kernels::{
    AdamStep, Base, CachedShape, Cpu, Float, NamedKey, NormKind, PointwiseKind, RelativeBias,
    RelativeBuckets, SgdStep, Storage,
};
use memory::{DType, Element, Region, RegionMut};

use crate::executor::StepContext;

/// Attention with the extents and tables of one rank.
#[derive(Debug, Clone)]
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
    /// Whether an operand says which keys each sequence has.
    pub masked: bool,
    pub causal: bool,
    pub scale: f64,
    pub dropout: Option<AttentionKeys>,
}

/// Attention with biases by relative position.
#[derive(Debug, Clone)]
pub(crate) struct RelativeAttention {
    pub attention: Attention,
    /// Rows of the table of biases.
    pub num_buckets: usize,
    /// The row for each distance.
    pub rows: Vec<u32>,
}

/// Attention over caches with the extents of one rank.
#[derive(Debug, Clone)]
pub(crate) struct CachedAttention {
    pub shape: CachedShape,
    pub buckets: Option<RelativeBuckets>,
}

/// What keys the random numbers of attention dropout.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
pub(crate) enum Kernel {
    Cast,
    /// The right factor `[k, n]` of products, or its transpose.
    Pack {
        k: usize,
        n: usize,
        transposed: bool,
    },
    Embedding {
        width: usize,
        local_row: Arc<[u32]>,
    },
    EmbeddingBackward {
        width: usize,
        local_row: Arc<[u32]>,
    },
    Gemm(Gemm),
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
    Spread {
        outer: usize,
        n: usize,
        inner: usize,
    },
    Norm {
        kind: NormKind,
        eps: f64,
    },
    AddNorm {
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
        frequencies: Arc<[f64]>,
        factor: f64,
        inverse: bool,
    },
    Attention(Attention),
    AttentionBackward(Attention),
    RelativeAttention(Box<RelativeAttention>),
    RelativeAttentionBackward(Box<RelativeAttention>),
    /// Extents of the rows that are written and of the cache.
    CacheWrite {
        seq: usize,
        slots: usize,
        width: usize,
    },
    CachedAttention(CachedAttention),
    Gelu,
    GeluBackward,
    Pointwise(PointwiseKind),
    PointwiseBackward(PointwiseKind),
    Multiply,
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
    AssumedScale,
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

/// A type that activations are stored in, on the arena and in kernels alike.
pub(crate) trait Stored: Storage<Wide: Element> + Element {}
impl<S: Storage<Wide: Element> + Element> Stored for S {}

/// What a kernel reads: floats in the order of the operation, and at most one integer tensor.
pub(crate) struct Operands<'a> {
    pub floats: &'a [(Region<'a>, DType)],
    pub ints: &'a [i32],
    /// The same as indices: -1 is the largest one, which no dim has.
    pub indices: &'a [u32],
}

impl Operands<'_> {
    /// The `i`th float operand, which must be made of `X`.
    fn get<X: Element>(&self, i: usize) -> &[X] {
        let (region, dtype) = &self.floats[i];
        assert_eq!(*dtype, X::DTYPE, "operand {i} is stored in another type");
        region.as_slice()
    }

    fn is_wide<S: Storage<Wide: Element>>(&self, i: usize) -> bool {
        self.floats[i].1 == <S::Wide as Element>::DTYPE
    }
}

/// A float buffer that a kernel writes.
pub(crate) struct Target<'a> {
    pub region: RegionMut<'a>,
    pub dtype: DType,
}

impl Target<'_> {
    fn get<X: Element>(&mut self) -> &mut [X] {
        assert_eq!(self.dtype, X::DTYPE, "a result is stored in another type");
        self.region.as_mut_slice()
    }

    fn is_wide<S: Storage<Wide: Element>>(&self) -> bool {
        self.dtype == <S::Wide as Element>::DTYPE
    }
}

impl Kernel {
    /// Runs on local parts. `S` is what activations are stored in; statistics, parameters and their gradients are in
    /// its wide type.
    pub fn run<S: Stored>(
        &self,
        context: &StepContext<'_>,
        microbatch: usize,
        x: &Operands<'_>,
        results: &mut [Target<'_>],
        scratch: &mut RegionMut<'_>,
    ) {
        let cpu = context.cpu;
        let ids = x.ints;
        let key = |name: &NamedKey| name.at(context.seed, context.step);
        match self {
            Kernel::Cast => kernels::cast::<S>(cpu, x.get(0), results[0].get()),
            Kernel::Pack { k, n, transposed } => {
                kernels::pack_weight::<S>(cpu, *k, *n, x.get(0), *transposed, results[0].get());
            }
            Kernel::Embedding { width, local_row } => {
                kernels::embedding_forward::<S>(cpu, ids, local_row, x.get(0), *width, results[0].get());
            }
            Kernel::EmbeddingBackward { width, local_row } => {
                kernels::embedding_backward::<S>(cpu, ids, local_row, x.get(0), *width, results[0].get());
            }
            Kernel::Gemm(gemm) => {
                let (a, b, scratch) = (x.get::<S>(0), x.get::<S>(1), scratch.as_mut_slice());
                let base = match x.floats.len() {
                    3 => Base::Row(x.get(2)),
                    _ if gemm.accumulate => Base::Current,
                    _ => Base::Zero,
                };
                match results[0].is_wide::<S>() {
                    true => gemm.run(cpu, a, b, base, results[0].get::<S::Wide>(), scratch),
                    false => gemm.run(cpu, a, b, base, results[0].get::<S>(), scratch),
                }
            }
            Kernel::Add if results[0].is_wide::<S>() => add::<S::Wide>(cpu, x, &mut results[0]),
            Kernel::Add => add::<S>(cpu, x, &mut results[0]),
            Kernel::Sum { outer, reduced, inner } => {
                let out = results[0].get::<S::Wide>();
                match x.is_wide::<S>(0) {
                    true => kernels::sum::<S::Wide>(cpu, x.get(0), *outer, *reduced, *inner, out),
                    false => kernels::sum::<S>(cpu, x.get(0), *outer, *reduced, *inner, out),
                }
            }
            Kernel::WeightedSum { outer, reduced, inner } => {
                let (rows, weights) = (x.get::<S>(0), x.get(1));
                kernels::weighted_sum(cpu, rows, weights, *outer, *reduced, *inner, results[0].get());
            }
            Kernel::Spread { outer, n, inner } => {
                kernels::spread::<S>(cpu, x.get(0), x.get(1), *outer, *n, *inner, results[0].get());
            }
            Kernel::Norm { kind, eps } => {
                let bias = (x.floats.len() > 2).then(|| x.get(2));
                kernels::norm_forward::<S>(cpu, *kind, *eps, x.get(0), x.get(1), bias, results[0].get());
            }
            Kernel::AddNorm { kind, eps } => {
                let [sum, out] = results else { unreachable!("two results") };
                let bias = (x.floats.len() > 3).then(|| x.get(3));
                let (a, b, gain) = (x.get(0), x.get(1), x.get(2));
                kernels::add_norm_forward::<S>(cpu, *kind, *eps, a, b, gain, bias, sum.get(), out.get());
            }
            Kernel::NormBackwardInput { kind, eps } => {
                let (gain, dy) = (x.get(1), x.get(2));
                kernels::norm_backward_input::<S>(cpu, *kind, *eps, x.get(0), gain, dy, results[0].get());
            }
            Kernel::NormBackwardWeight { kind, eps } => {
                kernels::norm_backward_weight::<S>(cpu, *kind, *eps, x.get(0), x.get(1), results[0].get());
            }
            Kernel::Rotary { heads, frequencies, factor, inverse } => {
                let out = results[0].get();
                kernels::rotary::<S>(cpu, x.get(0), ids, *heads, frequencies, *factor, *inverse, out);
            }
            Kernel::Attention(attention) => {
                let shape = attention.shape(context.seed, context.step, microbatch, x.indices);
                let [o, lse] = results else { unreachable!("two results") };
                let (q, k, v, scratch) = (x.get(0), x.get(1), x.get(2), scratch.as_mut_slice());
                kernels::attention_forward::<S>(cpu, &shape, q, k, v, o.get(), lse.get(), scratch);
            }
            Kernel::AttentionBackward(attention) => {
                let shape = attention.shape(context.seed, context.step, microbatch, x.indices);
                let [dq, dk, dv] = results else { unreachable!("three results") };
                let (q, k, v) = (x.get(0), x.get(1), x.get(2));
                let (o, lse, d_o) = (x.get(3), x.get(4), x.get(5));
                let (dq, dk, dv) = (dq.get(), dk.get(), dv.get());
                let scratch = scratch.as_mut_slice();
                kernels::attention_backward::<S>(cpu, &shape, q, k, v, o, lse, d_o, dq, dk, dv, scratch);
            }
            Kernel::RelativeAttention(relative) => {
                let shape = relative.attention.shape(context.seed, context.step, microbatch, x.indices);
                let bias = RelativeBias { table: x.get(3), rows: &relative.rows };
                let [o, lse] = results else { unreachable!("two results") };
                let (q, k, v, scratch) = (x.get::<S>(0), x.get(1), x.get(2), scratch.as_mut_slice());
                let (o, lse) = (o.get(), lse.get());
                kernels::relative_attention_forward(cpu, &shape, &bias, q, k, v, o, lse, scratch);
            }
            Kernel::RelativeAttentionBackward(relative) => {
                let shape = relative.attention.shape(context.seed, context.step, microbatch, x.indices);
                let bias = RelativeBias { table: x.get(3), rows: &relative.rows };
                let [dq, dk, dv, d_table] = results else { unreachable!("four results") };
                let (q, k, v) = (x.get::<S>(0), x.get(1), x.get(2));
                let (o, lse, d_o) = (x.get(4), x.get(5), x.get(6));
                let (dq, dk, dv, d_table) = (dq.get(), dk.get(), dv.get(), d_table.get());
                let scratch = scratch.as_mut_slice();
                kernels::relative_attention_backward(
                    cpu, &shape, &bias, q, k, v, o, lse, d_o, dq, dk, dv, d_table, scratch,
                );
            }
            Kernel::CacheWrite { seq, slots, width } => {
                kernels::cache_write::<S>(ids, x.get(0), *seq, *slots, *width, results[0].get());
            }
            Kernel::CachedAttention(CachedAttention { shape, buckets }) => {
                let (q, k, v) = (x.get::<S>(0), x.get(1), x.get(2));
                let bias = buckets.as_ref().map(|buckets| (buckets, x.get(3)));
                let (o, scratch) = (results[0].get(), scratch.as_mut_slice());
                kernels::cached_attention(cpu, shape, bias, ids, q, k, v, o, scratch);
            }
            Kernel::Gelu => kernels::gelu::<S>(cpu, x.get(0), results[0].get()),
            Kernel::GeluBackward => kernels::gelu_backward::<S>(cpu, x.get(0), x.get(1), results[0].get()),
            Kernel::Pointwise(kind) => kernels::pointwise::<S>(cpu, *kind, x.get(0), results[0].get()),
            Kernel::PointwiseBackward(kind) => {
                kernels::pointwise_backward::<S>(cpu, *kind, x.get(0), x.get(1), results[0].get());
            }
            Kernel::Multiply => kernels::multiply::<S>(cpu, x.get(0), x.get(1), results[0].get()),
            Kernel::SwiGlu => kernels::swiglu::<S>(cpu, x.get(0), x.get(1), results[0].get()),
            Kernel::SwiGluBackward => {
                let [d_gate, d_up] = results else { unreachable!("two results") };
                let (gate, up, dy) = (x.get(0), x.get(1), x.get(2));
                kernels::swiglu_backward::<S>(cpu, gate, up, dy, d_gate.get(), d_up.get());
            }
            Kernel::Dropout { p, key: name, outer, sizes, inner } => {
                let row_index = |row| global_row(row, outer, sizes, microbatch);
                kernels::dropout::<S>(cpu, x.get(0), results[0].get(), *p, &key(name), row_index, inner);
            }
            Kernel::RowMax { index, size } => {
                kernels::row_max::<S>(cpu, x.get(0), index, *size, results[0].get());
            }
            Kernel::SumExp { index, size, local_row } => {
                let [sum_exp, target] = results else { unreachable!("two results") };
                let (logits, max) = (x.get(0), x.get(1));
                let (sum_exp, target) = (sum_exp.get(), target.get());
                kernels::sum_exp::<S>(cpu, logits, max, ids, local_row, index, *size, sum_exp, target);
            }
            Kernel::SumExpBackward { index, size, local_row } => {
                // In place, the logits are in the result already.
                let (read, rest) = x.floats.split_at(x.floats.len() - 3);
                let x = Operands { floats: rest, ints: ids, indices: x.indices };
                let (max, d_sum, d_target, logits) = (x.get(0), x.get(1), x.get(2), results[0].get::<S>());
                if let [(from, _)] = read {
                    logits.copy_from_slice(from.as_slice());
                }
                kernels::sum_exp_backward::<S>(
                    cpu, logits, max, ids, local_row, index, *size, d_sum, d_target,
                );
            }
            Kernel::TokenLoss => {
                let (max, sum_exp, target, weights) = (x.get::<S::Wide>(0), x.get(1), x.get(2), x.get(3));
                kernels::token_loss(cpu, max, sum_exp, target, weights, results[0].get());
            }
            Kernel::TokenLossBackward => {
                let [d_sum, d_target] = results else { unreachable!("two results") };
                let (sum_exp, weights, d_nll) = (x.get::<S::Wide>(0), x.get(1), x.get(2));
                kernels::token_loss_backward(cpu, sum_exp, weights, d_nll, d_sum.get(), d_target.get());
            }
            Kernel::SumSquares { len } => {
                results[0].get()[0] = kernels::sum_squares(cpu, &x.get::<S::Wide>(0)[..*len]);
            }
            Kernel::ClipScale { max_norm } => {
                let [scale, norm] = results else { unreachable!("two results") };
                let loss_scale = (x.floats.len() > 1).then(|| x.get::<S::Wide>(1)[0].to_f64());
                (scale.get()[0], norm.get()[0]) = clip(*max_norm, x.get::<S::Wide>(0), loss_scale);
            }
            Kernel::AssumedScale => {
                let loss_scale = (x.floats.len() > 1).then(|| x.get::<S::Wide>(1)[0].to_f64());
                // No norm, no clipping.
                let statistics = [S::Wide::ZERO, x.get::<S::Wide>(0)[0]];
                results[0].get()[0] = clip(0.0, &statistics, loss_scale).0;
            }
            Kernel::Adam { betas, eps, weight_decay, decoupled, len } => {
                let [p, first, second, copy @ ..] = results else { unreachable!("three results or four") };
                let (g, scale) = (x.get::<S::Wide>(0), x.get::<S::Wide>(1));
                let (lr, step) = (x.get::<S::Wide>(2), x.get::<S::Wide>(3));
                if skips(scale[0]) {
                    return;
                }
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
                let (p, first, second) = (&mut p.get()[..n], &mut first.get()[..n], &mut second.get()[..n]);
                let copy = copy.first_mut().map(|copy| &mut copy.get::<S>()[..n]);
                kernels::adam_with_copy(cpu, &adam, scale[0], p, &g[..n], first, second, copy);
            }
            Kernel::Sgd { momentum, nesterov, weight_decay, len } => {
                let [p, velocity, copy @ ..] = results else { unreachable!("two results or three") };
                let (g, scale) = (x.get::<S::Wide>(0), x.get::<S::Wide>(1));
                let lr = x.get::<S::Wide>(2);
                if skips(scale[0]) {
                    return;
                }
                let sgd = SgdStep {
                    lr: lr[0].to_f64(),
                    momentum: *momentum,
                    nesterov: *nesterov,
                    weight_decay: *weight_decay,
                };
                let n = *len;
                let (p, velocity) = (&mut p.get()[..n], &mut velocity.get()[..n]);
                let copy = copy.first_mut().map(|copy| &mut copy.get::<S>()[..n]);
                kernels::sgd_with_copy(cpu, &sgd, scale[0], p, &g[..n], velocity, copy);
            }
        }
    }
}

/// A matrix product with the extents of one rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub trans_a: bool,
    pub trans_b: bool,
    /// Whether b was packed before.
    pub packed: bool,
    pub accumulate: bool,
}

impl Gemm {
    /// Bytes of scratch memory for factors of type `dtype`.
    pub fn scratch_bytes(&self, dtype: DType, threads: usize) -> usize {
        let Gemm { m, n, k, .. } = *self;
        match dtype {
            DType::F64 => kernels::gemm_scratch_bytes::<f64>(threads, m, n, k),
            DType::BF16 => kernels::gemm_scratch_bytes::<bf16>(threads, m, n, k),
            DType::F16 => kernels::gemm_scratch_bytes::<f16>(threads, m, n, k),
            _ => kernels::gemm_scratch_bytes::<f32>(threads, m, n, k),
        }
    }

    fn run<S: Storage, C: Storage<Wide = S::Wide>>(
        &self,
        cpu: &Cpu,
        a: &[S],
        b: &[S],
        base: Base<S::Wide>,
        c: &mut [C],
        scratch: &mut [u8],
    ) {
        let Gemm { m, n, k, trans_a, trans_b, .. } = *self;
        if self.packed {
            return kernels::gemm_prepacked(cpu, m, n, k, a, trans_a, b, c, base, scratch);
        }
        // One row is its own transpose.
        if m <= kernels::FEW_ROWS && (m == 1 || !trans_a) {
            return kernels::gemm_few_rows(cpu, [m, n, k], a, b, trans_b, c, base);
        }
        kernels::gemm(cpu, m, n, k, a, trans_a, b, trans_b, c, base, scratch);
    }
}

fn add<X: Stored>(cpu: &Cpu, x: &Operands<'_>, out: &mut Target<'_>) {
    let out = out.get::<X>();
    let first = x.get::<X>(0);
    if x.floats.len() == 1 {
        return out.copy_from_slice(first);
    }
    // Only the second operand may be a bias: it is a parameter, so it is wide, and as long as a row. Of one row both
    // are equally long.
    let (region, dtype) = &x.floats[1];
    match *dtype == X::DTYPE && region.len_bytes() / dtype.size_bytes() == first.len() {
        true => kernels::add::<X>(cpu, first, x.get(1), out),
        false => kernels::add_bias::<X>(cpu, first, x.get(1), out),
    }
    for i in 2..x.floats.len() {
        kernels::accumulate::<X>(cpu, x.get(i), out);
    }
}

/// Whether a factor says that the gradients overflowed and the step is to be skipped.
fn skips<T: Float>(scale: T) -> bool {
    scale.to_f64().is_nan()
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
fn clip<T: Float>(max_norm: f64, statistics: &[T], loss_scale: Option<f64>) -> (T, T) {
    let tokens = statistics[1].to_f64();
    if tokens == 0.0 {
        return (T::ZERO, T::ZERO); // nothing was unmasked: the gradient is zero (moments and weights still decay)
    }
    let divisor = tokens * loss_scale.unwrap_or(1.0);
    let squares: f64 = statistics[2..].iter().map(|s| s.to_f64()).sum();
    let norm = squares.sqrt() / divisor;
    if loss_scale.is_some() && !norm.is_finite() {
        return (T::from_f64(f64::NAN), T::from_f64(norm));
    }
    let clipping = if max_norm > 0.0 { (max_norm / norm).min(1.0) } else { 1.0 };
    (T::from_f64(clipping / divisor), T::from_f64(norm))
}
