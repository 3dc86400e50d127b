//! Precisions below f64: how far layouts are from the truth beside one rank, and half precision's overflow, decided
//! over all ranks.

use std::collections::BTreeMap;
use std::time::Duration;

use kernels::Cpu;
use mesh::{Axis, Tile};
use plan::Chooser;
use runtime::{Batch, Destination, Executor, RuntimeError, StepInput};
use testkit::{Small, full};
use train::config::{Config, Precision};
use train::loss_scale::LossScale;
use train::parity::{Recorder, Recording, reference};
use train::synthetic::Synthetic;
use train::{TrainError, assemble, ranks};

const SEEDS: u64 = 8;

fn record(config: &Config) -> Recording {
    Recorder { steps: 1, ..Recorder::default() }.record(config).unwrap_or_else(|e| panic!("{e}"))
}

fn with(config: &Config, precision: Precision, seed: u64) -> Config {
    let mut config = config.clone();
    (config.train.precision, config.train.seed) = (precision, seed);
    config
}

/// Squared distance of all gradients from the truth, each tensor in units of its own norm.
fn squared_error(found: &BTreeMap<String, Vec<f64>>, truth: &BTreeMap<String, Vec<f64>>) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>();
    let largest = truth.values().map(|t| norm(&mut t.iter().copied())).fold(0.0, f64::max);
    truth
        .iter()
        .map(|(name, truth)| {
            let error = norm(&mut found[name].iter().zip(truth).map(|(a, b)| a - b));
            // Some gradients are zero in exact arithmetic (a key's bias under softmax).
            error / norm(&mut truth.iter().copied()).max(1e-6 * largest)
        })
        .sum()
}

/// A layout rounds otherwise than one rank, not more: pooled over all gradients and seeds its error against f64 is at
/// most twice that of one rank.
fn rounds_like_one_rank(precision: Precision, layouts: &[&str]) {
    for family in ["llama", "gpt2"] {
        let small = Small { family, num_layers: 4, dropout: 0.0, ..Small::default() };
        let one = reference(&small.config()).unwrap();
        let truths: Vec<Recording> =
            (0..SEEDS).map(|seed| record(&with(&one, Precision::F64, seed))).collect();
        let pooled = |config: &Config| -> f64 {
            let errors = (0..SEEDS).map(|seed| {
                let found = record(&with(config, precision, seed));
                assert_eq!(found.num_disagreements, 0, "ranks hold different bits");
                squared_error(&found.gradients[0], &truths[seed as usize].gradients[0])
            });
            errors.sum::<f64>().sqrt()
        };
        let alone = pooled(&one);
        assert!(alone > 0.0);
        for layout in layouts {
            let split = pooled(&small.layout(layout));
            assert!(split <= 2.0 * alone, "{family} {precision} on {layout}: {split:e}, one rank {alone:e}");
        }
    }
}

#[test]
fn single_precision_layouts_are_as_near_the_truth_as_one_rank() {
    let mut layouts = vec!["dp=2,tp=2;num_microbatches=3", "pp=2,cp=2;num_microbatches=3"];
    if full() {
        layouts.extend(["dp=4;zero=3", "tp=4;sequence=true", "pp=2,dp=2,cp=2,tp=2;sequence=true;zero=2"]);
    }
    rounds_like_one_rank(Precision::F32, &layouts);
}

#[test]
fn bf16_layouts_are_as_near_the_truth_as_one_rank() {
    let mut layouts = vec!["dp=2,tp=2;num_microbatches=3", "dp=2,pp=2;zero=3;num_microbatches=3"];
    if full() {
        layouts.extend(["cp=2;context=striped", "tp=4;sequence=true;recompute=full"]);
    }
    rounds_like_one_rank(Precision::Bf16, &layouts);
}

/// Every state of a rank, one after the other.
fn states(executor: &Executor) -> Result<Vec<u8>, TrainError> {
    Ok(executor.with_states(|all| all.iter().flat_map(|s| s.bytes.to_vec()).collect())?)
}

/// Puts back what [`states`] read.
fn restore(executor: &mut Executor, from: &[u8]) -> Result<(), TrainError> {
    let mut rest = from;
    executor.fill_states(|_, _, _, to| {
        let (own, after) = rest.split_at(to.len());
        to.copy_from_slice(own);
        rest = after;
        Ok(())
    })
}

