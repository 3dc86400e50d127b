//! The model that writes, from a run or from a Hugging Face directory: its shape, its tokens, and its weights.

use std::path::Path;

use data::{Framing, Tokenizer};
use hub::{Directory, Family};
use models::{Decoder, Dropout, Generator};
use runtime::Executor;

use super::options::GenerateOptions;
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Parallel, Precision, parse_layout};
use crate::error::TrainError;
use crate::{assemble, pretrained, saving};

/// What kind of model it is.
pub(super) enum Shape {
    /// Goes on with the prompt; reads at most `window` tokens.
    Decoder { model: Decoder, window: usize },
    /// Writes another text than the prompt, behind the token `start`.
    EncoderDecoder { model: hub::T5, start: u32 },
}

enum Weights {
    Run(Checkpoint),
    Directory(Directory),
}

/// A model, ready to be divided.
pub(super) struct Source {
    pub shape: Shape,
    /// Layout and precision.
    pub config: Config,
    vocab_size: usize,
    tokenizer: Option<Tokenizer>,
    ends: Vec<u32>,
    weights: Weights,
    origin: String,
}

impl Source {
    /// Opens a run's directory, one of its checkpoints, or a Hugging Face directory.
    pub fn open(from: &Path, options: &GenerateOptions) -> Result<Source, TrainError> {
        match from.join("config.json").is_file() {
            true => Source::of_directory(from, options),
            false => Source::of_run(from, options),
        }
    }

    fn of_run(from: &Path, options: &GenerateOptions) -> Result<Source, TrainError> {
        let checkpoint = Checkpoint::open_verified(from)?;
        let (config, tokenizer) = saving::carried(&checkpoint)?;
        let config = configured(config, options)?;
        let built = assemble::model(&config, Some(tokenizer.vocab_size()))?;
        checkpoint.check_model(&built.saved)?;
        let shape = match built.description.as_ref().map(|description| &description.family) {
            None => Shape::Decoder {
                model: assemble::decoder(&config, Some(tokenizer.vocab_size()))?,
                window: config.data.sequence_length,
            },
            Some(Family::T5(c)) => Shape::EncoderDecoder { model: c.clone(), start: c.decoder_start },
            Some(other) => return Err(writes_nothing(from, other)),
        };
        Ok(Source {
            vocab_size: built.vocab_size,
            shape,
            config,
            ends: tokenizer.end_id().into_iter().collect(),
            tokenizer: Some(tokenizer),
            weights: Weights::Run(checkpoint),
            origin: from.display().to_string(),
        })
    }

    fn of_directory(from: &Path, options: &GenerateOptions) -> Result<Source, TrainError> {
        let directory = Directory::open(from, None)?;
        if let Some(name) = directory.bind()?.report().new.first() {
            return Err(TrainError::File {
                path: from.display().to_string(),
                problem: format!("has no `{name}`, so it is no whole model for {}", directory.task()),
            });
        }
        let mut config = Config::plain("generate");
        config.train.precision = Precision::F32;
        let decoder = |window: usize| -> Result<Shape, TrainError> {
            Ok(Shape::Decoder { model: pretrained::decoder(directory.config(), window)?, window })
        };
        let (shape, num_layers, vocab_size) = match &directory.config().family {
            Family::Gpt2(c) => (decoder(c.max_positions)?, c.num_layers, c.vocab_size),
            Family::Llama(c) => (decoder(c.max_positions)?, c.num_layers, c.vocab_size),
            Family::T5(c) => {
                let shape = Shape::EncoderDecoder { model: c.clone(), start: c.decoder_start };
                (shape, c.num_layers + c.num_decoder_layers, c.vocab_size)
            }
            other => return Err(writes_nothing(directory.config().path(), other)),
        };
        config.model.num_layers = num_layers;
        let config = configured(config, options)?;
        let tokenizer = directory.tokenizer().map(|path| Tokenizer::load(&path)).transpose()?;
        let tokenizer = tokenizer.map(Tokenizer::reading_special_names);
        if let Some(tokenizer) = tokenizer.as_ref().filter(|t| t.vocab_size() > vocab_size) {
            let cached = tokenizer.vocab_size();
            return Err(data::DataError::VocabMismatch { cached, vocab_size }.into());
        }
        Ok(Source {
            ends: directory.ends()?,
            shape,
            config,
            vocab_size,
            tokenizer,
            weights: Weights::Directory(directory),
            origin: from.display().to_string(),
        })
    }

    /// Fills an executor's states.
    pub fn load(&self, mut executor: Executor) -> Result<Executor, TrainError> {
        match &self.weights {
            Weights::Run(checkpoint) => saving::load(&mut executor, checkpoint)?,
            Weights::Directory(directory) => pretrained::load(&mut executor, &directory.bind()?)?,
        }
        Ok(executor)
    }

    /// The model as graph text, for texts of `length` tokens: how far rotary frequencies stretch may depend on it.
    ///
    /// # Errors
    /// Those of [`pretrained::decoder`].
    pub fn model(&self, length: usize) -> Result<Box<dyn Generator>, TrainError> {
        Ok(match (&self.shape, &self.weights) {
            (Shape::EncoderDecoder { model, .. }, _) => Box::new(pretrained::t5(model)),
            (Shape::Decoder { .. }, Weights::Directory(directory)) => {
                Box::new(pretrained::decoder(directory.config(), length)?)
            }
            (Shape::Decoder { model, .. }, Weights::Run(_)) => {
                Box::new(Decoder { dropout: Dropout::NONE, ..model.clone() })
            }
        })
    }

    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Tokens of which each ends a text.
    pub fn ends(&self, options: &GenerateOptions) -> Vec<u32> {
        options.ends.clone().unwrap_or_else(|| self.ends.clone())
    }

