//! The one error type of this crate.

/// Predictions and references that do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricError {
    /// Two lists that must be equally long are not.
    #[error("{predictions} predictions and {references} references: they must be equally many")]
    Lengths {
        /// Length of the predictions.
        predictions: usize,
        /// Length of the references.
        references: usize,
    },
    /// A sequence whose tags are fewer or more than those of its reference.
    #[error(
        "sequence {index} has {predictions} predicted tags and {references} reference tags: they must be equally many"
    )]
    Tags {
        /// The sequence.
        index: usize,
        /// Predicted tags.
        predictions: usize,
        /// Reference tags.
        references: usize,
    },
    /// A segment without a reference.
    #[error("segment {index} has no reference")]
    NoReference {
        /// The segment.
        index: usize,
    },
    /// A label beyond the classes.
    #[error("label {label} at index {index} is beyond the {num_classes} classes")]
    Label {
        /// The label.
        label: usize,
        /// Where it stands.
        index: usize,
        /// How many classes there are.
        num_classes: usize,
    },
}
