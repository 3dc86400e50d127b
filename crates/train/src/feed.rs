//! What a family's graph reads, as global tensors, of which every rank loads its part.

use std::collections::BTreeMap;

use half::{bf16, f16};
use mesh::Tile;
use models::{Model, Step};
use runtime::{Batch, Destination, RuntimeError};

/// A global input and what stands in its padding.
pub(crate) enum Input {
    Ints(Vec<i32>, i32),
    Reals(Vec<f64>),
}

/// Inputs by the names that the graph has for them.
pub(crate) type Inputs = BTreeMap<&'static str, Input>;

/// A model and its one batch.
pub(crate) struct Feed {
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

/// Global tensors, as a step loads its parts of them.
pub(crate) struct Fed<'a> {
    pub inputs: &'a Inputs,
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

/// 0, 1, 2... in every row.
pub(crate) fn count_up(rows: usize, seq: usize) -> Vec<i32> {
    (0..rows).flat_map(|_| 0..seq as i32).collect()
}

/// `select` with 1 at the first position of each row.
pub(crate) fn first_of_each(rows: usize, seq: usize, inputs: &mut Inputs) {
    let first = (0..rows * seq).map(|i| f64::from(u8::from(i.is_multiple_of(seq))));
    inputs.insert("select", Input::Reals(first.collect()));
}

/// What a ViT reads beside patches, whatever the images: which positions are the class token's, and which are patches.
pub(crate) fn insert_places_of_patches(rows: usize, seq: usize, inputs: &mut Inputs) {
    let class = |i: usize| f64::from(u8::from(i.is_multiple_of(seq)));
    inputs.insert("is_class", Input::Reals((0..rows * seq).map(class).collect()));
    inputs.insert("is_patch", Input::Reals((0..rows * seq).map(|i| 1.0 - class(i)).collect()));
    inputs.insert("positions", Input::Ints(count_up(rows, seq), 0));
    first_of_each(rows, seq, inputs);
}

/// Appends an image `[channels, height, width]` as a sequence of patches, zeros first for the class token. A patch has
/// its channels slowest, then its rows, then its columns.
pub(crate) fn append_patches(
    image_size: [usize; 2],
    patch_size: [usize; 2],
    num_channels: usize,
    image: &[f64],
    to: &mut Vec<f64>,
) {
    let ([height, width], [patch_height, patch_width]) = (image_size, patch_size);
    to.extend(std::iter::repeat_n(0.0, num_channels * patch_height * patch_width));
    for top in (0..height).step_by(patch_height) {
        for left in (0..width).step_by(patch_width) {
            for channel in 0..num_channels {
                for row in top..top + patch_height {
                    let at = (channel * height + row) * width + left;
                    to.extend(&image[at..at + patch_width]);
                }
            }
        }
    }
}

fn copy<T: Copy, U: Copy>(tile: &Tile, values: &[T], padding: U, to: &mut [U], convert: impl Fn(T) -> U) {
    to.fill(padding);
    tile.for_each_run(|run| {
        let from = &values[run.global..run.global + run.len];
        to[run.local..run.local + run.len].iter_mut().zip(from).for_each(|(to, v)| *to = convert(*v));
    });
}
