//! Comma- and tab-separated values with a first line of names (RFC 4180).

use std::io::Read;
use std::path::{Path, PathBuf};

use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord};

use super::source::{Meter, Metered, content};
use super::{Field, Row, Wanted, find, malformed, malformed_at};
use crate::DataError;

pub(super) struct Delimited {
    path: PathBuf,
    reader: Reader<Metered<Box<dyn Read + Send>>>,
    meter: Meter,
    places: Vec<usize>,
    /// Lines that the library counts late: behind a carriage return it leaves the line feed for later.
    late: u64,
    record: StringRecord,
}

impl Delimited {
    pub fn open(path: &Path, delimiter: u8, wanted: &[Wanted<'_>]) -> Result<Delimited, DataError> {
        let meter = Meter::default();
        let source = Metered::new(content(path)?, meter.clone());
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(source);
        let names = reader.headers().map_err(|error| refuse(path, 0, error))?;
        if names.is_empty() {
            return Err(malformed_at(path, "", "is empty; its first line has to name the columns"));
        }
        let known: Vec<String> = names.iter().map(str::to_owned).collect();
        let lines = 2 + known.iter().map(|name| name.matches('\n').count() as u64).sum::<u64>();
        let late = lines.saturating_sub(reader.position().line());
        let places = find(path, wanted, &known)?;
        Ok(Delimited { path: path.to_path_buf(), reader, meter, places, late, record: StringRecord::new() })
    }
}

fn refuse(path: &Path, late: u64, error: csv::Error) -> DataError {
    let line = error.position().map_or(1, csv::Position::line) + late;
    let problem = match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
            "{len} fields where the first line has {expected_len}; add what is missing, or quote fields that hold the \
             separator"
        ),
        ErrorKind::Utf8 { err, .. } => {
            let field = err.field() + 1;
            format!("field {field} is not UTF-8; convert the file, for example with `iconv -t UTF-8`")
        }
        _ => error.to_string(),
    };
    malformed(path, line, problem)
}

impl Iterator for Delimited {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.meter.reset();
        match self.reader.read_record(&mut self.record) {
            Ok(false) => None,
            Ok(true) => {
                let line = self.record.position().map_or(0, csv::Position::line) + self.late;
                let field = |place: &usize| Field::Text(self.record[*place].to_owned());
                Some(Ok(Row { line, fields: self.places.iter().map(field).collect() }))
            }
            Err(error) => Some(Err(refuse(&self.path, self.late, error))),
        }
    }
}
