//! Text to tokens and back: a tokenizer trained here, or any Hugging Face `tokenizer.json`.
//! Files of tokens are not written here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Tokenizer as HfTokenizer, TruncationDirection};

use crate::{ContentHash, DataError, TokenizerKind, atomic, text};

/// The token that starts and ends every document in a tokenizer trained here (GPT-2's practice); its id is 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The padding token of a tokenizer trained here; its id is 1. It is never predicted.
pub const PAD: &str = "<|pad|>";
/// The token that hides another in masked language models; trained tokenizers have it on request.
pub const MASK: &str = "<|mask|>";
/// The token of what a vocabulary does not have.
pub(crate) const UNKNOWN: &str = "<|unknown|>";
/// The smallest vocabulary: 256 bytes and the two special tokens.
pub const LEAST_VOCAB_SIZE: usize = 258;

/// Names of special tokens in known families, best first.
const START_NAMES: [&str; 6] = ["<|begin_of_text|>", "<s>", "<bos>", "[CLS]", "<|startoftext|>", END_OF_TEXT];
const END_NAMES: [&str; 5] = ["<|end_of_text|>", "</s>", "<eos>", "[SEP]", END_OF_TEXT];
const PAD_NAMES: [&str; 4] = [PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>"];
const MASK_NAMES: [&str; 3] = [MASK, "[MASK]", "<mask>"];
const UNKNOWN_NAMES: [&str; 3] = [UNKNOWN, "[UNK]", "<unk>"];

/// Text is encoded in chunks of at least this size where that changes nothing.
const CHUNK_BYTES: usize = 1 << 14;
/// Longer runs without white space are cut where a tokenizer is trained: time grows with the square of a word's length.
const LONGEST_RUN_BYTES: usize = 1 << 12;
/// Chunks that are encoded together, on all cores.
const CHUNKS_AT_ONCE: usize = 16;
/// Text up to this size is handled by one thread: more would save no time that anyone notices, and each keeps
/// megabytes of automata for the rest of the process.
const ONE_THREAD_BYTES: usize = 8 << 20;

/// Lets the library use all cores for large texts only.
pub(crate) fn choose_threads(bytes: usize) {
    tokenizers::parallelism::set_parallelism(bytes > ONE_THREAD_BYTES);
}

/// A tokenizer: text to token ids and back.
///
/// It is pure: the same text gives the same tokens always (BPE dropout, truncation and padding in a loaded file are
/// turned off). Text is only text: a special token's name inside a text is encoded letter by letter, so no text can
/// smuggle in an end of document, unless [asked](Self::reading_special_names). Special tokens are added by whoever frames
/// documents.
#[derive(Clone)]
pub struct Tokenizer {
    inner: HfTokenizer,
    json: String,
    hash: ContentHash,
    vocab_size: usize,
    start: Option<u32>,
    end: Option<u32>,
    pad: Option<u32>,
    mask: Option<u32>,
    unknown: Option<u32>,
    /// Ids of all special tokens, ascending.
    special: Vec<u32>,
    /// Whether the file cuts texts at their start.
    truncates_left: bool,
    chunks_freely: bool,
}

impl Tokenizer {
    /// Trains a byte-level BPE on text files; the same texts give the same tokenizer, bit for bit.
    ///
    /// GPT-2's pre-tokenizer, all 256 bytes in the alphabet (so every text can be encoded and there is no unknown
    /// token), [`END_OF_TEXT`] = 0 and [`PAD`] = 1. A text too small for the asked number of merges gives a smaller
    /// vocabulary: ask [`vocab_size`](Self::vocab_size) of the result. Separators between documents are not trained on.
    ///
    /// # Errors
    /// A vocabulary below [`LEAST_VOCAB_SIZE`]; no files; files that are missing, empty or not text.
    ///
    /// # Source
    /// Sennrich, Haddow, Birch 2016 (BPE); Radford et al. 2019, section 2.2 (bytes, pre-tokenizer).
    pub fn train(files: &[PathBuf], vocab_size: usize) -> Result<Self, DataError> {
        Self::train_on_split(files, vocab_size, 0.0)
    }

    /// As [`train`](Self::train), on the text that [`TokenStore`](crate::TokenStore) would not hold out for the same
    /// `validation`, so that nothing of the held-out text is known to the vocabulary.
    ///
    /// # Errors
    /// As [`train`](Self::train), and a fraction that is not in [0, 1).
    pub fn train_on_split(files: &[PathBuf], vocab_size: usize, validation: f64) -> Result<Self, DataError> {
        if vocab_size < LEAST_VOCAB_SIZE {
            return Err(DataError::VocabTooSmall { asked: vocab_size, least: LEAST_VOCAB_SIZE });
        }
        if files.is_empty() {
            return Err(DataError::NoFiles);
        }
        text::check_validation(validation)?;
        let texts = files.iter().map(|path| text::read(path)).collect::<Result<Vec<_>, _>>()?;
        choose_threads(texts.iter().map(|text| text.len()).sum());
        let chunks = texts.iter().flat_map(|text| {
            let training = text::pieces(text, validation).into_iter().filter(|piece| !piece.held_out);
            training.flat_map(|piece| chunks(&text[piece.range], CHUNK_BYTES))
        });
        Self::train_on_chunks(chunks, TokenizerKind::Bytes, vocab_size, &[])
    }

    /// Trains a tokenizer of any kind on texts that are read while it runs, with more special tokens: their ids follow
    /// that of [`PAD`].
    ///
    /// # Errors
    /// A vocabulary too small for the kind, and the first error among the texts.
    pub fn train_on(
        texts: impl Iterator<Item = Result<String, DataError>> + Send,
        kind: TokenizerKind,
        vocab_size: usize,
        more_special: &[&str],
    ) -> Result<Self, DataError> {
        let least = kind.least_vocab_size(more_special.len());
        if vocab_size < least {
            return Err(DataError::VocabTooSmall { asked: vocab_size, least });
        }
        choose_threads(usize::MAX);
        let mut failure = None;
        let good = texts.map_while(|text| text.map_err(|error| failure = Some(error)).ok());
        let trained = Self::train_on_chunks(good, kind, vocab_size, more_special);
        failure.map_or(trained, Err)
    }

    fn train_on_chunks<S: AsRef<str> + Send>(
        chunks: impl Iterator<Item = S> + Send,
        kind: TokenizerKind,
        vocab_size: usize,
        more_special: &[&str],
    ) -> Result<Self, DataError> {
        let failed = |error: tokenizers::Error| DataError::TokenizerTraining { reason: error.to_string() };
        let mut inner = kind.untrained().map_err(failed)?;
        let pieces = chunks.flat_map(|chunk| without_long_runs(chunk.as_ref(), LONGEST_RUN_BYTES));
        inner.train(&mut kind.trainer(vocab_size, more_special)?, pieces).map_err(failed)?;
        let json = inner.to_string(true).map_err(failed)?;
        Self::from_json(json).map_err(|reason| DataError::TokenizerTraining { reason })
    }

    /// Loads a Hugging Face `tokenizer.json`.
    ///
    /// Start, end and padding are found by the names that known families give them (`<s>`, `[CLS]`, `<|endoftext|>`
    /// and so on) among the file's special tokens.
    ///
    /// # Errors
    /// The file is missing, unreadable, not UTF-8 or not a tokenizer.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let bytes = fs::read(path).map_err(|source| DataError::reading(path, source))?;
        let json = String::from_utf8(bytes).map_err(|error| DataError::NotUtf8 {
            path: path.to_path_buf(),
            byte_offset: error.utf8_error().valid_up_to(),
        })?;
        Self::parse(json, path)
    }

    /// Reads the text of a `tokenizer.json` that came from `origin`, which errors name.
    ///
    /// # Errors
    /// It is not a tokenizer.
    pub fn parse(json: String, origin: &Path) -> Result<Self, DataError> {
        Self::from_json(json)
            .map_err(|reason| DataError::TokenizerMalformed { path: origin.to_path_buf(), reason })
    }

    /// The same, but a special token's name inside a text is that token, as `transformers` reads it: for prompts, whose
    /// writer decides where a turn or a document ends.
    #[must_use]
    pub fn reading_special_names(mut self) -> Self {
        self.inner.set_encode_special_tokens(false);
        self
    }

    /// The text of `tokenizer.json`, as [`save`](Self::save) writes it.
    pub fn json(&self) -> &str {
        &self.json
    }

    fn from_json(json: String) -> Result<Self, String> {
        // The library panics on broken JSON inside some parts of the file: check the grammar first.
        serde_json::from_str::<serde_json::Value>(&json).map_err(|error| error.to_string())?;
        let mut inner: HfTokenizer = json.parse().map_err(|error: tokenizers::Error| error.to_string())?;
        let truncates_left = inner.get_truncation().is_some_and(|t| t.direction == TruncationDirection::Left);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.set_encode_special_tokens(true);
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 {
            return Err("the vocabulary is empty".into());
        }
        let added = inner.get_added_tokens_decoder();
        let find = |names: &[&str]| {
            let id_of =
                |name: &&str| added.iter().find(|(_, t)| t.special && t.content == **name).map(|(&id, _)| id);
            names.iter().find_map(id_of)
        };
        let (start, end, pad) = (find(&START_NAMES), find(&END_NAMES), find(&PAD_NAMES));
        let (mask, unknown) = (find(&MASK_NAMES), find(&UNKNOWN_NAMES));
        let mut special: Vec<u32> = added.iter().filter(|(_, t)| t.special).map(|(&id, _)| id).collect();
        special.sort_unstable();
        let byte_level = matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(byte_level))
            if byte_level.use_regex && !byte_level.add_prefix_space);
        let chunks_freely =
            byte_level && inner.get_normalizer().is_none() && added.values().all(|token| token.special);
        let hash = ContentHash::of(json.as_bytes());
        Ok(Self {
            inner,
            json,
            hash,
            vocab_size,
            start,
            end,
            pad,
            mask,
            unknown,
            special,
            truncates_left,
            chunks_freely,
        })
    }

    /// Saves as `tokenizer.json`; a loaded file is saved byte for byte.
    ///
    /// # Errors
    /// The path cannot be written. The file appears whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        atomic::write_bytes(path, self.json.as_bytes())
    }

    /// The tokens of a text, without special tokens.
    ///
    /// # Errors
    /// A loaded tokenizer may lack a token for some character; one trained here never fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_in_chunks(text, CHUNK_BYTES)
    }

    /// The tokens of a text within the special tokens that the file's template puts around it, if it has one.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_framed(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, true).map_err(refused(text))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn encode_in_chunks(&self, text: &str, least_bytes: usize) -> Result<Vec<u32>, DataError> {
        if !self.chunks_freely || text.len() < 2 * least_bytes {
            return self.encode_whole(text);
        }
        // A few chunks at a time: encodings are many times larger than the ids that are taken from them.
        let mut ids = Vec::new();
        for batch in chunks(text, least_bytes).chunks(CHUNKS_AT_ONCE) {
            let encodings = self.inner.encode_batch_fast(batch.to_vec(), false).map_err(refused(text))?;
            ids.extend(encodings.iter().flat_map(|encoding| encoding.get_ids()));
        }
        Ok(ids)
    }

    fn encode_whole(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false).map_err(refused(text))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens; special tokens are left out, bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// A token beyond the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        if let Some(index) = tokens.iter().position(|&token| token as usize >= self.vocab_size) {
            return Err(DataError::TokenOutOfRange {
                token: tokens[index],
                index,
                vocab_size: self.vocab_size,
            });
        }
        let failed = |error: tokenizers::Error| error.to_string();
        let text = self.inner.decode(tokens, true).map_err(failed);
        text.map_err(|reason| DataError::Decode { num_tokens: tokens.len(), reason })
    }

    /// One more than the largest token id, special tokens included: the rows that an embedding table needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token that starts a document, if the vocabulary has one. It may be the one that ends it.
    pub fn start_id(&self) -> Option<u32> {
        self.start
    }

    /// The token that ends a document, if the vocabulary has one.
    pub fn end_id(&self) -> Option<u32> {
        self.end
    }

    /// The padding token, if the vocabulary has one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The token that hides another, if the vocabulary has one.
    pub fn mask_id(&self) -> Option<u32> {
        self.mask
    }

    /// The token of what the vocabulary does not have.
    pub fn unknown_id(&self) -> Option<u32> {
        self.unknown
    }

    /// Whether a token is a special one.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }

    /// T5's sentinels `<extra_id_0>`, `<extra_id_1>`... as far as the vocabulary has them.
    pub fn sentinels(&self) -> Vec<u32> {
        (0..).map_while(|i| self.inner.token_to_id(&format!("<extra_id_{i}>"))).collect()
    }

    /// Whether the file says that texts are cut at their start.
    pub(crate) fn truncates_left(&self) -> bool {
        self.truncates_left
    }

    /// The library's form of it.
    pub(crate) fn library(&self) -> &HfTokenizer {
        &self.inner
    }

    /// The hash of `tokenizer.json` as [`save`](Self::save) writes it.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size).field("hash", &self.hash).finish()
    }
}

