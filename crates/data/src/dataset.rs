//! Samples: numbered, of one fixed length, filled position by position. Order is sampler.rs's, tokens are store.rs's.

use std::sync::Arc;

use crate::{DataError, Split, TokenStore};

/// One split of a [`TokenStore`] as numbered samples of `sequence_length` positions.
///
/// Both kinds are windows over runs of tokens: sample after sample takes `sequence_length` positions of a run, and
/// each position's target is the token after it. The last window of a run may be short: its tail is padding of
/// weight 0. So every token of a run but its first is predicted by exactly one position of exactly one sample.
///
/// - [`packed`](Self::packed): the whole split is one run. Documents follow each other; attention may look across.
/// - [`padded`](Self::padded): every document is a run, framed by its start and end tokens. One document a sequence;
///   one that is longer than a sequence goes on in the next, which then has no start token of its own.
#[derive(Debug, Clone)]
pub struct Dataset {
    store: Arc<TokenStore>,
    split: Split,
    sequence_length: usize,
    runs: Vec<Run>,
    num_samples: usize,
    num_targets: usize,
}

/// Consecutive tokens of the split's stream, at least two.
#[derive(Debug, Clone, Copy)]
struct Run {
    begin: usize,
    end: usize,
    first_sample: usize,
}

impl Dataset {
    /// Windows over the whole split, documents one after another.
    ///
    /// # Errors
    /// A sequence length of zero; training text that does not fill one sequence; held-out text of less than two
    /// tokens.
    pub fn packed(store: Arc<TokenStore>, split: Split, sequence_length: usize) -> Result<Self, DataError> {
        let num_tokens = store.num_tokens(split);
        if split == Split::Train && num_tokens <= sequence_length {
            check_length(sequence_length)?;
            return Err(DataError::TextTooShort { num_tokens, sequence_length, needed: sequence_length + 1 });
        }
        Self::over(store, split, sequence_length, std::iter::once((0, num_tokens)))
    }

    /// One document a sequence, the rest of the sequence padding.
    ///
    /// # Errors
    /// A sequence length of zero; no document of two tokens or more.
    pub fn padded(store: Arc<TokenStore>, split: Split, sequence_length: usize) -> Result<Self, DataError> {
        let documents: Vec<_> = (0..store.num_documents(split))
            .map(|i| store.document(split, i))
            .map(|range| (range.start, range.end))
            .collect();
        Self::over(store, split, sequence_length, documents.into_iter())
    }

    fn over(
        store: Arc<TokenStore>,
        split: Split,
        sequence_length: usize,
        ranges: impl Iterator<Item = (usize, usize)>,
    ) -> Result<Self, DataError> {
        check_length(sequence_length)?;
        let (mut runs, mut num_samples, mut num_targets) = (Vec::new(), 0, 0);
        for (begin, end) in ranges.filter(|(begin, end)| end - begin >= 2) {
            runs.push(Run { begin, end, first_sample: num_samples });
            num_targets += end - begin - 1;
            num_samples += (end - begin - 1).div_ceil(sequence_length);
        }
        match split {
            _ if num_samples > 0 => {
                Ok(Self { store, split, sequence_length, runs, num_samples, num_targets })
            }
            Split::Train => Err(DataError::NoDocuments),
            Split::HeldOut => {
                let num_tokens = store.num_tokens(split);
                Err(DataError::NothingHeldOut { validation: store.validation(), num_tokens })
            }
        }
    }

    /// The number of samples.
    pub fn num_samples(&self) -> usize {
        self.num_samples
    }

    /// Positions in a sample.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Positions of weight 1 over all samples: the number of tokens that a walk over all samples predicts.
    pub fn num_targets(&self) -> usize {
        self.num_targets
    }

    /// Bytes of text that the split spans: the denominator of bits per byte.
    pub fn num_bytes(&self) -> u64 {
        self.store.num_bytes(self.split)
    }

    /// Bits per byte of a model whose mean loss over all samples is `nats_per_token`.
    pub fn bits_per_byte(&self, nats_per_token: f64) -> f64 {
        crate::bits_per_byte(nats_per_token, self.num_targets, self.num_bytes())
    }

    /// The tokens behind the samples.
    pub fn store(&self) -> &Arc<TokenStore> {
        &self.store
    }

