//! How well the first of each pair finds its second among all, and how well a score orders pairs.

use crate::MetricError;

/// Ranks of what was to be found, among as many candidates as there are queries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieval {
    /// Share of the queries whose own candidate is the best.
    pub accuracy_at_1: f64,
    /// Mean of `1 / rank` of the own candidate.
    pub mean_reciprocal_rank: f64,
}

/// Ranks candidate `i` for query `i` among all, by `similarity(query, candidate)`. Of equals, half count as better, so
/// that a constant does not win. 0 without queries.
pub fn retrieval(num_pairs: usize, similarity: impl Fn(usize, usize) -> f64) -> Retrieval {
    let (mut hits, mut reciprocals) = (0.0, 0.0);
    for query in 0..num_pairs {
        let own = similarity(query, query);
        let (mut better, mut equal) = (0usize, 0usize);
        for candidate in (0..num_pairs).filter(|candidate| *candidate != query) {
            let other = similarity(query, candidate);
            // What is not a number is never found.
            better += usize::from(other > own || own.is_nan());
            equal += usize::from(other == own);
        }
        let rank = 1.0 + better as f64 + equal as f64 / 2.0;
        hits += f64::from(u8::from(better == 0)) / (equal + 1) as f64;
        reciprocals += 1.0 / rank;
    }
    let mean = |sum: f64| if num_pairs == 0 { 0.0 } else { sum / num_pairs as f64 };
    Retrieval { accuracy_at_1: mean(hits), mean_reciprocal_rank: mean(reciprocals) }
}

/// Spearman's rank correlation, equals having their mean rank, as `scipy.stats.spearmanr` counts it; 0 if either list is
/// constant, where it is not defined.
///
/// # Errors
/// Lists of unequal lengths.
pub fn spearman(predicted: &[f64], actual: &[f64]) -> Result<f64, MetricError> {
    if predicted.len() != actual.len() {
        return Err(MetricError::Lengths { predictions: predicted.len(), references: actual.len() });
    }
    let (x, y) = (ranks(predicted), ranks(actual));
    let middle = (x.len() as f64 + 1.0) / 2.0;
    let product =
        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum() };
    let norm = (product(&x, &x) * product(&y, &y)).sqrt();
    Ok(if norm > 0.0 { product(&x, &y) / norm } else { 0.0 })
}

/// Ranks from 1; equals share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let num = order[start..].iter().take_while(|i| values[**i].total_cmp(&value).is_eq()).count();
        let rank = start as f64 + (num as f64 + 1.0) / 2.0;
        order[start..start + num].iter().for_each(|i| ranks[*i] = rank);
        start += num;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_the_own_candidate() {
        let similarity = [[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.4, 0.2]];
        let found = retrieval(3, |q, c| similarity[q][c]);
        assert_eq!(found.accuracy_at_1, 1.0 / 3.0);
        assert!((found.mean_reciprocal_rank - (1.0 + 0.5 + 1.0 / 3.0) / 3.0).abs() < 1e-15);
        let constant = retrieval(4, |_, _| 1.0);
        assert_eq!((constant.accuracy_at_1, constant.mean_reciprocal_rank), (0.25, 0.4));
        assert!(retrieval(3, |_, _| f64::NAN).accuracy_at_1 < 0.01);
        assert_eq!(retrieval(0, |_, _| 1.0).accuracy_at_1, 0.0);
    }

    /// `scipy.stats.spearmanr([1, 2, 2, 4, 0.5], [0.1, 0.4, 0.3, 0.3, 0.2])` is 0.6578947368421054.
    #[test]
    fn rank_correlation() {
        let found = spearman(&[1.0, 2.0, 2.0, 4.0, 0.5], &[0.1, 0.4, 0.3, 0.3, 0.2]).unwrap();
        assert!((found - 0.657_894_736_842_105_4).abs() < 1e-14, "{found}");
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[9.0, 5.0, 1.0]).unwrap(), -1.0);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]).unwrap(), 0.0);
        assert!(spearman(&[1.0], &[]).is_err());
    }
}
