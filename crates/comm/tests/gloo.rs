//! Gloo against the thread backend: the same bits from every collective, and one error when a rank fails. Ranks are
//! threads with a Gloo context each; processes are tested with the command. Each rank has a host of its own, so that
//! what is large goes over sockets, but where ranks of one host read each other's memory.

#![cfg(feature = "gloo")]

mod common;

use comm::store::{MemoryStore, Store};
use comm::{Backend, Collective, CommError, Communicator, Job, JoinError, Lane, Outcome, Pending, Reduce};
use common::{every_collective, over_threads};
use memory::{Arena, DType, Span};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn job(store: &Arc<dyn Store>, num_processes: usize, ranks_per_process: usize, process: usize) -> Job {
    Job {
        backend: Backend::Gloo,
        store: Arc::clone(store),
        name: "test".to_owned(),
        generation: 0,
        num_processes,
        process,
        ranks_per_process,
        address: "127.0.0.1".parse().unwrap(),
        host: format!("host{process}"),
        rendezvous_deadline: Duration::from_secs(20),
        silence: Duration::from_secs(3),
        verify: true,
        direct: true,
        flight_recorder: 64,
        on_stuck: Arc::new(|_| {}),
    }
}

/// Runs `body` once per rank over Gloo.
fn run<R: Send>(n: usize, deadline: f64, body: impl Fn(Box<dyn Communicator>, Arena) -> R + Sync) -> Vec<R> {
    let hosts: Vec<String> = (0..n).map(|rank| format!("host{rank}")).collect();
    run_on(&hosts, deadline, body)
}

/// The same with ranks on these hosts.
fn run_on<R: Send>(
    hosts: &[String],
    deadline: f64,
    body: impl Fn(Box<dyn Communicator>, Arena) -> R + Sync,
) -> Vec<R> {
    let n = hosts.len();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let (store, body) = (&store, &body);
    std::thread::scope(|scope| {
        let join = |rank: usize| {
            let job = Job { host: hosts[rank].clone(), ..job(store, n, 1, rank) };
            scope.spawn(move || job.join(rank, Duration::from_secs_f64(deadline)).unwrap())
        };
        let joining: Vec<_> = (0..n).map(join).collect();
        // All have joined before one of them fails on purpose: that would be an error of joining.
        let worlds: Vec<_> = joining.into_iter().map(|t| t.join().expect("all join")).collect();
        let run = |world| scope.spawn(move || body(world, Arena::reserve(64 << 20).unwrap()));
        let threads: Vec<_> = worlds.into_iter().map(run).collect();
        threads.into_iter().map(|t| t.join().expect("no rank panics")).collect()
    })
}

#[test]
fn every_collective_has_the_bits_of_the_thread_backend() {
    for n in [1, 2, 3, 4] {
        let expected = over_threads(n, every_collective);
        assert!(run(n, 20.0, every_collective) == expected, "{n} ranks on {n} hosts");
        // All on one, and two on one and the others on another: pairs read, the world may not.
        for on_first in [n, 2] {
            let hosts: Vec<String> = (0..n).map(|rank| format!("host{}", rank / on_first)).collect();
            assert!(run_on(&hosts, 20.0, every_collective) == expected, "{n} ranks on {hosts:?}");
        }
    }
}

#[test]
fn what_a_rank_reads_of_another_that_failed_is_an_error() {
    let hosts = ["host".to_owned(), "host".to_owned()];
    for _ in 0..5 {
        let errors = run_on(&hosts, 20.0, |c, arena| {
            let bytes = 8 << 20;
            if c.rank() == 1 {
                // The other one may be reading this when it changes.
                drop(
                    c.all_reduce(arena.write(Span::new(0, bytes)).unwrap(), DType::F32, Reduce::Sum).unwrap(),
                );
                arena.write(Span::new(0, bytes)).unwrap().as_mut_slice::<f32>().fill(1.0);
                return None;
            }
            Some(reduce(&*c, &arena, bytes).unwrap_err().to_string())
        });
        assert!(errors[0].as_ref().unwrap().contains("dropped without wait"), "{errors:?}");
    }
}

