//! A rank that fails at every moment of a run, in every way: what the others say and when, what is left behind, and
//! that a restart ends with the bits of an undisturbed run. They need a build with the feature `faults`, which lets a
//! test name the moment (see `crates/train/src/faults.rs`).

use std::time::Duration;

use crate::job::{Watched, assert_no_torn_checkpoint, launch, processes_in, shards, text};
use crate::place::Place;

/// The steps of a run and those between its checkpoints.
const STEPS: u64 = 12;
const LENGTH: [&str; 6] =
    ["--set", "train.steps=12", "--set", "train.checkpoint_every=4", "--set", "model.dropout=0.1"];
/// Where a fault strikes unless the moment itself has a step: after the first checkpoint, before the second; when the
/// second is saved.
const STEP: u64 = 6;
const SAVED_STEP: u64 = 8;
/// The rank that fails.
const VICTIM: usize = 1;
/// Survivors must have their error within so long.
const NOTICED: Duration = Duration::from_secs(5);

/// A moment, its step, and a layout that has it: sums of gradients in one all_reduce, or parameters gathered after
/// their update.
fn moments() -> [(&'static str, u64, &'static str); 5] {
    let (sums, gathers) = ("dp=4", "dp=4;zero=1");
    [
        ("rendezvous", 0, gathers),
        ("forward", STEP, gathers),
        ("all_reduce", STEP, sums),
        ("optimizer", STEP, gathers),
        ("saving", SAVED_STEP, gathers),
    ]
}

/// All moments and ways of one backend: `survivors_speak` says whether they have the time to.
fn every_fault(backend: &str, survivors_speak: impl Fn(&str) -> bool, noticed: Duration) {
    let place = Place::new();
    for layout in ["dp=4", "dp=4;zero=1"] {
        let whole = format!("whole-{}", layout.len());
        place.succeed(&[&["train", "small.toml", "--mesh", layout, "--out", &whole], &LENGTH[..]].concat());
    }
    let is_full = std::env::var_os("PHALANX_FULL").is_some();
    for (number, (moment, step, layout)) in moments().into_iter().enumerate() {
        for (way, how) in ["kill", "stop", "exit", "panic"].into_iter().enumerate() {
            // Without PHALANX_FULL each moment in two ways, so that every way is met at several moments.
            if !(is_full || (number + way).is_multiple_of(2)) {
                continue;
            }
            let case = format!("{backend}: {how} in {moment}");
            let out = format!("{moment}-{how}");
            let mut command = launch(
                &place,
                &["--backend", backend, "--max-restarts", "1"],
                &[&["--mesh", layout, "--out", &out], &LENGTH[..]].concat(),
            );
            command.env("PHALANX_FAULT", format!("{VICTIM}:{moment}:{step}:{how}"));
            let (status, lines) = Watched::start(command).finish(Duration::from_secs(90));
            let said = text(&lines);
            assert!(status.success(), "{case}: {said}");
            let find = |what: &str| lines.iter().find(|(_, line)| line.contains(what));
            let when = |what: &str| find(what).unwrap_or_else(|| panic!("{case}: no `{what}` in\n{said}")).0;
            let struck = when("fault: now");
            let since = |then: std::time::Instant| then.saturating_duration_since(struck);
            for rank in (0..4).filter(|rank| *rank != VICTIM && survivors_speak(how)) {
                let error = format!("[{rank}] error: ");
                let told = since(when(&error));
                assert!(told < noticed, "{case}: rank {rank} had its error after {told:?}\n{said}");
                let line = &find(&error).unwrap().1;
                let names = [format!("rank {VICTIM}"), format!("process {VICTIM}")];
                assert!(
                    names.iter().any(|name| line.contains(name)),
                    "{case}: {line} names not rank {VICTIM}"
                );
            }
            println!("{case}: restarted after {:?}", since(when("restart 1 of 1")));
            assert_no_torn_checkpoint(&place.path().join(&out), true);
            let same = shards(&place.path().join(&out), STEPS)
                == shards(&place.path().join(format!("whole-{}", layout.len())), STEPS);
            assert!(same, "{case}: other bits than an undisturbed run");
            assert_eq!(processes_in(&place), [0u32; 0], "{case}: processes stay behind");
        }
    }
}

#[cfg(feature = "gloo")]
#[test]
fn every_fault_at_every_moment_over_gloo() {
    every_fault("gloo", |_| true, NOTICED);
}

/// MPI is fail-stop: when a process dies, `mpirun` may end the others before they can speak. When one is stopped they
/// have their own watch, and the watchdog's bound beside it.
#[cfg(feature = "mpi")]
#[test]
fn every_fault_at_every_moment_over_mpi() {
    every_fault("mpi", |how| how == "stop", NOTICED + Duration::from_secs(3));
}
