//! Text files as documents, and where a file is cut into training and held-out text.
//! Nothing here knows tokens.

use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::DataError;

/// A line that holds only this separates two documents of one file. A form feed does too.
pub const DOCUMENT_SEPARATOR: &str = "<|endoftext|>";

/// A run of one document that falls wholly into training or wholly into held-out text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Bytes of the file.
    pub range: Range<usize>,
    /// Whether the document ends where this piece ends.
    pub ends_document: bool,
    /// Whether the piece is held out of training.
    pub held_out: bool,
}

/// Reads a text file whole and refuses what is not text.
///
/// # Errors
/// Missing file, directory, zero bytes, bytes that are not UTF-8, or nothing but white space and separators.
pub(crate) fn read(path: &Path) -> Result<String, DataError> {
    let metadata = fs::metadata(path).map_err(|source| DataError::reading(path, source))?;
    if metadata.is_dir() {
        return Err(DataError::IsDirectory { path: path.to_path_buf() });
    }
    let bytes = fs::read(path).map_err(|source| DataError::reading(path, source))?;
    let num_bytes = bytes.len();
    if let Some(byte_offset) = bytes.iter().position(|&byte| byte == 0) {
        return Err(DataError::Binary { path: path.to_path_buf(), byte_offset });
    }
    let text = String::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
        path: path.to_path_buf(),
        byte_offset: error.utf8_error().valid_up_to(),
    })?;
    if documents(&text).is_empty() {
        return Err(DataError::EmptyText { path: path.to_path_buf(), num_bytes });
    }
    Ok(text)
}

/// Checks a held-out fraction.
pub(crate) fn check_validation(validation: f64) -> Result<(), DataError> {
    if (0.0..1.0).contains(&validation) {
        Ok(())
    } else {
        Err(DataError::ValidationOutOfRange { validation })
    }
}

/// The documents of a text, as byte ranges.
///
/// A document is what stands between separators, byte for byte; white space alone is no document, and a byte order
/// mark at the start of the file belongs to none. A separator is a line that holds only [`DOCUMENT_SEPARATOR`] (the
/// line goes with its newline), or a form feed anywhere (a line that holds only a form feed goes as a whole).
pub(crate) fn documents(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut close = |start: usize, end: usize| {
        if !text[start..end].trim().is_empty() {
            found.push(start..end);
        }
    };
    let mut line_start = start;
    for line in text[start..].split_inclusive('\n') {
        let line_end = line_start + line.len();
        let content = line.trim_end_matches(['\n', '\r']);
        if content == DOCUMENT_SEPARATOR || content == "\u{c}" {
            close(start, line_start);
            start = line_end;
        } else {
            for (offset, _) in line.match_indices('\u{c}') {
                close(start, line_start + offset);
                start = line_start + offset + 1;
            }
        }
        line_start = line_end;
    }
    close(start, text.len());
    found
}

/// The pieces of a text, in order: training first, then the last `validation` fraction of its bytes.
///
/// The cut falls on the first document that starts in the last `validation` fraction; without one, on the first line
/// that starts there; without one, on the first character. So no more than the fraction is ever held out, and a
/// document is split only when there is no other way.
pub(crate) fn pieces(text: &str, validation: f64) -> Vec<Piece> {
    let documents = documents(text);
    let target = text.len() - (text.len() as f64 * validation) as usize;
    let whole = |range: Range<usize>, held_out| Piece { range, ends_document: true, held_out };
    if target == text.len() {
        return documents.into_iter().map(|range| whole(range, false)).collect();
    }
    if documents.iter().any(|range| range.start >= target) {
        return documents
            .into_iter()
            .map(|range| (range.start >= target, range))
            .map(|(h, r)| whole(r, h))
            .collect();
    }
    // Every document starts before the target: only the last one can reach beyond it.
    let mut pieces: Vec<Piece> = documents.into_iter().map(|range| whole(range, false)).collect();
    let Some(last) = pieces.pop() else { return pieces };
    let cut = cut_inside(text, &last.range, target);
    for (range, ends_document, held_out) in
        [(last.range.start..cut, cut == last.range.end, false), (cut..last.range.end, true, true)]
    {
        if !range.is_empty() {
            pieces.push(Piece { range, ends_document, held_out });
        }
    }
    pieces
}

/// The first line start at or after `target` inside `range`, else the first character there, else the range's end.
fn cut_inside(text: &str, range: &Range<usize>, target: usize) -> usize {
    if target >= range.end {
        return range.end;
    }
    let mut at = target.max(range.start);
    while !text.is_char_boundary(at) {
        at += 1;
    }
    if at > range.start && text.as_bytes()[at - 1] == b'\n' {
        return at;
    }
    match text[at..range.end].find('\n') {
        Some(offset) if at + offset + 1 < range.end => at + offset + 1,
        _ => at,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(text: &str) -> Vec<&str> {
        documents(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn a_file_is_one_document_unless_separated() {
        assert_eq!(contents("a\n\nb\n"), ["a\n\nb\n"]);
        assert_eq!(contents("a\n<|endoftext|>\nb\n"), ["a\n", "b\n"]);
        assert_eq!(contents("a\r\n<|endoftext|>\r\nb"), ["a\r\n", "b"]);
        assert_eq!(contents("a\u{c}b\n\u{c}\nc"), ["a", "b\n", "c"]);
        assert_eq!(contents("\u{feff}a"), ["a"]);
        assert_eq!(contents("say <|endoftext|> twice"), ["say <|endoftext|> twice"]);
    }

    #[test]
    fn white_space_is_no_document() {
        assert_eq!(contents("<|endoftext|>\n \n<|endoftext|>\na\n<|endoftext|>"), ["a\n"]);
        assert!(contents(" \n\t\u{c}\n").is_empty());
        assert!(contents("").is_empty());
    }

    #[test]
    fn the_cut_prefers_documents_then_lines_then_characters() {
        let text = "aaaa\n<|endoftext|>\nbbbb\n<|endoftext|>\ncccc\n";
        let held: Vec<_> = pieces(text, 0.3).into_iter().filter(|piece| piece.held_out).collect();
        assert_eq!(held.len(), 1);
        assert_eq!(&text[held[0].range.clone()], "cccc\n");

        let text = "one\ntwo\nthree\nfour\n";
        let cut = pieces(text, 0.4);
        assert_eq!(&text[cut[0].range.clone()], "one\ntwo\nthree\n");
        assert!(!cut[0].ends_document && !cut[0].held_out && cut[1].ends_document && cut[1].held_out);

        let text = "ééééééééé";
        let cut = pieces(text, 0.5);
        assert_eq!((cut.len(), cut[1].range.clone()), (2, 10..18));
    }

    proptest! {
        #[test]
        fn pieces_cover_every_document_once(text in "[ab é\n\u{c}]{0,60}", validation in 0.0..0.99f64) {
            let pieces = pieces(&text, validation);
            let mut joined: Vec<Range<usize>> = Vec::new();
            for piece in &pieces {
                match joined.last_mut() {
                    Some(last) if last.end == piece.range.start && !pieces.iter().any(|other| other.range.end == last.end && other.ends_document) => last.end = piece.range.end,
                    _ => joined.push(piece.range.clone()),
                }
            }
            prop_assert_eq!(joined, documents(&text));
            let held: usize = pieces.iter().filter(|piece| piece.held_out).map(|piece| piece.range.len()).sum();
            prop_assert!(held as f64 <= text.len() as f64 * validation + 1e-9);
            let order: Vec<bool> = pieces.iter().map(|piece| piece.held_out).collect();
            prop_assert!(order.is_sorted());
        }
    }
}
