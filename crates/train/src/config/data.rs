//! The table `data`: its keys, defaults and single-key ranges. No file is opened here.

use std::path::PathBuf;

use super::ConfigError;
use super::value::Value;

/// The text and how it is cut into sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Text files, absolute. Empty where none is needed, as for `explain`.
    pub text: Vec<PathBuf>,
    /// A `tokenizer.json`, absolute.
    pub tokenizer: Option<PathBuf>,
    /// Train a tokenizer of this vocabulary from the text.
    pub tokenizer_vocab: Option<usize>,
    /// Tokens in a sequence.
    pub sequence_length: usize,
    /// Fraction held out from the end of each file.
    pub validation: f64,
    /// Whether sequences run on across documents; else one document per sequence, padded and masked.
    pub packing: bool,
}

impl Default for Data {
    fn default() -> Data {
        Data {
            text: Vec::new(),
            tokenizer: None,
            tokenizer_vocab: None,
            sequence_length: 256,
            validation: 0.05,
            packing: true,
        }
    }
}

impl Data {
    /// Sets a key; false if there is none of that name.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
        match key {
            "text" => self.text = value.paths()?,
            "tokenizer" => self.tokenizer = Some(value.path()?),
            "tokenizer_vocab" => self.tokenizer_vocab = Some(value.count(1)?),
            "sequence_length" => self.sequence_length = value.count(1)?,
            "validation" => self.validation = value.fraction()?,
            "packing" => self.packing = value.switch()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
