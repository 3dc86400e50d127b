//! Vocabulary-parallel cross-entropy in pieces: each rank handles its columns of the logits, and the
//! caller reduces `max`, `sum_exp` and `target_logit` between the pieces.
//!
//! Columns whose global index is at or beyond the vocabulary's size are padding and count as -inf.

use crate::embedding::lookup;
use crate::float::{Float, vectorised};

const LANES: usize = 16;

/// The maximum of each row over valid columns, -inf if there is none; NaN logits are passed over
/// (they show up in [`sum_exp`]).
///
/// # Shape
/// `logits` `[rows, vocab_local]`, `vocab_index` `[vocab_local]`, `max` `[rows]`.
pub fn row_max<T: Float>(logits: &[T], vocab_index: &[u32], vocab_size: usize, max: &mut [T]) {
    let columns = Columns::new(logits, vocab_index, vocab_size, max.len());
    vectorised(
        #[inline(always)]
        || {
            for (row, max) in max.iter_mut().enumerate() {
                let mut lanes = [T::NEG_INFINITY; LANES];
                columns.for_each(
                    logits,
                    row,
                    #[inline(always)]
                    |lane, x| lanes[lane] = x.max(lanes[lane]),
                );
                *max = lanes.iter().fold(
                    T::NEG_INFINITY,
                    #[inline(always)]
                    |a, &b| b.max(a),
                );
            }
        },
    );
}

/// The local part of each row's sum of exp(logit - max), and the logit of its target if the target's
/// column is local (else 0).
///
/// # Shape
/// `logits` `[rows, vocab_local]`; `max`, `targets`, `sum_exp`, `target_logit` `[rows]`; `local_row`
/// maps a global id to its local column or [`NOT_LOCAL`](crate::NOT_LOCAL).
pub fn sum_exp<T: Float>(
    logits: &[T],
    max: &[T],
    targets: &[i32],
    local_row: &[u32],
    vocab_index: &[u32],
    vocab_size: usize,
    sum_exp: &mut [T],
    target_logit: &mut [T],
) {
    let rows = max.len();
    assert!(
        targets.len() == rows && sum_exp.len() == rows && target_logit.len() == rows,
        "numbers of rows differ"
    );
    let columns = Columns::new(logits, vocab_index, vocab_size, rows);
    vectorised(
        #[inline(always)]
        || {
            for row in 0..rows {
                let max = max[row];
                let mut lanes = [0.0_f64; LANES];
                columns.for_each(
                    logits,
                    row,
                    #[inline(always)]
                    |lane, x| lanes[lane] += Float::exp(x - max).to_f64(),
                );
                sum_exp[row] = T::from_f64(lanes.iter().sum());
                target_logit[row] = match lookup(targets[row], local_row) {
                    Some(column) => logits[row * vocab_index.len() + column],
                    None => T::ZERO,
                };
            }
        },
    );
}

/// Weighted negative log likelihood: `w (max + ln(sum_exp) - target_logit)`, exactly 0 where `w` is 0.
///
/// # Shape
/// All `[rows]`.
pub fn token_loss<T: Float>(max: &[T], sum_exp: &[T], target_logit: &[T], weights: &[T], nll: &mut [T]) {
    let rows = nll.len();
    assert!(max.len() == rows && sum_exp.len() == rows, "numbers of rows differ");
    assert!(target_logit.len() == rows && weights.len() == rows, "numbers of rows differ");
    for (row, nll) in nll.iter_mut().enumerate() {
        let w = weights[row];
        *nll = if w == T::ZERO {
            T::ZERO
        } else {
            w * ((max[row] - target_logit[row]) + Float::ln(sum_exp[row]))
        };
    }
}

/// The gradient of [`sum_exp()`] by the logits, with max held constant:
/// `d_sum_exp exp(logit - max)`, plus `d_target` at the target's column; padding columns are 0.
///
/// A row whose two cotangents are exactly 0 gets exact zeros, whatever its logits hold.
///
/// # Shape
/// `logits`, `dlogits` `[rows, vocab_local]`; `max`, `targets`, `d_sum_exp`, `d_target` `[rows]`.
pub fn sum_exp_backward<T: Float>(
    logits: &[T],
    max: &[T],
    targets: &[i32],
    local_row: &[u32],
    vocab_index: &[u32],
    vocab_size: usize,
    d_sum_exp: &[T],
    d_target: &[T],
    dlogits: &mut [T],
) {
    let rows = max.len();
    assert!(
        targets.len() == rows && d_sum_exp.len() == rows && d_target.len() == rows,
        "numbers of rows differ"
    );
    assert_eq!(dlogits.len(), logits.len(), "dlogits has the wrong length");
    let columns = Columns::new(logits, vocab_index, vocab_size, rows);
    let width = vocab_index.len();
    vectorised(
        #[inline(always)]
        || {
            for row in 0..rows {
                let dlogits = &mut dlogits[row * width..][..width];
                let (d, max) = (d_sum_exp[row], max[row]);
                if d == T::ZERO && d_target[row] == T::ZERO {
                    dlogits.fill(T::ZERO);
                    continue;
                }
                let logits = &logits[row * width..][..width];
                for ((out, &x), &index) in dlogits.iter_mut().zip(logits).zip(vocab_index) {
                    let value = d * Float::exp(x - max);
                    *out = if index < columns.size { value } else { T::ZERO };
                }
                if let Some(column) = lookup(targets[row], local_row) {
                    dlogits[column] += d_target[row];
                }
            }
        },
    );
}

