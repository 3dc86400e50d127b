//! Parity over processes, by the contract's measure in f64: layouts whose ranks are processes against one rank, over
//! each backend that the binary has. Every result that ranks must share is compared bit for bit as it comes.

use std::time::Duration;

use serde_json::Value;

use crate::job::{finish, launched};
use crate::place::{Place, stderr};

/// A dozen of the parity matrix, so that each axis, ZeRO stage, context layout and family of schedules is met.
const LAYOUTS: [(usize, &[&str]); 2] = [
    (
        2,
        &[
            "dp=2",
            "tp=2;sequence=true",
            "pp=2;num_microbatches=3;schedule=1f1b",
            "cp=2;context=striped",
            "dp=2;zero=1;recompute=selective",
            "dp=2;zero=2;num_microbatches=2",
            "dp=2;zero=3",
        ],
    ),
    (
        4,
        &[
            "dp=2,tp=2;zero=1",
            "cp=2,tp=2;sequence=true;recompute=full",
            "pp=2,tp=2;schedule=zb-h1;num_microbatches=2",
            "dp=2,pp=2;zero=3;schedule=gpipe;num_microbatches=2",
            "dp=2,cp=2;zero=2",
            "pp=4;schedule=1f1b;num_microbatches=4",
            "tp=4",
        ],
    ),
];

fn over(backend: &str) {
    let place = Place::new();
    for (ranks, layouts) in LAYOUTS {
        let meshes = layouts.iter().flat_map(|layout| ["--mesh", layout]);
        let parity: Vec<&str> = ["parity", "small.toml", "--json", "--set", "model.dropout=0.1"]
            .into_iter()
            .chain(["--set", "parallel.deadline_seconds=20"])
            .chain(meshes)
            .collect();
        let mut command = launched(&place, &["--ranks", &ranks.to_string(), "--backend", backend], &parity);
        command.env("PHALANX_VERIFY", "1");
        let output = finish(command.spawn().unwrap(), Duration::from_secs(300));
        assert!(output.status.success(), "{backend}, {ranks} ranks: {}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["ok"], &report["steps"]), (&Value::from(true), &Value::from(3)));
        assert_eq!(report["tolerance"], 1e-10);
        let found = report["layouts"].as_array().unwrap();
        assert_eq!(found.iter().map(|l| l["layout"].as_str().unwrap()).collect::<Vec<_>>(), layouts);
        for layout in found {
            println!("{backend}: {layout}");
            assert_eq!((&layout["ok"], &layout["num_disagreements"]), (&Value::from(true), &Value::from(0)));
        }
    }
    // The measure is one: nothing agrees within nothing.
    let parity = ["parity", "small.toml", "--mesh", "tp=2", "--tolerance", "0"];
    let strict = launched(&place, &["--ranks", "2", "--backend", backend], &parity).output().unwrap();
    assert!(!strict.status.success(), "{}", stderr(&strict));
    // And a job of another size than a layout's says so.
    let parity = ["parity", "small.toml", "--mesh", "dp=4"];
    let other = launched(&place, &["--ranks", "2", "--backend", backend], &parity).output().unwrap();
    let text = stderr(&other);
    assert!(text.contains("has 4 ranks but 2 processes"), "{text}");
}

#[cfg(feature = "gloo")]
#[test]
fn layouts_over_gloo_agree_with_one_rank() {
    over("gloo");
}

#[cfg(feature = "mpi")]
#[test]
fn layouts_over_mpi_agree_with_one_rank() {
    over("mpi");
}
