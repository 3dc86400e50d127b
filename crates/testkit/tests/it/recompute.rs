//! Recompute keeps less and takes longer, by what `explain` says.

use std::path::Path;
use std::time::Duration;

use kernels::InstructionSet;
use mesh::Axis;
use plan::{Chooser, Instruction, Program};
use runtime::Executor;
use testkit::measure;
use train::config::Config;
use train::explain::explain;
use train::pipeline_profile::profile;
use train::virtual_clock::Links;
use train::{assemble, ranks};

/// Each keeps less than the one before.
const KINDS: [&str; 5] = ["none", "attention", "selective", "full;recompute_layers=1", "full"];

/// Four layers for two stages. The time of wide ones goes to products.
fn config(layout: &str, recompute: &str, embed: usize, precision: &str) -> Config {
    let text = format!(
        "[model]\nfamily = \"gpt2\"\nnum_layers = 4\nembed = {embed}\nnum_heads = 4\nvocab_size = 200\ntied = false\n\
         [data]\nsequence_length = 256\n[train]\nbatch = 8\nprecision = \"{precision}\"\n"
    );
    let layout = format!("{layout};recompute={recompute}");
    Config::from_bytes(Path::new("recompute.toml"), text.as_bytes(), &[], Some(&layout)).unwrap()
}

#[test]
fn arenas_are_as_predicted_and_smaller_the_more_is_computed_again() {
    for layout in ["pp=2;num_microbatches=4", "pp=2,dp=2;num_microbatches=2;zero=2;schedule=zb-h1"] {
        let mut kept = Vec::new();
        for kind in KINDS {
            let config = config(layout, kind, 192, "f32");
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

/// Operations that a rank computes in a step.
fn operations(program: &Program) -> usize {
    let computes = |instruction: &Instruction| matches!(instruction, Instruction::Compute { .. });
    let of_run = |run: plan::Run| {
        run.instructions(&program.blocks[run.block]).filter(|(_, instruction)| computes(instruction)).count()
    };
    program.runs().into_iter().map(of_run).sum()
}

#[test]
fn what_is_computed_again_is_what_the_program_has_more() {
    for layout in ["pp=2;num_microbatches=4", "pp=2,tp=2;num_microbatches=4;schedule=zb-h1"] {
        let programs = |kind: &str| -> Vec<usize> {
            let config = config(layout, kind, 32, "f32");
            let stepper = assemble::training(&config, &assemble::model(&config, None).unwrap()).unwrap();
            let program = |stage| stepper.program(stage, &Chooser::Policy, false).unwrap();
            (0..2).map(|stage| operations(&program(stage))).collect()
        };
        let without = programs("none");
        for kind in &KINDS[1..] {
            let more: Vec<usize> =
                programs(kind).iter().zip(&without).map(|(with, without)| with - without).collect();
            let explained = explain(&config(layout, kind, 32, "f32")).unwrap().recomputed;
            let explained: Vec<usize> = explained.iter().map(|recomputed| recomputed.operations).collect();
            assert_eq!(more, explained, "{layout}, {kind}");
        }
    }
}

/// The times of what is computed again and of all else are taken in the same steps, so that a busy machine, which slows
/// both, disturbs their ratio little.
#[test]
fn the_extra_time_is_as_predicted() {
    let mut all: Vec<_> =
        ["full", "linear", "selective", "attention"].map(|kind| ("f32", kind, 0.75..=1.25)).into();
    if InstructionSet::best() == InstructionSet::Amx {
        all.extend(["full", "linear", "attention"].map(|kind| ("bf16", kind, 0.65..=1.35)));
        all.push(("bf16", "selective", 0.5..=2.0));
    } else {
        eprintln!("skipped: the extra time in bf16, as this machine has no AMX");
    }
    for (precision, kind, bounds) in all {
        let config = config("pp=2;num_microbatches=4", kind, 256, precision);
        let ratios = || {
            let report = profile(&config, Links::default(), 4).unwrap().report().unwrap();
            assert_eq!(report.recompute.len(), 2, "{kind}");
            [0, 1].map(|stage| report.recompute[stage].executed / report.recompute[stage].predicted)
        };
        let is_within = |ratios: &[f64; 2]| ratios.iter().all(|ratio| bounds.contains(ratio));
        let tries = measure(ratios, is_within);
        println!("{precision}, {kind}: measured {tries:.2?} times what is predicted, for each of two stages");
        assert!(is_within(&tries[tries.len() - 1]), "{precision}, {kind}: {tries:?}");
    }
}
