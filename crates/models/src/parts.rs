//! What families are put together from: linear layers, norms, heads of attention, feed-forward blocks. No family's own
//! text.

use graph::{Dim, Graph, Init, NormKind, Op, ValueId, ValueType};

use crate::pointwise::Activation;

/// Spread of first weights, unless a family says otherwise.
pub(crate) const STD: f64 = 0.02;

/// Sizes that the blocks of a model share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Width of the residual stream.
    pub embed: usize,
    /// Heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden units of the feed-forward blocks.
    pub mlp: usize,
}

/// How far a model's first weights are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// All by [`STD`].
    Alike,
    /// By the root of the number of inputs that are summed, so that results are as large as inputs; queries less by the
    /// root of a head's width, for models that do not scale scores (Raffel et al., 2020, as published with it).
    ByInputs,
}

/// Dims of a model's tensors. Every head has keys of its own, so that `group` is 1.
pub(crate) struct Dims {
    pub batch: Dim,
    pub seq: Dim,
    pub key_seq: Dim,
    pub embed: Dim,
    pub kv_heads: Dim,
    pub group: Dim,
    pub head_dim: Dim,
    pub mlp: Dim,
    pub spread: Spread,
}

impl Dims {
    pub fn new(g: &mut Graph, batch: usize, seq: usize, widths: &Widths) -> Dims {
        Dims {
            batch: g.dim("batch", batch),
            seq: g.dim("seq", seq),
            key_seq: g.dim("key_seq", seq),
            embed: g.dim("embed", widths.embed),
            kv_heads: g.dim("kv_heads", widths.num_heads),
            group: g.dim("group", 1),
            head_dim: g.dim("head_dim", widths.head_dim),
            mlp: g.dim("mlp", widths.mlp),
            spread: Spread::Alike,
        }
    }

    /// [`linear`], its first weights as the model spreads them.
    pub fn linear(
        &self,
        g: &mut Graph,
        name: &str,
        x: ValueId,
        input: &[Dim],
        output: &[Dim],
        has_bias: bool,
    ) -> ValueId {
        linear_drawn(g, name, x, input, output, has_bias, self.std(g, input))
    }

    /// Spread of what `input` is multiplied with.
    pub fn std(&self, g: &Graph, input: &[Dim]) -> f64 {
        let num_inputs: usize = input.iter().map(|dim| g.dim_info(*dim).size).product();
        match self.spread {
            Spread::Alike => STD,
            Spread::ByInputs => (num_inputs as f64).powf(-0.5),
        }
    }
}

/// The input `key_index` over `[batch, keys]`, if the batch has it.
pub(crate) fn key_index(g: &mut Graph, is_given: bool, dims: [Dim; 2]) -> Option<ValueId> {
    is_given.then(|| g.input("key_index", &dims, ValueType::Int))
}

/// `x` `[.., input...]` times `NAME.weight` `[input..., output...]`, plus `NAME.bias` if there is one.
pub(crate) fn linear(
    g: &mut Graph,
    name: &str,
    x: ValueId,
    input: &[Dim],
    output: &[Dim],
    has_bias: bool,
) -> ValueId {
    linear_drawn(g, name, x, input, output, has_bias, STD)
}

/// [`linear`] whose first weights have another spread.
pub(crate) fn linear_drawn(
    g: &mut Graph,
    name: &str,
    x: ValueId,
    input: &[Dim],
    output: &[Dim],
    has_bias: bool,
    std: f64,
) -> ValueId {
    let dims = g.value(x).dims.clone();
    let result = [&dims[..dims.len() - input.len()], output].concat();
    g.scoped(name, |g| {
        let weight = g.parameter("weight", &[input, output].concat(), Init::Normal { std }, true);
        let y = g.contract("", x, weight, &result);
        if !has_bias {
            return y;
        }
        let bias = g.parameter("bias", output, Init::Zeros, false);
        g.add("biased", &[y, bias])
    })
}

