//! From a configuration to graphs, plans and Programs. Pure: nothing is opened or allocated here.

use std::sync::Arc;

use graph::{Graph, Layers, Recompute};
use memory::DType;
use models::{Decoder, Dropout, Model, Step};
use plan::{Chooser, Parallel, Plan, Program};

use crate::config::{Config, Context, Family, InstructionSet, Optimizer, Precision, Task};
use crate::describe::{Facts, describe};
use crate::error::TrainError;
use crate::explain::Sizes;
use crate::length_buckets::{LengthBuckets, Lengths};
use crate::pretrained;

/// What one kind of step is: its graph and how it is divided.
#[derive(Debug, Clone)]
pub struct Stepper {
    /// The logical step.
    pub graph: Graph,
    /// Its division.
    pub plan: Plan,
}

impl Stepper {
    /// The Program of one pipeline rank.
    ///
    /// # Errors
    /// If lowering made a Program that the checker refuses.
    pub fn program(
        &self,
        pipeline_rank: usize,
        chooser: &Chooser,
        observe: bool,
    ) -> Result<Program, TrainError> {
        Ok(plan::lower(&self.graph, &self.plan, pipeline_rank, chooser, observe)?)
    }

    /// Plan and Program of one pipeline rank, as its executors share them.
    ///
    /// # Errors
    /// As [`Stepper::program`].
    pub fn shared(
        &self,
        pipeline_rank: usize,
        chooser: &Chooser,
        observe: bool,
    ) -> Result<(Arc<Plan>, Arc<Program>), TrainError> {
        let program = self.program(pipeline_rank, chooser, observe)?;
        Ok((Arc::new(self.plan.clone()), Arc::new(program)))
    }
}

/// The model that the configuration describes, with the vocabulary of its tokenizer if it names none.
///
/// # Errors
/// A shape that cannot be, or a missing vocabulary.
pub fn decoder(config: &Config, tokenizer_vocab: Option<usize>) -> Result<Decoder, TrainError> {
    let model = &config.model;
    if let Some(description) = pretrained::describe(config)? {
        let decoder = pretrained::decoder(&description, config.data.sequence_length)?;
        if let Some(tokens) = tokenizer_vocab.filter(|n| *n > decoder.vocab_size) {
            let vocab_size = decoder.vocab_size;
            return Err(data::DataError::VocabMismatch { cached: tokens, vocab_size }.into());
        }
        let dropout =
            config.model.dropout.map_or_else(|| pretrained::dropout(&description), Dropout::uniform);
        let decoder = Decoder { dropout, ..decoder };
        crate::explain::check_size(config, &Sizes::of_decoder(&decoder, config.data.sequence_length))?;
        return Ok(decoder);
    }
    let vocab_size = model.vocab_size.or(tokenizer_vocab).ok_or_else(|| TrainError::Missing {
        key: "model.vocab_size",
        remedy: "set it, or name a tokenizer in data.tokenizer or data.tokenizer_vocab".to_owned(),
    })?;
    let decoder = Decoder {
        family: match model.family {
            Family::Gpt2 => models::Family::Gpt2,
            Family::Llama => models::Family::Llama,
            other => {
                return Err(TrainError::Unsupported {
                    key: "model.family",
                    value: other.to_string(),
                    remedy: "this needs a decoder: gpt2 or llama",
                });
            }
        },
        num_layers: model.num_layers,
        embed: model.embed,
        num_heads: model.num_heads,
        num_kv_heads: model.resolved_num_kv_heads(),
        head_dim: model.resolved_head_dim(),
        mlp: model.resolved_mlp(),
        vocab_size,
        max_positions: config.resolved_max_positions(),
        tied: model.tied,
        dropout: Dropout::uniform(model.dropout.unwrap_or(0.0)),
        rope_theta: model.rope_theta,
        norm_eps: model.norm_eps,
        variant: models::Variant::default(),
    };
    decoder.check(config.data.sequence_length)?;
    crate::explain::check_size(config, &Sizes::of_decoder(&decoder, config.data.sequence_length))?;
    Ok(decoder)
}

/// The types that a run computes in.
struct Types {
    /// Of master weights, gradients, moments and statistics.
    float: DType,
    /// Of activations.
    narrow: DType,
    /// How the graph is rewritten for them.
    precision: models::Precision,
}

