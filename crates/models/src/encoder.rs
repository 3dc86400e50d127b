//! Layers of bidirectional encoders: those of BERT (Devlin et al., 2019), whose norms stand after the residual sums, and
//! of ViT (Dosovitskiy et al., 2021), whose norms stand before the blocks.

use graph::{Graph, NormKind, Place, ValueId};

use crate::dropout::Dropout;
use crate::parts::{self, Dims, Widths};
use crate::pointwise::Activation;

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// `x + block(norm(x))`.
    NormFirst,
    /// `norm(x + block(x))`.
    NormLast,
}

/// What the layers of an encoder are.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    /// Layers.
    pub num_layers: usize,
    /// Their sizes.
    pub widths: Widths,
    /// Activation of the feed-forward blocks.
    pub activation: Activation,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// What is dropped in training.
    pub dropout: Dropout,
}

impl Encoder {
    /// The stream after the last layer. The layers' places follow that of the embedding, 0.
    pub(crate) fn layers(
        &self,
        g: &mut Graph,
        d: &Dims,
        order: Order,
        key_index: Option<ValueId>,
        mut x: ValueId,
    ) -> ValueId {
        g.mark_stream(x);
        for layer in 0..self.num_layers {
            g.set_place(Place::Layer(layer + 1));
            x = g.scoped(&format!("layers.{layer}"), |g| {
                let x = g.scoped("attention", |g| {
                    self.block(g, order, x, |g, x| self.attention(g, d, key_index, x))
                });
                g.scoped("mlp", |g| {
                    self.block(g, order, x, |g, x| parts::feed_forward(g, d, self.activation, x, true))
                })
            });
            g.mark_stream(x);
        }
        g.set_place(Place::Layer(self.num_layers + 1));
        x
    }

    pub(crate) fn norm(&self, g: &mut Graph, x: ValueId) -> ValueId {
        parts::norm(g, NormKind::Layer, self.norm_eps, x)
    }

    fn block(
        &self,
        g: &mut Graph,
        order: Order,
        x: ValueId,
        text: impl FnOnce(&mut Graph, ValueId) -> ValueId,
    ) -> ValueId {
        let input = if order == Order::NormFirst { self.norm(g, x) } else { x };
        let y = text(g, input);
        let y = g.dropout("dropout", y, self.dropout.residual);
        let sum = g.add("residual", &[x, y]);
        if order == Order::NormLast { self.norm(g, sum) } else { sum }
    }

    fn attention(&self, g: &mut Graph, d: &Dims, key_index: Option<ValueId>, x: ValueId) -> ValueId {
        let [q, k, v] = parts::project(g, d, x, x, [d.seq, d.key_seq], self.qkv_bias);
        let scale = 1.0 / (self.widths.head_dim as f64).sqrt();
        let o = g.attention("core", q, k, v, key_index, false, scale, self.dropout.attention);
        parts::output(g, d, o, true)
    }
}
