//! Layer norm and RMS norm over the last dim, and their gradients. Statistics are in `f64`.
//! The gradient of the bias is a plain sum over rows: see `reduce`.

use crate::cpu::Cpu;
use crate::float::Float;
use crate::parts::{COSTLY, Shared, min_rows, part_index, rows_of};
use crate::reduce::lane_sum;
use crate::storage::Storage;
use pulp::{Simd, WithSimd};

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
fn statistics<S: Storage>(kind: NormKind, eps: f64, x: &[S]) -> (f64, f64) {
    let width = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => {
            lane_sum(
                x,
                x,
                x,
                #[inline(always)]
                |x, _, _| x.widen().to_f64(),
            ) / width
        }
    };
    let squares = lane_sum(
        x,
        x,
        x,
        #[inline(always)]
        |x, _, _| {
            let centred = x.widen().to_f64() - mean;
            centred * centred
        },
    );
    (mean, 1.0 / (squares / width + eps).sqrt())
}

/// Normalises one row.
#[inline(always)]
fn norm_row<S: Storage>(
    kind: NormKind,
    eps: f64,
    x: &[S],
    gain: &[S::Wide],
    bias: Option<&[S::Wide]>,
    out: &mut [S],
) {
    let (mean, rstd) = statistics(kind, eps, x);
    let (mean, rstd) = (S::Wide::from_f64(mean), S::Wide::from_f64(rstd));
    match bias {
        None => {
            for ((out, &x), &g) in out.iter_mut().zip(x).zip(gain) {
                *out = S::narrow((x.widen() - mean) * rstd * g);
            }
        }
        Some(bias) => {
            for (((out, &x), &g), &b) in out.iter_mut().zip(x).zip(gain).zip(bias) {
                *out = S::narrow(Float::mul_add((x.widen() - mean) * rstd, g, b));
            }
        }
    }
}

/// Normalises each row, then scales by `gain` and shifts by `bias` if there is one.
///
/// # Shape
/// `x`, `out` `[rows, width]`; `gain`, `bias` `[width]`.
pub fn norm_forward<S: Storage>(
    cpu: &Cpu,
    kind: NormKind,
    eps: f64,
    x: &[S],
    gain: &[S::Wide],
    bias: Option<&[S::Wide]>,
    out: &mut [S],
) {
    let width = gain.len();
    let num_rows = check_rows(x, width, out);
    assert!(bias.is_none_or(|b| b.len() == width), "bias has the wrong length");
    cpu.divide(
        num_rows,
        1,
        min_rows(COSTLY, width),
        out,
        #[inline(always)]
        |rows, out| {
            let x = rows_of(x, &rows, width);
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                norm_row(kind, eps, x, gain, bias, out);
            }
        },
    );
}

/// `sum = x + y`, then [`norm_forward`] of the sum as it is stored, in one pass over memory.
///
/// # Shape
/// `x`, `y`, `sum`, `out` `[rows, width]`; `gain`, `bias` `[width]`.
pub fn add_norm_forward<S: Storage>(
    cpu: &Cpu,
    kind: NormKind,
    eps: f64,
    x: &[S],
    y: &[S],
    gain: &[S::Wide],
    bias: Option<&[S::Wide]>,
    sum: &mut [S],
    out: &mut [S],
) {
    let width = gain.len();
    let num_rows = check_rows(x, width, out);
    assert!(y.len() == x.len() && sum.len() == x.len(), "lengths differ");
    assert!(bias.is_none_or(|b| b.len() == width), "bias has the wrong length");
    cpu.divide(
        num_rows,
        1,
        min_rows(COSTLY, width),
        (sum, out),
        #[inline(always)]
        |rows, (sum, out)| {
            let terms = rows_of(x, &rows, width).chunks_exact(width);
            let terms = terms.zip(rows_of(y, &rows, width).chunks_exact(width));
            let results = sum.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
            for ((x, y), (sum, out)) in terms.zip(results) {
                for ((sum, &x), &y) in sum.iter_mut().zip(x).zip(y) {
                    *sum = S::narrow(x.widen() + y.widen());
                }
                norm_row(kind, eps, sum, gain, bias, out);
            }
        },
    );
}

