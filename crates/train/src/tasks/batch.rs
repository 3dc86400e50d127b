//! The inputs of a step, of any examples: padded to the shortest length that holds them all, with padding hidden from
//! attention and weights on what is to be predicted. Every rank makes the whole batch and loads its part, so no layout
//! sees another one.

use std::sync::Arc;

use data::{Masking, Spans, Tokenizer, drop_tokens};
use hub::{Family, Task};
use kernels::Key;
use mesh::Tile;
use models::PairLoss;
use runtime::{Batch, Destination, RuntimeError};

use super::read::IGNORED;
use super::{Split, column, pairs};
use crate::assemble::Built;
use crate::config::Config;
use crate::error::TrainError;
use crate::feed::{Fed, Input, Inputs, append_patches, count_up, first_of_each, insert_places_of_patches};
use crate::length_buckets::{LengthBuckets, Lengths};

/// Share of a text that spans hide, and their mean length, as published for T5.
const SPANS: (f64, f64) = (0.15, 3.0);
/// Random numbers of a sequence are apart by this.
const PER_SEQUENCE: u64 = 1 << 32;

/// How examples become inputs.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    task: Task,
    buckets: LengthBuckets,
    pad: i32,
    end: Option<i32>,
    decoder_start: i32,
    masking: Option<Masking>,
    token_dropout: f64,
    /// What stands for a dropped token.
    dropped: Option<i32>,
    /// What pairs learn.
    pair_loss: PairLoss,
    /// Kinds of segments that the model knows.
    num_segments: usize,
    spans: Option<Spans>,
    tokenizer: Option<Tokenizer>,
    image: Option<Image>,
}

/// How pixels become patches.
#[derive(Debug, Clone, Copy)]
struct Image {
    size: [usize; 2],
    patch_size: [usize; 2],
    num_channels: usize,
    mean: f64,
    std: f64,
}

impl Recipe {
    /// For a configuration, its model and its tokenizer.
    ///
    /// # Errors
    /// A target that has no room for hidden spans.
    pub fn new(
        config: &Config,
        built: &Built,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Arc<Recipe>, TrainError> {
        let data = &config.data;
        let id = |id: Option<u32>| id.map(|id| id as i32);
        let family = built.description.as_ref().map(|description| &description.family);
        let spans = data.span_corruption.then(|| Spans {
            sentinels: tokenizer
                .map(Tokenizer::sentinels)
                .unwrap_or_default()
                .iter()
                .map(|i| *i as i32)
                .collect(),
            density: SPANS.0,
            mean_length: SPANS.1,
        });
        let target_length = built.buckets.longest().target;
        if let Some(needed) = spans.as_ref().map(|spans| spans.target_length(data.sequence_length - 1) + 1)
            && needed > target_length
        {
            return Err(TrainError::Missing {
                key: "room in data.target_length",
                remedy: format!(
                    "spans hidden in {} tokens take {needed}: set it to at least that",
                    data.sequence_length
                ),
            });
        }
        Ok(Arc::new(Recipe {
            task: config.task,
            buckets: built.buckets.clone(),
            pad: id(tokenizer.and_then(Tokenizer::pad_id)).unwrap_or(0),
            end: id(tokenizer.and_then(Tokenizer::end_id)),
            decoder_start: match family {
                Some(Family::T5(c)) => c.decoder_start as i32,
                _ => 0,
            },
            masking: id(tokenizer.and_then(Tokenizer::mask_id)).map(|mask| Masking {
                mask,
                vocab_size: tokenizer.map_or(0, Tokenizer::vocab_size),
                probability: data.mask_probability,
            }),
            token_dropout: data.token_dropout,
            dropped: id(tokenizer.and_then(|t| t.unknown_id().or(t.mask_id()))),
            pair_loss: config.pair_loss(),
            num_segments: match family {
                Some(Family::Bert(c)) => c.num_segments,
                _ => 1,
            },
            spans,
            tokenizer: tokenizer.cloned(),
            image: match family {
                Some(Family::Vit(c)) => Some(Image {
                    size: c.image_size,
                    patch_size: c.patch_size,
                    num_channels: c.num_channels,
                    mean: data.image_mean,
                    std: data.image_std,
                }),
                _ => None,
            },
        }))
    }
}

/// The batch of one step, made by every rank for itself.
pub(crate) struct TaskBatch {
    recipe: Arc<Recipe>,
    /// Whether tokens are dropped.
    is_training: bool,
    pub split: Split,
    /// Examples of the store; none is padding.
    pub examples: Vec<Option<usize>>,
    /// What the encoder of an encoder-decoder reads.
    sources: Vec<Vec<i32>>,
    bucket: usize,
    inputs: Inputs,
}

impl TaskBatch {
    /// For batches of `batch` examples, to train on.
    pub fn training(recipe: &Arc<Recipe>, split: &Split, batch: usize) -> TaskBatch {
        TaskBatch { is_training: true, ..TaskBatch::new(recipe, split, batch) }
    }

