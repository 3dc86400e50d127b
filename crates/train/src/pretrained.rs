//! Hugging Face directories as models: from `config.json` to graph text, and from files to an executor's states.
//! Names and files are `hub`'s, the text is `models`'.

use hub::{Bound, Config as Description, Directory, Family, Task};
use memory::DType;
use mesh::Tile;
use models::{
    Activation, Bert, BertHead, Decoder, Dropout, Encoder, FeedForward, Model, PairLoss, Rotation, T5,
    Variant, Vit, Widths,
};
use runtime::Executor;

use crate::config::Config;
use crate::error::TrainError;

/// The description of the model that a configuration takes from elsewhere than its own keys: what a checkpoint carries
/// or was read once, or the directory's.
///
/// # Errors
/// A directory that is missing, damaged or asks for what is not supported.
pub fn describe(config: &Config) -> Result<Option<Description>, TrainError> {
    match (&config.model.described, &config.model.from) {
        (Some(text), from) => {
            let place = from.clone().unwrap_or_default().join("config.json");
            Ok(Some(Description::parse(text.as_bytes(), &place)?))
        }
        (None, Some(from)) => Ok(Some(Directory::open(from, Some(config.task))?.config().clone())),
        (None, None) => Ok(None),
    }
}

/// Opens the directory that a configuration takes its model from, if it takes one.
///
/// # Errors
/// As [`describe`], and missing tensors.
pub(crate) fn open(config: &Config) -> Result<Option<Directory>, TrainError> {
    let Some(from) = &config.model.from else { return Ok(None) };
    let directory = Directory::open(from, Some(config.task))?;
    directory.bind()?;
    Ok(Some(directory))
}

/// The model of a configuration's task, other than a decoder's, with its dropout.
///
/// # Errors
/// A family that has no head for the task, or no dropout.
pub(crate) fn model(
    description: &Description,
    config: &Config,
    dropout: Dropout,
) -> Result<Box<dyn Model>, TrainError> {
    description.check_task(config.task)?;
    Ok(match &description.family {
        Family::Bert(c) => {
            let bert = bert(c, config.task, config.pair_loss());
            Box::new(Bert { encoder: Encoder { dropout, ..bert.encoder }, ..bert })
        }
        Family::Vit(c) => {
            let vit = vit(c);
            Box::new(Vit { encoder: Encoder { dropout, ..vit.encoder }, ..vit })
        }
        Family::T5(c) => Box::new(T5 { dropout, ..t5(c) }),
        _ => unreachable!("decoders have one task, which is built elsewhere"),
    })
}

/// What a description says is dropped in training: all of it, as `transformers` does when it trains the same directory.
pub(crate) fn dropout(description: &Description) -> Dropout {
    match &description.family {
        Family::Gpt2(c) => Dropout {
            embedding: c.embedding_dropout,
            attention: c.attention_dropout,
            residual: c.residual_dropout,
            ..Dropout::NONE
        },
        Family::Llama(c) => Dropout { attention: c.attention_dropout, ..Dropout::NONE },
        Family::Bert(c) => Dropout {
            attention: c.attention_dropout,
            classifier: c.classifier_dropout,
            ..Dropout::uniform(c.dropout)
        },
        Family::T5(c) => Dropout::uniform(c.dropout),
        Family::Vit(c) => Dropout { attention: c.attention_dropout, ..Dropout::uniform(c.dropout) },
        other => unreachable!("{} has a model", other.model_type()),
    }
}

/// The decoder that a description stands for, without dropout, for sequences of `sequence_length` tokens.
///
/// # Errors
/// A family that is no decoder, or a sequence longer than its positions.
pub fn decoder(description: &Description, sequence_length: usize) -> Result<Decoder, TrainError> {
    let decoder = match &description.family {
        Family::Gpt2(c) => Decoder {
            family: models::Family::Gpt2,
            num_layers: c.num_layers,
            embed: c.embed,
            num_heads: c.num_heads,
            num_kv_heads: c.num_heads,
            head_dim: c.embed / c.num_heads,
            mlp: c.mlp,
            vocab_size: c.vocab_size,
            max_positions: c.max_positions,
            tied: c.tied,
            dropout: Dropout::NONE,
            rope_theta: 10_000.0,
            norm_eps: c.norm_eps,
            variant: Variant {
                activation: activation(c.activation),
                unscaled_attention: !c.scale_attention,
                scale_by_layer: c.scale_by_layer,
                ..Variant::default()
            },
        },
        Family::Llama(c) => {
            let hub::Frequencies { inverse, attention_factor } =
                c.rope.frequencies(c.head_dim, c.max_positions, sequence_length);
            Decoder {
                family: models::Family::Llama,
                num_layers: c.num_layers,
                embed: c.embed,
                num_heads: c.num_heads,
                num_kv_heads: c.num_kv_heads,
                head_dim: c.head_dim,
                mlp: c.mlp,
                vocab_size: c.vocab_size,
                max_positions: c.max_positions,
                tied: c.tied,
                dropout: Dropout::NONE,
                rope_theta: c.rope.theta,
                norm_eps: c.norm_eps,
                variant: Variant {
                    attention_bias: c.attention_bias,
                    mlp_bias: c.mlp_bias,
                    gate: Some(activation(c.activation)),
                    padding: c.tokens.pad,
                    rotation: (c.rope.scaling != hub::RopeScaling::None)
                        .then(|| Rotation { frequencies: inverse.into(), factor: attention_factor }),
                    ..Variant::default()
                },
            }
        }
        other => {
            return Err(TrainError::File {
                path: description.path().display().to_string(),
                problem: format!(
                    "`model_type` = \"{}\" is no decoder: causal language models are gpt2 and llama",
                    other.model_type()
                ),
            });
        }
    };
    decoder.check(sequence_length)?;
    Ok(decoder)
}

