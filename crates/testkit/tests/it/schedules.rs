//! A schedule is an order of work, nothing else: at the same number of stages every one trains with the same bits.

use testkit::{Small, full};
use train::parity::{Recorder, Recording};

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
    let extras: &[&str] = &["", ";recompute=full", ";recompute=selective;zero=1", ";zero=2", ";zero=3"];
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
