//! Where the families drop elements while they train.

/// Probabilities with which elements are dropped in training (Srivastava et al., 2014), from 0 to below 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Dropout {
    /// Of the embedding.
    pub embedding: f64,
    /// Of attention's probabilities.
    pub attention: f64,
    /// Of what residual branches add; of T5 also of hidden units and of what a stack ends with.
    pub residual: f64,
    /// Of what a classifier reads.
    pub classifier: f64,
}

impl Dropout {
    /// None.
    pub const NONE: Dropout = Dropout::uniform(0.0);

    /// The same everywhere.
    pub const fn uniform(p: f64) -> Dropout {
        Dropout { embedding: p, attention: p, residual: p, classifier: p }
    }
}
