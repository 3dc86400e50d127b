//! Models that come from no directory, described as their family's `config.json` would: from the keys of `[model]` and
//! what the data say. Decoders are described by their own keys alone, in `assemble`.

use hub::{Activation, Bert, Config as Description, Family, Labels, T5, TokenIds, Vit};

use crate::config::{self, Config};
use crate::error::TrainError;

/// What the data decide about a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The tokenizer's vocabulary.
    pub vocab_size: Option<usize>,
    /// Tokens with a role.
    pub tokens: TokenIds,
    /// Names of the labels.
    pub labels: Option<Vec<String>>,
}

/// Kinds of segments of a BERT, as published.
const NUM_SEGMENTS: usize = 2;
/// Buckets of T5's relative positions, and the distance of the last, as published.
const BUCKETS: [usize; 2] = [32, 128];

/// The description of an encoder or encoder-decoder by the keys of a configuration.
///
/// # Errors
/// A vocabulary or labels that neither keys nor data give.
pub(crate) fn describe(config: &Config, facts: &Facts) -> Result<Description, TrainError> {
    let model = &config.model;
    let vocab_size = || {
        model.vocab_size.or(facts.vocab_size).ok_or_else(|| TrainError::Missing {
            key: "model.vocab_size",
            remedy: "set it, or name a tokenizer in data.tokenizer or data.tokenizer_vocab".to_owned(),
        })
    };
    let labels = || {
        let counted = model.num_labels.map(|num| (0..num).map(|i| format!("LABEL_{i}")).collect());
        let names = facts.labels.clone().or(counted).ok_or_else(|| TrainError::Missing {
            key: "model.num_labels",
            remedy: "set it, or name the data whose labels count".to_owned(),
        })?;
        Ok::<Labels, TrainError>(Labels { names })
    };
    let (mlp, dropout, norm_eps) = (model.resolved_mlp(), model.dropout.unwrap_or(0.0), model.norm_eps);
    let family = match model.family {
        config::Family::Bert => Family::Bert(Bert {
            vocab_size: vocab_size()?,
            max_positions: config.resolved_max_positions(),
            num_segments: NUM_SEGMENTS,
            embed: model.embed,
            num_layers: model.num_layers,
            num_heads: model.num_heads,
            mlp,
            activation: Activation::GeluErf,
            norm_eps,
            dropout,
            attention_dropout: dropout,
            classifier_dropout: dropout,
            tied: model.tied,
            labels: if config.task.has_labels() { labels()? } else { Labels { names: default_labels() } },
            tokens: facts.tokens.clone(),
        }),
        config::Family::T5 => Family::T5(T5 {
            vocab_size: vocab_size()?,
            embed: model.embed,
            num_layers: model.num_layers,
            num_decoder_layers: model.resolved_num_decoder_layers(),
            num_heads: model.num_heads,
            head_dim: model.resolved_head_dim(),
            mlp,
            feed_forward: hub::FeedForward::Gated(Activation::GeluTanh),
            num_buckets: BUCKETS[0],
            max_distance: BUCKETS[1],
            norm_eps,
            dropout,
            scale_output: model.tied,
            tied: model.tied,
            decoder_start: facts.tokens.pad.unwrap_or(0),
            tokens: facts.tokens.clone(),
        }),
        config::Family::Vit => Family::Vit(Vit {
            image_size: [model.image_size; 2],
            patch_size: [model.patch_size; 2],
            num_channels: model.num_channels,
            embed: model.embed,
            num_layers: model.num_layers,
            num_heads: model.num_heads,
            mlp,
            activation: Activation::GeluErf,
            norm_eps,
            qkv_bias: true,
            dropout,
            attention_dropout: dropout,
            labels: labels()?,
        }),
        config::Family::Gpt2 | config::Family::Llama => {
            unreachable!("decoders are described by their own keys")
        }
    };
    Ok(Description::new(family))
}

/// What `transformers` names two labels that nobody named.
fn default_labels() -> Vec<String> {
    vec!["LABEL_0".to_owned(), "LABEL_1".to_owned()]
}
