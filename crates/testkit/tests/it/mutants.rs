//! Leaving any one collective out must break parity: so none is redundant, and the gate can fail.

use std::collections::BTreeSet;

use plan::{Chooser, Collective};
use testkit::{Drop, Mutant, Small, collectives, full};
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
    "dp=2;num_microbatches=2;bucket_bytes=4000",
    "dp=2;zero=1;num_microbatches=2;bucket_bytes=4000",
];

#[test]
fn no_collective_can_be_left_out() {
    let small = Small { num_layers: 2, batch: 8, ..Small::default() };
    let one =
        Recorder { steps: 2, ..Recorder::default() }.record(&reference(&small.config()).unwrap()).unwrap();
    let (mut mutants, mut unseen, mut smallest) = (0, 0, f64::INFINITY);
    for (p, layout) in PLANS.iter().enumerate() {
        let config = small.layout(layout);
        let built = train::assemble::model(&config, None).unwrap();
        let stepper = train::assemble::training(&config, &built).unwrap();
        let here: Vec<Vec<(String, Vec<Collective>)>> = (0..config.parallel.mesh.pp)
            .map(|p| collectives(&stepper.program(p, &Chooser::Policy, true).unwrap()))
            .collect();
        let groups: BTreeSet<&String> = here.iter().flatten().map(|(g, _)| g).collect();
        let of = |rank: usize, group: &str| -> &[Collective] {
            let stage = &here[stepper.plan.mesh.coord(rank).get(mesh::Axis::Pp)];
            stage.iter().find(|(g, _)| *g == group).map_or(&[], |(_, c)| c)
        };
        for group in groups {
            let world_size = stepper.plan.mesh.world_size();
            let count = (0..world_size).map(|r| of(r, group).len()).max().unwrap_or(0);
            for nth in (0..count).filter(|n| full() || n % 3 == p % 3 || count < 6) {
                let wrap = |rank: usize| {
                    let per_step = of(rank, group).len();
                    Mutant::wrap(Some(Drop { group: group.clone(), nth, per_step }))
                };
                let recorder = Recorder { steps: 2, wrap: Some(&wrap), ..Recorder::default() };
                let recording = recorder.record(&config).unwrap();
                let d = recording.distance(&one);
                let error = d.loss_error.max(d.gradient_error).max(d.parameter_error);
                mutants += 1;
                if error > 1e-6 || recording.num_disagreements > 0 {
                    smallest = smallest.min(error);
                    continue;
                }
                // Any number that is the same on all ranks may stand for the row's maximum: it cancels, and only keeps
                // the exponential from overflowing. Where a gather follows its reduction, parity cannot see it; the
                // static checker does, in the tests of `plan`.
                let is_max = |c: &Collective| matches!(c, Collective::ReduceScatter(mesh::Reduce::Max));
                let only_max = (0..world_size).filter_map(|r| of(r, group).get(nth)).all(is_max);
                assert!(only_max, "{layout}: collective {nth} of group {group} can be left out: {d:?}");
                unseen += 1;
            }
        }
    }
    println!("{mutants} mutants; smallest error {smallest:.1e}; {unseen} left out a maximum that cancels");
    assert!(mutants > 100 && unseen * 20 < mutants);
}
