//! Vocabulary-parallel cross-entropy in pieces: each rank handles its columns of the logits, and the
//! caller reduces `max`, `sum_exp` and `target_logit` between the pieces.
//!
//! Columns whose global index is at or beyond the vocabulary's size are padding and count as -inf. They come after
//! all real columns: an index table that mixes them is a bug of the caller and panics.

use crate::cpu::Cpu;
use crate::elementwise::map_in_place;
use crate::embedding::lookup;
use crate::float::{Float, Sealed};
use crate::parts::{CHEAP, COSTLY, LINE, Rows, min_rows, prefetch_after};
use crate::storage::{BLOCK, Buffer, Storage};
use pulp::Simd;
use std::ops::Range;

/// The maximum of each row over valid columns, -inf if there is none; NaN logits are passed over
/// (they show up in [`sum_exp`]).
///
/// # Shape
/// `logits` `[rows, vocab_local]`, `vocab_index` `[vocab_local]`, `max` `[rows]`.
pub fn row_max<S: Storage>(
    cpu: &Cpu,
    logits: &[S],
    vocab_index: &[u32],
    vocab_size: usize,
    max: &mut [S::Wide],
) {
    let logits = Logits::new(logits, vocab_index, vocab_size, max.len());
    cpu.divide_rows(max.len(), 1, min_rows(COSTLY, vocab_index.len()), max, RowMax { logits });
}

struct RowMax<'a, S> {
    logits: Logits<'a, S>,
}

impl<S: Storage> Rows<&mut [S::Wide]> for RowMax<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(&self, simd: V, rows: Range<usize>, max: &mut [S::Wide]) {
        let mut buffer = Buffer::new();
        for (row, max) in rows.zip(max) {
            *max = S::Wide::NEG_INFINITY;
            for block in self.logits.row(row).chunks(BLOCK) {
                prefetch_after(block);
                *max = S::Wide::max_short(simd, S::wide_block(block, &mut buffer), *max);
            }
        }
    }
}

/// The local part of each row's sum of exp(logit - max), and the logit of its target if the target's
/// column is local (else 0).
///
/// # Shape
/// `logits` `[rows, vocab_local]`; `max`, `targets`, `sum_exp`, `target_logit` `[rows]`; `local_row`
/// maps a global id to its local column or [`NOT_LOCAL`](crate::NOT_LOCAL).
pub fn sum_exp<S: Storage>(
    cpu: &Cpu,
    logits: &[S],
    max: &[S::Wide],
    targets: &[i32],
    local_row: &[u32],
    vocab_index: &[u32],
    vocab_size: usize,
    sum_exp: &mut [S::Wide],
    target_logit: &mut [S::Wide],
) {
    let num_rows = max.len();
    assert!(
        targets.len() == num_rows && sum_exp.len() == num_rows && target_logit.len() == num_rows,
        "numbers of rows differ"
    );
    cpu.divide_rows(
        num_rows,
        1,
        min_rows(COSTLY, vocab_index.len()),
        (sum_exp, target_logit),
        SumExp { logits: Logits::new(logits, vocab_index, vocab_size, num_rows), max, targets, local_row },
    );
}

struct SumExp<'a, S: Storage> {
    logits: Logits<'a, S>,
    max: &'a [S::Wide],
    targets: &'a [i32],
    local_row: &'a [u32],
}

impl<S: Storage> Rows<(&mut [S::Wide], &mut [S::Wide])> for SumExp<'_, S> {
    #[inline(always)]
    fn run<V: Simd>(
        &self,
        simd: V,
        rows: Range<usize>,
        (sum_exp, target_logit): (&mut [S::Wide], &mut [S::Wide]),
    ) {
        let mut terms = Buffer::new();
        for (row, (sum_exp, target_logit)) in rows.zip(sum_exp.iter_mut().zip(target_logit)) {
            let (logits, max) = (self.logits.row(row), self.max[row]);
            let mut sum = 0.0;
            for block in logits.chunks(BLOCK) {
                prefetch_after(block);
                let terms = &mut terms.0[..block.len()];
                for (term, &x) in terms.iter_mut().zip(block) {
                    *term = Float::exp_flushed(x.widen() - max);
                }
                sum += S::Wide::sum_short(simd, terms);
            }
            *sum_exp = S::Wide::from_f64(sum);
            *target_logit = match lookup(self.targets[row], self.local_row) {
                Some(column) => logits[column].widen(),
                None => S::Wide::ZERO,
            };
        }
    }
}

/// Weighted negative log likelihood: `w (max + ln(sum_exp) - target_logit)`, exactly 0 where `w` is 0.
///
/// # Shape
/// All `[rows]`.
pub fn token_loss<T: Float>(
    cpu: &Cpu,
    max: &[T],
    sum_exp: &[T],
    target_logit: &[T],
    weights: &[T],
    nll: &mut [T],
) {
    let num_rows = nll.len();
    assert!(max.len() == num_rows && sum_exp.len() == num_rows, "numbers of rows differ");
    assert!(target_logit.len() == num_rows && weights.len() == num_rows, "numbers of rows differ");
    cpu.divide(num_rows, LINE, COSTLY, nll, |rows, nll| {
        for (row, nll) in rows.zip(nll) {
            let w = weights[row];
            *nll = if w == T::ZERO {
                T::ZERO
            } else {
                w * ((max[row] - target_logit[row]) + Float::ln(sum_exp[row]))
            };
        }
    });
}