fn types(config: &Config) -> Types {
    let (float, narrow, precision) = match config.train.precision {
        Precision::F64 => (DType::F64, DType::F64, models::Precision::Uniform),
        Precision::F32 => (DType::F32, DType::F32, models::Precision::Uniform),
        Precision::Bf16 => (DType::F32, DType::BF16, models::Precision::Mixed),
        Precision::Fp16 => (DType::F32, DType::F16, models::Precision::Scaled),
    };
    Types { float, narrow, precision }
}

fn stepper(graph: Graph, parallel: &Parallel, types: &Types) -> Result<Stepper, TrainError> {
    let mut plan = Plan::new(&graph, parallel, types.float)?;
    plan.narrow = types.narrow;
    Ok(Stepper { graph, plan })
}

/// The instruction set that the configuration asks for.
///
/// # Errors
/// If this machine does not have it.
pub fn instruction_set(config: &Config) -> Result<kernels::InstructionSet, TrainError> {
    let wanted = match config.parallel.instruction_set {
        InstructionSet::Auto => return Ok(kernels::InstructionSet::best()),
        InstructionSet::Scalar => kernels::InstructionSet::Scalar,
        InstructionSet::Avx2 => kernels::InstructionSet::Avx2,
        InstructionSet::Avx512 => kernels::InstructionSet::Avx512,
        InstructionSet::Amx => kernels::InstructionSet::Amx,
    };
    if !wanted.is_available() {
        return Err(TrainError::Unsupported {
            key: "parallel.instruction_set",
            value: wanted.to_string(),
            remedy: "this machine does not have it; use \"auto\"",
        });
    }
    Ok(wanted)
}

/// The processor of one rank, to be made on the rank's thread.
///
/// # Errors
/// If the instruction set is not there or threads cannot be made.
pub fn cpu(config: &Config) -> Result<kernels::Cpu, TrainError> {
    let threads = config.parallel.threads_per_rank;
    kernels::Cpu::new(threads, instruction_set(config)?)
        .map_err(|error| TrainError::Threads { threads, error })
}

fn parallel(config: &Config) -> Result<Parallel, TrainError> {
    let p = &config.parallel;
    if p.exact {
        return Err(TrainError::Unsupported {
            key: "parallel.exact",
            value: "true".to_owned(),
            remedy: "leave it out; layouts agree within rounding",
        });
    }
    Ok(Parallel {
        dp: p.mesh.dp,
        cp: p.mesh.cp,
        tp: p.mesh.tp,
        pp: p.mesh.pp,
        ep: p.mesh.ep,
        sequence: p.sequence,
        striped: p.context == Context::Striped,
        zero: p.zero,
        schedule: p.schedule.clone(),
        given: p.read_schedule()?,
        chunks: p.chunks,
        num_microbatches: p.num_microbatches,
        bucket_bytes: p.bucket_bytes,
        logits_rows: p.logits_rows,
    })
}

fn recompute(config: &Config) -> Recompute {
    let parallel = &config.parallel;
    let stages = parallel.mesh.pp * parallel.chunks;
    let layers = match parallel.recompute_layers {
        0 => Layers::All,
        first => Layers::FirstOfEach { first, stages },
    };
    Recompute { operations: parallel.recompute, layers }
}

fn optimizer(config: &Config) -> models::Optimizer {
    let train = &config.train;
    models::Optimizer {
        kind: match train.optimizer {
            Optimizer::Sgd => models::OptimizerKind::Sgd,
            Optimizer::Adam => models::OptimizerKind::Adam,
            Optimizer::AdamW => models::OptimizerKind::AdamW,
        },
        betas: train.betas,
        eps: train.eps,
        momentum: train.momentum,
        nesterov: train.nesterov,
        weight_decay: train.weight_decay,
        clip_norm: train.clip_norm,
        post_validation: config.parallel.post_validation,
    }
}

