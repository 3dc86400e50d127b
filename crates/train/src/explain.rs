//! What a configuration would do, worked out without doing it: bytes of every rank's arena, communication of a step,
//! placements of parameters. Pure arithmetic on Programs; nothing is allocated and, with `model.vocab_size` given, no
//! file is opened.

mod communication;
mod listing;
pub(crate) mod recompute;
mod table;

use std::collections::BTreeMap;

use graph::{Dim, Graph, StateKind};
use hub::Family;
use memory::DType;
use mesh::Axis;
use models::Decoder;
use plan::{Chooser, Layout, Plan, Program, StateHome};
use runtime::RankMemory;
use serde::Serialize;

use crate::assemble::{self, Stepper};
use crate::config::{Config, Task};
use crate::corpus;
use crate::error::TrainError;
use crate::length_buckets::LengthBuckets;

pub use communication::Communication;
pub use listing::{StageListing, listing};
pub use recompute::Recomputed;

/// More layers than this are a typo, and would be a graph of millions of nodes.
const MAX_LAYERS: usize = 1 << 16;
/// More sequences or positions than this are a typo, and would be tables of as many entries.
const MAX_EXTENT: usize = 1 << 26;
/// Beyond this many bytes, sums of sizes might leave 64 bits.
const MAX_TOTAL_BYTES: u128 = 1 << 62;

/// What a configuration would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The configuration's name.
    pub name: String,
    /// Axes above 1, as in `--mesh`.
    pub mesh: String,
    /// Number of ranks.
    pub world_size: usize,
    /// Number of trained scalars.
    pub num_parameters: u64,
    /// Number format of floats.
    pub precision: String,
    /// ZeRO stage.
    pub zero: u8,
    /// Pipeline schedule.
    pub schedule: String,
    /// Microbatches of a step.
    pub num_microbatches: usize,
    /// Tokens that a sequence may be padded to, ascending. Arenas hold the Programs of all; other figures are of the
    /// longest.
    pub length_buckets: Vec<usize>,
    /// Part of a step in which the busiest pipeline rank waits, if F, I and W take equally long.
    pub bubble_fraction: f64,
    /// Arenas of all ranks together.
    pub total_arena_bytes: u64,
    /// What updates cost that may be taken back, if `parallel.post_validation` is on.
    pub post_validation: Option<PostValidation>,
    /// What each stage computes again in the backward, of those that do.
    pub recomputed: Vec<Recomputed>,
    /// What each rank reserves.
    pub per_rank: Vec<RankBytes>,
    /// What a step moves between ranks.
    pub communication: Vec<Communication>,
    /// Where each parameter lies.
    pub placements: Vec<ParameterPlacement>,
}

/// The price of an update that comes before the norm over all stages is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PostValidation {
    /// The copy of all states on the rank that has most, in its `buffers_bytes`. Written once a step, read once more when
    /// an update is taken back.
    pub saved_bytes: u64,
    /// Forwards that a rank does at most before it knows, and repeats when an update is taken back.
    pub forwards_ahead: usize,
    /// Their part of the rank's work in a step, if F, I and W take equally long.
    pub repeated_fraction: f64,
}

/// Bytes of one rank's arena by purpose; the parts sum to `arena_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankBytes {
    /// The rank.
    pub rank: usize,
    /// Its position in the pipeline.
    pub stage: usize,
    /// Parameters as stored between steps.
    pub parameters_bytes: u64,
    /// Gradients, summed over microbatches.
    pub gradients_bytes: u64,
    /// The optimizer's moments.
    pub optimizer_bytes: u64,
    /// Values kept from forward to backward, over all microbatches in flight.
    pub activations_bytes: u64,
    /// Temporaries, results of the step, scratch of kernels, and what evaluation needs beyond training.
    pub buffers_bytes: u64,
    /// All that the runtime reserves.
    pub arena_bytes: u64,
}

/// Where a parameter lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParameterPlacement {
    /// Its name.
    pub parameter: String,
    /// Names of its dims, outermost first.
    pub dims: Vec<String>,
    /// Their sizes.
    pub shape: Vec<usize>,
    /// Between steps: `axis:dim` for each axis that splits it; `flat` is a row of all elements, `whole` is no split.
    pub layout: String,
    /// Its gradient, between microbatches.
    pub gradient_layout: String,
    /// Its moments, and where it is updated.
    pub optimizer_layout: String,
    /// Pipeline ranks that hold it.
    pub stages: Vec<usize>,
}

/// The steps that a training run binds, training first.
pub(crate) struct Steps {
    steppers: Vec<Stepper>,
    buckets: LengthBuckets,
}

impl Steps {
    fn new(config: &Config) -> Result<Steps, TrainError> {
        let config = &corpus::decided(config)?;
        let built = assemble::model(config, vocabulary(config)?)?;
        Ok(Steps { steppers: assemble::steps(config, &built)?, buckets: built.buckets })
    }

