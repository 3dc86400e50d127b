//! Programs for several lengths of sequences over the same states: what one leaves under way is there before another runs.

use std::path::Path;
use std::time::Duration;

use mesh::Axis;
use plan::Chooser;
use runtime::{Executor, Ran, StepInput};
use testkit::Throttled;
use train::config::{Config, Name, Precision};
use train::synthetic::Synthetic;
use train::{assemble, ranks};

const TEXT: &str = "[model]\nfamily = \"gpt2\"\nnum_layers = 3\nembed = 48\nnum_heads = 4\nvocab_size = 120\ntied = false\n\
                    [data]\nsequence_length = 24\nlength_buckets = [8, 16]\npacking = false\n[train]\nbatch = 8\n";
/// Which program each step runs: of the three for training, or of those for evaluation behind them.
const PROGRAMS: [usize; 11] = [0, 1, 1, 2, 0, 3, 0, 2, 4, 1, 0];
/// Slow enough that gathers are under way while the next step runs.
const BYTES_PER_SECOND: f64 = 2e7;

/// The losses of all steps and the states after them, on every rank; each step is settled before the next one starts, or
/// not.
fn outcome(config: &Config, ahead: bool) -> Vec<(Vec<f64>, Vec<u8>)> {
    let built = assemble::model(config, None).unwrap();
    let steps = assemble::steps(config, &built).unwrap();
    let mesh = &steps[0].plan.mesh;
    let of_ranks = ranks::run(mesh.world_size(), Duration::from_secs(60), |world| {
        let stage = mesh.coord(world.rank()).get(Axis::Pp);
        let programs =
            steps.iter().map(|s| s.shared(stage, &Chooser::Policy, false)).collect::<Result<Vec<_>, _>>()?;
        assert!(programs[..3].iter().all(|(_, program)| !program.carried.is_empty()));
        let wrap = Throttled::wrap(BYTES_PER_SECOND);
        let wrap = if ahead { Some(&*wrap) } else { None };
        let mut executor = Executor::new(world, programs, assemble::cpu(config)?, wrap)?;
        executor.initialise(&steps[0].graph, 1)?;
        let mut losses = Vec::new();
        for (number, step) in PROGRAMS.into_iter().zip(1..) {
            let mut batch = Synthetic::of(&built, 1, step);
            let scalars = [("lr", 1e-2), ("step", step as f64)];
            let input = StepInput { seed: 1, step, scalars: &scalars };
            match ahead {
                true => assert_eq!(executor.run_ahead(number, &mut batch, &input)?, Ran::Complete),
                false => executor.run(number, &mut batch, &input)?,
            }
            let mut statistics = [0.0; 2];
            executor.read_output(number, "statistics", &mut statistics)?;
            losses.push(statistics[0]);
        }
        executor.settle()?;
        let states = executor.with_states(|all| all.iter().flat_map(|s| s.bytes.to_vec()).collect())?;
        Ok((losses, states))
    });
    of_ranks.unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_a_step_leaves_under_way_is_there_before_another_program_runs() {
    for layout in ["dp=2;zero=1", "dp=2;zero=2;num_microbatches=2", "dp=2,pp=2;zero=1;num_microbatches=2"] {
        for precision in ["f32", "bf16"] {
            let mut config =
                Config::from_bytes(Path::new("small.toml"), TEXT.as_bytes(), &[], Some(layout)).unwrap();
            config.train.precision = Precision::from_name(precision).unwrap();
            assert!(outcome(&config, true) == outcome(&config, false), "{precision} on {layout}");
        }
    }
}
