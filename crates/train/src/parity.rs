//! Parity: trains some steps in a layout and on one rank, and measures how far losses, gradients and parameters are
//! apart. The measure is the project's contract; this is an instrument for users as well as the release gate.

use std::collections::BTreeMap;
use std::time::Duration;

use comm::{Communicator, Job};
use mesh::Tile;
use plan::Chooser;
use runtime::{Executor, StepInput, WrapGroup};
use schedule::Schedule;

use crate::assemble;
use crate::config::{Config, Precision};
use crate::error::TrainError;
use crate::parity_gather;
use crate::ranks;
use crate::synthetic::Synthetic;

/// What a run left behind, as global tensors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recording {
    /// Mean loss of each step.
    pub losses: Vec<f64>,
    /// Norm of the mean gradient of each step, before clipping.
    pub norms: Vec<f64>,
    /// For each step: the mean gradient of every parameter, and of the embedding's output.
    pub gradients: Vec<BTreeMap<String, Vec<f64>>>,
    /// Every state tensor after the last step.
    pub states: BTreeMap<String, Vec<f64>>,
    /// Elements that two ranks hold with different bits.
    pub num_disagreements: usize,
}

/// How far a recording is from its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Distance {
    /// Largest relative error of a loss.
    pub loss_error: f64,
    /// Largest error of a gradient, by the contract's measure.
    pub gradient_error: f64,
    /// The gradient that has it.
    pub worst_gradient: String,
    /// Largest error of a parameter or moment after the last step.
    pub parameter_error: f64,
}

/// How a run is recorded.
#[derive(Default)]
pub struct Recorder<'a> {
    /// Steps to train.
    pub steps: usize,
    /// Draws random legal choices instead of the policy's.
    pub random: Option<u64>,
    /// Takes the place of the schedule that the configuration names, for as many pipeline ranks, stages and microbatches.
    pub schedule: Option<&'a Schedule>,
    /// Stands between ranks and groups.
    pub wrap: Option<&'a (dyn Fn(usize) -> Box<WrapGroup<'a>> + Sync)>,
}

/// Parts of global tensors, each with the step it belongs to.
pub(crate) type Pieces = Vec<(usize, String, Tile, Vec<f64>)>;

/// What one rank recorded.
pub(crate) struct RankRecord {
    pub(crate) losses: Vec<f64>,
    pub(crate) norms: Vec<f64>,
    pub(crate) gradients: Pieces,
    pub(crate) states: Pieces,
}

