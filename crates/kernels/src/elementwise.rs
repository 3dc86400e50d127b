//! Linear maps of one element at a time. Reductions are in `reduce`, nonlinear maps in `activation`.

use crate::float::{Float, vectorised};

/// `out = a + b`.
pub fn add<T: Float>(a: &[T], b: &[T], out: &mut [T]) {
    assert!(a.len() == b.len() && a.len() == out.len(), "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = a + b;
            }
        },
    );
}

/// `out = x + bias`, the bias repeated for each row.
///
/// # Shape
/// `x`, `out` `[rows, inner]`, `bias` `[inner]`.
pub fn add_bias<T: Float>(x: &[T], bias: &[T], out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % bias.len(), 0, "x is not whole rows of the bias");
    vectorised(
        #[inline(always)]
        || {
            for (out, x) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())) {
                for ((out, &x), &b) in out.iter_mut().zip(x).zip(bias) {
                    *out = x + b;
                }
            }
        },
    );
}

/// `out = c x`.
pub fn scale<T: Float>(x: &[T], c: T, out: &mut [T]) {
    assert_eq!(x.len(), out.len(), "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = x * c;
            }
        },
    );
}

/// `into += from`.
pub fn accumulate<T: Float>(from: &[T], into: &mut [T]) {
    assert_eq!(from.len(), into.len(), "lengths differ");
    vectorised(
        #[inline(always)]
        || {
            for (into, &from) in into.iter_mut().zip(from) {
                *into += from;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{poisoned, random};
    use proptest::prelude::*;

    fn check<T: Float>(rows: usize, inner: usize, skip: usize) {
        // `skip` shifts the slices off their allocation's alignment.
        let len = rows * inner;
        let (a, b): (Vec<T>, Vec<T>) = (random(1, len + skip), random(2, len + skip));
        let (a, b) = (&a[skip..], &b[skip..]);
        let mut out = poisoned::<T>(len + skip);
        let out = &mut out[skip..];
        add(a, b, out);
        assert!((0..len).all(|i| out[i] == a[i] + b[i]));
        accumulate(a, out);
        assert!((0..len).all(|i| out[i] == (a[i] + b[i]) + a[i]));
        scale(a, T::from_f64(0.3), out);
        assert!((0..len).all(|i| out[i] == a[i] * T::from_f64(0.3)));
        let bias: Vec<T> = random(3, inner);
        add_bias(a, &bias, out);
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
