//! Hugging Face directories in and out: `config.json`, safetensors, and the names of each family's tensors.
//!
//! **Invariant: nothing here computes, and nothing read from a file is trusted.** What a directory says is checked
//! against the files' sizes and against itself before anything is allocated for it; what this project cannot do is
//! refused by the key of `config.json` that asks for it. No graph, no rank, no kernel: [`Table`] says which piece of
//! which tensor each of our parameters is, and copies elements, bit by bit where the types agree.
//!
//! The way in: [`Directory::open`] ([`Config`]: what the model is; [`Weights`]: mapped files, checked; [`Table`]: names
//! and pieces) → [`Directory::bind`] (every parameter found, extra and missing tensors listed) → [`Bound::read`] (any
//! range of any parameter in any precision). The way out: [`Export`].
//!
//! The network is touched by `download` alone, which only exists with the Cargo feature of that name.
#![forbid(unsafe_code)]

mod config;
mod directory;
#[cfg(feature = "download")]
mod download;
mod error;
mod export;
mod names;
mod weights;

pub use config::{
    Activation, Bert, Config, Family, FeedForward, Frequencies, Gpt2, Labels, Llama, Rope, RopeScaling, T5,
    Task, TokenIds, Vit,
};
pub use directory::Directory;
#[cfg(feature = "download")]
pub use download::download;
pub use error::HubError;
pub use export::{Export, NewTensor, write_tensors};
pub use names::{Bound, Parameter, Piece, Report, Table};
pub use weights::{Real, StoredType, Tensor, Weights};
