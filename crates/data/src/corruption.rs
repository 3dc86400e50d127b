//! Texts with parts hidden, to be predicted: BERT's masked tokens and T5's spans. Numbers are drawn by the caller's
//! counter, so that what is hidden depends on nothing but where it stands.

/// What masking needs to know of a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Masking {
    /// The mask token.
    pub mask: i32,
    /// Random tokens are below this.
    pub vocab_size: usize,
    /// Share of the tokens that are to be predicted.
    pub probability: f64,
}

impl Masking {
    /// Hides some of `tokens` and writes what they were to `targets`, with weight 1, elsewhere 0 and 0. Of those that
    /// are chosen, 80 % become the mask, 10 % any token, 10 % stay. `can_be_hidden` leaves out special tokens;
    /// `uniform(i)` is the i-th number of the sequence in [0, 1), three for each token. At least one token is chosen if
    /// any can be.
    ///
    /// # Source
    /// Devlin et al., 2019, section 3.1; the choice is by each token alone, as `transformers` makes it.
    ///
    /// # Panics
    /// If the slices' lengths differ.
    pub fn hide(
        &self,
        tokens: &mut [i32],
        targets: &mut [i32],
        weights: &mut [f64],
        can_be_hidden: impl Fn(usize, i32) -> bool,
        uniform: impl Fn(u64) -> f64,
    ) {
        assert!(tokens.len() == targets.len() && tokens.len() == weights.len(), "one target for each token");
        let draw = |i: usize, which: u64| uniform(3 * i as u64 + which);
        let able: Vec<usize> = (0..tokens.len()).filter(|i| can_be_hidden(*i, tokens[*i])).collect();
        targets.fill(0);
        weights.fill(0.0);
        let least = able.iter().copied().min_by(|a, b| draw(*a, 0).total_cmp(&draw(*b, 0)));
        for i in able {
            if draw(i, 0) >= self.probability && Some(i) != least {
                continue;
            }
            (targets[i], weights[i]) = (tokens[i], 1.0);
            tokens[i] = match draw(i, 1) {
                how if how < 0.8 => self.mask,
                how if how < 0.9 => (draw(i, 2) * self.vocab_size as f64) as i32,
                _ => tokens[i],
            };
        }
    }
}

/// Replaces each token by `dropped` with a probability, so that a model cannot lean on single words (word dropout: Iyyer et
/// al., 2015). `can_be_hidden` leaves out special tokens; `uniform(i)` is the number of the i-th token in [0, 1).
pub fn drop_tokens(
    tokens: &mut [i32],
    dropped: i32,
    probability: f64,
    can_be_hidden: impl Fn(i32) -> bool,
    uniform: impl Fn(u64) -> f64,
) {
    for (i, token) in tokens.iter_mut().enumerate() {
        if uniform(i as u64) < probability && can_be_hidden(*token) {
            *token = dropped;
        }
    }
}

/// T5's span corruption.
#[derive(Debug, Clone, PartialEq)]
pub struct Spans {
    /// Tokens that stand for hidden spans, in the order in which they are used.
    pub sentinels: Vec<i32>,
    /// Share of the tokens that are hidden.
    pub density: f64,
    /// Mean length of a hidden span.
    pub mean_length: f64,
}

impl Spans {
    /// How many tokens and spans of a text of `num_tokens` are hidden: at least one of each, and never all.
    fn sizes(&self, num_tokens: usize) -> (usize, usize) {
        let hidden = (num_tokens as f64 * self.density).round() as usize;
        let hidden = hidden.clamp(1, num_tokens.saturating_sub(1).max(1));
        let spans = ((hidden as f64 / self.mean_length).round() as usize).max(1);
        (hidden, spans.min(hidden).min(num_tokens.saturating_sub(hidden).max(1)).min(self.sentinels.len()))
    }

    /// Tokens of the target of a text of `num_tokens`, without an end token.
    pub fn target_length(&self, num_tokens: usize) -> usize {
        let (hidden, spans) = self.sizes(num_tokens);
        hidden + spans
    }

    /// The text with spans replaced by sentinels, and the target: each sentinel with what it stands for. `uniform(i)` is
    /// the i-th number of the text in [0, 1).
    ///
    /// # Source
    /// Raffel et al., 2020, section 3.1.4; lengths of spans and gaps are random divisions of their sums, as in their
    /// program (`random_spans_noise_mask`).
    pub fn hide(&self, tokens: &[i32], uniform: impl Fn(u64) -> f64) -> (Vec<i32>, Vec<i32>) {
        if tokens.len() < 2 || self.sentinels.is_empty() {
            return (tokens.to_vec(), Vec::new());
        }
        let (hidden, spans) = self.sizes(tokens.len());
        let gaps = divide(tokens.len() - hidden, spans, |i| uniform(2 * i));
        let lengths = divide(hidden, spans, |i| uniform(2 * i + 1));
        let (mut source, mut target, mut at) = (Vec::new(), Vec::new(), 0);
        for ((gap, length), sentinel) in gaps.into_iter().zip(lengths).zip(&self.sentinels) {
            source.extend(&tokens[at..at + gap]);
            source.push(*sentinel);
            target.push(*sentinel);
            target.extend(&tokens[at + gap..at + gap + length]);
            at += gap + length;
        }
        (source, target)
    }
}

