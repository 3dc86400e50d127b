//! The one error type of this crate: what went wrong, where, with which numbers, and what to do.
//! No formatting for terminals and no recovery lives here.

use std::io;
use std::path::PathBuf;

/// Everything that can be wrong with texts, tokenizers, caches and their use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The list of text files is empty.
    #[error("no text files are given: set `[data] text` to a list of files")]
    NoFiles,
    /// A path does not exist.
    #[error("{}: no such file: check the path; in a configuration, relative paths start at its folder", path.display())]
    MissingFile {
        /// The path as given.
        path: PathBuf,
    },
    /// A path is a directory where a file is needed.
    #[error("{}: is a directory, a file is needed: name the files inside it one by one", path.display())]
    IsDirectory {
        /// The path as given.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("{}: cannot be read: {source}: check that it is whole and readable", path.display())]
    Read {
        /// The path as given.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The operating system refused to write.
    #[error("{}: cannot be written: {source}: choose a writable directory with free space", path.display())]
    Write {
        /// The file or directory being written.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A text file has no character other than white space and document separators.
    #[error("{}: holds no text ({num_bytes} bytes, all of them white space or separators): remove it from the list", path.display())]
    EmptyText {
        /// The file.
        path: PathBuf,
        /// Its size.
        num_bytes: usize,
    },
    /// A text file is not UTF-8.
    #[error("{}: not UTF-8: the first bad byte is at offset {byte_offset}: convert it, for example with `iconv -t UTF-8`", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that is not UTF-8.
        byte_offset: usize,
    },
    /// A text file holds a zero byte, so it is not text.
    #[error("{}: a binary file: a zero byte at offset {byte_offset}: give plain text", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// Offset of the first zero byte.
        byte_offset: usize,
    },
    /// The held-out fraction is not in [0, 1).
    #[error(
        "validation = {validation}: the held-out fraction must be at least 0 and less than 1: 0.05 is usual"
    )]
    ValidationOutOfRange {
        /// The fraction as given.
        validation: f64,
    },
    /// Held-out text is asked for and there is none.
    #[error(
        "no held-out text: validation = {validation} leaves {num_tokens} tokens: raise `[data] validation`"
    )]
    NothingHeldOut {
        /// The fraction as given.
        validation: f64,
        /// Tokens of the held-out part.
        num_tokens: usize,
    },
    /// The training text does not fill one sequence.
    #[error(
        "the training text is {num_tokens} tokens, one sequence of length {sequence_length} needs {needed}: \
         lower `[data] sequence_length` to {} or less, add text, or hold out less", num_tokens.saturating_sub(1)
    )]
    TextTooShort {
        /// Tokens of the training part.
        num_tokens: usize,
        /// Asked sequence length.
        sequence_length: usize,
        /// Tokens that one sequence and its targets take.
        needed: usize,
    },
    /// No document has two tokens, so nothing can be predicted.
    #[error("no document has two tokens or more, so there is nothing to predict: add text")]
    NoDocuments,
    /// A sequence length of zero, or beyond what positions can count.
    #[error("sequence_length = {sequence_length}: must be between 1 and {}", u32::MAX)]
    SequenceLength {
        /// The length as given.
        sequence_length: usize,
    },
    /// An order over no samples.
    #[error("there are no samples to draw from: the data set is empty")]
    NoSamples,
    /// A record file with an ending that says no form.
    #[error("{}: its ending says no form of data: set `[data] format` to one of {known}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Forms there are.
        known: String,
    },
    /// A record file without a column that is needed.
    #[error("{}: no column `{column}`; it has {known}: name the right one in `[data] {key}`", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The key that names it.
        key: &'static str,
        /// Columns that the file has.
        known: String,
    },
    /// A file that is not what it should be, at a place.
    #[error("{}{place}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The place in it: `:line`, or nothing.
        place: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A tokenizer without a token that a task needs.
    #[error("the tokenizer has no {what}: {remedy}")]
    MissingToken {
        /// Which token.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A sequence length that leaves no room.
    #[error("{key} = {length} leaves no room beside {num_special} special tokens: raise it")]
    NoRoom {
        /// The key.
        key: &'static str,
        /// Its value.
        length: usize,
        /// Special tokens that frame a text.
        num_special: usize,
    },
    /// A vocabulary that cannot hold all bytes and the special tokens.
    #[error(
        "a vocabulary of {asked} is too small: this tokenizer needs at least {least} tokens (all bytes or one word, and the \
         special ones): raise `[data] tokenizer_vocab`"
    )]
    VocabTooSmall {
        /// The size as given.
        asked: usize,
        /// The smallest.
        least: usize,
    },
    /// Training a tokenizer failed inside the tokenizer library.
    #[error("training a tokenizer failed: {reason}")]
    TokenizerTraining {
        /// The library's reason.
        reason: String,
    },
    /// A `tokenizer.json` that cannot be understood.
    #[error("{}: not a tokenizer in Hugging Face's `tokenizer.json` form: {reason}", path.display())]
    TokenizerMalformed {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// The tokenizer refuses a text, for example a word-level one without an unknown token.
    #[error(
        "the tokenizer cannot encode a text of {num_bytes} bytes: {reason}: use one with bytes or an unknown token"
    )]
    Encode {
        /// Size of the text.
        num_bytes: usize,
        /// The library's reason.
        reason: String,
    },
    /// The tokenizer refuses to decode.
    #[error("the tokenizer cannot decode {num_tokens} tokens: {reason}")]
    Decode {
        /// Number of tokens given.
        num_tokens: usize,
        /// The library's reason.
        reason: String,
    },
    /// A token that the vocabulary does not have.
    #[error(
        "token {token} at index {index} is beyond the vocabulary of {vocab_size}: \
         the tokens come from another tokenizer, or `[model] vocab_size` is larger than the tokenizer's"
    )]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Where it stands in the given slice.
        index: usize,
        /// Number of tokens that exist.
        vocab_size: usize,
    },
    /// A cache that was just written reads back wrong.
    #[error("{}: was written and reads back wrong: {reason}: check the disk, or choose another cache directory", path.display())]
    CacheUnreliable {
        /// The cache file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The data was built with another tokenizer than the one given.
    #[error(
        "a tokenizer of {cached} tokens does not fit a model of vocabulary {vocab_size}: use the model's tokenizer, or \
         raise `[model] vocab_size`"
    )]
    VocabMismatch {
        /// Vocabulary of the tokenizer or of the tokens made with it.
        cached: usize,
        /// Vocabulary of the model.
        vocab_size: usize,
    },
}

impl DataError {
    /// The variant that fits an operating system's refusal to read `path`.
    pub(crate) fn reading(path: &std::path::Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::MissingFile { path },
            io::ErrorKind::IsADirectory => Self::IsDirectory { path },
            _ => Self::Read { path, source },
        }
    }

    /// The variant for a refusal to write `path`.
    pub(crate) fn writing(path: &std::path::Path, source: io::Error) -> Self {
        Self::Write { path: path.to_path_buf(), source }
    }
}
