//! Text to batches: the tokenizer and token cache that a configuration names, and this rank's part of each step.

use std::path::Path;
use std::sync::Arc;

use data::{DataError, Dataset, Origin, Split, TokenStore, Tokenizer};
use mesh::Tile;
use runtime::{Batch, Destination, RuntimeError};

use crate::config::Config;
use crate::error::TrainError;
use crate::length_buckets::LengthBuckets;

/// Where token caches are kept unless the caller says otherwise: relative to the working directory, shared by all runs
/// that are started there.
pub const CACHE_DIR: &str = ".phalanx/tokens";

/// Everything a run reads.
#[derive(Debug)]
pub struct Text {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What it trains on.
    pub train: Arc<Dataset>,
    /// What it is evaluated on, if anything is held out.
    pub heldout: Option<Arc<Dataset>>,
}

/// The tokenizer that the configuration names: a file, or one trained on the training part of its text.
///
/// # Errors
/// A missing or broken file, text that cannot be read, or no tokenizer named at all.
pub fn tokenizer(config: &Config) -> Result<Tokenizer, TrainError> {
    let data = &config.data;
    if data.text.is_empty() {
        return Err(TrainError::Missing {
            key: "data.text",
            remedy: "name at least one text file".to_owned(),
        });
    }
    match (&data.tokenizer, data.tokenizer_vocab) {
        (Some(path), _) => Ok(Tokenizer::load(path)?),
        (None, Some(vocab)) => Ok(Tokenizer::train_on_split(&data.text, vocab, data.validation)?),
        (None, None) => match config.model.from.as_deref().map(|dir| dir.join("tokenizer.json")) {
            Some(path) if path.is_file() => Ok(Tokenizer::load(&path)?),
            _ => Err(TrainError::Missing {
                key: "data.tokenizer",
                remedy:
                    "name a tokenizer.json (model.from has none), or set data.tokenizer_vocab to train one \
                         from the text"
                        .to_owned(),
            }),
        },
    }
}

/// Opens the text of a configuration, building the tokenizer and the token cache where they do not exist yet.
///
/// # Errors
/// Text that cannot be read, is empty, or is shorter than one sequence; nothing is left behind then.
pub fn open(config: &Config) -> Result<Text, TrainError> {
    open_with(config, tokenizer(config)?, Path::new(CACHE_DIR))
}

/// The same with a given tokenizer and cache directory.
///
/// # Errors
/// As [`open`].
pub fn open_with(config: &Config, tokenizer: Tokenizer, cache: &Path) -> Result<Text, TrainError> {
    let data = &config.data;
    if let Some(vocab_size) = config.model.vocab_size
        && tokenizer.vocab_size() > vocab_size
    {
        return Err(DataError::VocabMismatch { cached: tokenizer.vocab_size(), vocab_size }.into());
    }
    let had_cache = cache.exists();
    let store = Arc::new(TokenStore::open_or_build(&data.text, &tokenizer, cache, data.validation)?);
    let dataset = |split| match data.packing {
        true => Dataset::packed(store.clone(), split, data.sequence_length),
        false => Dataset::padded(store.clone(), split, data.sequence_length),
    };
    let opened = dataset(Split::Train).and_then(|train| {
        let heldout = if data.validation > 0.0 { Some(Arc::new(dataset(Split::HeldOut)?)) } else { None };
        Ok((Arc::new(train), heldout))
    });
    match opened {
        Ok((train, heldout)) => {
            let tokenizer = match store.origin() {
                Origin::Opened => tokenizer,
                // One that has encoded a whole text keeps megabytes of words that it has seen.
                _ => Tokenizer::parse(tokenizer.json().to_owned(), cache)?,
            };
            Ok(Text { tokenizer, train, heldout })
        }
        Err(error) => {
            if !had_cache {
                // Nothing else is in there: it was made a moment ago for this very text.
                let made = std::fs::remove_dir_all(cache);
                let parent = cache.parent().filter(|p| !p.as_os_str().is_empty());
                let _ = made.and_then(|()| parent.map_or(Ok(()), std::fs::remove_dir));
            }
            Err(error.into())
        }
    }
}

/// The batch of one step, read by every rank for itself.
#[derive(Debug)]
pub struct TextBatch {
    dataset: Arc<Dataset>,
    buckets: LengthBuckets,
    bucket: usize,
    samples: Vec<Option<usize>>,
    index: Vec<u32>,
    tokens: Vec<i32>,
    targets: Vec<i32>,
    weights: Vec<f32>,
}

impl TextBatch {
    /// For batches of up to `batch` samples, each as long as the shortest bucket that holds it.
    pub fn new(dataset: Arc<Dataset>, buckets: LengthBuckets, batch: usize) -> TextBatch {
        // Uneven splits make rows a little longer than the sequence; twice is always enough.
        let width = 2 * dataset.sequence_length() + 64;
        TextBatch {
            dataset,
            buckets,
            bucket: 0,
            samples: Vec::with_capacity(batch),
            index: Vec::with_capacity(width),
            tokens: Vec::with_capacity(width),
            targets: Vec::with_capacity(width),
            weights: Vec::with_capacity(width),
        }
    }

    /// Given samples; those missing are padding.
    pub fn set(&mut self, samples: impl Iterator<Item = Option<usize>>) {
        self.samples.clear();
        self.samples.extend(samples);
        let lengths = self.samples.iter().flatten().map(|sample| self.dataset.num_valid(*sample));
        self.bucket = self.buckets.holding(lengths.max().unwrap_or(0), 0);
    }

    /// The length bucket of the batch.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    fn row(&mut self, row: usize) {
        let n = self.index.len();
        self.tokens.resize(n, 0);
        self.targets.resize(n, 0);
        self.weights.resize(n, 0.0);
        match self.samples.get(row).copied().flatten() {
            Some(sample) => {
                let (tokens, targets) = (&mut self.tokens, &mut self.targets);
                self.dataset.fill(sample, &self.index, tokens, targets, &mut self.weights);
            }
            None => self.dataset.fill_padding(&mut self.tokens, &mut self.targets, &mut self.weights),
        }
    }
}

impl Batch for TextBatch {
    fn load(&mut self, input: &str, tile: &Tile, mut to: Destination<'_>) -> Result<(), RuntimeError> {
        let [rows, columns] = &tile.dims[..] else {
            return Err(RuntimeError::Batch(format!("`{input}` is not [batch, seq]")));
        };
        let width = columns.extent();
        self.index.clear();
        self.index.extend(columns.indices().map(|i| i as u32));
        for i in 0..rows.extent() {
            if input != "positions" {
                self.row(rows.global(i));
            }
            let range = i * width..(i + 1) * width;
            match (&mut to, input) {
                (Destination::I32(to), "positions") => {
                    for (to, at) in to[range].iter_mut().zip(&self.index) {
                        // Padding takes position 0, which every table of positions has.
                        *to = if (*at as usize) < columns.size { *at as i32 } else { 0 };
                    }
                }
                (Destination::I32(to), "tokens") => to[range].copy_from_slice(&self.tokens),
                (Destination::I32(to), "targets") => to[range].copy_from_slice(&self.targets),
                (Destination::F32(to), "weights") => to[range].copy_from_slice(&self.weights),
                (Destination::F64(to), "weights") => {
                    to[range].iter_mut().zip(&self.weights).for_each(|(to, w)| *to = f64::from(*w));
                }
                _ => return Err(RuntimeError::Batch(format!("a text has no input `{input}`"))),
            }
        }
        Ok(())
    }
}
