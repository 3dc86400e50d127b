//! Precision, recall and F1 from counts, and their averages over classes.

/// Hits and misses of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Predicted and right.
    pub true_positives: u64,
    /// Predicted.
    pub predicted: u64,
    /// In the reference: the support.
    pub actual: u64,
}

/// Precision, recall and F1. Where nothing was predicted, or nothing was there, a score is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    /// Right ones among the predicted.
    pub precision: f64,
    /// Found ones among the actual.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

/// How scores of classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Average {
    /// Scores of the summed counts.
    Micro,
    /// Mean of the classes' scores.
    Macro,
    /// Mean of the classes' scores, weighted by support.
    Weighted,
}

impl Counts {
    /// The scores of these counts.
    pub fn scores(self) -> Scores {
        let precision = ratio(self.true_positives as f64, self.predicted as f64);
        let recall = ratio(self.true_positives as f64, self.actual as f64);
        let f1 = ratio(2.0 * self.true_positives as f64, (self.predicted + self.actual) as f64);
        Scores { precision, recall, f1 }
    }
}

/// The average over classes; 0 without classes.
pub(crate) fn average(classes: impl Iterator<Item = Counts> + Clone, how: Average) -> Scores {
    let sum = classes.clone().fold(Counts::default(), |a, b| Counts {
        true_positives: a.true_positives + b.true_positives,
        predicted: a.predicted + b.predicted,
        actual: a.actual + b.actual,
    });
    let weight = |class: Counts| match how {
        Average::Weighted => class.actual as f64,
        _ => 1.0,
    };
    if how == Average::Micro {
        return sum.scores();
    }
    let total: f64 = classes.clone().map(weight).sum();
    let mean = |score: fn(Scores) -> f64| {
        ratio(classes.clone().map(|class| weight(class) * score(class.scores())).sum(), total)
    };
    Scores { precision: mean(|s| s.precision), recall: mean(|s| s.recall), f1: mean(|s| s.f1) }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}
