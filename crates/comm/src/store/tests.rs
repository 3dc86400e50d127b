//! What every store promises, and what the servers do when they are absent.

#[cfg(feature = "etcd")]
mod etcd;

use super::*;
use std::net::TcpListener;

fn soon() -> Duration {
    Duration::from_secs(5)
}

/// Two views of one table.
fn keeps_its_promises(a: &dyn Store, b: &dyn Store) {
    assert_eq!(a.get("x").unwrap(), None);
    a.set("x", b"1").unwrap();
    b.set("x", &[0, 255, 10]).unwrap();
    assert_eq!(a.get("x").unwrap().unwrap(), [0, 255, 10]);
    assert!(!b.create("x", b"other").unwrap());
    // Of many who create, one does.
    let wins: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8u8)
            .map(|i| {
                scope.spawn(move || usize::from([a, b][usize::from(i % 2)].create("a/../b", &[i]).unwrap()))
            })
            .collect();
        tries.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(wins, 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait_for(a, "late", soon(), &|| None).unwrap());
        std::thread::sleep(Duration::from_millis(30));
        b.set("late", b"here").unwrap();
        assert_eq!(waiting.join().unwrap(), b"here");
    });
    let absent = wait_for(a, "never", Duration::from_millis(20), &|| None).unwrap_err();
    assert!(absent.to_string().contains("never"), "{absent}");
    let stopped = wait_for(a, "never", soon(), &|| Some("rank 3 is gone".to_owned())).unwrap_err();
    assert!(stopped.to_string().contains("rank 3 is gone"), "{stopped}");
}

#[test]
fn memory() {
    let store = MemoryStore::default();
    keeps_its_promises(&store, &store);
}

#[test]
fn files_stay_in_their_directory() {
    let parent = std::env::temp_dir().join(format!("phalanx-store-{}", std::process::id()));
    let dir = parent.join("store");
    keeps_its_promises(&FileStore::open(&dir).unwrap(), &FileStore::open(&dir).unwrap());
    assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 1);
    std::fs::remove_dir_all(&parent).unwrap();
    assert!(open("file:/proc/nowhere", soon()).unwrap_err().to_string().contains("/proc/nowhere"));
}

#[test]
fn tcp() {
    let server = TcpStoreServer::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.address().to_string();
    let (a, b) = (TcpStore::connect(&address, soon()).unwrap(), TcpStore::connect(&address, soon()).unwrap());
    keeps_its_promises(&a, &b);
    // One that talks another language is hung up on and harms nobody.
    let mut stranger = std::net::TcpStream::connect(server.address()).unwrap();
    std::io::Write::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(std::io::Read::read(&mut stranger, &mut [0; 8]), Ok(0) | Err(_)));
    a.set("still", b"works").unwrap();
}

#[test]
fn a_port_in_use_and_a_server_that_is_not_there() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = TcpStoreServer::listen(address).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains(&address.to_string()), "{error}");
    drop(taken);
    let error = TcpStore::connect(&address.to_string(), Duration::from_millis(100)).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("tried for"), "{error}");
    assert!(matches!(open("redis:6379", soon()), Err(StoreError::Unknown { .. })));
}

#[test]
fn generations_are_apart() {
    let table: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let first = Scoped::of_generation(Arc::clone(&table), "job", 0);
    let second = Scoped::of_generation(Arc::clone(&table), "job", 1);
    assert!(first.create("rank/0", b"a").unwrap() && second.create("rank/0", b"b").unwrap());
    assert_eq!(first.get("rank/0").unwrap().unwrap(), b"a");
    assert!(!Scoped::of_generation(table, "job", 1).create("rank/0", b"c").unwrap());
}

#[test]
fn a_member_that_stops_counting_is_missed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let begin =
        |number| Vigil::begin(Arc::clone(&store), "process", number, 3, Duration::from_secs(1)).unwrap();
    let (zero, one) = (begin(0), begin(1));
    let done = Vigil::begin(Arc::clone(&store), "rank", 0, 1, Duration::from_secs(1)).unwrap();
    let zero = zero.and_watch("rank", 1);
    done.end();
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(1800) {
        assert_eq!(zero.missed(), None, "both count; the third has not begun; one of another kind is done");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(one);
    while begun.elapsed() < Duration::from_secs(10) {
        if let Some(text) = zero.missed() {
            assert!(text.contains("process 1"), "{text}");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("nobody missed it");
}