    fn tokenizer(&self) -> Result<&Tokenizer, TrainError> {
        self.tokenizer.as_ref().ok_or_else(|| TrainError::File {
            path: self.origin.clone(),
            problem: "has no tokenizer.json, without which text is no tokens; add the model's".to_owned(),
        })
    }

    /// Whether something can stand before the first word of a text.
    pub fn starts_by_itself(&self) -> bool {
        self.encode("").is_ok()
    }

    /// The tokens of a prompt, as the model expects them.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>, TrainError> {
        let tokenizer = self.tokenizer()?;
        if let Shape::EncoderDecoder { .. } = self.shape {
            // As in training.
            let framed = Framing::new(tokenizer, usize::MAX, "--prompt", false)?.text(prompt)?;
            return Ok(framed.ids.into_iter().map(|id| id as u32).collect());
        }
        let mut tokens = match &self.weights {
            // Documents begin so in training.
            Weights::Run(_) => tokenizer.start_id().into_iter().chain(tokenizer.encode(prompt)?).collect(),
            Weights::Directory(_) => tokenizer.encode_framed(prompt)?,
        };
        if tokens.is_empty() {
            tokens.extend(tokenizer.start_id().or(tokenizer.end_id())); // behind the end of one another one starts
        }
        if tokens.is_empty() {
            let remedy = "give some text: this tokenizer has neither a start nor an end token".to_owned();
            return Err(TrainError::Missing { key: "--prompt", remedy });
        }
        Ok(tokens)
    }

    /// The text of tokens, without the one that ended it.
    pub fn decode(&self, tokens: &[u32], options: &GenerateOptions) -> Result<String, TrainError> {
        let ends = self.ends(options);
        let text = match tokens.split_last() {
            Some((last, text)) if ends.contains(last) => text,
            _ => tokens,
        };
        // A model may have more rows than its tokenizer has tokens; those stand for nothing.
        let tokenizer = self.tokenizer()?;
        let known: Vec<u32> =
            text.iter().copied().filter(|t| (*t as usize) < tokenizer.vocab_size()).collect();
        Ok(tokenizer.decode(&known)?)
    }

    /// Refuses prompts and options that this model cannot serve.
    pub fn check(&self, prompts: &[Vec<u32>], options: &GenerateOptions) -> Result<(), TrainError> {
        let refuse = |place: String, problem: String| Err(TrainError::Generate { place, problem });
        for (i, prompt) in prompts.iter().enumerate() {
            let place = || format!("prompt {}", i + 1);
            if prompt.is_empty() {
                return refuse(place(), "it has no tokens; give some text".to_owned());
            }
            if let Some(token) = prompt.iter().find(|t| **t as usize >= self.vocab_size) {
                return refuse(
                    place(),
                    format!("token {token} is beyond the vocabulary of {}", self.vocab_size),
                );
            }
            let Shape::Decoder { window, .. } = self.shape else { continue };
            let length = prompt.len();
            if length > window {
                let problem = format!(
                    "it has {length} tokens, and the model reads {window} positions; shorten it to {window} tokens"
                );
                return refuse(place(), problem);
            }
            if options.beams > 1 && length + options.tokens > window + 1 {
                let problem = format!(
                    "beams need all tokens in the model's {window} positions, and prompt {} has {length}; give --tokens \
                     {} at most, or leave --beams out",
                    i + 1,
                    window + 1 - length
                );
                return refuse(
                    format!("--tokens {} with --beams {}", options.tokens, options.beams),
                    problem,
                );
            }
        }
        let ends = self.ends(options);
        let candidates = (1 + ends.len()).max(2);
        if options.beams > 1 && candidates * options.beams > self.vocab_size {
            let most = self.vocab_size / candidates;
            let problem =
                format!("a vocabulary of {} has candidates for {most} beams at most", self.vocab_size);
            return refuse(format!("--beams {}", options.beams), problem);
        }
        if options.beams > 1 && ends.is_empty() && options.early_stopping != super::EarlyStopping::Estimate {
            let problem =
                "no text can end before its last token: the model has no end token (or it is ignored); \
                           leave it out"
                    .to_owned();
            return refuse("--early-stopping".to_owned(), problem);
        }
        Ok(())
    }
}

fn writes_nothing(path: &Path, family: &Family) -> TrainError {
    TrainError::File {
        path: path.display().to_string(),
        problem: format!("`model_type` = \"{}\" writes no text: gpt2, llama and t5 do", family.model_type()),
    }
}

/// The configuration in the layout and precision that were asked for. What a training step alone has, its batch,
/// microbatches and their schedule, is in no layout's way.
fn configured(mut config: Config, options: &GenerateOptions) -> Result<Config, TrainError> {
    if let Some(precision) = options.precision {
        config.train.precision = precision;
    }
    let Some(mesh) = &options.mesh else { return Ok(config) };
    let Parallel { num_microbatches, schedule, chunks, .. } = Parallel::default();
    config.train.batch = config.train.batch.max(parse_layout(mesh, &config.parallel)?.mesh.dp);
    config.parallel = Parallel { num_microbatches, schedule, chunks, ..config.parallel };
    Ok(config.with_layout(mesh)?)
}
