//! Decoder-only language models in the style of GPT-2 (Radford et al., 2019) and LLaMA (Touvron et al., 2023).

use std::sync::Arc;

use graph::{Dim, Graph, Init, NormKind, Place, ValueId};

use crate::attention;
use crate::cache::Cache;
use crate::dropout::Dropout;
use crate::parts::{self, STD};
use crate::pointwise::Activation;

/// Style of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// LayerNorm, GELU, learned positions, biases.
    Gpt2,
    /// RMSNorm, rotary positions, SwiGLU, grouped key-value heads, no biases.
    Llama,
}

/// What the rotary embedding multiplies positions with.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Angle per position of each pair: half a head's width of them.
    pub frequencies: Arc<[f64]>,
    /// Factor on cosine and sine.
    pub factor: f64,
}

/// In what a published checkpoint departs from its family's usual form. The default departs in nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Variant {
    /// Activation of GPT-2's feed-forward blocks.
    pub activation: Activation,
    /// Activation of the gates of LLaMA's feed-forward blocks, if not SiLU.
    pub gate: Option<Activation>,
    /// Token whose embedding is read but not trained.
    pub padding: Option<u32>,
    /// Whether LLaMA's attention projections have biases.
    pub attention_bias: bool,
    /// Whether LLaMA's feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Frequencies other than the powers of `rope_theta`: scaled for long contexts.
    pub rotation: Option<Rotation>,
    /// Whether attention scores are left as they are, instead of divided by the root of the head's width.
    pub unscaled_attention: bool,
    /// Whether the scores of layer L (from 0) are divided by L + 1.
    pub scale_by_layer: bool,
}

/// Shape and style of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Style.
    pub family: Family,
    /// Transformer layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub embed: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden units of the feed-forward block.
    pub mlp: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Learned positions (GPT-2 style).
    pub max_positions: usize,
    /// Whether the embedding and the head share one table.
    pub tied: bool,
    /// What is dropped in training.
    pub dropout: Dropout,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// What is unusual.
    pub variant: Variant,
}

/// What can be wrong with a model's shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A size that must be positive is zero.
    #[error("model.{key} is 0; it must be at least 1")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// Query heads do not divide over key-value heads.
    #[error("model.num_heads = {num_heads} is not a multiple of model.num_kv_heads = {num_kv_heads}")]
    Heads {
        /// Query heads.
        num_heads: usize,
        /// Key-value heads.
        num_kv_heads: usize,
    },
    /// Rotary embedding turns pairs.
    #[error("model.head_dim = {head_dim} is odd; rotary positions need an even head_dim")]
    OddHead {
        /// Width of a head.
        head_dim: usize,
    },
    /// The sequence is longer than the learned positions.
    #[error(
        "data.sequence_length = {sequence_length} is longer than model.max_positions = {max_positions}; shorten the \
         sequence or raise max_positions"
    )]
    Positions {
        /// Tokens in a sequence.
        sequence_length: usize,
        /// Learned positions.
        max_positions: usize,
    },
}

/// Dims of the decoder's tensors.
pub(crate) struct Dims {
    pub batch: Dim,
    pub seq: Dim,
    pub key_seq: Dim,
    pub embed: Dim,
    pub kv_heads: Dim,
    pub group: Dim,
    pub head_dim: Dim,
    pub mlp: Dim,
    pub vocab: Dim,
}

/// Inputs of a forward pass.
pub(crate) struct Inputs {
    pub tokens: ValueId,
    pub positions: ValueId,
    /// Position of each key, or -1 if it is padding; none if there is no padding.
    pub key_index: Option<ValueId>,
    /// Keys and values that are kept from step to step, if they are.
    pub cache: Option<Cache>,
}

impl Decoder {
    /// Checks the shape for sequences of `sequence_length` tokens.
    ///
    /// # Errors
    /// The first thing that is wrong, with its numbers.
    pub fn check(&self, sequence_length: usize) -> Result<(), ModelError> {
        let sizes = [
            ("num_layers", self.num_layers),
            ("embed", self.embed),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("mlp", self.mlp),
            ("vocab_size", self.vocab_size),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(ModelError::Zero { key });
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(ModelError::Heads { num_heads: self.num_heads, num_kv_heads: self.num_kv_heads });
        }
        match self.family {
            Family::Llama if self.head_dim % 2 == 1 => Err(ModelError::OddHead { head_dim: self.head_dim }),
            Family::Gpt2 if sequence_length > self.max_positions => {
                Err(ModelError::Positions { sequence_length, max_positions: self.max_positions })
            }
            _ => Ok(()),
        }
    }

    /// Number of places that stages are cut from: embedding, layers, head.
    pub fn num_places(&self) -> usize {
        self.num_layers + 2
    }

