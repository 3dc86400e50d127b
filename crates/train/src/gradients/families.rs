//! From a batch's tensors to what each family's graph reads: shifted targets, positions of keys, patches.

use hub::{Directory, Family, Task};
use models::Step;

use super::given::{Given, IGNORED, Ints};
use crate::error::TrainError;
use crate::feed::{Feed, Input, Inputs, append_patches, count_up, first_of_each, insert_places_of_patches};
use crate::pretrained;

/// Rotary positions are below this.
const MAX_ROTARY: usize = 1 << 30;

/// Matches a batch with a directory's model.
///
/// # Errors
/// What is missing, too much, of another shape or out of range, by its name.
pub(super) fn feed(directory: &Directory, batch: &Given) -> Result<Feed, TrainError> {
    match &directory.config().family {
        Family::Bert(c) => bert(c, directory.task(), batch),
        Family::T5(c) => t5(c, batch),
        Family::Vit(c) => vit(c, batch),
        _ => causal(directory, batch),
    }
}

fn causal(directory: &Directory, batch: &Given) -> Result<Feed, TrainError> {
    batch.only(&["input_ids", "attention_mask", "position_ids", "labels"], "a causal language model")?;
    let ids = batch.ids("input_ids")?;
    let [rows, seq] = [ids.shape[0], ids.shape[1]];
    refuse_packed(batch, &ids.shape)?;
    let mut inputs = Inputs::new();
    let decoder = match &directory.config().family {
        Family::Gpt2(c) => {
            fits(batch, seq, c.max_positions)?;
            insert_positions(batch, &ids.shape, c.max_positions, &mut inputs)?;
            pretrained::decoder(directory.config(), seq)?
        }
        // Rotary positions have no end; how far frequencies stretch follows from the last one.
        _ => {
            let last = insert_positions(batch, &ids.shape, MAX_ROTARY, &mut inputs)?;
            pretrained::decoder(directory.config(), last as usize + 1)?
        }
    };
    insert_tokens(batch, &ids, decoder.vocab_size, &mut inputs)?;
    let key_index = insert_key_index(batch, &ids.shape, &mut inputs)?;
    let labels = batch.optional("labels", &ids.shape)?;
    if let Some(labels) = &labels {
        // Position t predicts token t + 1, so the first label is nobody's target.
        let next = labels.values.chunks_exact(seq).flat_map(|row| row[1..].iter().copied().chain([IGNORED]));
        let shifted = Ints { values: next.collect(), shape: labels.shape.clone() };
        insert_labels(batch, &shifted, decoder.vocab_size, "the vocabulary", &mut inputs)?;
    }
    Ok(Feed {
        step: Step::new(rows, seq),
        given: models::Given { key_index, labels: labels.is_some() },
        outputs: vec![("logits", vec![rows, seq, decoder.vocab_size])],
        num_layers: decoder.num_layers,
        model: Box::new(decoder),
        inputs,
    })
}

fn bert(c: &hub::Bert, task: Task, batch: &Given) -> Result<Feed, TrainError> {
    let allowed = ["input_ids", "attention_mask", "token_type_ids", "position_ids", "labels"];
    let num_allowed = if task == Task::Embed { 4 } else { 5 };
    batch.only(&allowed[..num_allowed], &format!("BERT for {task}"))?;
    let ids = batch.ids("input_ids")?;
    let [rows, seq] = [ids.shape[0], ids.shape[1]];
    fits(batch, seq, c.max_positions)?;
    let mut inputs = Inputs::new();
    insert_tokens(batch, &ids, c.vocab_size, &mut inputs)?;
    insert_positions(batch, &ids.shape, c.max_positions, &mut inputs)?;
    let segments = match batch.optional("token_type_ids", &ids.shape)? {
        Some(segments) => batch.in_range("token_type_ids", &segments, c.num_segments, "the segments")?,
        None => vec![0; rows * seq],
    };
    inputs.insert("segments", Input::Ints(segments, 0));
    let key_index = insert_key_index(batch, &ids.shape, &mut inputs)?;
    let num_labels = c.labels.names.len();
    let (logits, limit, of) = match task {
        Task::Classify => (vec![rows, num_labels], num_labels, "the labels"),
        Task::Tag => (vec![rows, seq, num_labels], num_labels, "the labels"),
        _ => (vec![rows, seq, c.vocab_size], c.vocab_size, "the vocabulary"),
    };
    let outputs = match task {
        Task::Embed => vec![("embeddings", vec![rows, c.embed]), ("hidden", vec![rows, seq, c.embed])],
        _ => vec![("logits", logits.clone())],
    };
    match task {
        Task::Classify => first_of_each(rows, seq, &mut inputs),
        Task::Embed => insert_mean(batch, &ids.shape, &mut inputs)?,
        _ => {}
    }
    let labels = batch.optional("labels", &logits[..logits.len() - 1])?;
    if let Some(labels) = &labels {
        insert_labels(batch, labels, limit, of, &mut inputs)?;
    }
    Ok(Feed {
        step: Step::new(rows, seq),
        given: models::Given { key_index, labels: labels.is_some() },
        outputs,
        num_layers: c.num_layers,
        model: Box::new(pretrained::bert(c, task, models::PairLoss::Cosine)),
        inputs,
    })
}

