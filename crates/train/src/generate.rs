//! Generation: loads a checkpoint in any layout and continues a prompt, one token at a time. Every rank picks the same
//! token from the same logits.

use std::path::Path;
use std::time::Duration;

use data::Tokenizer;
use mesh::{Axis, Tile};
use plan::Chooser;
use runtime::{Batch, Destination, Executor, RuntimeError, StepInput};

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::TrainError;
use crate::{assemble, ranks, saving};

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Text to continue.
    pub prompt: String,
    /// Tokens to write at most.
    pub tokens: usize,
    /// 0 is greedy; above, logits are divided by it.
    pub temperature: f64,
    /// Only the most likely tokens are drawn from.
    pub top_k: Option<usize>,
    /// Seed of the draw.
    pub seed: u64,
    /// Layout, instead of the one that trained it: `tp=2,pp=2`.
    pub mesh: Option<String>,
}

/// Continues a prompt with the model of a checkpoint (a run's directory or one of its checkpoints); returns the
/// continuation. It stops before the end-of-text token.
///
/// # Errors
/// A damaged checkpoint, a layout that the model does not admit, an empty prompt where the tokenizer has no start.
pub fn generate(checkpoint: &Path, options: &GenerateOptions) -> Result<String, TrainError> {
    let written = continuation(checkpoint, options)?;
    written.ok_or_else(|| {
        let remedy = "give some text: this tokenizer has neither a start nor an end token".to_owned();
        TrainError::Missing { key: "--prompt", remedy }
    })
}

/// What the model writes; none if there is nothing to continue, neither a prompt nor a start token.
fn continuation(checkpoint: &Path, options: &GenerateOptions) -> Result<Option<String>, TrainError> {
    let checkpoint = Checkpoint::open_verified(checkpoint)?;
    let (mut config, tokenizer) = saving::carried(&checkpoint)?;
    if let Some(mesh) = &options.mesh {
        config = config.with_layout(mesh)?;
    }
    let mut prompt: Vec<u32> = tokenizer.start_id().into_iter().collect();
    prompt.extend(tokenizer.encode(&options.prompt)?);
    if prompt.is_empty() {
        prompt.extend(tokenizer.end_id()); // behind the end of a document another one starts
    }
    if prompt.is_empty() {
        return Ok(None);
    }
    let written = write(&checkpoint, &config, &tokenizer, &prompt, options)?;
    Ok(Some(tokenizer.decode(&written)?))
}

/// A short sample from the start of a text, in the layout of the run; none if nothing can stand at the start.
pub(crate) fn sample(checkpoint: &Path, tokens: usize, seed: u64) -> Result<Option<String>, TrainError> {
    let options =
        GenerateOptions { tokens, temperature: 0.8, top_k: Some(50), seed, ..GenerateOptions::default() };
    continuation(checkpoint, &options)
}

fn write(
    checkpoint: &Checkpoint,
    config: &Config,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<u32>, TrainError> {
    let decoder = assemble::decoder(config, Some(tokenizer.vocab_size()))?;
    checkpoint.check_model(&saving::model(&decoder))?;
    let stepper = assemble::generation(config, &decoder)?;
    let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
    let ranks = ranks::run(stepper.plan.mesh.world_size(), deadline, |world| {
        let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(Axis::Pp);
        let programs = vec![stepper.shared(pipeline_rank, &Chooser::Policy, false)?];
        let mut executor = Executor::new(world, programs, assemble::cpu(config)?, None)?;
        saving::load(&mut executor, checkpoint)?;
        let mut window = Window {
            tokens: prompt.to_vec(),
            length: config.data.sequence_length,
            vocab: decoder.vocab_size,
        };
        let mut written = Vec::new();
        for step in 0..options.tokens as u64 {
            executor.run(0, &mut window, &StepInput { seed: options.seed, step, scalars: &[] })?;
            let (tile, logits) = executor.output(0, "logits")?;
            let columns = tile.dims.last().map_or(0, |d| d.size);
            let next = pick(&logits[..columns.min(logits.len())], options, step);
            if Some(next) == tokenizer.end_id() {
                break;
            }
            written.push(next);
            window.tokens.push(next);
        }
        Ok(written)
    })?;
    Ok(ranks.into_iter().next().unwrap_or_default())
}

/// The next token from logits, by the options. Ties go to the smaller id, so that every layout picks the same.
fn pick(logits: &[f64], options: &GenerateOptions, step: u64) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if options.temperature <= 0.0 {
        return order[0] as u32;
    }
    order.truncate(options.top_k.unwrap_or(order.len()).max(1));
    let largest = logits[order[0]];
    let weights: Vec<f64> =
        order.iter().map(|i| ((logits[*i] - largest) / options.temperature).exp()).collect();
    let mut left = draw(options.seed, step) * weights.iter().sum::<f64>();
    for (i, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *i as u32;
        }
    }
    order[order.len() - 1] as u32
}

fn draw(seed: u64, step: u64) -> f64 {
    kernels::Key::new(seed, step, "generate").uniform(0)
}

/// The last tokens of a text, at the front of one sequence.
struct Window {
    tokens: Vec<u32>,
    length: usize,
    vocab: usize,
}

impl Batch for Window {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        let [rows, columns] = &tile.dims[..] else {
            return Err(RuntimeError::Batch(format!("`{input}` is not [batch, seq]")));
        };
        let start = self.tokens.len().saturating_sub(self.length);
        let window = &self.tokens[start..];
        if let Some(token) = window.iter().find(|t| **t as usize >= self.vocab) {
            return Err(RuntimeError::Batch(format!(
                "token {token} is beyond the vocabulary of {}",
                self.vocab
            )));
        }
        let at = |i: usize, j: usize| {
            let (row, column) = (rows.global(i), columns.global(j));
            (row < rows.size && column < window.len()).then_some(column)
        };
        let width = columns.extent();
        let places = (0..rows.extent()).flat_map(|i| (0..width).map(move |j| (i, j)));
        match to {
            Destination::I32(to) => {
                for ((i, j), to) in places.zip(to) {
                    *to = at(i, j)
                        .map_or(0, |c| if input == "positions" { c as i32 } else { window[c] as i32 });
                }
            }
            Destination::F32(to) => {
                for ((i, j), to) in places.zip(to) {
                    *to = f32::from(u8::from(at(i, j) == Some(window.len() - 1)));
                }
            }
            Destination::F64(to) => {
                for ((i, j), to) in places.zip(to) {
                    *to = f64::from(u8::from(at(i, j) == Some(window.len() - 1)));
                }
            }
            Destination::BF16(_) | Destination::F16(_) => {
                return Err(RuntimeError::Batch(format!("`{input}` is no input of a text")));
            }
        }
        Ok(())
    }
}
