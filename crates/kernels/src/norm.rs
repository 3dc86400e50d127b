//! Layer norm and RMS norm over the last dim, and their gradients. Statistics are in `f64`, of sums of a few hundred
//! terms in the type that is computed in.
//! The gradient of the bias is a plain sum over rows: see `reduce`.

use crate::cpu::{Cpu, InstructionSet};
use crate::elementwise::map2;
use crate::float::{Float, Sealed};
use crate::parts::{COSTLY, LINE, Rows, min_rows, prefetch_after, rows_of};
use crate::storage::{BLOCK, Buffer, Storage};
use pulp::Simd;
use std::ops::Range;

/// Rows whose weight gradients are summed before they join the total: keeps `f32` sums short.
const ROWS: usize = 64;

/// Rows whose statistics several threads make at a time; they sit on the stack (8 or 16 KiB).
const STATISTICS: usize = 1024;

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
fn statistics<S: Storage, V: Simd>(
    simd: V,
    kind: NormKind,
    eps: f64,
    x: &[S],
    terms: &mut Buffer<S::Wide>,
) -> (S::Wide, f64) {
    let width = x.len() as f64;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => {
            let mut sum = 0.0;
            for x in x.chunks(BLOCK) {
                sum += S::Wide::sum_short(simd, S::wide_block(x, terms));
            }
            sum / width
        }
    };
    let mean = S::Wide::from_f64(mean);
    let mut squares = 0.0;
    for x in x.chunks(BLOCK) {
        let terms = &mut terms.0[..x.len()];
        for (term, &x) in terms.iter_mut().zip(x) {
            let centred = x.widen() - mean;
            *term = centred * centred;
        }
        squares += S::Wide::sum_short(simd, terms);
    }
    (mean, 1.0 / (squares / width + eps).sqrt())
}

/// What [`norm_forward`] and [`add_norm_forward`] do to a row.
#[derive(Clone, Copy)]
struct Norm<'a, T> {
    set: InstructionSet,
    kind: NormKind,
    eps: f64,
    gain: &'a [T],
    bias: Option<&'a [T]>,
}

impl<T: Float> Norm<'_, T> {
    #[inline(always)]
    fn row<S: Storage<Wide = T>, V: Simd>(&self, simd: V, x: &[S], terms: &mut Buffer<T>, out: &mut [S]) {
        let (mean, rstd) = statistics(simd, self.kind, self.eps, x, terms);
        let rstd = T::from_f64(rstd);
        S::write_blocks(
            self.set,
            terms,
            out,
            #[inline(always)]
            |at, out| {
                let inputs = x[at..].iter().zip(&self.gain[at..]);
                match self.bias {
                    None => {
                        for (out, (&x, &g)) in out.iter_mut().zip(inputs) {
                            *out = (x.widen() - mean) * rstd * g;
                        }
                    }
                    Some(bias) => {
                        for ((out, (&x, &g)), &b) in out.iter_mut().zip(inputs).zip(&bias[at..]) {
                            *out = Float::mul_add((x.widen() - mean) * rstd, g, b);
                        }
                    }
                }
            },
        );
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
    let norm = Norm { set: cpu.instruction_set(), kind, eps, gain, bias };
    cpu.divide_rows(num_rows, 1, min_rows(COSTLY, width), out, NormForward { norm, x });
}

struct NormForward<'a, S: Storage> {
    norm: Norm<'a, S::Wide>,
    x: &'a [S],
}

impl<S: Storage> Rows<&mut [S]> for NormForward<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, out: &mut [S]) {
        let width = self.norm.gain.len();
        let mut terms = Buffer::new();
        let x = rows_of(self.x, &rows, width).chunks_exact(width);
        for (x, out) in x.zip(out.chunks_exact_mut(width)) {
            prefetch_after(x);
            prefetch_after(out);
            self.norm.row(simd, x, &mut terms, out);
        }
    }
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
    let norm = Norm { set: cpu.instruction_set(), kind, eps, gain, bias };
    cpu.divide_rows(num_rows, 1, min_rows(COSTLY, width), (sum, out), AddNormForward { norm, x, y });
}

struct AddNormForward<'a, S: Storage> {
    norm: Norm<'a, S::Wide>,
    x: &'a [S],
    y: &'a [S],
}

