//! From text files to the verified token cache on disk, shared by all who name the same texts and tokenizer.
//! The bytes of the format are token_file.rs's; samples are dataset.rs's.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::token_file::{self, Header, SplitTokens, TokenFile, Unusable, VERSION};
use crate::{ContentHash, DataError, Tokenizer, text};

/// Which part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Text to learn from.
    Train,
    /// The end of each file, to evaluate on.
    HeldOut,
}

/// Where the tokens of a [`TokenStore`] came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A cache was there and is whole.
    Opened,
    /// There was none: the texts were encoded.
    Built,
    /// There was one that could not be used: the texts were encoded again.
    Rebuilt {
        /// What was wrong with it.
        reason: &'static str,
    },
}

/// All tokens of some text files, memory-mapped from one verified cache file.
///
/// Each split is one stream. Every document stands in it framed: the start token, its text, the end token, as far as
/// the vocabulary has them; where both are the same token, one stands between two documents. A document that is cut
/// between training and held-out text has no end token in training, and its held-out rest has a start token, so that
/// every held-out token of text is predicted and bits per byte is exact.
pub struct TokenStore {
    file: TokenFile,
    path: PathBuf,
    origin: Origin,
}

impl TokenStore {
    /// Opens the cache of these texts under this tokenizer, or encodes the texts and writes it.
    ///
    /// The file's name is a hash of the texts' bytes in their order, the tokenizer, the held-out fraction and the
    /// format's version, so a change in any of them never finds a stale cache; where the files lie does not matter.
    /// A truncated or damaged cache is noticed (all of it is verified here, once) and rebuilt. Several threads,
    /// processes and hosts may call this at once: each gets a whole and correct store.
    ///
    /// Texts are held in memory while this runs.
    ///
    /// # Errors
    /// A text that is missing, a directory, empty, binary or not UTF-8; a fraction not in [0, 1); a text that the
    /// tokenizer refuses; a cache directory that cannot be written.
    pub fn open_or_build(
        texts: &[PathBuf],
        tokenizer: &Tokenizer,
        cache_dir: &Path,
        validation: f64,
    ) -> Result<Self, DataError> {
        text::check_validation(validation)?;
        if texts.is_empty() {
            return Err(DataError::NoFiles);
        }
        let contents = texts.iter().map(|path| text::read(path)).collect::<Result<Vec<_>, _>>()?;
        let key = key(&contents, tokenizer, validation);
        let path = cache_dir.join(format!("tokens-{}.bin", &key.to_string()[..32]));
        let origin = match TokenFile::open(&path, &key) {
            Ok(file) => return Ok(Self { file, path, origin: Origin::Opened }),
            Err(Unusable::Refused(source)) => return Err(DataError::reading(&path, source)),
            Err(Unusable::Absent) => Origin::Built,
            Err(Unusable::Damaged(reason)) => Origin::Rebuilt { reason },
        };
        let splits = encode(&contents, tokenizer, validation)?;
        let counts = |count: fn(&SplitTokens) -> usize| [0, 1].map(|split| count(&splits[split]) as u64);
        let header = Header {
            vocab_size: tokenizer.vocab_size() as u64,
            start: tokenizer.start_id(),
            end: tokenizer.end_id(),
            pad: tokenizer.pad_id(),
            num_tokens: counts(|split| split.tokens.len()),
            num_bytes: counts(|split| split.num_bytes as usize),
            num_documents: counts(|split| split.documents.len()),
            validation,
            key: *key.as_bytes(),
        };
        token_file::write(&path, &header, &splits)?;
        match TokenFile::open(&path, &key) {
            Ok(file) => Ok(Self { file, path, origin }),
            Err(Unusable::Refused(source)) => Err(DataError::reading(&path, source)),
            Err(Unusable::Absent) => Err(DataError::MissingFile { path }),
            Err(Unusable::Damaged(reason)) => Err(DataError::CacheUnreliable { path, reason }),
        }
    }

    /// Tokens in a split, start and end tokens included.
    pub fn num_tokens(&self, split: Split) -> usize {
        self.file.num_tokens(split.index())
    }

