//! Model families and optimizers as graph text.
//!
//! **Invariant: nothing here knows a rank.** A model names the roles of its dims (heads, hidden units, vocabulary,
//! sequence); a plan, elsewhere, decides which axes split them. The text never changes with the layout.

#![forbid(unsafe_code)]

mod attention;
mod bert;
mod cache;
mod decoder;
mod dropout;
mod encoder;
mod generation;
mod optimizer;
mod pairs;
mod parts;
mod pointwise;
mod step;
mod t5;
mod task;
mod vit;

pub use bert::{Bert, BertHead};
pub use decoder::{Decoder, Family, ModelError, Rotation, Variant};
pub use dropout::Dropout;
pub use encoder::Encoder;
pub use generation::{Decoding, Generator, decode_step, next_token_step, prefill_step};
pub use optimizer::{Optimizer, OptimizerKind};
pub use pairs::PairLoss;
pub use parts::Widths;
pub use pointwise::Activation;
pub use step::{Precision, Step, evaluate_step, train_step};
pub use t5::{FeedForward, T5};
pub use task::{Forward, Given, Loss, Model, gradients_step, logits_step};
pub use vit::Vit;
