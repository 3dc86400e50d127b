//! Binding: an operation on buffers with layouts becomes a kernel call with extents and index tables of one rank.

use std::sync::Arc;

use graph::{Dim, Op};
use kernels::{AttentionDropout, AttentionShape, Key};
use memory::DType;
use mesh::Coord;
use plan::{Buffer, BufferId, Instruction, Plan, Program};

use crate::kernel::{Attention, AttentionKeys, CachedAttention, Gemm, Kernel, RelativeAttention};
use crate::{strips, tables};

/// What binding needs to know of the rank.
pub(crate) struct Binder<'a> {
    pub plan: &'a Plan,
    pub coord: Coord,
}

/// Bytes of scratch memory that the kernels of a Program need at once, beside the Program's own buffers, when each
/// rank has `threads`.
pub fn scratch_bytes(plan: &Plan, program: &Program, threads: usize) -> usize {
    let binder = Binder { plan, coord: Coord::default() };
    let bytes = |op: &Op, inputs: &[BufferId], outputs: &[BufferId]| {
        let buffers = |ids: &[BufferId]| ids.iter().map(|b| program.buffer(*b)).collect::<Vec<_>>();
        let operands = buffers(inputs);
        match op {
            Op::Attention { .. } | Op::AttentionBackward { .. } => {
                binder.attention(op, &operands).scratch(threads) * plan.float.size_bytes()
            }
            Op::RelativeAttention { buckets, .. } | Op::RelativeAttentionBackward { buckets, .. } => {
                let relative = binder.relative_attention(op, buckets, &operands);
                relative.scratch(threads) * plan.float.size_bytes()
            }
            Op::CachedAttention { .. } => {
                let [queries, keys] =
                    [operands[0], operands[1]].map(|b| plan.local_shape(&b.dims, &b.layout));
                queries[..4].iter().product::<usize>() * (keys[1] + queries[4]) * plan.float.size_bytes()
            }
            Op::Contract | Op::Linear => binder
                .contract(operands[0], operands[1], buffers(outputs)[0], false)
                .scratch_bytes(operands[0].dtype, threads),
            _ => 0,
        }
    };
    let computes = program.blocks.iter().flat_map(|b| &b.instructions).map(|i| match i {
        Instruction::Compute { op, inputs, outputs, .. } => bytes(op, inputs, outputs),
        Instruction::Strips { body, held, rows } => {
            strips::scratch_bytes(&binder, program, body, *held, *rows, threads)
        }
        _ => 0,
    });
    computes.max().unwrap_or(0).next_multiple_of(64)
}

