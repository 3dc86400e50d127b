//! What a run reads, whatever its task: running text, or examples. Which it is follows from the task and the files
//! that the configuration names.

use std::path::Path;
use std::sync::Arc;

use data::{ByLength, Dataset, Order, Sampler, Tokenizer, Walk};
use hub::{Directory, StoredType, Task, TokenIds};
use mesh::Tile;
use runtime::{Batch, Destination, RuntimeError};

use crate::assemble::{Built, evaluation_batch};
use crate::config::{Config, Sampling};
use crate::describe::{Facts, describe};
use crate::error::TrainError;
use crate::length_buckets::LengthBuckets;
use crate::pretrained;
use crate::tasks::{self, Examples, Known, Recipe, Shape, TaskBatch};
use crate::text::{self, Text, TextBatch};

/// Whether a configuration trains on running text.
fn is_of_text(config: &Config) -> bool {
    config.task == Task::CausalLm && config.data.train.is_empty()
}

/// The tokenizer of a configuration that reads texts.
///
/// # Errors
/// Those of its file or of the texts that it is trained on.
pub(crate) fn tokenizer(config: &Config) -> Result<Tokenizer, TrainError> {
    match is_of_text(config) {
        true => text::tokenizer(config),
        false => tasks::tokenizer(config)?.ok_or_else(|| TrainError::Missing {
            key: "data.tokenizer",
            remedy: "images have no tokenizer".to_owned(),
        }),
    }
}

/// The configuration with what its data decide about the model, where it does not say that itself; for commands that
/// train nothing. Without data it stays as it is.
///
/// # Errors
/// As [`Source::open`].
pub(crate) fn decided(config: &Config) -> Result<Config, TrainError> {
    let (model, data, task) = (&config.model, &config.data, config.task);
    let has_vocab = model.vocab_size.is_some() || task == Task::ImageClassify;
    let has_labels = model.num_labels.is_some() || !task.has_labels();
    let has_data = [&data.train, &data.text, &data.images].into_iter().any(|files| !files.is_empty());
    let is_said = model.from.is_none() && has_vocab && has_labels;
    if task == Task::CausalLm || model.described.is_some() || is_said || !has_data {
        return Ok(config.clone());
    }
    let directory = pretrained::open(config)?;
    let source = Source::open(config, directory.as_ref())?;
    Ok(source.complete(config, directory)?.0)
}

/// What is known of a run's data before its model.
pub(crate) enum Source {
    /// Running text, of which the tokenizer is known.
    Text(Box<Tokenizer>),
    /// Examples, all of them; their labels.
    Examples(Box<Examples>, Option<Known>),
}

impl Source {
    /// Opens what the model depends on.
    ///
    /// # Errors
    /// Files that cannot be read or do not fit the task.
    pub fn open(config: &Config, directory: Option<&Directory>) -> Result<Source, TrainError> {
        if is_of_text(config) {
            return Ok(Source::Text(Box::new(text::tokenizer(config)?)));
        }
        let described = directory.map(Directory::config);
        let labels = described.and_then(|description| description.labels()).map(|labels| &labels.names[..]);
        let shape = shape(config, described);
        let (examples, known) = tasks::open(config, labels, shape, Path::new(text::CACHE_DIR))?;
        Ok(Source::Examples(Box::new(examples), known))
    }

    /// The tokenizer; none for images.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Source::Text(tokenizer) => Some(tokenizer),
            Source::Examples(examples, _) => examples.tokenizer.as_ref(),
        }
    }

    /// The configuration and the directory with what the data decide: vocabulary and labels.
    ///
    /// # Errors
    /// Labels that a family cannot have.
    pub fn complete(
        &self,
        config: &Config,
        directory: Option<Directory>,
    ) -> Result<(Config, Option<Directory>), TrainError> {
        let mut config = config.clone();
        let known = match self {
            Source::Examples(_, Some(known)) => Some(known),
            _ => None,
        };
        let directory = match (directory, known.filter(|known| known.are_new)) {
            (Some(directory), Some(known)) => Some(directory.relabelled(known.names.clone())?),
            (directory, _) => directory,
        };
        if let Some(directory) = &directory {
            directory.bind()?;
        }
        let description = match &directory {
            Some(directory) => Some(directory.config().clone()),
            None if config.task == Task::CausalLm || config.model.described.is_some() => None,
            None => {
                let tokenizer = self.tokenizer();
                let tokens = tokenizer.map(|tokenizer| TokenIds {
                    bos: tokenizer.start_id(),
                    eos: tokenizer.end_id().into_iter().collect(),
                    pad: tokenizer.pad_id(),
                });
                let facts = Facts {
                    vocab_size: tokenizer.map(Tokenizer::vocab_size),
                    tokens: tokens.unwrap_or_default(),
                    labels: known.map(|known| known.names.clone()),
                };
                Some(describe(&config, &facts)?)
            }
        };
        if let Some(description) = description {
            config.model.described = Some(description.to_json(config.task, StoredType::F32));
        }
        Ok((config, directory))
    }

    /// All of the data.
    ///
    /// # Errors
    /// Text that cannot be read or is too short.
    pub fn corpus(self, config: &Config, built: &Built) -> Result<Corpus, TrainError> {
        Ok(match self {
            Source::Text(tokenizer) => {
                let text = text::open_with(config, *tokenizer, Path::new(text::CACHE_DIR))?;
                Corpus::Text(Box::new(text))
            }
            Source::Examples(examples, _) => {
                let recipe = Recipe::new(config, built, examples.tokenizer.as_ref())?;
                Corpus::Examples { examples, recipe }
            }
        })
    }
}

