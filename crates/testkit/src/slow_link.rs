//! Two data-parallel ranks over a link that takes time: what a step's samples say of overlap.

use std::path::Path;
use std::time::{Duration, Instant};

use plan::{Chooser, Phase, Program};
use runtime::{Executor, Ran, Sample, StepInput};
use train::config::Config;
use train::synthetic::Synthetic;
use train::{assemble, ranks};

use crate::Throttled;

/// A model whose backward takes a tenth of a second, on two data-parallel ranks.
///
/// # Panics
/// If the layout is none.
pub fn config(layout: &str) -> Config {
    let text = "[model]\nfamily = \"gpt2\"\nnum_layers = 6\nembed = 192\nnum_heads = 4\nvocab_size = 1000\ntied = false\n\
                [data]\nsequence_length = 256\n[train]\nbatch = 16\nprecision = \"f32\"\n";
    Config::from_bytes(Path::new("overlap.toml"), text.as_bytes(), &[], Some(layout))
        .expect("a valid configuration")
}

/// Samples of one step of every rank, the second of two, over links of this speed.
///
/// # Panics
/// If a rank fails.
pub fn step(config: &Config, bytes_per_second: f64) -> (Program, Vec<Vec<Sample>>) {
    let built = assemble::model(config, None).expect("a model");
    let stepper = assemble::training(config, &built).expect("a step");
    let origin = Instant::now();
    let by_rank = ranks::run(stepper.plan.mesh.world_size(), Duration::from_secs(60), |world| {
        let programs = vec![stepper.shared(0, &Chooser::Policy, false)?];
        let program = programs[0].1.clone();
        let wrap = Throttled::wrap(bytes_per_second);
        let mut executor = Executor::new(world, programs, assemble::cpu(config)?, Some(&wrap))?;
        executor.initialise(&stepper.graph, 1)?;
        for step in 1..=2 {
            executor.start_recording(0, Box::new(move || origin.elapsed().as_secs_f64()), 1 << 16);
            let mut batch = Synthetic::of(&built, 1, step);
            let scalars = [("lr", 1e-3), ("step", step as f64)];
            let input = StepInput { seed: 1, step, scalars: &scalars };
            assert_eq!(executor.run_ahead(0, &mut batch, &input)?, Ran::Complete);
        }
        let samples = executor.stop_recording();
        executor.settle()?;
        Ok(((*program).clone(), samples))
    })
    .expect("no rank fails");
    let (mut programs, samples): (Vec<Program>, Vec<Vec<Sample>>) = by_rank.into_iter().unzip();
    (programs.remove(0), samples)
}

/// Seconds from the first to the last instruction of one microbatch's run of a phase.
///
/// # Panics
/// If there is no such run.
pub fn span(program: &Program, samples: &[Sample], microbatch: usize, phase: Phase) -> f64 {
    let is_it = |s: &&Sample| s.microbatch == microbatch && program.blocks[s.block].phase == phase;
    let run: Vec<&Sample> = samples.iter().filter(is_it).collect();
    run[run.len() - 1].end_seconds - run[0].start_seconds
}
