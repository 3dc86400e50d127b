//! Parity in f64 of every layout against one rank, by the contract's measure.

use testkit::{Small, pairwise};
use train::config::Config;
use train::parity::{Recorder, Recording, parameter_tolerance, reference};

const TOLERANCE: f64 = 1e-10;

/// Layouts of the list and products of them; the largest has 16 ranks.
const LAYOUTS: &[&str] = &[
    "dp=1;num_microbatches=3",
    "dp=2",
    "dp=4;num_microbatches=3",
    "tp=2",
    "tp=4",
    "tp=2;sequence=true",
    "tp=4;sequence=true;num_microbatches=3",
    "cp=2",
    "cp=4;num_microbatches=3",
    "cp=2;context=striped",
    "cp=2,tp=4;context=striped;sequence=true",
    "pp=2;num_microbatches=3;schedule=gpipe",
    "pp=2;num_microbatches=3;schedule=1f1b",
    "pp=4;num_microbatches=3;schedule=gpipe",
    "pp=4;num_microbatches=5;schedule=1f1b",
    "dp=2;zero=1",
    "dp=2;zero=2;num_microbatches=3",
    "dp=2;zero=3;num_microbatches=3",
    "dp=4;zero=1;num_microbatches=3",
    "dp=4;zero=2",
    "dp=4;zero=3",
    "dp=2,tp=2;num_microbatches=3",
    "dp=2,tp=2,pp=2;num_microbatches=3",
    "dp=2,cp=2,tp=2;sequence=true;zero=3;num_microbatches=3",
    "pp=2,dp=2,cp=2,tp=2;sequence=true;zero=2;recompute=full;num_microbatches=3",
    "dp=2,tp=2;recompute=selective;zero=1",
    "pp=2,tp=4;sequence=true;num_microbatches=3;recompute=full",
    "pp=2,dp=4;zero=3;num_microbatches=3",
    "dp=2;num_microbatches=3;bucket_bytes=2000",
    "dp=4,tp=2;bucket_bytes=3000;num_microbatches=3",
    "dp=2,cp=2;zero=1;bucket_bytes=1;num_microbatches=2",
    "dp=2,pp=2;zero=1;bucket_bytes=2000;num_microbatches=4;schedule=zb-h1",
    "dp=2,tp=2,cp=2;sequence=true;bucket_bytes=0;num_microbatches=3",
    "dp=4;zero=1;bucket_bytes=0",
    "dp=4;zero=2;bucket_bytes=2000;num_microbatches=3",
    "dp=2,pp=2;zero=3;bucket_bytes=2000;num_microbatches=3",
    "dp=1;logits_rows=32",
    "dp=2;zero=3;num_microbatches=2;logits_rows=32",
    "pp=2,cp=2;num_microbatches=2;logits_rows=32;recompute=full",
    "dp=2,pp=2;zero=2;num_microbatches=2;logits_rows=32;schedule=gpipe",
];

fn record(config: &Config, steps: usize) -> Recording {
    Recorder { steps, ..Recorder::default() }.record(config).unwrap_or_else(|e| panic!("{e}"))
}

fn check(small: &Small, layout: &str, reference: &Recording) {
    let config = small.layout(layout);
    let recording = record(&config, 3);
    let distance = recording.distance(reference);
    let context = format!("{small:?} on {layout}: {distance:?}");
    assert_eq!(recording.num_disagreements, 0, "ranks hold different bits: {context}");
    assert!(distance.loss_error <= TOLERANCE, "{context}");
    assert!(distance.gradient_error <= TOLERANCE, "{context}");
    assert!(distance.parameter_error <= parameter_tolerance(&config, TOLERANCE), "{context}");
}

#[test]
fn every_layout_trains_the_same_model() {
    let mut variants = Vec::new();
    for family in ["llama", "gpt2"] {
        for tied in [true, false] {
            for optimizer in ["adamw", "sgd"] {
                variants.push(Small { family, tied, optimizer, ..Small::default() });
            }
        }
    }
    for (v, small) in variants.iter().enumerate() {
        let one = record(&reference(&small.config()).unwrap(), 3);
        assert!(one.gradients[2].contains_key("embedding_gradient"));
        for (l, layout) in LAYOUTS.iter().enumerate() {
            if pairwise(v % 4, l, 4) {
                check(small, layout, &one);
            }
        }
    }
}