impl Recorder<'_> {
    /// Trains on synthetic batches in the configuration's layout and returns everything that parity looks at.
    ///
    /// # Errors
    /// Whatever the layout cannot do.
    pub fn record(&self, config: &Config) -> Result<Recording, TrainError> {
        let built = assemble::model(config, None)?;
        let mut stepper = assemble::training(config, &built)?;
        if let Some(schedule) = self.schedule {
            stepper.plan.schedule = schedule.clone();
        }
        let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
        let records = ranks::run(stepper.plan.mesh.world_size(), deadline, |world| {
            Ok(self.rank(config, &built, &stepper, world)?.1)
        })?;
        Ok(self.assemble(records))
    }

    /// The same with the ranks of `job`, of which this process has some. The first process gets the recording.
    ///
    /// # Errors
    /// As [`Recorder::record`]; a mesh that is not as large as the job; what keeps ranks from joining.
    pub fn record_in(&self, config: &Config, job: &Job) -> Result<Option<Recording>, TrainError> {
        let built = assemble::model(config, None)?;
        let stepper = assemble::training(config, &built)?;
        let (ranks, started) = (stepper.plan.mesh.world_size(), job.world_size());
        if ranks != started {
            let (processes, per_process) = (job.num_processes, job.ranks_per_process);
            let mesh = config.parallel.mesh.to_string();
            return Err(TrainError::WorldSize { mesh, ranks, processes, per_process, started });
        }
        let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
        let gathered = ranks::run_in(job, deadline, |world| {
            let (executor, record) = self.rank(config, &built, &stepper, world)?;
            parity_gather::to_first(executor.world(), record)
        })?;
        let records = gathered.into_iter().next().filter(|records| !records.is_empty());
        Ok(records.map(|records| self.assemble(records)))
    }

    /// Puts the records of all ranks together.
    fn assemble(&self, records: Vec<RankRecord>) -> Recording {
        let mut recording = Recording {
            losses: records[0].losses.clone(),
            norms: records[0].norms.clone(),
            gradients: vec![BTreeMap::new(); self.steps],
            ..Recording::default()
        };
        for record in &records {
            let agrees = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            let same = agrees(&record.losses, &recording.losses) && agrees(&record.norms, &recording.norms);
            recording.num_disagreements += usize::from(!same);
        }
        for record in records {
            for (step, name, tile, values) in record.gradients {
                let global = &mut recording.gradients[step];
                recording.num_disagreements += place(global, name, &tile, &values);
            }
            for (_, name, tile, values) in record.states {
                recording.num_disagreements += place(&mut recording.states, name, &tile, &values);
            }
        }
        recording
    }

    fn rank(
        &self,
        config: &Config,
        built: &assemble::Built,
        stepper: &assemble::Stepper,
        world: Box<dyn Communicator>,
    ) -> Result<(Executor, RankRecord), TrainError> {
        let chooser = self.random.map_or(Chooser::Policy, Chooser::Random);
        let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(mesh::Axis::Pp);
        let programs = vec![stepper.shared(pipeline_rank, &chooser, true)?];
        let names: Vec<String> = programs[0].1.outputs.iter().map(|(name, _)| name.clone()).collect();
        let wrap = self.wrap.map(|w| w(world.rank()));
        let mut executor = Executor::new(world, programs, assemble::cpu(config)?, wrap.as_deref())?;
        executor.initialise(&stepper.graph, config.train.seed)?;
        let mut record = RankRecord { losses: vec![], norms: vec![], gradients: vec![], states: vec![] };
        for step in 0..self.steps {
            let number = step as u64 + 1;
            let mut batch = Synthetic::of(built, config.train.seed, number);
            let scalars = [("lr", config.train.lr), ("step", number as f64), ("loss_scale", 1.0)];
            let input = StepInput { seed: config.train.seed, step: number, scalars: &scalars };
            executor.run(0, &mut batch, &input)?;
            let mut statistics = [0.0; 2];
            executor.read_output(0, "statistics", &mut statistics)?;
            let [loss, tokens] = statistics;
            record.losses.push(loss / tokens);
            let mut norm = [0.0];
            executor.read_output(0, "grad_norm", &mut norm)?;
            record.norms.push(norm[0]);
            for name in names.iter().filter(|n| n.contains("gradient")) {
                let (tile, mut values) = executor.output(0, name)?;
                values.iter_mut().for_each(|v| *v /= tokens);
                record.gradients.push((step, name.clone(), tile, values));
            }
        }
        executor.with_states(|states| {
            for state in states {
                record.states.push((
                    0,
                    state.name.to_owned(),
                    state.tile.clone(),
                    widen(state.dtype, state.bytes),
                ));
            }
        })?;
        Ok((executor, record))
    }
}

fn widen(dtype: memory::DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        memory::DType::F64 => {
            bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
        }
        _ => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")).into()).collect()
        }
    }
}

/// Puts a rank's part into the global tensor; returns how many elements another rank holds with other bits.
pub(crate) fn place(
    all: &mut BTreeMap<String, Vec<f64>>,
    name: String,
    tile: &Tile,
    values: &[f64],
) -> usize {
    // A marker that no computation leaves behind, to tell what has been placed.
    const UNSET: u64 = 0x7ff8_dead_beef_0001;
    let global = all.entry(name).or_insert_with(|| vec![f64::from_bits(UNSET); tile.global_len()]);
    let mut disagreements = 0;
    tile.for_each_run(|run| {
        for i in 0..run.len {
            let (old, new) = (&mut global[run.global + i], values[run.local + i]);
            disagreements += usize::from(old.to_bits() != UNSET && old.to_bits() != new.to_bits());
            *old = new;
        }
    });
    disagreements
}

