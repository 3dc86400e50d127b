//! Safetensors: types, headers, mapped files, and the set of files of a directory. No names of any family.

mod dtype;
mod header;
mod json;
mod set;

pub use dtype::{Real, StoredType};
pub(crate) use dtype::{decode, encode};
pub(crate) use header::METADATA;
pub(crate) use set::{INDEX_FILE, SINGLE_FILE, read_regular};
pub use set::{Tensor, Weights};
