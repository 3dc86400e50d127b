//! Linear maps of one element at a time. Reductions are in `reduce`, nonlinear maps in `activation`.

use crate::cpu::Cpu;
use crate::parts::{CHEAP, LINE, min_rows, rows_of};
use crate::storage::Storage;

/// `out = a + b`.
pub fn add<S: Storage>(cpu: &Cpu, a: &[S], b: &[S], out: &mut [S]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "lengths differ");
    cpu.divide(
        a.len(),
        LINE,
        CHEAP,
        out,
        #[inline(always)]
        |part, out| {
            for ((out, &a), &b) in out.iter_mut().zip(&a[part.clone()]).zip(&b[part]) {
                *out = S::narrow(a.widen() + b.widen());
            }
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
    let width = bias.len();
    assert_eq!(x.len() % width, 0, "x is not whole rows of the bias");
    cpu.divide(
        x.len() / width,
        1,
        min_rows(CHEAP, width),
        out,
        #[inline(always)]
        |rows, out| {
            let x = rows_of(x, &rows, width);
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                for ((out, &x), &b) in out.iter_mut().zip(x).zip(bias) {
                    *out = S::narrow(x.widen() + b);
                }
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
    cpu.divide(
        from.len(),
        LINE,
        CHEAP,
        into,
        #[inline(always)]
        |part, into| {
            for (into, &from) in into.iter_mut().zip(&from[part]) {
                *into = S::narrow(from);
            }
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
