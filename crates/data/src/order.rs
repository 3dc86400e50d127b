//! Orders of training other than that of chance alone: by class, by a distribution over classes, by length. Each is a
//! pure function of seed and position, so that resuming is a number.

use crate::sampler::{Sampler, mix};
use crate::{DataError, Walk};

/// Batches whose samples may trade places in an order by length.
const BATCHES_PER_BUCKET: usize = 16;

/// Which sample stands at a position of training.
#[derive(Debug, Clone)]
pub enum Order {
    /// A new permutation of all samples in every epoch.
    Random(Sampler),
    /// Classes by turns, or drawn from a distribution.
    Classes(ByClass),
    /// Samples of like length together.
    Lengths(ByLength),
}

impl Order {
    /// The sample at a position.
    pub fn sample(&self, position: u64) -> usize {
        match self {
            Order::Random(sampler) => sampler.sample(position),
            Order::Classes(order) => order.sample(position),
            Order::Lengths(order) => order.sample(position),
        }
    }
}

/// An order that says how often each class is seen, whatever the number of its samples.
#[derive(Debug, Clone)]
pub struct ByClass {
    /// Of each class that has samples: the samples and their own order.
    classes: Vec<(Vec<usize>, Sampler)>,
    /// Sums of the classes' shares; none if classes take turns.
    cumulative: Option<Vec<f64>>,
    seed: u64,
}

impl ByClass {
    /// Every class as often as every other: they take turns, and each walks through its samples in random order before
    /// it starts again.
    ///
    /// # Errors
    /// No samples.
    pub fn balanced(classes: &[usize], num_classes: usize, seed: u64) -> Result<ByClass, DataError> {
        ByClass::new(classes, &vec![1.0; num_classes], seed, true)
    }

    /// Each class as often as its weight says: the class of a position is drawn, and so is its sample.
    ///
    /// # Errors
    /// No samples of a class that has a weight.
    pub fn distributed(classes: &[usize], weights: &[f64], seed: u64) -> Result<ByClass, DataError> {
        ByClass::new(classes, weights, seed, false)
    }

    fn new(classes: &[usize], weights: &[f64], seed: u64, takes_turns: bool) -> Result<ByClass, DataError> {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); weights.len()];
        for (sample, class) in classes.iter().enumerate() {
            members[*class].push(sample);
        }
        let (mut kept, mut cumulative, mut sum) = (Vec::new(), Vec::new(), 0.0);
        for (class, (members, weight)) in members.into_iter().zip(weights).enumerate() {
            if members.is_empty() || *weight <= 0.0 {
                if members.is_empty() && *weight > 0.0 && !takes_turns {
                    return Err(DataError::NoSamples);
                }
                continue;
            }
            let sampler = Sampler::new(members.len(), mix(seed ^ mix(class as u64 + 1)))?;
            kept.push((members, sampler));
            sum += weight;
            cumulative.push(sum);
        }
        if kept.is_empty() {
            return Err(DataError::NoSamples);
        }
        Ok(ByClass { classes: kept, cumulative: (!takes_turns).then_some(cumulative), seed })
    }

    fn sample(&self, position: u64) -> usize {
        let num_classes = self.classes.len() as u64;
        let (class, turn) = match &self.cumulative {
            None => ((position % num_classes) as usize, position / num_classes),
            Some(cumulative) => {
                let total = cumulative[cumulative.len() - 1];
                let drawn = unit(mix(self.seed ^ mix(2 * position))) * total;
                let class = cumulative.partition_point(|sum| *sum <= drawn).min(cumulative.len() - 1);
                // Any turn, so that samples are drawn as classes are: with replacement.
                (class, mix(self.seed ^ mix(2 * position + 1)) >> 1)
            }
        };
        let (members, sampler) = &self.classes[class];
        members[sampler.sample(turn)]
    }
}

/// Batches of samples of like length, in random order.
///
/// Samples are sorted by length; those of sixteen batches trade places among each other anew in each epoch, and the
/// batches come in a new random order. The last batch of an epoch is filled up from the one before.
#[derive(Debug, Clone)]
pub struct ByLength {
    sorted: Vec<usize>,
    batch: usize,
    batches: Sampler,
    seed: u64,
}

