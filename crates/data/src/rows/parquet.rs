//! Apache Parquet, by the rows of its wanted columns. The library asserts what a damaged file may break, so that what it
//! says of places in the file is checked before, and a panic behind that is one more way to be damaged.

use std::cell::Cell;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Once;

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field as Value;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use super::source::file;
use super::{Field, Row, Wanted, find, malformed, malformed_at};
use crate::DataError;

pub(super) struct Parquet {
    path: PathBuf,
    rows: RowIter<'static>,
    wanted: Vec<String>,
    number: u64,
}

impl Parquet {
    pub fn open(path: &Path, wanted: &[Wanted<'_>]) -> Result<Parquet, DataError> {
        let refuse = |error: ParquetError| {
            malformed_at(path, "", &format!("not a whole Parquet file ({error}); write it again"))
        };
        let file = file(path)?;
        let length = file.metadata().map_err(|source| DataError::reading(path, source))?.len();
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(refuse)?;
        check(reader.metadata(), length).map_err(refuse)?;
        let schema = reader.metadata().file_metadata().schema().clone();
        let known: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
        let mut places = find(path, wanted, &known)?;
        places.sort_unstable();
        places.dedup();
        let fields = places.iter().map(|place| schema.get_fields()[*place].clone()).collect();
        let projection =
            Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(refuse)?;
        let rows = guarded(|| RowIter::from_file_into(Box::new(reader)).project(Some(projection)));
        let rows = rows.map_err(refuse)?;
        let wanted = wanted.iter().map(|column| column.name.to_owned()).collect();
        Ok(Parquet { path: path.to_path_buf(), rows, wanted, number: 0 })
    }
}

thread_local! {
    /// Whether a panic of this thread is one more error of a file, and not to be printed.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What the library does, with a panic as an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                usual(panic);
            }
        }));
    });
    IS_GUARDED.set(true);
    // Nothing that a panic leaves behind is used again: rows end behind an error.
    let caught = panic::catch_unwind(panic::AssertUnwindSafe(work));
    IS_GUARDED.set(false);
    caught.unwrap_or_else(|_| Err(ParquetError::General("it contradicts itself".to_owned())))
}

/// Checks that every column's pages lie within the file.
fn check(metadata: &ParquetMetaData, length: u64) -> Result<(), ParquetError> {
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let starts = [Some(column.data_page_offset()), column.dictionary_page_offset()];
        let size = column.compressed_size();
        let fits =
            |start: i64| start >= 0 && size >= 0 && (start as u64).saturating_add(size as u64) <= length;
        if !starts.into_iter().flatten().min().is_none_or(fits) || column.num_values() < 0 {
            return Err(ParquetError::General("a column's pages lie beyond its end".to_owned()));
        }
    }
    Ok(())
}

impl Iterator for Parquet {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        let row = match guarded(|| self.rows.next().transpose()) {
            Ok(None) => return None,
            Ok(Some(row)) => row,
            Err(error) => {
                let problem = format!("row {}: {error}; write the file again", self.number);
                return Some(Err(malformed(&self.path, self.number, problem)));
            }
        };
        let found: Vec<(&String, &Value)> = row.get_column_iter().collect();
        let one = |name: &String| {
            let value = found.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            value.and_then(field).ok_or_else(|| {
                let problem = format!(
                    "`{name}` is neither text, a number, a truth value nor a list of such; remove the row or give it \
                     a value"
                );
                malformed(&self.path, self.number, problem)
            })
        };
        let fields = self.wanted.iter().map(one).collect::<Result<Vec<Field>, DataError>>();
        Some(fields.map(|fields| Row { line: self.number, fields }))
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Str(text) => Some(text.clone()),
        Value::Bytes(bytes) => std::str::from_utf8(bytes.data()).ok().map(str::to_owned),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Byte(n) => Some(n.to_string()),
        Value::Short(n) => Some(n.to_string()),
        Value::Int(n) => Some(n.to_string()),
        Value::Long(n) => Some(n.to_string()),
        Value::UByte(n) => Some(n.to_string()),
        Value::UShort(n) => Some(n.to_string()),
        Value::UInt(n) => Some(n.to_string()),
        Value::ULong(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Double(x) => Some(x.to_string()),
        _ => None,
    }
}

fn field(value: &Value) -> Option<Field> {
    match value {
        Value::ListInternal(list) => {
            list.elements().iter().map(scalar).collect::<Option<_>>().map(Field::List)
        }
        value => scalar(value).map(Field::Text),
    }
}