/// The gradients of [`token_loss`] by `sum_exp` and `target_logit`: `w d / sum_exp` and `-w d`,
/// exactly 0 where `w` is 0.
///
/// # Shape
/// All `[rows]`.
pub fn token_loss_backward<T: Float>(
    sum_exp: &[T],
    weights: &[T],
    d_nll: &[T],
    d_sum_exp: &mut [T],
    d_target: &mut [T],
) {
    let rows = sum_exp.len();
    assert!(weights.len() == rows && d_nll.len() == rows, "numbers of rows differ");
    assert!(d_sum_exp.len() == rows && d_target.len() == rows, "numbers of rows differ");
    for row in 0..rows {
        let wd = weights[row] * d_nll[row];
        (d_sum_exp[row], d_target[row]) =
            if weights[row] == T::ZERO { (T::ZERO, T::ZERO) } else { (wd / sum_exp[row], -wd) };
    }
}

/// The columns of a shard of the vocabulary and which of them are real.
#[derive(Clone, Copy)]
struct Columns<'a> {
    index: &'a [u32],
    size: u32,
}

impl<'a> Columns<'a> {
    fn new<T>(logits: &[T], index: &'a [u32], size: usize, rows: usize) -> Self {
        assert_eq!(logits.len(), rows * index.len(), "logits has the wrong length");
        let size = u32::try_from(size).expect("vocabularies have fewer than 2^32 entries");
        Columns { index, size }
    }

    /// Calls `f(column mod LANES, logit)` over a row in order, with -inf for padding.
    #[inline(always)]
    fn for_each<T: Float>(&self, logits: &[T], row: usize, mut f: impl FnMut(usize, T)) {
        let (index, index_rest) = self.index.as_chunks::<LANES>();
        let (x, x_rest) = logits[row * self.index.len()..][..self.index.len()].as_chunks::<LANES>();
        for (x, index) in x.iter().zip(index) {
            for lane in 0..LANES {
                f(lane, self.masked(x[lane], index[lane]));
            }
        }
        for (lane, (&x, &index)) in x_rest.iter().zip(index_rest).enumerate() {
            f(lane, self.masked(x, index));
        }
    }