#[test]
fn a_rank_and_its_communication_thread_wait_for_the_same_peers_at_once() {
    run(3, 20.0, |world, arena| {
        let all: Vec<usize> = (0..3).collect();
        let lane = Lane::start(world.rank()).unwrap();
        let background = lane.serve(world.split(&all, "background").unwrap());
        let own = world.split(&all, "own").unwrap();
        let span = |at: usize, len: usize| Span::new(at << 20, 8 * len);
        for round in 0..50 {
            // Now the one, now the other is large; all sizes travel in another way.
            let (large, small) = (40_000 + round, 1 + round * 40);
            let (behind, before) = if round % 2 == 0 { (large, small) } else { (small, large) };
            let fill = |span, value: f64| {
                let mut region = arena.write(span).unwrap();
                region.as_mut_slice().fill(value);
                region
            };
            let mine = (world.rank() + round) as f64;
            let in_flight =
                background.all_reduce(fill(span(0, behind), mine), DType::F64, Reduce::Sum).unwrap();
            for _ in 0..3 {
                own.all_reduce(fill(span(1, before), mine), DType::F64, Reduce::Max).unwrap().wait().unwrap();
                let largest = arena.read(span(1, before)).unwrap();
                assert!(largest.as_slice::<f64>().iter().all(|x| *x == (2 + round) as f64));
            }
            in_flight.wait().unwrap();
            let sum = arena.read(span(0, behind)).unwrap();
            assert!(sum.as_slice::<f64>().iter().all(|x| *x == (3 + 3 * round) as f64));
        }
    });
}

#[test]
fn several_may_be_outstanding_and_messages_keep_their_order() {
    run(3, 20.0, |c, arena| {
        for round in 0..20u8 {
            let spans = [(0, 100usize), (1, 40_000), (2, 64), (3, 3_000_000)]
                .map(|(at, len)| Span::new(at << 22, len));
            let mut pending: Vec<Pending<'_>> = Vec::new();
            for span in spans {
                arena.write(span).unwrap().as_mut_slice::<u8>().fill(round);
                pending.push(c.broadcast(arena.write(span).unwrap(), 1).unwrap());
            }
            pending.into_iter().for_each(|p| p.wait().unwrap());
            let next = (c.rank() + 1) % 3;
            for (tag, len) in [(1, 100_000), (0, 8), (1, 16), (0, 900_000)] {
                let mut data = arena.write(Span::new(20 << 20, len)).unwrap();
                data.as_mut_slice::<u8>().fill(tag as u8 ^ (len % 251) as u8);
                drop(data);
                c.send(arena.read(Span::new(20 << 20, len)).unwrap(), next, tag).unwrap().wait().unwrap();
            }
            for (tag, len) in [(0, 8), (0, 900_000), (1, 100_000), (1, 16)] {
                let span = Span::new(30 << 20, len);
                c.recv(arena.write(span).unwrap(), (c.rank() + 2) % 3, tag).unwrap().wait().unwrap();
                let arrived = arena.read(span).unwrap();
                assert!(arrived.as_slice::<u8>().iter().all(|b| *b == tag as u8 ^ (len % 251) as u8));
            }
        }
    });
}

fn reduce(c: &dyn Communicator, arena: &Arena, bytes: usize) -> Result<(), CommError> {
    c.all_reduce(arena.write(Span::new(0, bytes)).unwrap(), DType::F32, Reduce::Sum)?.wait()
}

#[test]
fn abort_wakes_every_waiter_soon() {
    let origin = Instant::now();
    for _ in 0..5 {
        let woken = run(4, 20.0, |c, arena| {
            let pair = c.split(&[c.rank() & 2, c.rank() | 1], "tp").unwrap();
            c.barrier().unwrap();
            let error = match c.rank() {
                0 => {
                    std::thread::sleep(Duration::from_millis(100));
                    let before = origin.elapsed();
                    c.abort_handle().abort("enough");
                    return before;
                }
                1 => reduce(&*pair, &arena, 5 << 20).unwrap_err(),
                2 => c.recv(arena.write(Span::new(0, 4)).unwrap(), 3, 0).unwrap().wait().unwrap_err(),
                _ => c.barrier().unwrap_err(),
            };
            let woken = origin.elapsed();
            assert!(matches!(&error, CommError::Aborted { reason, .. } if &**reason == "enough"), "{error}");
            woken
        });
        for rank in 1..4 {
            assert!(woken[rank].saturating_sub(woken[0]) < Duration::from_millis(100), "{woken:?}");
        }
    }
}

#[test]
fn a_rank_that_never_comes_is_named_at_the_deadline() {
    let errors = run(3, 1.0, |c, arena| {
        c.barrier().unwrap();
        if c.rank() == 1 {
            while !c.abort_handle().is_aborted() {
                std::thread::sleep(Duration::from_millis(10));
            }
            return None;
        }
        Some(reduce(&*c, &arena, 5000).unwrap_err())
    });
    let texts: Vec<String> = errors.iter().flatten().map(CommError::to_string).collect();
    assert!(
        errors
            .iter()
            .flatten()
            .any(|e| matches!(e, CommError::DeadlineExceeded { missing, .. } if missing == &[1]))
    );
    for (error, text) in errors.iter().flatten().zip(&texts) {
        let place = error.place();
        assert_eq!((place.operation, place.sequence), (Collective::AllReduce, 1), "{text}");
        assert!((0.9..3.0).contains(&place.elapsed.as_secs_f64()), "{text}");
        assert!(text.contains("host") && text.contains("world[0..3]") && text.contains("[1]"), "{text}");
    }
}

