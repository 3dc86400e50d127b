//! Updates before the norm over all stages is known: what is taken back leaves no trace, so the bits are those of a run
//! that waits.

use std::time::Duration;

use mesh::{Axis, Tile};
use plan::{Chooser, Phase};
use runtime::{Batch, Destination, Executor, Ran, RuntimeError, StepInput};
use testkit::{Small, full};
use train::config::{Config, Precision};
use train::synthetic::Synthetic;
use train::{TrainError, assemble, ranks};

const STEPS: u64 = 6;
/// The step in which a token may weigh so much that half precision overflows.
const SPIKE: u64 = 3;

/// What a rank learned of a run.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    /// Loss and tokens of each step, and the norm of its gradient: bits.
    steps: Vec<[u64; 3]>,
    /// All states after the last step.
    states: Vec<u8>,
}

/// How often a step was refused, and how often one ran ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counts {
    refused: usize,
    ahead: usize,
}

struct Spiked {
    inner: Synthetic,
    is_spiked: bool,
}

impl Batch for Spiked {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        match to {
            Destination::F32(to) => {
                self.inner.load(input, tile, Destination::F32(to))?;
                if self.is_spiked && input == "weights" {
                    to.iter_mut().for_each(|weight| *weight *= 1e4);
                }
                Ok(())
            }
            to => self.inner.load(input, tile, to),
        }
    }
}

/// Trains some steps, each validated in the next one, where the configuration says so.
fn train(config: &Config, spike: Option<u64>) -> Vec<(Told, Counts)> {
    let built = assemble::model(config, None).unwrap();
    let stepper = assemble::training(config, &built).unwrap();
    ranks::run(stepper.plan.mesh.world_size(), Duration::from_secs(60), |world| {
        let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(Axis::Pp);
        let programs = vec![stepper.shared(pipeline_rank, &Chooser::Policy, false)?];
        let mut executor = Executor::new(world, programs, assemble::cpu(config)?, None)?;
        executor.initialise(&stepper.graph, 7)?;
        let (mut steps, mut counts) = (Vec::new(), Counts { refused: 0, ahead: 0 });
        let tell = |executor: &Executor, steps: &mut Vec<[u64; 3]>| -> Result<(), TrainError> {
            let (mut statistics, mut norm) = ([0.0; 2], [0.0]);
            executor.read_output(0, "statistics", &mut statistics)?;
            executor.read_output(0, "grad_norm", &mut norm)?;
            steps.push([statistics[0], statistics[1], norm[0]].map(f64::to_bits));
            Ok(())
        };
        let mut is_open = false;
        for step in 1..=STEPS {
            let inner = Synthetic::of(&built, 7, step);
            let mut batch = Spiked { inner, is_spiked: Some(step) == spike };
            let scalars = [("lr", 1e-2), ("step", step as f64), ("loss_scale", 64.0)];
            let input = StepInput { seed: 7, step, scalars: &scalars };
            loop {
                let ran = executor.run_ahead(0, &mut batch, &input)?;
                if std::mem::take(&mut is_open) {
                    tell(&executor, &mut steps)?;
                }
                match ran {
                    Ran::Again => counts.refused += 1,
                    Ran::Ahead => (is_open, counts.ahead) = (true, counts.ahead + 1),
                    Ran::Complete => tell(&executor, &mut steps)?,
                }
                if ran != Ran::Again {
                    break;
                }
            }
        }
        assert!(!is_open || executor.with_states(|_| ()).is_err(), "states of an open step are not final");
        executor.settle()?;
        if is_open {
            tell(&executor, &mut steps)?;
        }
        let states = executor.with_states(|all| all.iter().flat_map(|s| s.bytes.to_vec()).collect())?;
        Ok((Told { steps, states }, counts))
    })
    .unwrap_or_else(|e| panic!("{}: {e}", config.parallel.mesh))
}

fn with(small: &Small, layout: &str, clip_norm: f64, precision: Precision) -> [Config; 2] {
    [false, true].map(|post_validation| {
        let mut config = small.layout(&format!("{layout};post_validation={post_validation}"));
        (config.train.clip_norm, config.train.precision) = (clip_norm, precision);
        config
    })
}

/// Compares a run that waits with one that does not, and returns what the latter counted on its first rank.
fn compare(configs: &[Config; 2], spike: Option<u64>, what: &str) -> Counts {
    let [waits, does_not] = configs.each_ref().map(|config| train(config, spike));
    for ((waited, counts), (told, _)) in waits.iter().zip(&does_not) {
        assert_eq!(*counts, Counts { refused: 0, ahead: 0 }, "{what}");
        assert_eq!(waited.steps, told.steps, "{what}");
        assert!(waited.states == told.states, "{what}: states differ");
    }
    let counts = does_not[0].1;
    assert!(does_not.iter().all(|(_, other)| *other == counts), "{what}: ranks count differently");
    counts
}

