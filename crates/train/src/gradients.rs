//! Loss, logits and the gradient of every parameter of a Hugging Face checkpoint for a given batch, in any layout, in
//! the names and shapes of its files: an instrument to compare with other implementations.

mod families;
mod given;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hub::{Directory, NewTensor, StoredType, Table};
use mesh::{Axis, Tile};
use plan::Chooser;
use runtime::{Executor, RankMemory, StepInput};
use serde::Serialize;

use crate::assemble::{self, Stepper};
use crate::config::{Config, Precision};
use crate::error::TrainError;
use crate::feed::Feed;
use crate::parity::place;
use crate::{explain, pretrained, ranks};

use given::Given;

/// What to compute, and how.
#[derive(Debug, Clone, Default)]
pub struct GradientsOptions {
    /// Layout, as `dp=2,tp=2;num_microbatches=2`; one rank if not given.
    pub mesh: Option<String>,
    /// Task, if not the one that the checkpoint was saved for.
    pub task: Option<String>,
}

/// What was computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GradientsReport {
    /// The task.
    pub task: String,
    /// Mean over the targets; none if the batch has no labels.
    pub loss: Option<f64>,
    /// Targets that count.
    pub num_targets: u64,
    /// Gradients written.
    pub num_gradients: usize,
    /// Tensors of the directory that the model does not use.
    pub extra: Vec<String>,
    /// Parameters that the directory lacks; they were drawn anew.
    pub new: Vec<String>,
}

/// Computes and writes to `out`: `loss`, `logits`, and gradients by the names of the files.
///
/// # Errors
/// As [`compute`], and a file that cannot be written.
pub fn gradients(
    from: &Path,
    batch: &Path,
    out: &Path,
    precision: Precision,
    options: &GradientsOptions,
) -> Result<GradientsReport, TrainError> {
    // Before the work, not behind it.
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        let problem = "no such directory: create it, or name a file for --out in one that exists".to_owned();
        return Err(TrainError::File { path: parent.display().to_string(), problem });
    }
    let Computed { report, tensors } = compute(from, batch, precision, options, &Chooser::Policy)?;
    hub::write_tensors(out, &tensors)?;
    Ok(report)
}

/// Results before they are written.
#[derive(Debug, Clone)]
pub struct Computed {
    /// About them.
    pub report: GradientsReport,
    /// `loss`, `logits`, and gradients by the names of the files.
    pub tensors: Vec<NewTensor<'static>>,
}

/// Computes the mean loss, logits and gradients. `chooser`: how programs are lowered; for tests other than the policy's.
///
/// # Errors
/// A directory or a batch that is damaged, does not fit, or asks for what is not supported; a layout that the model
/// does not admit.
pub fn compute(
    from: &Path,
    batch: &Path,
    precision: Precision,
    options: &GradientsOptions,
    chooser: &Chooser,
) -> Result<Computed, TrainError> {
    let task = options.task.as_deref().map(pretrained::task).transpose()?;
    let directory = Directory::open(from, task)?;
    let bound = directory.bind()?;
    let given = Given::open(batch)?;
    let feed = families::feed(&directory, &given)?;
    let config = config(&feed, precision, options)?;
    let stepper = assemble::gradients(&config, &*feed.model, feed.step, &feed.given)?;
    check_memory(&config, &stepper, chooser)?;
    let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
    let recordings = ranks::run(stepper.plan.mesh.world_size(), deadline, |world| {
        let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(Axis::Pp);
        let programs = vec![stepper.shared(pipeline_rank, chooser, true)?];
        let names: Vec<String> = programs[0].1.outputs.iter().map(|(name, _)| name.clone()).collect();
        let mut executor = Executor::new(world, programs, assemble::cpu(&config)?, None)?;
        executor.initialise(&stepper.graph, config.train.seed)?;
        pretrained::load(&mut executor, &bound)?;
        let input = StepInput { seed: config.train.seed, step: 1, scalars: &[] };
        executor.run(0, &mut feed.batch(), &input)?;
        let part = |name: String| -> Result<Part, TrainError> {
            let (tile, values) = executor.output(0, &name)?;
            Ok((name, tile, values))
        };
        names.into_iter().map(part).collect()
    })?;
    let found = gather(recordings);
    let results = Results { found: &found, precision };
    let (loss, num_targets) = match found.get("statistics") {
        Some(statistics) => (Some(statistics[0] / statistics[1]), statistics[1]),
        None => (None, 0.0),
    };
    let mut tensors = results.gradients(directory.table(), num_targets)?;
    let num_gradients = tensors.len();
    tensors.extend(feed.outputs.iter().map(|(name, shape)| results.tensor(name, shape, &found[*name])));
    tensors.extend(loss.map(|loss| results.tensor("loss", &[], &[loss])));
    let about = bound.report();
    let report = GradientsReport {
        task: directory.task().to_string(),
        loss,
        num_targets: num_targets as u64,
        num_gradients,
        extra: about.extra.clone(),
        new: about.new.clone(),
    };
    Ok(Computed { report, tensors })
}

