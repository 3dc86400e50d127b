//! LLaMA's `config.json` (Touvron et al., 2023), of any version with the same architecture.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{ACTIVATIONS, Activation, Rope, TokenIds, set, set_activation};
use crate::HubError;

/// What a LLaMA checkpoint is. Its feed-forward block is gated: `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama {
    /// Token ids.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for; `dynamic` scaling starts beyond it.
    pub max_positions: usize,
    /// Width of the residual stream.
    pub embed: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden units of the feed-forward block.
    pub mlp: usize,
    /// Activation of the gate; SiLU in the published models.
    pub activation: Activation,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether query, key, value and output have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Whether embedding and head share one table.
    pub tied: bool,
    /// Tokens with a role. The embedding of padding is not trained.
    pub tokens: TokenIds,
}

impl Llama {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Llama, HubError> {
        let vocab_size = keys.size("vocab_size")?;
        let embed = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        let num_kv_heads = keys.size_or("num_key_value_heads", num_heads)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(
                keys.refuse("num_key_value_heads", format!("a divisor of num_attention_heads = {num_heads}"))
            );
        }
        let head_dim = match keys.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => {
                keys.check_heads("num_attention_heads", num_heads, embed)?;
                embed / num_heads
            }
        };
        if !head_dim.is_multiple_of(2) {
            let key = if keys.get("head_dim").is_some() { "head_dim" } else { "num_attention_heads" };
            return Err(
                keys.refuse(key, format!("an even width of a head (it is {head_dim}): rotary turns pairs"))
            );
        }
        keys.check_product("num_attention_heads", &[num_heads, head_dim])?;
        let max_positions = keys.size_or("max_position_embeddings", 2048)?;
        Ok(Llama {
            vocab_size,
            max_positions,
            embed,
            num_layers: keys.layers("num_hidden_layers")?,
            num_heads,
            num_kv_heads,
            head_dim,
            mlp: keys.size("intermediate_size")?,
            activation: keys.choice("hidden_act", Activation::Silu, ACTIVATIONS)?,
            norm_eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            rope: Rope::read(keys, head_dim, max_positions)?,
            attention_bias: keys.flag_or("attention_bias", false)?,
            mlp_bias: keys.flag_or("mlp_bias", false)?,
            attention_dropout: keys.dropout_or("attention_dropout", 0.0)?,
            tied: keys.flag_or("tie_word_embeddings", false)?,
            tokens: TokenIds::read(keys, vocab_size)?,
        })
    }

    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        set(map, "vocab_size", self.vocab_size);
        set(map, "max_position_embeddings", self.max_positions);
        set(map, "hidden_size", self.embed);
        set(map, "num_hidden_layers", self.num_layers);
        set(map, "num_attention_heads", self.num_heads);
        set(map, "num_key_value_heads", self.num_kv_heads);
        set(map, "head_dim", self.head_dim);
        set(map, "intermediate_size", self.mlp);
        set_activation(map, "hidden_act", ACTIVATIONS, self.activation);
        set(map, "rms_norm_eps", self.norm_eps);
        self.rope.write(map, self.head_dim, self.max_positions);
        set(map, "attention_bias", self.attention_bias);
        set(map, "mlp_bias", self.mlp_bias);
        set(map, "attention_dropout", self.attention_dropout);
        set(map, "tie_word_embeddings", self.tied);
    }
}
