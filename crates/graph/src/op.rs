//! The operations a step is made of. What an operation means on a part of its operands is in `signature`; how fast it
//! runs is for the kernels.

use std::sync::Arc;

/// A function of one element, beside GELU in its tanh form and SiLU within SwiGLU, which have operations of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pointwise {
    /// `x Phi(x)`: GELU by the error function (Hendrycks and Gimpel, 2016).
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

/// How relative positions share biases (Raffel et al., 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Buckets {
    /// Distance from which on all share the last one.
    pub max_distance: usize,
    /// Whether keys before and behind a query have buckets of their own.
    pub bidirectional: bool,
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Subtract the mean, divide by the standard deviation (Ba et al., 2016).
    Layer,
    /// Divide by the root mean square (Zhang and Sennrich, 2019).
    Rms,
}

/// First value of a state tensor, drawn by (seed, name, global element index).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// What a state tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// Trained by the optimizer.
    Parameter,
    /// Kept by the optimizer beside a parameter.
    Moment,
    /// Kept from the inputs of earlier steps, such as keys and values of a text so far. No checkpoint has it.
    Cache,
}

/// A tensor that outlives the step.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Unique name; a checkpoint stores the tensor under it.
    pub name: String,
    /// Role of the tensor.
    pub kind: StateKind,
    /// First value.
    pub init: Init,
    /// Whether weight decay applies (matrices and tables, not norms and biases).
    pub decay: bool,
}

