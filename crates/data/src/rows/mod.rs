//! Rows of record files, one at a time, whatever the file's form. What a row means to a task is decided elsewhere.
//!
//! Nothing here holds more than one row (of Parquet: one page of each column). Files may be compressed with gzip,
//! whatever they are called.

mod columns;
mod delimited;
mod json_lines;
mod parquet;
mod source;
mod text;

use std::path::{Path, PathBuf};

use crate::DataError;

pub(crate) use source::content as source_content;

/// A row longer than this is a missing separator, not a row.
pub(crate) const MAX_ROW_BYTES: u64 = 64 << 20;

/// The form of a record file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Plain text: a row is a document, or a part of one that is longer than 64 KiB.
    Text,
    /// One JSON object a line.
    JsonLines,
    /// Fields between commas, names in the first line (RFC 4180).
    Csv,
    /// The same between tabs.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// A token a line, its tag in the last column, sentences between empty lines (CoNLL, IOB).
    Columns,
}

impl Format {
    /// Every form with its name in configurations and the endings of its files.
    pub const ALL: [(Format, &'static str, &'static [&'static str]); 6] = [
        (Format::Text, "text", &["txt", "text"]),
        (Format::JsonLines, "jsonl", &["jsonl", "ndjson", "json"]),
        (Format::Csv, "csv", &["csv"]),
        (Format::Tsv, "tsv", &["tsv", "tab"]),
        (Format::Parquet, "parquet", &["parquet", "pq"]),
        (Format::Columns, "iob", &["iob", "iob2", "conll", "bio"]),
    ];

    /// The form of that name.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.iter().find(|(_, known, _)| *known == name).map(|(format, ..)| *format)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Format::ALL.iter().find(|(format, ..)| *format == self).map_or("", |(_, name, _)| name)
    }

    /// The form that a file's ending says; a last `.gz` is passed over.
    ///
    /// # Errors
    /// An ending that no form has.
    pub fn of(path: &Path) -> Result<Format, DataError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        let found = Format::ALL.iter().find(|(.., endings)| endings.contains(&ending));
        found.map(|(format, ..)| *format).ok_or_else(|| DataError::UnknownFormat {
            path: path.to_path_buf(),
            known: Format::ALL.map(|(_, name, _)| name).join(", "),
        })
    }
}

/// A column that a task reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its name in the files.
    pub name: &'a str,
    /// The key of the configuration that names it, for messages.
    pub key: &'static str,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A string, or a number or truth value as it is written.
    Text(String),
    /// A list of such.
    List(Vec<String>),
}

impl Field {
    /// One text; the parts of a list are joined by spaces.
    pub fn into_text(self) -> String {
        match self {
            Field::Text(text) => text,
            Field::List(parts) => parts.join(" "),
        }
    }

    /// A list; a text is divided at white space.
    pub fn into_list(self) -> Vec<String> {
        match self {
            Field::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
            Field::List(parts) => parts,
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where it stands: its first line, or in Parquet its number; counted from 1.
    pub line: u64,
    /// The wanted columns, in the order in which they were asked for.
    pub fields: Vec<Field>,
}

/// The rows of a file.
pub struct Rows {
    path: PathBuf,
    inner: Box<dyn Iterator<Item = Result<Row, DataError>> + Send>,
    failed: bool,
}

impl Rows {
    /// Opens a file. Of text the one wanted column is the text, of [`Format::Columns`] the first is the tokens and the
    /// second the tags, whatever their names.
    ///
    /// # Errors
    /// A file that is missing, a directory, of another form, or without a wanted column.
    pub fn open(path: &Path, format: Format, wanted: &[Wanted<'_>]) -> Result<Rows, DataError> {
        let inner: Box<dyn Iterator<Item = Result<Row, DataError>> + Send> = match format {
            Format::Text => Box::new(text::Documents::open(path)?),
            Format::JsonLines => Box::new(json_lines::JsonLines::open(path, wanted)?),
            Format::Csv => Box::new(delimited::Delimited::open(path, b',', wanted)?),
            Format::Tsv => Box::new(delimited::Delimited::open(path, b'\t', wanted)?),
            Format::Parquet => Box::new(parquet::Parquet::open(path, wanted)?),
            Format::Columns => Box::new(columns::Sentences::open(path, wanted.len())?),
        };
        Ok(Rows { path: path.to_path_buf(), inner, failed: false })
    }

    /// An error in a row of this file.
    pub fn refuse(&self, line: u64, problem: impl Into<String>) -> DataError {
        malformed(&self.path, line, problem)
    }
}

impl Iterator for Rows {
    type Item = Result<Row, DataError>;

    /// The next row. Behind an error there is none: what follows a broken row cannot be told.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.inner.next();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// An error at a line of a file.
pub(crate) fn malformed(path: &Path, line: u64, problem: impl Into<String>) -> DataError {
    malformed_at(path, &format!(":{line}"), &problem.into())
}

/// An error at a place of a file, or in the file as a whole.
pub(crate) fn malformed_at(path: &Path, place: &str, problem: &str) -> DataError {
    DataError::Malformed { path: path.to_path_buf(), place: place.to_owned(), problem: problem.to_owned() }
}

/// The places of wanted columns among those that a file has.
fn find(path: &Path, wanted: &[Wanted<'_>], known: &[String]) -> Result<Vec<usize>, DataError> {
    let place = |column: &Wanted<'_>| {
        let mut places = (0..known.len()).filter(|&place| known[place] == column.name);
        let found = places.next().ok_or_else(|| DataError::MissingColumn {
            path: path.to_path_buf(),
            column: column.name.to_owned(),
            key: column.key,
            known: known.iter().take(20).cloned().collect::<Vec<_>>().join(", "),
        })?;
        match places.next() {
            None => Ok(found),
            Some(again) => {
                let [first, second] = [found + 1, again + 1];
                let problem =
                    format!("columns {first} and {second} are both `{}`; rename one of them", column.name);
                Err(malformed_at(path, "", &problem))
            }
        }
    };
    wanted.iter().map(place).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
