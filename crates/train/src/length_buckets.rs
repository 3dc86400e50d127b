//! How long the sequences of a step are: as long as the shortest of some lengths that holds the longest example of its
//! batch. Each length has Programs of its own over the same states. Which one a step takes follows from the examples of
//! the whole batch, which every rank knows, so that ranks agree without a word.

use crate::config::Data;

/// Tokens of a step's sequences, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Of a sequence.
    pub sequence: usize,
    /// Of a target, where there is a decoder beside an encoder.
    pub target: usize,
}

/// The lengths that batches are padded to, the longest first: bucket 0 holds everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LengthBuckets(Vec<Lengths>);

impl LengthBuckets {
    /// Those of a configuration's texts. A target is given as many tokens as its sequence, if it may have so many.
    pub fn of(data: &Data) -> LengthBuckets {
        let target_length = data.resolved_target_length();
        let longest = Lengths { sequence: data.sequence_length, target: target_length };
        let shorter = data.length_buckets.iter().rev().filter(|length| **length < data.sequence_length);
        let shorter = shorter.map(|length| Lengths { sequence: *length, target: target_length.min(*length) });
        LengthBuckets(std::iter::once(longest).chain(shorter).collect())
    }

    /// One for sequences that all have the same length.
    pub fn single(sequence: usize) -> LengthBuckets {
        LengthBuckets(vec![Lengths { sequence, target: sequence }])
    }

    /// How many there are.
    pub fn num_buckets(&self) -> usize {
        self.0.len()
    }

    /// Lengths of all buckets.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Lengths> + DoubleEndedIterator {
        self.0.iter().copied()
    }

    /// Lengths of a bucket.
    ///
    /// # Panics
    /// If there is no such bucket.
    pub fn lengths(&self, bucket: usize) -> Lengths {
        self.0[bucket]
    }

    /// Lengths of the longest.
    pub fn longest(&self) -> Lengths {
        self.0[0]
    }

    /// The shortest bucket that holds sequences and targets of so many tokens.
    pub fn holding(&self, sequence: usize, target: usize) -> usize {
        let holds = |lengths: &Lengths| lengths.sequence >= sequence && lengths.target >= target;
        self.0.iter().rposition(holds).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_goes_to_the_shortest_bucket_that_holds_it() {
        let data = Data {
            sequence_length: 32,
            target_length: Some(12),
            length_buckets: vec![8, 16, 32],
            ..Data::default()
        };
        let buckets = LengthBuckets::of(&data);
        let all: Vec<[usize; 2]> = buckets.iter().map(|l| [l.sequence, l.target]).collect();
        assert_eq!(all, [[32, 12], [16, 12], [8, 8]]);
        let found = [(0, 0), (8, 8), (9, 1), (1, 9), (16, 12), (17, 0), (32, 12)];
        assert_eq!(found.map(|(sequence, target)| buckets.holding(sequence, target)), [2, 2, 1, 1, 1, 0, 0]);
        assert_eq!(LengthBuckets::of(&Data::default()).num_buckets(), 1);
    }
}
