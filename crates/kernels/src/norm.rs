//! Layer norm and RMS norm over the last dim, and their gradients. Statistics are in `f64`.
//! The gradient of beta is a plain sum over rows: see `reduce`.

use crate::float::{Float, vectorised};
use crate::reduce::lane_sum;

/// Rows whose weight gradients are summed before they join the total: keeps `f32` sums short.
const ROWS: usize = 64;

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// (x - mean) / sqrt(variance + eps): Ba et al., "Layer Normalization", 2016.
    Layer,
    /// x / sqrt(mean of squares + eps): Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    Rms,
}

/// (mean, 1 / deviation) of a row; the mean is 0 for RMS norm.
#[inline(always)]
fn statistics<T: Float>(kind: NormKind, eps: f64, x: &[T]) -> (f64, f64) {
    let width = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => {
            lane_sum(
                [x],
                #[inline(always)]
                |[x]| x.to_f64(),
            ) / width
        }
    };
    let squares = lane_sum(
        [x],
        #[inline(always)]
        |[x]| {
            let centred = x.to_f64() - mean;
            centred * centred
        },
    );
    (mean, 1.0 / (squares / width + eps).sqrt())
}

/// Normalises each row, then scales by `gamma` and shifts by `beta` if there is one.
///
/// # Shape
/// `x`, `y` `[rows, width]`; `gamma`, `beta` `[width]`.
pub fn norm_forward<T: Float>(
    kind: NormKind,
    eps: f64,
    x: &[T],
    gamma: &[T],
    beta: Option<&[T]>,
    y: &mut [T],
) {
    let width = gamma.len();
    check_rows(x, width, y);
    assert!(beta.is_none_or(|b| b.len() == width), "beta has the wrong length");
    if x.is_empty() {
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                let (mean, rstd) = statistics(kind, eps, x);
                let (mean, rstd) = (T::from_f64(mean), T::from_f64(rstd));
                match beta {
                    None => {
                        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gamma) {
                            *y = (x - mean) * rstd * g;
                        }
                    }
                    Some(beta) => {
                        for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                            *y = ((x - mean) * rstd).mul_add(g, b);
                        }
                    }
                }
            }
        },
    );
}

/// The gradient by `x`; statistics are computed again from `x`.
///
/// # Shape
/// `x`, `dy`, `dx` `[rows, width]`; `gamma` `[width]`.
pub fn norm_backward_input<T: Float>(kind: NormKind, eps: f64, x: &[T], gamma: &[T], dy: &[T], dx: &mut [T]) {
    let width = gamma.len();
    check_rows(x, width, dx);
    assert_eq!(dy.len(), x.len(), "dy has the wrong length");
    if x.is_empty() {
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
            for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
                let (mean, rstd) = statistics(kind, eps, x);
                // g = dy gamma is the gradient by the normalised row; dx is its projection off the
                // directions that normalisation removes.
                let along_x = lane_sum(
                    [x, dy, gamma],
                    #[inline(always)]
                    |[x, d, g]| (x.to_f64() - mean) * (d.to_f64() * g.to_f64()),
                );
                let along_ones = match kind {
                    NormKind::Rms => 0.0,
                    NormKind::Layer => lane_sum(
                        [dy, gamma],
                        #[inline(always)]
                        |[d, g]| d.to_f64() * g.to_f64(),
                    ),
                };
                let per_x = T::from_f64(along_x * rstd * rstd / width as f64);
                let constant = T::from_f64(along_ones / width as f64);
                let (mean, rstd) = (T::from_f64(mean), T::from_f64(rstd));
                for (((dx, &x), &d), &g) in dx.iter_mut().zip(x).zip(dy).zip(gamma) {
                    *dx = (d * g - constant - (x - mean) * per_x) * rstd;
                }
            }
        },
    );
}

/// The gradient by gamma, overwritten: the sum over rows of `dy` times the normalised `x`.
///
/// # Shape
/// `x`, `dy` `[rows, width]`; `dgamma` `[width]`.
pub fn norm_backward_weight<T: Float>(kind: NormKind, eps: f64, x: &[T], dy: &[T], dgamma: &mut [T]) {
    let width = dgamma.len();
    check_rows(x, width, dy);
    dgamma.fill(T::ZERO);
    if x.is_empty() {
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            let mut stats = [(T::ZERO, T::ZERO); ROWS];
            for (x, dy) in x.chunks(ROWS * width).zip(dy.chunks(ROWS * width)) {
                for (stats, x) in stats.iter_mut().zip(x.chunks_exact(width)) {
                    let (mean, rstd) = statistics(kind, eps, x);
                    *stats = (T::from_f64(mean), T::from_f64(rstd));
                }
                weight_block(x, dy, &stats, dgamma);
            }
        },
    );
}

