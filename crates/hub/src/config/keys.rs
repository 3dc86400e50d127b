//! Typed reading of `config.json`, key by key. `null` counts as absent, as it does for `transformers`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::HubError;

/// Largest size that a key may have: far above any model, and small enough that products of a few cannot overflow.
const MAX_SIZE: u64 = 1 << 24;
/// Largest number of layers.
const MAX_LAYERS: u64 = 1000;
/// Characters of a value that a message repeats.
const SHOWN: usize = 60;

/// An object of `config.json` and where it is.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub path: &'a Path,
    pub model_type: &'a str,
    pub map: &'a Map<String, Value>,
    /// Put before keys in messages: `rope_scaling.` for a nested object.
    pub prefix: &'a str,
}

impl<'a> Keys<'a> {
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A refusal of the key's value.
    pub fn refuse(&self, key: &str, supported: impl Into<String>) -> HubError {
        let value = self.map.get(key).map_or_else(|| "null".to_owned(), Value::to_string);
        let shown: String = value.chars().take(SHOWN).collect();
        let value = if shown.len() < value.len() { format!("{shown}...") } else { shown };
        HubError::Unsupported {
            path: self.path.to_path_buf(),
            key: format!("{}{key}", self.prefix),
            value,
            supported: supported.into(),
        }
    }

    pub fn missing(&self, key: &'static str) -> HubError {
        HubError::MissingKey { path: self.path.to_path_buf(), key, model_type: self.model_type.to_owned() }
    }

    fn integer(&self, key: &'static str, max: u64) -> Result<Option<usize>, HubError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.refuse(key, format!("an integer from 1 to {max}"))),
        }
    }

    /// A size, if it is given.
    pub fn optional_size(&self, key: &'static str) -> Result<Option<usize>, HubError> {
        self.integer(key, MAX_SIZE)
    }

    /// A size that must be given. (`transformers` has defaults, those of one published model: a file that relies on
    /// them is more likely broken.)
    pub fn size(&self, key: &'static str) -> Result<usize, HubError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A size with a default.
    pub fn size_or(&self, key: &'static str, default: usize) -> Result<usize, HubError> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    /// A number of layers, if it is given.
    pub fn optional_layers(&self, key: &'static str) -> Result<Option<usize>, HubError> {
        self.integer(key, MAX_LAYERS)
    }

    /// A number of layers.
    pub fn layers(&self, key: &'static str) -> Result<usize, HubError> {
        self.optional_layers(key)?.ok_or_else(|| self.missing(key))
    }

    /// A number, if it is given.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, HubError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.refuse(key, "a number")),
        }
    }

    /// A number above zero, if it is given.
    pub fn optional_positive(&self, key: &str) -> Result<Option<f64>, HubError> {
        match self.optional_number(key)? {
            Some(x) if x <= 0.0 => Err(self.refuse(key, "a number above 0")),
            x => Ok(x),
        }
    }

    /// A number above zero with a default.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, HubError> {
        Ok(self.optional_positive(key)?.unwrap_or(default))
    }

    /// A probability of dropout with a default.
    pub fn dropout_or(&self, key: &str, default: f64) -> Result<f64, HubError> {
        match self.optional_number(key)? {
            Some(p) if !(0.0..1.0).contains(&p) => {
                Err(self.refuse(key, "a probability, at least 0 and below 1"))
            }
            p => Ok(p.unwrap_or(default)),
        }
    }

    /// A flag with a default.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, HubError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(key, "true, false")),
        }
    }

    /// A flag of which only one value is supported, which is also its default.
    pub fn only(&self, key: &str, supported: bool) -> Result<(), HubError> {
        if self.flag_or(key, supported)? == supported {
            Ok(())
        } else {
            Err(self.refuse(key, supported.to_string()))
        }
    }

    /// A text, if it is given.
    pub fn optional_text(&self, key: &str) -> Result<Option<&'a str>, HubError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.refuse(key, "a string")),
        }
    }

    /// A choice by name, with a default.
    pub fn choice<T: Copy>(&self, key: &str, default: T, choices: &[(&str, T)]) -> Result<T, HubError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let found = choices.iter().find(|(name, _)| value.as_str() == Some(name));
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.refuse(key, names.join(", "))
        })
    }

    /// A token of a vocabulary, if it is given. The first, if a list is given.
    pub fn token(&self, key: &str, vocab_size: usize) -> Result<Option<u32>, HubError> {
        Ok(self.tokens(key, vocab_size)?.first().copied())
    }

    /// One token or a list of tokens. An id beyond the vocabulary counts as absent: published files carry such ids as
    /// defaults of models with another vocabulary, and `transformers` only warns.
    pub fn tokens(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, HubError> {
        let one = |value: &Value| match value.as_i64() {
            // -1 means none in some files
            Some(id) => Ok(u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size)),
            None => Err(self.refuse(key, "a token id or a list of them")),
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                Ok(values.iter().map(one).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
            }
            Some(value) => Ok(one(value)?.into_iter().collect()),
        }
    }

    /// Checks that a size made of several is not absurd; `key` is one of them.
    pub fn check_product(&self, key: &str, sizes: &[usize]) -> Result<(), HubError> {
        match sizes.iter().try_fold(1u64, |n, size| n.checked_mul(*size as u64)) {
            Some(product) if product <= MAX_SIZE => Ok(()),
            _ => Err(self.refuse(key, format!("sizes whose product is at most {MAX_SIZE}"))),
        }
    }

    /// Checks that heads divide the width.
    pub fn check_heads(&self, heads_key: &str, num_heads: usize, width: usize) -> Result<(), HubError> {
        if width.is_multiple_of(num_heads) {
            Ok(())
        } else {
            Err(self.refuse(heads_key, format!("a divisor of the width {width}")))
        }
    }
}
