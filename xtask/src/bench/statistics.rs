//! Medians and what is known about them. Numbers only.

/// Coverage that intervals aim at.
const COVERAGE: f64 = 0.95;

/// The median of a sample.
///
/// # Panics
/// If it is empty.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

/// A median with an interval that holds the true one with probability `coverage`, whatever the distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
    /// At least 0.95 from six values on; with fewer the interval is the whole range, and this says what it is worth.
    pub coverage: f64,
    pub count: usize,
}

impl Estimate {
    /// From independent values, by order statistics: the true median lies outside the k-th smallest and the k-th
    /// largest only if fewer than k of n fair coins fall on one side.
    pub fn of(values: &[f64]) -> Estimate {
        let sorted = sorted(values);
        let n = sorted.len();
        let mut chance = 0.5f64.powi(n as i32);
        let mut outside = chance;
        let mut k = 1;
        // `outside` is the chance of fewer than k; go on while the next k keeps the coverage.
        while 2 * (k + 1) <= n {
            let next = chance * (n - k + 1) as f64 / k as f64;
            if 1.0 - 2.0 * (outside + next) < COVERAGE {
                break;
            }
            (chance, outside, k) = (next, outside + next, k + 1);
        }
        let coverage = (1.0 - 2.0 * outside).max(0.0);
        Estimate { median: median(&sorted), low: sorted[k - 1], high: sorted[n - k], coverage, count: n }
    }

    /// Of the ratios of what was measured in the same rounds.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Estimate {
        Estimate::of(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_their_intervals() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        // Published order statistics for a 95 % interval of the median: n = 6: 1 and 6; 15: 4 and 12; 20: 6 and 15.
        for (n, low, high) in [(6, 1.0, 6.0), (15, 4.0, 12.0), (20, 6.0, 15.0)] {
            let values: Vec<f64> = (1..=n).rev().map(f64::from).collect();
            let estimate = Estimate::of(&values);
            assert_eq!((estimate.low, estimate.high), (low, high), "{n} values");
            assert!(estimate.coverage >= COVERAGE && estimate.coverage < 0.99, "{estimate:?}");
        }
    }

    #[test]
    fn few_values_say_what_they_are_worth() {
        let one = Estimate::of(&[2.0]);
        assert_eq!((one.low, one.high, one.coverage), (2.0, 2.0, 0.0));
        let three = Estimate::of_ratios(&[2.0, 4.0, 9.0], &[1.0, 1.0, 3.0]);
        assert_eq!((three.median, three.low, three.high, three.coverage), (3.0, 2.0, 4.0, 0.75));
    }
}