/// The copies that an update writes are those that the new parameters cast to, and replaced parameters are cast again:
/// either way the next step has the same bits.
#[test]
fn narrow_copies_follow_their_parameters() {
    for layout in ["dp=1", "dp=2,tp=2;num_microbatches=3", "dp=2;zero=1", "dp=2,pp=2;zero=3"] {
        let small = Small { family: "llama", num_layers: 2, ..Small::default() };
        let config = with(&small.layout(layout), Precision::Bf16, 5);
        let stepper = assemble::training(&config, &assemble::model(&config, None).unwrap()).unwrap();
        ranks::run(stepper.plan.mesh.world_size(), Duration::from_secs(60), |world| {
            let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(Axis::Pp);
            let programs = vec![stepper.shared(pipeline_rank, &Chooser::Policy, false)?];
            let mut executor = Executor::new(world, programs, Cpu::single(), None)?;
            executor.initialise(&stepper.graph, 5)?;
            let run = |executor: &mut Executor, step: u64| -> Result<Vec<u8>, TrainError> {
                let mut batch =
                    Synthetic { seed: 5, step, vocab_size: 53, num_classes: 53, is_of_pairs: false };
                let scalars = [("lr", 1e-2), ("step", step as f64)];
                executor.run(0, &mut batch, &StepInput { seed: 5, step, scalars: &scalars })?;
                states(executor)
            };
            let first = states(&executor)?;
            let second = run(&mut executor, 1)?;
            let third = run(&mut executor, 2)?;
            assert!(first != second && second != third, "{layout}: steps change states");
            restore(&mut executor, &second)?;
            assert!(run(&mut executor, 2)? == third, "{layout}: the update left other copies");
            restore(&mut executor, &first)?;
            assert!(run(&mut executor, 1)? == second, "{layout}: copies outlived their parameters");
            Ok(())
        })
        .unwrap();
    }
}

/// A batch in which one data-parallel rank meets a token of absurd weight at one step.
struct Spiked {
    inner: Synthetic,
    spiked: bool,
}

impl Batch for Spiked {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        match to {
            Destination::F32(to) => {
                self.inner.load(input, tile, Destination::F32(to))?;
                if self.spiked && input == "weights" {
                    to.iter_mut().for_each(|w| *w *= 1e4);
                }
                Ok(())
            }
            to => self.inner.load(input, tile, to),
        }
    }
}

#[test]
fn an_overflow_on_one_rank_skips_the_same_step_on_all() {
    const SPIKE: u64 = 3;
    let small = Small { family: "gpt2", num_layers: 3, ..Small::default() };
    let config = with(&small.layout("dp=2,pp=2;zero=1;num_microbatches=2"), Precision::Fp16, 7);
    let built = assemble::model(&config, None).unwrap();
    let stepper = assemble::training(&config, &built).unwrap();
    let told = ranks::run(4, Duration::from_secs(60), |world| {
        let coord = stepper.plan.mesh.coord(world.rank());
        let programs = vec![stepper.shared(coord.get(Axis::Pp), &Chooser::Policy, false)?];
        let mut executor = Executor::new(world, programs, Cpu::single(), None)?;
        executor.initialise(&stepper.graph, 7)?;
        let mut scale = LossScale::default();
        let mut told = Vec::new();
        for step in 1..=6 {
            let spiked = step == SPIKE && coord.get(Axis::Dp) == 1;
            let mut batch = Spiked {
                inner: Synthetic { seed: 7, step, vocab_size: 53, num_classes: 53, is_of_pairs: false },
                spiked,
            };
            let update = (step - scale.skipped_steps) as f64;
            let scalars = [("lr", 1e-2), ("step", update), ("loss_scale", scale.factor(12 * 15))];
            let before = states(&executor)?;
            executor.run(0, &mut batch, &StepInput { seed: 7, step, scalars: &scalars })?;
            let mut norm = [0.0];
            executor.read_output(0, "grad_norm", &mut norm)?;
            let overflowed = !norm[0].is_finite();
            assert_eq!(
                before == states(&executor)?,
                overflowed,
                "step {step}: a skipped step changes nothing"
            );
            told.push((overflowed, scale.scale, update));
            scale.after(overflowed);
        }
        Ok(told)
    })
    .unwrap();
    let expected: Vec<(bool, f64, f64)> = [
        (false, 65536.0, 1.0),
        (false, 65536.0, 2.0),
        (true, 65536.0, 3.0),
        (false, 32768.0, 3.0),
        (false, 32768.0, 4.0),
        (false, 32768.0, 5.0),
    ]
    .to_vec();
    for rank in told {
        assert_eq!(rank, expected);
    }
}