/// One operation. Operands and results are listed as `(operands) -> results`.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `() -> x`: a tensor of the batch, named by its node; every rank can load any part of it.
    Input,
    /// `() -> s`: a number given at run time, such as the learning rate.
    Scalar,
    /// `() -> x`: a tensor that outlives the step.
    State(State),
    /// `() -> x`: a constant.
    Fill(f64),

    /// `(parameter) -> x`: the parameter in the narrow type, rounded once per step.
    Cast,
    /// `(matrix) -> matrix`: the right factor of products in the order that their kernel wants. No graph has it: a
    /// lowered program packs what several microbatches read.
    Pack {
        /// The dims that the products sum over.
        summed: Vec<crate::Dim>,
    },
    /// `(table, ids) -> rows`: rows of a table; a contraction with one-hot ids.
    Embedding {
        /// A row that gets no gradient here: the padding token's.
        padding: Option<u32>,
    },
    /// `(ids, d_rows) -> d_table`.
    EmbeddingBackward {
        /// As in the forward.
        padding: Option<u32>,
    },
    /// `(a, b) -> c`: sum over the dims that `a` and `b` share and `c` lacks. `c` has the other dims of `a`, then
    /// those of `b`.
    Contract,
    /// `(a, b, bias) -> c`: a contraction with a bias `[dims of b in c]` added before it is rounded. No graph has it:
    /// fusion makes it in a lowered program.
    Linear,
    /// `(x, y...) -> z`: sum of operands whose dims are a suffix of those of `x`.
    Add,
    /// `(x) -> y`: sum over the dims that `y` lacks (neighbours in `x`).
    Sum,
    /// `(x, w) -> y`: sum over the last dim of `w` of `x` weighted by `w`, whose dims are a prefix of those of `x`.
    WeightedSum,
    /// `(y, w) -> x`: `y`, which lacks the last dim of `w`, times each weight along it; the gradient of `WeightedSum`.
    Spread,
    /// `(x, gain, [bias]) -> y`: normalisation over the last dim.
    Norm {
        /// Which one.
        kind: NormKind,
        /// Added to the variance or mean square.
        eps: f64,
    },
    /// `(x, y, gain, [bias]) -> (x + y, norm of it)`. No graph has it: fusion makes it in a lowered program.
    AddNorm {
        /// Which one.
        kind: NormKind,
        /// Added to the variance or mean square.
        eps: f64,
    },
    /// `(x, gain, dy) -> dx`.
    NormBackwardInput {
        /// Which one.
        kind: NormKind,
        /// As in the forward.
        eps: f64,
    },
    /// `(x, dy) -> d_gain`.
    NormBackwardWeight {
        /// Which one.
        kind: NormKind,
        /// As in the forward.
        eps: f64,
    },
    /// `(x, positions) -> y`: rotary position embedding over the last dim (Su et al., 2021), half-split form.
    Rotary {
        /// Angle per position of each pair.
        frequencies: Arc<[f64]>,
        /// Factor on cosine and sine.
        factor: f64,
        /// Rotate back: the backward.
        inverse: bool,
    },
    /// `(q, k, v, [key_index]) -> (o, log_sum_exp)`: attention with q `[batch, query, kv_heads, group, head_dim]` and
    /// k, v `[batch, key, kv_heads, head_dim]`, never holding the score matrix (Dao et al., 2022).
    ///
    /// `key_index` `[batch, key]` has the position of each key, or -1 for one that no query sees: padding. A query that
    /// sees no key gets 0.
    Attention {
        /// A query sees keys at its own position and before.
        causal: bool,
        /// Factor on the scores.
        scale: f64,
        /// Dropout on the probabilities.
        dropout: f64,
        /// Name that keys the random numbers.
        key: String,
    },
    /// `(q, k, v, o, log_sum_exp, d_o, [key_index]) -> (dq, dk, dv)`.
    AttentionBackward {
        /// As in the forward.
        causal: bool,
        /// As in the forward.
        scale: f64,
        /// As in the forward.
        dropout: f64,
        /// As in the forward.
        key: String,
    },
    /// `(q, k, v, table, [key_index]) -> (o, log_sum_exp)`: attention whose scores get a bias by the relative position
    /// of query and key, from a table `[buckets, kv_heads, group]`.
    RelativeAttention {
        /// A query sees keys at its own position and before.
        causal: bool,
        /// Factor on the scores, before the bias.
        scale: f64,
        /// Which row of the table.
        buckets: Buckets,
        /// Dropout on the probabilities.
        dropout: f64,
        /// Name that keys the random numbers.
        key: String,
    },
    /// `(q, k, v, table, o, log_sum_exp, d_o, [key_index]) -> (dq, dk, dv, d_table)`.
    RelativeAttentionBackward {
        /// As in the forward.
        causal: bool,
        /// As in the forward.
        scale: f64,
        /// As in the forward.
        buckets: Buckets,
        /// As in the forward.
        dropout: f64,
        /// As in the forward.
        key: String,
    },
    /// `(cache, rows, slots) -> cache`, in place: rows `[batch, seq, rest...]` to their slots, `slots` `[batch, seq]`, of
    /// `[batch, slot, rest...]`; a negative slot keeps nothing of its row.
    CacheWrite,
    /// `(q, k, v, [table], distance) -> o`: attention over caches k, v `[batch, slot, kv_heads, head_dim]`, without a
    /// backward. q as in [`Op::Attention`], table as in [`Op::RelativeAttention`].
    ///
    /// `distance` `[batch, query, slot]` says how many positions the key in each slot lies behind the query; a negative
    /// one that the query does not see it. So queries of one sequence may continue different texts, and positions are
    /// run-time inputs.
    CachedAttention {
        /// Factor on the scores, before the bias.
        scale: f64,
        /// Which row of the table, if there is one.
        buckets: Option<Buckets>,
    },
    /// `(x) -> y`: GELU in its tanh form (Hendrycks and Gimpel, 2016).
    Gelu,
    /// `(x, dy) -> dx`.
    GeluBackward,
    /// `(x) -> y`: another function of each element.
    Pointwise(Pointwise),
    /// `(x, dy) -> dx`.
    PointwiseBackward(Pointwise),
    /// `(a, b) -> c`: product of each element of `a` with that of `b`.
    Multiply,
    /// `(gate, up) -> y`: SiLU(gate) * up (Shazeer, 2020).
    SwiGlu,
    /// `(gate, up, dy) -> (d_gate, d_up)`.
    SwiGluBackward,
    /// `(x) -> y`: inverted dropout; its own backward.
    Dropout {
        /// Probability of zero.
        p: f64,
        /// Name that keys the random numbers.
        key: String,
    },
    /// `(x) -> y`: the same elements with dim `from` called `to`.
    Rename {
        /// The dim's name in `x`.
        from: crate::Dim,
        /// The dim's name in `y`.
        to: crate::Dim,
    },

    /// `(logits) -> max`: over the last dim. Its derivative is not propagated: in `max + ln(sum_exp)` it cancels.
    RowMax,
    /// `(logits, max, targets) -> (sum_exp, target_logit)`: sum of `exp(logit - max)`, and the target's logit.
    SumExp,
    /// `(logits, max, targets, d_sum_exp, d_target_logit) -> d_logits`.
    SumExpBackward {
        /// The result takes the place of the logits. No graph says so: a lowered program does, where nobody reads
        /// them again.
        in_place: bool,
    },
    /// `(max, sum_exp, target_logit, weights) -> nll`: weighted negative log likelihood of each token.
    TokenLoss,
    /// `(sum_exp, weights, d_nll) -> (d_sum_exp, d_target_logit)`.
    TokenLossBackward,

    /// `(x) -> s`: sum of squares of all elements.
    SumSquares,
    /// `(s...) -> v`: scalars side by side. Missing operands (held by other stages) are 0.
    Stack,
    /// `(x) -> x`: the value of one stage on every rank of every stage.
    Share,
    /// `(statistics, [loss_scale]) -> (scale, grad_norm)`: from `[loss, num_tokens, sum_squares...]`, the factor
    /// `min(1, max_norm / norm) / num_tokens` on summed gradients, and the norm of the mean gradient before clipping.
    ///
    /// With a loss scale, gradients come multiplied by it and the factor divides by it; if their norm is not finite
    /// the factor is NaN, on which updates change nothing.
    ClipScale {
        /// Largest allowed norm; 0 for none.
        max_norm: f64,
    },
    /// `(num_tokens, [loss_scale]) -> scale`: the factor of [`Op::ClipScale`] if nothing is clipped and all is finite.
    AssumedScale,
    /// `(parameter, gradient, first, second, scale, lr, step) -> (parameter, first, second, [copy])`, in place but for a
    /// narrow copy of the parameter, which only lowered programs ask for.
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Decoupled (AdamW, Loshchilov and Hutter, 2019) or added to the gradient (Adam, Kingma and Ba, 2015).
        weight_decay: f64,
        /// Whether the decay is decoupled.
        decoupled: bool,
    },
    /// `(parameter, gradient, velocity, scale, lr, step) -> (parameter, velocity, [copy])`, as [`Op::Adam`].
    Sgd {
        /// Momentum (PyTorch's form).
        momentum: f64,
        /// Nesterov's look-ahead.
        nesterov: bool,
        /// L2 decay, added to the gradient.
        weight_decay: f64,
    },
}

