//! Rows spread over positions by weights: the gradient of `weighted_sum` by what it sums.

use crate::cpu::Cpu;
use crate::parts::{CHEAP, min_rows, rows_of};
use crate::storage::Storage;

/// `out[i][j] = weights[i][j] y[i]`.
///
/// # Shape
/// `y` `[outer, inner]`, `weights` `[outer, n]`, `out` `[outer, n, inner]`.
pub fn spread<S: Storage>(
    cpu: &Cpu,
    y: &[S],
    weights: &[S::Wide],
    outer: usize,
    n: usize,
    inner: usize,
    out: &mut [S],
) {
    assert_eq!(y.len(), outer * inner, "y has the wrong length");
    assert_eq!(weights.len(), outer * n, "weights has the wrong length");
    assert_eq!(out.len(), outer * n * inner, "out has the wrong length");
    cpu.divide(
        outer,
        1,
        min_rows(CHEAP, n * inner),
        out,
        #[inline(always)]
        |rows, out| {
            let (y, weights) = (rows_of(y, &rows, inner), rows_of(weights, &rows, n));
            for (row, out) in out.chunks_exact_mut((n * inner).max(1)).enumerate() {
                let y = &y[row * inner..][..inner];
                for (&weight, out) in weights[row * n..][..n].iter().zip(out.chunks_exact_mut(inner.max(1))) {
                    for (out, &y) in out.iter_mut().zip(y) {
                        *out = S::narrow(weight * y.widen());
                    }
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, poisoned, random, scalar};
    use crate::weighted_sum;

    /// `<weighted_sum(x), y> = <x, spread(y)>` for every x: the two are adjoint.
    #[test]
    fn is_the_adjoint_of_the_weighted_sum() {
        for (outer, n, inner) in [(3, 4, 5), (1, 1, 1), (2, 7, 3), (0, 2, 2), (2, 0, 3)] {
            let (x, y) = (random::<f64>(1, outer * n * inner), random::<f64>(2, outer * inner));
            let weights = random::<f64>(3, outer * n);
            let (mut sum, mut out) = (poisoned::<f64>(outer * inner), poisoned::<f64>(outer * n * inner));
            weighted_sum(&scalar(), &x, &weights, outer, n, inner, &mut sum);
            spread(&scalar(), &y, &weights, outer, n, inner, &mut out);
            assert_close(&[dot(&sum, &y)], &[dot(&x, &out)], 1e-13);
            let expected = |i: usize| weights[i / inner] * y[i / (n * inner) * inner + i % inner];
            assert_close(&out, &(0..out.len()).map(expected).collect::<Vec<_>>(), 0.0);
        }
    }
}
