//! The field's metrics, counted as its reference programs count them.
//!
//! **Invariant: pure functions of predictions and references.** No model, no files, no state: what a task reports is
//! computed here from plain labels, tags and texts, and the same numbers come out of scikit-learn, seqeval and
//! sacrebleu (`fixtures/make.py` holds the comparison).
#![forbid(unsafe_code)]

mod bleu;
mod chrf;
mod classify;
mod entities;
mod error;
mod f_score;
mod perplexity;
mod retrieval;
mod tokenize;

pub use bleu::{Bleu, bleu};
pub use chrf::chrf;
pub use classify::{Classification, classification};
pub use entities::{Entities, Entity, entities, entity_scores};
pub use error::MetricError;
pub use f_score::{Average, Counts, Scores};
pub use perplexity::perplexity;
pub use retrieval::{Retrieval, retrieval, spearman};
pub use tokenize::Tokenizer;