/// The model that a configuration trains, with what its steps need to know.
pub struct Built {
    /// As it is trained.
    pub model: Box<dyn Model>,
    /// The same without dropout.
    pub evaluated: Box<dyn Model>,
    /// What it is, if it is no decoder.
    pub description: Option<hub::Config>,
    /// What a checkpoint says of it.
    pub saved: serde_json::Value,
    /// Positions of a sequence, of the longest.
    pub sequence_length: usize,
    /// What batches are padded to.
    pub buckets: LengthBuckets,
    /// Inputs beside those that it always reads.
    pub given: models::Given,
    /// Ids that its inputs and targets are below: tokens, or labels where it reads none.
    pub vocab_size: usize,
    /// Classes of its targets.
    pub num_classes: usize,
    /// Whether its rows are texts of pairs.
    pub is_of_pairs: bool,
}

/// The model of a configuration's task; `tokenizer_vocab` as for [`decoder`]. The labels of a classifier are those that
/// its description or `model.num_labels` says.
///
/// # Errors
/// As [`decoder`]; a task without a loss.
pub fn model(config: &Config, tokenizer_vocab: Option<usize>) -> Result<Built, TrainError> {
    if config.task == Task::CausalLm {
        let decoder = decoder(config, tokenizer_vocab)?;
        return Ok(Built {
            saved: crate::saving::model(&decoder),
            sequence_length: config.data.sequence_length,
            buckets: LengthBuckets::of(&config.data),
            given: models::Given { key_index: false, labels: true },
            vocab_size: decoder.vocab_size,
            num_classes: decoder.vocab_size,
            is_of_pairs: false,
            description: None,
            evaluated: Box::new(Decoder { dropout: Dropout::NONE, ..decoder.clone() }),
            model: Box::new(decoder),
        });
    }
    let description = match pretrained::describe(config)? {
        Some(description) => description,
        None => describe(config, &Facts { vocab_size: tokenizer_vocab, ..Facts::default() })?,
    };
    let built = of_description(config, description)?;
    match tokenizer_vocab.filter(|tokens| *tokens > built.vocab_size) {
        Some(cached) => Err(data::DataError::VocabMismatch { cached, vocab_size: built.vocab_size }.into()),
        None => Ok(built),
    }
}

/// The model of a description for a configuration's task.
fn of_description(config: &Config, description: hub::Config) -> Result<Built, TrainError> {
    let length = config.data.sequence_length;
    let num_labels = description.labels().map_or(0, |labels| labels.names.len());
    let too_long = |max_positions| models::ModelError::Positions { sequence_length: length, max_positions };
    let (sequence_length, vocab_size) = match &description.family {
        hub::Family::Bert(c) if length > c.max_positions => return Err(too_long(c.max_positions).into()),
        hub::Family::Bert(c) => (length, c.vocab_size),
        hub::Family::T5(c) => (length, c.vocab_size),
        hub::Family::Vit(c) => (c.num_patches() + 1, num_labels),
        other => unreachable!("{} is a decoder", other.model_type()),
    };
    crate::explain::check_size(config, &Sizes::of(&description, sequence_length))?;
    let dropout = config.model.dropout.map_or_else(|| pretrained::dropout(&description), Dropout::uniform);
    let build = |dropout| pretrained::model(&description, config, dropout);
    let saved = description.to_json(config.task, hub::StoredType::F32);
    Ok(Built {
        model: build(dropout)?,
        evaluated: build(Dropout::NONE)?,
        saved: serde_json::from_str(&saved).unwrap_or_default(),
        given: models::Given { key_index: config.task != Task::ImageClassify, labels: true },
        num_classes: match config.task {
            Task::Embed => config.sequences_per_step(),
            task if task.has_labels() => num_labels,
            _ => vocab_size,
        },
        is_of_pairs: config.task == Task::Embed,
        buckets: match config.task {
            Task::ImageClassify => LengthBuckets::single(sequence_length),
            _ => LengthBuckets::of(&config.data),
        },
        sequence_length,
        vocab_size,
        description: Some(description),
    })
}

/// A step on sequences of these lengths.
fn step(batch: usize, lengths: Lengths) -> Step {
    Step { batch, sequence_length: lengths.sequence, target_length: lengths.target }
}

/// The training step, on the longest sequences.
///
/// # Errors
/// Whatever cannot be divided as asked.
pub fn training(config: &Config, built: &Built) -> Result<Stepper, TrainError> {
    training_of(config, built, built.buckets.longest())
}

