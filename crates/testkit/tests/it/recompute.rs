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

const KINDS: [&str; 3] = ["none", "selective", "full"];

/// A model whose time goes to products, four layers on two stages.
fn config(layout: &str, recompute: &str) -> Config {
    let text = "[model]\nfamily = \"gpt2\"\nnum_layers = 4\nembed = 192\nnum_heads = 4\nvocab_size = 200\ntied = false\n\
                [data]\nsequence_length = 64\n[train]\nbatch = 8\nprecision = \"f32\"\n";
    let layout = format!("{layout};recompute={recompute}");
    Config::from_bytes(Path::new("recompute.toml"), text.as_bytes(), &[], Some(&layout)).unwrap()
}

#[test]
fn arenas_are_as_predicted_and_smaller_the_more_is_computed_again() {
    for layout in ["pp=2;num_microbatches=4", "pp=2,dp=2;num_microbatches=2;zero=2;schedule=zb-h1"] {
        let mut kept = Vec::new();
        for kind in KINDS {
            let config = config(layout, kind);
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
        assert!(kept[0] > kept[1] && kept[1] > kept[2], "{layout}: {kept:?}");
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
    let run = |kind: &str| profile(&config(layout, kind), Links::default(), 10).unwrap();
    for (stage, recomputed) in explain(&config(layout, "full")).unwrap().recomputed.iter().enumerate() {
        assert_eq!(recomputed.stage, stage);
        // What is predicted counts products alone; and other work on the machine comes and goes.
        let mut tries: Vec<f64> = Vec::new();
        let near = |ratio: &f64| (0.75..=1.25).contains(ratio);
        while tries.len() < 8 && !tries.last().is_some_and(near) {
            let (without, with) = (seconds(&run("none"), stage), seconds(&run("full"), stage));
            tries.push((with / without - 1.0) / recomputed.extra_fraction);
        }
        println!(
            "stage {stage}: predicted {:.1} % more, measured {:.2?} times that",
            100.0 * recomputed.extra_fraction,
            tries
        );
        assert!(near(&tries[tries.len() - 1]), "stage {stage}: {tries:?} times {recomputed:?}");
    }
}