/// The gradient by `x`; statistics are computed again from `x`.
///
/// # Shape
/// `x`, `dy`, `dx` `[rows, width]`; `gain` `[width]`.
pub fn norm_backward_input<S: Storage>(
    cpu: &Cpu,
    kind: NormKind,
    eps: f64,
    x: &[S],
    gain: &[S::Wide],
    dy: &[S],
    dx: &mut [S],
) {
    let width = gain.len();
    let num_rows = check_rows(x, width, dx);
    assert_eq!(dy.len(), x.len(), "dy has the wrong length");
    cpu.divide(
        num_rows,
        1,
        min_rows(COSTLY, width),
        dx,
        #[inline(always)]
        |rows, dx| {
            let inputs = rows_of(x, &rows, width).chunks_exact(width);
            let inputs = inputs.zip(rows_of(dy, &rows, width).chunks_exact(width));
            for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
                let (mean, rstd) = statistics(kind, eps, x);
                // g = dy gain is the gradient by the normalised row; dx is its projection off the
                // directions that normalisation removes.
                let along_x = lane_sum(
                    x,
                    dy,
                    gain,
                    #[inline(always)]
                    |x, d, g| (x.widen().to_f64() - mean) * (d.widen().to_f64() * g.to_f64()),
                );
                let along_ones = match kind {
                    NormKind::Rms => 0.0,
                    NormKind::Layer => lane_sum(
                        dy,
                        gain,
                        gain,
                        #[inline(always)]
                        |d, g, _| d.widen().to_f64() * g.to_f64(),
                    ),
                };
                let per_x = S::Wide::from_f64(along_x * rstd * rstd / width as f64);
                let constant = S::Wide::from_f64(along_ones / width as f64);
                let (mean, rstd) = (S::Wide::from_f64(mean), S::Wide::from_f64(rstd));
                for (((dx, &x), &d), &g) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
                    *dx = S::narrow((d.widen() * g - constant - (x.widen() - mean) * per_x) * rstd);
                }
            }
        },
    );
}

/// The gradient by the gain, overwritten: the sum over rows of `dy` times the normalised `x`.
///
/// # Shape
/// `x`, `dy` `[rows, width]`; `d_gain` `[width]`.
pub fn norm_backward_weight<S: Storage>(
    cpu: &Cpu,
    kind: NormKind,
    eps: f64,
    x: &[S],
    dy: &[S],
    d_gain: &mut [S::Wide],
) {
    let width = d_gain.len();
    let num_rows = check_rows(x, width, dy);
    d_gain.fill(S::Wide::ZERO);
    let min_part = min_rows(COSTLY, width);
    // Sums of parts of the rows, side by side; the first part's is `d_gain` itself.
    let more = if num_rows < 2 * min_part { 0 } else { cpu.threads() - 1 };
    let mut partial = vec![S::Wide::ZERO; more * width];
    let (first, others) = (Shared::new(d_gain), Shared::new(&mut partial));
    cpu.split(num_rows, 1, min_part, |rows| {
        // SAFETY: each part has a number of its own, at most one for each thread, and so its own sums.
        let d_gain = unsafe {
            match part_index(&rows, num_rows, cpu.threads()) {
                0 => first.part(0..width),
                part => others.part((part - 1) * width..part * width),
            }
        };
        let (x, dy) = (rows_of(x, &rows, width), rows_of(dy, &rows, width));
        cpu.vectorised(WeightGradient { kind, eps, x, dy, d_gain });
    });
    for partial in partial.chunks_exact(width.max(1)) {
        for (sum, &more) in d_gain.iter_mut().zip(partial) {
            *sum += more;
        }
    }
}