    /// The Programs of one pipeline rank.
    fn programs(&self, pipeline_rank: usize) -> Result<Vec<Program>, TrainError> {
        self.steppers.iter().map(|stepper| stepper.program(pipeline_rank, &Chooser::Policy, false)).collect()
    }

    /// `work` on the Programs of every pipeline rank, in their order, on as many threads as the machine has.
    fn for_each_stage<T: Send>(
        &self,
        work: impl Fn(usize, Vec<Program>) -> T + Sync,
    ) -> Result<Vec<T>, TrainError> {
        let num_stages = self.steppers[0].plan.mesh.size(Axis::Pp);
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(num_stages);
        let mut all: BTreeMap<usize, T> = BTreeMap::new();
        std::thread::scope(|scope| {
            let work = &work;
            let some = |first: usize| {
                (first..num_stages)
                    .step_by(num_threads)
                    .map(|stage| Ok((stage, work(stage, self.programs(stage)?))))
                    .collect::<Result<Vec<_>, TrainError>>()
            };
            let threads: Vec<_> = (0..num_threads).map(|first| scope.spawn(move || some(first))).collect();
            for thread in threads {
                // A panic in lowering is a bug, here as there.
                all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok::<(), TrainError>(())
        })?;
        Ok(all.into_values().collect())
    }
}

/// What `config` would do. Each pipeline rank is lowered once, so that many ranks cost no more than one.
///
/// # Errors
/// Whatever cannot be divided as asked. Text and tokenizer are opened only if they decide the vocabulary.
pub fn explain(config: &Config) -> Result<Explanation, TrainError> {
    let steps = Steps::new(config)?;
    let (graph, plan) = (&steps.steppers[0].graph, &steps.steppers[0].plan);
    let stages = steps.for_each_stage(|stage, programs| {
        let bound: Vec<(&Plan, &Program)> = steps.steppers.iter().map(|s| &s.plan).zip(&programs).collect();
        let memory = memory_of(stage, &bound, config.parallel.threads_per_rank);
        let prices = (post_validation(&programs[0]), recompute::of(plan, &programs[0]));
        ((memory, prices), communication::of(plan, &programs[0]))
    })?;
    let (of_stage, traffic): (Vec<_>, Vec<_>) = stages.into_iter().unzip();
    let (memory, prices): (Vec<RankBytes>, Vec<_>) = of_stage.into_iter().unzip();
    let (validations, recomputed): (Vec<Option<PostValidation>>, Vec<_>) = prices.into_iter().unzip();
    let world_size = plan.mesh.world_size();
    let per_rank: Vec<RankBytes> = (0..world_size)
        .map(|rank| RankBytes { rank, ..memory[plan.mesh.coord(rank).get(Axis::Pp)] })
        .collect();
    let timeline =
        plan.schedule.simulate(&schedule::Times::new(1.0, 1.0, 1.0)).map_err(plan::PlanError::from)?;
    Ok(Explanation {
        name: config.name.clone(),
        mesh: config.parallel.mesh.to_string(),
        world_size,
        num_parameters: graph.num_parameters(),
        precision: config.train.precision.to_string(),
        zero: plan.zero,
        schedule: plan.schedule.name.clone(),
        num_microbatches: config.parallel.num_microbatches,
        length_buckets: steps.buckets.iter().rev().map(|lengths| lengths.sequence).collect(),
        bubble_fraction: timeline.bubble_fraction(),
        post_validation: validations.into_iter().flatten().reduce(|a, b| PostValidation {
            saved_bytes: a.saved_bytes.max(b.saved_bytes),
            forwards_ahead: a.forwards_ahead.max(b.forwards_ahead),
            repeated_fraction: a.repeated_fraction.max(b.repeated_fraction),
        }),
        recomputed: recomputed.into_iter().flatten().collect(),
        total_arena_bytes: per_rank.iter().map(|r| r.arena_bytes).fold(0, u64::saturating_add),
        per_rank,
        communication: communication::merge(traffic),
        placements: placements(graph, plan),
    })
}

/// Bytes of the arenas that a training run of `config` reserves, by rank.
///
/// # Errors
/// As [`explain`].
pub fn arena_bytes(config: &Config) -> Result<Vec<u64>, TrainError> {
    Ok(explain(config)?.per_rank.iter().map(|r| r.arena_bytes).collect())
}

fn post_validation(program: &Program) -> Option<PostValidation> {
    let forwards_ahead = program.validation.as_ref()?.num_ahead;
    let work = |action: &schedule::Action| match action.kind {
        schedule::Kind::Backward => 2,
        _ => 1,
    };
    let all: usize = program.actions.iter().map(work).sum();
    Some(PostValidation {
        saved_bytes: program.saved_bytes as u64,
        forwards_ahead,
        repeated_fraction: forwards_ahead as f64 / all as f64,
    })
}

fn memory_of(stage: usize, programs: &[(&Plan, &Program)], threads: usize) -> RankBytes {
    let arena_bytes = RankMemory::of(programs, threads).arena_bytes() as u64;
    let memory = programs[0].1.memory;
    let [parameters_bytes, gradients_bytes, optimizer_bytes, activations_bytes] =
        [memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes, memory.activations_bytes]
            .map(|bytes| bytes as u64);
    let named = parameters_bytes + gradients_bytes + optimizer_bytes + activations_bytes;
    RankBytes {
        rank: stage,
        stage,
        parameters_bytes,
        gradients_bytes,
        optimizer_bytes,
        activations_bytes,
        buffers_bytes: arena_bytes - named,
        arena_bytes,
    }
}

fn placements(graph: &Graph, plan: &Plan) -> Vec<ParameterPlacement> {
    let parameters = graph.states().filter(|(_, state)| state.kind == StateKind::Parameter);
    parameters
        .map(|(value, state)| {
            let dims = &graph.value(value).dims;
            let home = |which| {
                let layout = Axis::ALL
                    .into_iter()
                    .fold(Layout::WHOLE, |l, a| l.with(a, plan.state_home(a, dims, which)));
                layout_with_names(graph, &layout)
            };
            ParameterPlacement {
                parameter: state.name.clone(),
                dims: dims.iter().map(|d| graph.dim_info(*d).name.clone()).collect(),
                shape: graph.shape(value),
                layout: home(StateHome::Store),
                gradient_layout: home(StateHome::Gradient),
                optimizer_layout: home(StateHome::Optimizer),
                stages: plan.holders(value).to_vec(),
            }
        })
        .collect()
}

/// `dp:batch tp:kv_heads`: how a layout splits, with the graph's names of dims.
pub(crate) fn layout_with_names(graph: &Graph, layout: &Layout) -> String {
    let parts: Vec<String> = Axis::ALL
        .into_iter()
        .filter_map(|axis| {
            let how = match layout.get(axis) {
                mesh::Placement::Whole => return None,
                mesh::Placement::Shard(Dim::FLAT) => "flat".to_owned(),
                mesh::Placement::Shard(dim) => graph.dim_info(dim).name.clone(),
                mesh::Placement::Partial(mesh::Reduce::Sum) => "partial(sum)".to_owned(),
                mesh::Placement::Partial(mesh::Reduce::Max) => "partial(max)".to_owned(),
            };
            Some(format!("{axis}:{how}"))
        })
        .collect();
    if parts.is_empty() { "whole".to_owned() } else { parts.join(" ") }
}

/// The vocabulary that the tokenizer decides, where the configuration does not.
fn vocabulary(config: &Config) -> Result<Option<usize>, TrainError> {
    if config.model.from.is_some() {
        return Ok(None); // the directory's config.json says it
    }
    match (&config.model.vocab_size, &config.data.tokenizer, config.data.tokenizer_vocab) {
        _ if config.model.described.is_some() || config.task == Task::ImageClassify => Ok(None),
        (Some(_), ..) | (None, None, None) => Ok(None),
        (None, Some(path), _) => Ok(Some(data::Tokenizer::load(path)?.vocab_size())),
        (None, None, Some(_)) => Ok(Some(corpus::tokenizer(config)?.vocab_size())),
    }
}

/// The sizes that a model's memory follows from.
pub(crate) struct Sizes {
    num_layers: usize,
    embed: usize,
    num_heads: usize,
    head_dim: usize,
    mlp: usize,
    vocab_size: usize,
    max_positions: usize,
    sequence_length: usize,
}

impl Sizes {
    /// Of a decoder on sequences of a length.
    pub fn of_decoder(decoder: &Decoder, sequence_length: usize) -> Sizes {
        Sizes {
            num_layers: decoder.num_layers,
            embed: decoder.embed,
            num_heads: decoder.num_heads,
            head_dim: decoder.head_dim,
            mlp: decoder.mlp,
            vocab_size: decoder.vocab_size,
            max_positions: decoder.max_positions,
            sequence_length,
        }
    }