/// Schedules that need not wait between steps, and two that gain less.
const SCHEDULES: &[(&str, usize)] =
    &[("zb-h2", 1), ("zb-v", 2), ("1f1b", 1), ("interleaved", 2), ("auto", 2)];

#[test]
fn what_is_taken_back_leaves_no_trace() {
    let inside = ["", ",dp=2;zero=1", ",tp=2", ",dp=2;zero=3", ",dp=2;zero=2"];
    let (mut case, mut refused, mut ahead) = (0, 0, 0);
    for pipeline_ranks in [2, 4] {
        for (schedule, chunks) in SCHEDULES {
            for inside in inside {
                case += 1;
                if !full() && case % 3 != 0 {
                    continue;
                }
                let layout = format!(
                    "pp={pipeline_ranks}{inside};schedule={schedule};chunks={chunks};num_microbatches=8"
                );
                let small = Small { num_layers: 9, batch: 16, ..Small::default() };
                // Clipped in no step, in every step, and in about half of them.
                let free = with(&small, &layout, 1e9, Precision::F64);
                let counts = compare(&free, None, &layout);
                assert_eq!(
                    counts,
                    Counts { refused: 0, ahead: STEPS as usize },
                    "{layout}: nothing is clipped"
                );
                let always = with(&small, &layout, 1e-3, Precision::F64);
                let counts = compare(&always, None, &layout);
                // The second step finds the first one refused; from then on none runs ahead.
                assert_eq!(counts, Counts { refused: 1, ahead: 1 }, "{layout}: all is clipped");
                let mut norms: Vec<f64> =
                    train(&free[0], None)[0].0.steps.iter().map(|step| f64::from_bits(step[2])).collect();
                norms.sort_by(f64::total_cmp);
                let some = with(&small, &layout, norms[norms.len() / 2], Precision::F64);
                let counts = compare(&some, None, &layout);
                (refused, ahead) = (refused + counts.refused, ahead + counts.ahead);
            }
        }
    }
    assert!(refused > 0 && ahead > refused, "{refused} refused of {ahead}");
}

#[test]
fn an_overflow_is_taken_back() {
    for layout in [
        "pp=2,dp=2;zero=1;schedule=zb-h2;num_microbatches=4",
        "pp=2;schedule=zb-v;chunks=2;num_microbatches=4",
    ] {
        let small = Small { family: "gpt2", num_layers: 4, dropout: 0.0, ..Small::default() };
        let configs = with(&small, layout, 0.0, Precision::Fp16);
        assert_eq!(compare(&configs, None, layout).refused, 0, "{layout}");
        assert_eq!(compare(&configs, Some(SPIKE), layout).refused, 1, "{layout}");
        let told = &train(&configs[1], Some(SPIKE))[0].0;
        let norm = f64::from_bits(told.steps[SPIKE as usize - 1][2]);
        assert!(!norm.is_finite(), "{layout}: the spike was no overflow: {norm}");
    }
}

#[test]
fn no_rank_waits_for_the_norm_before_it_updates() {
    let small = Small { num_layers: 9, batch: 16, ..Small::default() };
    let config = small.layout("pp=4,dp=2;zero=1;schedule=zb-h2;num_microbatches=8;post_validation=true");
    let stepper = assemble::training(&config, &assemble::model(&config, None).unwrap()).unwrap();
    for rank in 0..4 {
        let program = stepper.program(rank, &Chooser::Policy, false).unwrap();
        for block in program.blocks.iter().filter(|b| matches!(b.phase, Phase::Update | Phase::Apply)) {
            for instruction in &block.instructions {
                match instruction {
                    // The tied table has two holders, whose sum each of them needs.
                    plan::Instruction::Start { group, .. } => {
                        let key = &program.groups[*group];
                        assert!(!key.axes.contains(Axis::Pp), "rank {rank}: a collective over {key}");
                    }
                    plan::Instruction::Recv { from, .. } => assert_eq!(*from + 1, rank, "from a later stage"),
                    _ => {}
                }
            }
        }
        let saved = program.saved_bytes;
        assert_eq!(saved, program.memory.parameters_bytes + program.memory.optimizer_bytes, "rank {rank}");
    }
}
