//! Every collective at many sizes, for any backend to be compared with the threads.

use comm::threads::{Options, World};
use comm::{Communicator, Reduce};
use memory::{Arena, DType, Span};

/// Runs `body` once per rank over threads.
pub fn over_threads<R: Send>(n: usize, body: impl Fn(Box<dyn Communicator>, Arena) -> R + Sync) -> Vec<R> {
    let body = &body;
    std::thread::scope(|scope| {
        let spawn = |c| scope.spawn(move || body(Box::new(c), Arena::reserve(64 << 20).unwrap()));
        let threads: Vec<_> = World::new(n, Options::default()).into_iter().map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn fill(arena: &Arena, span: Span, dtype: DType, rank: usize) {
    let mut state = (rank as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0) * f64::from(1 << (state >> 20 & 15))
    };
    let mut region = arena.write(span).unwrap();
    match dtype {
        DType::F32 => region.as_mut_slice::<f32>().iter_mut().for_each(|x| *x = next() as f32),
        DType::F64 => region.as_mut_slice::<f64>().iter_mut().for_each(|x| *x = next()),
        _ => region.as_mut_slice::<i32>().iter_mut().for_each(|x| *x = (next() * 1e6) as i32),
    }
}

/// The results of every collective at many sizes, in the world and in pairs.
pub fn every_collective(c: Box<dyn Communicator>, arena: Arena) -> Vec<Vec<u8>> {
    let mut results = Vec::new();
    let n = c.world_size();
    let half = c.rank() / 2 * 2;
    let mates: Vec<usize> = (half..(half + 2).min(n)).collect();
    let pair = c.split(&mates, "tp").unwrap();
    let again = c.split(&mates, "tp").unwrap();
    for group in [&c, &pair, &again] {
        let n = group.world_size();
        // Empty, one, odd, around the envelope, around a piece, several pieces, more than travel at a time.
        for len in [0usize, 1, 7, 1023, 2048, 2049, 5003, 131_072, 400_001, 700_001] {
            for dtype in [DType::F32, DType::F64, DType::I32] {
                let bytes = len * dtype.size_bytes();
                if n * bytes > 12 << 20 {
                    continue;
                }
                let one = Span::new(0, bytes);
                let all = Span::new(16 << 20, n * bytes);
                let result = Span::new(32 << 20, n * bytes);
                let (read, write) = (|s| arena.read(s).unwrap(), |s| arena.write(s).unwrap());
                let get = |s: Span| arena.read(s).unwrap().as_slice::<u8>().to_vec();
                for op in [Reduce::Sum, Reduce::Max] {
                    fill(&arena, one, dtype, c.rank());
                    group.all_reduce(write(one), dtype, op).unwrap().wait().unwrap();
                    results.push(get(one));
                    fill(&arena, all, dtype, c.rank());
                    group.reduce_scatter(read(all), write(one), dtype, op).unwrap().wait().unwrap();
                    results.push(get(one));
                }
                fill(&arena, one, dtype, c.rank());
                group.all_gather(read(one), write(all)).unwrap().wait().unwrap();
                results.push(get(all));
                fill(&arena, all, dtype, c.rank());
                group.all_to_all(read(all), write(result)).unwrap().wait().unwrap();
                results.push(get(result));
                fill(&arena, one, dtype, c.rank());
                group.broadcast(write(one), n - 1).unwrap().wait().unwrap();
                results.push(get(one));
                // Around the ring, with a message to oneself in a group of one.
                fill(&arena, one, dtype, c.rank());
                let (next, before) = ((group.rank() + 1) % n, (group.rank() + n - 1) % n);
                group.send(read(one), next, 7).unwrap().wait().unwrap();
                group.recv(write(result_of(result, bytes)), before, 7).unwrap().wait().unwrap();
                results.push(get(result_of(result, bytes)));
            }
        }
        group.barrier().unwrap();
    }
    results
}

fn result_of(span: Span, bytes: usize) -> Span {
    Span::new(span.offset, bytes)
}