/// Adds up to [`ROWS`] rows to the weight gradient, a block of columns at a time.
#[inline(always)]
fn weight_block<T: Float>(x: &[T], dy: &[T], stats: &[(T, T); ROWS], dgamma: &mut [T]) {
    const COLUMNS: usize = 128;
    let width = dgamma.len();
    for (block, dgamma) in dgamma.chunks_mut(COLUMNS).enumerate() {
        let mut sums = [T::ZERO; COLUMNS];
        let sums = &mut sums[..dgamma.len()];
        for (row, &(mean, rstd)) in stats.iter().enumerate().take(x.len() / width) {
            let start = row * width + block * COLUMNS;
            let x = &x[start..][..sums.len()];
            let dy = &dy[start..][..sums.len()];
            for ((sum, &x), &d) in sums.iter_mut().zip(x).zip(dy) {
                *sum = ((x - mean) * rstd).mul_add(d, *sum);
            }
        }
        for (dgamma, &sum) in dgamma.iter_mut().zip(sums.iter()) {
            *dgamma += sum;
        }
    }
}

fn check_rows<T>(x: &[T], width: usize, other: &[T]) {
    assert_eq!(x.len(), other.len(), "lengths differ");
    assert!(x.is_empty() || x.len().is_multiple_of(width), "x is not whole rows of the weight");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random};
    use proptest::prelude::*;

    fn reference(kind: NormKind, eps: f64, x: &[f64], gamma: &[f64], beta: Option<&[f64]>) -> Vec<f64> {
        let width = gamma.len();
        x.chunks(width)
            .flat_map(|row| {
                let mean = match kind {
                    NormKind::Layer => row.iter().sum::<f64>() / width as f64,
                    NormKind::Rms => 0.0,
                };
                let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                (0..width)
                    .map(|i| (row[i] - mean) / (var + eps).sqrt() * gamma[i] + beta.map_or(0.0, |b| b[i]))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn check<T: Float>(kind: NormKind, rows: usize, width: usize, with_beta: bool, tolerance: f64) {
        let eps = 1e-5;
        let wide = |v: &[T]| v.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let (x, dy): (Vec<T>, Vec<T>) = (random(1, rows * width), random(2, rows * width));
        let (gamma, beta): (Vec<T>, Vec<T>) = (random(3, width), random(4, width));
        let (x64, dy64, gamma64, beta64) = (wide(&x), wide(&dy), wide(&gamma), wide(&beta));
        let beta64 = with_beta.then_some(&beta64[..]);

        let mut y = poisoned::<T>(x.len());
        norm_forward(kind, eps, &x, &gamma, with_beta.then_some(&beta[..]), &mut y);
        assert_close(&y, &reference(kind, eps, &x64, &gamma64, beta64), tolerance);

        let by_x = finite_difference(&x64, |x| dot(&reference(kind, eps, x, &gamma64, None), &dy64));
        let mut dx = poisoned::<T>(x.len());
        norm_backward_input(kind, eps, &x, &gamma, &dy, &mut dx);
        assert_close(&dx, &by_x, tolerance.max(2e-6));

        let by_gamma = finite_difference(&gamma64, |g| dot(&reference(kind, eps, &x64, g, None), &dy64));
        let mut dgamma = poisoned::<T>(width);
        norm_backward_weight(kind, eps, &x, &dy, &mut dgamma);
        assert_close(&dgamma, &by_gamma, tolerance.max(2e-6));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn agrees_with_the_definition_and_its_differences(
            rows in 0usize..4, width in 3usize..40, layer: bool, with_beta: bool,
        ) {
            let kind = if layer { NormKind::Layer } else { NormKind::Rms };
            check::<f64>(kind, rows, width, with_beta, 1e-12);
            check::<f32>(kind, rows, width, with_beta, 1e-3);
        }
    }

    #[test]
    fn many_rows_and_columns_cross_blocks() {
        let (rows, width) = (2 * ROWS + 3, 300);
        let x: Vec<f32> = random(1, rows * width);
        let dy: Vec<f32> = random(2, rows * width);
        let mut expected = vec![0.0; width];
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            for i in 0..width {
                expected[i] += f64::from(x[i]) * f64::from(dy[i]) / (squares / width as f64).sqrt();
            }
        }
        let mut dgamma = poisoned::<f32>(width);
        norm_backward_weight(NormKind::Rms, 0.0, &x, &dy, &mut dgamma);
        assert_close(&dgamma, &expected, 1e-5);
    }

    #[test]
    fn nan_stays_in_its_row() {
        let mut x: Vec<f32> = random(1, 3 * 20);
        x[25] = f32::NAN;
        let gamma = vec![1.0_f32; 20];
        for kind in [NormKind::Layer, NormKind::Rms] {
            let mut y = poisoned(60);
            norm_forward(kind, 1e-5, &x, &gamma, None, &mut y);
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i / 20 == 1)));
        }
    }
}