    /// For batches of `batch` examples, as they are.
    pub fn new(recipe: &Arc<Recipe>, split: &Split, batch: usize) -> TaskBatch {
        let mut new = TaskBatch {
            recipe: recipe.clone(),
            is_training: false,
            split: split.clone(),
            examples: vec![None; batch],
            sources: Vec::new(),
            bucket: 0,
            inputs: Inputs::new(),
        };
        new.insert_fixed();
        new
    }

    /// Inserts the inputs that depend on nothing but lengths.
    fn insert_fixed(&mut self) {
        let (batch, Lengths { sequence, .. }, inputs) =
            (self.examples.len(), self.lengths(), &mut self.inputs);
        let rows = if self.recipe.task == Task::Embed { 2 * batch } else { batch };
        match self.recipe.task {
            Task::ImageClassify => insert_places_of_patches(batch, sequence, inputs),
            Task::Seq2Seq => {}
            task => {
                inputs.insert("positions", Input::Ints(count_up(rows, sequence), 0));
                if task != Task::CausalLm {
                    inputs.insert("segments", Input::Ints(vec![0; rows * sequence], 0));
                }
                if task == Task::Classify {
                    first_of_each(batch, sequence, inputs);
                }
            }
        }
    }

    /// The length bucket of the batch.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    fn lengths(&self) -> Lengths {
        self.recipe.buckets.lengths(self.bucket)
    }

    /// Makes room for sequences and targets of so many tokens.
    fn make_room(&mut self, sequences: &[Vec<i32>], target: usize) {
        let sequence = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let bucket = self.recipe.buckets.holding(sequence, target);
        if bucket != self.bucket {
            self.bucket = bucket;
            self.insert_fixed();
        }
    }

    /// Takes the samples of a split, padding where there is none, and makes the inputs; what is hidden is drawn by
    /// `seed`, `step` and the place in the batch.
    pub fn set(&mut self, samples: impl Iterator<Item = Option<usize>>, seed: u64, step: u64) {
        let split = &self.split;
        let found: Vec<_> = samples.map(|sample| sample.map(|at| split.example(at))).collect();
        self.examples.copy_from_slice(&found);
        let key = Key::new(seed, step, "corruption");
        match self.recipe.task {
            Task::ImageClassify => self.images(),
            Task::Seq2Seq => self.translations(&key),
            Task::Embed => self.pairs(&key),
            _ => self.texts(&key),
        }
    }

