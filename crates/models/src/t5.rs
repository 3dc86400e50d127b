//! T5 (Raffel et al., 2020): an encoder and a decoder that reads what the encoder wrote. Norms are RMS norms before the
//! blocks, projections have no biases, scores are not scaled but biased by relative position.

use graph::{Buckets, Dim, Graph, Init, NormKind, Op, Place, Role, ValueId, ValueType};

use crate::parts::{self, Dims, STD, Widths};
use crate::pointwise::Activation;
use crate::step::Step;
use crate::task::{Forward, Given, Model, loss};

/// Form of the feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeedForward {
    /// `down(activation(up(x)))`.
    Plain(Activation),
    /// `down(activation(gate(x)) * up(x))`.
    Gated(Activation),
    /// `down(silu(gate(x)) * up(x))`.
    SwiGlu,
}

/// Shape of a T5.
#[derive(Debug, Clone, PartialEq)]
pub struct T5 {
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Sizes of both.
    pub widths: Widths,
    /// Token ids.
    pub vocab_size: usize,
    /// Form of the feed-forward blocks.
    pub feed_forward: FeedForward,
    /// Buckets of relative positions.
    pub num_buckets: usize,
    /// Distance from which on all share the last bucket.
    pub max_distance: usize,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Whether the decoder's output is divided by the root of the width before the head.
    pub scale_output: bool,
    /// Whether embedding and head share one table.
    pub tied: bool,
    /// Tokens in a target.
    pub target_length: usize,
}

/// One of the two stacks.
struct Stack {
    name: &'static str,
    num_layers: usize,
    /// Place of its first layer.
    first: usize,
    dims: Dims,
    /// Padding of its own keys.
    key_index: Option<ValueId>,
    is_decoder: bool,
}

/// What the decoder reads of the encoder.
struct Encoded {
    output: ValueId,
    seq: Dim,
    key_seq: Dim,
    key_index: Option<ValueId>,
}

impl T5 {
    fn norm(&self, g: &mut Graph, x: ValueId) -> ValueId {
        parts::norm(g, NormKind::Rms, self.norm_eps, x)
    }

    fn layers(&self, g: &mut Graph, stack: &Stack, encoded: Option<&Encoded>, mut x: ValueId) -> ValueId {
        let d = &stack.dims;
        let buckets = g.dim("buckets", self.num_buckets);
        g.mark_stream(x);
        for layer in 0..stack.num_layers {
            g.set_place(Place::Layer(stack.first + layer));
            let table = g.scoped(stack.name, |g| {
                let dims = [buckets, d.kv_heads, d.group];
                g.parameter("relative_bias", &dims, Init::Normal { std: STD }, false)
            });
            x = g.scoped(&format!("{}.layers.{layer}", stack.name), |g| {
                let x = g.scoped("attention", |g| self.self_attention(g, stack, table, x));
                let x = match encoded {
                    Some(encoded) => g.scoped("cross_attention", |g| self.cross_attention(g, d, encoded, x)),
                    None => x,
                };
                g.scoped("mlp", |g| self.mlp(g, d, x))
            });
            g.mark_stream(x);
        }
        x
    }

    fn self_attention(&self, g: &mut Graph, stack: &Stack, table: ValueId, x: ValueId) -> ValueId {
        let d = &stack.dims;
        let normed = self.norm(g, x);
        let [q, k, v] = parts::project(g, d, normed, normed, [d.seq, d.key_seq], false);
        let buckets = Buckets { max_distance: self.max_distance, bidirectional: !stack.is_decoder };
        let qkv = [q, k, v, table];
        let o = g.relative_attention("core", qkv, stack.key_index, stack.is_decoder, 1.0, buckets);
        let y = parts::output(g, d, o, false);
        g.add("residual", &[x, y])
    }

    fn cross_attention(&self, g: &mut Graph, d: &Dims, encoded: &Encoded, x: ValueId) -> ValueId {
        let normed = self.norm(g, x);
        let context = [encoded.seq, encoded.key_seq];
        let [q, k, v] = parts::project(g, d, normed, encoded.output, context, false);
        let o = g.attention("core", q, k, v, encoded.key_index, false, 1.0, 0.0);
        let y = parts::output(g, d, o, false);
        g.add("residual", &[x, y])
    }

