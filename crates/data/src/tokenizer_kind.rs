//! What a tokenizer that is trained here has for tokens, and how it learns them.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::normalizers::utils::Lowercase;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as HfTokenizer};

use crate::DataError;
use crate::tokenizer::{END_OF_TEXT, LEAST_VOCAB_SIZE, PAD, UNKNOWN};

/// Whoever occurs once is unknown, so that a model learns what to make of those that it will not have seen.
const LEAST_FREQUENCY: u64 = 2;

/// What the tokens of a tokenizer that is trained here are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TokenizerKind {
    /// Byte-level BPE: every text has tokens, and they give it back.
    #[default]
    Bytes,
    /// Words in small letters, and punctuation marks: small data say more of whole words than of their parts. Others than
    /// the most frequent are one unknown token; tokens give words back with spaces between.
    Words,
    /// Characters, as for scripts without spaces. Others than the most frequent are one unknown token.
    Characters,
}

impl TokenizerKind {
    /// All kinds with their names in configurations.
    pub const ALL: [(TokenizerKind, &'static str); 3] = [
        (TokenizerKind::Bytes, "bytes"),
        (TokenizerKind::Words, "words"),
        (TokenizerKind::Characters, "characters"),
    ];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The smallest vocabulary that leaves room for `num_special` tokens beside the start and the padding.
    pub(crate) fn least_vocab_size(self, num_special: usize) -> usize {
        match self {
            TokenizerKind::Bytes => LEAST_VOCAB_SIZE + num_special,
            // One word beside the unknown one.
            TokenizerKind::Words | TokenizerKind::Characters => 4 + num_special,
        }
    }

    /// The tokenizer before it has learned from texts.
    pub(crate) fn untrained(self) -> Result<HfTokenizer, tokenizers::Error> {
        if self == TokenizerKind::Bytes {
            let mut inner = HfTokenizer::new(BPE::default());
            inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
            inner.with_post_processor(Some(ByteLevel::new(false, false, true)));
            inner.with_decoder(Some(ByteLevel::new(false, true, true)));
            return Ok(inner);
        }
        let model = WordLevel::builder().unk_token(UNKNOWN.to_owned()).build()?;
        let mut inner = HfTokenizer::new(model);
        if self == TokenizerKind::Words {
            inner.with_normalizer(Some(Lowercase))?;
            inner.with_pre_tokenizer(Some(BertPreTokenizer));
        } else {
            let each = SplitPattern::Regex(r"[\s\S]".to_owned());
            inner.with_pre_tokenizer(Some(Split::new(each, SplitDelimiterBehavior::Isolated, false)?));
            inner.with_decoder(Some(tokenizers::decoders::fuse::Fuse::new()));
        }
        Ok(inner)
    }

    /// What learns a vocabulary: [`END_OF_TEXT`] = 0, [`PAD`] = 1, then `more_special`.
    pub(crate) fn trainer(
        self,
        vocab_size: usize,
        more_special: &[&str],
    ) -> Result<TrainerWrapper, DataError> {
        let unknown = (self != TokenizerKind::Bytes).then_some(UNKNOWN);
        let special = [END_OF_TEXT, PAD].into_iter().chain(more_special.iter().copied()).chain(unknown);
        let special: Vec<AddedToken> = special.map(|name| AddedToken::from(name, true)).collect();
        if self == TokenizerKind::Bytes {
            let trainer = BpeTrainer::builder()
                .vocab_size(vocab_size)
                .show_progress(false)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .special_tokens(special)
                .build();
            return Ok(trainer.into());
        }
        let trainer = WordLevelTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(LEAST_FREQUENCY)
            .show_progress(false)
            .special_tokens(special)
            .build();
        let failed = |reason: String| DataError::TokenizerTraining { reason };
        Ok(trainer.map_err(|error| failed(error.to_string()))?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    fn trained(kind: TokenizerKind, vocab_size: usize) -> Tokenizer {
        let texts = ["The cat, the cat sat.", "the mat. 東京 東"].map(|text| Ok(text.to_owned()));
        Tokenizer::train_on(texts.into_iter(), kind, vocab_size, &["<|mask|>"]).unwrap()
    }

    #[test]
    fn words_are_those_that_occur_twice_in_small_letters() {
        let words = trained(TokenizerKind::Words, 100);
        let ids = |text: &str| words.encode(text).unwrap();
        assert_eq!(ids("THE cat"), ids("the Cat"));
        assert_eq!(words.decode(&ids("the cat.")).unwrap(), "the cat .");
        // `sat` and `dog` are unknown alike, and no special name is a token.
        assert_eq!(ids("sat"), ids("dog"));
        assert!(ids("<|mask|>").iter().all(|id| Some(*id) != words.mask_id()));
        assert_eq!(Some(ids("dog")[0]), words.unknown_id());
        assert_eq!((words.end_id(), words.pad_id(), words.mask_id()), (Some(0), Some(1), Some(2)));
        // start, padding, mask, unknown; the, cat, full stop
        assert_eq!(words.vocab_size(), 7);
        assert_eq!(trained(TokenizerKind::Words, 5).vocab_size(), 5);
        let reloaded = Tokenizer::parse(words.json().to_owned(), "x".as_ref()).unwrap();
        assert_eq!(reloaded.encode("the dog.").unwrap(), ids("the dog."));
    }

    #[test]
    fn characters_give_the_text_back() {
        let characters = trained(TokenizerKind::Characters, 100);
        let ids = characters.encode("the 東\nat").unwrap();
        assert_eq!(ids.len(), 8);
        assert_eq!(characters.decode(&ids).unwrap(), "the 東at", "what occurred once is unknown");
    }

    #[test]
    fn a_vocabulary_has_room_for_a_word() {
        let texts = || ["a a".to_owned()].into_iter().map(Ok);
        for (kind, least) in [(TokenizerKind::Words, 5), (TokenizerKind::Bytes, 259)] {
            assert!(Tokenizer::train_on(texts(), kind, least, &["<|mask|>"]).is_ok());
            let message =
                Tokenizer::train_on(texts(), kind, least - 1, &["<|mask|>"]).unwrap_err().to_string();
            assert!(message.contains(&format!("at least {least}")), "{message}");
        }
    }
}
