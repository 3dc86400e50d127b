//! BERT's `config.json` (Devlin et al., 2019).

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{ACTIVATIONS, Activation, Labels, TokenIds, set, set_activation};
use crate::HubError;

/// What a BERT checkpoint is. Norms stand after the residual sums.
#[derive(Debug, Clone, PartialEq)]
pub struct Bert {
    /// Token ids.
    pub vocab_size: usize,
    /// Learned positions.
    pub max_positions: usize,
    /// Kinds of segments (`token_type_ids`).
    pub num_segments: usize,
    /// Width of the residual stream.
    pub embed: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads; a divisor of `embed`.
    pub num_heads: usize,
    /// Hidden units of the feed-forward block.
    pub mlp: usize,
    /// Activation of the feed-forward block and of the masked-LM head's transform.
    pub activation: Activation,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Dropout on the embedding and the residual branches.
    pub dropout: f64,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Dropout before a classifier.
    pub classifier_dropout: f64,
    /// Whether embedding and masked-LM head share one table.
    pub tied: bool,
    /// Labels of a classifier.
    pub labels: Labels,
    /// Tokens with a role. The embedding of padding is not trained.
    pub tokens: TokenIds,
}

impl Bert {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Bert, HubError> {
        keys.choice("position_embedding_type", (), &[("absolute", ())])?;
        keys.only("is_decoder", false)?;
        keys.only("add_cross_attention", false)?;
        let vocab_size = keys.size("vocab_size")?;
        let embed = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        keys.check_heads("num_attention_heads", num_heads, embed)?;
        let dropout = keys.dropout_or("hidden_dropout_prob", 0.1)?;
        let mut tokens = TokenIds::read(keys, vocab_size)?;
        if !keys.map.contains_key("pad_token_id") {
            tokens.pad = Some(0);
        }
        Ok(Bert {
            vocab_size,
            max_positions: keys.size_or("max_position_embeddings", 512)?,
            num_segments: keys.size_or("type_vocab_size", 2)?,
            embed,
            num_layers: keys.layers("num_hidden_layers")?,
            num_heads,
            mlp: keys.size("intermediate_size")?,
            activation: keys.choice("hidden_act", Activation::GeluErf, ACTIVATIONS)?,
            norm_eps: keys.positive_or("layer_norm_eps", 1e-12)?,
            dropout,
            attention_dropout: keys.dropout_or("attention_probs_dropout_prob", 0.1)?,
            classifier_dropout: keys.dropout_or("classifier_dropout", dropout)?,
            tied: keys.flag_or("tie_word_embeddings", true)?,
            labels: Labels::read(keys)?,
            tokens,
        })
    }

    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        set(map, "vocab_size", self.vocab_size);
        set(map, "max_position_embeddings", self.max_positions);
        set(map, "type_vocab_size", self.num_segments);
        set(map, "hidden_size", self.embed);
        set(map, "num_hidden_layers", self.num_layers);
        set(map, "num_attention_heads", self.num_heads);
        set(map, "intermediate_size", self.mlp);
        set_activation(map, "hidden_act", ACTIVATIONS, self.activation);
        set(map, "layer_norm_eps", self.norm_eps);
        set(map, "hidden_dropout_prob", self.dropout);
        set(map, "attention_probs_dropout_prob", self.attention_dropout);
        if self.classifier_dropout != self.dropout {
            set(map, "classifier_dropout", self.classifier_dropout);
        }
        // absent means true, and older files of this family do not have the key
        if !self.tied || map.contains_key("tie_word_embeddings") {
            set(map, "tie_word_embeddings", self.tied);
        }
        self.labels.write(map);
    }
}
