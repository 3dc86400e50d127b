//! Recompute keeps less and takes longer, by what `explain` says.

use std::path::Path;
use std::time::Duration;

use mesh::Axis;
use plan::Chooser;
use runtime::Executor;
use train::config::Config;
use train::explain::explain;
use train::pipeline_profile::{Profile, profile};
use train::virtual_clock::Links;
use train::{assemble, ranks};

/// Each keeps less than the one before.
const KINDS: [&str; 5] = ["none", "attention", "selective", "full;recompute_layers=1", "full"];

/// Four layers for two stages. The time of wide ones goes to products.
fn config(layout: &str, recompute: &str, embed: usize) -> Config {
    let text = format!(
        "[model]\nfamily = \"gpt2\"\nnum_layers = 4\nembed = {embed}\nnum_heads = 4\nvocab_size = 200\ntied = false\n\
         [data]\nsequence_length = 64\n[train]\nbatch = 8\nprecision = \"f32\"\n"
    );
    let layout = format!("{layout};recompute={recompute}");
    Config::from_bytes(Path::new("recompute.toml"), text.as_bytes(), &[], Some(&layout)).unwrap()
}

#[test]
fn arenas_are_as_predicted_and_smaller_the_more_is_computed_again() {
    for layout in ["pp=2;num_microbatches=4", "pp=2,dp=2;num_microbatches=2;zero=2;schedule=zb-h1"] {
        let mut kept = Vec::new();
        for kind in KINDS {
            let config = config(layout, kind, 192);
            let explanation = explain(&config).unwrap();
            let built = assemble::model(&config, None).unwrap();
            let steps = assemble::steps(&config, &built).unwrap();
            let reserved = ranks::run(explanation.world_size, Duration::from_secs(60), |world| {
                let stage = steps[0].plan.mesh.coord(world.rank()).get(Axis::Pp);
                let programs = steps.iter().map(|step| step.shared(stage, &Chooser::Policy, false));
                let programs = programs.collect::<Result<Vec<_>, _>>()?;
                Ok(Executor::new(world, programs, assemble::cpu(&config)?, None)?.arena_bytes() as u64)
            })
            .unwrap();
            let predicted: Vec<u64> = explanation.per_rank.iter().map(|rank| rank.arena_bytes).collect();
            assert_eq!(reserved, predicted, "{layout}, {kind}");
            kept.push(explanation.per_rank[0].activations_bytes);
            assert_eq!(explanation.recomputed.len(), if kind == "none" { 0 } else { 2 }, "{layout}, {kind}");
        }
        assert!(kept.is_sorted_by(|more, less| more > less), "{layout}: {kept:?}");
    }
}

/// Seconds of all actions of a rank in the step that was disturbed least.
fn seconds(profile: &Profile, rank: usize) -> f64 {
    let of_step = |step: &train::pipeline_profile::Step| -> f64 {
        step.ranks[rank].iter().map(|executed| executed.end - executed.start).sum()
    };
    profile.steps.iter().map(of_step).fold(f64::INFINITY, f64::min)
}

#[test]
fn the_extra_time_is_as_predicted() {
    let layout = "pp=2;num_microbatches=4";
    for (kind, embed, bounds) in
        [("full", 192, 0.75..=1.25), ("linear", 192, 0.75..=1.25), ("selective", 32, 0.5..=1.5)]
    {
        let config = |kind: &str| config(layout, kind, embed);
        let run = |kind: &str| profile(&config(kind), Links::default(), 10).unwrap();
        let recomputed = explain(&config(kind)).unwrap().recomputed;
        assert_eq!(recomputed.len(), 2, "{kind}");
        for (stage, recomputed) in recomputed.iter().enumerate() {
            assert_eq!(recomputed.stage, stage);
            // Other work on the machine comes and goes.
            let mut tries: Vec<f64> = Vec::new();
            while tries.len() < 8 && !tries.last().is_some_and(|ratio| bounds.contains(ratio)) {
                let (without, with) = (seconds(&run("none"), stage), seconds(&run(kind), stage));
                tries.push((with / without - 1.0) / recomputed.extra_fraction);
            }
            println!(
                "{kind}, stage {stage}: predicted {:.1} % more, measured {:.2?} times that",
                100.0 * recomputed.extra_fraction,
                tries
            );
            assert!(bounds.contains(&tries[tries.len() - 1]), "{kind}, stage {stage}: {tries:?}");
        }
    }
}
