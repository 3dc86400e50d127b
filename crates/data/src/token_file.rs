//! The format of the token cache: write, verify, read. What goes in, and when, is decided by store.rs.
//!
//! Little-endian throughout. A header of [`HEADER_BYTES`]; then each document as two u64, the range of its tokens in
//! its split, training first; then the tokens, training first, each of `width` bytes (2 if the vocabulary allows).
//!
//! | bytes | field |
//! |---|---|
//! | 8 | magic |
//! | 4, 4 | version, width |
//! | 8 | vocabulary size |
//! | 3 x 8 | start, end, padding token: 0 if absent, else id + 1 |
//! | 2 x 8 | tokens: training, held out |
//! | 2 x 8 | bytes of text: training, held out |
//! | 2 x 8 | documents: training, held out |
//! | 8 | held-out fraction, f64 |
//! | 32 | key: the hash of all that the content depends on |
//! | 32 | SHA-256 of all after the header |
//! | 32 | SHA-256 of the header before this |

use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use memory::{MappedFile, MemoryError, map_file};
use sha2::{Digest, Sha256};

use crate::{ContentHash, DataError, atomic};

const MAGIC: &[u8; 8] = b"phlxtok\n";
/// Raised with every change of the format or of how texts become tokens; a part of the key.
pub(crate) const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 2 * 4 + 11 * 8 + 3 * 32;
const RANGE_BYTES: usize = 16;

/// One split before it is written.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct SplitTokens {
    /// The stream.
    pub tokens: Vec<u32>,
    /// Each document's tokens, its start and end tokens included.
    pub documents: Vec<Range<u64>>,
    /// Bytes of text that the stream spells.
    pub num_bytes: u64,
}

/// What the file says about itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    pub vocab_size: u64,
    pub start: Option<u32>,
    pub end: Option<u32>,
    pub pad: Option<u32>,
    pub num_tokens: [u64; 2],
    pub num_bytes: [u64; 2],
    pub num_documents: [u64; 2],
    pub validation: f64,
    pub key: [u8; 32],
}

/// Why a file is not the wanted cache.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// There is no file.
    Absent,
    /// There is a file; this is wrong with it.
    Damaged(&'static str),
    /// The operating system refuses.
    Refused(io::Error),
}

/// A verified, open file of tokens.
pub(crate) struct TokenFile {
    file: MappedFile,
    pub header: Header,
    width: usize,
    documents: [Range<usize>; 2],
    tokens: [Range<usize>; 2],
}

impl Header {
    fn width(&self) -> usize {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    fn encode(&self, payload_hash: [u8; 32]) -> Vec<u8> {
        let id = |id: Option<u32>| id.map_or(0, |id| u64::from(id) + 1);
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.width() as u32).to_le_bytes());
        let ids = [self.vocab_size, id(self.start), id(self.end), id(self.pad)];
        let counts = [self.num_tokens, self.num_bytes, self.num_documents];
        let words = ids.into_iter().chain(counts.into_iter().flatten()).chain([self.validation.to_bits()]);
        bytes.extend(words.flat_map(u64::to_le_bytes));
        bytes.extend(self.key);
        bytes.extend(payload_hash);
        bytes.extend(Sha256::digest(&bytes));
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<(Self, [u8; 32]), &'static str> {
        let (Some(header), Some(magic)) = (bytes.get(..HEADER_BYTES), bytes.get(..MAGIC.len())) else {
            return Err("it is shorter than a header");
        };
        if magic != MAGIC {
            return Err("it is not a token cache");
        }
        if header[8..12] != VERSION.to_le_bytes() {
            return Err("it has another format version");
        }
        let (body, checksum) = header.split_at(HEADER_BYTES - 32);
        if Sha256::digest(body)[..] != *checksum {
            return Err("the header's checksum does not match");
        }
        let word = |i: usize| word_at(body, 16 + 8 * i);
        let hash = |at: usize| -> [u8; 32] { std::array::from_fn(|i| body[at + i]) };
        let id = |i| match word(i) {
            0 => Ok(None),
            id => u32::try_from(id - 1).map(Some).map_err(|_| "a special token is out of range"),
        };
        let decoded = Self {
            vocab_size: word(0),
            start: id(1)?,
            end: id(2)?,
            pad: id(3)?,
            num_tokens: [word(4), word(5)],
            num_bytes: [word(6), word(7)],
            num_documents: [word(8), word(9)],
            validation: f64::from_bits(word(10)),
            key: hash(16 + 88),
        };
        if header[12..16] != (decoded.width() as u32).to_le_bytes() {
            return Err("the token width does not fit the vocabulary");
        }
        Ok((decoded, hash(16 + 88 + 32)))
    }
}