    pub(crate) fn dims(&self, g: &mut Graph, batch: usize, seq: usize) -> Dims {
        Dims {
            batch: g.dim("batch", batch),
            seq: g.dim("seq", seq),
            key_seq: g.dim("key_seq", seq),
            embed: g.dim("embed", self.embed),
            kv_heads: g.dim("kv_heads", self.num_kv_heads),
            group: g.dim("group", self.num_heads / self.num_kv_heads),
            head_dim: g.dim("head_dim", self.head_dim),
            mlp: g.dim("mlp", self.mlp),
            vocab: g.dim("vocab", self.vocab_size),
        }
    }

    /// The residual stream after the last layer, and the vocabulary table for the head if it is tied.
    pub(crate) fn body(&self, g: &mut Graph, d: &Dims, inputs: &Inputs) -> (ValueId, ValueId) {
        g.set_place(Place::Layer(0));
        let (mut x, table) = g.scoped("embedding", |g| {
            let table = g.parameter("token", &[d.vocab, d.embed], Init::Normal { std: STD }, true);
            let mut x = g.padded_embedding("tokens", table, inputs.tokens, self.variant.padding);
            if self.family == Family::Gpt2 {
                let positions = g.dim("positions", self.max_positions);
                // The published code draws the positions at half the width of the tokens.
                let position_std = Init::Normal { std: STD / 2.0 };
                let position_table = g.parameter("position", &[positions, d.embed], position_std, true);
                let p = g.embedding("positions", position_table, inputs.positions);
                x = g.add("sum", &[x, p]);
            }
            (g.dropout("dropout", x, self.dropout.embedding), table)
        });
        g.mark_stream(x);
        for layer in 0..self.num_layers {
            g.set_place(Place::Layer(layer + 1));
            x = g.scoped(&format!("layers.{layer}"), |g| {
                let x = g.scoped("attention", |g| attention::block(self, g, d, inputs, layer, x));
                g.scoped("mlp", |g| self.mlp_block(g, d, x))
            });
            g.mark_stream(x);
        }
        (x, table)
    }

    /// Final norm, before the head.
    pub(crate) fn final_norm(&self, g: &mut Graph, x: ValueId) -> ValueId {
        g.set_place(Place::Layer(self.num_layers + 1));
        g.scoped("head", |g| self.norm(g, x))
    }

    /// Logits of normalised activations `[.., embed]`, with dims `dims` (ending in the vocabulary).
    pub(crate) fn logits(
        &self,
        g: &mut Graph,
        d: &Dims,
        x: ValueId,
        table: ValueId,
        dims: &[Dim],
    ) -> ValueId {
        g.scoped("head", |g| {
            let weight = if self.tied {
                table
            } else {
                g.parameter("weight", &[d.vocab, d.embed], Init::Normal { std: STD }, true)
            };
            g.contract("logits", x, weight, dims)
        })
    }

    pub(crate) fn norm(&self, g: &mut Graph, x: ValueId) -> ValueId {
        let kind = match self.family {
            Family::Gpt2 => NormKind::Layer,
            Family::Llama => NormKind::Rms,
        };
        parts::norm(g, kind, self.norm_eps, x)
    }

    /// Whether attention's projections have biases.
    pub(crate) fn has_attention_bias(&self) -> bool {
        self.family == Family::Gpt2 || self.variant.attention_bias
    }

    /// What positions are multiplied with.
    pub(crate) fn rotation(&self) -> Rotation {
        self.variant.rotation.clone().unwrap_or_else(|| {
            let power = |i: usize| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64);
            Rotation { frequencies: (0..self.head_dim / 2).map(power).collect(), factor: 1.0 }
        })
    }

    /// Factor on the attention scores of a layer.
    pub(crate) fn attention_scale(&self, layer: usize) -> f64 {
        let scale = if self.variant.unscaled_attention { 1.0 } else { 1.0 / (self.head_dim as f64).sqrt() };
        if self.variant.scale_by_layer { scale / (layer + 1) as f64 } else { scale }
    }

    /// Spread of the projections that end a residual branch: GPT-2 shrinks it with depth, so that the stream's
    /// variance does not grow with the number of branches.
    pub(crate) fn residual_std(&self) -> f64 {
        match self.family {
            Family::Gpt2 => STD / (2.0 * self.num_layers as f64).sqrt(),
            Family::Llama => STD,
        }
    }

    fn mlp_block(&self, g: &mut Graph, d: &Dims, x: ValueId) -> ValueId {
        let normed = self.norm(g, x);
        let has_bias = self.family == Family::Gpt2 || self.variant.mlp_bias;
        let hidden = |g: &mut Graph, name| parts::linear(g, name, normed, &[d.embed], &[d.mlp], has_bias);
        let inner = match self.family {
            Family::Gpt2 => {
                let up = hidden(g, "up");
                self.variant.activation.write(g, up)
            }
            Family::Llama => {
                let (gate, up) = (hidden(g, "gate"), hidden(g, "up"));
                parts::gated(g, self.variant.gate.unwrap_or(Activation::Silu), gate, up)
            }
        };
        let std = self.residual_std();
        let y = parts::linear_drawn(g, "down", inner, &[d.mlp], &[d.embed], has_bias, std);
        let y = g.dropout("dropout", y, self.dropout.residual);
        g.add("residual", &[x, y])
    }
}