impl Op {
    /// Short name for listings and profiles.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input => "input",
            Op::Scalar => "scalar",
            Op::State(_) => "state",
            Op::Fill(_) => "fill",
            Op::Cast => "cast",
            Op::Pack { .. } => "pack_weight",
            Op::Embedding { .. } => "embedding",
            Op::EmbeddingBackward { .. } => "embedding_backward",
            Op::Contract => "contract",
            Op::Linear => "linear",
            Op::Add => "add",
            Op::Sum => "sum",
            Op::WeightedSum => "weighted_sum",
            Op::Spread => "spread",
            Op::Norm { .. } => "norm",
            Op::AddNorm { .. } => "add_norm",
            Op::NormBackwardInput { .. } => "norm_backward_input",
            Op::NormBackwardWeight { .. } => "norm_backward_weight",
            Op::Rotary { .. } => "rotary",
            Op::Attention { .. } => "attention",
            Op::AttentionBackward { .. } => "attention_backward",
            Op::RelativeAttention { .. } => "relative_attention",
            Op::RelativeAttentionBackward { .. } => "relative_attention_backward",
            Op::CacheWrite => "cache_write",
            Op::CachedAttention { .. } => "cached_attention",
            Op::Gelu => "gelu",
            Op::GeluBackward => "gelu_backward",
            Op::Pointwise(_) => "pointwise",
            Op::PointwiseBackward(_) => "pointwise_backward",
            Op::Multiply => "multiply",
            Op::SwiGlu => "swiglu",
            Op::SwiGluBackward => "swiglu_backward",
            Op::Dropout { .. } => "dropout",
            Op::Rename { .. } => "rename",
            Op::RowMax => "row_max",
            Op::SumExp => "sum_exp",
            Op::SumExpBackward { .. } => "sum_exp_backward",
            Op::TokenLoss => "token_loss",
            Op::TokenLossBackward => "token_loss_backward",
            Op::SumSquares => "sum_squares",
            Op::Stack => "stack",
            Op::Share => "share",
            Op::ClipScale { .. } => "clip_scale",
            Op::AssumedScale => "assumed_scale",
            Op::Adam { .. } => "adam",
            Op::Sgd { .. } => "sgd",
        }
    }

    /// Whether the operation has no operands, so that any rank can produce any part of its result by itself.
    pub fn is_source(&self) -> bool {
        matches!(self, Op::Input | Op::Scalar | Op::Fill(_))
    }

    /// Pairs (result, operand) that share memory: the operation updates the operand.
    pub fn in_place(&self) -> &'static [(usize, usize)] {
        match self {
            Op::Adam { .. } => &[(0, 0), (1, 2), (2, 3)],
            Op::Sgd { .. } => &[(0, 0), (1, 2)],
            Op::CacheWrite => &[(0, 0)],
            Op::SumExpBackward { in_place: true } => &[(0, 0)],
            _ => &[],
        }
    }
}