impl Binder<'_> {
    /// The kernel for `op`. `operands` leaves out those that are updated in place.
    pub fn kernel(&self, op: &Op, operands: &[&Buffer], results: &[&Buffer], accumulate: bool) -> Kernel {
        let last = |b: &Buffer| self.shape(b).last().copied().unwrap_or(1);
        match op {
            Op::Input
            | Op::Scalar
            | Op::State(_)
            | Op::Fill(_)
            | Op::Stack
            | Op::Share
            | Op::Rename { .. } => {
                unreachable!("{} is not computed", op.name())
            }
            Op::Embedding { .. } => {
                Kernel::Embedding { width: last(operands[0]), local_row: self.local_row(operands[0], 0) }
            }
            Op::EmbeddingBackward { padding } => {
                let mut local_row = self.local_row(results[0], 0);
                if let Some(row) = padding {
                    Arc::make_mut(&mut local_row)[*row as usize] = kernels::NOT_LOCAL;
                }
                Kernel::EmbeddingBackward { width: last(results[0]), local_row }
            }
            Op::Cast => Kernel::Cast,
            Op::Pack { summed } => {
                let matrix = operands[0];
                let extent = |inside: bool| -> usize {
                    let extents = matrix.dims.iter().zip(self.shape(matrix));
                    extents.filter(|(d, _)| summed.contains(d) == inside).map(|(_, n)| n).product()
                };
                let transposed = matrix.dims.first().is_some_and(|d| !summed.contains(d));
                Kernel::Pack { k: extent(true), n: extent(false), transposed }
            }
            Op::Contract | Op::Linear => {
                Kernel::Gemm(self.contract(operands[0], operands[1], results[0], accumulate))
            }
            Op::Add => Kernel::Add,
            Op::Sum => {
                let (outer, reduced, inner) = self.reduced(operands[0], results[0]);
                Kernel::Sum { outer, reduced, inner }
            }
            Op::WeightedSum => {
                let weights = self.shape(operands[1]);
                let reduced = weights.last().copied().unwrap_or(1);
                let outer: usize = weights[..weights.len() - 1].iter().product();
                Kernel::WeightedSum {
                    outer,
                    reduced,
                    inner: self.shape(operands[0])[weights.len()..].iter().product(),
                }
            }
            Op::Spread => {
                let weights = self.shape(operands[1]);
                let n = weights.last().copied().unwrap_or(1);
                Kernel::Spread {
                    outer: weights[..weights.len() - 1].iter().product(),
                    n,
                    inner: self.shape(results[0])[weights.len()..].iter().product(),
                }
            }
            Op::Norm { kind, eps } => Kernel::Norm { kind: norm_kind(*kind), eps: *eps },
            Op::AddNorm { kind, eps } => Kernel::AddNorm { kind: norm_kind(*kind), eps: *eps },
            Op::NormBackwardInput { kind, eps } => {
                Kernel::NormBackwardInput { kind: norm_kind(*kind), eps: *eps }
            }
            Op::NormBackwardWeight { kind, eps } => {
                Kernel::NormBackwardWeight { kind: norm_kind(*kind), eps: *eps }
            }
            Op::Rotary { frequencies, factor, inverse } => {
                let shape = self.shape(operands[0]);
                let heads = shape[2..shape.len() - 1].iter().product();
                Kernel::Rotary { heads, frequencies: frequencies.clone(), factor: *factor, inverse: *inverse }
            }
            Op::Attention { .. } => Kernel::Attention(self.attention(op, operands)),
            Op::AttentionBackward { .. } => Kernel::AttentionBackward(self.attention(op, operands)),
            Op::RelativeAttention { buckets, .. } => {
                Kernel::RelativeAttention(self.relative_attention(op, buckets, operands))
            }
            Op::RelativeAttentionBackward { buckets, .. } => {
                Kernel::RelativeAttentionBackward(self.relative_attention(op, buckets, operands))
            }
            Op::CacheWrite => {
                let (rows, cache) = (self.shape(operands[0]), self.shape(results[0]));
                Kernel::CacheWrite { seq: rows[1], slots: cache[1], width: cache[2..].iter().product() }
            }
            Op::CachedAttention { scale, buckets } => {
                let (q, k) = (self.shape(operands[0]), self.shape(operands[1]));
                Kernel::CachedAttention(CachedAttention {
                    shape: kernels::CachedShape {
                        batch: q[0],
                        q_len: q[1],
                        slots: k[1],
                        kv_heads: q[2],
                        group: q[3],
                        head_dim: q[4],
                        scale: *scale,
                    },
                    buckets: buckets.map(|buckets| self.relative_buckets(&buckets, operands[3])),
                })
            }
            Op::Gelu => Kernel::Gelu,
            Op::GeluBackward => Kernel::GeluBackward,
            Op::Pointwise(kind) => Kernel::Pointwise(pointwise_kind(*kind)),
            Op::PointwiseBackward(kind) => Kernel::PointwiseBackward(pointwise_kind(*kind)),
            Op::Multiply => Kernel::Multiply,
            Op::SwiGlu => Kernel::SwiGlu,
            Op::SwiGluBackward => Kernel::SwiGluBackward,
            Op::Dropout { p, key } => {
                let x = operands[0];
                let (inner, outer) = x.dims.split_last().expect("dropout has dims");
                Kernel::Dropout {
                    p: *p,
                    key: Key::for_name(key),
                    outer: outer.iter().map(|d| self.by_microbatch(x, *d)).collect(),
                    sizes: x.dims.iter().map(|d| self.plan.digits(*d).size()).collect(),
                    inner: tables::index(self.plan, *inner, &x.layout, &self.coord),
                }
            }
            Op::RowMax => {
                let (index, size) = self.columns(operands[0]);
                Kernel::RowMax { index, size }
            }
            Op::SumExp => {
                let (index, size) = self.columns(operands[0]);
                let local_row = self.local_row(operands[0], operands[0].dims.len() - 1);
                Kernel::SumExp { index, size, local_row }
            }
            Op::SumExpBackward { .. } => {
                let (index, size) = self.columns(results[0]);
                let local_row = self.local_row(results[0], results[0].dims.len() - 1);
                Kernel::SumExpBackward { index, size, local_row }
            }
            Op::TokenLoss => Kernel::TokenLoss,
            Op::TokenLossBackward => Kernel::TokenLossBackward,
            Op::SumSquares => Kernel::SumSquares { len: self.real(operands[0]) },
            Op::ClipScale { max_norm } => Kernel::ClipScale { max_norm: *max_norm },
            Op::AssumedScale => Kernel::AssumedScale,
            Op::Adam { beta1, beta2, eps, weight_decay, decoupled } => Kernel::Adam {
                betas: [*beta1, *beta2],
                eps: *eps,
                weight_decay: *weight_decay,
                decoupled: *decoupled,
                len: self.real(results[0]),
            },
            Op::Sgd { momentum, nesterov, weight_decay } => Kernel::Sgd {
                momentum: *momentum,
                nesterov: *nesterov,
                weight_decay: *weight_decay,
                len: self.real(results[0]),
            },
        }
    }

    fn shape(&self, buffer: &Buffer) -> Vec<usize> {
        self.plan.local_shape(&buffer.dims, &buffer.layout)
    }

    /// Local elements without the padding at the end of the last flat shards.
    fn real(&self, buffer: &Buffer) -> usize {
        match buffer.layout.flat_axis() {
            None => buffer.len,
            Some(axis) => {
                let whole: usize = self.shape(buffer).iter().product();
                whole.saturating_sub(self.coord.get(axis) * buffer.len).min(buffer.len)
            }
        }
    }

    fn local_row(&self, buffer: &Buffer, position: usize) -> Arc<[u32]> {
        tables::local_row(self.plan, buffer.dims[position], &buffer.layout, &self.coord)
    }

    fn by_microbatch(&self, buffer: &Buffer, dim: Dim) -> Vec<Arc<[u32]>> {
        tables::index_by_microbatch(self.plan, dim, &buffer.layout, &self.coord)
    }

    fn columns(&self, logits: &Buffer) -> (Arc<[u32]>, usize) {
        let vocab = *logits.dims.last().expect("logits have a vocabulary");
        (tables::index(self.plan, vocab, &logits.layout, &self.coord), self.plan.digits(vocab).size())
    }

    pub fn contract(&self, a: &Buffer, b: &Buffer, c: &Buffer, accumulate: bool) -> Gemm {
        let is_row = |d: &Dim| c.dims.contains(d);
        let product = |buffer: &Buffer, rows: bool| -> usize {
            let shape = self.shape(buffer);
            buffer.dims.iter().zip(shape).filter(|(d, _)| is_row(d) == rows).map(|(_, n)| n).product()
        };
        let inner_first = |buffer: &Buffer| buffer.dims.first().is_some_and(|d| !is_row(d));
        Gemm {
            m: product(a, true),
            n: product(b, true),
            k: product(a, false),
            // a is [m, k] unless its summed dims come first; b is [k, n] if they do.
            trans_a: inner_first(a),
            trans_b: !inner_first(b),
            packed: b.packed,
            accumulate,
        }
    }

    fn reduced(&self, x: &Buffer, y: &Buffer) -> (usize, usize, usize) {
        let shape = self.shape(x);
        let gone: Vec<usize> = (0..x.dims.len()).filter(|i| !y.dims.contains(&x.dims[*i])).collect();
        let (Some(first), Some(last)) = (gone.first().copied(), gone.last().copied()) else {
            return (shape.iter().product(), 1, 1);
        };
        debug_assert_eq!(last - first + 1, gone.len(), "summed dims are neighbours");
        (
            shape[..first].iter().product(),
            shape[first..=last].iter().product(),
            shape[last + 1..].iter().product(),
        )
    }

    fn relative_attention(
        &self,
        op: &Op,
        buckets: &graph::Buckets,
        operands: &[&Buffer],
    ) -> Box<RelativeAttention> {
        let attention = self.attention(op, operands);
        let buckets = self.relative_buckets(buckets, operands[3]);
        let queries = self.plan.digits(operands[0].dims[1]).size();
        let rows = buckets.rows(queries.max(attention.k_size));
        Box::new(RelativeAttention { attention, num_buckets: buckets.num, rows })
    }

    fn relative_buckets(&self, buckets: &graph::Buckets, table: &Buffer) -> kernels::RelativeBuckets {
        kernels::RelativeBuckets {
            num: self.shape(table)[0],
            max_distance: buckets.max_distance,
            bidirectional: buckets.bidirectional,
        }
    }

    fn attention(&self, op: &Op, operands: &[&Buffer]) -> Attention {
        let (causal, scale, dropout, key) = match op {
            Op::Attention { causal, scale, dropout, key }
            | Op::AttentionBackward { causal, scale, dropout, key }
            | Op::RelativeAttention { causal, scale, dropout, key, .. }
            | Op::RelativeAttentionBackward { causal, scale, dropout, key, .. } => {
                (causal, scale, dropout, key)
            }
            _ => unreachable!("called for attention"),
        };
        let (q, k) = (operands[0], operands[1]);
        let (shape, keys) = (self.shape(q), self.shape(k));
        let size = |b: &Buffer, i: usize| self.plan.digits(b.dims[i]).size();
        let table = |b: &Buffer, i: usize| tables::index(self.plan, b.dims[i], &b.layout, &self.coord);
        Attention {
            batch: shape[0],
            q_len: shape[1],
            k_len: keys[1],
            kv_heads: shape[2],
            group: shape[3],
            head_dim: shape[4],
            q_index: table(q, 1),
            k_index: table(k, 1),
            k_size: size(k, 1),
            masked: operands.iter().any(|b| b.dtype == DType::I32),
            causal: *causal,
            scale: *scale,
            dropout: (*dropout > 0.0).then(|| AttentionKeys {
                p: *dropout,
                key: Key::for_name(key),
                batch_index: self.by_microbatch(q, q.dims[0]),
                kv_index: table(q, 2),
                group_index: table(q, 3),
                sizes: [size(q, 2), size(q, 3), size(q, 1)],
            }),
        }
    }
}

