//! Bytes of a record file: opened, unpacked if they are packed, and never more than a row's worth at once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use super::{MAX_ROW_BYTES, malformed};
use crate::DataError;

/// First bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Opens a file, refusing what is none.
pub(super) fn file(path: &Path) -> Result<File, DataError> {
    let file = File::open(path).map_err(|source| DataError::reading(path, source))?;
    let metadata = file.metadata().map_err(|source| DataError::reading(path, source))?;
    if metadata.is_dir() {
        return Err(DataError::IsDirectory { path: path.to_path_buf() });
    }
    Ok(file)
}

/// The content of a file, unpacked.
pub(crate) fn content(path: &Path) -> Result<Box<dyn Read + Send>, DataError> {
    let mut reader = BufReader::new(file(path)?);
    let start = reader.fill_buf().map_err(|source| DataError::reading(path, source))?;
    let packed = start.starts_with(&GZIP);
    Ok(if packed { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) })
}

/// Bytes read since the last row began.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

impl Meter {
    /// A row begins.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A reader that stops within a row that has no end.
pub(super) struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R> Metered<R> {
    pub fn new(inner: R, meter: Meter) -> Metered<R> {
        Metered { inner, meter }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.0.load(Ordering::Relaxed) > MAX_ROW_BYTES {
            let problem = format!("a row has more than {} MiB: a quote is not closed", MAX_ROW_BYTES >> 20);
            return Err(io::Error::other(problem));
        }
        let n = self.inner.read(buffer)?;
        self.meter.0.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The lines of a text file.
pub(super) struct Lines {
    pub path: PathBuf,
    reader: BufReader<Box<dyn Read + Send>>,
    /// The line that was read last, counted from 1.
    pub number: u64,
    bytes: Vec<u8>,
}

impl Lines {
    pub fn open(path: &Path) -> Result<Lines, DataError> {
        let reader = BufReader::new(content(path)?);
        Ok(Lines { path: path.to_path_buf(), reader, number: 0, bytes: Vec::new() })
    }

    /// The next line with its end, without a byte order mark; none behind the last.
    ///
    /// # Errors
    /// A line that is not UTF-8, has a zero byte, or no end.
    pub fn next(&mut self) -> Result<Option<&str>, DataError> {
        self.bytes.clear();
        self.number += 1;
        let most = MAX_ROW_BYTES + 1;
        let read = self.reader.by_ref().take(most).read_until(b'\n', &mut self.bytes);
        let read = read.map_err(|source| DataError::reading(&self.path, source))?;
        if read == 0 {
            return Ok(None);
        }
        let refuse = |problem: String| malformed(&self.path, self.number, problem);
        if read as u64 == most {
            return Err(refuse(format!("a line of more than {} MiB; divide it", MAX_ROW_BYTES >> 20)));
        }
        if let Some(at) = self.bytes.iter().position(|byte| *byte == 0) {
            return Err(refuse(format!("a zero byte at column {}, so it is no text", at + 1)));
        }
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let column = error.valid_up_to() + 1;
            refuse(format!("not UTF-8 at column {column}; convert it, for example with `iconv -t UTF-8`"))
        })?;
        let mark = if self.number == 1 { '\u{feff}' } else { '\n' };
        Ok(Some(text.strip_prefix(mark).filter(|_| self.number == 1).unwrap_or(text)))
    }
}