/// The BERT that a description stands for, without dropout, with the head of a task; `loss` is that of embeddings.
pub(crate) fn bert(c: &hub::Bert, task: Task, loss: PairLoss) -> Bert {
    let labels = c.labels.names.len();
    Bert {
        encoder: Encoder {
            num_layers: c.num_layers,
            widths: widths(c.embed, c.num_heads, c.embed / c.num_heads, c.mlp),
            activation: activation(c.activation),
            norm_eps: c.norm_eps,
            qkv_bias: true,
            dropout: Dropout::NONE,
        },
        vocab_size: c.vocab_size,
        max_positions: c.max_positions,
        num_segments: c.num_segments,
        padding: c.tokens.pad,
        head: match task {
            Task::Classify => BertHead::Classify { labels },
            Task::Tag => BertHead::Tag { labels },
            Task::Embed => BertHead::Embed { loss },
            _ => BertHead::MaskedLm { tied: c.tied },
        },
    }
}

/// The ViT that a description stands for, without dropout.
pub(crate) fn vit(c: &hub::Vit) -> Vit {
    Vit {
        encoder: Encoder {
            num_layers: c.num_layers,
            widths: widths(c.embed, c.num_heads, c.embed / c.num_heads, c.mlp),
            activation: activation(c.activation),
            norm_eps: c.norm_eps,
            qkv_bias: c.qkv_bias,
            dropout: Dropout::NONE,
        },
        num_patches: c.num_patches(),
        patch: c.num_channels * c.patch_size[0] * c.patch_size[1],
        labels: c.labels.names.len(),
    }
}

/// The T5 that a description stands for, without dropout.
pub(crate) fn t5(c: &hub::T5) -> T5 {
    T5 {
        num_layers: c.num_layers,
        num_decoder_layers: c.num_decoder_layers,
        widths: widths(c.embed, c.num_heads, c.head_dim, c.mlp),
        vocab_size: c.vocab_size,
        feed_forward: match c.feed_forward {
            hub::FeedForward::Plain(a) => FeedForward::Plain(activation(a)),
            hub::FeedForward::Gated(a) => FeedForward::Gated(activation(a)),
        },
        num_buckets: c.num_buckets,
        max_distance: c.max_distance,
        norm_eps: c.norm_eps,
        scale_output: c.scale_output,
        tied: c.tied,
        dropout: Dropout::NONE,
    }
}

fn widths(embed: usize, num_heads: usize, head_dim: usize, mlp: usize) -> Widths {
    Widths { embed, num_heads, head_dim, mlp }
}

fn activation(activation: hub::Activation) -> Activation {
    match activation {
        hub::Activation::GeluTanh => Activation::GeluTanh,
        hub::Activation::GeluErf => Activation::GeluErf,
        hub::Activation::Relu => Activation::Relu,
        hub::Activation::Silu => Activation::Silu,
    }
}

/// The task called `name`.
///
/// # Errors
/// The names that there are.
pub fn task(name: &str) -> Result<Task, TrainError> {
    Task::from_name(name).ok_or_else(|| TrainError::Task {
        name: name.to_owned(),
        known: Task::ALL.map(Task::name).join(", "),
    })
}

/// Fills the parameters of an executor from the files of a directory. Parameters that start anew keep what they have,
/// other states become zero.
///
/// # Errors
/// Those of `hub`; none once the directory is bound.
pub(crate) fn load(executor: &mut Executor, bound: &Bound<'_>) -> Result<(), TrainError> {
    executor.fill_states(|name, tile, dtype, bytes| {
        if bound.table().get(name).is_none() {
            bytes.fill(0);
            return Ok(());
        }
        match dtype {
            DType::F64 => read::<f64>(bound, name, tile, bytes),
            _ => read::<f32>(bound, name, tile, bytes),
        }
    })
}

fn read<T: hub::Real + bytemuck::Pod>(
    bound: &Bound<'_>,
    name: &str,
    tile: &Tile,
    bytes: &mut [u8],
) -> Result<(), TrainError> {
    let values: &mut [T] = bytemuck::cast_slice_mut(bytes);
    let mut result = Ok(true);
    tile.for_each_run(|run| {
        if result.is_ok() {
            let range = run.global..run.global + run.len;
            result = bound.read(name, range, &mut values[run.local..run.local + run.len]);
        }
    });
    result.map(|_| ()).map_err(TrainError::from)
}
