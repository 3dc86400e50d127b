//! Runs in several processes: the same bits as threads, one error when a rank fails, and restarts that change nothing.
//! They need a build with the feature `gloo`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::job::{assert_no_torn_checkpoint, children, finish, is_alive, launch, shards, signal, wait_until};
use crate::place::{Place, stderr};

#[test]
fn layouts_over_processes_have_the_bits_of_threads() {
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
        "dp=2,pp=2;schedule=gpipe;num_microbatches=2",
        "tp=4",
        "cp=2,tp=2;sequence=true;zero=3",
        "pp=2,tp=2;schedule=zb-h1;num_microbatches=2",
        "dp=4;zero=3",
    ];
    for (number, layout) in layouts.iter().enumerate() {
        let (threads, processes) = (format!("t{number}"), format!("p{number}"));
        let settings = ["--mesh", layout, "--set", "train.eval_every=0", "--out"];
        place.succeed(&[&["train", "small.toml"], &settings[..], &[&threads]].concat());
        let mut command = launch(&place, &[], &[&settings[..], &[&processes]].concat());
        command.env("PHALANX_VERIFY", "1");
        let output = finish(command.spawn().unwrap(), Duration::from_secs(120));
        assert!(output.status.success(), "{layout}: {}", stderr(&output));
        let same = shards(&place.path().join(&threads), 6) == shards(&place.path().join(&processes), 6);
        assert!(same, "{layout}: other bits");
        assert!(stderr(&output).lines().any(|l| l.starts_with("[0] step 6/6")), "{}", stderr(&output));
    }
}

const LONG: [&str; 8] = [
    "--mesh",
    "dp=2,tp=2;zero=1",
    "--set",
    "train.steps=400",
    "--set",
    "train.checkpoint_every=20",
    "--set",
    "model.dropout=0.1",
];

fn undisturbed(place: &Place) -> Vec<Vec<u8>> {
    place.succeed(&[&["train", "small.toml"], &LONG[..], &["--out", "whole"]].concat());
    shards(&place.path().join("whole"), 400)
}

#[test]
fn a_rank_that_dies_or_is_stopped_is_named_by_all_others_and_nothing_stays_behind() {
    let place = Place::new();
    for (number, name) in ["KILL", "STOP", "TERM"].into_iter().enumerate() {
        let out = format!("out{number}");
        let launcher = launch(&place, &[], &[&LONG[..], &["--out", &out]].concat()).spawn().unwrap();
        let run = place.path().join(&out);
        wait_until("the first checkpoint", || run.join("checkpoints/step-00000020/manifest.json").exists());
        let processes = children(launcher.id());
        assert_eq!(processes.len(), 4);
        let victim = number + 1;
        let begun = Instant::now();
        signal(processes[victim], name);
        let output = finish(launcher, Duration::from_secs(30));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let survivors: Vec<usize> = (0..4).filter(|r| *r != victim).collect();
        for rank in survivors {
            let own = text.lines().find(|l| l.starts_with(&format!("[{rank}] error: ")));
            let own = own.unwrap_or_else(|| panic!("{name}: rank {rank} says nothing in\n{text}"));
            assert!(own.contains(&format!("rank {victim} is gone")) && own.contains('#'), "{name}: {own}");
            assert!(run.join(format!("flight-record-{rank}.txt")).exists(), "{name}: rank {rank}");
        }
        // Detection, the launcher's grace for a stopped process, and a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(15), "{name}: {:?}", begun.elapsed());
        wait_until("the end of every process", || !processes.iter().any(|pid| is_alive(*pid)));
        assert_no_torn_checkpoint(&run, false);
    }
}

#[test]
fn restarts_end_with_the_bits_of_an_undisturbed_run() {
    let place = Place::new();
    let whole = undisturbed(&place);
    for (number, delay) in [0u64, 120, 400, 900].into_iter().enumerate() {
        let out = format!("out{number}");
        let train = [&LONG[..], &["--out", &out]].concat();
        let launcher = launch(&place, &["--max-restarts", "3"], &train).spawn().unwrap();
        // The first at any moment from the start of the process on; the second in the middle of training.
        for round in 0..2 {
            wait_until("four processes", || children(launcher.id()).len() == 4);
            std::thread::sleep(Duration::from_millis(delay + 200 * round));
            if let Some(pid) = children(launcher.id()).get((number + round as usize) % 4) {
                signal(*pid, "KILL");
                let pid = *pid;
                wait_until("its end", || !is_alive(pid));
            }
            std::thread::sleep(Duration::from_millis(700));
        }
        let output = finish(launcher, Duration::from_secs(400));
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("restart 1 of 3"), "{}", stderr(&output));
        assert!(shards(&place.path().join(&out), 400) == whole, "delay {delay}: other bits");
    }
}

#[test]
fn the_launcher_takes_its_processes_with_it() {
    let place = Place::new();
    for name in ["INT", "KILL"] {
        let out = format!("out-{name}");
        let launcher = launch(&place, &[], &[&LONG[..], &["--out", &out]].concat()).spawn().unwrap();
        wait_until("a checkpoint", || place.path().join(&out).join("checkpoints/step-00000020").exists());
        let processes = children(launcher.id());
        signal(launcher.id(), name);
        wait_until("the end of every process", || !processes.iter().any(|pid| is_alive(*pid)));
        let output = finish(launcher, Duration::from_secs(30));
        if name == "INT" {
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        }
    }
}