fn pointwise_kind(kind: graph::Pointwise) -> kernels::PointwiseKind {
    match kind {
        graph::Pointwise::GeluErf => kernels::PointwiseKind::GeluErf,
        graph::Pointwise::Relu => kernels::PointwiseKind::Relu,
        graph::Pointwise::Silu => kernels::PointwiseKind::Silu,
        graph::Pointwise::Tanh => kernels::PointwiseKind::Tanh,
    }
}

fn norm_kind(kind: graph::NormKind) -> kernels::NormKind {
    match kind {
        graph::NormKind::Layer => kernels::NormKind::Layer,
        graph::NormKind::Rms => kernels::NormKind::Rms,
    }
}

impl Attention {
    /// Wide elements of scratch that the kernel needs.
    pub fn scratch(&self, threads: usize) -> usize {
        kernels::attention_scratch(&self.shape(0, 0, 0, &[]), threads)
    }

    /// The kernel's view of one microbatch of one step; `keys` says which ones each sequence has, if it is `masked`.
    pub fn shape<'a>(
        &'a self,
        seed: u64,
        step: u64,
        microbatch: usize,
        keys: &'a [u32],
    ) -> AttentionShape<'a> {
        AttentionShape {
            batch: self.batch,
            q_len: self.q_len,
            k_len: self.k_len,
            kv_heads: self.kv_heads,
            group: self.group,
            head_dim: self.head_dim,
            q_index: &self.q_index,
            k_index: if self.masked { keys } else { &self.k_index },
            k_size: self.k_size,
            causal: self.causal,
            scale: self.scale,
            dropout: self.dropout.as_ref().map(|d| AttentionDropout {
                p: d.p,
                key: d.key.at(seed, step),
                batch_index: &d.batch_index[microbatch],
                kv_index: &d.kv_index,
                group_index: &d.group_index,
                kv_heads: d.sizes[0],
                group: d.sizes[1],
                q_size: d.sizes[2],
                k_size: self.k_size,
            }),
        }
    }
}

impl RelativeAttention {
    /// Wide elements of scratch that the kernel needs.
    fn scratch(&self, threads: usize) -> usize {
        let shape = self.attention.shape(0, 0, 0, &[]);
        kernels::relative_attention_scratch(&shape, self.num_buckets, self.rows.len(), threads)
    }
}
