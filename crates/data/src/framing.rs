//! Texts as a model's sequences: special tokens as the tokenizer's file says, cut to a length. Padding is the batch's.

use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    PostProcessor, Tokenizer as HfTokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::{DataError, Tokenizer};

/// A framed sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Framed {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Which text of a pair each token belongs to, as the template says: 0 or 1.
    pub segments: Vec<i32>,
    /// For a list of words: the word that each token is of; none for special tokens.
    pub words: Vec<Option<u32>>,
}

/// How a tokenizer frames texts of at most a number of tokens.
///
/// A tokenizer with a template (`post_processor`) uses it. One without puts its start token before a text and its end
/// token behind each, as far as it has them.
pub struct Framing {
    inner: HfTokenizer,
    most: usize,
    key: &'static str,
}

impl Framing {
    /// Frames texts of at most `most` tokens; `key` is the setting that says how many. Without `has_start`, a
    /// tokenizer that has no template adds an end alone, as encoder-decoders read it.
    ///
    /// # Errors
    /// No room for a token beside the special ones.
    pub fn new(
        tokenizer: &Tokenizer,
        most: usize,
        key: &'static str,
        has_start: bool,
    ) -> Result<Framing, DataError> {
        let mut inner = tokenizer.library().clone();
        let refused =
            |error: tokenizers::Error| DataError::Encode { num_bytes: 0, reason: error.to_string() };
        if inner.get_post_processor().is_none_or(|template| template.added_tokens(false) == 0) {
            let start = tokenizer.start_id().filter(|_| has_start);
            inner.with_post_processor(Some(template(start, tokenizer.end_id()).map_err(refused)?));
        }
        let num_special = num_special(&inner, false);
        if most <= num_special {
            return Err(DataError::NoRoom { key, length: most, num_special });
        }
        let direction = match tokenizer.truncates_left() {
            true => TruncationDirection::Left,
            false => TruncationDirection::Right,
        };
        let truncation = TruncationParams {
            max_length: most,
            stride: 0,
            strategy: TruncationStrategy::LongestFirst,
            direction,
        };
        inner.with_truncation(Some(truncation)).map_err(refused)?;
        Ok(Framing { inner, most, key })
    }

    /// Most tokens of a sequence.
    pub fn most(&self) -> usize {
        self.most
    }

    /// A text, cut to the length.
    ///
    /// # Errors
    /// A tokenizer that lacks a token for some character.
    pub fn text(&self, text: &str) -> Result<Framed, DataError> {
        Ok(framed(&self.encode(text, text.len())?))
    }

    /// Two texts as one sequence, cut to the length token by token, each time the longer of both.
    ///
    /// # Errors
    /// As [`Framing::text`]; no room for a token beside the special ones of a pair.
    pub fn pair(&self, first: &str, second: &str) -> Result<Framed, DataError> {
        let num_special = num_special(&self.inner, true);
        if self.most <= num_special {
            return Err(DataError::NoRoom { key: self.key, length: self.most, num_special });
        }
        Ok(framed(&self.encode((first, second), first.len() + second.len())?))
    }

    /// A text in as many sequences as it takes, each framed; none if it has no token.
    ///
    /// # Errors
    /// As [`Framing::text`].
    pub fn parts(&self, text: &str) -> Result<Vec<Framed>, DataError> {
        let encoding = self.encode(text, text.len())?;
        let all = std::iter::once(&encoding).chain(encoding.get_overflowing());
        let parts = all.filter(|part| part.get_special_tokens_mask().contains(&0));
        Ok(parts.map(framed).collect())
    }

    /// A list of words, cut to the length.
    ///
    /// # Errors
    /// As [`Framing::text`].
    pub fn words(&self, words: &[String]) -> Result<Framed, DataError> {
        let num_bytes = words.iter().map(String::len).sum();
        Ok(framed(&self.encode(words, num_bytes)?))
    }

    fn encode<'a>(
        &self,
        text: impl Into<tokenizers::EncodeInput<'a>>,
        num_bytes: usize,
    ) -> Result<tokenizers::Encoding, DataError> {
        let refused = |error: tokenizers::Error| DataError::Encode { num_bytes, reason: error.to_string() };
        self.inner.encode(text, true).map_err(refused)
    }
}

fn framed(encoding: &tokenizers::Encoding) -> Framed {
    let signed = |ids: &[u32]| ids.iter().map(|id| *id as i32).collect();
    Framed {
        ids: signed(encoding.get_ids()),
        segments: signed(encoding.get_type_ids()),
        words: encoding.get_word_ids().to_vec(),
    }
}

/// Special tokens beside a text, or beside both of a pair.
fn num_special(tokenizer: &HfTokenizer, is_pair: bool) -> usize {
    tokenizer.get_post_processor().map_or(0, |template| template.added_tokens(is_pair))
}

