//! Preparing text before a run: the tokenizer and the token cache that a configuration names, built where they are not
//! there yet, and what they hold. How tokens become batches is in `text`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use data::{Dataset, Origin, Split};
use serde::Serialize;

use crate::config::Config;
use crate::corpus::Source;
use crate::error::TrainError;
use crate::tasks::{self, Examples};
use crate::{pretrained, text};

/// What a configuration's text came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataReport {
    /// The token cache.
    pub cache: PathBuf,
    /// Whether it was there already.
    pub cached: bool,
    /// Token ids.
    pub vocab_size: usize,
    /// The text to train on.
    pub train: SplitReport,
    /// The text held out, if any.
    pub heldout: Option<SplitReport>,
    /// How a unigram model does on the text held out.
    pub unigram_bits_per_byte: Option<f64>,
    /// How an interpolated bigram model does on the text held out.
    pub bigram_bits_per_byte: Option<f64>,
    /// How long it took.
    pub seconds: f64,
}

/// What one split holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SplitReport {
    /// Bytes of text; of examples, of what is stored of them.
    pub bytes: u64,
    /// Documents, or examples.
    pub documents: usize,
    /// Tokens, those that frame documents included.
    pub tokens: usize,
    /// Sequences of the configured length.
    pub sequences: usize,
}

/// Builds the tokenizer and the token cache of a configuration, or opens them, and counts.
///
/// # Errors
/// Text that cannot be read, is empty, or is shorter than one sequence.
pub fn prepare(config: &Config) -> Result<DataReport, TrainError> {
    let start = Instant::now();
    let directory = pretrained::open(config)?;
    let tokenizer = match Source::open(config, directory.as_ref())? {
        Source::Text(tokenizer) => *tokenizer,
        Source::Examples(examples, _) => return Ok(of_examples(&examples, start)),
    };
    let text = text::open_with(config, tokenizer, Path::new(text::CACHE_DIR))?;
    let store = text.train.store();
    let baselines = text.heldout.as_ref().map(|_| data::baselines(store)).transpose()?;
    Ok(DataReport {
        cache: store.path().to_path_buf(),
        cached: *store.origin() == Origin::Opened,
        vocab_size: text.tokenizer.vocab_size(),
        train: split(&text.train, Split::Train),
        heldout: text.heldout.as_ref().map(|heldout| split(heldout, Split::HeldOut)),
        unigram_bits_per_byte: baselines.map(|b| b.unigram.bits_per_byte),
        bigram_bits_per_byte: baselines.map(|b| b.bigram.bits_per_byte),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn of_examples(examples: &Examples, start: Instant) -> DataReport {
    let report = |split: &tasks::Split| SplitReport {
        bytes: split.num_bytes(),
        documents: split.len(),
        tokens: examples.tokenizer.as_ref().map_or(0, |_| split.num_tokens()),
        sequences: split.len(),
    };
    DataReport {
        cache: examples.path().to_path_buf(),
        cached: examples.train.store.was_cached(),
        vocab_size: examples.tokenizer.as_ref().map_or(0, data::Tokenizer::vocab_size),
        train: report(&examples.train),
        heldout: examples.heldout.as_ref().map(report),
        unigram_bits_per_byte: None,
        bigram_bits_per_byte: None,
        seconds: start.elapsed().as_secs_f64(),
    }
}

fn split(dataset: &Dataset, split: Split) -> SplitReport {
    let store = dataset.store();
    SplitReport {
        bytes: store.num_bytes(split),
        documents: store.num_documents(split),
        tokens: store.num_tokens(split),
        sequences: dataset.num_samples(),
    }
}