    /// What is predicted in this batch.
    pub fn predicted(&self) -> impl Iterator<Item = i32> + '_ {
        let (targets, weights) = match (self.inputs.get("targets"), self.inputs.get("weights")) {
            (Some(Input::Ints(targets, _)), Some(Input::Reals(weights))) => (&targets[..], &weights[..]),
            _ => (&[][..], &[][..]),
        };
        targets.iter().zip(weights).filter(|(_, weight)| **weight > 0.0).map(|(target, _)| *target)
    }

    /// Puts what was decoded so far before the decoder of an encoder-decoder, and asks for the token behind it. The batch
    /// is then as long as that needs.
    pub fn decode(&mut self, written: &[Vec<i32>]) {
        let Recipe { pad, decoder_start, .. } = *self.recipe;
        let longest = self.recipe.buckets.longest().target;
        let so_far = 1 + written.iter().map(Vec::len).max().unwrap_or(0);
        let sources = std::mem::take(&mut self.sources);
        self.make_room(&sources, so_far.min(longest));
        self.insert_sources(&sources);
        self.sources = sources;
        let target_seq = self.lengths().target;
        let mut tokens = vec![pad; self.examples.len() * target_seq];
        let mut select = vec![0.0; tokens.len()];
        for (row, written) in written.iter().enumerate() {
            let at = row * target_seq;
            let last = written.len().min(target_seq - 1);
            tokens[at] = decoder_start;
            tokens[at + 1..at + 1 + last].copy_from_slice(&written[..last]);
            select[at + last] = 1.0;
        }
        self.inputs.insert("target_tokens", Input::Ints(tokens, pad));
        self.inputs.insert("select", Input::Reals(select));
    }

    fn ints(&self, example: Option<usize>, column: usize) -> Vec<i32> {
        example.map(|example| self.split.store.ints(example, column).collect()).unwrap_or_default()
    }

    fn targets(&mut self, targets: Vec<i32>, weights: Vec<f64>) {
        self.inputs.insert("targets", Input::Ints(targets, 0));
        self.inputs.insert("weights", Input::Reals(weights));
    }

    /// Labels of whole examples.
    fn labels(&mut self) {
        let label = |example: &Option<usize>| self.ints(*example, column::TARGET).first().copied();
        let labels: Vec<Option<i32>> = self.examples.iter().map(label).collect();
        let targets = labels.iter().map(|label| label.unwrap_or(0)).collect();
        let weights = labels.iter().map(|label| f64::from(u8::from(label.is_some()))).collect();
        self.targets(targets, weights);
    }

    fn images(&mut self) {
        let image = self.recipe.image.expect("a model of images");
        let num_pixels = image.num_channels * image.size[0] * image.size[1];
        let mut patches = Vec::new();
        for example in &self.examples {
            let pixels: Vec<f64> = match example {
                Some(example) => {
                    let bytes = self.split.store.bytes(*example, column::SOURCE);
                    bytes.iter().map(|p| (f64::from(*p) / 255.0 - image.mean) / image.std).collect()
                }
                None => vec![0.0; num_pixels],
            };
            append_patches(image.size, image.patch_size, image.num_channels, &pixels, &mut patches);
        }
        self.inputs.insert("patches", Input::Reals(patches));
        self.labels();
    }

    /// Tokens of all sources, and where keys are.
    fn insert_sources(&mut self, sources: &[Vec<i32>]) {
        let (pad, Lengths { sequence: seq, .. }) = (self.recipe.pad, self.lengths());
        let mut tokens = vec![pad; sources.len() * seq];
        let mut keys = vec![-1; tokens.len()];
        for (row, source) in sources.iter().enumerate() {
            tokens[row * seq..row * seq + source.len()].copy_from_slice(source);
            // A sequence without a token still sees itself.
            (0..source.len().max(1)).for_each(|at| keys[row * seq + at] = at as i32);
        }
        self.inputs.insert("tokens", Input::Ints(tokens, 0));
        if self.recipe.task != Task::CausalLm {
            self.inputs.insert("key_index", Input::Ints(keys, -1));
        }
    }

    fn texts(&mut self, key: &Key) {
        let mut sources: Vec<Vec<i32>> =
            self.examples.iter().map(|example| self.ints(*example, column::SOURCE)).collect();
        self.make_room(&sources, 0);
        let seq = self.lengths().sequence;
        let mut targets = vec![0; sources.len() * seq];
        let mut weights = vec![0.0; targets.len()];
        for (row, source) in sources.iter_mut().enumerate() {
            self.drop_tokens(source, row, key);
            let at = row * seq..row * seq + source.len();
            match self.recipe.task {
                Task::CausalLm => {
                    for (i, next) in source.iter().skip(1).enumerate() {
                        (targets[at.start + i], weights[at.start + i]) = (*next, 1.0);
                    }
                }
                Task::Tag => {
                    for (i, tag) in self.ints(self.examples[row], column::TARGET).into_iter().enumerate() {
                        if tag != IGNORED {
                            (targets[at.start + i], weights[at.start + i]) = (tag, 1.0);
                        }
                    }
                }
                Task::MaskedLm => {
                    let masking = self.recipe.masking.expect("its tokenizer has a mask");
                    let tokenizer = self.recipe.tokenizer.as_ref().expect("texts have a tokenizer");
                    let can_be_hidden = |_, token: i32| !tokenizer.is_special(token as u32);
                    let uniform = |i| key.uniform(row as u64 * PER_SEQUENCE + i);
                    let (targets, weights) = (&mut targets[at.clone()], &mut weights[at]);
                    masking.hide(source, targets, weights, can_be_hidden, uniform);
                }
                _ => {}
            }
        }
        self.insert_sources(&sources);
        match self.recipe.task {
            Task::Classify => {
                self.segments();
                self.labels();
            }
            _ => self.targets(targets, weights),
        }
    }

    /// Which text of a pair each token belongs to.
    fn segments(&mut self) {
        let (num_segments, seq) = (self.recipe.num_segments, self.lengths().sequence);
        let mut segments = vec![0; self.examples.len() * seq];
        for (row, example) in self.examples.iter().enumerate() {
            for (at, segment) in self.ints(*example, column::SEGMENTS).into_iter().enumerate() {
                segments[row * seq + at] = segment.min(num_segments as i32 - 1);
            }
        }
        self.inputs.insert("segments", Input::Ints(segments, 0));
    }

    /// First and second text of each pair by turns.
    fn pairs(&mut self, key: &Key) {
        let columns = [column::SOURCE, column::TARGET];
        let both = self.examples.iter().flat_map(|example| columns.map(|column| self.ints(*example, column)));
        let mut sources: Vec<Vec<i32>> = both.collect();
        for (row, source) in sources.iter_mut().enumerate() {
            self.drop_tokens(source, row, key);
        }
        let score = |example: usize| {
            let bits = self.split.store.ints(example, column::SCORE).next().unwrap_or(0);
            f64::from(f32::from_bits(bits as u32))
        };
        let scores: Vec<Option<f64>> = self.examples.iter().map(|example| example.map(score)).collect();
        self.make_room(&sources, 0);
        self.insert_sources(&sources);
        pairs::insert_means(&sources, self.lengths().sequence, &mut self.inputs);
        pairs::insert_partners(self.recipe.pair_loss, &scores, &mut self.inputs);
    }

    /// Hides tokens of a text while it trains.
    fn drop_tokens(&self, source: &mut [i32], row: usize, key: &Key) {
        let Recipe { token_dropout, dropped, tokenizer, .. } = &*self.recipe;
        if !self.is_training || *token_dropout == 0.0 {
            return;
        }
        let dropped = dropped.expect("its tokenizer has an unknown token or a mask");
        let tokenizer = tokenizer.as_ref().expect("texts have a tokenizer");
        let can_be_hidden = |token: i32| !tokenizer.is_special(token as u32);
        drop_tokens(source, dropped, *token_dropout, can_be_hidden, |i| {
            key.uniform(row as u64 * PER_SEQUENCE + i)
        });
    }

    fn translations(&mut self, key: &Key) {
        let Recipe { pad, decoder_start, end, .. } = *self.recipe;
        let pair = |(row, example): (usize, &Option<usize>)| {
            let source = self.ints(*example, column::SOURCE);
            let Some(spans) = self.recipe.spans.as_ref().filter(|_| example.is_some()) else {
                return (source, self.ints(*example, column::TARGET));
            };
            let text: Vec<i32> = source.into_iter().filter(|token| Some(*token) != end).collect();
            let (mut source, mut target) = spans.hide(&text, |i| key.uniform(row as u64 * PER_SEQUENCE + i));
            source.extend(end);
            target.extend(end);
            (source, target)
        };
        let (sources, found): (Vec<_>, Vec<_>) = self.examples.iter().enumerate().map(pair).unzip();
        self.make_room(&sources, found.iter().map(Vec::len).max().unwrap_or(0));
        let target_seq = self.lengths().target;
        let mut read = vec![pad; found.len() * target_seq];
        let mut targets = vec![0; read.len()];
        let mut weights = vec![0.0; read.len()];
        for (row, target) in found.iter().enumerate() {
            let at = row * target_seq;
            read[at] = decoder_start;
            for (i, token) in target.iter().enumerate() {
                (targets[at + i], weights[at + i]) = (*token, 1.0);
                if i + 1 < target_seq {
                    read[at + i + 1] = *token;
                }
            }
        }
        self.insert_sources(&sources);
        self.sources = sources;
        self.inputs.insert("target_tokens", Input::Ints(read, 0));
        self.targets(targets, weights);
    }
}