/// The template of a tokenizer that has none.
fn template(start: Option<u32>, end: Option<u32>) -> Result<PostProcessorWrapper, tokenizers::Error> {
    let special = |name: &str, id: Option<u32>| id.map(|id| (name.to_owned(), id));
    let token = |id: Option<u32>, piece: &'static str| id.map(|_| piece);
    let [first, behind, last] = [token(start, "start"), token(end, "end"), token(end, "end:1")];
    let pieces = |all: &[Option<&str>]| all.iter().flatten().copied().collect::<Vec<_>>().join(" ");
    let template = TemplateProcessing::builder()
        .try_single(pieces(&[first, Some("$A"), behind]))?
        .try_pair(pieces(&[first, Some("$A"), behind, Some("$B:1"), last]))?
        .special_tokens(
            [special("start", start), special("end", end)].into_iter().flatten().collect::<Vec<_>>(),
        )
        .build()?;
    Ok(template.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::TokenizerKind;

    /// A word-level tokenizer with BERT's template.
    fn bert() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,
            "added_tokens":[
                {"id":0,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
                {"id":1,"content":"[CLS]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
                {"id":2,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
                {"id":3,"content":"[MASK]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
            "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},
            "post_processor":{"type":"TemplateProcessing",
                "single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],
                "pair":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}},{"Sequence":{"id":"B","type_id":1}},{"SpecialToken":{"id":"[SEP]","type_id":1}}],
                "special_tokens":{"[CLS]":{"id":"[CLS]","ids":[1],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[2],"tokens":["[SEP]"]}}},
            "decoder":null,
            "model":{"type":"WordLevel","vocab":{"[PAD]":0,"[CLS]":1,"[SEP]":2,"[MASK]":3,"a":4,"b":5,"c":6,"?":7},"unk_token":"?"}}"#;
        Tokenizer::parse(json.to_owned(), Path::new("tokenizer.json")).unwrap()
    }

    #[test]
    fn a_template_frames_and_long_texts_are_cut_or_divided() {
        let tokenizer = bert();
        assert_eq!((tokenizer.mask_id(), tokenizer.pad_id()), (Some(3), Some(0)));
        let framing = Framing::new(&tokenizer, 4, "data.sequence_length", true).unwrap();
        assert_eq!(framing.text("a b c").unwrap().ids, [1, 4, 5, 2]);
        let parts: Vec<Vec<i32>> = framing.parts("a b c").unwrap().into_iter().map(|p| p.ids).collect();
        assert_eq!(parts, [vec![1, 4, 5, 2], vec![1, 6, 2]]);
        assert!(framing.parts("  ").unwrap().is_empty());
        let words = framing.words(&["c".to_owned(), "x?".to_owned()]).unwrap();
        assert_eq!(words.ids, [1, 6, 7, 2].map(|id: i32| id));
        assert_eq!(words.words[..3], [None, Some(0), Some(1)]);
        assert!(matches!(
            Framing::new(&tokenizer, 2, "data.sequence_length", true),
            Err(DataError::NoRoom { num_special: 2, .. })
        ));
    }

    #[test]
    fn without_a_template_start_and_end_are_put_by_hand() {
        let texts = ["abc abc abc".to_owned()].into_iter().map(Ok);
        let tokenizer = Tokenizer::train_on(texts, TokenizerKind::Bytes, 300, &["<|mask|>"]).unwrap();
        assert_eq!(
            (tokenizer.end_id(), tokenizer.pad_id(), tokenizer.mask_id()),
            (Some(0), Some(1), Some(2))
        );
        let framing = Framing::new(&tokenizer, 5, "data.sequence_length", true).unwrap();
        let ids = framing.text("x y z w").unwrap().ids;
        assert_eq!((ids.len(), ids[0], ids[4]), (5, 0, 0));
        let framing = Framing::new(&tokenizer, 5, "data.sequence_length", false).unwrap();
        let ids = framing.text("x y z w").unwrap().ids;
        assert_eq!((ids.len(), ids[0] != 0, ids[4]), (5, true, 0));
        assert_eq!(framing.parts("x y z w").unwrap().len(), 2);
    }

    /// As `transformers` gives `tokenizer(first, second, truncation="longest_first")`.
    #[test]
    fn pairs_have_segments_and_the_longer_is_cut_first() {
        let framing = Framing::new(&bert(), 7, "data.sequence_length", true).unwrap();
        let pair = framing.pair("a b", "c").unwrap();
        assert_eq!(pair.ids, [1, 4, 5, 2, 6, 2]);
        assert_eq!(pair.segments, [0, 0, 0, 0, 1, 1]);
        assert_eq!(framing.pair("a b c a b c", "b c").unwrap().ids, [1, 4, 5, 2, 5, 6, 2]);
        assert_eq!(framing.pair("a", "b b b b b").unwrap().ids, [1, 4, 2, 5, 5, 5, 2]);
        let framing = Framing::new(&bert(), 3, "data.sequence_length", true).unwrap();
        assert!(matches!(framing.pair("a", "b"), Err(DataError::NoRoom { num_special: 3, .. })));
        // Without a template, the end token parts them.
        let tokenizer =
            Tokenizer::train_on(["abc".to_owned()].into_iter().map(Ok), TokenizerKind::Bytes, 258, &[])
                .unwrap();
        let framing = Framing::new(&tokenizer, 6, "data.sequence_length", true).unwrap();
        let pair = framing.pair("abcd", "ef").unwrap();
        assert_eq!((pair.ids[0], pair.ids[3], pair.ids[5]), (0, 0, 0));
        assert_eq!(pair.segments, [0, 0, 0, 0, 1, 1]);
    }
}