    /// Bytes of text that a split spans, separators excluded: the denominator of bits per byte.
    pub fn num_bytes(&self, split: Split) -> u64 {
        self.file.header.num_bytes[split.index()]
    }

    /// Documents in a split; one that is cut between the splits counts in both.
    pub fn num_documents(&self, split: Split) -> usize {
        self.file.num_documents(split.index())
    }

    /// The token at an index of a split's stream.
    ///
    /// # Panics
    /// If the index is not below [`num_tokens`](Self::num_tokens).
    pub fn token(&self, split: Split, index: usize) -> u32 {
        self.file.token(split.index(), index)
    }

    /// The tokens of a document in a split's stream, its start and end tokens included.
    ///
    /// # Panics
    /// If the index is not below [`num_documents`](Self::num_documents).
    pub fn document(&self, split: Split, index: usize) -> std::ops::Range<usize> {
        let range = self.file.document(split.index(), index);
        range.start as usize..range.end as usize
    }

    /// The tokenizer's vocabulary size.
    pub fn vocab_size(&self) -> usize {
        self.file.header.vocab_size as usize
    }

    /// The tokenizer's start token.
    pub fn start_id(&self) -> Option<u32> {
        self.file.header.start
    }

    /// The tokenizer's end token.
    pub fn end_id(&self) -> Option<u32> {
        self.file.header.end
    }

    /// The tokenizer's padding token.
    pub fn pad_id(&self) -> Option<u32> {
        self.file.header.pad
    }

    /// The fraction held out.
    pub fn validation(&self) -> f64 {
        self.file.header.validation
    }

    /// Refuses a model whose vocabulary is smaller than the tokenizer's.
    ///
    /// # Errors
    /// The model's vocabulary is too small.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), DataError> {
        let cached = self.vocab_size();
        if cached <= vocab_size { Ok(()) } else { Err(DataError::VocabMismatch { cached, vocab_size }) }
    }

    /// The cache file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the cache was found or made.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Split {
    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Debug for TokenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, path, origin } = self;
        f.debug_struct("TokenStore")
            .field("path", path)
            .field("origin", origin)
            .field("header", &file.header)
            .finish()
    }
}

fn key(contents: &[String], tokenizer: &Tokenizer, validation: f64) -> ContentHash {
    let (version, validation) = (VERSION.to_le_bytes(), validation.to_bits().to_le_bytes());
    let tokenizer = tokenizer.hash();
    let parts = [&version[..], &validation, tokenizer.as_bytes()];
    ContentHash::of_parts(parts.into_iter().chain(contents.iter().map(String::as_bytes)))
}

fn encode(
    contents: &[String],
    tokenizer: &Tokenizer,
    validation: f64,
) -> Result<[SplitTokens; 2], DataError> {
    crate::tokenizer::choose_threads(contents.iter().map(String::len).sum());
    let mut streams = [Stream::default(), Stream::default()];
    for text in contents {
        for piece in text::pieces(text, validation) {
            let split = if piece.held_out { Split::HeldOut } else { Split::Train };
            let tokens = tokenizer.encode(&text[piece.range.clone()])?;
            let end = if piece.ends_document { tokenizer.end_id() } else { None };
            streams[split.index()].push(tokenizer.start_id(), &tokens, end, piece.range.len());
        }
    }
    Ok(streams.map(|stream| stream.split))
}

/// A split while it grows.
#[derive(Default)]
struct Stream {
    split: SplitTokens,
    /// The end token that stands last, which may serve as the next start.
    closed_by: Option<u32>,
}

impl Stream {
    /// Appends a document; one without tokens (a word-level tokenizer may drop white space) leaves no trace but its
    /// bytes.
    fn push(&mut self, start: Option<u32>, text: &[u32], end: Option<u32>, num_bytes: usize) {
        let SplitTokens { tokens, documents, num_bytes: total } = &mut self.split;
        *total += num_bytes as u64;
        if text.is_empty() {
            return;
        }
        let shared = start.is_some() && self.closed_by == start;
        if !shared {
            tokens.extend(start);
        }
        let begin = tokens.len() - usize::from(start.is_some());
        tokens.extend(text);
        tokens.extend(end);
        documents.push(begin as u64..tokens.len() as u64);
        self.closed_by = end;
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
