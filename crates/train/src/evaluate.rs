//! Evaluation of a checkpoint: its loss and its task's metrics on what was held out or on other files, beside what
//! counting alone reaches.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data::{Format, Split, TokenStore, Tokenizer};
use hub::Directory;
use mesh::Axis;
use plan::Chooser;
use runtime::Executor;
use serde::Serialize;

use crate::assemble::Built;
use crate::checkpoint::Checkpoint;
use crate::config::{self, Config};
use crate::corpus::{self, Corpus};
use crate::error::TrainError;
use crate::evaluator::{Evaluation, Evaluator};
use crate::tasks::{self, Recipe, Scores};
use crate::text::{self, Text};
use crate::{assemble, pretrained, ranks, saving};

pub use crate::tasks::Baseline;

/// What to evaluate on, and how.
#[derive(Debug, Clone, Default)]
pub struct EvaluateOptions {
    /// Files in the form of those that it was trained on; without any, what was held out.
    pub data: Vec<PathBuf>,
    /// IDX files with the labels of images in `data`.
    pub labels: Vec<PathBuf>,
    /// Layout, instead of the one that trained it.
    pub mesh: Option<String>,
    /// Of a Hugging Face directory: its task, by default what its `config.json` says.
    pub task: Option<String>,
    /// Of a Hugging Face directory: keys of a configuration, as `data.sequence_length=128`.
    pub settings: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluateReport {
    /// The task.
    pub task: String,
    /// Steps that the checkpoint was trained; none of a Hugging Face directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Examples, or of a running text its tokens.
    pub num_examples: u64,
    /// Nats per target.
    pub loss: f64,
    /// Of a running text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// The task's metrics.
    pub metrics: Scores,
    /// What counting alone reaches; none if the training data are not there to be counted.
    pub baseline: Option<Baseline>,
}

/// What is evaluated.
enum Weights {
    Run(Checkpoint),
    Directory(Directory),
}

impl Weights {
    /// Opens a run's directory, one of its checkpoints, or a Hugging Face directory: with the configuration that it has,
    /// or that the options make.
    fn open(
        from: &Path,
        options: &EvaluateOptions,
    ) -> Result<(Weights, Config, Option<Tokenizer>), TrainError> {
        if from.join("config.json").is_file() {
            return Weights::open_directory(from, options);
        }
        let only_of_directory = match options.task {
            Some(_) => Some("--task"),
            None => (!options.settings.is_empty()).then_some("--set"),
        };
        if let Some(key) = only_of_directory {
            let remedy = "a run has a configuration of its own; leave it out";
            return Err(TrainError::Unsupported { key, value: from.display().to_string(), remedy });
        }
        let checkpoint = Checkpoint::open_verified(from)?;
        let (mut config, tokenizer) = saving::carried_any(&checkpoint)?;
        if let Some(mesh) = &options.mesh {
            config = config.with_layout(mesh)?;
        }
        Ok((Weights::Run(checkpoint), config, tokenizer))
    }

