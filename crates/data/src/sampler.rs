//! Which sample comes when: the training order and the evaluation walk. No tokens, no files, no ranks.

use std::ops::Range;

use crate::DataError;

/// Feistel rounds: four make a keyed permutation that passes for random, eight keep small domains well mixed.
const ROUNDS: u64 = 8;

/// The training order: position -> sample, a new permutation of all samples in every epoch.
///
/// Positions count samples from the start of training and never end: epoch `position / num_samples`, and a step of
/// `batch` samples takes `batch` positions, wrapping from one epoch into the next, so a training batch is never short.
/// The order depends on the seed and the epoch alone. It takes no memory, any position is found in constant time, and
/// so resuming is a position and any rank can ask for its part of a step alone.
///
/// # Source
/// A balanced Feistel network over the next power of four, walked along its cycle back into the range
/// (Black, Rogaway 2002, "Ciphers with arbitrary finite domains", method 2); round function: SplitMix64's finalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    num_samples: u64,
    seed: u64,
    half_bits: u32,
}

impl Sampler {
    /// An order over `num_samples` samples.
    ///
    /// # Errors
    /// There are no samples.
    pub fn new(num_samples: usize, seed: u64) -> Result<Self, DataError> {
        if num_samples == 0 {
            return Err(DataError::NoSamples);
        }
        let num_samples = num_samples as u64;
        let bits = (u64::BITS - (num_samples - 1).leading_zeros()).max(2);
        Ok(Self { num_samples, seed, half_bits: bits.div_ceil(2) })
    }

    /// The sample at a position of the training order.
    pub fn sample(&self, position: u64) -> usize {
        let key = mix(self.seed ^ mix(self.epoch(position).wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let mut value = position % self.num_samples;
        loop {
            value = self.permute(value, key);
            if value < self.num_samples {
                return value as usize;
            }
        }
    }

    /// The epoch of a position, counted from zero.
    pub fn epoch(&self, position: u64) -> u64 {
        position / self.num_samples
    }

    /// The samples of a training step, in batch order: positions `step * batch .. (step + 1) * batch`.
    pub fn samples_of_step(&self, step: u64, batch: usize) -> impl ExactSizeIterator<Item = usize> + use<> {
        let sampler = *self;
        let first = step * batch as u64;
        (0..batch).map(move |i| sampler.sample(first + i as u64))
    }

    fn permute(&self, value: u64, key: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let scrambled = mix(key ^ mix(right.wrapping_add(round << 56)));
            (left, right) = (right, left ^ (scrambled & mask));
        }
        left << self.half_bits | right
    }
}

/// The evaluation walk: every sample once, in order, in batches of which the last may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    num_samples: usize,
    batch: usize,
}

impl Walk {
    /// A walk over `num_samples` samples in batches of `batch`.
    ///
    /// # Panics
    /// If `batch` is zero.
    pub fn new(num_samples: usize, batch: usize) -> Self {
        assert!(batch > 0, "a batch holds at least one sample");
        Self { num_samples, batch }
    }

    /// The number of steps that visit every sample.
    pub fn num_steps(&self) -> usize {
        self.num_samples.div_ceil(self.batch)
    }

    /// The samples of a step, always `batch` of them; `None` stands for padding past the last sample, to be filled by
    /// [`Dataset::fill_padding`](crate::Dataset::fill_padding).
    pub fn samples_of_step(&self, step: usize) -> impl ExactSizeIterator<Item = Option<usize>> + use<> {
        let Range { start, end } = step * self.batch..(step + 1) * self.batch;
        let num_samples = self.num_samples;
        (start..end).map(move |sample| (sample < num_samples).then_some(sample))
    }
}

/// SplitMix64's finalizer: a bijection of 64 bits in which every input bit moves every output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch(num_samples: usize, seed: u64, epoch: u64) -> Vec<usize> {
        let sampler = Sampler::new(num_samples, seed).unwrap();
        (0..num_samples as u64).map(|i| sampler.sample(epoch * num_samples as u64 + i)).collect()
    }

    proptest! {
        #[test]
        fn every_epoch_is_a_permutation(num_samples in 1..3000usize, seed: u64, at in 0..1_000_000u64) {
            let mut samples = epoch(num_samples, seed, at);
            samples.sort_unstable();
            prop_assert!(samples.into_iter().eq(0..num_samples));
        }

        #[test]
        fn steps_are_positions(num_samples in 1..50usize, seed: u64, batch in 1..70usize, step in 0..1000u64) {
            let sampler = Sampler::new(num_samples, seed).unwrap();
            let samples: Vec<usize> = sampler.samples_of_step(step, batch).collect();
            prop_assert_eq!(samples.len(), batch);
            for (i, sample) in samples.into_iter().enumerate() {
                prop_assert_eq!(sample, sampler.sample(step * batch as u64 + i as u64));
            }
        }

        #[test]
        fn a_walk_visits_every_sample_once(num_samples in 0..200usize, batch in 1..70usize) {
            let walk = Walk::new(num_samples, batch);
            let steps: Vec<Vec<Option<usize>>> = (0..walk.num_steps()).map(|s| walk.samples_of_step(s).collect()).collect();
            prop_assert!(steps.iter().all(|step| step.len() == batch));
            prop_assert!(steps.into_iter().flatten().flatten().eq(0..num_samples));
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        assert_ne!(epoch(100, 1, 0), epoch(100, 1, 1));
        assert_ne!(epoch(100, 1, 0), epoch(100, 2, 0));
        assert_eq!(epoch(100, 1, 3), epoch(100, 1, 3));
    }

    #[test]
    fn the_order_is_golden() {
        // Checkpoints store a position of this order: it must never change.
        assert_eq!(epoch(10, 1, 0), [1, 0, 9, 2, 7, 3, 8, 4, 5, 6]);
    }

    #[test]
    fn every_sample_comes_first_equally_often() {
        for num_samples in [2, 3, 5, 10, 17] {
            let num_seeds = 20_000;
            let mut counts = vec![0usize; num_samples * num_samples];
            for seed in 0..num_seeds {
                for (place, sample) in epoch(num_samples, seed, 7).into_iter().enumerate() {
                    counts[place * num_samples + sample] += 1;
                }
            }
            let expected = num_seeds as f64 / num_samples as f64;
            for count in counts {
                let deviation = (count as f64 - expected) / expected.sqrt();
                assert!(deviation.abs() < 5.0, "{num_samples} samples: {count} against {expected}");
            }
        }
    }

    #[test]
    fn neighbours_are_spread() {
        // In a random order of n samples, consecutive ones are about n / 3 apart.
        let samples = epoch(10_000, 5, 0);
        let mean = samples.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64).sum::<f64>() / 9_999.0;
        assert!((mean - 3_333.0).abs() < 100.0, "{mean}");
    }

    #[test]
    fn huge_sets_cost_nothing() {
        let sampler = Sampler::new(usize::MAX, 1).unwrap();
        assert!(sampler.sample(12_345) < usize::MAX);
        assert!(matches!(Sampler::new(0, 1), Err(DataError::NoSamples)));
    }
}
