//! Names: which piece of which stored tensor each of our parameters is, one file per family. No graph.

mod bert;
mod bind;
mod gpt2;
mod llama;
mod piece;
mod t5;
mod table;
mod vit;

pub use bind::{Bound, Report};
pub use piece::Piece;
pub use table::{Parameter, Table};
