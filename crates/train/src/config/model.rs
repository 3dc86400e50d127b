//! The table `model`: its keys, defaults and single-key ranges. How keys go together is in `check`.

use std::path::PathBuf;

use super::names::named;
use super::value::Value;
use super::{ConfigError, Name};

named! {
    /// A family of models.
    Family {
        /// GPT-2: learned positions, LayerNorm, GELU.
        Gpt2 = "gpt2",
        /// Llama: rotary positions, RMSNorm, SwiGLU, grouped key and value heads.
        Llama = "llama",
    }
}

/// Families that the contract names and later work brings.
const LATER: [&str; 3] = ["bert", "t5", "vit"];

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
    /// Whether embedding and head share one table.
    pub tied: bool,
    /// Probability that an element is dropped.
    pub dropout: f64,
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
            embed: 384,
            num_heads: 6,
            num_kv_heads: None,
            head_dim: None,
            mlp: None,
            vocab_size: None,
            max_positions: None,
            tied: true,
            dropout: 0.0,
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

    /// `mlp`, by default `4 embed` for gpt2 and `8/3 embed`, rounded up to a multiple of 64, for llama.
    pub fn resolved_mlp(&self) -> usize {
        self.mlp.unwrap_or(match self.family {
            Family::Gpt2 => 4 * self.embed,
            Family::Llama => (8 * self.embed).div_ceil(3).next_multiple_of(64),
        })
    }

    /// Sets the key named last in `value.key`; false if there is none of that name.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
        match key {
            "from" => self.from = Some(value.path()?),
            "family" => self.family = family(value)?,
            "num_layers" => self.num_layers = value.count(1)?,
            "embed" => self.embed = value.count(1)?,
            "num_heads" => self.num_heads = value.count(1)?,
            "num_kv_heads" => self.num_kv_heads = Some(value.count(1)?),
            "head_dim" => self.head_dim = Some(value.count(1)?),
            "mlp" => self.mlp = Some(value.count(1)?),
            "vocab_size" => self.vocab_size = Some(value.count(1)?),
            "max_positions" => self.max_positions = Some(value.count(1)?),
            "tied" => self.tied = value.switch()?,
            "dropout" => self.dropout = value.fraction()?,
            "rope_theta" => self.rope_theta = value.positive()?,
            "norm_eps" => self.norm_eps = value.positive()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn family(value: &Value) -> Result<Family, ConfigError> {
    let family = value.text()?;
    if LATER.contains(&family.as_str()) {
        let (place, supported) = (value.place.clone(), Family::known());
        return Err(ConfigError::UnsupportedFamily { family, place, supported });
    }
    value.name()
}
