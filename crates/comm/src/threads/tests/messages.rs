//! Sends and receives.

use super::*;
use crate::CommError;

const N: usize = 4;

/// Every rank sends to and receives from every rank (itself included), in either order.
fn exchange(receive_first: bool) {
    run(N, checked(), |c, arena| {
        let rank = c.rank();
        for len in [0, 1, 1000, 20_001] {
            let spans = layout::<f32>(&[len; 2 * N]);
            let (outgoing, incoming) = spans.split_at(N);
            (0..N).for_each(|to| put(&arena, outgoing[to], &elements::<f32>(rank * N + to, 0..len)));
            let send = |to: usize| c.send(arena.read(outgoing[to]).unwrap(), to, 7).unwrap();
            let recv = |from: usize| c.recv(arena.write(incoming[from]).unwrap(), from, 7).unwrap();
            let mut pending = Vec::new();
            if receive_first {
                pending.extend((0..N).map(recv));
                pending.extend((0..N).rev().map(send));
            } else {
                pending.extend((0..N).map(send));
                pending.extend((0..N).rev().map(recv));
            }
            pending.into_iter().for_each(|p| p.wait().unwrap());
            (0..N).for_each(|from| {
                assert_eq!(get::<f32>(&arena, incoming[from]), elements::<f32>(from * N + rank, 0..len));
            });
        }
    });
}

#[test]
fn all_send_first() {
    exchange(false);
}

#[test]
fn all_receive_first() {
    exchange(true);
}

#[test]
fn a_send_completes_without_its_receiver_and_order_is_kept() {
    run(2, checked(), |c, arena| {
        let spans = layout::<i32>(&[5000; 3]);
        if c.rank() == 0 {
            for i in 0..3 {
                put(&arena, spans[0], &[i; 5000]); // the region is ours again at once
                let tag = if i == 1 { 9 } else { 8 };
                c.send(arena.read(spans[0]).unwrap(), 1, tag).unwrap().wait().unwrap();
            }
            c.barrier().unwrap();
        } else {
            c.barrier().unwrap(); // all three are sent
            let recv = |i: usize, tag| c.recv(arena.write(spans[i]).unwrap(), 0, tag).unwrap();
            let (first, other, second) = (recv(0, 8), recv(1, 9), recv(2, 8));
            other.wait().unwrap(); // another tag: any order
            first.wait().unwrap();
            second.wait().unwrap();
            assert_eq!([0, 1, 2].map(|i| get::<i32>(&arena, spans[i])[4999]), [0, 1, 2]);
        }
    });
}

#[test]
fn receives_of_one_tag_out_of_order_are_an_error() {
    run(1, checked(), |c, arena| {
        let spans = layout::<i32>(&[1; 2]);
        let first = c.recv(arena.write(spans[0]).unwrap(), 0, 1).unwrap();
        let second = c.recv(arena.write(spans[1]).unwrap(), 0, 1).unwrap();
        assert!(matches!(second.wait(), Err(CommError::OutOfOrder { expected: 0, .. })));
        assert!(matches!(first.wait(), Err(CommError::Aborted { .. })));
    });
}

#[test]
fn sizes_of_messages_are_compared() {
    let errors = run(2, impatient(2000), |c, arena| {
        if c.rank() == 0 {
            c.send(arena.read(Span::new(0, 12)).unwrap(), 1, 3).unwrap().wait().map(|()| None).unwrap()
        } else {
            Some(c.recv(arena.write(Span::new(0, 16)).unwrap(), 0, 3).unwrap().wait().unwrap_err())
        }
    });
    let text = errors[1].as_ref().unwrap().to_string();
    assert!(text.contains("recv of 16 bytes with tag 3, rank 0 has sent 12 bytes"), "{text}");
}

#[test]
fn a_message_that_never_comes() {
    let errors = run(2, impatient(150), |c, arena| {
        if c.rank() == 0 {
            // Unrelated messages do not prolong the wait.
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(10));
                let Ok(sent) = c.send(arena.read(Span::new(0, 4)).unwrap(), 1, 4) else { break };
                sent.wait().unwrap();
            }
            None
        } else {
            Some(c.recv(arena.write(Span::new(0, 4)).unwrap(), 0, 5).unwrap().wait().unwrap_err())
        }
    });
    let error = errors[1].as_ref().unwrap();
    assert!(matches!(error, CommError::DeadlineExceeded { missing, .. } if missing == &[0]));
    assert!(error.place().elapsed < Duration::from_millis(400), "{error}");
}