/// Starts ranks by hand, as `torchrun` would.
fn by_hand(place: &Place, rank: usize, world_size: usize, store: &str, more: &[&str]) -> Command {
    let mut command =
        place.command([&["train", "small.toml", "--mesh", "dp=2", "--out", "run"], more].concat());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
    command.env("PHALANX_STORE", store).env("PHALANX_RENDEZVOUS_SECONDS", "3");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn differences_and_wrong_places_are_one_clear_error_each() {
    let place = Place::new();
    let pair = |store: &str, zero: &[&str], one: &[&str]| {
        let all: Vec<Child> = [(0, zero), (1, one)]
            .into_iter()
            .map(|(rank, more)| by_hand(&place, rank, 2, store, more).spawn().unwrap())
            .collect();
        all.into_iter().map(|c| finish(c, Duration::from_secs(60))).collect::<Vec<_>>()
    };
    // Another setting.
    for output in pair("file:store1", &[], &["--set", "train.lr=0.5"]) {
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("rank 1 on ") && text.contains("train.lr: it has 0.5"), "{text}");
    }
    // The same rank twice.
    let twice: Vec<Child> =
        (0..2).map(|_| by_hand(&place, 0, 2, "file:store2", &[]).spawn().unwrap()).collect();
    let texts: Vec<String> = twice.into_iter().map(|c| stderr(&finish(c, Duration::from_secs(60)))).collect();
    assert!(
        texts.iter().any(|t| t.contains("rank 0 of job `job` (generation 0) is taken by process")),
        "{texts:?}"
    );
    // A rank that does not come.
    let output = finish(by_hand(&place, 0, 2, "file:store3", &[]).spawn().unwrap(), Duration::from_secs(60));
    assert!(stderr(&output).contains("ranks [1] of 2 did not come within"), "{}", stderr(&output));
    // A second job where one has been.
    assert!(pair("file:store4", &[], &[]).iter().all(|o| o.status.success()));
    let again = pair("file:store4", &["--set", "train.steps=7"], &["--set", "train.steps=7"]);
    assert!(again.iter().all(|o| stderr(o).contains("is taken by")), "{}", stderr(&again[0]));
    // More or fewer processes than ranks.
    let output =
        by_hand(&place, 0, 1, "file:store5", &[]).env("PHALANX_RANKS_PER_PROCESS", "3").output().unwrap();
    assert!(stderr(&output).contains("has 2 ranks but 1 processes with 3 ranks each"), "{}", stderr(&output));
    // A port in use, and a store that is not there.
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = by_hand(&place, 0, 2, "", &[]);
    command.env_remove("PHALANX_STORE").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
    assert!(stderr(&command.output().unwrap()).contains("the port is in use"));
    let output = by_hand(&place, 0, 2, "tcp://127.0.0.1:1", &[]).output().unwrap();
    assert!(
        stderr(&output).contains("cannot reach the rendezvous store tcp://127.0.0.1:1"),
        "{}",
        stderr(&output)
    );
    let output = by_hand(&place, 0, 2, "redis://x", &[]).output().unwrap();
    assert!(stderr(&output).contains("names no rendezvous store"), "{}", stderr(&output));
}

#[test]
fn a_second_job_on_the_same_directory_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let start = |store: &str| -> Vec<Child> {
        let more = ["--steps", "400"];
        (0..2).map(|rank| by_hand(&place, rank, 2, store, &more).spawn().unwrap()).collect()
    };
    let first = start("file:store1");
    wait_until("the first step", || {
        std::fs::read_to_string(place.path().join("run/metrics.jsonl")).is_ok_and(|text| !text.is_empty())
    });
    let holder = format!("is in use by a live run (process {})", first[0].id());
    let second = start("file:store2").into_iter().map(|child| finish(child, Duration::from_secs(60)));
    for (rank, output) in second.enumerate() {
        let text = stderr(&output);
        assert!(!output.status.success(), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
        assert!(rank != 0 || text.contains(&holder), "{text}");
    }
    for child in first {
        let output = finish(child, Duration::from_secs(60));
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn threads_and_processes_combine() {
    let place = Place::new();
    let train = ["train", "small.toml", "--mesh", "dp=2,tp=2", "--out"];
    place.succeed(&[&train[..], &["threads"]].concat());
    let both: Vec<Child> = (0..2)
        .map(|process: usize| {
            let mut command = place.command([&train[..], &["both"]].concat());
            command
                .env("RANK", process.to_string())
                .env("WORLD_SIZE", "2")
                .env("PHALANX_STORE", "file:store");
            command.env("PHALANX_RANKS_PER_PROCESS", "2").stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in both {
        let output = finish(child, Duration::from_secs(60));
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert!(shards(&place.path().join("both"), 6) == shards(&place.path().join("threads"), 6));
}

#[test]
fn bench_comm_measures_over_processes() {
    let place = Place::new();
    let bench =
        ["launch", "--ranks", "2", "--", "bench-comm", "--bytes", "4096", "--seconds", "0.01", "--json"];
    let output = place.run(bench);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["backend"], "gloo");
    assert_eq!(report["measurements"].as_array().unwrap().len(), 7);
}
