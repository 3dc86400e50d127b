//! Linear maps of one element at a time, and the loops that all elementwise maps run in. Reductions are in `reduce`,
//! nonlinear maps in `activation`.

use crate::cpu::{Cpu, InstructionSet};
use crate::parts::{CHEAP, LINE, min_rows, prefetch_after, rows_of};
use crate::storage::{BLOCK, Buffer, Storage};

/// `out = f(x)` for each element.
#[inline(always)]
pub(crate) fn map<S: Storage>(set: InstructionSet, x: &[S], out: &mut [S], f: impl Fn(S::Wide) -> S::Wide) {
    let mut buffer = Buffer::new();
    for (x, out) in x.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        prefetch_after(x);
        prefetch_after(out);
        S::write_blocks(
            set,
            &mut buffer,
            out,
            #[inline(always)]
            |at, out| {
                for (out, &x) in out.iter_mut().zip(&x[at..]) {
                    *out = f(x.widen());
                }
            },
        );
    }
}

/// `x = f(x)` for each element.
#[inline(always)]
pub(crate) fn map_in_place<S: Storage>(set: InstructionSet, x: &mut [S], f: impl Fn(S::Wide) -> S::Wide) {
    let mut before = [S::default(); BLOCK];
    for x in x.chunks_mut(BLOCK) {
        let before = &mut before[..x.len()];
        before.copy_from_slice(x);
        map(set, before, x, &f);
    }
}

/// `out = f(x, y)` for each element.
#[inline(always)]
pub(crate) fn map2<S: Storage>(
    set: InstructionSet,
    x: &[S],
    y: &[S],
    out: &mut [S],
    f: impl Fn(S::Wide, S::Wide) -> S::Wide,
) {
    let mut buffer = Buffer::new();
    for ((x, y), out) in x.chunks(BLOCK).zip(y.chunks(BLOCK)).zip(out.chunks_mut(BLOCK)) {
        prefetch_after(x);
        prefetch_after(y);
        prefetch_after(out);
        S::write_blocks(
            set,
            &mut buffer,
            out,
            #[inline(always)]
            |at, out| {
                for ((out, &x), &y) in out.iter_mut().zip(&x[at..]).zip(&y[at..]) {
                    *out = f(x.widen(), y.widen());
                }
            },
        );
    }
}

/// `out = a + b`.
pub fn add<S: Storage>(cpu: &Cpu, a: &[S], b: &[S], out: &mut [S]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "lengths differ");
    let set = cpu.instruction_set();
    cpu.divide(
        a.len(),
        LINE,
        CHEAP,
        out,
        #[inline(always)]
        |part, out| {
            map2(
                set,
                &a[part.clone()],
                &b[part],
                out,
                #[inline(always)]
                |a, b| a + b,
            );
        },
    );
}

/// `out = x + bias`, the bias repeated for each row.
///
/// # Shape
/// `x`, `out` `[rows, inner]`, `bias` `[inner]`.
pub fn add_bias<S: Storage>(cpu: &Cpu, x: &[S], bias: &[S::Wide], out: &mut [S]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    if x.is_empty() {
        return;
    }
    let (width, set) = (bias.len(), cpu.instruction_set());
    assert_eq!(x.len() % width, 0, "x is not whole rows of the bias");
    cpu.divide(
        x.len() / width,
        1,
        min_rows(CHEAP, width),
        out,
        #[inline(always)]
        |rows, out| {
            let x = rows_of(x, &rows, width);
            let mut buffer = Buffer::new();
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                S::write_blocks(
                    set,
                    &mut buffer,
                    out,
                    #[inline(always)]
                    |at, out| {
                        for ((out, &x), &b) in out.iter_mut().zip(&x[at..]).zip(&bias[at..]) {
                            *out = x.widen() + b;
                        }
                    },
                );
            }
        },
    );
}

/// `into += from`.
pub fn accumulate<S: Storage>(cpu: &Cpu, from: &[S], into: &mut [S]) {
    assert_eq!(from.len(), into.len(), "lengths differ");
    cpu.divide(
        from.len(),
        LINE,
        CHEAP,
        into,
        #[inline(always)]
        |part, into| {
            for (into, &from) in into.iter_mut().zip(&from[part]) {
                *into = S::narrow(into.widen() + from.widen());
            }
        },
    );
}

/// Rounds to the type of `into`.
pub fn cast<S: Storage>(cpu: &Cpu, from: &[S::Wide], into: &mut [S]) {
    assert_eq!(from.len(), into.len(), "lengths differ");
    let set = cpu.instruction_set();
    cpu.divide(
        from.len(),
        LINE,
        CHEAP,
        into,
        #[inline(always)]
        |part, into| {
            S::narrow_all(set, &from[part], into);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::Float;
    use crate::testing::{poisoned, random, scalar};
    use proptest::prelude::*;

    fn check<T: Float>(rows: usize, inner: usize, skip: usize) {
        // `skip` shifts the slices off their allocation's alignment.
        let len = rows * inner;
        let (a, b): (Vec<T>, Vec<T>) = (random(1, len + skip), random(2, len + skip));
        let (a, b) = (&a[skip..], &b[skip..]);
        let mut out = poisoned::<T>(len + skip);
        let out = &mut out[skip..];
        add(&scalar(), a, b, out);
        assert!((0..len).all(|i| out[i] == a[i] + b[i]));
        accumulate(&scalar(), a, out);
        assert!((0..len).all(|i| out[i] == (a[i] + b[i]) + a[i]));
        let bias: Vec<T> = random(3, inner);
        add_bias(&scalar(), a, &bias, out);
        assert!((0..len).all(|i| out[i] == a[i] + bias[i % inner]));
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(rows in 0usize..5, inner in 1usize..70, skip in 0usize..4) {
            check::<f32>(rows, inner, skip);
            check::<f64>(rows, inner, skip);
        }
    }
}
