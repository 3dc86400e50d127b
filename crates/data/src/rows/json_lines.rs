//! One JSON object a line.

use std::path::Path;

use serde_json::{Map, Value};

use super::source::Lines;
use super::{Field, Row, Wanted, find, malformed};
use crate::DataError;

pub(super) struct JsonLines {
    lines: Lines,
    wanted: Vec<(String, &'static str)>,
}

impl JsonLines {
    pub fn open(path: &Path, wanted: &[Wanted<'_>]) -> Result<JsonLines, DataError> {
        let wanted = wanted.iter().map(|column| (column.name.to_owned(), column.key)).collect();
        Ok(JsonLines { lines: Lines::open(path)?, wanted })
    }

    fn row(&mut self) -> Result<Option<Row>, DataError> {
        loop {
            let path = self.lines.path.clone();
            let number = self.lines.number + 1;
            let Some(line) = self.lines.next()? else { return Ok(None) };
            if line.trim().is_empty() {
                continue;
            }
            let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
                let column = error.column();
                let remedy = match line.trim_start().starts_with('[') {
                    true => {
                        "; write each object of the list on a line of its own, for example with `jq -c '.[]'`"
                    }
                    false => "",
                };
                malformed(
                    &path,
                    number,
                    format!("column {column}: not one JSON object a line: {error}{remedy}"),
                )
            })?;
            // what is taken stays known, for the message about what is not there
            let field = |(name, key): &(String, &'static str)| match object.get_mut(name).map(Value::take) {
                Some(value) => field(value)
                    .ok_or_else(|| malformed(&path, number, format!("`{name}` is {}", expected()))),
                None => {
                    let known: Vec<String> = object.keys().cloned().collect();
                    let missing = find(&path, &[Wanted { name, key }], &known);
                    Err(missing.err().unwrap_or_else(|| malformed(&path, number, "lacks a column")))
                        .map_err(|error| at_line(error, number))
                }
            };
            let fields = self.wanted.iter().map(field).collect::<Result<_, _>>()?;
            return Ok(Some(Row { line: number, fields }));
        }
    }
}

fn expected() -> &'static str {
    "neither a string, a number, true or false, nor a list of such; remove the row or give it a value"
}

/// A column that one row lacks: the row is named.
fn at_line(error: DataError, line: u64) -> DataError {
    match error {
        DataError::MissingColumn { path, column, key, known } => malformed(
            &path,
            line,
            format!("no column `{column}`; it has {known}: name the right one in `[data] {key}`"),
        ),
        other => other,
    }
}

fn scalar(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn field(value: Value) -> Option<Field> {
    match value {
        Value::Array(values) => values.into_iter().map(scalar).collect::<Option<_>>().map(Field::List),
        value => scalar(value).map(Field::Text),
    }
}

impl Iterator for JsonLines {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().transpose()
    }
}
