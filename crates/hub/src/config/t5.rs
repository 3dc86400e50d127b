//! T5's `config.json` (Raffel et al., 2020), version 1.1 included.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{Activation, TokenIds, set, set_activation};
use crate::HubError;

/// Form of the feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeedForward {
    /// `down(activation(up(x)))`.
    Plain(Activation),
    /// `down(activation(gate(x)) * up(x))`.
    Gated(Activation),
}

/// Values of `feed_forward_proj`; the first of each is what is written. `gated-gelu` has meant the tanh form since it was
/// published.
const FEED_FORWARDS: &[(&str, FeedForward)] = &[
    ("relu", FeedForward::Plain(Activation::Relu)),
    ("gelu_new", FeedForward::Plain(Activation::GeluTanh)),
    ("gelu", FeedForward::Plain(Activation::GeluErf)),
    ("silu", FeedForward::Plain(Activation::Silu)),
    ("gated-gelu", FeedForward::Gated(Activation::GeluTanh)),
    ("gated-gelu_new", FeedForward::Gated(Activation::GeluTanh)),
    ("gated-gelu_pytorch_tanh", FeedForward::Gated(Activation::GeluTanh)),
    ("gated-gelu_python", FeedForward::Gated(Activation::GeluErf)),
    ("gated-relu", FeedForward::Gated(Activation::Relu)),
    ("gated-silu", FeedForward::Gated(Activation::Silu)),
    ("gated-swish", FeedForward::Gated(Activation::Silu)),
];

/// What a T5 checkpoint is. Norms are RMS norms before each block, projections have no biases, and scores are not
/// scaled by the root of the head's width.
#[derive(Debug, Clone, PartialEq)]
pub struct T5 {
    /// Token ids.
    pub vocab_size: usize,
    /// Width of the residual streams.
    pub embed: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Hidden units of the feed-forward blocks.
    pub mlp: usize,
    /// Form of the feed-forward blocks.
    pub feed_forward: FeedForward,
    /// Buckets of relative positions.
    pub num_buckets: usize,
    /// Distance from which on all share the last bucket.
    pub max_distance: usize,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Dropout everywhere.
    pub dropout: f64,
    /// Whether the decoder's output is divided by the root of `embed` before the head.
    pub scale_output: bool,
    /// Whether embedding and head share one table. The files decide: see [`crate::Table::bind`].
    pub tied: bool,
    /// The token that decoding starts from.
    pub decoder_start: u32,
    /// Tokens with a role.
    pub tokens: TokenIds,
}

impl T5 {
    pub(super) fn read(keys: &Keys<'_>) -> Result<T5, HubError> {
        keys.only("is_encoder_decoder", true)?;
        keys.only("is_decoder", false)?;
        let vocab_size = keys.size("vocab_size")?;
        let num_layers = keys.layers("num_layers")?;
        let tied = keys.flag_or("tie_word_embeddings", true)?;
        let num_buckets = keys.size_or("relative_attention_num_buckets", 32)?;
        // half of the encoder's buckets are for each direction, and half of those are exact
        if num_buckets < 4 {
            return Err(keys.refuse("relative_attention_num_buckets", "4 or more"));
        }
        let max_distance = keys.size_or("relative_attention_max_distance", 128)?;
        if max_distance <= num_buckets / 2 {
            let least = num_buckets / 2;
            return Err(keys
                .refuse("relative_attention_max_distance", format!("more than half the buckets, {least}")));
        }
        let tokens = TokenIds {
            pad: keys.token("pad_token_id", vocab_size)?.or(Some(0)),
            ..TokenIds::read(keys, vocab_size)?
        };
        let start = keys.token("decoder_start_token_id", vocab_size)?.or(tokens.pad);
        let (num_heads, head_dim) = (keys.size("num_heads")?, keys.size("d_kv")?);
        keys.check_product("d_kv", &[num_heads, head_dim])?;
        Ok(T5 {
            vocab_size,
            embed: keys.size("d_model")?,
            num_layers,
            num_decoder_layers: keys.optional_layers("num_decoder_layers")?.unwrap_or(num_layers),
            num_heads,
            head_dim,
            mlp: keys.size("d_ff")?,
            feed_forward: keys.choice(
                "feed_forward_proj",
                FeedForward::Plain(Activation::Relu),
                FEED_FORWARDS,
            )?,
            num_buckets,
            max_distance,
            norm_eps: keys.positive_or("layer_norm_epsilon", 1e-6)?,
            dropout: keys.dropout_or("dropout_rate", 0.1)?,
            // newer files say it outright; in older ones an untied head meant version 1.1, which does not scale
            scale_output: keys.flag_or("scale_decoder_outputs", tied)?,
            tied,
            decoder_start: start.ok_or_else(|| keys.missing("decoder_start_token_id"))?,
            tokens,
        })
    }

    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        set(map, "vocab_size", self.vocab_size);
        set(map, "d_model", self.embed);
        set(map, "num_layers", self.num_layers);
        set(map, "num_decoder_layers", self.num_decoder_layers);
        set(map, "num_heads", self.num_heads);
        set(map, "d_kv", self.head_dim);
        set(map, "d_ff", self.mlp);
        set_activation(map, "feed_forward_proj", FEED_FORWARDS, self.feed_forward);
        set(map, "relative_attention_num_buckets", self.num_buckets);
        set(map, "relative_attention_max_distance", self.max_distance);
        set(map, "layer_norm_epsilon", self.norm_eps);
        set(map, "dropout_rate", self.dropout);
        set(map, "decoder_start_token_id", self.decoder_start);
        set(map, "is_encoder_decoder", true);
        // files that say it outright keep a `tie_word_embeddings` that no longer decides anything
        if map.contains_key("scale_decoder_outputs") {
            set(map, "scale_decoder_outputs", self.scale_output);
        } else {
            set(map, "tie_word_embeddings", self.tied);
            if self.scale_output != self.tied {
                set(map, "scale_decoder_outputs", self.scale_output);
            }
        }
    }
}
