//! Ranks that meet in a real etcd (Debian: `etcd-server`), started by the test: they train, a second job of the same
//! name is refused, and an etcd that is not there, or goes, is one clear error or none at all.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::job::{finish, shards, wait_until};
use crate::place::{Place, stderr};

/// A server with one member, whose files are in a test's directory.
pub struct Server {
    process: Child,
    pub address: String,
}

impl Server {
    pub fn start(place: &Place) -> Server {
        let free_port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (clients, peers) = (free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let process = Command::new("etcd")
            .current_dir(place.path())
            .args(["--data-dir", &format!("etcd-{clients}"), "--log-level", "error"])
            .args(["--listen-client-urls", &url(clients), "--advertise-client-urls", &url(clients)])
            .args(["--listen-peer-urls", &url(peers), "--initial-advertise-peer-urls", &url(peers)])
            .args(["--initial-cluster", &format!("default={}", url(peers))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        Server { process, address: format!("etcd://127.0.0.1:{clients}") }
    }

    fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One rank of two, as a cluster's launcher would start it.
fn rank(place: &Place, rank: usize, store: &str, more: &[&str]) -> Child {
    let mut command = place.command([&["train", "small.toml", "--mesh", "dp=2"], more].concat());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("PHALANX_STORE", store);
    command.env("PHALANX_RENDEZVOUS_SECONDS", "20").stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn ranks_meet_in_etcd_and_a_second_job_of_the_same_name_is_refused() {
    let place = Place::new();
    let server = Server::start(&place);
    place.succeed(&["train", "small.toml", "--mesh", "dp=2", "--out", "threads"]);
    let long = ["--out", "run", "--steps", "400"];
    let first: Vec<Child> = (0..2).map(|r| rank(&place, r, &server.address, &long)).collect();
    wait_until("the first step", || {
        std::fs::read_to_string(place.path().join("run/metrics.jsonl")).is_ok_and(|text| !text.is_empty())
    });
    let second = finish(rank(&place, 0, &server.address, &["--out", "other"]), LIMIT);
    let text = stderr(&second);
    assert_eq!(second.status.code(), Some(2), "{text}");
    assert!(text.contains("rank 0 of job `job` (generation 0) is taken by process"), "{text}");
    assert!(!place.path().join("other").exists(), "it left something behind");
    for child in first {
        let output = finish(child, LIMIT);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    // Keys went with their processes: the name is free again, at once.
    let again: Vec<Child> = (0..2).map(|r| rank(&place, r, &server.address, &["--out", "again"])).collect();
    for child in again {
        let output = finish(child, LIMIT);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert!(shards(&place.path().join("again"), 6) == shards(&place.path().join("threads"), 6));
}

#[test]
fn a_dead_etcd_is_one_error_and_none_once_ranks_are_connected() {
    let place = Place::new();
    let mut server = Server::start(&place);
    // It goes while a rank waits for the other.
    let waiting = rank(&place, 0, &server.address, &["--out", "alone"]);
    std::thread::sleep(Duration::from_secs(3));
    server.stop();
    let begun = Instant::now();
    let text = stderr(&finish(waiting, LIMIT));
    assert!(text.contains(&format!("the rendezvous store {}", server.address)), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    // It is not there.
    let mut absent = place.command(["train", "small.toml", "--mesh", "dp=2"]);
    absent.env("RANK", "0").env("WORLD_SIZE", "2").env("PHALANX_STORE", &server.address);
    let output = absent.env("PHALANX_RENDEZVOUS_SECONDS", "2").output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("cannot reach the rendezvous store {}", server.address)), "{text}");
    // It goes while ranks train: they do not need it any more.
    let mut server = Server::start(&place);
    let long = ["--out", "run", "--steps", "400"];
    let both: Vec<Child> = (0..2).map(|r| rank(&place, r, &server.address, &long)).collect();
    wait_until("the first step", || {
        std::fs::read_to_string(place.path().join("run/metrics.jsonl")).is_ok_and(|text| !text.is_empty())
    });
    server.stop();
    for child in both {
        let output = finish(child, LIMIT);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert!(place.path().join("run/checkpoints/step-00000400/manifest.json").exists());
}