/// Writes a token file, whole or not at all.
pub(crate) fn write(path: &Path, header: &Header, splits: &[SplitTokens; 2]) -> Result<(), DataError> {
    let mut hasher = Sha256::new();
    payload(header.width(), splits, |bytes| {
        hasher.update(bytes);
        Ok(())
    })
    .map_err(|source| DataError::writing(path, source))?;
    let header_bytes = header.encode(hasher.finalize().into());
    atomic::write(path, |writer| {
        writer.write_all(&header_bytes)?;
        payload(header.width(), splits, |bytes| writer.write_all(bytes))
    })
}

/// Hands out all bytes after the header, in order, in blocks.
fn payload(
    width: usize,
    splits: &[SplitTokens; 2],
    mut put: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut block = Vec::new();
    for ranges in splits.iter().flat_map(|split| split.documents.chunks(1 << 12)) {
        block.clear();
        block.extend(ranges.iter().flat_map(|range| [range.start, range.end]).flat_map(u64::to_le_bytes));
        put(&block)?;
    }
    for tokens in splits.iter().flat_map(|split| split.tokens.chunks(1 << 14)) {
        block.clear();
        for token in tokens {
            block.extend(&token.to_le_bytes()[..width]);
        }
        put(&block)?;
    }
    Ok(())
}

impl TokenFile {
    /// Opens the file with this key and verifies all of it: header, length, checksum, ranges, token ids.
    pub fn open(path: &Path, key: &ContentHash) -> Result<Self, Unusable> {
        let file = map_file(path).map_err(|error| match error {
            MemoryError::Map { source, .. } if source.kind() == io::ErrorKind::NotFound => Unusable::Absent,
            MemoryError::Map { source, .. } => Unusable::Refused(source),
            other => Unusable::Refused(io::Error::other(other)),
        })?;
        Self::verify(file, key).map_err(Unusable::Damaged)
    }

