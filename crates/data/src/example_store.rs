//! Examples of a task on disk: written one at a time while files are read, verified, mapped into memory. What the
//! columns of an example are is decided by whoever writes them.
//!
//! Little-endian throughout: a header of [`HEADER_BYTES`], the columns of each example one after another, the end of
//! each column as u64, and a note in UTF-8.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | magic |
//! | 4, 4 | version, columns of an example |
//! | 3 x 8 | examples, bytes of their columns, bytes of the note |
//! | 32 | key: the hash of all that the content depends on |
//! | 32 | SHA-256 of all after the header |
//! | 32 | SHA-256 of the header before this |

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memory::{MappedFile, map_file};
use sha2::{Digest, Sha256};

use crate::{ContentHash, DataError, atomic};

const MAGIC: &[u8; 8] = b"phlxexm\n";
/// Raised with every change of the format.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 2 * 4 + 3 * 8 + 3 * 32;
/// Bytes of the header that its own checksum covers.
const SEALED: usize = HEADER_BYTES - 32;

/// One column of an example on its way to disk.
#[derive(Debug, Clone, Copy)]
pub enum Column<'a> {
    /// Token ids, labels.
    Ints(&'a [i32]),
    /// Pixels, text.
    Bytes(&'a [u8]),
}

/// Takes examples in their order.
pub struct ExampleWriter<'a> {
    out: &'a mut BufWriter<File>,
    hasher: Sha256,
    num_columns: usize,
    data_bytes: u64,
    ends: Vec<u64>,
    note: String,
}

impl ExampleWriter<'_> {
    /// Appends an example.
    ///
    /// # Errors
    /// A disk that refuses.
    ///
    /// # Panics
    /// If the number of columns is not the store's.
    pub fn push(&mut self, columns: &[Column<'_>]) -> io::Result<()> {
        assert_eq!(columns.len(), self.num_columns, "columns of an example");
        for column in columns {
            match column {
                Column::Bytes(bytes) => self.put(bytes)?,
                Column::Ints(ints) => {
                    let bytes: Vec<u8> = ints.iter().flat_map(|i| i.to_le_bytes()).collect();
                    self.put(&bytes)?;
                }
            }
            self.ends.push(self.data_bytes);
        }
        Ok(())
    }

    /// Examples so far.
    pub fn num_examples(&self) -> usize {
        self.ends.len() / self.num_columns
    }

    /// What the store says beside its examples.
    pub fn set_note(&mut self, note: String) {
        self.note = note;
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.data_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Writes what stands behind the examples, and the header.
    fn finish(mut self, key: &ContentHash) -> io::Result<()> {
        let (num_examples, data_bytes) = (self.num_examples() as u64, self.data_bytes);
        let note = std::mem::take(&mut self.note);
        for end in std::mem::take(&mut self.ends).chunks(1 << 12) {
            let block: Vec<u8> = end.iter().flat_map(|end| end.to_le_bytes()).collect();
            self.put(&block)?;
        }
        self.put(note.as_bytes())?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.num_columns as u32).to_le_bytes());
        header.extend([num_examples, data_bytes, note.len() as u64].into_iter().flat_map(u64::to_le_bytes));
        header.extend(key.as_bytes());
        header.extend(self.hasher.finalize());
        header.extend(Sha256::digest(&header));
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)
    }
}

/// Examples of one or several files, memory-mapped.
pub struct ExampleStore {
    file: MappedFile,
    path: PathBuf,
    num_columns: usize,
    num_examples: usize,
    data_bytes: usize,
    note: String,
    was_cached: bool,
}