    /// Positions of a sample that hold tokens of its text; the positions after them are padding.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn num_valid(&self, sample: usize) -> usize {
        let (begin, end) = self.window(sample);
        (end - begin).min(self.sequence_length)
    }

    /// Fills the asked positions of a sample: its tokens, the tokens to predict there, and their weights.
    ///
    /// `index` lists positions of the sequence, those that the caller holds, in its order. A position with nothing
    /// to predict has target 0 and weight 0; its token is the run's last one, then the padding token (0 if the
    /// vocabulary has none). A position at or beyond `sequence_length` is padding of an uneven split: token 0,
    /// weight 0.
    ///
    /// # Shape
    /// All four slices have the same length, one element a position.
    ///
    /// # Panics
    /// If there is no such sample or the slices' lengths differ.
    pub fn fill(
        &self,
        sample: usize,
        index: &[u32],
        tokens: &mut [i32],
        targets: &mut [i32],
        weights: &mut [f32],
    ) {
        let lengths = [tokens.len(), targets.len(), weights.len()];
        assert!(
            lengths.iter().all(|&length| length == index.len()),
            "index {} against {lengths:?}",
            index.len()
        );
        let (begin, end) = self.window(sample);
        let token_at = |at: usize| self.store.token(self.split, at) as i32;
        let padding = self.store.pad_id().unwrap_or(0) as i32;
        for (i, &position) in index.iter().enumerate() {
            let position = position as usize;
            let at = begin + position;
            (tokens[i], targets[i], weights[i]) = if position >= self.sequence_length {
                (0, 0, 0.0)
            } else if at + 1 < end {
                (token_at(at), token_at(at + 1), 1.0)
            } else if at < end {
                (token_at(at), 0, 0.0)
            } else {
                (padding, 0, 0.0)
            };
        }
    }

    /// Fills positions of a sample that does not exist, as a short last batch has them: padding of weight 0.
    pub fn fill_padding(&self, tokens: &mut [i32], targets: &mut [i32], weights: &mut [f32]) {
        tokens.fill(self.store.pad_id().unwrap_or(0) as i32);
        targets.fill(0);
        weights.fill(0.0);
    }

    /// The first token of a sample, and the end of its run or of its last target, whichever comes first.
    fn window(&self, sample: usize) -> (usize, usize) {
        assert!(sample < self.num_samples, "sample {sample} of {}", self.num_samples);
        let run = self.runs[self.runs.partition_point(|run| run.first_sample <= sample) - 1];
        let begin = run.begin + (sample - run.first_sample) * self.sequence_length;
        (begin, run.end.min(begin + self.sequence_length + 1))
    }
}

