//! Plain text: documents between separators, long ones in parts, so that a file of any size is never held whole.

use std::path::Path;

use super::source::Lines;
use super::{Field, Row};
use crate::{DOCUMENT_SEPARATOR, DataError};

/// A part ends at the first line end beyond this.
const PART_BYTES: usize = 64 << 10;

pub(super) struct Documents {
    lines: Lines,
}

impl Documents {
    pub fn open(path: &Path) -> Result<Documents, DataError> {
        Ok(Documents { lines: Lines::open(path)? })
    }

    fn row(&mut self) -> Result<Option<Row>, DataError> {
        let (mut text, mut first) = (String::new(), 0);
        loop {
            let number = self.lines.number + 1;
            let Some(line) = self.lines.next()? else { break };
            let content = line.trim_end_matches(['\n', '\r']);
            let is_end = content == DOCUMENT_SEPARATOR || content == "\u{c}";
            if !is_end {
                if text.is_empty() {
                    first = number;
                }
                text.push_str(line);
            }
            if is_end || text.len() >= PART_BYTES {
                if !text.trim().is_empty() {
                    break;
                }
                text.clear();
            }
        }
        let is_last = text.trim().is_empty();
        Ok((!is_last).then(|| Row { line: first, fields: vec![Field::Text(text)] }))
    }
}

impl Iterator for Documents {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().transpose()
    }
}
