//! The training loop: every rank runs it; rank 0 tells the caller what happened.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use comm::{Communicator, Job};
use hub::Directory;
use mesh::Axis;
use plan::{Chooser, Plan, Program};
use runtime::{Executor, Ran, RuntimeError};
use serde::Serialize;

use crate::assemble::{self, Built, Stepper};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, Precision, Task};
use crate::corpus::{Corpus, Source};
use crate::error::TrainError;
use crate::evaluator::{Evaluation, Evaluator};
#[cfg(feature = "faults")]
use crate::faults::{Fault, Following};
use crate::loss_scale::LossScale;
use crate::processes::{self, Processes};
use crate::run_dir::{MetricsWriter, RunDir};
use crate::saving::{self, Description};
use crate::tasks::{Baseline, Scores};
use crate::{explain, generate, pretrained, ranks};

mod attempt;

use attempt::Attempt;

/// Tokens of the sample that ends a run.
const SAMPLE_TOKENS: usize = 64;

/// Where a run starts from and writes to.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Directory of the run; a new one under `runs` if not given.
    pub out: Option<PathBuf>,
    /// Run, or one of its checkpoints, to continue. Without `out` the run goes on in its own directory.
    pub resume: Option<PathBuf>,
    /// File for metrics; `metrics.jsonl` in the run's directory if not given.
    pub metrics: Option<PathBuf>,
    /// Parent of new runs.
    pub runs: PathBuf,
    /// This process among several; without it all ranks are threads of this process.
    pub job: Option<Job>,
    /// What tells this binary from another version, compared between processes.
    pub binary: String,
    /// A fault of one rank, for tests.
    #[cfg(feature = "faults")]
    pub fault: Option<Fault>,
}

/// What happens during a run, as it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Everything is ready; the first step comes next.
    Prepared(&'a Prepared),
    /// A step is done.
    Step(&'a StepReport),
    /// What is held out was evaluated.
    Evaluation(&'a EvaluationReport),
    /// A checkpoint is complete.
    Checkpoint {
        /// Steps it holds.
        step: u64,
        /// Where it is.
        dir: &'a Path,
        /// How long it took.
        seconds: f64,
    },
}

/// A run about to start.
#[derive(Debug, Clone, Serialize)]
pub struct Prepared {
    /// Its directory.
    pub run_dir: PathBuf,
    /// Trained scalars.
    pub num_parameters: u64,
    /// Ranks.
    pub world_size: usize,
    /// The mesh, for people.
    pub layout: String,
    /// What each rank reserves.
    pub arena_bytes: Vec<u64>,
    /// The task.
    pub task: String,
    /// Tokens of a running text to train on; of another task, examples.
    pub train_tokens: u64,
    /// Tokens or examples held out.
    pub heldout_tokens: u64,
    /// Parameters that the directory of `model.from` lacks; they were drawn anew.
    pub new_parameters: Vec<String>,
    /// Token ids.
    pub vocab_size: usize,
    /// First step to run.
    pub first_step: u64,
    /// Last step.
    pub steps: u64,
    /// From the call until now.
    pub seconds: f64,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Mean over the step's unmasked tokens, in nats.
    pub loss: f64,
    /// Norm of the mean gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Unmasked tokens.
    pub tokens: u64,
    /// Of this step.
    pub tokens_per_second: f64,
    /// Wall-clock.
    pub step_seconds: f64,
    /// What the sequences of this step were padded to, where that differs from step to step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_length: Option<usize>,
    /// Factor on the loss in this step's backward, in half precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Whether gradients overflowed on some rank, so that the step changed nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

/// One evaluation of what is held out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationReport {
    /// Steps trained.
    pub step: u64,
    /// Nats per token, or per label.
    pub validation_loss: f64,
    /// The same per byte of a running text, in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// The task's metrics by name.
    #[serde(flatten)]
    pub metrics: Scores,
    /// What counting alone reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

impl EvaluationReport {
    fn new(step: u64, found: Evaluation) -> EvaluationReport {
        let Evaluation { loss, bits_per_byte, score } = found;
        let (metrics, baseline) = (score.metrics, score.baseline);
        EvaluationReport { step, validation_loss: loss, bits_per_byte, metrics, baseline }
    }
}

/// A finished run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Its directory.
    pub run_dir: PathBuf,
    /// Its last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Last evaluation.
    pub validation: Option<EvaluationReport>,
    /// A unigram model over the same tokens.
    pub unigram_bits_per_byte: Option<f64>,
    /// An interpolated bigram model over the same tokens.
    pub bigram_bits_per_byte: Option<f64>,
    /// Text that the model wrote.
    pub sample: Option<String>,
    /// Wall-clock of the steps, evaluations and checkpoints.
    pub seconds: f64,
    /// Peak resident memory of the process.
    pub peak_resident_bytes: Option<u64>,
    /// Sum of what the ranks reserved.
    pub arena_bytes_total: u64,
}

/// Everything the ranks of a run share.
struct Run<'a> {
    config: &'a Config,
    built: Built,
    training: Stepper,
    /// By pipeline rank: the training programs, one for each length bucket, then those of evaluation.
    programs: Programs,
    corpus: Corpus,
    resume: Option<Checkpoint>,
    /// Where first weights come from, if not from the seed.
    directory: Option<Directory>,
    run_dir: PathBuf,
    checkpoints: PathBuf,
    layout: String,
    /// Of rank 0, in its process.
    metrics: Mutex<Option<MetricsWriter>>,
    /// Whether other ranks are in other processes.
    in_processes: bool,
    observer: &'a (dyn Fn(Event<'_>) + Sync),
    #[cfg(feature = "faults")]
    following: Following,
}