/// A configuration that says what the batch and the flags say.
fn config(feed: &Feed, precision: Precision, options: &GradientsOptions) -> Result<Config, TrainError> {
    let mut config = Config::plain("gradients");
    config.train.precision = precision;
    config.train.batch = feed.step.batch;
    config.data.sequence_length = feed.step.sequence_length;
    config.model.num_layers = feed.num_layers;
    match &options.mesh {
        Some(mesh) => Ok(config.with_layout(mesh)?),
        None => Ok(config),
    }
}

fn check_memory(config: &Config, stepper: &Stepper, chooser: &Chooser) -> Result<(), TrainError> {
    let mut bytes = Vec::new();
    for pipeline_rank in 0..stepper.plan.mesh.size(Axis::Pp) {
        let program = stepper.program(pipeline_rank, chooser, true)?;
        let memory = RankMemory::of(&[(&stepper.plan, &program)], config.parallel.threads_per_rank);
        let ranks = stepper.plan.mesh.world_size() / stepper.plan.mesh.size(Axis::Pp);
        bytes.extend(std::iter::repeat_n(memory.arena_bytes() as u64, ranks));
    }
    explain::check_memory(&bytes)
}

/// Name of an output, the part of it that a rank has, and its elements.
type Part = (String, Tile, Vec<f64>);

/// The parts that ranks have of each output, as global tensors.
fn gather(ranks: Vec<Vec<Part>>) -> BTreeMap<String, Vec<f64>> {
    let mut all = BTreeMap::new();
    for (name, tile, values) in ranks.into_iter().flatten() {
        place(&mut all, name, &tile, &values);
    }
    all
}

/// Global results on their way to a file.
struct Results<'a> {
    found: &'a BTreeMap<String, Vec<f64>>,
    precision: Precision,
}

impl Results<'_> {
    /// Gradients are sums over many numbers: in mixed precision they are wide.
    fn stored(&self) -> StoredType {
        if self.precision == Precision::F64 { StoredType::F64 } else { StoredType::F32 }
    }

    fn tensor(&self, name: &str, shape: &[usize], values: &[f64]) -> NewTensor<'static> {
        NewTensor::reals(name, shape, self.stored(), values)
    }

    /// The gradients of the mean loss, pieces of a tensor put together; none without a loss.
    fn gradients(&self, table: &Table, num_targets: f64) -> Result<Vec<NewTensor<'static>>, TrainError> {
        if !self.found.contains_key("statistics") {
            return Ok(Vec::new());
        }
        let mut tensors = Vec::new();
        for (tensor, shape) in table.tensors() {
            let bytes = table.assemble(tensor, self.stored(), &mut |parameter| {
                let sum = self.found.get(&format!("gradient:{}", parameter.name));
                let sum = sum.ok_or_else(|| hub::HubError::NoParameter { name: parameter.name.clone() })?;
                Ok::<_, TrainError>(sum.iter().map(|g| g / num_targets).collect::<Vec<f64>>())
            })?;
            let (name, dtype) = (tensor.to_owned(), self.stored());
            tensors.push(NewTensor { name, shape: shape.to_vec(), dtype, bytes: bytes.into() });
        }
        Ok(tensors)
    }
}
