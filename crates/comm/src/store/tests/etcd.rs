//! A real etcd, started by the test (Debian: `etcd-server`).

use super::*;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A server with one member, in a directory of its own.
struct Server {
    process: Child,
    dir: PathBuf,
    address: String,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    fn start() -> Server {
        let (clients, peers) = (free_port(), free_port());
        let dir = std::env::temp_dir().join(format!("phalanx-etcd-{}-{clients}", std::process::id()));
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(&dir)
            .args(["--listen-client-urls", &url(clients), "--advertise-client-urls", &url(clients)])
            .args(["--listen-peer-urls", &url(peers), "--initial-advertise-peer-urls", &url(peers)])
            .args(["--initial-cluster", &format!("default={}", url(peers)), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        Server { process, dir, address: format!("127.0.0.1:{clients}") }
    }

    fn connect(&self) -> EtcdStore {
        EtcdStore::connect(&self.address, Duration::from_secs(30)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn keeps_its_promises_over_etcd() {
    let server = Server::start();
    keeps_its_promises(&server.connect(), &server.connect());
}

#[test]
fn keys_end_with_the_process_that_set_them() {
    let server = Server::start();
    let (mine, other) = (server.connect(), server.connect());
    mine.set("mine", b"1").unwrap();
    other.set("other", b"2").unwrap();
    drop(mine);
    let begun = Instant::now();
    while other.get("mine").unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(15), "the key outlives its lease");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(other.get("other").unwrap().unwrap(), b"2");
    assert!(other.create("mine", b"3").unwrap(), "the name is free again");
}

#[test]
fn a_lease_is_kept_alive() {
    let server = Server::start();
    let (mine, other) = (server.connect(), server.connect());
    mine.set("mine", b"1").unwrap();
    // Longer than a lease lasts by itself.
    std::thread::sleep(Duration::from_secs(13));
    assert_eq!(other.get("mine").unwrap().unwrap(), b"1");
}

#[test]
fn one_that_dies_or_was_never_there_is_an_error() {
    let mut server = Server::start();
    let store = server.connect();
    store.set("x", b"1").unwrap();
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let begun = Instant::now();
    let error = store.get("x").unwrap_err().to_string();
    assert!(
        error.contains(&format!("cannot read the rendezvous store etcd://{}", server.address)),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    let error = EtcdStore::connect(&server.address, Duration::from_millis(500)).unwrap_err().to_string();
    assert!(error.contains(&server.address) && error.contains("tried for"), "{error}");
}
