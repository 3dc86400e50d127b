//! What counting alone reaches on the same tokens: the bar for a model. No training loop, no model.

use std::collections::HashMap;
use std::f64::consts::LN_2;
use std::ops::Range;

use crate::{DataError, Split, TokenStore};

/// Bits per byte of text: the loss in a unit that does not depend on the tokenizer.
///
/// `nats_per_token` is the mean over `num_targets` predicted tokens that spell `num_bytes` bytes of text.
pub fn bits_per_byte(nats_per_token: f64, num_targets: usize, num_bytes: u64) -> f64 {
    nats_per_token * num_targets as f64 / num_bytes as f64 / LN_2
}

/// A score on the held-out tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Mean negative log-probability of a token.
    pub nats_per_token: f64,
    /// The same per byte of text, in bits.
    pub bits_per_byte: f64,
}

/// Unigram and bigram scores on the held-out tokens, with the numbers that were chosen for them.
///
/// N training tokens, c(w) and c(v, w) counts, V the vocabulary size, k(v) the number of different tokens after v:
/// - unigram: `p1(w) = (c(w) + alpha) / (N + alpha V)`
/// - bigram, absolute discounting, interpolated:
///   `pd(w | v) = (max(c(v, w) - discount, 0) + discount k(v) p1(w)) / c(v)`, where `c(v)` sums `c(v, w)`, and
///   `p2(w | v) = weight pd(w | v) + (1 - weight) p1(w)`; a token v never seen before another has `p2 = p1`.
///
/// `alpha`, `discount` and `weight` are the best of a grid on the last 5 % of the training tokens, counted on the
/// rest; then all training tokens are counted and the held-out tokens scored once. What is predicted is what a packed
/// [`Dataset`](crate::Dataset) predicts: every held-out token but the first.
///
/// # Source
/// Chen, Goodman 1999, "An empirical study of smoothing techniques", sections 2.2 and 2.6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Baselines {
    /// Each token by its frequency.
    pub unigram: Score,
    /// Each token by its frequency after the one before it.
    pub bigram: Score,
    /// Added to every count of the unigram.
    pub alpha: f64,
    /// Taken from every count of the bigram.
    pub discount: f64,
    /// Weight of the discounted bigram against the unigram.
    pub weight: f64,
}

const ALPHAS: [f64; 8] = [0.0001, 0.001, 0.01, 0.05, 0.1, 0.3, 1.0, 3.0];
const TUNING_FRACTION: usize = 20;

/// Scores unigram and bigram counts on a store's held-out tokens.
///
/// # Errors
/// Fewer than two held-out tokens, or training text too short to count and tune on.
pub fn baselines(store: &TokenStore) -> Result<Baselines, DataError> {
    let train = stream(store, Split::Train);
    let held_out = stream(store, Split::HeldOut);
    if held_out.len() < 2 {
        let num_tokens = held_out.len();
        return Err(DataError::NothingHeldOut { validation: store.validation(), num_tokens });
    }
    let needed = 2 * TUNING_FRACTION;
    if train.len() < needed {
        return Err(DataError::TextTooShort { num_tokens: train.len(), sequence_length: needed - 1, needed });
    }
    let cut = train.len() - (train.len() / TUNING_FRACTION).max(2);
    let (alpha, discount, weight) = tune(&Counts::of(&train[..cut], store.vocab_size()), &train[cut - 1..]);
    let pairs = Counts::of(&train, store.vocab_size()).pairs(&held_out, alpha);
    let score = |nats_per_token| {
        let bits_per_byte = bits_per_byte(nats_per_token, pairs.len(), store.num_bytes(Split::HeldOut));
        Score { nats_per_token, bits_per_byte }
    };
    let unigram = score(mean_nats(&pairs, |pair| pair.unigram));
    let bigram = score(mean_nats(&pairs, |pair| pair.bigram(discount, weight)));
    Ok(Baselines { unigram, bigram, alpha, discount, weight })
}

fn stream(store: &TokenStore, split: Split) -> Vec<u32> {
    (0..store.num_tokens(split)).map(|i| store.token(split, i)).collect()
}

fn hundredths(range: Range<u32>, step: usize) -> impl Iterator<Item = f64> + Clone {
    range.step_by(step).map(|percent| f64::from(percent) / 100.0)
}

