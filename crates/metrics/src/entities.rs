//! Entities in tagged sequences, and their F1. A tag is `B-TYPE`, `I-TYPE`, `E-TYPE`, `S-TYPE` or `O`.

use std::collections::{BTreeMap, BTreeSet};

use crate::f_score::average;
use crate::{Average, Counts, MetricError, Scores};

/// Type of an entity whose tag names none.
const NO_TYPE: &str = "_";

/// A run of tokens of one type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entity {
    /// Its type, such as `PER`.
    pub kind: String,
    /// Its first token.
    pub start: usize,
    /// Its last token.
    pub last: usize,
}

/// How a tagger did, by type of entity.
#[derive(Debug, Clone, PartialEq)]
pub struct Entities {
    /// Hits and misses of each type that was predicted or was there.
    pub kinds: BTreeMap<String, Counts>,
    /// Right tags.
    pub right_tags: u64,
    /// Tags.
    pub num_tags: u64,
}

/// The entities of a sequence.
///
/// An `I-` that no entity of its type precedes begins one, as in the CoNLL evaluation; `E-` and `S-` end one. This
/// covers IOB1, IOB2, IOE and IOBES.
///
/// # Source
/// seqeval, `get_entities` (its default mode, not `mode="strict"`).
pub fn entities(tags: &[impl AsRef<str>]) -> Vec<Entity> {
    let mut found = Vec::new();
    let (mut previous, mut previous_kind) = ('O', "");
    let mut start = 0;
    for (i, tag) in tags.iter().map(AsRef::as_ref).chain(["O"]).enumerate() {
        let (prefix, kind) = split(tag);
        let changes = previous_kind != kind;
        if ends(previous, prefix) || (!is_outside(previous) && changes) {
            // an end before the first token happens to no sequence of sound tags
            let last = i.saturating_sub(1);
            found.push(Entity { kind: previous_kind.to_owned(), start, last });
        }
        if starts(previous, prefix) || (!is_outside(prefix) && changes) {
            start = i;
        }
        (previous, previous_kind) = (prefix, kind);
    }
    found
}

/// Counts entities that are right in type, first and last token.
///
/// # Errors
/// Different numbers of sequences, or of tags in a sequence.
///
/// # Source
/// seqeval, `precision_recall_fscore_support`.
pub fn entity_scores<S: AsRef<str>>(
    predictions: &[Vec<S>],
    references: &[Vec<S>],
) -> Result<Entities, MetricError> {
    if predictions.len() != references.len() {
        return Err(MetricError::Lengths { predictions: predictions.len(), references: references.len() });
    }
    let mut result = Entities { kinds: BTreeMap::new(), right_tags: 0, num_tags: 0 };
    for (index, (predicted, actual)) in predictions.iter().zip(references).enumerate() {
        if predicted.len() != actual.len() {
            return Err(MetricError::Tags { index, predictions: predicted.len(), references: actual.len() });
        }
        result.num_tags += actual.len() as u64;
        result.right_tags +=
            predicted.iter().zip(actual).filter(|(a, b)| a.as_ref() == b.as_ref()).count() as u64;
        let predicted: BTreeSet<Entity> = entities(predicted).into_iter().collect();
        let actual: BTreeSet<Entity> = entities(actual).into_iter().collect();
        for entity in &predicted {
            let counts = result.kinds.entry(entity.kind.clone()).or_default();
            counts.predicted += 1;
            counts.true_positives += u64::from(actual.contains(entity));
        }
        for entity in &actual {
            result.kinds.entry(entity.kind.clone()).or_default().actual += 1;
        }
    }
    Ok(result)
}

impl Entities {
    /// Scores over all types. The field reports [`Average::Micro`].
    pub fn average(&self, how: Average) -> Scores {
        average(self.kinds.values().copied(), how)
    }

    /// The share of right tags; 0 without tags.
    pub fn accuracy(&self) -> f64 {
        if self.num_tags == 0 { 0.0 } else { self.right_tags as f64 / self.num_tags as f64 }
    }
}

/// First letter and type of a tag.
fn split(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    let prefix = letters.next().unwrap_or('O');
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (prefix, if kind.is_empty() { NO_TYPE } else { kind })
}

fn is_outside(prefix: char) -> bool {
    matches!(prefix, 'O' | '.')
}

/// Whether an entity ends between two tags of one type.
fn ends(previous: char, next: char) -> bool {
    matches!((previous, next), ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O'))
}

/// Whether an entity starts between two tags of one type.
fn starts(previous: char, next: char) -> bool {
    matches!((previous, next), (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tags: &[&str]) -> Vec<(String, usize, usize)> {
        entities(tags).into_iter().map(|e| (e.kind, e.start, e.last)).collect()
    }

    #[test]
    fn every_scheme() {
        let per = |start, last| ("PER".to_owned(), start, last);
        assert_eq!(found(&["B-PER", "I-PER", "O", "B-PER"]), [per(0, 1), per(3, 3)]);
        assert_eq!(found(&["B-PER", "B-PER", "I-PER"]), [per(0, 0), per(1, 2)]);
        assert_eq!(found(&["O", "I-PER", "I-PER"]), [per(1, 2)]);
        assert_eq!(found(&["B-PER", "E-PER", "S-PER", "O"]), [per(0, 1), per(2, 2)]);
        assert_eq!(found(&["I-LOC", "I-PER"]), [("LOC".to_owned(), 0, 0), per(1, 1)]);
        assert!(found(&["O", "O"]).is_empty() && found(&[]).is_empty());
        assert_eq!(found(&["B", "I", ""]), [("_".to_owned(), 0, 1)]);
        assert_eq!(found(&["B-A-B"]), [("A-B".to_owned(), 0, 0)]);
    }
}
