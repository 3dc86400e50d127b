//! A batch's file, checked: every tensor known, shapes that go together, numbers in range. What the numbers are for is
//! in `feed`.

use std::path::{Path, PathBuf};

use hub::{Tensor, Weights};

use crate::error::TrainError;

/// Tensors that a batch may have.
const KNOWN: [&str; 7] = [
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "labels",
    "decoder_input_ids",
    "pixel_values",
];
/// A label that does not count.
pub(super) const IGNORED: i64 = -100;

/// An open batch.
pub(super) struct Given {
    path: PathBuf,
    weights: Weights,
}

/// A tensor of integers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ints {
    pub shape: Vec<usize>,
    pub values: Vec<i64>,
}

impl Given {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that is no safetensors, or a tensor that no model takes.
    pub fn open(path: &Path) -> Result<Given, TrainError> {
        let weights = Weights::open_file(path)?;
        let given = Given { path: path.to_path_buf(), weights };
        if let Some(name) = given.weights.names().find(|name| !KNOWN.contains(name)) {
            return Err(given.refuse(name, &format!("is no input; a batch may have {}", KNOWN.join(", "))));
        }
        Ok(given)
    }

    /// A refusal of a tensor: `problem` says what is wrong and what to do.
    pub fn refuse(&self, tensor: &str, problem: &str) -> TrainError {
        TrainError::File {
            path: self.path.display().to_string(),
            problem: format!("tensor `{tensor}` {problem}"),
        }
    }

    /// Refuses tensors beside `allowed`, which `model_type` does not take.
    pub fn only(&self, allowed: &[&str], what: &str) -> Result<(), TrainError> {
        match self.weights.names().find(|name| !allowed.contains(name)) {
            Some(name) => {
                let problem = format!("is no input of {what}, which takes {}; remove it", allowed.join(", "));
                Err(self.refuse(name, &problem))
            }
            None => Ok(()),
        }
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some()
    }

    fn needed(&self, name: &str) -> Result<Tensor<'_>, TrainError> {
        let tensor = self.weights.get(name).ok_or_else(|| self.refuse(name, "is missing; add it"))?;
        if tensor.is_empty() {
            return Err(self.refuse(name, &format!("has shape {:?}: it is empty", tensor.shape)));
        }
        Ok(tensor)
    }

    /// Integers `[batch, seq]` that must be there.
    pub fn ids(&self, name: &str) -> Result<Ints, TrainError> {
        let tensor = self.needed(name)?;
        if tensor.shape.len() != 2 {
            return Err(self.refuse(name, &format!("has shape {:?}; it must be [batch, seq]", tensor.shape)));
        }
        Ok(Ints { shape: tensor.shape.to_vec(), values: tensor.integers()? })
    }

    /// Integers of a given shape, if they are there.
    pub fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Ints>, TrainError> {
        let Some(tensor) = self.weights.get(name) else { return Ok(None) };
        if tensor.shape != shape {
            return Err(self.refuse(
                name,
                &format!("has shape {:?}; with the others it must be {shape:?}", tensor.shape),
            ));
        }
        Ok(Some(Ints { shape: shape.to_vec(), values: tensor.integers()? }))
    }

    /// Integers from 0 to below `limit`, whose name is `of`.
    pub fn in_range(&self, name: &str, ints: &Ints, limit: usize, of: &str) -> Result<Vec<i32>, TrainError> {
        let wrong = ints.values.iter().position(|v| !(0..limit as i64).contains(v));
        match wrong {
            Some(at) => {
                let (value, place) = (ints.values[at], index(at, &ints.shape));
                let problem = format!("has {value} at {place:?}; it must be from 0 to below {of} = {limit}");
                Err(self.refuse(name, &problem))
            }
            None => Ok(ints.values.iter().map(|v| *v as i32).collect()),
        }
    }

    /// Labels in range or ignored, as targets and weights.
    pub fn labels(&self, labels: &Ints, limit: usize, of: &str) -> Result<(Vec<i32>, Vec<f64>), TrainError> {
        let counts = |v: &i64| *v != IGNORED;
        if let Some(at) = labels.values.iter().position(|v| counts(v) && !(0..limit as i64).contains(v)) {
            let (value, place) = (labels.values[at], index(at, &labels.shape));
            let problem = format!(
                "has {value} at {place:?}; it must be from 0 to below {of} = {limit}, or {IGNORED} to be ignored"
            );
            return Err(self.refuse("labels", &problem));
        }
        let targets = labels.values.iter().map(|v| if counts(v) { *v as i32 } else { 0 }).collect();
        let weights = labels.values.iter().map(|v| f64::from(u8::from(counts(v)))).collect();
        Ok((targets, weights))
    }

    /// Real numbers that must be there.
    pub fn reals(&self, name: &str) -> Result<(Vec<usize>, Vec<f64>), TrainError> {
        let tensor = self.needed(name)?;
        let values: Vec<f64> = tensor.reals()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let problem = format!("has {} at {:?}; it must be finite", values[at], index(at, tensor.shape));
            return Err(self.refuse(name, &problem));
        }
        Ok((tensor.shape.to_vec(), values))
    }
}

/// The index in each dim of the element at a row-major position.
fn index(at: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = at;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|size| {
            let i = rest % size;
            rest /= size;
            i
        })
        .collect();
    index.reverse();
    index
}
