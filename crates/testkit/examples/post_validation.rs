//! What a step takes in virtual time if no stage waits for the gradient's norm over all stages, beside one that does:
//! ZB-H2 and ZB-V, clipping on, nothing clipped.
//!
//! `cargo run --release -p phalanx-testkit --example post_validation`

use std::path::Path;
use std::time::Duration;

use mesh::Axis;
use plan::Chooser;
use runtime::{Executor, Ran, StepInput};
use train::config::Config;
use train::synthetic::Synthetic;
use train::virtual_clock::{Links, VirtualWorld};
use train::{assemble, ranks};

const STEPS: u64 = 10;
const TRIES: usize = 5;

/// One layer of 128 on each stage, as many microbatches as twice the ranks.
fn config(pipeline_ranks: usize, schedule: &str, chunks: usize, post_validation: bool) -> Config {
    let (layers, microbatches) = (pipeline_ranks * chunks, 2 * pipeline_ranks);
    let text = format!(
        "[model]\nfamily = \"gpt2\"\nnum_layers = {layers}\nembed = 128\nnum_heads = 4\nvocab_size = 100\n\
         tied = false\n[data]\nsequence_length = 128\n[train]\nbatch = {microbatches}\nprecision = \"f32\"\n\
         clip_norm = 1e9\n"
    );
    let layout = format!(
        "pp={pipeline_ranks};schedule={schedule};chunks={chunks};num_microbatches={microbatches};\
         post_validation={post_validation}"
    );
    Config::from_bytes(Path::new("step.toml"), text.as_bytes(), &[], Some(&layout)).expect("a configuration")
}

/// Virtual milliseconds of a step: of several without a pause between them, to where the last rank is done.
fn step_milliseconds(config: &Config, links: Links) -> f64 {
    let built = assemble::model(config, None).expect("a model");
    let stepper = assemble::training(config, &built).expect("a step");
    let world = VirtualWorld::new(links);
    let moments = ranks::run(stepper.plan.mesh.world_size(), Duration::from_secs(60), |inner| {
        let (communicator, clock) = world.join(inner);
        let pipeline_rank = stepper.plan.mesh.coord(communicator.rank()).get(Axis::Pp);
        let programs = vec![stepper.shared(pipeline_rank, &Chooser::Policy, false)?];
        let mut executor = Executor::new(communicator, programs, assemble::cpu(config)?, None)?;
        executor.initialise(&stepper.graph, 1)?;
        let mut begin = 0.0;
        for step in 0..=STEPS {
            if step == 1 {
                executor.settle()?;
                begin = clock.now();
            }
            let mut batch = Synthetic::of(&built, 1, step);
            let scalars = [("lr", 1e-3), ("step", step as f64 + 1.0), ("loss_scale", 1.0)];
            let input = StepInput { seed: 1, step, scalars: &scalars };
            let ran = executor.run_ahead(0, &mut batch, &input)?;
            assert_ne!(ran, Ran::Again, "nothing is clipped");
        }
        executor.settle()?;
        Ok((begin, clock.now()))
    })
    .expect("no rank fails");
    let last = |of: fn(&(f64, f64)) -> f64| moments.iter().map(of).fold(0.0, f64::max);
    1e3 * (last(|m| m.1) - last(|m| m.0)) / STEPS as f64
}

/// Forwards that each rank does before it knows whether the last step stands, and the kilobytes of states it keeps.
fn ahead(config: &Config) -> (Vec<usize>, usize) {
    let built = assemble::model(config, None).expect("a model");
    let stepper = assemble::training(config, &built).expect("a step");
    let programs = (0..config.parallel.mesh.pp).map(|rank| stepper.program(rank, &Chooser::Policy, false));
    let programs: Vec<_> = programs.map(|program| program.expect("a program")).collect();
    let num_ahead = programs.iter().map(|p| p.validation.as_ref().map_or(0, |v| v.num_ahead)).collect();
    (num_ahead, programs.iter().map(|p| p.saved_bytes).max().unwrap_or(0) / 1000)
}

fn main() {
    println!(
        "| ranks | schedule | waits (ms a step) | validates later | gain | forwards ahead | states kept (kB) |"
    );
    println!("|---|---|---|---|---|---|---|");
    for pipeline_ranks in [4, 8] {
        for (schedule, chunks) in [("zb-h2", 1), ("zb-v", 2)] {
            let of = |post_validation| config(pipeline_ranks, schedule, chunks, post_validation);
            let (num_ahead, kilobytes) = ahead(&of(true));
            let links = Links { latency_seconds: 1e-5, bytes_per_second: 1e9 };
            let mut times = [vec![], vec![]];
            for _ in 0..TRIES {
                for (times, post_validation) in times.iter_mut().zip([false, true]) {
                    times.push(step_milliseconds(&of(post_validation), links));
                }
            }
            let [waits, later] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                times[TRIES / 2]
            });
            println!(
                "| {pipeline_ranks} | {schedule} | {waits:.3} | {later:.3} | {:.1} % | {num_ahead:?} | {kilobytes} |",
                100.0 * (1.0 - later / waits)
            );
        }
    }
}
