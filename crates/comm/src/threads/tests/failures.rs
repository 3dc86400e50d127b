//! What ranks are told when something goes wrong, and how soon.

use super::*;
use crate::{Collective, CommError, Outcome};
use std::sync::Barrier;
use std::time::Instant;

#[test]
fn a_rank_that_never_comes() {
    let present = Barrier::new(3);
    let errors = run(3, impatient(200), |c, arena| {
        c.barrier().unwrap();
        let error = (c.rank() != 1).then(|| reduce_ones(&c, &arena, 5000).unwrap_err());
        present.wait(); // rank 1 is alive but elsewhere
        error
    });
    for rank in [0, 2] {
        let error = errors[rank].as_ref().unwrap();
        let place = error.place();
        assert_eq!((place.rank, place.operation, place.sequence), (rank, Collective::AllReduce, 1));
        assert!((0.1..1.0).contains(&place.elapsed.as_secs_f64()), "{error}");
        assert!(matches!(error, CommError::DeadlineExceeded { missing, .. } if missing == &[1]), "{error}");
        assert!(error.to_string().contains("all_reduce #1 on world[0..3]"), "{error}");
    }
}

#[test]
fn a_rank_that_comes_too_late_touches_nothing() {
    let given_up = Barrier::new(2);
    run(2, impatient(100), |c, arena| {
        if c.rank() == 0 {
            assert!(matches!(reduce_ones(&c, &arena, 100_000), Err(CommError::DeadlineExceeded { .. })));
            drop(arena); // its pages are unmapped
            given_up.wait();
            given_up.wait();
        } else {
            let span = Span::new(0, 400_000);
            let pending = c.all_reduce(arena.write(span).unwrap(), DType::F32, Reduce::Sum).unwrap();
            given_up.wait();
            let error = pending.wait().unwrap_err();
            assert!(
                matches!(&error, CommError::Aborted { reason, .. } if reason.contains("rank 0")),
                "{error}"
            );
            assert!(reduce_ones(&c, &arena, 1).is_err(), "nothing works any more");
            given_up.wait();
        }
    });
}

#[test]
fn abort_wakes_every_waiter() {
    let origin = Instant::now();
    let woken = run(4, checked(), |c, arena| {
        let pair = c.split(&[c.rank() & 2, c.rank() | 1], "tp").unwrap();
        let error = match c.rank() {
            0 => {
                std::thread::sleep(Duration::from_millis(100));
                let before = origin.elapsed();
                c.abort_handle().abort("enough");
                assert!(c.abort_handle().is_aborted());
                return before;
            }
            1 => reduce_ones(&*pair, &arena, 5000).unwrap_err(),
            2 => c.recv(arena.write(Span::new(0, 4)).unwrap(), 3, 0).unwrap().wait().unwrap_err(),
            _ => c.barrier().unwrap_err(),
        };
        let woken = origin.elapsed();
        assert!(matches!(&error, CommError::Aborted { reason, .. } if &**reason == "enough"), "{error}");
        woken
    });
    for rank in 1..4 {
        assert!(woken[rank] - woken[0] < Duration::from_millis(100), "{woken:?}");
    }
}

/// Abort at random moments while large regions are being read, which are then unmapped at once.
#[test]
fn leaving_in_the_middle_is_safe() {
    for delay in 0..60 {
        run(3, checked(), |c, arena| {
            if c.rank() == 0 {
                let handle = c.abort_handle();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(delay * 150));
                    handle.abort("in the middle");
                });
            }
            let span = Span::new(0, 6 << 20);
            loop {
                let pending = c.all_reduce(arena.write(span).unwrap(), DType::F32, Reduce::Sum);
                if pending.and_then(crate::Pending::wait).is_err() {
                    break; // and the arena is unmapped
                }
            }
        });
    }
}

