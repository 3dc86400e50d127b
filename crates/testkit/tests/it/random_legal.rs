//! Legality is correctness, policy is speed: random legal choices at every operation and axis train the same model.

use testkit::{Small, full};
use train::parity::{Recorder, reference};

const LAYOUTS: &[&str] = &[
    "tp=2",
    "tp=4;sequence=true",
    "dp=2,tp=2;num_microbatches=2",
    "cp=2,tp=2;context=striped",
    "dp=2,cp=2,tp=2;sequence=true;zero=3",
    "dp=2,tp=2;zero=1;num_microbatches=2",
    "pp=2,tp=2;num_microbatches=2",
    "pp=2,dp=2,tp=2;zero=2;num_microbatches=2",
];

#[test]
fn random_legal_programs_train_the_same_model() {
    for (family, tied) in [("llama", true), ("gpt2", false)] {
        let small = Small { family, tied, num_layers: 2, batch: 8, ..Small::default() };
        let one = Recorder { steps: 1, ..Recorder::default() }
            .record(&reference(&small.config()).unwrap())
            .unwrap();
        for seed in 0..if full() { 64 } else { 13 } {
            for layout in LAYOUTS {
                let recorder = Recorder { steps: 1, random: Some(seed), ..Recorder::default() };
                let recording = recorder.record(&small.layout(layout)).unwrap();
                let d = recording.distance(&one);
                assert!(
                    d.loss_error <= 1e-10 && d.gradient_error <= 1e-10 && d.parameter_error <= 1e-8,
                    "{family} on {layout}, seed {seed}: {d:?}"
                );
                assert_eq!(recording.num_disagreements, 0, "{family} on {layout}, seed {seed}");
            }
        }
    }
}
