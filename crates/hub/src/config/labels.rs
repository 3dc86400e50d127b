//! Labels of a classifier, and the loss that goes with them.

use serde_json::{Map, Value};

use super::keys::Keys;
use super::set;
use crate::HubError;

/// Labels when the file names none, as `transformers` counts them.
const DEFAULT_LABELS: usize = 2;
/// Far more labels than any classifier here has.
const MAX_LABELS: usize = 1 << 20;

/// Names of the labels, in the order of the classifier's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// One name per output.
    pub names: Vec<String>,
}

impl Labels {
    /// Reads `id2label`, or `num_labels` if there are no names.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Labels, HubError> {
        let Some(value) = keys.get("id2label") else {
            let num = keys.size_or("num_labels", DEFAULT_LABELS)?;
            if num > MAX_LABELS {
                return Err(keys.refuse("num_labels", format!("at most {MAX_LABELS} labels")));
            }
            return Ok(Labels { names: (0..num).map(|i| format!("LABEL_{i}")).collect() });
        };
        let refuse = || keys.refuse("id2label", "an object from \"0\", \"1\", ... to names, without gaps");
        let map = value.as_object().ok_or_else(refuse)?;
        let mut names = vec![None; map.len()];
        for (id, name) in map {
            let place = id.parse::<usize>().ok().and_then(|id| names.get_mut(id)).ok_or_else(refuse)?;
            *place = Some(name.as_str().ok_or_else(refuse)?.to_owned());
        }
        let names: Option<Vec<String>> = names.into_iter().collect();
        names.filter(|n| !n.is_empty()).map(|names| Labels { names }).ok_or_else(refuse)
    }

    /// Refuses losses other than that of one label out of several.
    pub(super) fn check(&self, keys: &Keys<'_>) -> Result<(), HubError> {
        const ONE: &str = "single_label_classification";
        match keys.optional_text("problem_type")? {
            Some(ONE) => Ok(()),
            Some(_) => Err(keys.refuse("problem_type", format!("\"{ONE}\""))),
            None if self.names.len() == 1 => {
                // one output without a problem type means regression
                let key = if keys.get("id2label").is_some() { "id2label" } else { "num_labels" };
                Err(keys.refuse(key, "two labels or more; one is a regression"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn write(&self, map: &mut Map<String, Value>) {
        let ids: Map<String, Value> =
            self.names.iter().enumerate().map(|(i, n)| (i.to_string(), n.as_str().into())).collect();
        let names: Map<String, Value> =
            self.names.iter().enumerate().map(|(i, n)| (n.clone(), i.into())).collect();
        let is_default = self.names.len() == DEFAULT_LABELS
            && self.names.iter().enumerate().all(|(i, n)| *n == format!("LABEL_{i}"));
        if !is_default || map.contains_key("id2label") {
            set(map, "id2label", ids);
            set(map, "label2id", names);
        }
        map.remove("num_labels");
    }
}
