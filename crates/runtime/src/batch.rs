//! Where batches come from. How they are made is the business of others.

use half::{bf16, f16};
use mesh::Tile;

use crate::error::RuntimeError;

/// Elements to fill, by type.
pub enum Destination<'a> {
    /// Token ids, positions.
    I32(&'a mut [i32]),
    /// Weights in single precision.
    F32(&'a mut [f32]),
    /// Weights in double precision.
    F64(&'a mut [f64]),
    /// What mixed precision multiplies.
    BF16(&'a mut [bf16]),
    /// The same in half precision.
    F16(&'a mut [f16]),
}

/// The batch of one step, read in parts.
pub trait Batch {
    /// Writes the part of the tensor `input` (`[batch, seq]`) that `tile` covers, in local order. Padding (indices
    /// beyond the dim) must be filled too: with a valid id and weight 0.
    ///
    /// # Errors
    /// If the data cannot be read or holds what the model does not know.
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError>;
}
