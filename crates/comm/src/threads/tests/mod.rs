//! Worlds of threads for the tests, and elements whose sums depend on their order.

mod failures;
mod laws;
mod meshes;
mod messages;

use super::{Options, ThreadCommunicator, World};
use crate::{Communicator, Reduce};
use memory::{Arena, DType, Element, Span};
use std::fmt::Debug;
use std::time::Duration;

/// Runs `body` once per rank, each in its own thread with its own arena.
fn run<R: Send>(
    world_size: usize,
    options: Options,
    body: impl Fn(ThreadCommunicator, Arena) -> R + Sync,
) -> Vec<R> {
    let body = &body;
    std::thread::scope(|scope| {
        let spawn = |c| scope.spawn(move || body(c, Arena::reserve(64 << 20).unwrap()));
        let threads: Vec<_> = World::new(world_size, options).into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

fn checked() -> Options {
    Options { deadline: Duration::from_secs(20), verify: true, flight_recorder: 16 }
}

fn impatient(milliseconds: u64) -> Options {
    Options { deadline: Duration::from_millis(milliseconds), ..Options::default() }
}

/// An element type with a serial reduction.
trait Value: Element + PartialEq + Debug + Send {
    fn of(x: f64) -> Self;
    fn bits(self) -> u64;
    fn combine(self, other: Self, op: Reduce) -> Self;
}

macro_rules! value {
    ($t:ty, $bits:expr, $sum:expr) => {
        impl Value for $t {
            fn of(x: f64) -> Self {
                x as $t
            }
            fn bits(self) -> u64 {
                $bits(self)
            }
            fn combine(self, other: Self, op: Reduce) -> Self {
                match op {
                    Reduce::Sum => $sum(self, other),
                    Reduce::Max => {
                        if other > self {
                            other
                        } else {
                            self
                        }
                    }
                }
            }
        }
    };
}
value!(f32, |x: f32| u64::from(x.to_bits()), |a, b| a + b);
value!(f64, f64::to_bits, |a, b| a + b);
value!(i32, |x: i32| u64::from(x as u32), i32::wrapping_add);

/// Element `i` of rank `rank`: of both signs and many magnitudes, so that another order gives other bits.
fn element<T: Value>(rank: usize, i: usize) -> T {
    let mut x = (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (i as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 32;
    let mantissa = (x % 2_000_001) as f64 / 1000.0 - 1000.0;
    T::of(mantissa * f64::from(1 << (x >> 40 & 15)))
}

/// The elements `range` of rank `rank`.
fn elements<T: Value>(rank: usize, range: std::ops::Range<usize>) -> Vec<T> {
    range.map(|i| element(rank, i)).collect()
}

/// The serial reduction of the elements `range` of ranks `0..n`.
fn reduced<T: Value>(n: usize, range: std::ops::Range<usize>, op: Reduce) -> Vec<T> {
    let one = |i| (1..n).fold(element::<T>(0, i), |sum, rank| sum.combine(element(rank, i), op));
    range.map(one).collect()
}

fn bits<T: Value>(values: &[T]) -> Vec<u64> {
    values.iter().map(|x| x.bits()).collect()
}

/// Regions of `lens` elements one after another.
fn layout<T: Element>(lens: &[usize]) -> Vec<Span> {
    let mut offset = 0;
    let place = |&len: &usize| {
        let span = Span::new(offset, len * size_of::<T>());
        offset = (offset + span.len).next_multiple_of(memory::SPAN_ALIGN);
        span
    };
    lens.iter().map(place).collect()
}

fn put<T: Element>(arena: &Arena, span: Span, values: &[T]) {
    arena.write(span).unwrap().as_mut_slice::<T>().copy_from_slice(values);
}

fn get<T: Element>(arena: &Arena, span: Span) -> Vec<T> {
    arena.read(span).unwrap().as_slice::<T>().to_vec()
}

/// One all_reduce of `len` f32 ones.
fn reduce_ones(c: &dyn Communicator, arena: &Arena, len: usize) -> Result<f32, crate::CommError> {
    let span = Span::new(0, 4 * len);
    put(arena, span, &vec![1f32; len]);
    c.all_reduce(arena.write(span).unwrap(), DType::F32, Reduce::Sum)?.wait()?;
    Ok(get::<f32>(arena, span)[len - 1])
}
