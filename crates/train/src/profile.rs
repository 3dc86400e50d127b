//! Where the time of a step goes: a run of some steps with every instruction timed, beside what this machine gives at
//! its best. What a report says is in `report`, the machine's best in `peaks`, the trace for viewers in `trace`.

mod intervals;
mod peaks;
mod record;
mod report;
mod trace;

use plan::Chooser;

pub use peaks::Peaks;
pub use record::Record;
pub use report::{Communication, Place, Report, Share};
pub use runtime::Queue;
pub use trace::write_trace;

use crate::config::{Config, Parallel};
use crate::error::TrainError;
use crate::parity_report::with_vocabulary;
use crate::{assemble, explain};

/// What a profiled run found.
#[derive(Debug)]
pub struct Profile {
    /// Every instruction of every rank.
    pub records: Vec<Record>,
    /// What they sum up to.
    pub report: Report,
}

/// Measures the machine, then trains `steps` steps (after one to warm up) on synthetic batches, timing every
/// instruction of every rank. No text is read and nothing is kept.
///
/// # Errors
/// Whatever the layout cannot do.
pub fn profile(config: &Config, steps: usize) -> Result<Profile, TrainError> {
    let config = &with_vocabulary(config)?;
    let model_flops = model_flops(config)?;
    explain::check_memory(&explain::arena_bytes(config)?)?;
    let peaks = Peaks::measure(config)?;
    let records = record::record(config, steps)?;
    let report = Report::new(&place(config)?, &peaks, model_flops, &records);
    Ok(Profile { records, report })
}

/// What is profiled, for the report.
fn place(config: &Config) -> Result<Place, TrainError> {
    Ok(Place {
        name: config.name.clone(),
        layout: config.parallel.mesh.to_string(),
        world_size: config.parallel.mesh.world_size(),
        threads_per_rank: config.parallel.threads_per_rank,
        precision: config.train.precision.to_string(),
        instruction_set: assemble::instruction_set(config)?.to_string(),
        tokens_per_step: config.sequences_per_step() * config.data.sequence_length,
    })
}

/// Operations in the products of a step, as the model needs them: on one rank, each once, nothing recomputed.
fn model_flops(config: &Config) -> Result<f64, TrainError> {
    let mut alone = config.clone();
    alone.parallel = Parallel::default();
    let built = assemble::model(&alone, None)?;
    let stepper = assemble::training(&alone, &built)?;
    let program = stepper.program(0, &Chooser::Policy, false)?;
    let positions = program.blocks.iter().enumerate().flat_map(|(block, b)| {
        let count = b.instructions.len();
        (0..count).map(move |index| (block, index))
    });
    Ok(positions.map(|(block, index)| runtime::work(&stepper.plan, &program, block, index).flops).sum())
}