/// Normalisation over the last dim by `norm.gain` and, for a layer norm, `norm.bias`.
pub(crate) fn norm(g: &mut Graph, kind: NormKind, eps: f64, x: ValueId) -> ValueId {
    let last = *g.value(x).dims.last().expect("a stream has a width");
    g.scoped("norm", |g| {
        let gain = g.parameter("gain", &[last], Init::Ones, false);
        let bias = (kind == NormKind::Layer).then(|| g.parameter("bias", &[last], Init::Zeros, false));
        g.norm("", kind, eps, x, gain, bias)
    })
}

/// Queries of `x`, and keys and values of `context`, whose dim `from` becomes `to`: a context-parallel plan gathers them
/// there, and nowhere else.
pub(crate) fn project(
    g: &mut Graph,
    d: &Dims,
    x: ValueId,
    context: ValueId,
    [from, to]: [Dim; 2],
    has_bias: bool,
) -> [ValueId; 3] {
    let q = queries(g, d, x, has_bias);
    let [k, v] = keys_and_values(g, d, context, has_bias);
    [q, g.rename("key.context", k, from, to), g.rename("value.context", v, from, to)]
}

/// Queries of `x`.
pub(crate) fn queries(g: &mut Graph, d: &Dims, x: ValueId, has_bias: bool) -> ValueId {
    let of_head = match d.spread {
        Spread::Alike => 1.0,
        Spread::ByInputs => (g.dim_info(d.head_dim).size as f64).powf(-0.5),
    };
    let std = of_head * d.std(g, &[d.embed]);
    linear_drawn(g, "query", x, &[d.embed], &[d.kv_heads, d.group, d.head_dim], has_bias, std)
}

/// Keys and values of `context`.
pub(crate) fn keys_and_values(g: &mut Graph, d: &Dims, context: ValueId, has_bias: bool) -> [ValueId; 2] {
    ["key", "value"].map(|name| d.linear(g, name, context, &[d.embed], &[d.kv_heads, d.head_dim], has_bias))
}

/// The heads' results brought back to the stream.
pub(crate) fn output(g: &mut Graph, d: &Dims, o: ValueId, has_bias: bool) -> ValueId {
    d.linear(g, "output", o, &[d.kv_heads, d.group, d.head_dim], &[d.embed], has_bias)
}

/// `down(activation(up(x)))`.
pub(crate) fn feed_forward(
    g: &mut Graph,
    d: &Dims,
    activation: Activation,
    x: ValueId,
    has_bias: bool,
) -> ValueId {
    let up = d.linear(g, "up", x, &[d.embed], &[d.mlp], has_bias);
    let inner = activation.write(g, up);
    d.linear(g, "down", inner, &[d.mlp], &[d.embed], has_bias)
}

/// `activation(gate) * up` (Shazeer, "GLU Variants Improve Transformer", 2020).
pub(crate) fn gated(g: &mut Graph, activation: Activation, gate: ValueId, up: ValueId) -> ValueId {
    if activation == Activation::Silu {
        return g.elementwise(Op::SwiGlu, "swiglu", &[gate, up]);
    }
    let gate = activation.write(g, gate);
    g.elementwise(Op::Multiply, "gated", &[gate, up])
}

/// `x` at the position of each sequence that the input `select` `[batch, seq]` marks with 1.
pub(crate) fn select(g: &mut Graph, d: &Dims, x: ValueId) -> ValueId {
    let select = g.input("select", &[d.batch, d.seq], ValueType::Float);
    g.weighted_sum("selected", x, select)
}

/// `x` times a constant.
pub(crate) fn scaled(g: &mut Graph, x: ValueId, factor: f64) -> ValueId {
    let dims = g.value(x).dims.clone();
    let factor = g.fill("factor", factor, &dims);
    g.elementwise(Op::Multiply, "scaled", &[x, factor])
}
