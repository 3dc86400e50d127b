//! From scores to the next token: penalties, and draws by counter. Ties go to the smaller id, so that every layout picks
//! the same.

use std::cmp::Ordering;

use super::options::GenerateOptions;

/// Which of two scored things comes first: the larger score, then the smaller index.
fn order<I: Ord>(a: &(f64, I), b: &(f64, I)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1))
}

/// The `count` best of `scored`, best first.
pub(super) fn best<I: Ord + Copy>(scored: impl IntoIterator<Item = (f64, I)>, count: usize) -> Vec<(f64, I)> {
    let mut kept: Vec<(f64, I)> = Vec::with_capacity(count + 1);
    for item in scored {
        if kept.len() == count && kept.last().is_none_or(|last| order(last, &item) == Ordering::Less) {
            continue;
        }
        let at = kept.partition_point(|other| order(other, &item) == Ordering::Less);
        kept.insert(at, item);
        kept.truncate(count);
    }
    kept
}

/// Makes tokens of `text` less likely: positive scores are divided by the penalty, negative ones multiplied.
///
/// # Source
/// Keskar et al., "CTRL", 2019, section 4.1, in the form of `transformers`, which keeps the sign in view.
pub(super) fn penalise(scores: &mut [f64], text: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = text.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        let score = &mut scores[token as usize];
        *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
    }
}

/// Logarithms of probabilities, from scores.
pub(super) fn log_softmax(scores: &mut [f64]) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let log_sum = max + sum.ln();
    scores.iter_mut().for_each(|s| *s -= log_sum);
}

/// The token behind a text of row `row`, from its scores; `step` counts the tokens that were written.
pub(super) fn choose(scores: &[f64], options: &GenerateOptions, row: usize, step: u64) -> u32 {
    if options.temperature == 0.0 {
        return best(indexed(scores), 1)[0].1;
    }
    let likely = likely(scores, options);
    let total: f64 = likely.iter().map(|(weight, _)| weight).sum();
    let mut left = kernels::Key::new(options.seed, step, "generate").uniform(row as u64) * total;
    for (weight, token) in &likely {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    likely[likely.len() - 1].1
}

fn indexed(scores: &[f64]) -> impl Iterator<Item = (f64, u32)> + '_ {
    scores.iter().enumerate().map(|(i, s)| (*s, i as u32))
}

/// What a token is drawn from: those that are left, likeliest first, each by its probability relative to the first.
fn likely(scores: &[f64], options: &GenerateOptions) -> Vec<(f64, u32)> {
    let mut likely = match options.top_k {
        Some(k) if k < scores.len() => best(indexed(scores), k),
        _ => {
            let mut sorted: Vec<(f64, u32)> = indexed(scores).collect();
            sorted.sort_unstable_by(order);
            sorted
        }
    };
    let largest = likely[0].0;
    likely.iter_mut().for_each(|(score, _)| *score = ((*score - largest) / options.temperature).exp());
    if let Some(p) = options.top_p {
        nucleus(&mut likely, p);
    }
    likely
}

/// Keeps the fewest of the likeliest that together have the probability `p` (Holtzman et al., 2020).
fn nucleus(likely: &mut Vec<(f64, u32)>, p: f64) {
    let total: f64 = likely.iter().map(|(weight, _)| weight).sum();
    let mut sum = 0.0;
    let enough = likely.iter().position(|(weight, _)| {
        sum += weight;
        sum >= p * total
    });
    likely.truncate(enough.map_or(likely.len(), |last| last + 1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_those_of_a_sort() {
        let scores = [1.0, 3.0, -2.0, 3.0, 0.5, 3.0, f64::NEG_INFINITY, 2.0];
        let mut sorted: Vec<(f64, usize)> = scores.iter().enumerate().map(|(i, s)| (*s, i)).collect();
        sorted.sort_by(order);
        assert_eq!(sorted[0], (3.0, 1), "ties go to the smaller index");
        for count in 1..=scores.len() + 1 {
            let found = best(scores.iter().enumerate().map(|(i, s)| (*s, i)), count);
            assert_eq!(found, sorted[..count.min(scores.len())]);
        }
    }

    #[test]
    fn a_penalty_lowers_scores_of_either_sign_once() {
        let mut scores = [2.0, -2.0, 3.0];
        penalise(&mut scores, &[0, 1, 0], 2.0);
        assert_eq!(scores, [1.0, -4.0, 3.0]);
    }

    /// Frequencies of many draws.
    fn frequencies(scores: &[f64], options: &GenerateOptions) -> Vec<f64> {
        let mut counts = vec![0.0; scores.len()];
        let draws = 20_000;
        for step in 0..draws {
            counts[choose(scores, options, 0, step) as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn draws_follow_the_probabilities_that_are_left() {
        let probabilities = [0.1, 0.4, 0.2, 0.3];
        let scores = probabilities.map(f64::ln);
        let draw = |top_k, top_p, temperature| {
            frequencies(&scores, &GenerateOptions { top_k, top_p, temperature, ..GenerateOptions::default() })
        };
        let close = |a: &[f64], b: [f64; 4]| {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.015), "{a:?} {b:?}");
        };
        close(&draw(None, None, 1.0), probabilities);
        close(&draw(Some(2), None, 1.0), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // 0.4 + 0.3 is not enough for 0.75
        close(&draw(None, Some(0.75), 1.0), [0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        close(&draw(None, Some(0.69), 1.0), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        close(&draw(None, Some(1e-9), 1.0), [0.0, 1.0, 0.0, 0.0]);
        // of the two that are left, the likelier has 4/7 of the probability
        close(&draw(Some(2), Some(0.5), 1.0), [0.0, 1.0, 0.0, 0.0]);
        let squares = probabilities.map(|p| p * p / 0.3);
        close(&draw(None, None, 0.5), squares);
    }

    #[test]
    fn rows_and_steps_draw_apart() {
        let scores = [0.0; 64];
        let options = GenerateOptions { temperature: 1.0, ..GenerateOptions::default() };
        let draws = |row| (0..20).map(|step| choose(&scores, &options, row, step)).collect::<Vec<_>>();
        assert_eq!(draws(0), draws(0));
        assert_ne!(draws(0), draws(1));
    }

    /// The distributions that `transformers` draws from (`crates/hub/fixtures/filters.json`).
    #[test]
    fn what_is_left_to_draw_from_is_that_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../hub/fixtures/filters.json");
        let cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.len() > 8);
        for case in cases {
            let reals = |key: &str| -> Vec<f64> {
                case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
            };
            let text: Vec<u32> = reals("text").into_iter().map(|id| id as u32).collect();
            let mut scores = reals("scores");
            penalise(&mut scores, &text, case["repetition_penalty"].as_f64().unwrap());
            let options = GenerateOptions {
                temperature: case["temperature"].as_f64().unwrap(),
                top_k: case["top_k"].as_u64().map(|k| k as usize),
                top_p: case["top_p"].as_f64(),
                ..GenerateOptions::default()
            };
            let likely = likely(&scores, &options);
            let total: f64 = likely.iter().map(|(weight, _)| weight).sum();
            let mut found = vec![0.0; scores.len()];
            likely.iter().for_each(|(weight, token)| found[*token as usize] = weight / total);
            for (found, expected) in found.iter().zip(reals("probabilities")) {
                assert!((found - expected).abs() < 1e-14, "{options:?}: {found} {expected}");
            }
        }
    }
}