impl ByLength {
    /// An order over samples of these lengths, in steps of `batch` samples.
    ///
    /// # Errors
    /// No samples.
    pub fn new(lengths: &[usize], batch: usize, seed: u64) -> Result<ByLength, DataError> {
        let mut sorted: Vec<usize> = (0..lengths.len()).collect();
        sorted.sort_by_key(|sample| (lengths[*sample], mix(seed ^ mix(*sample as u64))));
        let num_steps = Walk::new(lengths.len(), batch).num_steps();
        Ok(ByLength { sorted, batch, batches: Sampler::new(num_steps, seed)?, seed })
    }

    fn sample(&self, position: u64) -> usize {
        let step = position / self.batch as u64;
        let place = self.batches.sample(step) * self.batch + (position % self.batch as u64) as usize;
        let num = self.sorted.len();
        let place = if place < num { place } else { place.saturating_sub(self.batch) % num };
        let size = BATCHES_PER_BUCKET * self.batch;
        let (bucket, within) = (place / size, place % size);
        let in_bucket = size.min(num - bucket * size);
        let seed = mix(self.seed ^ mix(bucket as u64 + 1));
        let epoch = self.batches.epoch(step);
        let inside = Sampler::new(in_bucket, seed).expect("a bucket has samples");
        self.sorted[bucket * size + inside.sample(epoch * in_bucket as u64 + within as u64)]
    }
}

/// A number in [0, 1) from 64 random bits.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 90 samples of class 0, 9 of class 1, 1 of class 2, none of class 3.
    fn classes() -> Vec<usize> {
        (0..100)
            .map(|i| {
                if i % 10 != 0 {
                    0
                } else if i != 50 {
                    1
                } else {
                    2
                }
            })
            .collect()
    }

    fn counts(order: &Order, classes: &[usize], num: u64) -> [f64; 4] {
        let mut counts = [0.0; 4];
        (0..num).for_each(|p| counts[classes[order.sample(p)]] += 1.0 / num as f64);
        counts
    }

    #[test]
    fn balanced_classes_take_turns_and_see_all_their_samples() {
        let classes = classes();
        let order = Order::Classes(ByClass::balanced(&classes, 4, 7).unwrap());
        let counts = counts(&order, &classes, 300);
        for (found, wanted) in counts.into_iter().zip([1.0, 1.0, 1.0, 0.0]) {
            assert!((found - wanted / 3.0).abs() < 1e-9, "{counts:?}");
        }
        let mut seen: Vec<usize> = (0..270).map(|p| order.sample(p)).filter(|s| classes[*s] == 0).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 90, "an epoch of the largest class shows each of its samples");
    }

    #[test]
    fn a_distribution_is_met() {
        let classes = classes();
        let order = Order::Classes(ByClass::distributed(&classes, &[1.0, 2.0, 1.0, 0.0], 3).unwrap());
        let counts = counts(&order, &classes, 40_000);
        for (found, wanted) in counts.into_iter().zip([0.25, 0.5, 0.25, 0.0]) {
            assert!((found - wanted).abs() < 0.01, "{counts:?}");
        }
        assert!(ByClass::distributed(&classes, &[1.0, 1.0, 1.0, 1.0], 3).is_err(), "class 3 has no sample");
    }

    #[test]
    fn batches_by_length_hold_like_lengths_and_an_epoch_all_samples() {
        let lengths: Vec<usize> = (0..1003).map(|i| (i * 7919) % 500).collect();
        let order = Order::Lengths(ByLength::new(&lengths, 10, 5).unwrap());
        let num_steps = 101;
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for epoch in 0..2 {
            let mut all: Vec<usize> = Vec::new();
            for step in 0..num_steps {
                let first = (epoch * num_steps + step) * 10;
                let batch: Vec<usize> = (first..first + 10).map(|p| order.sample(p)).collect();
                let of = |s: &usize| lengths[*s];
                let spread = batch.iter().map(of).max().unwrap() - batch.iter().map(of).min().unwrap();
                assert!(spread <= 100, "{spread}");
                all.extend(&batch);
                batches.push(batch);
            }
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 1003);
        }
        batches.iter_mut().for_each(|batch| batch.sort_unstable());
        let again =
            batches[num_steps as usize..].iter().filter(|b| batches[..num_steps as usize].contains(b));
        assert!(again.count() < 5, "batches of one epoch are not those of another");
    }

    #[test]
    fn fewer_samples_than_a_batch_are_repeated() {
        let order = ByLength::new(&[3, 1, 2], 8, 1).unwrap();
        assert!((0..40).all(|p| order.sample(p) < 3));
    }
}
