//! What a family's graph reads, as global tensors, of which every rank loads its part.

use std::collections::BTreeMap;

use half::{bf16, f16};
use mesh::Tile;
use models::{Model, Step};
use runtime::{Batch, Destination, RuntimeError};

/// A global input and what stands in its padding.
pub(super) enum Input {
    Ints(Vec<i32>, i32),
    Reals(Vec<f64>),
}

/// Inputs by the names that the graph has for them.
pub(super) type Inputs = BTreeMap<&'static str, Input>;

/// A model and its batch.
pub(super) struct Feed {
    pub model: Box<dyn Model>,
    pub step: Step,
    pub given: models::Given,
    /// The model's outputs and their shapes.
    pub outputs: Vec<(&'static str, Vec<usize>)>,
    pub num_layers: usize,
    pub inputs: Inputs,
}

impl Feed {
    /// The batch, to load from.
    pub fn batch(&self) -> Fed<'_> {
        Fed { inputs: &self.inputs }
    }
}

/// A [`Feed`]'s tensors, as a step loads them.
pub(super) struct Fed<'a> {
    inputs: &'a Inputs,
}

impl Batch for Fed<'_> {
    fn load(&mut self, input: &str, tile: &Tile, to: Destination<'_>) -> Result<(), RuntimeError> {
        match (self.inputs.get(input), to) {
            (Some(Input::Ints(values, padding)), Destination::I32(to)) => {
                copy(tile, values, *padding, to, |v| v);
            }
            (Some(Input::Reals(values)), Destination::F32(to)) => copy(tile, values, 0.0, to, |v| v as f32),
            (Some(Input::Reals(values)), Destination::F64(to)) => copy(tile, values, 0.0, to, |v| v),
            (Some(Input::Reals(values)), Destination::BF16(to)) => {
                copy(tile, values, bf16::ZERO, to, bf16::from_f64);
            }
            (Some(Input::Reals(values)), Destination::F16(to)) => {
                copy(tile, values, f16::ZERO, to, f16::from_f64)
            }
            _ => return Err(RuntimeError::Batch(format!("the batch has no input `{input}`"))),
        }
        Ok(())
    }
}

fn copy<T: Copy, U: Copy>(tile: &Tile, values: &[T], padding: U, to: &mut [U], convert: impl Fn(T) -> U) {
    to.fill(padding);
    tile.for_each_run(|run| {
        let from = &values[run.global..run.global + run.len];
        to[run.local..run.local + run.len].iter_mut().zip(from).for_each(|(to, v)| *to = convert(*v));
    });
}