fn check_length(sequence_length: usize) -> Result<(), DataError> {
    let fits = sequence_length > 0 && u32::try_from(sequence_length).is_ok();
    if fits { Ok(()) } else { Err(DataError::SequenceLength { sequence_length }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Tokenizer;

    fn store(text: &str, validation: f64) -> Arc<TokenStore> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        std::fs::write(&path, text).unwrap();
        let texts = [path];
        let tokenizer = Tokenizer::train(&texts, 258).unwrap();
        Arc::new(TokenStore::open_or_build(&texts, &tokenizer, directory.path(), validation).unwrap())
    }

    fn stream(store: &TokenStore, split: Split) -> Vec<i32> {
        (0..store.num_tokens(split)).map(|i| store.token(split, i) as i32).collect()
    }

    type Filled = (Vec<i32>, Vec<i32>, Vec<f32>);

    fn filled(dataset: &Dataset, sample: usize, index: &[u32]) -> Filled {
        // Filled with rubbish first: every element must be written.
        let mut out = (vec![-9; index.len()], vec![-9; index.len()], vec![f32::NAN; index.len()]);
        dataset.fill(sample, index, &mut out.0, &mut out.1, &mut out.2);
        out
    }

    fn whole(dataset: &Dataset, sample: usize) -> Filled {
        filled(dataset, sample, &(0..dataset.sequence_length() as u32).collect::<Vec<_>>())
    }

    fn targets_of_weight_one(dataset: &Dataset) -> Vec<i32> {
        let samples = (0..dataset.num_samples()).map(|sample| whole(dataset, sample));
        let pairs = samples.flat_map(|(_, targets, weights)| targets.into_iter().zip(weights));
        pairs.filter(|&(_, weight)| weight == 1.0).map(|(target, _)| target).collect()
    }

    #[test]
    fn packed_windows_predict_every_token_but_the_first_once() {
        let store = store("abcdefghijklmnopqrstuvwxyz\u{c}0123456789", 0.25);
        for split in [Split::Train, Split::HeldOut] {
            for sequence_length in [1, 2, 3, 7, 8, 9] {
                let dataset = Dataset::packed(store.clone(), split, sequence_length).unwrap();
                let stream = stream(&store, split);
                assert_eq!(targets_of_weight_one(&dataset), stream[1..]);
                assert_eq!(dataset.num_targets(), stream.len() - 1);
                assert_eq!(dataset.num_samples(), (stream.len() - 1).div_ceil(sequence_length));
                let (tokens, targets, _) = whole(&dataset, 0);
                assert_eq!(tokens[..], stream[..sequence_length]);
                assert_eq!(targets[..], stream[1..=sequence_length]);
            }
        }
    }

    #[test]
    fn padded_sequences_hold_one_framed_document() {
        let store = store("abc\u{c}abcdefgh\u{c}z", 0.0);
        let dataset = Dataset::padded(store.clone(), Split::Train, 6).unwrap();
        let stream = stream(&store, Split::Train);
        assert_eq!(dataset.num_samples(), 4, "the second document takes two sequences");
        let pad = 1;
        let (tokens, targets, weights) = whole(&dataset, 0);
        assert_eq!(tokens, [0, stream[1], stream[2], stream[3], 0, pad]);
        assert_eq!(targets, [stream[1], stream[2], stream[3], 0, 0, 0]);
        assert_eq!(weights, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!((dataset.num_valid(0), dataset.num_valid(1), dataset.num_valid(2)), (5, 6, 4));
        let (tokens, targets, weights) = whole(&dataset, 2);
        assert_eq!(tokens[..4], stream[10..14]);
        assert_eq!((&targets[..3], &weights[..]), (&stream[11..14], &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0][..]));
        assert_eq!(dataset.num_targets(), stream.len() - 1);
    }

    #[test]
    fn positions_beyond_the_sequence_are_padding() {
        let dataset = Dataset::packed(store("abcdefgh", 0.0), Split::Train, 4).unwrap();
        let (tokens, targets, weights) = filled(&dataset, 0, &[4, 3, 100, u32::MAX]);
        assert_eq!((tokens[0], targets[0], weights[0]), (0, 0, 0.0));
        assert_eq!(weights, [0.0, 1.0, 0.0, 0.0]);
        assert_eq!((tokens[3], targets[2]), (0, 0));
        let mut out = ([5; 2], [5; 2], [5.0; 2]);
        dataset.fill_padding(&mut out.0, &mut out.1, &mut out.2);
        assert_eq!(out, ([1, 1], [0, 0], [0.0, 0.0]));
    }

    #[test]
    fn mistakes_are_named() {
        let store = store("abcdefgh", 0.0);
        let error = Dataset::packed(store.clone(), Split::Train, 10).unwrap_err();
        assert!(matches!(error, DataError::TextTooShort { num_tokens: 10, sequence_length: 10, needed: 11 }));
        assert!(error.to_string().contains("to 9 or less"), "{error}");
        assert!(Dataset::packed(store.clone(), Split::Train, 9).is_ok());
        assert!(Dataset::padded(store.clone(), Split::Train, 1000).is_ok());
        for make in [Dataset::packed, Dataset::padded] {
            let held_out = make(store.clone(), Split::HeldOut, 4);
            assert!(matches!(held_out, Err(DataError::NothingHeldOut { num_tokens: 0, .. })));
            let zero = make(store.clone(), Split::Train, 0);
            assert!(matches!(zero, Err(DataError::SequenceLength { sequence_length: 0 })));
            let huge = make(store.clone(), Split::HeldOut, usize::MAX);
            assert!(matches!(huge, Err(DataError::SequenceLength { .. })));
        }
    }

    #[test]
    fn bits_per_byte_of_a_uniform_guess() {
        // 8 bytes, and 9 tokens to predict: the last is the end token.
        let dataset = Dataset::packed(store("abcdefgh", 0.0), Split::Train, 4).unwrap();
        assert!((dataset.bits_per_byte(2f64.ln()) - 9.0 / 8.0).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_are_the_whole(sequence_length in 1..40usize, packed: bool, order in Just((0..48u32).collect::<Vec<_>>()).prop_shuffle(), cuts in prop::collection::vec(0..48usize, 3)) {
            let store = store("a short one\u{c}and a document of sixty-one bytes, or perhaps not quite\u{c}x", 0.0);
            let make = if packed { Dataset::packed } else { Dataset::padded };
            let dataset = make(store, Split::Train, sequence_length).unwrap();
            let mut cuts = [&cuts[..], &[0, 48]].concat();
            cuts.sort_unstable();
            for sample in 0..dataset.num_samples() {
                let (tokens, targets, weights) = whole(&dataset, sample);
                for part in cuts.windows(2).map(|cut| &order[cut[0]..cut[1]]) {
                    let filled = filled(&dataset, sample, part);
                    for (i, &position) in part.iter().enumerate() {
                        let position = position as usize;
                        let expected = if position < sequence_length { (tokens[position], targets[position], weights[position]) } else { (0, 0, 0.0) };
                        prop_assert_eq!((filled.0[i], filled.1[i], filled.2[i]), expected);
                    }
                }
            }
        }
    }
}