/// The gradient of [`sum_exp()`] by the logits, with max held constant:
/// `d_sum_exp exp(logit - max)`, plus `d_target` at the target's column; padding columns are 0.
///
/// A row whose two cotangents are exactly 0 gets exact zeros, whatever its logits hold. The gradient takes the place of
/// the logits.
///
/// # Shape
/// `logits` `[rows, vocab_local]`; `max`, `targets`, `d_sum_exp`, `d_target` `[rows]`.
pub fn sum_exp_backward<S: Storage>(
    cpu: &Cpu,
    logits: &mut [S],
    max: &[S::Wide],
    targets: &[i32],
    local_row: &[u32],
    vocab_index: &[u32],
    vocab_size: usize,
    d_sum_exp: &[S::Wide],
    d_target: &[S::Wide],
) {
    let num_rows = max.len();
    assert!(
        targets.len() == num_rows && d_sum_exp.len() == num_rows && d_target.len() == num_rows,
        "numbers of rows differ"
    );
    let real = Logits::new(logits, vocab_index, vocab_size, num_rows).real;
    let (width, set) = (vocab_index.len(), cpu.instruction_set());
    let zero = S::Wide::ZERO;
    cpu.divide(
        num_rows,
        1,
        min_rows(COSTLY, width),
        logits,
        #[inline(always)]
        |rows, logits| {
            for (row, logits) in rows.zip(logits.chunks_exact_mut(width.max(1))) {
                let (d, d_target, max) = (d_sum_exp[row], d_target[row], max[row]);
                if d == zero && d_target == zero {
                    logits.fill(S::narrow(zero));
                    continue;
                }
                // From the logit, before it is gone: both terms are added before rounding.
                let target = lookup(targets[row], local_row).map(|column| {
                    let value = d * Float::exp_flushed(logits[column].widen() - max);
                    (column, S::narrow(value + d_target))
                });
                let (real, padding) = logits.split_at_mut(real);
                padding.fill(S::narrow(zero));
                map_in_place(
                    set,
                    real,
                    #[inline(always)]
                    |x| d * Float::exp_flushed(x - max),
                );
                if let Some((column, value)) = target {
                    logits[column] = value;
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
    cpu: &Cpu,
    sum_exp: &[T],
    weights: &[T],
    d_nll: &[T],
    d_sum_exp: &mut [T],
    d_target: &mut [T],
) {
    let num_rows = sum_exp.len();
    assert!(weights.len() == num_rows && d_nll.len() == num_rows, "numbers of rows differ");
    assert!(d_sum_exp.len() == num_rows && d_target.len() == num_rows, "numbers of rows differ");
    cpu.divide(num_rows, LINE, CHEAP, (d_sum_exp, d_target), |rows, (d_sum_exp, d_target)| {
        for (row, (d_sum_exp, d_target)) in rows.zip(d_sum_exp.iter_mut().zip(d_target)) {
            let wd = weights[row] * d_nll[row];
            (*d_sum_exp, *d_target) =
                if weights[row] == T::ZERO { (T::ZERO, T::ZERO) } else { (wd / sum_exp[row], -wd) };
        }
    });
}

/// The logits of a shard of the vocabulary, without padding.
#[derive(Clone, Copy)]
struct Logits<'a, S> {
    logits: &'a [S],
    width: usize,
    /// Columns that are not padding.
    real: usize,
}

impl<'a, S> Logits<'a, S> {
    fn new(logits: &'a [S], index: &[u32], size: usize, rows: usize) -> Self {
        assert_eq!(logits.len(), rows * index.len(), "logits has the wrong length");
        let size = u32::try_from(size).expect("vocabularies have fewer than 2^32 entries");
        let real = index.iter().take_while(|&&i| i < size).count();
        assert!(index[real..].iter().all(|&i| i >= size), "padding comes after all real columns");
        Logits { logits, width: index.len(), real }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &'a [S] {
        &self.logits[row * self.width..][..self.real]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NOT_LOCAL;
    use crate::testing::{assert_close, dot, finite_difference, poisoned, random, scalar};
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
            row_max(&scalar(), local, index, vocab, &mut part);
            max.iter_mut().zip(&part).for_each(|(m, &p)| *m = p.max(*m));
        }
        let (mut sum, mut target) = (vec![T::ZERO; rows], vec![T::ZERO; rows]);
        for (index, local_row, local) in &shards {
            let (mut s, mut t) = (poisoned::<T>(rows), poisoned::<T>(rows));
            sum_exp(&scalar(), local, &max, targets, local_row, index, vocab, &mut s, &mut t);
            sum.iter_mut().zip(&s).for_each(|(a, &b)| *a += b);
            target.iter_mut().zip(&t).for_each(|(a, &b)| *a += b);
        }
        let mut nll = poisoned::<T>(rows);
        token_loss(&scalar(), &max, &sum, &target, &weights, &mut nll);
        let (mut ds, mut dt) = (poisoned::<T>(rows), poisoned::<T>(rows));
        token_loss_backward(&scalar(), &sum, &weights, &d_nll, &mut ds, &mut dt);
        let mut gradient = vec![0.0; rows * vocab];
        for (index, local_row, local) in &shards {
            let mut d = local.clone();
            sum_exp_backward(&scalar(), &mut d, &max, targets, local_row, index, vocab, &ds, &dt);
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
        row_max(&scalar(), &[5.0_f32, 6.0], &[7, 8], 7, &mut max);
        assert_eq!(max, [f32::NEG_INFINITY]);
        let local_row = [NOT_LOCAL; 7];
        sum_exp(&scalar(), &[5.0_f32, 6.0], &[1.0], &[2], &local_row, &[7, 8], 7, &mut sum, &mut target);
        assert_eq!((sum, target), ([0.0], [0.0]));
    }

    #[test]
    #[should_panic(expected = "padding comes after all real columns")]
    fn padding_among_real_columns_is_refused() {
        row_max(&scalar(), &[1.0_f32, 2.0, 3.0], &[0, 7, 1], 7, &mut [0.0]);
    }
}