    #[inline(always)]
    fn masked<T: Float>(&self, x: T, index: u32) -> T {
        if index < self.size { x } else { T::NEG_INFINITY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NOT_LOCAL;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random};
    use proptest::prelude::*;

    /// One rank's columns: the table of global indices and its inverse.
    fn shard(rank: usize, ways: usize, vocab: usize) -> (Vec<u32>, Vec<u32>) {
        let local = vocab.div_ceil(ways);
        let index: Vec<u32> = (0..local).map(|i| (i * ways + rank) as u32).collect();
        let mut local_row = vec![NOT_LOCAL; vocab];
        for (column, &i) in index.iter().enumerate().filter(|(_, i)| (**i as usize) < vocab) {
            local_row[i as usize] = column as u32;
        }
        (index, local_row)
    }

    fn reference(logits: &[f64], vocab: usize, targets: &[i32], weights: &[f64]) -> Vec<f64> {
        let rows = logits.chunks(vocab).zip(targets).zip(weights);
        rows.map(|((x, &t), w)| {
            if *w == 0.0 {
                return 0.0;
            }
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            w * (max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - x[t as usize])
        })
        .collect()
    }

    /// Runs all shards with the reductions between the pieces, from whole logits in f64.
    fn run<T: Float>(
        logits: &[f64],
        vocab: usize,
        ways: usize,
        targets: &[i32],
        weights: &[f64],
        d_nll: &[f64],
    ) -> (Vec<T>, Vec<f64>) {
        let rows = targets.len();
        let narrow = |v: &[f64]| v.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>();
        let (weights, d_nll) = (narrow(weights), narrow(d_nll));
        let shards: Vec<_> = (0..ways)
            .map(|rank| {
                let (index, local_row) = shard(rank, ways, vocab);
                let mut local = Vec::new();
                for row in 0..rows {
                    for &i in &index {
                        // Padding holds NaN: it must not be read as a value.
                        let real = (i as usize) < vocab;
                        local.push(T::from_f64(if real {
                            logits[row * vocab + i as usize]
                        } else {
                            f64::NAN
                        }));
                    }
                }
                (index, local_row, local)
            })
            .collect();
        let mut max = vec![T::NEG_INFINITY; rows];
        for (index, _, local) in &shards {
            let mut part = poisoned::<T>(rows);
            row_max(local, index, vocab, &mut part);
            max.iter_mut().zip(&part).for_each(|(m, &p)| *m = p.max(*m));
        }
        let (mut sum, mut target) = (vec![T::ZERO; rows], vec![T::ZERO; rows]);
        for (index, local_row, local) in &shards {
            let (mut s, mut t) = (poisoned::<T>(rows), poisoned::<T>(rows));
            sum_exp(local, &max, targets, local_row, index, vocab, &mut s, &mut t);
            sum.iter_mut().zip(&s).for_each(|(a, &b)| *a += b);
            target.iter_mut().zip(&t).for_each(|(a, &b)| *a += b);
        }
        let mut nll = poisoned::<T>(rows);
        token_loss(&max, &sum, &target, &weights, &mut nll);
        let (mut ds, mut dt) = (poisoned::<T>(rows), poisoned::<T>(rows));
        token_loss_backward(&sum, &weights, &d_nll, &mut ds, &mut dt);
        let mut gradient = vec![0.0; rows * vocab];
        for (index, local_row, local) in &shards {
            let mut d = poisoned::<T>(local.len());
            sum_exp_backward(local, &max, targets, local_row, index, vocab, &ds, &dt, &mut d);
            for row in 0..rows {
                for (column, &i) in index.iter().enumerate() {
                    let value = d[row * index.len() + column].to_f64();
                    if (i as usize) < vocab {
                        gradient[row * vocab + i as usize] = value;
                    } else {
                        assert_eq!(value, 0.0, "padding has a gradient");
                    }
                }
            }
        }
        (nll, gradient)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn any_split_gives_the_whole_loss_and_gradient(
            rows in 1usize..5, vocab in 2usize..60, ways in 1usize..5, seed in 0u64..99,
        ) {
            let logits: Vec<f64> = random::<f64>(seed, rows * vocab).iter().map(|x| 4.0 * x).collect();
            let targets: Vec<i32> = (0..rows).map(|r| ((seed as usize * 7 + r * 13) % vocab) as i32).collect();
            let mut weights: Vec<f64> = random(seed + 1, rows);
            weights[0] = 0.0;
            let d: Vec<f64> = random(seed + 2, rows);
            let expected = reference(&logits, vocab, &targets, &weights);
            let slope = finite_difference(&logits, |x| dot(&reference(x, vocab, &targets, &weights), &d));
            let (nll, gradient) = run::<f64>(&logits, vocab, ways, &targets, &weights, &d);
            assert_close(&nll, &expected, 1e-12);
            assert_close(&gradient, &slope, 1e-7);
            prop_assert_eq!(nll[0], 0.0);
            let (nll, gradient) = run::<f32>(&logits, vocab, ways, &targets, &weights, &d);
            assert_close(&nll, &expected, 1e-5);
            assert_close(&gradient, &slope, 1e-5);
        }
    }

    #[test]
    fn unweighted_rows_are_zero_and_nan_shows_elsewhere() {
        let nan = f64::NAN;
        let logits = [nan, nan, nan, 1.0, nan, 2.0];
        // The first row is unlabelled (target -100), the second is not.
        let (nll, d) = run::<f32>(&logits, 3, 1, &[-100, 0], &[0.0, 1.0], &[1.0, 1.0]);
        assert!(nll[0] == 0.0 && nll[1].is_nan());
        assert!(d[..3] == [0.0; 3] && d[3].is_nan());
    }

    #[test]
    fn a_shard_of_padding_alone_adds_nothing() {
        let (mut max, mut sum, mut target) = ([f32::NAN], [f32::NAN], [f32::NAN]);
        row_max(&[5.0, 6.0], &[7, 8], 7, &mut max);
        assert_eq!(max, [f32::NEG_INFINITY]);
        let local_row = [NOT_LOCAL; 7];
        sum_exp(&[5.0, 6.0], &[1.0], &[2], &local_row, &[7, 8], 7, &mut sum, &mut target);
        assert_eq!((sum, target), ([0.0], [0.0]));
    }
}
