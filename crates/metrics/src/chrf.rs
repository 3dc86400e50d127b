//! chrF2: F-score of character n-grams (Popović, 2015), as sacrebleu counts it.

use std::collections::HashMap;

use crate::MetricError;
use crate::tokenize::is_space;

/// Longest n-grams that count.
const ORDER: usize = 6;
/// Recall weighs the square of this.
const BETA: f64 = 2.0;

/// N-grams of one order.
#[derive(Debug, Clone, Copy, Default)]
struct Matches {
    output: u64,
    reference: u64,
    both: u64,
}

/// chrF2 of a corpus, from 0 to 100. Of several references of a segment the one with the best score counts.
///
/// # Errors
/// Different numbers of outputs and references; a segment without reference.
///
/// # Source
/// sacrebleu 2, `CHRF` with its defaults: n-grams of one to six characters, no words, white space left out, case
/// matters, the mean over the orders that both sides have.
pub fn chrf<S: AsRef<str>, R: AsRef<str>>(outputs: &[S], references: &[Vec<R>]) -> Result<f64, MetricError> {
    if outputs.len() != references.len() {
        return Err(MetricError::Lengths { predictions: outputs.len(), references: references.len() });
    }
    let mut corpus = [Matches::default(); ORDER];
    for (index, (output, references)) in outputs.iter().zip(references).enumerate() {
        let output = characters(output.as_ref());
        let mut best: Option<(f64, [Matches; ORDER])> = None;
        for reference in references {
            let matches = compare(&output, &characters(reference.as_ref()));
            let score = f_score(&matches);
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, matches));
            }
        }
        let (_, best) = best.ok_or(MetricError::NoReference { index })?;
        for (sum, add) in corpus.iter_mut().zip(best) {
            sum.output += add.output;
            sum.reference += add.reference;
            sum.both += add.both;
        }
    }
    Ok(f_score(&corpus))
}

fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|c| !is_space(*c)).collect()
}

fn compare(output: &[char], reference: &[char]) -> [Matches; ORDER] {
    std::array::from_fn(|order| {
        let (output, reference) = (count(output, order + 1), count(reference, order + 1));
        Matches {
            // what no reference could match does not count against the output
            output: if reference.is_empty() { 0 } else { output.values().sum() },
            reference: reference.values().sum(),
            both: output.iter().map(|(gram, n)| (*n).min(reference.get(gram).copied().unwrap_or(0))).sum(),
        }
    })
}

fn count(text: &[char], n: usize) -> HashMap<&[char], u64> {
    let mut counts = HashMap::new();
    for gram in text.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

fn f_score(orders: &[Matches; ORDER]) -> f64 {
    let (mut precision, mut recall, mut num_orders) = (0.0, 0.0, 0.0);
    for m in orders.iter().filter(|m| m.output > 0 && m.reference > 0) {
        precision += m.both as f64 / m.output as f64;
        recall += m.both as f64 / m.reference as f64;
        num_orders += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / num_orders, recall / num_orders);
    let factor = BETA * BETA;
    100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
}
