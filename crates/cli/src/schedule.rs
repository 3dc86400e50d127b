//! `phalanx schedule`: makes, reads, draws and times a pipeline schedule.

use std::fs;
use std::path::Path;

use anyhow::anyhow;
use phalanx::schedule::{Request, Schedule, find};
use serde::Serialize;

use crate::arguments::ScheduleArguments;
use crate::failure::Verdict;
use crate::output;

#[derive(Serialize)]
struct Document {
    name: String,
    num_stages: usize,
    num_microbatches: usize,
    makespan: f64,
    bubble: f64,
    bubble_fraction: f64,
    peak_live_chunks: Vec<usize>,
    ranks: Vec<Vec<String>>,
}

pub fn run(arguments: &ScheduleArguments) -> anyhow::Result<Verdict> {
    let schedule = schedule(arguments)?;
    schedule.check()?;
    arguments.memory_cap.map_or(Ok(()), |cap| schedule.check_memory(cap))?;
    let timeline = schedule.simulate(&arguments.times)?;
    if let Some(path) = &arguments.csv {
        write(path, "--csv", &schedule.to_csv())?;
    }
    if let Some(path) = &arguments.svg {
        write(path, "--svg", &schedule.to_svg(&arguments.times)?)?;
    }
    if arguments.json {
        let strings = |rank: &Vec<_>| rank.iter().map(ToString::to_string).collect();
        output::json(&Document {
            name: schedule.name.clone(),
            num_stages: schedule.num_stages,
            num_microbatches: schedule.num_microbatches,
            makespan: timeline.makespan,
            bubble: timeline.bubble,
            bubble_fraction: timeline.bubble_fraction(),
            peak_live_chunks: schedule.peak_live(),
            ranks: schedule.ranks.iter().map(strings).collect(),
        })?;
    } else {
        output::bytes(schedule.draw(&arguments.times)?.as_bytes())?;
    }
    Ok(Verdict::Success)
}

fn write(path: &Path, flag: &str, text: &str) -> anyhow::Result<()> {
    fs::write(path, text)
        .map_err(|e| anyhow!("cannot write {}: {e}; give another file to {flag}", path.display()))
}

fn schedule(arguments: &ScheduleArguments) -> anyhow::Result<Schedule> {
    let Some(path) = &arguments.from_csv else {
        let name = arguments.name.as_deref().unwrap_or_default();
        let (stages, microbatches) = (arguments.stages.unwrap_or(0), arguments.microbatches.unwrap_or(0));
        let generator = find(name)?;
        let chunks = arguments.chunks.or(generator.chunks).unwrap_or(1);
        let (times, memory_cap) = (arguments.times, arguments.memory_cap);
        let request = Request { times, memory_cap, ..Request::new(stages, microbatches, chunks) };
        return Ok(generator.generate(&request)?);
    };
    let text = fs::read_to_string(path)
        .map_err(|e| anyhow!("cannot read {}: {e}; give a CSV file to --from-csv", path.display()))?;
    let name = arguments.name.clone().unwrap_or_else(|| path.display().to_string());
    Schedule::from_csv(&name, &text).map_err(|e| anyhow!("{}: {e}", path.display()))
}
