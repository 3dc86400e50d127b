//! The reference itself: gradients of one rank against central differences of its loss. Parity cannot see a bug that
//! every layout shares.

use std::time::Duration;

use plan::Chooser;
use runtime::{Executor, StepInput};
use testkit::Small;
use train::synthetic::Synthetic;
use train::{TrainError, assemble, ranks};

const STEP: f64 = 1e-5;

fn check(small: &Small) -> Result<(), TrainError> {
    let config = small.config();
    let built = assemble::model(&config, None)?;
    let stepper = assemble::training(&config, &built)?;
    ranks::run(1, Duration::from_secs(60), |world| {
        let program = stepper.shared(0, &Chooser::Policy, true)?;
        let mut executor = Executor::new(world, vec![program], kernels::Cpu::single(), None)?;
        executor.initialise(&stepper.graph, 3)?;
        let start: Vec<(String, Vec<u8>)> = executor
            .with_states(|all| all.iter().map(|s| (s.name.to_owned(), s.bytes.to_vec())).collect())?;
        let mut loss_with = |change: Option<(&str, usize, f64)>| -> Result<(f64, Vec<f64>), TrainError> {
            executor.fill_states(|name, _, _, bytes| {
                bytes.copy_from_slice(&start.iter().find(|(n, _)| n == name).unwrap().1);
                if let Some((changed, element, delta)) = change
                    && changed == name
                {
                    let at = &mut bytes[element * 8..element * 8 + 8];
                    let value = f64::from_le_bytes((&*at).try_into().unwrap()) + delta;
                    at.copy_from_slice(&value.to_le_bytes());
                }
                Ok::<(), TrainError>(())
            })?;
            let mut batch = Synthetic::of(&built, 3, 1);
            let input = StepInput { seed: 3, step: 1, scalars: &[("lr", 0.0), ("step", 1.0)] };
            executor.run(0, &mut batch, &input)?;
            let mut statistics = [0.0];
            executor.read_output(0, "statistics", &mut statistics)?;
            let gradient = match change {
                None => vec![],
                Some((name, _, _)) => executor.output(0, &format!("gradient:{name}"))?.1,
            };
            Ok((statistics[0], gradient))
        };
        loss_with(None)?;
        let parameters: Vec<(String, usize)> =
            start.iter().filter(|(n, _)| !n.contains(':')).map(|(n, b)| (n.clone(), b.len() / 8)).collect();
        assert!(parameters.len() > 10);
        let largest_of = |gradient: &[f64]| gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let mut gradients = Vec::new();
        for (name, _) in &parameters {
            gradients.push(loss_with(Some((name, 0, 0.0)))?.1);
        }
        let floor = 1e-3 * gradients.iter().map(|g| largest_of(g)).fold(0.0, f64::max);
        for ((name, len), gradient) in parameters.into_iter().zip(gradients) {
            let largest = largest_of(&gradient).max(floor);
            for element in (0..len).step_by((len / 6).max(1)) {
                let (above, _) = loss_with(Some((&name, element, STEP)))?;
                let (below, _) = loss_with(Some((&name, element, -STEP)))?;
                let difference = (above - below) / (2.0 * STEP);
                let error = (difference - gradient[element]).abs() / largest;
                assert!(
                    error < 1e-6,
                    "{name}[{element}]: {difference} but gradient {}: {error:e}",
                    gradient[element]
                );
            }
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn gradients_of_one_rank_match_differences_of_the_loss() {
    for family in ["llama", "gpt2"] {
        for tied in [true, false] {
            for dropout in [0.0, 0.2] {
                let small = Small { family, tied, num_layers: 2, batch: 3, dropout, ..Small::default() };
                check(&small).unwrap_or_else(|e| panic!("{small:?}: {e}"));
            }
        }
    }
}