fn refused(text: &str) -> impl Fn(tokenizers::Error) -> DataError {
    let num_bytes = text.len();
    move |error| DataError::Encode { num_bytes, reason: error.to_string() }
}

/// Cuts a text where GPT-2's pre-tokenizer cuts it anyway: after a single newline that has no other white space on
/// either side, no piece but the last being shorter than `least_bytes`. (After several, its look-ahead would see the end of the text and join what it splits in the whole.)
fn chunks(text: &str, least_bytes: usize) -> Vec<&str> {
    let mut chunks = Vec::new();
    let mut start = 0;
    for (newline, _) in text.match_indices('\n') {
        let (before, after) = (&text[start..newline], &text[newline + 1..]);
        let ends_word = before.chars().next_back().is_some_and(|c| !c.is_whitespace());
        let starts_word = after.chars().next().is_some_and(|c| !c.is_whitespace());
        if before.len() >= least_bytes && ends_word && starts_word {
            chunks.push(&text[start..=newline]);
            start = newline + 1;
        }
    }
    if start < text.len() {
        chunks.push(&text[start..]);
    }
    chunks
}

/// A text in pieces, so that no run without white space is longer than `most` bytes (or one character).
fn without_long_runs(text: &str, most: usize) -> Vec<String> {
    let (mut pieces, mut piece_start, mut run_start) = (Vec::new(), 0, 0);
    for (at, character) in text.char_indices() {
        let end = at + character.len_utf8();
        if character.is_whitespace() {
            run_start = end;
        } else if end - run_start > most && at > run_start {
            pieces.push(text[piece_start..at].to_owned());
            (piece_start, run_start) = (at, at);
        }
    }
    pieces.push(text[piece_start..].to_owned());
    pieces
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
