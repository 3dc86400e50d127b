//! Leaving any one collective out must break parity: so none is redundant, and the gate can fail.

use plan::Chooser;
use testkit::{Drop, Mutant, Small, count_collectives, full};
use train::parity::{Recorder, reference};

/// Plans that together use every kind of collective on every axis.
const PLANS: &[&str] = &[
    "dp=2,tp=2;num_microbatches=2",
    "tp=4;sequence=true",
    "cp=2,tp=2;sequence=true;context=striped",
    "dp=2,cp=2;zero=1",
    "dp=2;zero=3;num_microbatches=2",
    "dp=2,pp=2;zero=2;num_microbatches=2",
    "pp=2,tp=2;recompute=full;num_microbatches=2",
];

#[test]
fn no_collective_can_be_left_out() {
    let small = Small { num_layers: 2, batch: 8, ..Small::default() };
    let one =
        Recorder { steps: 2, ..Recorder::default() }.record(&reference(&small.config()).unwrap()).unwrap();
    let (mut mutants, mut smallest) = (0, f64::INFINITY);
    for (p, layout) in PLANS.iter().enumerate() {
        let config = small.layout(layout);
        let decoder = train::assemble::decoder(&config, None).unwrap();
        let stepper = train::assemble::training(&config, &decoder).unwrap();
        let counts: Vec<Vec<(String, usize)>> = (0..config.parallel.mesh.pp)
            .map(|p| count_collectives(&stepper.program(p, &Chooser::Policy, true).unwrap()))
            .collect();
        let mut most: Vec<(String, usize)> = Vec::new();
        for (group, count) in counts.iter().flatten() {
            match most.iter_mut().find(|(g, _)| g == group) {
                Some((_, n)) => *n = (*n).max(*count),
                None => most.push((group.clone(), *count)),
            }
        }
        for (group, count) in most {
            for nth in (0..count).filter(|n| full() || n % 3 == p % 3 || count < 6) {
                let wrap = |rank: usize| {
                    let here = &counts[stepper.plan.mesh.coord(rank).get(mesh::Axis::Pp)];
                    let per_step = here.iter().find(|(g, _)| *g == group).map_or(0, |(_, n)| *n);
                    Mutant::wrap(Some(Drop { group: group.clone(), nth, per_step }))
                };
                let recorder = Recorder { steps: 2, wrap: Some(&wrap), ..Recorder::default() };
                let recording = recorder.record(&config).unwrap();
                let d = recording.distance(&one);
                let error = d.loss_error.max(d.gradient_error).max(d.parameter_error);
                assert!(
                    error > 1e-6 || recording.num_disagreements > 0,
                    "{layout}: collective {nth} of group {group} can be left out: {d:?}"
                );
                mutants += 1;
                smallest = smallest.min(error);
            }
        }
    }
    println!("{mutants} mutants, none survived; smallest error {smallest:.1e}");
    assert!(mutants > 100);
}
