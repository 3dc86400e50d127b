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

const STEPS: u64 = 20;
const TRIES: usize = 5;

/// One layer of 64 on each stage, as many microbatches as twice the ranks.
fn config(pipeline_ranks: usize, schedule: &str, chunks: usize, post_validation: bool) -> Config {
    let (layers, microbatches) = (pipeline_ranks * chunks, 2 * pipeline_ranks);
    let text = format!(
        "[model]\nfamily = \"gpt2\"\nnum_layers = {layers}\nembed = 64\nnum_heads = 4\nvocab_size = 100\n\
         tied = false\n[data]\nsequence_length = 64\n[train]\nbatch = {microbatches}\nprecision = \"f32\"\n\
         clip_norm = 1e9\n"
    );
    let layout = format!(
        "pp={pipeline_ranks};schedule={schedule};chunks={chunks};num_microbatches={microbatches};\
         post_validation={post_validation}"
    );
    Config::from_bytes(Path::new("step.toml"), text.as_bytes(), &[], Some(&layout)).expect("a configuration")
}

/// Virtual milliseconds of a step: of several without a pause between them, to where the last rank is done.
fn step_milliseconds(config: &Config) -> f64 {
    let built = assemble::model(config, None).expect("a model");
    let stepper = assemble::training(config, &built).expect("a step");
    let world = VirtualWorld::new(Links { latency_seconds: 1e-5, bytes_per_second: 1e9 });
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

fn main() {
    println!("| ranks | schedule | waits for the norm (ms a step) | validates later | gain |");
    println!("|---|---|---|---|---|");
    for pipeline_ranks in [4, 8] {
        for (schedule, chunks) in [("zb-h2", 1), ("zb-v", 2)] {
            let mut times = [vec![], vec![]];
            for _ in 0..TRIES {
                for (times, post_validation) in times.iter_mut().zip([false, true]) {
                    times.push(step_milliseconds(&config(pipeline_ranks, schedule, chunks, post_validation)));
                }
            }
            let [waits, later] = times.map(|mut times| {
                times.sort_by(f64::total_cmp);
                times[TRIES / 2]
            });
            println!(
                "| {pipeline_ranks} | {schedule} | {waits:.3} | {later:.3} | {:.1} % |",
                100.0 * (1.0 - later / waits)
            );
        }
    }
}