/// The best numbers of the grid for these tokens; the first of equals.
fn tune(counts: &Counts, tokens: &[u32]) -> (f64, f64, f64) {
    let unigram = |alpha| mean_nats(&counts.pairs(tokens, alpha), |pair| pair.unigram);
    let alpha = least(ALPHAS.into_iter(), |&alpha| unigram(alpha));
    let pairs = counts.pairs(tokens, alpha);
    let grid = hundredths(5..100, 5).flat_map(|d| hundredths(50..101, 2).map(move |weight| (d, weight)));
    let (discount, weight) = least(grid, |&(d, weight)| mean_nats(&pairs, |pair| pair.bigram(d, weight)));
    (alpha, discount, weight)
}

fn least<T>(candidates: impl Iterator<Item = T>, nats: impl Fn(&T) -> f64) -> T {
    let scored = candidates.map(|candidate| (nats(&candidate), candidate));
    scored.min_by(|a, b| a.0.total_cmp(&b.0)).expect("grids are not empty").1
}

fn mean_nats(pairs: &[Pair], probability: impl Fn(&Pair) -> f64) -> f64 {
    pairs.iter().map(|pair| -probability(pair).ln()).sum::<f64>() / pairs.len() as f64
}

/// Counts of tokens and of neighbours.
struct Counts {
    num_tokens: f64,
    single: Vec<u32>,
    after: HashMap<(u32, u32), u32>,
    num_after: Vec<u32>,
    num_kinds_after: Vec<u32>,
}

/// All that the formulas need to know about one token and the one before it.
struct Pair {
    unigram: f64,
    together: f64,
    before: f64,
    kinds: f64,
}

impl Counts {
    fn of(tokens: &[u32], vocab_size: usize) -> Self {
        let mut counts = Self {
            num_tokens: tokens.len() as f64,
            single: vec![0; vocab_size],
            after: HashMap::new(),
            num_after: vec![0; vocab_size],
            num_kinds_after: vec![0; vocab_size],
        };
        for &token in tokens {
            counts.single[token as usize] += 1;
        }
        for pair in tokens.windows(2) {
            let count = counts.after.entry((pair[0], pair[1])).or_default();
            counts.num_kinds_after[pair[0] as usize] += u32::from(*count == 0);
            counts.num_after[pair[0] as usize] += 1;
            *count += 1;
        }
        counts
    }

    /// What is known about each token but the first.
    fn pairs(&self, tokens: &[u32], alpha: f64) -> Vec<Pair> {
        let total = self.num_tokens + alpha * self.single.len() as f64;
        let pair = |pair: &[u32]| Pair {
            unigram: (f64::from(self.single[pair[1] as usize]) + alpha) / total,
            together: self.after.get(&(pair[0], pair[1])).copied().unwrap_or(0).into(),
            before: self.num_after[pair[0] as usize].into(),
            kinds: self.num_kinds_after[pair[0] as usize].into(),
        };
        tokens.windows(2).map(pair).collect()
    }
}

impl Pair {
    fn bigram(&self, discount: f64, weight: f64) -> f64 {
        if self.before == 0.0 {
            return self.unigram;
        }
        let kept = (self.together - discount).max(0.0) + discount * self.kinds * self.unigram;
        weight * kept / self.before + (1.0 - weight) * self.unigram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_distributions() {
        let tokens = [0, 1, 2, 1, 3, 1, 2, 2, 0, 1, 2];
        let counts = Counts::of(&tokens, 6);
        for before in 0..6 {
            let pairs: Vec<Pair> = (0..6).flat_map(|token| counts.pairs(&[before, token], 0.3)).collect();
            assert!((pairs.iter().map(|pair| pair.unigram).sum::<f64>() - 1.0).abs() < 1e-12);
            assert!((pairs.iter().map(|pair| pair.bigram(0.7, 0.9)).sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_uniform_text_costs_its_entropy_and_a_certain_one_nothing() {
        let certain: Vec<u32> = (0..4000).map(|i| i % 4).collect();
        let counts = Counts::of(&certain, 4);
        let (alpha, discount, weight) = tune(&counts, &certain);
        let pairs = counts.pairs(&certain, alpha);
        assert!((mean_nats(&pairs, |pair| pair.unigram) - 4f64.ln()).abs() < 1e-6);
        assert!(mean_nats(&pairs, |pair| pair.bigram(discount, weight)) < 1e-3);
    }

    #[test]
    fn a_bit_a_token_at_a_byte_a_token_is_a_bit_a_byte() {
        assert!((bits_per_byte(LN_2, 10, 10) - 1.0).abs() < 1e-15);
        assert!((bits_per_byte(LN_2, 10, 40) - 0.25).abs() < 1e-15);
    }
}