/// A random division of `total` into `parts` of at least one.
fn divide(total: usize, parts: usize, uniform: impl Fn(u64) -> f64) -> Vec<usize> {
    // The first `parts - 1` of a random order of all places between two units.
    let mut places: Vec<usize> = (1..total).collect();
    for i in 0..parts - 1 {
        let other = i + (uniform(i as u64) * (places.len() - i) as f64) as usize;
        places.swap(i, other);
    }
    places.truncate(parts - 1);
    places.sort_unstable();
    let ends: Vec<usize> = places.into_iter().chain([total]).collect();
    let starts = std::iter::once(0).chain(ends.iter().copied());
    ends.iter().zip(starts).map(|(end, start)| end - start).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uniform(seed: u64) -> impl Fn(u64) -> f64 {
        move |i| (crate::sampler::mix(seed ^ crate::sampler::mix(i + 1)) >> 11) as f64 / (1u64 << 53) as f64
    }

    #[test]
    fn shares_of_masking_are_those_of_the_paper() {
        let masking = Masking { mask: 4, vocab_size: 1000, probability: 0.15 };
        let before: Vec<i32> = (0..100_000).map(|i| 10 + i % 900).collect();
        let (mut tokens, mut targets) = (before.clone(), vec![-9; before.len()]);
        let mut weights = vec![f64::NAN; before.len()];
        let special = |i: usize, _: i32| !i.is_multiple_of(10);
        masking.hide(&mut tokens, &mut targets, &mut weights, special, uniform(1));
        let chosen: Vec<usize> = (0..before.len()).filter(|i| weights[*i] == 1.0).collect();
        let share = |test: &dyn Fn(usize) -> bool| {
            chosen.iter().filter(|i| test(**i)).count() as f64 / chosen.len() as f64
        };
        assert!((chosen.len() as f64 / 90_000.0 - 0.15).abs() < 0.005);
        assert!(chosen.iter().all(|i| !i.is_multiple_of(10) && targets[*i] == before[*i]));
        assert!((share(&|i| tokens[i] == 4) - 0.8).abs() < 0.01);
        assert!((share(&|i| tokens[i] == before[i]) - 0.1).abs() < 0.01);
        assert!(
            (0..before.len()).all(|i| weights[i] == 1.0 || (tokens[i] == before[i] && weights[i] == 0.0))
        );
    }

    #[test]
    fn tokens_are_dropped_by_their_share_but_no_special_one() {
        let before: Vec<i32> = (0..20_000).map(|i| i % 10).collect();
        let mut tokens = before.clone();
        drop_tokens(&mut tokens, 99, 0.3, |token| token != 0, uniform(3));
        let dropped = tokens.iter().filter(|token| **token == 99).count() as f64;
        assert!((dropped / 18_000.0 - 0.3).abs() < 0.02, "{dropped}");
        assert!(
            tokens
                .iter()
                .zip(&before)
                .all(|(after, before)| after == before || (*after == 99 && *before != 0))
        );
    }

    #[test]
    fn one_token_at_least_is_hidden() {
        let masking = Masking { mask: 4, vocab_size: 10, probability: 0.0 };
        let (mut tokens, mut targets, mut weights) = ([1, 2, 3], [0; 3], [0.0; 3]);
        masking.hide(&mut tokens, &mut targets, &mut weights, |i, _| i > 0, uniform(2));
        assert_eq!(weights.iter().sum::<f64>(), 1.0);
        assert_eq!(weights[0], 0.0);
        masking.hide(&mut tokens, &mut targets, &mut weights, |_, _| false, uniform(2));
        assert_eq!(weights, [0.0; 3]);
    }

    proptest! {
        #[test]
        fn spans_put_back_give_the_text(num in 2..300usize, seed: u64) {
            let spans = Spans { sentinels: (1000..1100).rev().collect(), density: 0.15, mean_length: 3.0 };
            let tokens: Vec<i32> = (0..num as i32).collect();
            let (source, target) = spans.hide(&tokens, uniform(seed));
            prop_assert_eq!(target.len(), spans.target_length(num));
            let mut back = Vec::new();
            for token in &source {
                match target.iter().position(|t| t == token && *t >= 1000) {
                    Some(at) => back.extend(target[at + 1..].iter().take_while(|t| **t < 1000)),
                    None => back.push(*token),
                }
            }
            prop_assert_eq!(back, tokens);
            let hidden = target.iter().filter(|t| **t < 1000).count();
            prop_assert_eq!(hidden, ((num as f64 * 0.15).round() as usize).clamp(1, num - 1));
        }
    }
}
