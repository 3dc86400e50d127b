//! A schedule is an order of work, nothing else: at the same number of stages every one trains with the same bits.

use std::collections::HashMap;

use schedule::{Schedule, generate, generators};
use testkit::{Small, full};
use train::parity::{Recorder, Recording};

#[path = "../../../schedule/src/mutate.rs"]
mod mutate;

use mutate::{Draw, mutate};

fn record(small: &Small, layout: &str) -> Recording {
    let recorder = Recorder { steps: 2, ..Recorder::default() };
    let recording = recorder.record(&small.layout(layout)).unwrap_or_else(|e| panic!("{layout}: {e}"));
    assert_eq!(recording.num_disagreements, 0, "{layout}");
    recording
}

/// Schedules by the number of stages per pipeline rank.
const SCHEDULES: &[(usize, &[&str])] =
    &[(1, &["1f1b", "zb-h1", "zb-h2"]), (2, &["looped", "interleaved", "zb-v", "dualpipe-v"])];

#[test]
fn every_schedule_trains_with_the_bits_of_gpipe() {
    let small = Small { num_layers: 9, batch: 16, ..Small::default() };
    let extras: &[&str] = &[
        "",
        ";recompute=full",
        ";recompute=selective;zero=1",
        ";zero=2",
        ";zero=3",
        ";recompute=[\"attention\", \"norm\"];recompute_layers=1",
    ];
    let inside: &[&str] = &["", ",dp=2", ",tp=2", ",cp=2"];
    for (chunks, names) in SCHEDULES {
        for pipeline_ranks in [2, 4] {
            let stages = pipeline_ranks * chunks;
            for (e, extra) in extras.iter().enumerate() {
                for (i, axes) in inside.iter().enumerate() {
                    let zero_needs_dp = extra.contains("zero") && !axes.contains("dp");
                    if zero_needs_dp || (!full() && (e + i + chunks + pipeline_ranks / 2) % 4 != 0) {
                        continue;
                    }
                    let rest = format!("num_microbatches=8{extra}");
                    let gpipe = record(&small, &format!("pp={stages}{axes};schedule=gpipe;{rest}"));
                    for name in *names {
                        let layout =
                            format!("pp={pipeline_ranks}{axes};schedule={name};chunks={chunks};{rest}");
                        let d = record(&small, &layout).distance(&gpipe);
                        let same = d.loss_error == 0.0 && d.gradient_error == 0.0 && d.parameter_error == 0.0;
                        assert!(same, "{layout}: {d:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn mutants_that_the_checker_accepts_train_with_the_bits_of_gpipe() {
    let small = Small { num_layers: 6, ..Small::default() };
    let mut bases: Vec<(usize, Schedule)> = Vec::new();
    for generator in generators() {
        for (pipeline_ranks, num_microbatches) in [(2, 4), (3, 6)] {
            let chunks = generator.chunks.unwrap_or(2);
            bases.push((chunks, generate(generator.name, pipeline_ranks, num_microbatches, chunks).unwrap()));
        }
    }
    let mut references: HashMap<(usize, usize), Recording> = HashMap::new();
    let wanted = if full() { 300 } else { 60 };
    let (mut draw, mut executed, mut drawn) = (Draw(1_234_567), 0, 0);
    while executed < wanted {
        let (chunks, base) = &bases[drawn % bases.len()];
        drawn += 1;
        let mut mutant = base.clone();
        for _ in 0..1 + draw.below(2) {
            mutate(&mut mutant, &mut draw);
        }
        if mutant.ranks == base.ranks || mutant.check().is_err() {
            continue;
        }
        let (stages, num_microbatches) = (mutant.num_stages, mutant.num_microbatches);
        let reference = references.entry((stages, num_microbatches)).or_insert_with(|| {
            record(&small, &format!("pp={stages};schedule=gpipe;num_microbatches={num_microbatches}"))
        });
        let layout = format!(
            "pp={};schedule={};chunks={chunks};num_microbatches={num_microbatches};deadline_seconds=20",
            mutant.num_ranks, base.name
        );
        let recorder = Recorder { steps: 2, schedule: Some(&mutant), ..Recorder::default() };
        let recording =
            recorder.record(&small.layout(&layout)).unwrap_or_else(|e| panic!("{e}\n{}", mutant.to_csv()));
        let d = recording.distance(reference);
        let same = d.loss_error == 0.0 && d.gradient_error == 0.0 && d.parameter_error == 0.0;
        assert!(same && recording.num_disagreements == 0, "{layout}: {d:?}\n{}", mutant.to_csv());
        executed += 1;
    }
    println!("{executed} of {drawn} mutants were accepted, and trained with the bits of GPipe");
}