impl Batch for TaskBatch {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        Fed { inputs: &self.inputs }.load(input, tile, to)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use data::{Column, ContentHash, ExampleStore};

    use super::*;
    use crate::config::Data;

    fn recipe(task: Task) -> Recipe {
        Recipe {
            task,
            buckets: LengthBuckets::of(&Data {
                sequence_length: 5,
                target_length: Some(4),
                ..Data::default()
            }),
            pad: 9,
            end: Some(1),
            decoder_start: 7,
            masking: None,
            token_dropout: 0.0,
            dropped: None,
            pair_loss: PairLoss::Cosine,
            num_segments: 2,
            spans: None,
            tokenizer: None,
            image: None,
        }
    }

    /// A batch of the given examples and one that is padding.
    fn batch(recipe: Recipe, examples: &[&[Column<'_>]]) -> Inputs {
        let dir = tempfile::tempdir().unwrap();
        let key = ContentHash::of(b"examples");
        let store = ExampleStore::open_or_build(dir.path(), &key, column::count(recipe.task), |writer| {
            examples.iter().for_each(|columns| writer.push(columns).unwrap());
            Ok(())
        });
        let split = Split::new(&Arc::new(store.unwrap()), std::slice::from_ref(&(0..examples.len())));
        let num = examples.len() + 1;
        let mut batch = TaskBatch::new(&Arc::new(recipe), &split, num);
        batch.set((0..num).map(|at| (at < num - 1).then_some(at)), 1, 1);
        batch.inputs
    }

    fn ints<'a>(inputs: &'a Inputs, name: &str) -> &'a [i32] {
        match &inputs[name] {
            Input::Ints(values, _) => values,
            Input::Reals(_) => panic!("{name} is real"),
        }
    }