impl<S: Storage> Rows<(&mut [S], &mut [S])> for AddNormForward<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, (sum, out): (&mut [S], &mut [S])) {
        let width = self.norm.gain.len();
        let mut terms = Buffer::new();
        let inputs = rows_of(self.x, &rows, width).chunks_exact(width);
        let inputs = inputs.zip(rows_of(self.y, &rows, width).chunks_exact(width));
        let outputs = sum.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
        for ((x, y), (sum, out)) in inputs.zip(outputs) {
            map2(
                self.norm.set,
                x,
                y,
                sum,
                #[inline(always)]
                |x, y| x + y,
            );
            prefetch_after(out);
            self.norm.row(simd, sum, &mut terms, out);
        }
    }
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
    cpu.divide_rows(
        num_rows,
        1,
        min_rows(COSTLY, width),
        dx,
        InputGradient { set: cpu.instruction_set(), kind, eps, x, gain, dy },
    );
}

struct InputGradient<'a, S: Storage> {
    set: InstructionSet,
    kind: NormKind,
    eps: f64,
    x: &'a [S],
    gain: &'a [S::Wide],
    dy: &'a [S],
}

impl<S: Storage> Rows<&mut [S]> for InputGradient<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, dx: &mut [S]) {
        let width = self.gain.len();
        let mut terms = [Buffer::new(), Buffer::new()];
        let inputs = rows_of(self.x, &rows, width).chunks_exact(width);
        let inputs = inputs.zip(rows_of(self.dy, &rows, width).chunks_exact(width));
        for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            prefetch_after(x);
            prefetch_after(dy);
            prefetch_after(dx);
            self.row(simd, x, dy, &mut terms, dx);
        }
    }
}

impl<S: Storage> InputGradient<'_, S> {
    #[inline(always)]
    fn row<V: Simd>(&self, simd: V, x: &[S], dy: &[S], terms: &mut [Buffer<S::Wide>; 2], dx: &mut [S]) {
        let width = x.len();
        let gain = &self.gain[..width];
        let (mean, rstd) = statistics(simd, self.kind, self.eps, x, &mut terms[0]);
        // g = dy gain is the gradient by the normalised row; dx is its projection off the directions that
        // normalisation removes.
        let (mut along_x, mut along_ones) = (0.0, 0.0);
        for start in (0..width).step_by(BLOCK) {
            let here = start..width.min(start + BLOCK);
            let [by_x, by_ones] = &mut *terms;
            let (by_x, by_ones) = (&mut by_x.0[..here.len()], &mut by_ones.0[..here.len()]);
            let inputs = x[here.clone()].iter().zip(&dy[here.clone()]).zip(&gain[here]);
            for ((by_x, by_ones), ((&x, &d), &g)) in by_x.iter_mut().zip(&mut *by_ones).zip(inputs) {
                *by_ones = d.widen() * g;
                *by_x = (x.widen() - mean) * *by_ones;
            }
            along_x += S::Wide::sum_short(simd, by_x);
            if self.kind == NormKind::Layer {
                along_ones += S::Wide::sum_short(simd, by_ones);
            }
        }
        let per_x = S::Wide::from_f64(along_x * rstd * rstd / width as f64);
        let constant = S::Wide::from_f64(along_ones / width as f64);
        let rstd = S::Wide::from_f64(rstd);
        S::write_blocks(
            self.set,
            &mut terms[0],
            dx,
            #[inline(always)]
            |at, dx| {
                let inputs = x[at..].iter().zip(&dy[at..]).zip(&gain[at..]);
                for (dx, ((&x, &d), &g)) in dx.iter_mut().zip(inputs) {
                    *dx = (d.widen() * g - constant - (x.widen() - mean) * per_x) * rstd;
                }
            },
        );
    }
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
    // Statistics by rows, then sums by columns: what is read twice stays in a cache.
    let several = cpu.threads() > 1 && num_rows >= 2 * min_rows(COSTLY, width);
    let chunk = if several { STATISTICS } else { ROWS };
    let mut statistics = [(S::Wide::ZERO, S::Wide::ZERO); STATISTICS];
    for start in (0..num_rows).step_by(chunk) {
        let rows = start..num_rows.min(start + chunk);
        let (x, dy) = (rows_of(x, &rows, width), rows_of(dy, &rows, width));
        let statistics = &mut statistics[..rows.len()];
        let min_part = min_rows(COSTLY, width);
        cpu.divide_rows(rows.len(), 1, min_part, &mut *statistics, Statistics { kind, eps, x, width });
        let statistics = &*statistics;
        cpu.divide(
            width,
            LINE,
            min_rows(COSTLY, rows.len()),
            &mut *d_gain,
            #[inline(always)]
            |columns, d_gain| {
                let rows = x.chunks(ROWS * width).zip(dy.chunks(ROWS * width));
                for ((x, dy), statistics) in rows.zip(statistics.chunks(ROWS)) {
                    add_weight_gradient(x, dy, width, columns.start, statistics, d_gain);
                }
            },
        );
    }
}