    /// Of an encoder or encoder-decoder on sequences of a length.
    pub fn of(description: &hub::Config, sequence_length: usize) -> Sizes {
        let [num_layers, embed, num_heads, head_dim, mlp, vocab_size, max_positions] =
            match &description.family {
                Family::Bert(c) => {
                    let head_dim = c.embed / c.num_heads.max(1);
                    [c.num_layers, c.embed, c.num_heads, head_dim, c.mlp, c.vocab_size, c.max_positions]
                }
                Family::Vit(c) => {
                    let head_dim = c.embed / c.num_heads.max(1);
                    let patch = c.num_channels * c.patch_size[0] * c.patch_size[1];
                    [c.num_layers, c.embed, c.num_heads, head_dim, c.mlp, patch, c.num_patches() + 1]
                }
                Family::T5(c) => {
                    let num_layers = c.num_layers + c.num_decoder_layers;
                    [num_layers, c.embed, c.num_heads, c.head_dim, c.mlp, c.vocab_size, c.num_buckets]
                }
                other => unreachable!("{} is described by its own keys", other.model_type()),
            };
        Sizes { num_layers, embed, num_heads, head_dim, mlp, vocab_size, max_positions, sequence_length }
    }
}

/// Refuses sizes whose products would leave 64 bits, before any graph is written. Generous: what it lets through may
/// still be far more than any machine has, which [`check_memory`] says exactly.
///
/// # Errors
/// [`TrainError::Unsupported`], naming the key.
pub(crate) fn check_size(config: &Config, sizes: &Sizes) -> Result<(), TrainError> {
    let refuse = |key: &'static str, value: String, remedy: &'static str| {
        Err(TrainError::Unsupported { key, value, remedy })
    };
    if sizes.num_layers > MAX_LAYERS {
        return refuse("model.num_layers", sizes.num_layers.to_string(), "use at most 65536 layers");
    }
    for (key, extent) in
        [("train.batch", config.sequences_per_step()), ("data.sequence_length", sizes.sequence_length)]
    {
        if extent > MAX_EXTENT {
            return refuse(key, extent.to_string(), "use at most 67108864");
        }
    }
    let wide = |n: usize| n as u128;
    let layers = wide(sizes.num_layers);
    let heads = wide(sizes.num_heads).saturating_mul(wide(sizes.head_dim));
    let widest = heads.max(wide(sizes.mlp)).max(wide(sizes.embed));
    let product = |factors: &[u128]| factors.iter().fold(1u128, |p, f| p.saturating_mul(*f));
    let (embed, vocab) = (wide(sizes.embed), wide(sizes.vocab_size));
    // Weights, gradients and moments; at most four matrices of a width beside the embedding's in each block.
    let states = product(&[4, 8, embed, product(&[8, layers, widest]) + product(&[2, vocab])]);
    let positions = product(&[32, embed, wide(sizes.max_positions)]);
    if states.saturating_add(positions) > MAX_TOTAL_BYTES {
        let value = format!("{} (with {} layers)", sizes.embed, sizes.num_layers);
        return refuse("model.embed", value, "its weights would not fit 64-bit addresses: use smaller sizes");
    }
    let tokens = product(&[wide(config.sequences_per_step()), wide(sizes.sequence_length)]);
    let activations = product(&[8, tokens, product(&[64, layers, widest]) + product(&[8, vocab])]);
    if activations > MAX_TOTAL_BYTES {
        let value = format!("{} (x {} tokens)", config.train.batch, config.data.sequence_length);
        return refuse(
            "train.batch",
            value,
            "its activations would not fit 64-bit addresses: use smaller sizes",
        );
    }
    Ok(())
}

/// Refuses what the machine cannot hold, before anything is allocated: `arena_bytes` of every rank that this machine
/// runs, against what it has free.
///
/// # Errors
/// [`TrainError::Memory`] with the sum in words. Nothing is refused where the system does not say what is free.
pub fn check_memory(arena_bytes: &[u64]) -> Result<(), TrainError> {
    match memory::available_bytes() {
        Some(available) => fits(arena_bytes, available),
        None => Ok(()),
    }
}

fn fits(arena_bytes: &[u64], available: u64) -> Result<(), TrainError> {
    let needed = arena_bytes.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    if needed <= available {
        return Ok(());
    }
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for bytes in arena_bytes {
        *sizes.entry(*bytes).or_default() += 1;
    }
    const SHOWN: usize = 4;
    let mut terms: Vec<String> = sizes
        .iter()
        .rev()
        .take(SHOWN)
        .map(|(bytes, ranks)| {
            let plural = if *ranks == 1 { "rank" } else { "ranks" };
            format!("{ranks} {plural} x {} MiB", bytes.div_ceil(1 << 20))
        })
        .collect();
    if sizes.len() > SHOWN {
        let rest: usize = sizes.values().rev().skip(SHOWN).sum();
        terms.push(format!("{rest} smaller ranks"));
    }
    let arithmetic = terms.join(" + ");
    Err(TrainError::Memory {
        needed_mib: needed.div_ceil(1 << 20),
        arithmetic,
        available_mib: available >> 20,
    })
}

/// Bytes of an element.
pub(crate) fn element_bytes(dtype: DType) -> u64 {
    dtype.size_bytes() as u64
}

#[cfg(test)]
#[path = "explain/tests.rs"]
mod tests;
