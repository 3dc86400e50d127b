//! Runs over MPI: the same bits as threads, and an end of all when a rank dies. They need a build with the feature
//! `mpi` and an `mpirun`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::job::{launch, shards, signal};
use crate::place::{Place, stderr};

const MPI: [&str; 2] = ["--backend", "mpi"];

#[test]
fn layouts_over_mpi_have_the_bits_of_threads() {
    let place = Place::new();
    let layouts = [
        "dp=2",
        "tp=2",
        "pp=2;num_microbatches=2",
        "cp=2",
        "dp=2;zero=1",
        "dp=2;zero=2",
        "dp=2;zero=3",
        "tp=2;sequence=true",
        "dp=2,tp=2;zero=1",
        "tp=4",
        "pp=2,tp=2;schedule=zb-h1;num_microbatches=2",
        "dp=4;zero=3",
    ];
    for (number, layout) in layouts.iter().enumerate() {
        let (threads, processes) = (format!("t{number}"), format!("p{number}"));
        let settings = ["--mesh", layout, "--set", "train.eval_every=0", "--out"];
        place.succeed(&[&["train", "small.toml"], &settings[..], &[&threads]].concat());
        let output = launch(&place, &MPI, &[&settings[..], &[&processes]].concat()).output().unwrap();
        assert!(output.status.success(), "{layout}: {}", stderr(&output));
        let same = shards(&place.path().join(&threads), 6) == shards(&place.path().join(&processes), 6);
        assert!(same, "{layout}: other bits");
    }
}

/// The ranks of a job, by the arguments that only they have.
fn ranks(out: &str) -> Vec<u32> {
    let is_rank = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
        words.contains(&out.as_bytes()) && words.get(1) == Some(&&b"train"[..])
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_string_lossy().parse().ok());
    pids.filter(is_rank).collect()
}

#[test]
fn a_rank_that_dies_or_is_stopped_ends_the_job() {
    let place = Place::new();
    for name in ["KILL", "STOP"] {
        let out = place.path().join(format!("run-{name}")).display().to_string();
        let train = ["--mesh", "dp=2", "--steps", "100000", "--out", &out];
        let child = launch(&place, &MPI, &[&train[..], &["--set", "train.checkpoint_every=20"]].concat())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !Path::new(&out).join("checkpoints/step-00000020").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        let processes = ranks(&out);
        assert_eq!(processes.len(), 2);
        let begun = Instant::now();
        signal(processes[1], name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(begun.elapsed() < Duration::from_secs(20), "{name}: {:?}", begun.elapsed());
        let begun = Instant::now();
        while !ranks(&out).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5), "a process stays behind");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
