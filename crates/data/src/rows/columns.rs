//! A token a line, columns between tabs or spaces, sentences between empty lines: CoNLL's and IOB's form.

use std::path::Path;

use super::source::Lines;
use super::{Field, Row, malformed};
use crate::DataError;

/// What CoNLL-2003 puts between documents.
const DOCUMENT: &str = "-DOCSTART-";

pub(super) struct Sentences {
    lines: Lines,
    /// Whether tags are wanted beside tokens.
    has_tags: bool,
    /// Columns of the first line.
    num_columns: Option<usize>,
}

impl Sentences {
    pub fn open(path: &Path, num_wanted: usize) -> Result<Sentences, DataError> {
        Ok(Sentences { lines: Lines::open(path)?, has_tags: num_wanted > 1, num_columns: None })
    }

    fn row(&mut self) -> Result<Option<Row>, DataError> {
        let path = self.lines.path.clone();
        let (mut tokens, mut tags, mut first) = (Vec::new(), Vec::new(), 0);
        loop {
            let number = self.lines.number + 1;
            let Some(line) = self.lines.next()? else { break };
            let line = line.trim_end_matches(['\r', '\n']);
            if line.trim().is_empty() || line.starts_with(DOCUMENT) {
                if tokens.is_empty() {
                    continue;
                }
                break;
            }
            let columns: Vec<&str> = match line.contains('\t') {
                true => line.split('\t').collect(),
                false => line.split_whitespace().collect(),
            };
            let expected = *self.num_columns.get_or_insert(columns.len());
            let least = if self.has_tags { 2 } else { 1 };
            if columns.len() != expected || columns.len() < least {
                let problem = format!(
                    "{} columns where the first line has {expected}; each line holds a token and, last, its tag",
                    columns.len()
                );
                return Err(malformed(&path, number, problem));
            }
            if tokens.is_empty() {
                first = number;
            }
            tokens.push(columns[0].to_owned());
            tags.push(columns[columns.len() - 1].trim().to_owned());
        }
        if tokens.is_empty() {
            return Ok(None);
        }
        let mut fields = vec![Field::List(tokens)];
        if self.has_tags {
            fields.push(Field::List(tags));
        }
        Ok(Some(Row { line: first, fields }))
    }
}

impl Iterator for Sentences {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().transpose()
    }
}