    fn mlp(&self, g: &mut Graph, d: &Dims, x: ValueId) -> ValueId {
        let normed = self.norm(g, x);
        let gate = |g: &mut Graph| parts::linear(g, "gate", normed, &[d.embed], &[d.mlp], false);
        let up = |g: &mut Graph| parts::linear(g, "up", normed, &[d.embed], &[d.mlp], false);
        let y = match self.feed_forward {
            FeedForward::Plain(activation) => parts::feed_forward(g, d, activation, normed, false),
            FeedForward::Gated(activation) => {
                let gate = gate(g);
                let gate = activation.write(g, gate);
                let up = up(g);
                let inner = g.elementwise(Op::Multiply, "gated", &[gate, up]);
                parts::linear(g, "down", inner, &[d.mlp], &[d.embed], false)
            }
            FeedForward::SwiGlu => {
                let (gate, up) = (gate(g), up(g));
                let inner = g.elementwise(Op::SwiGlu, "swiglu", &[gate, up]);
                parts::linear(g, "down", inner, &[d.mlp], &[d.embed], false)
            }
        };
        g.add("residual", &[x, y])
    }
}

impl Model for T5 {
    fn forward(&self, g: &mut Graph, step: Step, given: &Given) -> Forward {
        g.set_role(Role::Forward);
        let source = Dims::new(g, step.batch, step.sequence_length, &self.widths);
        let target = Dims {
            seq: g.dim("target_seq", self.target_length),
            key_seq: g.dim("target_key_seq", self.target_length),
            ..Dims::new(g, step.batch, step.sequence_length, &self.widths)
        };
        let vocab = g.dim("vocab", self.vocab_size);
        g.set_place(Place::Everywhere);
        let tokens = g.input("tokens", &[source.batch, source.seq], ValueType::Int);
        let target_tokens = g.input("target_tokens", &[target.batch, target.seq], ValueType::Int);
        let key_index = parts::key_index(g, given.key_index, [source.batch, source.key_seq]);
        let (batch, target_seq, embed) = (target.batch, target.seq, target.embed);
        g.set_place(Place::Layer(0));
        let (x, y, table) = g.scoped("embedding", |g| {
            let table = g.parameter("token", &[vocab, embed], Init::Normal { std: 1.0 }, true);
            (g.embedding("tokens", table, tokens), g.embedding("targets", table, target_tokens), table)
        });
        let (seq, key_seq) = (source.seq, source.key_seq);
        let encoder = Stack {
            name: "encoder",
            num_layers: self.num_layers,
            first: 1,
            dims: source,
            key_index,
            is_decoder: false,
        };
        let x = self.layers(g, &encoder, None, x);
        let output = g.scoped("encoder", |g| self.norm(g, x));
        g.mark_stream(output);
        let encoded = Encoded { output, seq, key_seq, key_index };
        let decoder = Stack {
            name: "decoder",
            num_layers: self.num_decoder_layers,
            first: 1 + self.num_layers,
            dims: target,
            key_index: None,
            is_decoder: true,
        };
        let y = self.layers(g, &decoder, Some(&encoded), y);
        g.set_place(Place::Layer(1 + self.num_layers + self.num_decoder_layers));
        let logits = g.scoped("head", |g| {
            let mut y = self.norm(g, y);
            if self.scale_output {
                y = parts::scaled(g, y, 1.0 / (self.widths.embed as f64).sqrt());
            }
            let weight = match self.tied {
                true => table,
                false => g.parameter("weight", &[vocab, embed], Init::Normal { std: STD }, true),
            };
            g.contract("logits", y, weight, &[batch, target_seq, vocab])
        });
        Forward { outputs: vec![("logits", logits)], loss: given.labels.then(|| loss(g, logits)) }
    }

    fn num_layers(&self) -> usize {
        self.num_layers + self.num_decoder_layers
    }
}
