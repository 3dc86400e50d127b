//! GPT-2's `config.json` (Radford et al., 2019).

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{ACTIVATIONS, Activation, TokenIds, set, set_activation};
use crate::HubError;

/// What a GPT-2 checkpoint is.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2 {
    /// Token ids.
    pub vocab_size: usize,
    /// Learned positions.
    pub max_positions: usize,
    /// Width of the residual stream.
    pub embed: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads; a divisor of `embed`.
    pub num_heads: usize,
    /// Hidden units of the feed-forward block.
    pub mlp: usize,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// Whether attention scores are divided by the root of the head's width.
    pub scale_attention: bool,
    /// Whether the scores of layer L (from 0) are divided by L + 1.
    pub scale_by_layer: bool,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Dropout on the embedding.
    pub embedding_dropout: f64,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Dropout on the residual branches.
    pub residual_dropout: f64,
    /// Whether embedding and head share one table.
    pub tied: bool,
    /// Tokens with a role.
    pub tokens: TokenIds,
}

impl Gpt2 {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Gpt2, HubError> {
        keys.only("reorder_and_upcast_attn", false)?;
        keys.only("add_cross_attention", false)?;
        let vocab_size = keys.size("vocab_size")?;
        let embed = keys.size("n_embd")?;
        let num_heads = keys.size("n_head")?;
        keys.check_heads("n_head", num_heads, embed)?;
        Ok(Gpt2 {
            vocab_size,
            max_positions: keys.size_or("n_positions", 1024)?,
            embed,
            num_layers: keys.layers("n_layer")?,
            num_heads,
            mlp: keys.optional_size("n_inner")?.unwrap_or(4 * embed),
            activation: keys.choice("activation_function", Activation::GeluTanh, ACTIVATIONS)?,
            scale_attention: keys.flag_or("scale_attn_weights", true)?,
            scale_by_layer: keys.flag_or("scale_attn_by_inverse_layer_idx", false)?,
            norm_eps: keys.positive_or("layer_norm_epsilon", 1e-5)?,
            embedding_dropout: keys.dropout_or("embd_pdrop", 0.1)?,
            attention_dropout: keys.dropout_or("attn_pdrop", 0.1)?,
            residual_dropout: keys.dropout_or("resid_pdrop", 0.1)?,
            tied: keys.flag_or("tie_word_embeddings", true)?,
            tokens: TokenIds::read(keys, vocab_size)?,
        })
    }

    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        set(map, "vocab_size", self.vocab_size);
        set(map, "n_positions", self.max_positions);
        set(map, "n_embd", self.embed);
        set(map, "n_layer", self.num_layers);
        set(map, "n_head", self.num_heads);
        if self.mlp != 4 * self.embed {
            set(map, "n_inner", self.mlp);
        }
        set_activation(map, "activation_function", ACTIVATIONS, self.activation);
        for (key, value, default) in [
            ("scale_attn_weights", self.scale_attention, true),
            ("scale_attn_by_inverse_layer_idx", self.scale_by_layer, false),
        ] {
            if value != default || map.contains_key(key) {
                set(map, key, value);
            }
        }
        set(map, "layer_norm_epsilon", self.norm_eps);
        set(map, "embd_pdrop", self.embedding_dropout);
        set(map, "attn_pdrop", self.attention_dropout);
        set(map, "resid_pdrop", self.residual_dropout);
        set(map, "tie_word_embeddings", self.tied);
    }
}