/// A whole tensor from one rank that has all of it, without padding.
pub(crate) fn whole(tile: &Tile, values: &[f64]) -> Vec<f64> {
    let mut all = BTreeMap::new();
    place(&mut all, String::new(), tile, values);
    all.into_values().next().unwrap_or_default()
}

impl Recording {
    /// Distance of this recording from `reference`, by the measure of the contract: for tensors a and b,
    /// `max|a - b| / max(max|b|, 1e-3 x the largest element of any gradient of that step)`.
    pub fn distance(&self, reference: &Recording) -> Distance {
        let mut distance = Distance {
            loss_error: 0.0,
            gradient_error: 0.0,
            worst_gradient: String::new(),
            parameter_error: 0.0,
        };
        for (a, b) in self.losses.iter().zip(&reference.losses) {
            distance.loss_error = worse(distance.loss_error, (a - b).abs() / b.abs());
        }
        let mut last_floor = 0.0;
        for (ours, theirs) in self.gradients.iter().zip(&reference.gradients) {
            let largest = theirs.values().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
            last_floor = 1e-3 * largest;
            for (name, b) in theirs {
                let error = ours.get(name).map_or(f64::INFINITY, |a| error(a, b, last_floor));
                if worse(distance.gradient_error, error) != distance.gradient_error {
                    distance.gradient_error = error;
                    distance.worst_gradient = name.clone();
                }
            }
        }
        for (name, b) in &reference.states {
            let error = self.states.get(name).map_or(f64::INFINITY, |a| error(a, b, last_floor));
            distance.parameter_error = worse(distance.parameter_error, error);
        }
        distance
    }
}

/// The larger one; what is not a number counts as infinite, so that nothing finite can hide it.
fn worse(a: f64, b: f64) -> f64 {
    let b = if b.is_nan() { f64::INFINITY } else { b };
    a.max(b)
}

fn error(a: &[f64], b: &[f64], floor: f64) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let largest = b.iter().fold(floor, |m, x| m.max(x.abs()));
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    if apart == 0.0 { 0.0 } else { apart / largest }
}

/// The configuration on one rank: the reference of every layout.
pub fn reference(config: &Config) -> Result<Config, TrainError> {
    let mut one = config.with_layout("dp=1;zero=0;sequence=false;num_microbatches=1")?;
    one.parallel.recompute = graph::Operations::None;
    Ok(one)
}

/// The contract's tolerance for parameters after steps: Adam amplifies a tiny gradient by up to 1/eps.
pub fn parameter_tolerance(config: &Config, tolerance: f64) -> f64 {
    match (config.train.precision, config.train.optimizer) {
        (Precision::F64, crate::config::Optimizer::Sgd) => tolerance,
        _ => tolerance * 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(gradients: &[(&str, f64)]) -> Recording {
        let gradients = gradients.iter().map(|(name, x)| ((*name).to_owned(), vec![*x, 1.0])).collect();
        Recording { losses: vec![1.0], gradients: vec![gradients], ..Recording::default() }
    }

    #[test]
    fn what_is_not_a_number_is_never_hidden_by_a_later_finite_gradient() {
        let reference = recording(&[("a", 1.0), ("b", 2.0)]);
        let distance = recording(&[("a", f64::NAN), ("b", 2.5)]).distance(&reference);
        assert_eq!((distance.gradient_error, distance.worst_gradient.as_str()), (f64::INFINITY, "a"));
        let missing = recording(&[("a", 1.0)]).distance(&reference);
        assert_eq!((missing.gradient_error, missing.worst_gradient.as_str()), (f64::INFINITY, "b"));
        assert_eq!(reference.distance(&reference).gradient_error, 0.0);
    }
}