    fn open_directory(
        from: &Path,
        options: &EvaluateOptions,
    ) -> Result<(Weights, Config, Option<Tokenizer>), TrainError> {
        if options.data.is_empty() {
            let remedy = "a Hugging Face directory held nothing out: name files with --data".to_owned();
            return Err(TrainError::Missing { key: "held-out data", remedy });
        }
        let task = options.task.as_deref().map(pretrained::task).transpose()?;
        let directory = Directory::open(from, task)?;
        if let Some(name) = directory.bind()?.report().new.first() {
            return Err(TrainError::File {
                path: from.display().to_string(),
                problem: format!(
                    "has no `{name}`, so it is no whole model for {}; fine-tune it, or name another --task",
                    directory.task()
                ),
            });
        }
        let most = match &directory.config().family {
            hub::Family::Bert(c) => c.max_positions,
            hub::Family::Gpt2(c) => c.max_positions,
            hub::Family::Llama(c) => c.max_positions,
            _ => usize::MAX,
        };
        let length = config::Data::default().sequence_length.min(most);
        let text = format!(
            "task = \"{}\"\n[data]\nsequence_length = {length}\nvalidation = 0.0\n[parallel]\n",
            directory.task()
        );
        let from = std::path::absolute(from).unwrap_or_else(|_| from.to_path_buf());
        let from = toml::Value::String(from.display().to_string());
        let settings = [vec![format!("model.from={from}")], options.settings.clone()].concat();
        let mesh = options.mesh.as_deref();
        let mut config = Config::from_bytes(Path::new("evaluate"), text.as_bytes(), &settings, mesh)?;
        let is_of_records = |path: &PathBuf| Format::of(path).is_ok_and(|format| format != Format::Text);
        if config.task == hub::Task::CausalLm && options.data.iter().any(is_of_records) {
            config.data.train = options.data.clone();
        }
        config.model.described = Some(directory.config().to_json(config.task, hub::StoredType::F32));
        let tokenizer = match &config.data.tokenizer {
            Some(path) => Some(Tokenizer::load(path)?),
            None => directory.tokenizer().map(|path| Tokenizer::load(&path)).transpose()?,
        };
        if tokenizer.is_none() && config.task != hub::Task::ImageClassify {
            return Err(TrainError::Missing {
                key: "tokenizer.json",
                remedy: "add it to the directory, or name one with --set data.tokenizer=FILE".to_owned(),
            });
        }
        Ok((Weights::Directory(directory), config, tokenizer))
    }

