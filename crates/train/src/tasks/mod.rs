//! Examples of a task: from record files and images to verified stores, to batches, to scores.
//!
//! The way in: [`read`] decides which columns of which files an example is made of, and writes them to a store once;
//! [`TaskBatch`] makes the inputs of a step of any examples; [`Tally`] collects what a model said of them and scores it
//! beside what counting alone reaches.

mod batch;
mod decode;
mod images;
mod labels;
mod pairs;
mod read;
mod score;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use data::{ByClass, ByLength, ExampleStore, Order, Sampler, Tokenizer};
use hub::Task;

use crate::config::{Config, Sampling};
use crate::error::TrainError;

pub(crate) use batch::{Recipe, TaskBatch};
pub(crate) use decode::greedy;
pub(crate) use images::Shape;
pub(crate) use labels::Known;
pub(crate) use read::{open, open_heldout, tokenizer};
pub(crate) use score::Tally;
pub use score::{Baseline, Score, Scores};

/// Columns of a stored example, by task.
pub(crate) mod column {
    /// Token ids, framed; of an image, its pixels.
    pub const SOURCE: usize = 0;
    /// Of a classified example its label, of a sentence the tag of each token, of a translation the target's tokens, of a
    /// pair the second's tokens.
    pub const TARGET: usize = 1;
    /// The word that each token begins, or -1.
    pub const WORD_OF: usize = 2;
    /// The tag of each word.
    pub const TAGS: usize = 3;
    /// Of a classified pair, which text each token belongs to; empty for one text.
    pub const SEGMENTS: usize = 2;
    /// The score of a pair, as the bits of an `f32`; empty if it has none.
    pub const SCORE: usize = 2;
    /// A hash of each word, in two numbers.
    pub const WORDS: usize = 4;
    /// Text as the file has it.
    pub const SOURCE_TEXT: usize = 2;
    /// Its translation.
    pub const TARGET_TEXT: usize = 3;

    /// How many columns the examples of a task have.
    pub fn count(task: hub::Task) -> usize {
        match task {
            hub::Task::ImageClassify => 2,
            hub::Task::Classify | hub::Task::Embed => 3,
            hub::Task::Tag => 5,
            hub::Task::Seq2Seq => 4,
            _ => 1,
        }
    }
}

/// Examples of a store that belong together.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    pub store: Arc<ExampleStore>,
    ranges: Vec<Range<usize>>,
    len: usize,
}

impl Split {
    pub fn new(store: &Arc<ExampleStore>, ranges: &[Range<usize>]) -> Split {
        let ranges: Vec<Range<usize>> = ranges.iter().filter(|r| !r.is_empty()).cloned().collect();
        Split { store: store.clone(), len: ranges.iter().map(Range::len).sum(), ranges }
    }

    /// Examples.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The example of the store that stands at a place.
    ///
    /// # Panics
    /// If there is none.
    pub fn example(&self, mut at: usize) -> usize {
        for range in &self.ranges {
            if at < range.len() {
                return range.start + at;
            }
            at -= range.len();
        }
        panic!("a split has no example {at} more");
    }

    /// Tokens of all sources.
    pub fn num_tokens(&self) -> usize {
        (0..self.len).map(|at| self.store.ints(self.example(at), column::SOURCE).len()).sum()
    }

    /// Bytes of all sources.
    pub fn num_bytes(&self) -> u64 {
        (0..self.len).map(|at| self.store.bytes(self.example(at), column::SOURCE).len() as u64).sum()
    }

    /// Tokens of each example of a task, of both texts where it is a pair.
    pub fn lengths(&self, task: Task) -> Vec<usize> {
        let last = match task {
            Task::Seq2Seq | Task::Embed => column::TARGET,
            _ => column::SOURCE,
        };
        let length = |example| (column::SOURCE..=last).map(|c| self.store.ints(example, c).len()).sum();
        (0..self.len).map(|at| length(self.example(at))).collect()
    }

    /// The label of each example.
    pub fn classes(&self) -> Vec<usize> {
        let class = |at| self.store.ints(self.example(at), column::TARGET).next().unwrap_or(0) as usize;
        (0..self.len).map(class).collect()
    }
}

/// The data of a task.
#[derive(Debug, Clone)]
pub(crate) struct Examples {
    /// The tokenizer; none for images.
    pub tokenizer: Option<Tokenizer>,
    /// Names of the labels, in the order of the classifier's outputs.
    pub labels: Vec<String>,
    pub train: Split,
    pub heldout: Option<Split>,
}

impl Examples {
    /// The order of training that a configuration asks for.
    ///
    /// # Errors
    /// A class with a weight and no example, or a weight of a label that is none.
    pub fn order(&self, config: &Config) -> Result<Order, TrainError> {
        let (data, seed) = (&config.data, config.train.seed);
        Ok(match data.sampler {
            Sampling::Random => Order::Random(Sampler::new(self.train.len(), seed)?),
            Sampling::Balanced => {
                Order::Classes(ByClass::balanced(&self.train.classes(), self.labels.len(), seed)?)
            }
            Sampling::Weighted => {
                let mut weights = vec![0.0; self.labels.len()];
                for (label, weight) in &data.class_weights {
                    let place = self.labels.iter().position(|known| known == label);
                    weights[place.ok_or_else(|| TrainError::Unsupported {
                        key: "data.class_weights",
                        value: label.clone(),
                        remedy: "no example has this label; name those of the data",
                    })?] = *weight;
                }
                let classes = self.train.classes();
                let empty = (0..weights.len()).find(|c| weights[*c] > 0.0 && !classes.contains(c));
                if let Some(class) = empty {
                    return Err(TrainError::Unsupported {
                        key: "data.class_weights",
                        value: self.labels[class].clone(),
                        remedy: "no training example has this label; give it the weight 0",
                    });
                }
                Order::Classes(ByClass::distributed(&classes, &weights, seed)?)
            }
            Sampling::Length => {
                Order::Lengths(ByLength::new(&self.train.lengths(config.task), config.train.batch, seed)?)
            }
        })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        self.train.store.path()
    }
}
