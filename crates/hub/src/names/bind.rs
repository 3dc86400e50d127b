//! A table and the files of a directory brought together: every parameter found, shapes checked, the rest listed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Parameter, Table};
use crate::weights::decode;
use crate::{HubError, Real, Tensor, Weights};

/// Missing names that a message repeats.
const SHOWN: usize = 3;

/// What files have beyond a table, and what they lack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Tensors that the model does not use. They are lost unless an export carries them.
    pub extra: Vec<String>,
    /// Tensors that hold no parameters: constants that older versions stored, and second copies of tied tables.
    pub ignored: Vec<String>,
    /// Parameters (our names) of a head that the files lack; they start anew.
    pub new: Vec<String>,
}

/// A table whose parameters have been found.
#[derive(Debug)]
pub struct Bound<'a> {
    table: &'a Table,
    /// The stored tensor of each parameter; none for those that start anew.
    sources: BTreeMap<&'a str, (&'a Parameter, Option<Tensor<'a>>)>,
    report: Report,
}

impl Table {
    /// Finds every parameter in the files and checks shapes and types.
    ///
    /// # Errors
    /// Missing tensors (a head of another task may be missing), wrong shapes, types that are not real numbers.
    pub fn bind<'a>(&'a self, weights: &'a Weights) -> Result<Bound<'a>, HubError> {
        let mut sources = BTreeMap::new();
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut copies: BTreeSet<String> = BTreeSet::new();
        let mut missing: BTreeSet<&str> = BTreeSet::new();
        let mut report = Report::default();
        for parameter in &self.parameters {
            let mut names = self.candidates(parameter.piece.tensor());
            names.extend(parameter.aliases.iter().cloned());
            let found = names.iter().filter(|_| !parameter.is_renewed).find_map(|name| weights.get(name));
            match found {
                Some(tensor) => {
                    check(parameter, &tensor)?;
                    used.insert(tensor.name);
                    copies.extend(parameter.aliases.iter().cloned());
                }
                None if parameter.may_be_new => report.new.push(parameter.name.clone()),
                None => {
                    missing.insert(parameter.piece.tensor());
                }
            }
            sources.insert(parameter.name.as_str(), (parameter, found));
        }
        if !missing.is_empty() {
            return Err(self.missing(weights, &missing));
        }
        for name in weights.names().filter(|name| !used.contains(name)) {
            let known = copies.contains(name) || self.ignored.iter().any(|end| name.ends_with(end));
            if known { &mut report.ignored } else { &mut report.extra }.push(name.to_owned());
        }
        Ok(Bound { table: self, sources, report })
    }

    fn missing(&self, weights: &Weights, missing: &BTreeSet<&str>) -> HubError {
        let all: BTreeSet<&str> = self.parameters.iter().map(|p| p.piece.tensor()).collect();
        let hint = if missing.iter().all(|name| *name == "lm_head.weight") {
            ": if the head is the embedding's table, set `tie_word_embeddings` to true in config.json"
        } else {
            ": config.json and weights do not belong together, or the files are not complete"
        };
        HubError::MissingTensors {
            path: weights.path().to_path_buf(),
            names: missing.iter().take(SHOWN).map(|name| (*name).to_owned()).collect(),
            num: missing.len(),
            of: all.len(),
            model_type: self.model_type,
            hint,
        }
    }
}

fn check(parameter: &Parameter, tensor: &Tensor<'_>) -> Result<(), HubError> {
    let expected = parameter.piece.tensor_shape();
    if tensor.shape != expected {
        return Err(HubError::Shape {
            path: tensor.path.to_path_buf(),
            tensor: tensor.name.to_owned(),
            actual: tensor.shape.to_vec(),
            expected: expected.to_vec(),
        });
    }
    if !tensor.dtype.is_real() {
        return Err(HubError::WrongType {
            path: tensor.path.to_path_buf(),
            tensor: tensor.name.to_owned(),
            actual: tensor.dtype,
            wanted: "F16, BF16, F32 or F64",
        });
    }
    Ok(())
}

impl<'a> Bound<'a> {
    /// The table.
    pub fn table(&self) -> &'a Table {
        self.table
    }

    /// What is extra and what is missing.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The stored tensor that a parameter is a piece of; `None` if it starts anew.
    ///
    /// # Errors
    /// No such parameter.
    pub fn source(&self, name: &str) -> Result<Option<&Tensor<'a>>, HubError> {
        self.find(name).map(|(_, tensor)| tensor.as_ref())
    }

    /// Reads elements `range` (row-major) of a parameter into `out`, and says whether they were stored: the elements of
    /// one that starts anew are left alone.
    ///
    /// # Errors
    /// No such parameter; a range beyond it or of another length than `out`.
    pub fn read<T: Real>(&self, name: &str, range: Range<usize>, out: &mut [T]) -> Result<bool, HubError> {
        let (parameter, tensor) = self.find(name)?;
        let elements =
            |actual| HubError::Elements { name: name.to_owned(), expected: parameter.piece.len(), actual };
        if range.start > range.end || range.end > parameter.piece.len() {
            return Err(elements(range.end));
        }
        if range.len() != out.len() {
            return Err(elements(out.len()));
        }
        let Some(tensor) = tensor else { return Ok(false) };
        let first = range.start;
        parameter.piece.for_each(range, |i, at| {
            // shape and type were checked: the element is there
            out[i - first] = T::from_f64(decode(tensor.dtype, tensor.bytes, at).unwrap_or(f64::NAN));
        });
        Ok(true)
    }

    /// Reads a whole parameter; `None` if it starts anew.
    ///
    /// # Errors
    /// No such parameter.
    pub fn read_all<T: Real>(&self, name: &str) -> Result<Option<Vec<T>>, HubError> {
        let (parameter, tensor) = self.find(name)?;
        if tensor.is_none() {
            return Ok(None);
        }
        let mut out = vec![T::default(); parameter.piece.len()];
        self.read(name, 0..out.len(), &mut out)?;
        Ok(Some(out))
    }

    fn find(&self, name: &str) -> Result<&(&'a Parameter, Option<Tensor<'a>>), HubError> {
        self.sources.get(name).ok_or_else(|| HubError::NoParameter { name: name.to_owned() })
    }
}