    fn load(&self, executor: &mut Executor) -> Result<(), TrainError> {
        match self {
            Weights::Run(checkpoint) => saving::load(executor, checkpoint),
            Weights::Directory(directory) => pretrained::load(executor, &directory.bind()?),
        }
    }
}

/// Evaluates a run's directory, one of its checkpoints, or a Hugging Face directory, in any layout.
///
/// # Errors
/// A damaged checkpoint, data that are not there or do not fit, a layout that the model does not admit.
pub fn evaluate(from: &Path, options: &EvaluateOptions) -> Result<EvaluateReport, TrainError> {
    let (weights, mut config, tokenizer) = Weights::open(from, options)?;
    let built = assemble::model(&config, tokenizer.as_ref().map(Tokenizer::vocab_size))?;
    if let Weights::Run(checkpoint) = &weights {
        checkpoint.check_model(&built.saved)?;
    }
    let opened = open(&mut config, &built, tokenizer, options)?;
    let nothing = || TrainError::Missing {
        key: "held-out data",
        remedy: "the run held nothing out: name files with --data".to_owned(),
    };
    let [_, num_examples] = opened.corpus.sizes();
    let steps = &assemble::evaluation(&config, &built)?;
    let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
    let found = ranks::run(steps[0].plan.mesh.world_size(), deadline, |world| {
        let pipeline_rank = steps[0].plan.mesh.coord(world.rank()).get(Axis::Pp);
        let programs = steps
            .iter()
            .map(|stepper| stepper.shared(pipeline_rank, &Chooser::Policy, false))
            .collect::<Result<Vec<_>, _>>()?;
        let mut executor = Executor::new(world, programs, assemble::cpu(&config)?, None)?;
        weights.load(&mut executor)?;
        let mut evaluator = Evaluator::new(&config, &built, &opened.corpus, 0).ok_or_else(nothing)?;
        evaluator.run(&mut executor)
    })?;
    let Evaluation { loss, bits_per_byte, score } = found.into_iter().next().unwrap_or_default();
    Ok(EvaluateReport {
        task: config.task.to_string(),
        step: match &weights {
            Weights::Run(checkpoint) => Some(checkpoint.manifest().step),
            Weights::Directory(_) => None,
        },
        num_examples,
        loss,
        bits_per_byte,
        metrics: score.metrics,
        baseline: score
            .baseline
            .filter(|_| opened.has_training || config.task == hub::Task::Embed)
            .or(opened.unigram),
    })
}

struct Opened {
    corpus: Corpus,
    /// Whether the examples to train on are there, so that a baseline is one.
    has_training: bool,
    /// The baseline of a running text.
    unigram: Option<Baseline>,
}

fn open(
    config: &mut Config,
    built: &Built,
    tokenizer: Option<Tokenizer>,
    options: &EvaluateOptions,
) -> Result<Opened, TrainError> {
    let cache = Path::new(text::CACHE_DIR);
    if config.task == hub::Task::CausalLm && config.data.train.is_empty() {
        let tokenizer = tokenizer.ok_or_else(|| TrainError::Missing {
            key: "the checkpoint's tokenizer",
            remedy: "use one that `phalanx train` wrote".to_owned(),
        })?;
        return open_text(config, tokenizer, options, cache);
    }
    let data = &mut config.data;
    let files = [&data.train, &data.text, &data.images, &data.labels];
    let files: Vec<&PathBuf> = files.into_iter().flatten().collect();
    let is_told = !files.is_empty() && data.train != options.data;
    let mut has_training = is_told && files.iter().all(|path| path.exists());
    if !options.data.is_empty() {
        let of_images = config.task == hub::Task::ImageClassify && data.train.is_empty();
        if !has_training {
            // Without the training files there is nothing to count; the store then has the other files alone.
            (data.train, data.text, data.images, data.labels) = (vec![], vec![], vec![], vec![]);
            match of_images {
                true => (data.images, data.labels) = (options.data.clone(), options.labels.clone()),
                false => data.train = options.data.clone(),
            }
        }
        match of_images {
            true => {
                (data.heldout_images, data.heldout_labels) = (options.data.clone(), options.labels.clone())
            }
            false => data.heldout = options.data.clone(),
        }
    } else {
        has_training = true;
    }
    let labels = built.description.as_ref().and_then(|description| description.labels());
    let labels = labels.map(|labels| labels.names.clone()).unwrap_or_default();
    let shape = corpus::shape(config, built.description.as_ref());
    let examples = tasks::open_heldout(config, tokenizer.as_ref(), &labels, shape, cache)?;
    let recipe = Recipe::new(config, built, tokenizer.as_ref())?;
    let corpus = Corpus::Examples { examples: Box::new(examples), recipe };
    Ok(Opened { corpus, has_training, unigram: None })
}

fn open_text(
    config: &mut Config,
    tokenizer: Tokenizer,
    options: &EvaluateOptions,
    cache: &Path,
) -> Result<Opened, TrainError> {
    if options.data.is_empty() {
        let text = text::open_with(config, tokenizer, cache)?;
        let counted = text.heldout.as_ref().map(|heldout| data::baselines(heldout.store())).transpose()?;
        let unigram = counted.map(|counted| Baseline {
            name: "each token's frequency",
            metrics: Scores::from([
                ("perplexity", counted.unigram.nats_per_token.exp()),
                ("bits_per_byte", counted.unigram.bits_per_byte),
            ]),
        });
        return Ok(Opened { corpus: Corpus::Text(Box::new(text)), has_training: true, unigram });
    }
    let store = Arc::new(TokenStore::open_or_build(&options.data, &tokenizer, cache, 0.0)?);
    let length = config.data.sequence_length;
    let all = match config.data.packing {
        // Text that is shorter than a sequence is one document of it.
        true if store.num_tokens(Split::Train) > length => {
            data::Dataset::packed(store, Split::Train, length)?
        }
        _ => data::Dataset::padded(store, Split::Train, length)?,
    };
    let all = Arc::new(all);
    let text = Text { tokenizer, train: all.clone(), heldout: Some(all) };
    Ok(Opened { corpus: Corpus::Text(Box::new(text)), has_training: false, unigram: None })
}