/// What rank 0 brings home.
#[derive(Default)]
struct Outcome {
    last_loss: f64,
    validation: Option<EvaluationReport>,
    checkpoint: Option<PathBuf>,
    seconds: f64,
}

/// Trains as the configuration says, from its text to a checkpoint, telling `observer` what happens.
///
/// # Errors
/// The user's: text, settings, plans that do not fit, damaged checkpoints, a directory in use. A peer's: deadlines.
/// Nothing is created before everything that can be checked has been.
pub fn train(
    config: &Config,
    options: &RunOptions,
    observer: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Summary, TrainError> {
    let processes = options.job.as_ref().map(Processes::begin).transpose()?;
    let result = train_here(config, options, processes.as_ref(), observer);
    if let (Some(processes), Err(error)) = (&processes, &result) {
        processes.failed(error);
    }
    result
}

/// The part of this process, which is all of it unless there are several.
fn train_here(
    config: &Config,
    options: &RunOptions,
    processes: Option<&Processes<'_>>,
    observer: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Summary, TrainError> {
    let started = Instant::now();
    let is_first = processes.is_none_or(Processes::is_first);
    let resume = options.resume.as_deref().map(Checkpoint::open_verified).transpose()?;
    let directory = pretrained::open(config)?;
    let source = Source::open(config, directory.as_ref())?;
    let (config, directory) = source.complete(config, directory)?;
    let built = assemble::model(&config, source.tokenizer().map(data::Tokenizer::vocab_size))?;
    let config = &with_vocab(&config, &built);
    if let Some(checkpoint) = &resume {
        let (step, steps) = (checkpoint.manifest().step, config.train.steps as u64);
        if step >= steps {
            return Err(TrainError::Finished { dir: checkpoint.dir().display().to_string(), step, steps });
        }
        checkpoint.check_model(&built.saved)?;
        if let Some(tokenizer) = source.tokenizer() {
            checkpoint.check_tokenizer(&tokenizer.hash().to_string())?;
        }
    }
    assemble::instruction_set(config)?;
    let steps = assemble::steps(config, &built)?;
    let arena_bytes = explain::arena_bytes(config)?;
    if processes.is_none() {
        explain::check_memory(&arena_bytes)?;
    }
    let open = || source.corpus(config, &built);
    let corpus = match processes {
        Some(processes) => processes.first_before_others("text", open)?,
        None => open()?,
    };
    let programs = programs(&steps)?;
    let training = steps.into_iter().next().expect("training is a step");
    if let Some(processes) = processes {
        // Only together they know which ranks share this host's memory.
        let of_this_host = processes.agree(config, &options.binary, &programs, &corpus, &arena_bytes)?;
        explain::check_memory(&of_this_host)?;
    }
    let first_step = resume.as_ref().map_or(0, |c| c.manifest().step) + 1;
    if let Some(missing) = options.metrics.as_deref().and_then(missing_parent) {
        let problem =
            "no such directory: create it, or name a file for --metrics in one that exists".to_owned();
        return Err(TrainError::File { path: missing, problem });
    }
    let (held, metrics) = match is_first {
        true => {
            let (run_dir, metrics) = open_run(config, options, &corpus, first_step)?;
            (Some(run_dir), Some(metrics))
        }
        false => (None, None),
    };
    let run_dir = match processes {
        Some(processes) => processes.share_dir(held.as_ref().map(RunDir::path))?,
        None => held.as_ref().map(|run_dir| run_dir.path().to_path_buf()).unwrap_or_default(),
    };
    let prepared = Prepared {
        run_dir: run_dir.clone(),
        num_parameters: training.graph.num_parameters(),
        world_size: training.plan.mesh.world_size(),
        layout: config.parallel.mesh.to_string(),
        task: config.task.to_string(),
        train_tokens: corpus.sizes()[0],
        heldout_tokens: corpus.sizes()[1],
        new_parameters: match &directory {
            Some(directory) => directory.bind()?.report().new.clone(),
            None => Vec::new(),
        },
        vocab_size: built.vocab_size,
        first_step,
        steps: config.train.steps as u64,
        seconds: started.elapsed().as_secs_f64(),
        arena_bytes,
    };
    if is_first {
        observer(Event::Prepared(&prepared));
    }
    let run = Run {
        config,
        programs,
        built,
        training,
        corpus,
        resume,
        directory,
        checkpoints: RunDir::checkpoints_in(&run_dir),
        run_dir,
        layout: prepared.layout.clone(),
        metrics: Mutex::new(metrics),
        in_processes: processes.is_some(),
        observer,
        #[cfg(feature = "faults")]
        following: Following::new(options.fault.as_ref()),
    };
    #[cfg(feature = "faults")]
    if let (Some(fault), Some(job)) = (&options.fault, &options.job) {
        fault.before_connecting(job.ranks());
    }
    memory::release_freed();
    memory::keep_heap_small();
    let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
    let outcomes = match &options.job {
        Some(job) => ranks::run_in(job, deadline, |world| {
            if let Some(processes) = processes {
                processes.connected();
            }
            run.rank(world)
        })?,
        None => ranks::run(prepared.world_size, deadline, |world| run.rank(world))?,
    };
    let outcome = outcomes.into_iter().next().expect("there is a first rank");
    // Before baselines and the sample, which are no part of training.
    let peak_resident_bytes = memory::peak_resident_bytes();
    let heldout = match &run.corpus {
        Corpus::Text(text) if is_first => text.heldout.as_ref(),
        _ => None,
    };
    let baselines = heldout.map(|heldout| data::baselines(heldout.store())).transpose()?;
    let sample = match &outcome.checkpoint {
        Some(checkpoint) if is_first && config.task == Task::CausalLm => {
            generate::sample(checkpoint, SAMPLE_TOKENS, config.train.seed)?
        }
        _ => None,
    };
    Ok(Summary {
        run_dir: prepared.run_dir,
        checkpoint: outcome.checkpoint,
        last_loss: outcome.last_loss,
        validation: outcome.validation,
        unigram_bits_per_byte: baselines.map(|b| b.unigram.bits_per_byte),
        bigram_bits_per_byte: baselines.map(|b| b.bigram.bits_per_byte),
        sample,
        seconds: outcome.seconds,
        peak_resident_bytes,
        arena_bytes_total: prepared.arena_bytes.iter().sum(),
    })
}

/// Plan and Program of every pipeline rank, for each step of a run.
type Programs = Vec<Vec<(Arc<Plan>, Arc<Program>)>>;

fn programs(steps: &[Stepper]) -> Result<Programs, TrainError> {
    let programs: Programs = (0..steps[0].plan.mesh.size(Axis::Pp))
        .map(|rank| steps.iter().map(|s| s.shared(rank, &Chooser::Policy, false)).collect())
        .collect::<Result<_, TrainError>>()?;
    for (which, stepper) in steps.iter().enumerate() {
        let of_all_stages: Vec<Arc<Program>> = programs.iter().map(|p| p[which].1.clone()).collect();
        plan::check_world(&stepper.plan, &of_all_stages)?;
    }
    Ok(programs)
}

/// Takes the directory and the metrics file of a run, and writes beside them what describes it.
fn open_run(
    config: &Config,
    options: &RunOptions,
    corpus: &Corpus,
    first_step: u64,
) -> Result<(RunDir, MetricsWriter), TrainError> {
    let run_dir = match (&options.out, &options.resume) {
        (Some(out), _) => RunDir::create_at(out)?,
        (None, Some(resume)) => RunDir::open_for_resume(resume)?,
        (None, None) => RunDir::create(&options.runs, &config.name)?,
    };
    write_beside(run_dir.path(), "config.toml", &config.to_toml())?;
    if let Some(tokenizer) = corpus.tokenizer() {
        write_beside(run_dir.path(), "tokenizer.json", tokenizer.json())?;
    }
    let metrics_path = options.metrics.clone().unwrap_or_else(|| run_dir.metrics());
    let metrics = match first_step {
        1 => MetricsWriter::create(&metrics_path)?,
        _ => MetricsWriter::resume(&metrics_path, first_step - 1)?,
    };
    Ok((run_dir, metrics))
}

/// The directory that a file is to be written to, if it does not exist.
fn missing_parent(path: &Path) -> Option<String> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty())?;
    (!parent.is_dir()).then(|| parent.display().to_string())
}

