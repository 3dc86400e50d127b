//! `config.json` as a typed description: every key that changes the mathematics, and the rest kept as it was.
//! What is not supported is refused here, by its key. No tensors.

mod bert;
mod family;
mod generation;
mod gpt2;
mod keys;
mod labels;
mod llama;
mod rope;
mod t5;
mod task;
mod vit;

pub use bert::Bert;
pub(crate) use family::CONFIG_FILE;
pub use family::{Config, Family};
pub(crate) use generation::ends;
pub use gpt2::Gpt2;
pub use labels::Labels;
pub use llama::Llama;
pub use rope::{Frequencies, Rope, RopeScaling};
pub use t5::{FeedForward, T5};
pub use task::Task;
pub use vit::Vit;

/// An activation of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// GELU in its tanh form (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// Rectified linear.
    Relu,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Names of `transformers` for activations; the first of each is what is written.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("gelu_python", Activation::GeluErf),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

/// Tokens with a role in generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIds {
    /// Starts a text.
    pub bos: Option<u32>,
    /// Any of these ends a text.
    pub eos: Vec<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
}

impl TokenIds {
    /// Writes them all, also that there is none: some have defaults where the file says nothing.
    fn write(&self, map: &mut serde_json::Map<String, serde_json::Value>) {
        set(map, "bos_token_id", self.bos);
        match self.eos.as_slice() {
            [one] => set(map, "eos_token_id", *one),
            [] => set(map, "eos_token_id", serde_json::Value::Null),
            several => set(map, "eos_token_id", several),
        }
        set(map, "pad_token_id", self.pad);
    }

    fn read(keys: &keys::Keys<'_>, vocab_size: usize) -> Result<TokenIds, crate::HubError> {
        Ok(TokenIds {
            bos: keys.token("bos_token_id", vocab_size)?,
            eos: keys.tokens("eos_token_id", vocab_size)?,
            pad: keys.token("pad_token_id", vocab_size)?,
        })
    }
}

/// Sets `key` unless it already has a value that means the same, so that what was read is written as it was.
fn set(map: &mut serde_json::Map<String, serde_json::Value>, key: &str, value: impl Into<serde_json::Value>) {
    let value = value.into();
    let same = match (map.get(key), &value) {
        (Some(old), new) if old.is_number() && new.is_number() => old.as_f64() == new.as_f64(),
        (Some(old), new) => old == new,
        (None, _) => false,
    };
    if !same {
        map.insert(key.to_owned(), value);
    }
}

/// Sets an activation's key, unless it already has a name of the same one.
fn set_activation<A: PartialEq>(
    map: &mut serde_json::Map<String, serde_json::Value>,
    key: &str,
    names: &[(&str, A)],
    activation: A,
) {
    let old = map.get(key).and_then(|v| v.as_str());
    if names.iter().any(|(name, a)| *a == activation && old == Some(name)) {
        return;
    }
    if let Some((name, _)) = names.iter().find(|(_, a)| *a == activation) {
        map.insert(key.to_owned(), (*name).into());
    }
}
