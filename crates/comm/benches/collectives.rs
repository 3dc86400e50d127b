//! Latency and bandwidth of the thread backend, beside a plain copy. Asserts nothing: the machine may be busy.
//! `cargo bench -p phalanx-comm`

use comm::threads::{Options, World};
use comm::{Communicator, Pending, Reduce};
use memory::{Arena, DType, Span};
use std::time::{Duration, Instant};

/// The median time of `body` on rank 0, where all ranks do the same.
fn median(
    world_size: usize,
    repeat: usize,
    bytes: usize,
    body: impl Fn(&dyn Communicator, &Arena, usize) + Sync,
) -> Duration {
    let body = &body;
    let mut times = std::thread::scope(|scope| {
        let threads: Vec<_> = World::new(world_size, Options::default())
            .into_iter()
            .map(|c| {
                scope.spawn(move || {
                    let arena = Arena::reserve(bytes * (world_size + 1) + 4096).expect("memory");
                    body(&c, &arena, bytes);
                    let mut times = Vec::with_capacity(repeat);
                    for _ in 0..repeat {
                        let begun = Instant::now();
                        body(&c, &arena, bytes);
                        times.push(begun.elapsed());
                    }
                    times
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).next().expect("a rank 0")
    });
    times.sort();
    times[times.len() / 2]
}

fn all_reduce(c: &dyn Communicator, arena: &Arena, bytes: usize) {
    let data = arena.write(Span::new(0, bytes)).expect("free");
    c.all_reduce(data, DType::F32, Reduce::Sum).and_then(Pending::wait).expect("success");
}

fn all_gather(c: &dyn Communicator, arena: &Arena, bytes: usize) {
    let piece = bytes / c.world_size() / 64 * 64;
    let send = arena.read(Span::new(0, piece)).expect("free");
    let recv = arena.write(Span::new(piece, piece * c.world_size())).expect("free");
    c.all_gather(send, recv).and_then(Pending::wait).expect("success");
}

fn ping_pong(c: &dyn Communicator, arena: &Arena, bytes: usize) {
    let data = Span::new(0, bytes);
    let send = |to| c.send(arena.read(data).expect("free"), to, 0).and_then(Pending::wait).expect("success");
    let recv =
        |from| c.recv(arena.write(data).expect("free"), from, 0).and_then(Pending::wait).expect("success");
    if c.rank() == 0 {
        send(1);
        recv(1);
    } else {
        recv(0);
        send(0);
    }
}

fn main() {
    for n in [1, 2, 4, 8, 16] {
        let small = median(n, 20_000, 4096, all_reduce);
        let medium = median(n, 300, 256 << 10, all_reduce);
        println!("{n:2} ranks: all_reduce of 4 KiB {small:?}, of 256 KiB {medium:?}");
    }
    println!(
        "ping-pong of 4 KiB {:?}, of 1 MiB {:?}",
        median(2, 20_000, 4096, ping_pong),
        median(2, 300, 1 << 20, ping_pong)
    );
    const LARGE: usize = 64 << 20;
    let gigabytes = |bytes: usize, time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    for n in [1, 2, 4] {
        let copy = median(n, 9, LARGE, |c, arena, bytes| {
            c.barrier().expect("success");
            let half = bytes / 2 / 64 * 64;
            let mut region = arena.write(Span::new(0, 2 * half)).expect("free");
            let (from, to) = region.as_mut_slice::<u8>().split_at_mut(half);
            to.copy_from_slice(from);
            std::hint::black_box(to);
        });
        let (reduce, gather) = (median(n, 9, LARGE, all_reduce), median(n, 9, LARGE, all_gather));
        println!(
            "{n} ranks, 64 MiB: every rank copying {:.1} GB/s each; all_reduce {reduce:?} = {:.1} GB/s of data per rank; all_gather {gather:?} = {:.1} GB/s",
            gigabytes(LARGE / 2, copy),
            gigabytes(LARGE, reduce),
            gigabytes(LARGE, gather),
        );
    }
}