/// Adds rows to the gradient by the gain.
struct WeightGradient<'a, S: Storage> {
    kind: NormKind,
    eps: f64,
    x: &'a [S],
    dy: &'a [S],
    d_gain: &'a mut [S::Wide],
}

impl<S: Storage> WithSimd for WeightGradient<'_, S> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(self, _: V) {
        let width = self.d_gain.len();
        let mut stats = [(S::Wide::ZERO, S::Wide::ZERO); ROWS];
        for (x, dy) in self.x.chunks(ROWS * width).zip(self.dy.chunks(ROWS * width)) {
            for (stats, x) in stats.iter_mut().zip(x.chunks_exact(width)) {
                let (mean, rstd) = statistics(self.kind, self.eps, x);
                *stats = (S::Wide::from_f64(mean), S::Wide::from_f64(rstd));
            }
            weight_block(x, dy, &stats, self.d_gain);
        }
    }
}

/// Adds up to [`ROWS`] rows to the weight gradient, a block of columns at a time.
#[inline(always)]
fn weight_block<S: Storage>(x: &[S], dy: &[S], stats: &[(S::Wide, S::Wide); ROWS], d_gain: &mut [S::Wide]) {
    const COLUMNS: usize = 128;
    let width = d_gain.len();
    for (block, d_gain) in d_gain.chunks_mut(COLUMNS).enumerate() {
        let mut sums = [S::Wide::ZERO; COLUMNS];
        let sums = &mut sums[..d_gain.len()];
        for (row, &(mean, rstd)) in stats.iter().enumerate().take(x.len() / width) {
            let start = row * width + block * COLUMNS;
            let x = &x[start..][..sums.len()];
            let dy = &dy[start..][..sums.len()];
            for ((sum, &x), &d) in sums.iter_mut().zip(x).zip(dy) {
                *sum = Float::mul_add((x.widen() - mean) * rstd, d.widen(), *sum);
            }
        }
        for (d_gain, &sum) in d_gain.iter_mut().zip(sums.iter()) {
            *d_gain += sum;
        }
    }
}

/// The number of rows.
fn check_rows<T>(x: &[T], width: usize, other: &[T]) -> usize {
    assert_eq!(x.len(), other.len(), "lengths differ");
    assert!(x.is_empty() || x.len().is_multiple_of(width), "x is not whole rows of the weight");
    x.len() / width.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random, scalar};
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
        norm_forward(&scalar(), kind, eps, &x, &gamma, with_beta.then_some(&beta[..]), &mut y);
        assert_close(&y, &reference(kind, eps, &x64, &gamma64, beta64), tolerance);

        let by_x = finite_difference(&x64, |x| dot(&reference(kind, eps, x, &gamma64, None), &dy64));
        let mut dx = poisoned::<T>(x.len());
        norm_backward_input(&scalar(), kind, eps, &x, &gamma, &dy, &mut dx);
        assert_close(&dx, &by_x, tolerance.max(2e-6));

        let by_gamma = finite_difference(&gamma64, |g| dot(&reference(kind, eps, &x64, g, None), &dy64));
        let mut dgamma = poisoned::<T>(width);
        norm_backward_weight(&scalar(), kind, eps, &x, &dy, &mut dgamma);
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
        norm_backward_weight(&scalar(), NormKind::Rms, 0.0, &x, &dy, &mut dgamma);
        assert_close(&dgamma, &expected, 1e-5);
    }

    #[test]
    fn nan_stays_in_its_row() {
        let mut x: Vec<f32> = random(1, 3 * 20);
        x[25] = f32::NAN;
        let gamma = vec![1.0_f32; 20];
        for kind in [NormKind::Layer, NormKind::Rms] {
            let mut y = poisoned(60);
            norm_forward(&scalar(), kind, 1e-5, &x, &gamma, None, &mut y);
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i / 20 == 1)));
        }
    }
}
