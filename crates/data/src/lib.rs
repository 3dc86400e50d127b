//! Text in, numbered samples out: tokenizers, the token cache, samples, sampling orders and count baselines.
//!
//! **Invariant: nothing here knows a rank, a mesh or a clock.** What a sample holds, and which sample stands at a
//! position of the training order, depend on the text, the tokenizer, the seed and the position alone. So every rank
//! of every layout can ask for any part of any batch by itself and they all agree without a message; resuming is a
//! number.
//!
//! The way of a text:
//! [`Tokenizer`] (train or load) → [`TokenStore`] (text files become one verified, memory-mapped file of tokens)
//! → [`Dataset`] (numbered samples of fixed length) → [`Sampler`] (which sample comes when).
//! [`baselines`] scores the same tokens with unigram and bigram counts, the bar that a model must pass.
//!
//! Files are read and the cache is written; the network is never touched.
#![forbid(unsafe_code)]

mod atomic;
mod baseline;
mod dataset;
mod error;
mod hash;
mod sampler;
mod store;
mod text;
mod token_file;
mod tokenizer;

pub use baseline::{Baselines, Score, baselines, bits_per_byte};
pub use dataset::Dataset;
pub use error::DataError;
pub use hash::ContentHash;
pub use sampler::{Sampler, Walk};
pub use store::{Origin, Split, TokenStore};
pub use text::DOCUMENT_SEPARATOR;
pub use tokenizer::{END_OF_TEXT, LEAST_VOCAB_SIZE, PAD, Tokenizer};