fn t5(c: &hub::T5, batch: &Given) -> Result<Feed, TrainError> {
    batch.only(&["input_ids", "attention_mask", "decoder_input_ids", "labels"], "T5")?;
    let ids = batch.ids("input_ids")?;
    let [rows, seq] = [ids.shape[0], ids.shape[1]];
    let mut inputs = Inputs::new();
    insert_tokens(batch, &ids, c.vocab_size, &mut inputs)?;
    let key_index = insert_key_index(batch, &ids.shape, &mut inputs)?;
    let first = if batch.has("decoder_input_ids") { "decoder_input_ids" } else { "labels" };
    let given = batch.ids(first)?;
    let target_length = given.shape[1];
    let shape = [rows, target_length];
    let labels = batch.optional("labels", &shape)?;
    let decoder_ids = match (batch.optional("decoder_input_ids", &shape)?, &labels) {
        (Some(ids), _) => ids,
        (None, Some(labels)) => shifted_right(c, labels),
        (None, None) => unreachable!("one of them was read"),
    };
    let target_tokens = batch.in_range("decoder_input_ids", &decoder_ids, c.vocab_size, "the vocabulary")?;
    inputs.insert("target_tokens", Input::Ints(target_tokens, 0));
    if let Some(labels) = &labels {
        insert_labels(batch, labels, c.vocab_size, "the vocabulary", &mut inputs)?;
    }
    Ok(Feed {
        step: Step { target_length, ..Step::new(rows, seq) },
        given: models::Given { key_index, labels: labels.is_some() },
        outputs: vec![("logits", vec![rows, target_length, c.vocab_size])],
        num_layers: c.num_layers + c.num_decoder_layers,
        model: Box::new(pretrained::t5(c)),
        inputs,
    })
}

/// What the decoder reads when only labels are given: the start, then all labels but the last, padding where they are
/// ignored. (A label out of range is named by the labels' own check, so it is padding here.)
fn shifted_right(c: &hub::T5, labels: &Ints) -> Ints {
    let pad = i64::from(c.tokens.pad.unwrap_or(0));
    let known = |v: i64| if (0..c.vocab_size as i64).contains(&v) { v } else { pad };
    let rows = labels.values.chunks_exact(labels.shape[1]);
    let start = i64::from(c.decoder_start);
    let values =
        rows.flat_map(|row| [start].into_iter().chain(row[..row.len() - 1].iter().map(|v| known(*v))));
    Ints { values: values.collect(), shape: labels.shape.clone() }
}

fn vit(c: &hub::Vit, batch: &Given) -> Result<Feed, TrainError> {
    batch.only(&["pixel_values", "labels"], "ViT")?;
    let (shape, pixels) = batch.reals("pixel_values")?;
    let [height, width] = c.image_size;
    let rows = shape.first().copied().unwrap_or_default();
    let expected = [rows, c.num_channels, height, width];
    if shape != expected {
        let problem = format!(
            "has shape {shape:?}; config.json makes it [batch, channels, height, width] = {expected:?}"
        );
        return Err(batch.refuse("pixel_values", &problem));
    }
    let model = pretrained::vit(c);
    let seq = model.num_patches + 1;
    let mut inputs = Inputs::new();
    let mut patches = Vec::with_capacity(rows * seq * model.patch);
    for image in pixels.chunks_exact(c.num_channels * c.image_size[0] * c.image_size[1]) {
        append_patches(c.image_size, c.patch_size, c.num_channels, image, &mut patches);
    }
    inputs.insert("patches", Input::Reals(patches));
    insert_places_of_patches(rows, seq, &mut inputs);
    let labels = batch.optional("labels", &[rows])?;
    if let Some(labels) = &labels {
        insert_labels(batch, labels, model.labels, "the labels", &mut inputs)?;
    }
    Ok(Feed {
        step: Step::new(rows, seq),
        given: models::Given { key_index: false, labels: labels.is_some() },
        outputs: vec![("logits", vec![rows, model.labels])],
        num_layers: c.num_layers,
        model: Box::new(model),
        inputs,
    })
}