/// The images that a configuration's model takes, if it takes any.
pub(crate) fn shape(config: &Config, description: Option<&hub::Config>) -> Option<Shape> {
    match description.map(|description| &description.family) {
        Some(hub::Family::Vit(c)) => Some(Shape { size: c.image_size, num_channels: c.num_channels }),
        None if config.task == Task::ImageClassify => {
            Some(Shape { size: [config.model.image_size; 2], num_channels: config.model.num_channels })
        }
        _ => None,
    }
}

/// The data of a run.
#[derive(Debug)]
pub(crate) enum Corpus {
    /// Running text.
    Text(Box<Text>),
    /// Examples, and how they become inputs.
    Examples { examples: Box<Examples>, recipe: Arc<Recipe> },
}

impl Corpus {
    /// The tokenizer; none for images.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Corpus::Text(text) => Some(&text.tokenizer),
            Corpus::Examples { examples, .. } => examples.tokenizer.as_ref(),
        }
    }

    /// The cache, whose name is a hash of all that it holds.
    pub fn cache(&self) -> &Path {
        match self {
            Corpus::Text(text) => text.train.store().path(),
            Corpus::Examples { examples, .. } => examples.path(),
        }
    }

    /// What there is to train on and what is held out: tokens of a text, else examples.
    pub fn sizes(&self) -> [u64; 2] {
        match self {
            Corpus::Text(text) => {
                [text.train.num_targets() as u64, text.heldout.as_ref().map_or(0, |h| h.num_targets() as u64)]
            }
            Corpus::Examples { examples, .. } => {
                [examples.train.len() as u64, examples.heldout.as_ref().map_or(0, |h| h.len() as u64)]
            }
        }
    }

    /// The order of training.
    ///
    /// # Errors
    /// One that the data do not admit.
    pub fn order(&self, config: &Config) -> Result<Order, TrainError> {
        match self {
            Corpus::Text(text) => {
                let (train, seed) = (&text.train, config.train.seed);
                Ok(match config.data.sampler {
                    Sampling::Length => {
                        Order::Lengths(ByLength::new(&lengths(train), config.train.batch, seed)?)
                    }
                    _ => Order::Random(Sampler::new(train.num_samples(), seed)?),
                })
            }
            Corpus::Examples { examples, .. } => examples.order(config),
        }
    }

    /// Batches to train on.
    pub fn training(&self, config: &Config) -> CorpusBatch {
        match self {
            Corpus::Text(text) => {
                let buckets = LengthBuckets::of(&config.data);
                CorpusBatch::Text(TextBatch::new(text.train.clone(), buckets, config.train.batch))
            }
            Corpus::Examples { examples, recipe } => {
                CorpusBatch::Examples(TaskBatch::training(recipe, &examples.train, config.train.batch))
            }
        }
    }

    /// The samples held out by length, where it does not matter which of them are in one batch; none if it does: tokens
    /// are hidden by the place in the batch, and pairs are compared within it.
    pub fn heldout_by_length(&self, config: &Config) -> Option<Vec<usize>> {
        let lengths = match (self, config.task) {
            (_, Task::MaskedLm | Task::Embed) => return None,
            (Corpus::Text(text), _) => lengths(text.heldout.as_ref()?),
            (Corpus::Examples { .. }, _) if config.data.span_corruption => return None,
            (Corpus::Examples { examples, .. }, task) => examples.heldout.as_ref()?.lengths(task),
        };
        let mut samples: Vec<usize> = (0..lengths.len()).collect();
        samples.sort_by_key(|sample| lengths[*sample]);
        Some(samples)
    }

    /// Batches to evaluate on, and the walk over them; none if nothing is held out.
    pub fn heldout(&self, config: &Config) -> Option<(CorpusBatch, Walk)> {
        let size = evaluation_batch(config);
        match self {
            Corpus::Text(text) => {
                let heldout = text.heldout.as_ref()?;
                let batch = TextBatch::new(heldout.clone(), LengthBuckets::of(&config.data), size);
                Some((CorpusBatch::Text(batch), Walk::new(heldout.num_samples(), size)))
            }
            Corpus::Examples { examples, recipe } => {
                let heldout = examples.heldout.as_ref()?;
                let batch = TaskBatch::new(recipe, heldout, size);
                Some((CorpusBatch::Examples(batch), Walk::new(heldout.len(), size)))
            }
        }
    }
}

/// Tokens of each sample of a text.
fn lengths(dataset: &Dataset) -> Vec<usize> {
    (0..dataset.num_samples()).map(|sample| dataset.num_valid(sample)).collect()
}

/// The batch of one step, read by every rank for itself.
pub(crate) enum CorpusBatch {
    /// Of running text.
    Text(TextBatch),
    /// Of examples.
    Examples(TaskBatch),
}

impl CorpusBatch {
    /// The samples of a step that are next in an order, which stands at `position`.
    pub fn draw(&mut self, order: &Order, position: u64, batch: usize, seed: u64, step: u64) {
        let samples = (position..position + batch as u64).map(|p| Some(order.sample(p)));
        self.set(samples, seed, step);
    }

    /// Given samples; those missing are padding.
    pub fn set(&mut self, samples: impl Iterator<Item = Option<usize>>, seed: u64, step: u64) {
        match self {
            CorpusBatch::Text(batch) => batch.set(samples),
            CorpusBatch::Examples(batch) => batch.set(samples, seed, step),
        }
    }

    /// The length bucket of the step, which says which of its programs runs.
    pub fn bucket(&self) -> usize {
        match self {
            CorpusBatch::Text(batch) => batch.bucket(),
            CorpusBatch::Examples(batch) => batch.bucket(),
        }
    }
}

impl Batch for CorpusBatch {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        match self {
            CorpusBatch::Text(batch) => batch.load(input, tile, to),
            CorpusBatch::Examples(batch) => batch.load(input, tile, to),
        }
    }
}
