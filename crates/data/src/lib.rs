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
//!
//! The way of a task's examples: [`Rows`], [`Idx`] and [`picture`] (records and images, one at a time) → [`Framing`]
//! (special tokens, cut to a length) → [`ExampleStore`] (one verified, memory-mapped file) → [`Order`] (which example
//! comes when) → [`Masking`] or [`Spans`] (what is hidden, to be predicted).
//! [`baselines`] scores the same tokens with unigram and bigram counts, the bar that a model must pass.
//!
//! Files are read and the cache is written; the network is never touched.
#![forbid(unsafe_code)]

mod atomic;
mod baseline;
mod corruption;
mod dataset;
mod error;
mod example_store;
mod framing;
mod hash;
mod idx;
mod order;
mod picture;
mod rows;
mod sampler;
mod store;
mod text;
mod token_file;
mod tokenizer;
mod tokenizer_kind;

pub use baseline::{Baselines, Score, baselines, bits_per_byte};
pub use corruption::{Masking, Spans, drop_tokens};
pub use dataset::Dataset;
pub use error::DataError;
pub use example_store::{Column, ExampleStore, ExampleWriter};
pub use framing::{Framed, Framing};
pub use hash::ContentHash;
pub use idx::Idx;
pub use order::{ByClass, ByLength, Order};
pub use picture::picture;
pub use rows::{Field, Format, Row, Rows, Wanted};
pub use sampler::{Sampler, Walk};
pub use store::{Origin, Split, TokenStore};
pub use text::DOCUMENT_SEPARATOR;
pub use tokenizer::{END_OF_TEXT, LEAST_VOCAB_SIZE, MASK, PAD, Tokenizer};
pub use tokenizer_kind::TokenizerKind;