/// The mean and 1 / deviation of each row.
struct Statistics<'a, S> {
    kind: NormKind,
    eps: f64,
    x: &'a [S],
    width: usize,
}

impl<S: Storage> Rows<&mut [(S::Wide, S::Wide)]> for Statistics<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, out: &mut [(S::Wide, S::Wide)]) {
        let mut terms = Buffer::new();
        for (out, x) in out.iter_mut().zip(rows_of(self.x, &rows, self.width).chunks_exact(self.width)) {
            prefetch_after(x);
            let (mean, rstd) = statistics(simd, self.kind, self.eps, x, &mut terms);
            *out = (mean, S::Wide::from_f64(rstd));
        }
    }
}

/// Adds up to [`ROWS`] rows to the gradient of the columns from `first` on.
#[inline(always)]
fn add_weight_gradient<S: Storage>(
    x: &[S],
    dy: &[S],
    width: usize,
    first: usize,
    statistics: &[(S::Wide, S::Wide)],
    d_gain: &mut [S::Wide],
) {
    /// Columns whose sums sit on the stack (2 or 4 KiB).
    const COLUMNS: usize = 512;
    for (block, d_gain) in d_gain.chunks_mut(COLUMNS).enumerate() {
        let mut sums = [S::Wide::ZERO; COLUMNS];
        let sums = &mut sums[..d_gain.len()];
        let (at, len) = (first + block * COLUMNS, d_gain.len());
        let start = |row: usize| row * width + at;
        let (pairs, last) = statistics.as_chunks::<2>();
        for (pair, &[(mean0, rstd0), (mean1, rstd1)]) in pairs.iter().enumerate() {
            let (row0, row1) = (start(2 * pair), start(2 * pair + 1));
            let (x0, x1) = (&x[row0..][..len], &x[row1..][..len]);
            let (d0, d1) = (&dy[row0..][..len], &dy[row1..][..len]);
            prefetch_after(d0);
            prefetch_after(d1);
            for (sum, (((&x0, &d0), &x1), &d1)) in sums.iter_mut().zip(x0.iter().zip(d0).zip(x1).zip(d1)) {
                let first = Float::mul_add((x0.widen() - mean0) * rstd0, d0.widen(), *sum);
                *sum = Float::mul_add((x1.widen() - mean1) * rstd1, d1.widen(), first);
            }
        }
        if let &[(mean, rstd)] = last {
            let row = start(statistics.len() - 1);
            for (sum, (&x, &d)) in sums.iter_mut().zip(x[row..][..len].iter().zip(&dy[row..])) {
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
    use crate::testing::{assert_close, cpus, dot, finite_difference, poisoned, random, scalar};
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

    fn check_weight_gradient<T: Float>(cpu: &Cpu, rows: usize, width: usize, tolerance: f64) {
        let x: Vec<T> = random(1, rows * width);
        let dy: Vec<T> = random(2, rows * width);
        let mut expected = vec![0.0; width];
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            let squares: f64 = x.iter().map(|&x| x.to_f64().powi(2)).sum();
            for i in 0..width {
                expected[i] += x[i].to_f64() * dy[i].to_f64() / (squares / width as f64).sqrt();
            }
        }
        let mut dgamma = poisoned::<T>(width);
        norm_backward_weight(cpu, NormKind::Rms, 0.0, &x, &dy, &mut dgamma);
        assert_close(&dgamma, &expected, tolerance);
    }

    #[test]
    fn many_rows_and_columns_cross_blocks() {
        check_weight_gradient::<f32>(&scalar(), 2 * ROWS + 3, 300, 1e-5);
        for cpu in cpus() {
            check_weight_gradient::<f64>(cpu, STATISTICS + 2 * ROWS + 3, 530, 1e-12);
        }
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
