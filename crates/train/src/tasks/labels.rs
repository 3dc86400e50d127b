//! Labels as the data write them and as a model counts them.

use std::collections::BTreeSet;

use crate::error::TrainError;

/// The labels of a classifier or tagger, and how those of the data are found among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Their names, in the order of the classifier's outputs.
    pub names: Vec<String>,
    counting: Counting,
    /// Whether the model's own labels do not fit, so that its classifier starts anew.
    pub are_new: bool,
}

/// How data say which label they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counting {
    Names,
    Numbers,
    /// By name, or by number where that is no name: of a trained model, whose data may come in either form.
    Either,
}

impl Known {
    /// Labels that the data decide: numbers in their order, or names sorted, `O` first.
    ///
    /// # Errors
    /// Fewer than two.
    pub fn of_data(found: &BTreeSet<String>) -> Result<Known, TrainError> {
        let mut names: Vec<String> = found.iter().cloned().collect();
        if names.iter().all(|name| name.parse::<i64>().is_ok()) {
            names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
        } else {
            names.sort_by(|a, b| (a != "O", a).cmp(&(b != "O", b)));
        }
        match names.len() {
            0 => Err(TrainError::Missing {
                key: "an example to train on",
                remedy: "the files of the task in [data] have no rows; name others or fill them".to_owned(),
            }),
            1 => Err(TrainError::Missing {
                key: "a second label",
                remedy: format!("all examples have the label {}; classes are two or more", names[0]),
            }),
            _ => Ok(Known { names, counting: Counting::Names, are_new: true }),
        }
    }

    /// A model's own labels if those of the data are among them, by name or by number; else the data's.
    ///
    /// # Errors
    /// As [`Known::of_data`].
    pub fn of_model(names: &[String], found: &BTreeSet<String>) -> Result<Known, TrainError> {
        let own = |counting| Known { names: names.to_vec(), counting, are_new: false };
        if found.iter().all(|label| names.contains(label)) {
            return Ok(own(Counting::Names));
        }
        let fits = |label: &String| label.parse::<usize>().is_ok_and(|n| n < names.len());
        if found.iter().all(fits) { Ok(own(Counting::Numbers)) } else { Known::of_data(found) }
    }

    /// The labels of a trained model, which the data must have.
    pub fn of_checkpoint(names: Vec<String>) -> Known {
        Known { names, counting: Counting::Either, are_new: false }
    }

    /// The number of a label; none if it is not among them.
    pub fn number(&self, label: &str) -> Option<i32> {
        let by_name = || self.names.iter().position(|name| name == label);
        let by_number = || label.parse::<usize>().ok().filter(|n| *n < self.names.len());
        let found = match self.counting {
            Counting::Names => by_name(),
            Counting::Numbers => by_number(),
            Counting::Either => by_name().or_else(by_number),
        };
        found.map(|n| n as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[&str]) -> BTreeSet<String> {
        labels.iter().map(|label| (*label).to_owned()).collect()
    }

    #[test]
    fn labels_of_data_are_in_order() {
        assert_eq!(Known::of_data(&set(&["10", "9", "-1"])).unwrap().names, ["-1", "9", "10"]);
        assert_eq!(Known::of_data(&set(&["B-A", "O", "I-A"])).unwrap().names, ["O", "B-A", "I-A"]);
        assert!(
            Known::of_data(&set(&["x"])).unwrap_err().to_string().contains("all examples have the label x")
        );
        assert!(Known::of_data(&set(&[])).unwrap_err().to_string().contains("have no rows"));
    }

    #[test]
    fn a_models_labels_are_kept_where_the_data_fit() {
        let names = ["ham", "spam"].map(str::to_owned);
        let named = Known::of_model(&names, &set(&["spam"])).unwrap();
        assert_eq!((named.are_new, named.number("spam"), named.number("eggs")), (false, Some(1), None));
        let counted = Known::of_model(&names, &set(&["0", "1"])).unwrap();
        assert_eq!((counted.are_new, counted.number("1"), counted.number("2")), (false, Some(1), None));
        let other = Known::of_model(&names, &set(&["0", "1", "2"])).unwrap();
        assert_eq!((other.are_new, other.names.len(), other.number("2")), (true, 3, Some(2)));
        let carried = Known::of_checkpoint(names.to_vec());
        assert_eq!(
            (carried.number("ham"), carried.number("1"), carried.number("7")),
            (Some(0), Some(1), None)
        );
    }
}
