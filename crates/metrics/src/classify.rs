//! Accuracy, precision, recall and F1 of a classifier with one label out of several.

use crate::f_score::average;
use crate::{Average, Counts, MetricError, Scores};

/// How a classifier did.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// Hits and misses of each class.
    pub classes: Vec<Counts>,
    /// Samples.
    pub num_samples: u64,
}

/// Compares predicted labels with the right ones.
///
/// # Errors
/// Lists of different lengths; a label beyond the classes.
///
/// # Source
/// scikit-learn, `precision_recall_fscore_support` with `zero_division=0`.
pub fn classification(
    predictions: &[usize],
    references: &[usize],
    num_classes: usize,
) -> Result<Classification, MetricError> {
    if predictions.len() != references.len() {
        return Err(MetricError::Lengths { predictions: predictions.len(), references: references.len() });
    }
    let mut classes = vec![Counts::default(); num_classes];
    for (index, (&predicted, &actual)) in predictions.iter().zip(references).enumerate() {
        if let Some(label) = [predicted, actual].into_iter().find(|label| *label >= num_classes) {
            return Err(MetricError::Label { label, index, num_classes });
        }
        classes[predicted].predicted += 1;
        classes[actual].actual += 1;
        classes[actual].true_positives += u64::from(predicted == actual);
    }
    Ok(Classification { classes, num_samples: predictions.len() as u64 })
}

impl Classification {
    /// The share of right predictions; 0 without samples.
    pub fn accuracy(&self) -> f64 {
        let hits: u64 = self.classes.iter().map(|class| class.true_positives).sum();
        if self.num_samples == 0 { 0.0 } else { hits as f64 / self.num_samples as f64 }
    }

    /// Scores over the classes that were predicted or were there. Micro scores all equal the accuracy.
    pub fn average(&self, how: Average) -> Scores {
        average(self.classes.iter().copied().filter(|class| class.predicted + class.actual > 0), how)
    }

    /// The accuracy of always predicting the most frequent class: the bar that a classifier must pass.
    pub fn majority_baseline(&self) -> f64 {
        let most = self.classes.iter().map(|class| class.actual).max().unwrap_or(0);
        if self.num_samples == 0 { 0.0 } else { most as f64 / self.num_samples as f64 }
    }
}
