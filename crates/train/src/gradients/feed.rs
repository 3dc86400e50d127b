//! From a batch's tensors to what a family's graph reads: shifted targets, positions of keys, and the batch from which
//! every rank loads its part.

use std::collections::BTreeMap;

use hub::{Directory, Family};
use mesh::Tile;
use models::{Model, Step};
use runtime::{Batch, Destination, RuntimeError};

use super::given::{Given, IGNORED, Ints};
use crate::error::TrainError;
use crate::pretrained;

/// A global input and what stands in its padding.
enum Input {
    Ints(Vec<i32>, i32),
    Reals(Vec<f64>),
}

/// A model and its batch.
pub(super) struct Feed {
    pub model: Box<dyn Model>,
    pub step: Step,
    pub given: models::Given,
    pub logits_shape: Vec<usize>,
    pub num_layers: usize,
    inputs: BTreeMap<&'static str, Input>,
}

impl Feed {
    /// Matches a batch with a directory's model.
    ///
    /// # Errors
    /// What is missing, too much, of another shape or out of range, by its name.
    pub fn new(directory: &Directory, batch: &Given) -> Result<Feed, TrainError> {
        match &directory.config().family {
            Family::Gpt2(_) | Family::Llama(_) => causal(directory, batch),
            other => Err(TrainError::File {
                path: directory.config().path().display().to_string(),
                problem: format!(
                    "`model_type` = \"{}\" is not computed yet; gpt2 and llama are",
                    other.model_type()
                ),
            }),
        }
    }

    /// The batch, to load from.
    pub fn batch(&self) -> Fed<'_> {
        Fed { inputs: &self.inputs }
    }
}

fn causal(directory: &Directory, batch: &Given) -> Result<Feed, TrainError> {
    batch.only(&["input_ids", "attention_mask", "position_ids", "labels"], "a causal language model")?;
    let ids = batch.ids("input_ids")?;
    let [rows, seq] = [ids.shape[0], ids.shape[1]];
    let decoder = pretrained::decoder(directory.config(), seq)?;
    let mut inputs = BTreeMap::new();
    let tokens = batch.in_range("input_ids", &ids, decoder.vocab_size, "the vocabulary")?;
    inputs.insert("tokens", Input::Ints(tokens, 0));
    let positions = match batch.optional("position_ids", &ids.shape)? {
        Some(positions) => {
            batch.in_range("position_ids", &positions, decoder.max_positions, "the model's positions")?
        }
        None => count_up(rows, seq),
    };
    inputs.insert("positions", Input::Ints(positions, 0));
    let key_index = key_index(batch, &ids.shape)?;
    let mut given = models::Given { key_index: key_index.is_some(), labels: false };
    inputs.extend(key_index.map(|keys| ("key_index", keys)));
    if let Some(labels) = batch.optional("labels", &ids.shape)? {
        // Position t predicts token t + 1, so the first label is nobody's target.
        let shifted = labels.values.chunks_exact(seq).flat_map(|row| row[1..].iter().copied().chain([IGNORED]));
        let labels = Ints { values: shifted.collect(), shape: labels.shape.clone() };
        insert_labels(batch, &labels, decoder.vocab_size, "the vocabulary", &mut inputs)?;
        given.labels = true;
    }
    Ok(Feed {
        step: Step { batch: rows, sequence_length: seq },
        given,
        logits_shape: vec![rows, seq, decoder.vocab_size],
        num_layers: decoder.num_layers,
        model: Box::new(decoder),
        inputs,
    })
}

/// 0, 1, 2... in every row.
fn count_up(rows: usize, seq: usize) -> Vec<i32> {
    (0..rows).flat_map(|_| 0..seq as i32).collect()
}

/// The position of each key, -1 where the mask hides it; none if it hides none.
fn key_index(batch: &Given, shape: &[usize]) -> Result<Option<Input>, TrainError> {
    let Some(mask) = batch.optional("attention_mask", shape)? else { return Ok(None) };
    let mask = batch.in_range("attention_mask", &mask, 2, "2 values")?;
    let keys = mask.iter().enumerate().map(|(i, m)| if *m == 1 { (i % shape[1]) as i32 } else { -1 });
    Ok(mask.contains(&0).then(|| Input::Ints(keys.collect(), -1)))
}

fn insert_labels(
    batch: &Given,
    labels: &Ints,
    limit: usize,
    of: &str,
    inputs: &mut BTreeMap<&'static str, Input>,
) -> Result<(), TrainError> {
    let (targets, weights) = batch.labels(labels, limit, of)?;
    if weights.iter().all(|w| *w == 0.0) {
        let problem =
            format!("has no label that counts, so there is no mean loss; set some to a class instead of {IGNORED}");
        return Err(batch.refuse("labels", &problem));
    }
    inputs.insert("targets", Input::Ints(targets, 0));
    inputs.insert("weights", Input::Reals(weights));
    Ok(())
}

/// A [`Feed`]'s tensors, as a step loads them.
pub(super) struct Fed<'a> {
    inputs: &'a BTreeMap<&'static str, Input>,
}

impl Batch for Fed<'_> {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        match (self.inputs.get(input), to) {
            (Some(Input::Ints(values, padding)), Destination::I32(to)) => {
                copy(tile, values, *padding, to, |v| v);
            }
            (Some(Input::Reals(values)), Destination::F32(to)) => copy(tile, values, 0.0, to, |v| v as f32),
            (Some(Input::Reals(values)), Destination::F64(to)) => copy(tile, values, 0.0, to, |v| v),
            _ => return Err(RuntimeError::Batch(format!("the batch has no input `{input}`"))),
        }
        Ok(())
    }
}

fn copy<T: Copy, U: Copy>(tile: &Tile, values: &[T], padding: U, to: &mut [U], convert: impl Fn(T) -> U) {
    to.fill(padding);
    tile.for_each_run(|run| {
        let from = &values[run.global..run.global + run.len];
        to[run.local..run.local + run.len].iter_mut().zip(from).for_each(|(to, v)| *to = convert(*v));
    });
}