fn training_of(config: &Config, built: &Built, lengths: Lengths) -> Result<Stepper, TrainError> {
    let step = step(config.sequences_per_step(), lengths);
    let parallel = parallel(config)?;
    if parallel.num_microbatches * parallel.dp > step.batch {
        return Err(plan::PlanError::TooManyMicrobatches {
            num_microbatches: parallel.num_microbatches,
            dp: parallel.dp,
            batch: step.batch,
        }
        .into());
    }
    let types = types(config);
    let graph = models::train_step(
        &*built.model,
        &optimizer(config),
        step,
        &built.given,
        recompute(config),
        types.precision,
    )?;
    stepper(graph, &parallel, &types)
}

/// Examples of an evaluation step: as many as a training microbatch has.
pub fn evaluation_batch(config: &Config) -> usize {
    config.train.batch.div_ceil(config.parallel.num_microbatches)
}

/// The evaluation step: the loss without dropout, in one microbatch, and the scores of every class, or the embeddings, where
/// metrics need them.
fn evaluation_of(config: &Config, built: &Built, lengths: Lengths) -> Result<Stepper, TrainError> {
    let parallel = Parallel { num_microbatches: 1, ..parallel(config)? };
    let step = step(config.sequences_of(evaluation_batch(config)), lengths);
    let types = types(config);
    let with_output = config.task.has_labels() || config.task == Task::Embed;
    let graph = models::evaluate_step(&*built.evaluated, step, &built.given, with_output, types.precision);
    stepper(graph, &parallel, &types)
}

/// The step that gives the scores of the token behind each target so far.
fn next_token_of(config: &Config, c: &hub::T5, lengths: Lengths) -> Result<Stepper, TrainError> {
    let parallel = Parallel { num_microbatches: 1, ..parallel(config)? };
    let types = types(config);
    let step = step(evaluation_batch(config), lengths);
    stepper(models::next_token_step(&pretrained::t5(c), step, types.precision), &parallel, &types)
}

/// All steps that evaluation takes, one of each kind for each length bucket: the loss and, for text to text, the next
/// token of each target.
///
/// # Errors
/// As for training.
pub fn evaluation(config: &Config, built: &Built) -> Result<Vec<Stepper>, TrainError> {
    let losses = built.buckets.iter().map(|lengths| evaluation_of(config, built, lengths));
    let mut steps = losses.collect::<Result<Vec<_>, _>>()?;
    let family = built.description.as_ref().map(|description| &description.family);
    if let (Task::Seq2Seq, Some(hub::Family::T5(c))) = (config.task, family) {
        for lengths in built.buckets.iter() {
            steps.push(next_token_of(config, c, lengths)?);
        }
    }
    Ok(steps)
}

/// All steps that a run of the configuration takes: training for each length bucket, then those of [`evaluation`].
///
/// # Errors
/// As for training.
pub fn steps(config: &Config, built: &Built) -> Result<Vec<Stepper>, TrainError> {
    let training = built.buckets.iter().map(|lengths| training_of(config, built, lengths));
    let mut steps = training.collect::<Result<Vec<_>, _>>()?;
    steps.extend(evaluation(config, built)?);
    Ok(steps)
}

/// The step that only looks: gradients if the batch has labels, else logits alone.
///
/// # Errors
/// Whatever cannot be divided as asked.
pub fn gradients(
    config: &Config,
    model: &dyn models::Model,
    step: Step,
    given: &models::Given,
) -> Result<Stepper, TrainError> {
    let parallel = parallel(config)?;
    let types = types(config);
    let graph = match given.labels {
        true => models::gradients_step(model, step, given, types.precision)?,
        false => models::logits_step(model, step, given, types.precision),
    };
    stepper(graph, &parallel, &types)
}

/// A step of generation, in its `text` for a precision. Positions are written one by one and nothing is trained, so what
/// divides sequences, optimizer or microbatches is left out of the layout: ranks of cp take no part.
///
/// # Errors
/// As for training.
pub fn generation(
    config: &Config,
    text: impl FnOnce(models::Precision) -> Graph,
) -> Result<Stepper, TrainError> {
    let parallel = parallel(config)?;
    let parallel = Parallel {
        dp: parallel.dp,
        tp: parallel.tp,
        pp: parallel.pp,
        ep: parallel.ep,
        ..Parallel::default()
    };
    let types = types(config);
    stepper(text(types.precision), &parallel, &types)
}