#[test]
fn progress_anywhere_keeps_every_wait_alive() {
    run(3, 1.2, |c, arena| match c.rank() {
        // Two ranks talk for longer than the deadline; the third waits for one of them all the while.
        0 | 1 => {
            let other = 1 - c.rank();
            let pair = c.split(&[0, 1], "pair").unwrap();
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(100));
                pair.barrier().unwrap();
            }
            if c.rank() == 0 {
                c.send(arena.read(Span::new(0, 64)).unwrap(), 2, 0).unwrap().wait().unwrap();
            }
            let _ = other;
        }
        _ => {
            let pending = c.recv(arena.write(Span::new(0, 64)).unwrap(), 0, 0).unwrap();
            pending.wait().unwrap();
        }
    });
}

#[test]
fn a_panic_and_an_early_return_are_told() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let threads: Vec<_> = (0..3)
        .map(|rank| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let c = job(&store, 3, 1, rank).join(rank, Duration::from_secs(20)).unwrap();
                let arena = Arena::reserve(1 << 20).unwrap();
                // Nobody is still joining when the panic comes: that would be an error of joining.
                let all_joined = c.barrier();
                if rank == 1 {
                    std::panic::resume_unwind(Box::new("a bug"));
                }
                let begun = Instant::now();
                // The news may come before the barrier has let this rank go.
                let error = all_joined.and_then(|()| reduce(&*c, &arena, 100)).unwrap_err();
                assert!(begun.elapsed() < Duration::from_secs(2));
                let last = c.recent_operations().pop().unwrap();
                assert!(matches!(last.outcome, Outcome::Failed(_)));
                error
            })
        })
        .collect();
    let mut results = threads.into_iter().map(std::thread::JoinHandle::join);
    for rank in 0..3 {
        match results.next().unwrap() {
            Err(_) => assert_eq!(rank, 1),
            Ok(error) => {
                assert!(matches!(error, CommError::PeerGone { peer: 1, .. }), "{error}");
                assert!(error.to_string().contains("panicked on host1"), "{error}");
            }
        }
    }
    let errors = run(3, 20.0, |c, arena| (c.rank() != 2).then(|| reduce(&*c, &arena, 100_000).unwrap_err()));
    for error in errors.into_iter().flatten() {
        assert!(matches!(error, CommError::PeerGone { peer: 2, .. }), "{error}");
    }
}

#[test]
fn ranks_that_come_with_different_things() {
    let errors = run(2, 20.0, |c, arena| reduce(&*c, &arena, 800_000 + 8 * c.rank()).unwrap_err());
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("of 800000 bytes") && text.contains("of 800008 bytes"), "{text}");
    }
    let errors = run(2, 20.0, |c, arena| {
        let data = arena.write(Span::new(0, 100 + c.rank())).unwrap();
        match c.rank() {
            0 => c.send(arena.read(Span::new(0, 0)).unwrap(), 1, 3).unwrap().wait().err(),
            _ => c.recv(data, 0, 3).unwrap().wait().err(),
        }
    });
    assert!(errors[1].as_ref().unwrap().to_string().contains("recv of 101 bytes with tag 3"));
}

#[test]
fn dropping_a_pending_aborts() {
    let errors = run(2, 20.0, |c, arena| {
        if c.rank() == 0 {
            drop(c.all_reduce(arena.write(Span::new(0, 64_000)).unwrap(), DType::F32, Reduce::Sum).unwrap());
            return None;
        }
        Some(reduce(&*c, &arena, 64_000).unwrap_err().to_string())
    });
    assert!(errors[1].as_ref().unwrap().contains("dropped without wait"), "{errors:?}");
}

#[test]
fn a_duplicate_and_a_missing_rank() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let late = Job { rendezvous_deadline: Duration::from_millis(300), ..job(&store, 3, 1, 0) };
    let error = late.join(0, Duration::from_secs(1)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, JoinError::Missing { missing, .. } if missing == &[1, 2]), "{error}");
    let error = late.join(0, Duration::from_secs(1)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, JoinError::Taken { rank: 0, .. }), "{error}");
    assert!(error.to_string().contains("on host0"), "{error}");
    // Another generation starts afresh.
    let next = Job { generation: 1, num_processes: 1, ..late };
    next.join(0, Duration::from_secs(1)).unwrap().barrier().unwrap();
}
