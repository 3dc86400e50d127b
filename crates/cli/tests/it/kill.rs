//! A run that is killed at a random moment goes on from its last checkpoint and ends with the same bits.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::place::Place;

const LAYOUT: [&str; 10] = [
    "--mesh",
    "dp=2,tp=2",
    "--set",
    "parallel.zero=1",
    "--set",
    "train.steps=60",
    "--set",
    "train.checkpoint_every=5",
    "--set",
    "model.dropout=0.1",
];

fn phalanx(place: &Place) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
    command.current_dir(place.path()).args(["train", "small.toml"]).args(LAYOUT);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// All shards of the last checkpoint, byte for byte.
fn last_shards(run: &Path) -> Vec<Vec<u8>> {
    let dir = run.join("checkpoints/step-00000060");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 4);
    names.iter().map(|p| fs::read(p).unwrap()).collect()
}

#[test]
fn a_killed_run_goes_on_with_the_same_bits() {
    let place = Place::new();
    assert!(phalanx(&place).args(["--out", "whole"]).status().unwrap().success());
    let whole = last_shards(&place.path().join("whole"));
    for attempt in 0..3u64 {
        let out = format!("killed-{attempt}");
        let mut child = phalanx(&place).args(["--out", &out]).spawn().unwrap();
        // Any moment will do: while the text is read, in a step, or in a save.
        std::thread::sleep(Duration::from_millis(150 + 170 * attempt));
        child.kill().unwrap();
        child.wait().unwrap();
        let run = place.path().join(&out);
        let saved = fs::read_dir(run.join("checkpoints"))
            .map(|all| all.flatten().any(|e| !e.file_name().to_string_lossy().contains('.')))
            .unwrap_or(false);
        let mut again = phalanx(&place);
        let again = if saved { again.args(["--resume", &out]) } else { again.args(["--out", &out]) };
        let status = again.status().unwrap();
        // A run that was killed after its last checkpoint has nothing left to do.
        assert!(
            status.success() || run.join("checkpoints/step-00000060").exists(),
            "attempt {attempt}: {status}"
        );
        assert!(last_shards(&run) == whole, "attempt {attempt}: other bits");
    }
}
