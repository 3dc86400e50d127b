//! ViT's `config.json` (Dosovitskiy et al., 2021).

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::{ACTIVATIONS, Activation, Labels, set, set_activation};
use crate::HubError;

/// Largest side of an image.
const MAX_SIDE: usize = 1 << 15;

/// What a ViT checkpoint is. Norms stand before each block; a class token is put before the patches.
#[derive(Debug, Clone, PartialEq)]
pub struct Vit {
    /// Height and width of an image.
    pub image_size: [usize; 2],
    /// Height and width of a patch; divisors of the image's.
    pub patch_size: [usize; 2],
    /// Colours.
    pub num_channels: usize,
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
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Dropout on the embedding and the residual branches.
    pub dropout: f64,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Labels of the classifier.
    pub labels: Labels,
}

impl Vit {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Vit, HubError> {
        let embed = keys.size("hidden_size")?;
        let num_heads = keys.size("num_attention_heads")?;
        keys.check_heads("num_attention_heads", num_heads, embed)?;
        let image_size = sides(keys, "image_size", 224)?;
        let patch_size = sides(keys, "patch_size", 16)?;
        if (0..2).any(|i| !image_size[i].is_multiple_of(patch_size[i])) {
            return Err(keys.refuse("patch_size", format!("divisors of image_size = {image_size:?}")));
        }
        let num_channels = keys.size_or("num_channels", 3)?;
        keys.check_product("patch_size", &[num_channels, patch_size[0], patch_size[1]])?;
        Ok(Vit {
            image_size,
            patch_size,
            num_channels,
            embed,
            num_layers: keys.layers("num_hidden_layers")?,
            num_heads,
            mlp: keys.size("intermediate_size")?,
            activation: keys.choice("hidden_act", Activation::GeluErf, ACTIVATIONS)?,
            norm_eps: keys.positive_or("layer_norm_eps", 1e-12)?,
            qkv_bias: keys.flag_or("qkv_bias", true)?,
            dropout: keys.dropout_or("hidden_dropout_prob", 0.0)?,
            attention_dropout: keys.dropout_or("attention_probs_dropout_prob", 0.0)?,
            labels: Labels::read(keys)?,
        })
    }

    /// Patches of an image.
    pub fn num_patches(&self) -> usize {
        (0..2).map(|i| self.image_size[i] / self.patch_size[i]).product()
    }

    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        for (key, [height, width]) in [("image_size", self.image_size), ("patch_size", self.patch_size)] {
            if height == width && !map.get(key).is_some_and(Value::is_array) {
                set(map, key, height);
            } else {
                set(map, key, json!([height, width]));
            }
        }
        set(map, "num_channels", self.num_channels);
        set(map, "hidden_size", self.embed);
        set(map, "num_hidden_layers", self.num_layers);
        set(map, "num_attention_heads", self.num_heads);
        set(map, "intermediate_size", self.mlp);
        set_activation(map, "hidden_act", ACTIVATIONS, self.activation);
        set(map, "layer_norm_eps", self.norm_eps);
        set(map, "qkv_bias", self.qkv_bias);
        set(map, "hidden_dropout_prob", self.dropout);
        set(map, "attention_probs_dropout_prob", self.attention_dropout);
        self.labels.write(map);
    }
}

/// One side for both, or `[height, width]`.
fn sides(keys: &Keys<'_>, key: &'static str, default: usize) -> Result<[usize; 2], HubError> {
    let side = |value: &Value| value.as_u64().map(|n| n as usize).filter(|n| (1..=MAX_SIDE).contains(n));
    let found = match keys.get(key) {
        None => Some([default; 2]),
        Some(Value::Array(pair)) => match pair.as_slice() {
            [height, width] => side(height).zip(side(width)).map(|(h, w)| [h, w]),
            _ => None,
        },
        Some(value) => side(value).map(|n| [n; 2]),
    };
    found.ok_or_else(|| keys.refuse(key, format!("a side or [height, width], each from 1 to {MAX_SIDE}")))
}