/// The configuration with the vocabulary written out, as a checkpoint keeps it.
fn with_vocab(config: &Config, built: &Built) -> Config {
    let mut config = config.clone();
    if config.model.from.is_none() && config.task != Task::ImageClassify {
        config.model.vocab_size = Some(built.vocab_size);
        // A tokenizer whose texts have fewer tokens than it may learn has learnt all of them.
        config.data.tokenizer_vocab = config.data.tokenizer_vocab.map(|most| most.min(built.vocab_size));
    }
    config
}

fn write_beside(dir: &Path, name: &str, text: &str) -> Result<(), TrainError> {
    let path = dir.join(name);
    std::fs::write(&path, text).map_err(|e| TrainError::File {
        path: path.display().to_string(),
        problem: format!("cannot be written: {e}"),
    })
}

impl Run<'_> {
    fn rank(&self, world: Box<dyn Communicator>) -> Result<Outcome, TrainError> {
        let pipeline_rank = self.training.plan.mesh.coord(world.rank()).get(Axis::Pp);
        let programs = self.programs[pipeline_rank].clone();
        #[cfg(feature = "faults")]
        let world = self.following.world(world);
        let mut executor = Executor::new(world, programs, assemble::cpu(self.config)?, None)?;
        match &self.resume {
            Some(checkpoint) => saving::load(&mut executor, checkpoint)?,
            None => {
                executor.initialise(&self.training.graph, self.config.train.seed)?;
                if let Some(directory) = &self.directory {
                    pretrained::load(&mut executor, &directory.bind()?)?;
                }
            }
        }
        // Once all have their tables, what making them took goes back.
        executor.world().barrier().map_err(RuntimeError::from)?;
        if executor.rank() == 0 {
            memory::release_freed();
        }
        let outcome = self.steps(&mut executor);
        if outcome.is_err() && self.in_processes {
            processes::write_flight_record(&self.run_dir, executor.world());
        }
        outcome
    }

    fn steps(&self, executor: &mut Executor) -> Result<Outcome, TrainError> {
        let train = &self.config.train;
        let started = Instant::now();
        let order = self.corpus.order(self.config)?;
        let mut batch = self.corpus.training(self.config);
        let mut evaluator =
            Evaluator::new(self.config, &self.built, &self.corpus, self.built.buckets.num_buckets());
        let (first, mut position) = match &self.resume {
            Some(checkpoint) => (checkpoint.manifest().step + 1, checkpoint.manifest().data_position),
            None => (1, 0),
        };
        let last = train.steps as u64;
        let mut loss_scale = self.loss_scale()?;
        let mut outcome = Outcome::default();
        // A step that ran, of which the next one shows whether its update stands.
        let mut open: Option<Attempt> = None;
        for step in first..=last {
            batch.draw(&order, position, train.batch, train.seed, step);
            if let Some(before) = open.take_if(|before| before.bucket != batch.bucket()) {
                // Its results lie where this step's program has its own.
                executor.settle()?;
                loss_scale = self.close(executor, before, &mut outcome)?;
            }
            let (attempt, ran) = loop {
                let (attempt, ran) = self.attempt(executor, &mut batch, step, loss_scale)?;
                if ran != Ran::Again {
                    break (attempt, ran);
                }
                let before = open.take().expect("a step was open");
                loss_scale = self.close(executor, before, &mut outcome)?;
            };
            if let Some(before) = open.take() {
                self.close(executor, before, &mut outcome)?;
            }
            position += train.batch as u64;
            let due = |every: usize| every > 0 && step % every as u64 == 0;
            let saves = due(train.checkpoint_every) || step == last;
            let evaluates = evaluator.is_some() && (due(train.eval_every) || step == last);
            if saves || evaluates {
                executor.settle()?;
            } else if ran == Ran::Ahead {
                loss_scale = attempt.if_it_stands();
                open = Some(attempt);
                continue;
            }
            loss_scale = self.close(executor, attempt, &mut outcome)?;
            if let Some(evaluator) = evaluator.as_mut().filter(|_| evaluates) {
                let report = EvaluationReport::new(step, evaluator.run(executor)?);
                self.report(executor, Event::Evaluation(&report), &report)?;
                outcome.validation = Some(report);
            }
            if saves {
                outcome.checkpoint = Some(self.checkpoint(executor, step, position, loss_scale)?);
            }
        }
        outcome.seconds = started.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Where loss scaling stands when the run starts; none in precisions that need none.
    fn loss_scale(&self) -> Result<Option<LossScale>, TrainError> {
        if self.config.train.precision != Precision::Fp16 {
            return Ok(None);
        }
        let carried = self.resume.as_ref().map(saving::loss_scale).transpose()?.flatten();
        Ok(Some(carried.unwrap_or_default()))
    }

    fn report(&self, executor: &Executor, event: Event<'_>, line: &impl Serialize) -> Result<(), TrainError> {
        if executor.rank() == 0 {
            if let Some(metrics) = &mut *self.metrics.lock().expect("only rank 0 locks it") {
                metrics.write(line)?;
            }
            (self.observer)(event);
        }
        Ok(())
    }

    fn checkpoint(
        &self,
        executor: &Executor,
        step: u64,
        position: u64,
        loss_scale: Option<LossScale>,
    ) -> Result<PathBuf, TrainError> {
        let started = Instant::now();
        let about = Description {
            config: self.config,
            model: &self.built.saved,
            tokenizer: self.corpus.tokenizer(),
            layout: self.layout.clone(),
            loss_scale,
        };
        let dir = saving::save(executor, &self.checkpoints, step, position, &about)?;
        memory::release_freed();
        if executor.rank() == 0 {
            let seconds = started.elapsed().as_secs_f64();
            (self.observer)(Event::Checkpoint { step, dir: &dir, seconds });
        }
        Ok(dir)
    }
}