fn fits(batch: &Given, seq: usize, max_positions: usize) -> Result<(), TrainError> {
    if seq <= max_positions {
        return Ok(());
    }
    let problem = format!(
        "has {seq} positions and the model {max_positions}; shorten the sequences to {max_positions}"
    );
    Err(batch.refuse("input_ids", &problem))
}

fn insert_tokens(
    batch: &Given,
    ids: &Ints,
    vocab_size: usize,
    inputs: &mut Inputs,
) -> Result<(), TrainError> {
    let tokens = batch.in_range("input_ids", ids, vocab_size, "the vocabulary")?;
    inputs.insert("tokens", Input::Ints(tokens, 0));
    Ok(())
}

/// The batch's positions, or 0, 1, 2...; and the last of them.
fn insert_positions(
    batch: &Given,
    shape: &[usize],
    limit: usize,
    inputs: &mut Inputs,
) -> Result<i32, TrainError> {
    let positions = match batch.optional("position_ids", shape)? {
        Some(positions) => batch.in_range("position_ids", &positions, limit, "the model's positions")?,
        None => count_up(shape[0], shape[1]),
    };
    let last = positions.iter().copied().max().unwrap_or(0);
    inputs.insert("positions", Input::Ints(positions, 0));
    Ok(last)
}

/// Positions that do not count up mean several sequences in one row to `transformers`, which then see nothing of each
/// other; unless there is a mask, which says what is seen.
fn refuse_packed(batch: &Given, shape: &[usize]) -> Result<(), TrainError> {
    let positions = match batch.optional("position_ids", shape)? {
        Some(positions) if !batch.has("attention_mask") => positions,
        _ => return Ok(()),
    };
    match positions.values.chunks_exact(shape[1]).position(|row| row.windows(2).any(|p| p[1] != p[0] + 1)) {
        Some(row) => {
            let problem = format!(
                "of row {row} do not count up by 1: without an `attention_mask` that means several sequences packed \
                 in one row, which is not supported; give each a row, or add an `attention_mask` if it is one sequence"
            );
            Err(batch.refuse("position_ids", &problem))
        }
        None => Ok(()),
    }
}

fn mask(batch: &Given, shape: &[usize]) -> Result<Option<Vec<i32>>, TrainError> {
    let mask = batch.optional("attention_mask", shape)?;
    mask.map(|mask| batch.in_range("attention_mask", &mask, 2, "2 values")).transpose()
}

/// The position of each key, -1 where the mask hides it; none if it hides none. Whether there is one.
fn insert_key_index(batch: &Given, shape: &[usize], inputs: &mut Inputs) -> Result<bool, TrainError> {
    let Some(mask) = mask(batch, shape)?.filter(|mask| mask.contains(&0)) else { return Ok(false) };
    let keys = mask.iter().enumerate().map(|(i, m)| if *m == 1 { (i % shape[1]) as i32 } else { -1 });
    inputs.insert("key_index", Input::Ints(keys.collect(), -1));
    Ok(true)
}

/// `select` with the weights of a mean over the tokens that the mask shows.
fn insert_mean(batch: &Given, shape: &[usize], inputs: &mut Inputs) -> Result<(), TrainError> {
    let mask = mask(batch, shape)?.unwrap_or_else(|| vec![1; shape[0] * shape[1]]);
    let mut weights = Vec::with_capacity(mask.len());
    for (row, mask) in mask.chunks_exact(shape[1]).enumerate() {
        let num = mask.iter().sum::<i32>();
        if num == 0 {
            let problem = format!("hides all of sequence {row}, which then has no embedding; show a token");
            return Err(batch.refuse("attention_mask", &problem));
        }
        weights.extend(mask.iter().map(|m| f64::from(*m) / f64::from(num)));
    }
    inputs.insert("select", Input::Reals(weights));
    Ok(())
}

fn insert_labels(
    batch: &Given,
    labels: &Ints,
    limit: usize,
    of: &str,
    inputs: &mut Inputs,
) -> Result<(), TrainError> {
    let (targets, weights) = batch.labels(labels, limit, of)?;
    if weights.iter().all(|w| *w == 0.0) {
        let problem = format!(
            "has no label that counts, so there is no mean loss; set some to a class instead of {IGNORED}"
        );
        return Err(batch.refuse("labels", &problem));
    }
    inputs.insert("targets", Input::Ints(targets, 0));
    inputs.insert("weights", Input::Reals(weights));
    Ok(())
}