#[test]
fn a_panic_is_noticed() {
    let origin = Instant::now();
    let mut threads = Vec::new();
    for c in World::new(3, checked()) {
        threads.push(std::thread::spawn(move || {
            let pair = (c.rank() != 1).then(|| c.split(&[0, 2], "dp").unwrap());
            let arena = Arena::reserve(1 << 20).unwrap();
            if c.rank() == 1 {
                std::thread::sleep(Duration::from_millis(50));
                std::panic::resume_unwind(Box::new("a bug on rank 1")); // a panic without the message
            }
            // Rank 0 waits for rank 1; rank 2 for rank 0, in a group that rank 1 is not in.
            if c.rank() == 0 { reduce_ones(&c, &arena, 10) } else { reduce_ones(&*pair.unwrap(), &arena, 10) }
        }));
    }
    let mut results = threads.into_iter().map(std::thread::JoinHandle::join);
    let (zero, one, two) = (results.next().unwrap(), results.next().unwrap(), results.next().unwrap());
    assert!(one.is_err());
    for result in [zero, two] {
        let error = result.unwrap().unwrap_err();
        assert!(matches!(error, CommError::PeerGone { peer: 1, .. }), "{error}");
    }
    assert!(origin.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_rank_that_returned_is_noticed() {
    let results = run(3, checked(), |c, arena| {
        // Rank 2 may be gone, and even be missed by the one, while the other is still in here.
        if let Err(error) = c.barrier() {
            return (c.rank() != 2).then_some(error);
        }
        match c.rank() {
            2 => None,
            0 => Some(reduce_ones(&c, &arena, 10).unwrap_err()),
            _ => Some(c.recv(arena.write(Span::new(0, 4)).unwrap(), 2, 0).unwrap().wait().unwrap_err()),
        }
    });
    for error in results.into_iter().flatten() {
        assert!(matches!(error, CommError::PeerGone { peer: 2, .. }), "{error}");
        assert!(error.place().elapsed < Duration::from_secs(2));
    }
}

#[test]
fn sending_to_one_who_is_gone() {
    run(2, checked(), |c, arena| {
        if c.rank() == 0 {
            while c.send(arena.read(Span::new(0, 4)).unwrap(), 1, 0).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn ranks_that_come_with_different_things() {
    type Start = fn(&ThreadCommunicator, &Arena) -> Result<(), CommError>;
    fn sum(c: &ThreadCommunicator, arena: &Arena, bytes: usize, dtype: DType) -> Result<(), CommError> {
        c.all_reduce(arena.write(Span::new(0, bytes)).unwrap(), dtype, Reduce::Sum)?.wait()
    }
    let pairs: [(Start, Start, &str, &str); 5] = [
        (
            |c, a| sum(c, a, 800, DType::F32),
            |c, a| sum(c, a, 808, DType::F32),
            "all_reduce(f32, sum) #0 of 800 bytes",
            "of 808 bytes",
        ),
        (
            |c, a| sum(c, a, 8, DType::F32),
            |c, a| sum(c, a, 80_000, DType::F32),
            "of 8 bytes",
            "of 80000 bytes",
        ),
        (
            |c, a| sum(c, a, 80_000, DType::F64),
            |c, a| sum(c, a, 80_000, DType::I32),
            "(f64, sum)",
            "(i32, sum)",
        ),
        (
            |c, a| sum(c, a, 0, DType::F64),
            |c, _| c.barrier(),
            "all_reduce(f64, sum) #0 of 0",
            "barrier #0 of 0",
        ),
        (
            |c, a| c.broadcast(a.write(Span::new(0, 9)).unwrap(), 0)?.wait(),
            |c, a| c.broadcast(a.write(Span::new(0, 9)).unwrap(), 1)?.wait(),
            "broadcast(root 0)",
            "broadcast(root 1)",
        ),
    ];
    for (zero, one, first, second) in pairs {
        let errors =
            run(2, checked(), |c, arena| if c.rank() == 0 { zero(&c, &arena) } else { one(&c, &arena) });
        for (rank, error) in errors.into_iter().enumerate() {
            let error = error.unwrap_err();
            // One of the two may learn of it from the other.
            let text = error.to_string();
            assert!(matches!(error, CommError::Mismatch { .. } | CommError::Aborted { .. }), "{text}");
            assert!(text.contains(first) && text.contains(second), "rank {rank}: {text}");
        }
    }
}

#[test]
fn wrong_arguments_are_refused_and_harm_nobody() {
    run(2, checked(), |c, arena| {
        let read = |bytes| arena.read(Span::new(0, bytes)).unwrap();
        let write = |bytes| arena.write(Span::new(4096, bytes)).unwrap();
        let size = |r: Result<crate::Pending<'_>, CommError>| {
            let error = r.map(|_| ()).unwrap_err();
            assert!(matches!(error, CommError::InvalidSize { group_size: 2, .. }), "{error}");
        };
        size(c.all_reduce(write(6), DType::F32, Reduce::Sum));
        size(c.reduce_scatter(read(16), write(16), DType::F32, Reduce::Sum));
        size(c.reduce_scatter(read(24), write(12), DType::F64, Reduce::Sum));
        size(c.all_gather(read(8), write(8)));
        size(c.all_to_all(read(8), write(16)));
        size(c.all_to_all(read(7), write(7)));
        let rank = |r: Result<crate::Pending<'_>, CommError>| {
            let error = r.map(|_| ()).unwrap_err();
            assert!(matches!(error, CommError::InvalidRank { peer: 2, group_size: 2, .. }), "{error}");
        };
        rank(c.broadcast(write(8), 2));
        rank(c.send(read(8), 2, 0));
        rank(c.recv(write(8), 2, 0));
        assert_eq!(reduce_ones(&c, &arena, 7).unwrap(), 2.0);
        assert_eq!(arena.num_live(), 0);
    });
}

#[test]
fn waiting_out_of_order() {
    run(1, checked(), |c, arena| {
        let start =
            |at| c.all_reduce(arena.write(Span::new(at, 64)).unwrap(), DType::F32, Reduce::Sum).unwrap();
        let (first, second) = (start(0), start(64));
        let error = second.wait().unwrap_err();
        assert!(matches!(error, CommError::OutOfOrder { expected: 0, .. }), "{error}");
        assert!(matches!(first.wait(), Err(CommError::Aborted { .. })));
    });
}

#[test]
fn dropping_a_pending_aborts_and_leaking_one_is_safe() {
    let errors = run(2, impatient(300), |c, arena| {
        if c.rank() == 0 {
            std::thread::sleep(Duration::from_millis(30));
            drop(c.all_reduce(arena.write(Span::new(0, 64)).unwrap(), DType::F32, Reduce::Sum).unwrap());
            None
        } else {
            Some(reduce_ones(&c, &arena, 16).unwrap_err())
        }
    });
    let text = errors[1].as_ref().unwrap().to_string();
    assert!(
        text.contains("rank 0, all_reduce #0 on world[0..2]") && text.contains("dropped without wait"),
        "{text}"
    );

    run(2, impatient(100), |c, arena| {
        if c.rank() == 0 {
            let data = arena.write(Span::new(0, 80_000)).unwrap();
            std::mem::forget(c.all_reduce(data, DType::F32, Reduce::Sum).unwrap());
            drop(arena);
            std::thread::sleep(Duration::from_millis(200));
        } else {
            assert!(matches!(reduce_ones(&c, &arena, 20_000), Err(CommError::DeadlineExceeded { .. })));
        }
    });
}

#[test]
fn the_flight_recorder_tells() {
    run(
        2,
        Options { deadline: Duration::from_millis(100), verify: false, flight_recorder: 3 },
        |c, arena| {
            for len in 1..5 {
                reduce_ones(&c, &arena, len).unwrap();
            }
            let done = c.recent_operations();
            assert_eq!(
                done.iter().map(|r| (r.sequence, r.bytes)).collect::<Vec<_>>(),
                [(1, 8), (2, 12), (3, 16)]
            );
            assert!(done.iter().all(|r| matches!(r.outcome, Outcome::Done(_))));
            if c.rank() == 0 {
                c.barrier().unwrap_err();
                let last = c.recent_operations().pop().unwrap();
                assert_eq!((last.operation, last.sequence), (Collective::Barrier, 4));
                assert!(
                    matches!(last.outcome, Outcome::Failed(after) if after >= Duration::from_millis(100))
                );
            } else {
                std::thread::sleep(Duration::from_millis(200));
            }
        },
    );
}