    pub(in crate::tasks) fn reals<'a>(inputs: &'a Inputs, name: &str) -> &'a [f64] {
        match &inputs[name] {
            Input::Reals(values) => values,
            Input::Ints(..) => panic!("{name} is integer"),
        }
    }

    #[test]
    fn padding_is_hidden_and_does_not_count() {
        let inputs = batch(
            recipe(Task::Classify),
            &[&[Column::Ints(&[3, 4, 1]), Column::Ints(&[2]), Column::Ints(&[0, 0, 1])]],
        );
        assert_eq!(ints(&inputs, "segments")[..4], [0, 0, 1, 0]);
        assert_eq!(ints(&inputs, "tokens"), [3, 4, 1, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(ints(&inputs, "key_index"), [0, 1, 2, -1, -1, 0, -1, -1, -1, -1]);
        assert_eq!((ints(&inputs, "targets"), reals(&inputs, "weights")), (&[2, 0][..], &[1.0, 0.0][..]));
        assert_eq!(reals(&inputs, "select"), [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn tags_that_are_ignored_do_not_count() {
        let columns = [&[3, 4, 5, 1][..], &[IGNORED, 2, 0, IGNORED], &[-1, 0, 1, -1], &[2, 0], &[0; 4]];
        let inputs = batch(recipe(Task::Tag), &[&columns.map(Column::Ints)]);
        assert_eq!(ints(&inputs, "targets")[..5], [0, 2, 0, 0, 0]);
        assert_eq!(reals(&inputs, "weights"), [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_decoder_reads_the_target_one_place_later() {
        let texts = [Column::Bytes(b"a"), Column::Bytes(b"b")];
        let full = [Column::Ints(&[3, 1]), Column::Ints(&[4, 5, 6, 1]), texts[0], texts[1]];
        let short = [Column::Ints(&[3, 1]), Column::Ints(&[4, 1]), texts[0], texts[1]];
        let inputs = batch(recipe(Task::Seq2Seq), &[&full, &short]);
        assert_eq!(ints(&inputs, "target_tokens")[..8], [7, 4, 5, 6, 7, 4, 1, 9]);
        assert_eq!(ints(&inputs, "targets")[..8], [4, 5, 6, 1, 4, 1, 0, 0]);
        assert_eq!(reals(&inputs, "weights"), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_causal_model_predicts_the_next_token() {
        let inputs = batch(recipe(Task::CausalLm), &[&[Column::Ints(&[3, 4, 1])]]);
        assert_eq!(ints(&inputs, "targets")[..5], [4, 1, 0, 0, 0]);
        assert_eq!(reals(&inputs, "weights")[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!(!inputs.contains_key("key_index"));
    }
}
