//! In f32 layouts agree within rounding: the Austen example on one rank and on four. In narrower types every task trains
//! and is evaluated.

use std::path::Path;
use std::sync::Mutex;

use train::config::Config;
use train::config::{Name, Precision};
use train::trainer::{Event, RunOptions, train};

use crate::tasks;

#[test]
fn austen_on_one_rank_and_on_four_has_the_same_losses() {
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/austen.toml");
    let losses = |mesh: &str| {
        let sets = ["train.steps=20".to_owned(), "train.eval_every=0".to_owned()];
        let config = Config::load(&path, &sets, Some(mesh)).unwrap();
        let losses = Mutex::new(Vec::new());
        let options = RunOptions { out: Some(dir.path().join(mesh)), ..RunOptions::default() };
        let observer = |event: Event<'_>| {
            if let Event::Step(report) = event {
                losses.lock().unwrap().push(report.loss);
            }
        };
        let summary = train(&config, &options, &observer).unwrap();
        (losses.into_inner().unwrap(), summary.validation.unwrap().validation_loss)
    };
    let (one, one_validation) = losses("dp=1");
    let (four, four_validation) = losses("dp=2,tp=2");
    assert_eq!((one.len(), four.len()), (20, 20));
    for (step, (a, b)) in one.iter().zip(&four).enumerate() {
        assert!((a - b).abs() <= 1e-4 * a.abs(), "step {}: {a} and {b}", step + 1);
    }
    assert!((one_validation - four_validation).abs() <= 5e-3 * one_validation);
    assert!(one[19] < one[0] - 1.0, "it learns");
}

#[test]
fn every_task_is_evaluated_in_narrow_types() {
    for case in tasks::CASES {
        let dir = tempfile::tempdir().unwrap();
        tasks::write_files(dir.path(), case);
        let losses = ["f64", "bf16", "fp16"].map(|precision| {
            let mut config = tasks::config(dir.path(), case.text, "pp=2").unwrap();
            config.train.precision = Precision::from_name(precision).unwrap();
            let summary = tasks::run(&config, dir.path().join(precision), None);
            let summary = summary.unwrap_or_else(|e| panic!("{} in {precision}: {e}", case.name));
            summary.validation.unwrap().validation_loss
        });
        for loss in &losses[1..] {
            assert!((loss - losses[0]).abs() < 0.05 * losses[0], "{}: {losses:?}", case.name);
        }
    }
}
