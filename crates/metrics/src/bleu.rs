//! Corpus BLEU (Papineni et al., 2002), as sacrebleu counts it (Post, 2018).

use std::collections::HashMap;

use crate::{MetricError, Tokenizer};

/// Longest n-grams that count.
const ORDER: usize = 4;
/// Stands for the logarithm of 0.
const LOG_OF_ZERO: f64 = -9_999_999_999.0;

/// A score and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bleu {
    /// The score, from 0 to 100.
    pub score: f64,
    /// Percent of matching n-grams, of one word to four, smoothed.
    pub precisions: [f64; ORDER],
    /// The penalty for output that is too short; 1 is none.
    pub brevity_penalty: f64,
    /// Matching n-grams.
    pub matches: [u64; ORDER],
    /// All n-grams of the output.
    pub totals: [u64; ORDER],
    /// Words of the output.
    pub output_words: u64,
    /// Words of the references nearest in length.
    pub reference_words: u64,
}

/// BLEU of a corpus. Each segment has one reference or several.
///
/// # Errors
/// Different numbers of outputs and references; a segment without reference.
///
/// # Source
/// sacrebleu 2, `BLEU` with its defaults: case matters, exponential smoothing (method 3 of Chen and Cherry, 2014),
/// the reference nearest in length.
pub fn bleu<S: AsRef<str>, R: AsRef<str>>(
    outputs: &[S],
    references: &[Vec<R>],
    tokenizer: Tokenizer,
) -> Result<Bleu, MetricError> {
    if outputs.len() != references.len() {
        return Err(MetricError::Lengths { predictions: outputs.len(), references: references.len() });
    }
    let (mut matches, mut totals) = ([0; ORDER], [0; ORDER]);
    let (mut output_words, mut reference_words) = (0, 0);
    for (index, (output, references)) in outputs.iter().zip(references).enumerate() {
        let output = tokenizer.words(output.as_ref());
        let references: Vec<Vec<String>> = references.iter().map(|r| tokenizer.words(r.as_ref())).collect();
        // of two that are equally near, the shorter
        let nearest = references.iter().map(Vec::len).min_by_key(|len| (len.abs_diff(output.len()), *len));
        reference_words += nearest.ok_or(MetricError::NoReference { index })? as u64;
        output_words += output.len() as u64;
        for n in 1..=ORDER {
            let mut allowed: HashMap<&[String], u64> = HashMap::new();
            for reference in &references {
                for (gram, count) in count(reference, n) {
                    let most = allowed.entry(gram).or_default();
                    *most = count.max(*most);
                }
            }
            for (gram, count) in count(&output, n) {
                totals[n - 1] += count;
                matches[n - 1] += count.min(allowed.get(gram).copied().unwrap_or(0));
            }
        }
    }
    Ok(score(matches, totals, output_words, reference_words))
}

fn count(words: &[String], n: usize) -> HashMap<&[String], u64> {
    let mut counts = HashMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

fn score(matches: [u64; ORDER], totals: [u64; ORDER], output_words: u64, reference_words: u64) -> Bleu {
    let brevity_penalty = match output_words {
        0 if reference_words > 0 => 0.0,
        words if words < reference_words => (1.0 - reference_words as f64 / words as f64).exp(),
        _ => 1.0,
    };
    let mut result = Bleu {
        score: 0.0,
        precisions: [0.0; ORDER],
        brevity_penalty,
        matches,
        totals,
        output_words,
        reference_words,
    };
    if matches.iter().all(|n| *n == 0) {
        return result;
    }
    let mut smoothing = 1.0;
    for (precision, (matches, total)) in result.precisions.iter_mut().zip(matches.into_iter().zip(totals)) {
        if total == 0 {
            break;
        }
        *precision = if matches == 0 {
            smoothing *= 2.0;
            100.0 / (smoothing * total as f64)
        } else {
            100.0 * matches as f64 / total as f64
        };
    }
    let log = |p: &f64| if *p == 0.0 { LOG_OF_ZERO } else { p.ln() };
    let mean = result.precisions.iter().map(log).sum::<f64>() / ORDER as f64;
    result.score = brevity_penalty * mean.exp();
    result
}
