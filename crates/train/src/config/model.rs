//! The table `model`: its keys, defaults and single-key ranges. How keys go together is in `check`.

use std::path::PathBuf;

use super::names::named;
use super::value::Value;
use super::{ConfigError, Task};

named! {
    /// A family of models.
    Family {
        /// GPT-2: learned positions, LayerNorm, GELU.
        Gpt2 = "gpt2",
        /// Llama: rotary positions, RMSNorm, SwiGLU, grouped key and value heads.
        Llama = "llama",
        /// BERT: an encoder of text.
        Bert = "bert",
        /// T5: an encoder and a decoder, version 1.1's gated feed-forward blocks.
        T5 = "t5",
        /// ViT: an encoder of images.
        Vit = "vit",
    }
}

impl Family {
    /// What the family can do, the most usual first.
    pub fn tasks(self) -> &'static [Task] {
        match self {
            Family::Gpt2 | Family::Llama => &[Task::CausalLm],
            Family::Bert => &[Task::MaskedLm, Task::Classify, Task::Tag, Task::Embed],
            Family::T5 => &[Task::Seq2Seq],
            Family::Vit => &[Task::ImageClassify],
        }
    }

    /// Whether positions are a learned table as long as the longest sequence.
    pub(super) fn has_position_table(self) -> bool {
        matches!(self, Family::Gpt2 | Family::Bert)
    }
}

/// Far more labels than any classifier here has.
const MAX_LABELS: i64 = 1 << 20;
/// Largest side of an image.
const MAX_SIDE: i64 = 1 << 12;

/// What is trained. With `from`, only `from` and `dropout` are set by the user; the other fields keep
/// their defaults, and the directory's `config.json` is what counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// A Hugging Face directory to take the architecture and the weights from.
    pub from: Option<PathBuf>,
    /// The family.
    pub family: Family,
    /// Number of layers.
    pub num_layers: usize,
    /// Layers of the decoder of an encoder-decoder; see [`Model::resolved_num_decoder_layers`].
    pub num_decoder_layers: Option<usize>,
    /// Width of the residual.
    pub embed: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; see [`Model::resolved_num_kv_heads`].
    pub num_kv_heads: Option<usize>,
    /// Width of a head; see [`Model::resolved_head_dim`].
    pub head_dim: Option<usize>,
    /// Width of the feed-forward layer; see [`Model::resolved_mlp`].
    pub mlp: Option<usize>,
    /// Vocabulary; by default the tokenizer's.
    pub vocab_size: Option<usize>,
    /// Learned positions; by default `data.sequence_length`.
    pub max_positions: Option<usize>,
    /// Labels of a classifier or tagger; by default those of the data.
    pub num_labels: Option<usize>,
    /// Height and width of an image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels; a divisor of the image's.
    pub patch_size: usize,
    /// Colours of an image: 1 or 3.
    pub num_channels: usize,
    /// Whether embedding and head share one table.
    pub tied: bool,
    /// Probability that an element is dropped; by default 0, of a model from elsewhere what its `config.json` says.
    pub dropout: Option<f64>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// The `config.json` of the directory `from` once it has been read, as a checkpoint carries it: generation and
    /// export do not need the directory any more. No key sets it.
    pub described: Option<String>,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            from: None,
            family: Family::Llama,
            num_layers: 6,
            num_decoder_layers: None,
            embed: 384,
            num_heads: 6,
            num_kv_heads: None,
            head_dim: None,
            mlp: None,
            vocab_size: None,
            max_positions: None,
            num_labels: None,
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            tied: true,
            dropout: None,
            rope_theta: 10000.0,
            norm_eps: 1e-5,
            described: None,
        }
    }
}

impl Model {
    /// `num_kv_heads`, by default `num_heads`.
    pub fn resolved_num_kv_heads(&self) -> usize {
        self.num_kv_heads.unwrap_or(self.num_heads)
    }

    /// `head_dim`, by default `embed / num_heads`.
    pub fn resolved_head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.embed / self.num_heads.max(1))
    }

    /// `num_decoder_layers`, by default `num_layers`.
    pub fn resolved_num_decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// `mlp`, by default `4 embed`, or `8/3 embed` rounded up to a multiple of 64 where blocks are gated (llama, t5).
    pub fn resolved_mlp(&self) -> usize {
        self.mlp.unwrap_or(match self.family {
            Family::Gpt2 | Family::Bert | Family::Vit => 4 * self.embed,
            Family::Llama | Family::T5 => (8 * self.embed).div_ceil(3).next_multiple_of(64),
        })
    }

    /// Sets the key named last in `value.key`; false if there is none of that name.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
        match key {
            "from" => self.from = Some(value.path()?),
            "family" => self.family = value.name()?,
            "num_layers" => self.num_layers = value.count(1)?,
            "num_decoder_layers" => self.num_decoder_layers = Some(value.count(1)?),
            "embed" => self.embed = value.count(1)?,
            "num_heads" => self.num_heads = value.count(1)?,
            "num_kv_heads" => self.num_kv_heads = Some(value.count(1)?),
            "head_dim" => self.head_dim = Some(value.count(1)?),
            "mlp" => self.mlp = Some(value.count(1)?),
            "vocab_size" => self.vocab_size = Some(value.count(1)?),
            "max_positions" => self.max_positions = Some(value.count(1)?),
            "num_labels" => self.num_labels = Some(value.count_within(2, MAX_LABELS)?),
            "image_size" => self.image_size = value.count_within(1, MAX_SIDE)?,
            "patch_size" => self.patch_size = value.count_within(1, MAX_SIDE)?,
            "num_channels" => self.num_channels = value.count_within(1, 3)?,
            "tied" => self.tied = value.switch()?,
            "dropout" => self.dropout = Some(value.fraction()?),
            "rope_theta" => self.rope_theta = value.positive()?,
            "norm_eps" => self.norm_eps = value.positive()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
