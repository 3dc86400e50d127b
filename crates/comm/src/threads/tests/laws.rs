//! Every collective against a serial computation, and the laws between them.

use super::*;

/// Elements per piece: empty, one, odd, around the inline limit, around the reduction's block, long.
const LENS: [usize; 9] = [0, 1, 7, 255, 1024, 1025, 2049, 5003, 70_001];
const WORLDS: [usize; 5] = [1, 2, 3, 4, 8];

fn every_collective<T: Value>() {
    for n in WORLDS {
        run(n, checked(), |c, arena| {
            let rank = c.rank();
            for len in LENS {
                let spans = layout::<T>(&[len, n * len, n * len]);
                let (one, all, result) = (spans[0], spans[1], spans[2]);
                let read = |span| arena.read(span).unwrap();
                let write = |span| arena.write(span).unwrap();
                for op in [Reduce::Sum, Reduce::Max] {
                    // all_reduce
                    put(&arena, one, &elements::<T>(rank, 0..len));
                    c.all_reduce(write(one), T::DTYPE, op).unwrap().wait().unwrap();
                    let direct = get::<T>(&arena, one);
                    assert_eq!(
                        bits(&direct),
                        bits(&reduced::<T>(n, 0..len, op)),
                        "all_reduce {n} {len} {op}"
                    );
                    // reduce_scatter
                    put(&arena, all, &elements::<T>(rank, 0..n * len));
                    c.reduce_scatter(read(all), write(one), T::DTYPE, op).unwrap().wait().unwrap();
                    let piece = get::<T>(&arena, one);
                    let expected = reduced::<T>(n, rank * len..(rank + 1) * len, op);
                    assert_eq!(bits(&piece), bits(&expected), "reduce_scatter {n} {len} {op}");
                    // law: all_reduce = all_gather after reduce_scatter
                    c.all_gather(read(one), write(result)).unwrap().wait().unwrap();
                    c.all_reduce(write(all), T::DTYPE, op).unwrap().wait().unwrap();
                    assert_eq!(
                        bits(&get::<T>(&arena, all)),
                        bits(&get::<T>(&arena, result)),
                        "law {n} {len} {op}"
                    );
                }
                // all_gather
                put(&arena, one, &elements::<T>(rank, 0..len));
                c.all_gather(read(one), write(all)).unwrap().wait().unwrap();
                let expected: Vec<T> = (0..n).flat_map(|r| elements(r, 0..len)).collect();
                assert_eq!(get::<T>(&arena, all), expected, "all_gather {n} {len}");
                // all_to_all
                put(&arena, all, &elements::<T>(rank, 0..n * len));
                c.all_to_all(read(all), write(result)).unwrap().wait().unwrap();
                let expected: Vec<T> =
                    (0..n).flat_map(|r| elements(r, rank * len..(rank + 1) * len)).collect();
                assert_eq!(get::<T>(&arena, result), expected, "all_to_all {n} {len}");
                // broadcast
                for root in 0..n {
                    put(&arena, one, &elements::<T>(rank, 0..len));
                    c.broadcast(write(one), root).unwrap().wait().unwrap();
                    assert_eq!(get::<T>(&arena, one), elements(root, 0..len), "broadcast {n} {len} {root}");
                }
                c.barrier().unwrap();
            }
        });
    }
}

#[test]
fn every_collective_in_f32() {
    every_collective::<f32>();
}

#[test]
fn every_collective_in_f64() {
    every_collective::<f64>();
}

#[test]
fn every_collective_in_i32() {
    every_collective::<i32>();
}

#[test]
fn another_order_would_give_other_bits() {
    let backwards = |i| (0..7).rev().fold(element::<f32>(7, i), |sum, rank| sum + element::<f32>(rank, i));
    let forwards = reduced::<f32>(8, 0..1000, Reduce::Sum);
    assert!((0..1000).any(|i| backwards(i).to_bits() != forwards[i].to_bits()));
}

#[test]
fn several_may_be_outstanding_in_one_group() {
    run(3, checked(), |c, arena| {
        for round in 0..50 {
            let spans = layout::<f64>(&[5, 4000, 17, 3000, 9000]);
            for &span in &spans {
                put(&arena, span, &elements::<f64>(c.rank(), round..round + span.len / 8));
            }
            let start =
                |&span: &Span| c.all_reduce(arena.write(span).unwrap(), DType::F64, Reduce::Sum).unwrap();
            let pending: Vec<_> = spans.iter().map(start).collect();
            pending.into_iter().for_each(|p| p.wait().unwrap());
            for &span in &spans {
                let expected = reduced::<f64>(3, round..round + span.len / 8, Reduce::Sum);
                assert_eq!(bits(&get::<f64>(&arena, span)), bits(&expected));
            }
        }
    });
}

/// Ranks that come at random times to operations of random kinds and sizes.
#[test]
fn stress() {
    const N: usize = 4;
    run(N, checked(), |c, arena| {
        let mut own = c.rank() as u64 * 77 + 1; // sleeps differ between ranks,
        let mut shared = 5u64; // operations do not
        let draw = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 33) as usize
        };
        for round in 0..400 {
            match draw(&mut own) % 8 {
                0 => std::thread::sleep(Duration::from_micros(draw(&mut own) as u64 % 2000)),
                1 => std::thread::yield_now(),
                _ => {}
            }
            let len = [1, 30, 600, 2048, 5000, 40_000][draw(&mut shared) % 6];
            let spans = layout::<f32>(&[len, N * len]);
            let (one, all) = (spans[0], spans[1]);
            put(&arena, one, &elements::<f32>(c.rank(), round..round + len));
            match draw(&mut shared) % 4 {
                0 => {
                    c.all_gather(arena.read(one).unwrap(), arena.write(all).unwrap())
                        .unwrap()
                        .wait()
                        .unwrap();
                    let expected: Vec<f32> = (0..N).flat_map(|r| elements(r, round..round + len)).collect();
                    assert_eq!(get::<f32>(&arena, all), expected);
                }
                1 => {
                    let root = draw(&mut shared) % N;
                    c.broadcast(arena.write(one).unwrap(), root).unwrap().wait().unwrap();
                    assert_eq!(get::<f32>(&arena, one), elements::<f32>(root, round..round + len));
                }
                _ => {
                    c.all_reduce(arena.write(one).unwrap(), DType::F32, Reduce::Sum).unwrap().wait().unwrap();
                    let expected = reduced::<f32>(N, round..round + len, Reduce::Sum);
                    assert_eq!(
                        bits(&get::<f32>(&arena, one)),
                        bits(&expected),
                        "round {round}, {len} elements"
                    );
                }
            }
        }
    });
}

#[test]
fn a_world_of_none_has_no_ranks() {
    assert!(World::new(0, Options::default()).is_empty());
}