impl ExampleStore {
    /// Opens the store of this key, or has it written by `fill`, one example after another.
    ///
    /// A truncated or damaged store is noticed (all of it is verified here, once) and written again.
    ///
    /// # Errors
    /// Those of `fill`; a directory that cannot be written.
    pub fn open_or_build(
        cache_dir: &Path,
        key: &ContentHash,
        num_columns: usize,
        fill: impl FnOnce(&mut ExampleWriter<'_>) -> Result<(), DataError>,
    ) -> Result<ExampleStore, DataError> {
        let path = cache_dir.join(format!("examples-{}.bin", &key.to_string()[..32]));
        if let Ok(store) = ExampleStore::open(&path, key, num_columns, true) {
            return Ok(store);
        }
        let mut refused = None;
        let written = atomic::write(&path, |out| {
            out.write_all(&[0; HEADER_BYTES])?;
            let mut writer = ExampleWriter {
                out,
                hasher: Sha256::new(),
                num_columns,
                data_bytes: 0,
                ends: Vec::new(),
                note: String::new(),
            };
            match fill(&mut writer) {
                Ok(()) => writer.finish(key),
                Err(error) => {
                    refused = Some(error);
                    Err(io::Error::other("the data was refused"))
                }
            }
        });
        if let Some(error) = refused {
            return Err(error);
        }
        written?;
        ExampleStore::open(&path, key, num_columns, false)
            .map_err(|reason| DataError::CacheUnreliable { path, reason })
    }

    fn open(
        path: &Path,
        key: &ContentHash,
        num_columns: usize,
        was_cached: bool,
    ) -> Result<ExampleStore, &'static str> {
        let file = map_file(path).map_err(|_| "it cannot be opened")?;
        let bytes = file.as_bytes();
        let header = bytes.get(..HEADER_BYTES).ok_or("it is shorter than a header")?;
        if header[..8] != MAGIC[..] || header[8..12] != VERSION.to_le_bytes() {
            return Err("it is no store of this version");
        }
        if Sha256::digest(&header[..SEALED])[..] != header[SEALED..] {
            return Err("the header's checksum does not match");
        }
        if header[12..16] != (num_columns as u32).to_le_bytes() || header[40..72] != key.as_bytes()[..] {
            return Err("it was built from other data");
        }
        if Sha256::digest(&bytes[HEADER_BYTES..])[..] != header[72..104] {
            return Err("the checksum does not match");
        }
        let [num_examples, data_bytes, note_bytes] =
            std::array::from_fn(|i| word_at(header, 16 + 8 * i) as usize);
        // A store that passed its checksums was written whole by this program.
        let note = bytes[bytes.len() - note_bytes..].to_vec();
        let note = String::from_utf8(note).map_err(|_| "its note is no text")?;
        let path = path.to_path_buf();
        Ok(ExampleStore { path, num_columns, num_examples, data_bytes, note, was_cached, file })
    }

    /// Examples.
    pub fn num_examples(&self) -> usize {
        self.num_examples
    }

    /// What the store says beside its examples.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file was there already.
    pub fn was_cached(&self) -> bool {
        self.was_cached
    }

    /// A column of an example, as bytes.
    ///
    /// # Panics
    /// If there is no such example or column.
    pub fn bytes(&self, example: usize, column: usize) -> &[u8] {
        assert!(
            example < self.num_examples && column < self.num_columns,
            "example {example}, column {column}"
        );
        let at = example * self.num_columns + column;
        let start = if at == 0 { 0 } else { self.end(at - 1) };
        &self.file.as_bytes()[HEADER_BYTES + start..HEADER_BYTES + self.end(at)]
    }

    /// A column of an example that was written as integers.
    ///
    /// # Panics
    /// As [`ExampleStore::bytes`].
    pub fn ints(&self, example: usize, column: usize) -> impl ExactSizeIterator<Item = i32> + '_ {
        self.bytes(example, column).as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes))
    }

    fn end(&self, at: usize) -> usize {
        word_at(self.file.as_bytes(), HEADER_BYTES + self.data_bytes + 8 * at) as usize
    }
}

impl fmt::Debug for ExampleStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, num_columns, num_examples, .. } = self;
        f.debug_struct("ExampleStore")
            .field("path", path)
            .field("num_columns", num_columns)
            .field("num_examples", num_examples)
            .finish()
    }
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(writer: &mut ExampleWriter<'_>) -> Result<(), DataError> {
        for i in 0..3 {
            let ints: Vec<i32> = (0..i).map(|j| j - 1).collect();
            let wrote = writer.push(&[Column::Ints(&ints), Column::Bytes(format!("text {i}").as_bytes())]);
            wrote.map_err(|source| DataError::writing(Path::new("x"), source))?;
        }
        writer.set_note("a, b".to_owned());
        Ok(())
    }

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let key = ContentHash::of(b"key");
        let check = |was_cached: bool| {
            let store = ExampleStore::open_or_build(directory.path(), &key, 2, fill).unwrap();
            assert_eq!((store.num_examples(), store.note(), store.was_cached()), (3, "a, b", was_cached));
            assert_eq!(store.ints(2, 0).collect::<Vec<_>>(), [-1, 0]);
            assert_eq!((store.bytes(0, 1), store.bytes(2, 1)), (&b"text 0"[..], &b"text 2"[..]));
            assert!(store.bytes(0, 0).is_empty());
            store.path().to_path_buf()
        };
        let path = check(false);
        check(true);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, 9, 20, 50, 80, HEADER_BYTES + 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            check(false);
        }
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        check(false);
    }

    #[test]
    fn what_fill_refuses_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let refused = ExampleStore::open_or_build(directory.path(), &ContentHash::of(b"k"), 1, |_| {
            Err(DataError::NoSamples)
        });
        assert!(matches!(refused, Err(DataError::NoSamples)));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
