//! Generation: continues prompts with the model of a run or of a Hugging Face directory, in any layout, one token at a
//! time. Every rank picks the same tokens from the same scores.

mod beams;
mod choose;
mod options;
mod search;
mod session;
mod source;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::TrainError;
use crate::ranks;

pub use beams::EarlyStopping;
pub use options::GenerateOptions;
use session::{Extents, Session};
use source::Source;

/// A text that was written behind a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    /// Its tokens, with the one that ended it, if one did.
    pub tokens: Vec<u32>,
    /// Of beam search: the sum of the tokens' log probabilities, divided by their number to the power of the length
    /// penalty.
    pub score: Option<f64>,
}

/// What was written, and how fast.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// For each prompt its continuations, best first: one, or as many as were asked for.
    pub continuations: Vec<Vec<Continuation>>,
    /// Until the prompts were read and the first scores there.
    pub prefill_seconds: f64,
    /// From then on.
    pub decode_seconds: f64,
    /// Tokens that were written meanwhile, of all prompts.
    pub decoded_tokens: usize,
}

/// [`generate`] as text: for each prompt its continuations, without the end token.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Texts by prompt, best first, in the order of `generated`.
    pub texts: Vec<Vec<String>>,
    /// Their tokens, scores and times.
    pub generated: Generated,
}

/// Continues texts with the model of `from`: a run's directory, one of its checkpoints, or a Hugging Face directory.
///
/// # Errors
/// Options that exclude each other; a damaged or missing model; a layout that it does not admit; a prompt that is empty
/// where the tokenizer has no start, or longer than the model reads.
pub fn generate(from: &Path, options: &GenerateOptions) -> Result<Written, TrainError> {
    options.check()?;
    let source = Source::open(from, options)?;
    let prompts =
        options.prompts.iter().map(|prompt| source.encode(prompt)).collect::<Result<Vec<_>, _>>()?;
    let generated = write(&source, &prompts, options)?;
    let decode = |c: &Continuation| source.decode(&c.tokens, options);
    let texts = generated.continuations.iter().map(|all| all.iter().map(decode).collect());
    Ok(Written { texts: texts.collect::<Result<_, _>>()?, generated })
}

/// [`generate`] from tokens to tokens, for models without a tokenizer; `options.prompts` is not looked at. Prompts of an
/// encoder-decoder have their end token already.
///
/// # Errors
/// As [`generate`], and tokens beyond the vocabulary.
pub fn generate_tokens(
    from: &Path,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Result<Generated, TrainError> {
    options.check()?;
    write(&Source::open(from, options)?, prompts, options)
}

/// A short sample from the start of a text, in the layout of the run; none if nothing can stand at the start.
pub(crate) fn sample(checkpoint: &Path, tokens: usize, seed: u64) -> Result<Option<String>, TrainError> {
    let options = GenerateOptions {
        prompts: vec![String::new()],
        tokens,
        temperature: 0.8,
        top_k: Some(50),
        seed,
        ..GenerateOptions::default()
    };
    let source = Source::open(checkpoint, &options)?;
    if !source.starts_by_itself() {
        return Ok(None);
    }
    let generated = write(&source, &[source.encode("")?], &options)?;
    Ok(Some(source.decode(&generated.continuations[0][0].tokens, &options)?))
}

fn write(source: &Source, prompts: &[Vec<u32>], options: &GenerateOptions) -> Result<Generated, TrainError> {
    source.check(prompts, options)?;
    if options.tokens == 0 || prompts.is_empty() {
        let nothing = Continuation { tokens: vec![], score: None };
        let continuations = prompts.iter().map(|_| vec![nothing.clone(); options.best]).collect();
        return Ok(Generated { continuations, prefill_seconds: 0.0, decode_seconds: 0.0, decoded_tokens: 0 });
    }
    let extents = Extents::new(source, prompts, options);
    let steps = extents.steps(source)?;
    steps.check_memory(&source.config)?;
    let deadline = Duration::from_secs_f64(source.config.parallel.deadline_seconds);
    let ranks = ranks::run(steps.world_size(), deadline, |world| {
        let executor = steps.executor(world, &source.config)?;
        let mut session = Session::new(source.load(executor)?, source, &extents);
        let start = Instant::now();
        let mut prefilled = start;
        let continuations = search::search(&mut session, prompts, options, &source.ends(options), || {
            prefilled = Instant::now();
        })?;
        let written: usize = continuations.iter().flatten().map(|c: &Continuation| c.tokens.len()).sum();
        Ok(Generated {
            continuations,
            prefill_seconds: (prefilled - start).as_secs_f64(),
            decode_seconds: prefilled.elapsed().as_secs_f64(),
            // The first token of each follows from the prompt alone.
            decoded_tokens: written.saturating_sub(prompts.len() * options.best),
        })
    })?;
    Ok(ranks.into_iter().next().expect("a world has a rank"))
}
