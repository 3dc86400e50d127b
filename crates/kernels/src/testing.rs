//! What kernel tests share: random inputs, poisoned outputs, comparison, finite differences.
//! Compiled for tests alone.

use crate::float::Float;
use crate::random::Key;

/// Standard normal values, a pure function of `seed` and position.
pub(crate) fn random<T: Float>(seed: u64, len: usize) -> Vec<T> {
    let key = Key::new(seed, 0, "test");
    (0..len as u64).map(|i| T::from_f64(key.normal(i))).collect()
}

/// An output buffer full of NaN: whatever a kernel fails to write shows.
pub(crate) fn poisoned<T: Float>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// Asserts |actual - expected| <= tolerance * max(1, |expected|) everywhere; equal infinities pass.
#[track_caller]
pub(crate) fn assert_close<T: Float>(actual: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, &e)) in actual.iter().zip(expected).enumerate() {
        let a = a.to_f64();
        let equal = a == e || (a - e).abs() <= tolerance * e.abs().max(1.0);
        assert!(equal, "element {i}: {a:e}, expected {e:e}");
    }
}

/// The gradient of `f` at `x` by central differences.
pub(crate) fn finite_difference(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (step, at) = (1e-5, x[i]);
            x[i] = at + step;
            let up = f(&x);
            x[i] = at - step;
            let down = f(&x);
            x[i] = at;
            (up - down) / (2.0 * step)
        })
        .collect()
}

/// Inner product, the usual scalar to differentiate a kernel's output through.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
