//! A run with every instruction timed, and its records. What they mean is not judged here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comm::Communicator;
use mesh::Axis;
use plan::{Chooser, Instruction, Plan, Program};
use runtime::{Executor, Queue, Ran, Sample, StepInput, Work};

use crate::assemble::{self, Stepper};
use crate::config::Config;
use crate::error::TrainError;
use crate::ranks;
use crate::synthetic::Synthetic;

/// Number of the training program in an executor.
const TRAIN: usize = 0;

/// One thing that one rank did. A collective lasts from its start until it is complete, whoever waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Who.
    pub rank: usize,
    /// Where it ran.
    pub queue: Queue,
    /// Path of the node, or the value that is moved.
    pub name: Arc<str>,
    /// Kind of operation, move or collective.
    pub class: &'static str,
    /// From a moment that all ranks share.
    pub start_seconds: f64,
    /// From the same.
    pub end_seconds: f64,
    /// Floating-point operations of products; others count as 0.
    pub flops: f64,
    /// Bytes read and written at least once; of a communication, bytes sent.
    pub bytes: f64,
    /// Pipeline stage, if it belongs to one.
    pub stage: Option<usize>,
    /// Microbatch.
    pub microbatch: usize,
    /// Step, from 1.
    pub step: u64,
}

/// Trains one step to warm up and `steps` that are recorded; records come by rank, then in the order of their starts.
pub(super) fn record(config: &Config, steps: usize) -> Result<Vec<Record>, TrainError> {
    let built = assemble::model(config, None)?;
    let stepper = assemble::training(config, &built)?;
    let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
    let origin = Instant::now();
    let by_rank = ranks::run(stepper.plan.mesh.world_size(), deadline, |world| {
        rank(config, &built, &stepper, steps, origin, world)
    })?;
    Ok(by_rank.into_iter().flatten().collect())
}

fn rank(
    config: &Config,
    built: &assemble::Built,
    stepper: &Stepper,
    steps: usize,
    origin: Instant,
    world: Box<dyn Communicator>,
) -> Result<Vec<Record>, TrainError> {
    let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(Axis::Pp);
    let programs = vec![stepper.shared(pipeline_rank, &Chooser::Policy, false)?];
    let mut executor = Executor::new(world, programs, assemble::cpu(config)?, None)?;
    executor.initialise(&stepper.graph, config.train.seed)?;
    for step in 0..=steps as u64 {
        if step == 1 {
            let of_blocks: usize =
                executor.program(TRAIN).1.blocks.iter().map(|block| block.instructions.len()).sum();
            let capacity = steps * of_blocks * config.parallel.num_microbatches;
            executor.start_recording(TRAIN, Box::new(move || origin.elapsed().as_secs_f64()), capacity);
        }
        let mut batch = Synthetic::of(built, config.train.seed, step);
        let scalars = [("lr", config.train.lr), ("step", step as f64 + 1.0), ("loss_scale", 1.0)];
        let input = StepInput { seed: config.train.seed, step, scalars: &scalars };
        while executor.run_ahead(TRAIN, &mut batch, &input)? == Ran::Again {}
    }
    let samples = executor.stop_recording();
    executor.settle()?;
    let (plan, program) = executor.program(TRAIN);
    Ok(records(executor.rank(), plan, program, &samples))
}

/// Samples with what they were worth; a wait is joined to its start.
fn records(rank: usize, plan: &Plan, program: &Program, samples: &[Sample]) -> Vec<Record> {
    let works: Vec<Vec<(Work, Arc<str>)>> = (0..program.blocks.len())
        .map(|block| {
            let of = |index| runtime::work(plan, program, block, index);
            let works = (0..program.blocks[block].instructions.len()).map(of);
            works.map(|work| (work.clone(), Arc::from(work.name))).collect()
        })
        .collect();
    let mut records: Vec<Record> = Vec::with_capacity(samples.len());
    let mut started: HashMap<usize, usize> = HashMap::new();
    for sample in samples {
        let block = &program.blocks[sample.block];
        match &block.instructions[sample.index] {
            Instruction::Wait { ticket, .. } => {
                // The first step may wait for what an unrecorded one started.
                let Some(at) = started.remove(ticket) else { continue };
                records[at].end_seconds = sample.done_seconds;
                continue;
            }
            Instruction::Start { ticket, .. } => {
                started.insert(*ticket, records.len());
            }
            _ => {}
        }
        let (work, name) = &works[sample.block][sample.index];
        records.push(Record {
            rank,
            queue: work.queue,
            name: name.clone(),
            class: work.class,
            start_seconds: sample.start_seconds,
            end_seconds: sample.end_seconds,
            flops: work.flops,
            bytes: work.bytes,
            stage: block.stage,
            microbatch: sample.microbatch,
            step: sample.step,
        });
    }
    records
}