    fn verify(file: MappedFile, key: &ContentHash) -> Result<Self, &'static str> {
        let (header, payload_hash) = Header::decode(file.as_bytes())?;
        if header.key != *key.as_bytes() {
            return Err("it was built from other texts or another tokenizer");
        }
        let width = header.width();
        let mut end = HEADER_BYTES;
        let mut section = |count: u64, size: usize| -> Option<Range<usize>> {
            let start = end;
            end = usize::try_from(count).ok()?.checked_mul(size)?.checked_add(start)?;
            Some(start..end)
        };
        let too_large = "its counts are too large";
        let mut sections = |counts: [u64; 2], size| -> Result<[Range<usize>; 2], &'static str> {
            Ok([section(counts[0], size).ok_or(too_large)?, section(counts[1], size).ok_or(too_large)?])
        };
        let documents = sections(header.num_documents, RANGE_BYTES)?;
        let tokens = sections(header.num_tokens, width)?;
        let bytes = file.as_bytes();
        if bytes.len() != end {
            return Err("its length is not what its header says");
        }
        if Sha256::digest(&bytes[HEADER_BYTES..])[..] != payload_hash {
            return Err("the checksum does not match");
        }
        let opened = Self { file, header, width, documents, tokens };
        for split in 0..2 {
            let mut least = 0;
            for range in (0..opened.header.num_documents[split]).map(|i| opened.document(split, i as usize)) {
                // Neighbours may share one token: the end of one is the start of the next.
                if range.start < least
                    || range.end <= range.start
                    || range.end > opened.header.num_tokens[split]
                {
                    return Err("a document's range is out of order");
                }
                least = range.end - 1;
            }
            let beyond = |i: usize| u64::from(opened.token(split, i)) >= opened.header.vocab_size;
            if (0..opened.num_tokens(split)).any(beyond) {
                return Err("a token is beyond the vocabulary");
            }
        }
        Ok(opened)
    }

    /// Tokens of a split.
    pub fn num_tokens(&self, split: usize) -> usize {
        self.tokens[split].len() / self.width
    }

    /// Documents of a split.
    pub fn num_documents(&self, split: usize) -> usize {
        self.documents[split].len() / RANGE_BYTES
    }

    /// The token at an index of a split.
    pub fn token(&self, split: usize, index: usize) -> u32 {
        let bytes = &self.file.as_bytes()[self.tokens[split].clone()];
        match self.width {
            2 => u32::from(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])),
            _ => u32::from_le_bytes([
                bytes[4 * index],
                bytes[4 * index + 1],
                bytes[4 * index + 2],
                bytes[4 * index + 3],
            ]),
        }
    }

    /// The tokens of a document of a split.
    pub fn document(&self, split: usize, index: usize) -> Range<u64> {
        let bytes = &self.file.as_bytes()[self.documents[split].clone()];
        word_at(bytes, RANGE_BYTES * index)..word_at(bytes, RANGE_BYTES * index + 8)
    }
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(vocab_size: u64) -> (Header, [SplitTokens; 2]) {
        let split = |first: u32| SplitTokens {
            tokens: vec![0, first, first + 1, 0, 7, 0],
            documents: vec![0..4, 3..6],
            num_bytes: 11,
        };
        let splits = [split(3), split(9)];
        let header = Header {
            vocab_size,
            start: Some(0),
            end: None,
            pad: Some(1),
            num_tokens: [6, 6],
            num_bytes: [11, 11],
            num_documents: [2, 2],
            validation: 0.25,
            key: *ContentHash::of(b"key").as_bytes(),
        };
        (header, splits)
    }

    fn written(vocab_size: u64) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.bin");
        let (header, splits) = sample(vocab_size);
        write(&path, &header, &splits).unwrap();
        (directory, path)
    }

    #[test]
    fn both_widths_read_back() {
        for vocab_size in [300, 65_536, 65_537, 200_000] {
            let (_directory, path) = written(vocab_size);
            let (header, splits) = sample(vocab_size);
            let file =
                TokenFile::open(&path, &ContentHash::of(b"key")).unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(file.header, header);
            for (split, expected) in splits.iter().enumerate() {
                let tokens: Vec<u32> = (0..file.num_tokens(split)).map(|i| file.token(split, i)).collect();
                let documents: Vec<_> =
                    (0..file.num_documents(split)).map(|i| file.document(split, i)).collect();
                assert_eq!((tokens, documents), (expected.tokens.clone(), expected.documents.clone()));
            }
            assert_eq!(
                std::fs::metadata(&path).unwrap().len(),
                (HEADER_BYTES + 64 + 12 * header.width()) as u64
            );
        }
    }

    #[test]
    fn another_key_is_refused() {
        let (_directory, path) = written(300);
        assert!(matches!(TokenFile::open(&path, &ContentHash::of(b"other")), Err(Unusable::Damaged(_))));
        assert!(matches!(
            TokenFile::open(&path.with_extension("no"), &ContentHash::of(b"key")),
            Err(Unusable::Absent)
        ));
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_refused_even_under_a_good_checksum() {
        let (_directory, path) = written(10);
        let opened = TokenFile::open(&path, &ContentHash::of(b"key"));
        assert!(matches!(opened, Err(Unusable::Damaged("a token is beyond the vocabulary"))));
    }

    proptest! {
        #[test]
        fn any_damage_is_noticed(at in 0..400usize, flip in 1..=255u8, cut in prop::option::of(0..400usize)) {
            let (_directory, path) = written(300);
            let mut bytes = std::fs::read(&path).unwrap();
            let length = bytes.len();
            match cut {
                Some(cut) => bytes.truncate(cut % length),
                None => bytes[at % length] ^= flip,
            }
            std::fs::write(&path, bytes).unwrap();
            prop_assert!(matches!(TokenFile::open(&path, &ContentHash::of(b"key")), Err(Unusable::Damaged(_))));
        }
    }
}
