//! The table `data`: its keys, defaults and single-key ranges. No file is opened here.

use std::path::PathBuf;

use ::data::{Format, TokenizerKind};

use super::names::named;
use super::value::Value;
use super::{ConfigError, Name};

named! {
    /// In which order examples are trained on.
    Sampling {
        /// All of them in random order, anew in each epoch.
        Random = "random",
        /// Every class as often as every other.
        Balanced = "balanced",
        /// Each class as often as `class_weights` says.
        Weighted = "weighted",
        /// Those of like length together.
        Length = "length",
    }
}

impl Name for Format {
    const NAMES: &'static [(&'static str, Format)] = &{
        let mut names = [("", Format::Text); Format::ALL.len()];
        let mut i = 0;
        while i < names.len() {
            names[i] = (Format::ALL[i].1, Format::ALL[i].0);
            i += 1;
        }
        names
    };
}

impl Name for TokenizerKind {
    const NAMES: &'static [(&'static str, TokenizerKind)] = &{
        let mut names = [("", TokenizerKind::Bytes); TokenizerKind::ALL.len()];
        let mut i = 0;
        while i < names.len() {
            names[i] = (TokenizerKind::ALL[i].1, TokenizerKind::ALL[i].0);
            i += 1;
        }
        names
    };
}

/// What is trained on, and how it becomes sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Text files, absolute. Empty where none is needed, as for `explain`.
    pub text: Vec<PathBuf>,
    /// Record files of a task, absolute.
    pub train: Vec<PathBuf>,
    /// Record files held out of training, absolute; without any, the end of each file of `train`.
    pub heldout: Vec<PathBuf>,
    /// The form of record files; by default what their endings say.
    pub format: Option<Format>,
    /// The column of a text; of a tagged sentence, its tokens.
    pub text_column: Option<String>,
    /// The column of the second text of a pair; of a classified text, none unless it is named.
    pub pair_column: Option<String>,
    /// The column of a label; of a tagged sentence, its tags; of a pair that is embedded, how alike both are.
    pub label_column: Option<String>,
    /// The column of a text to translate.
    pub source_column: String,
    /// The column of its translation.
    pub target_column: String,
    /// The column of an image's path, which starts at the record file's folder.
    pub image_column: String,
    /// Images: IDX files, or directories with a directory of images for each class.
    pub images: Vec<PathBuf>,
    /// Labels of the images, an IDX file for each of `images`.
    pub labels: Vec<PathBuf>,
    /// As `images`, held out of training.
    pub heldout_images: Vec<PathBuf>,
    /// As `labels`, of `heldout_images`.
    pub heldout_labels: Vec<PathBuf>,
    /// A pixel's value from 0 to 1 has this subtracted from it.
    pub image_mean: f64,
    /// What is left is divided by this.
    pub image_std: f64,
    /// The order of training.
    pub sampler: Sampling,
    /// How often each class is seen, by its label; those not named have weight 0.
    pub class_weights: Vec<(String, f64)>,
    /// Share of the tokens that a masked language model predicts.
    pub mask_probability: f64,
    /// Share of the tokens of a text that the unknown token, or the mask, stands for while it trains, drawn anew each time.
    pub token_dropout: f64,
    /// Whether sources and targets are made of one text by hiding spans of it.
    pub span_corruption: bool,
    /// Tokens in a target; by default `sequence_length`.
    pub target_length: Option<usize>,
    /// A `tokenizer.json`, absolute.
    pub tokenizer: Option<PathBuf>,
    /// Train a tokenizer of this vocabulary from the text.
    pub tokenizer_vocab: Option<usize>,
    /// What its tokens are.
    pub tokenizer_kind: TokenizerKind,
    /// Tokens in a sequence.
    pub sequence_length: usize,
    /// Shorter lengths that batches are padded to where they suffice, ascending; none: all are padded to `sequence_length`.
    pub length_buckets: Vec<usize>,
    /// Fraction held out from the end of each file.
    pub validation: f64,
    /// Whether sequences run on across documents; else one document per sequence, padded and masked.
    pub packing: bool,
}

impl Default for Data {
    fn default() -> Data {
        Data {
            text: Vec::new(),
            train: Vec::new(),
            heldout: Vec::new(),
            format: None,
            text_column: None,
            pair_column: None,
            label_column: None,
            source_column: "source".to_owned(),
            target_column: "target".to_owned(),
            image_column: "image".to_owned(),
            images: Vec::new(),
            labels: Vec::new(),
            heldout_images: Vec::new(),
            heldout_labels: Vec::new(),
            image_mean: 0.5,
            image_std: 0.5,
            sampler: Sampling::Random,
            class_weights: Vec::new(),
            mask_probability: 0.15,
            token_dropout: 0.0,
            span_corruption: false,
            target_length: None,
            tokenizer: None,
            tokenizer_vocab: None,
            tokenizer_kind: TokenizerKind::Bytes,
            sequence_length: 256,
            length_buckets: Vec::new(),
            validation: 0.05,
            packing: true,
        }
    }
}

impl Data {
    /// `target_length`, by default `sequence_length`.
    pub fn resolved_target_length(&self) -> usize {
        self.target_length.unwrap_or(self.sequence_length)
    }

    /// Sets a key; false if there is none of that name.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
        match key {
            "text" => self.text = value.paths()?,
            "train" => self.train = value.paths()?,
            "heldout" => self.heldout = value.paths()?,
            "format" => self.format = Some(value.name()?),
            "text_column" => self.text_column = Some(value.text()?),
            "pair_column" => self.pair_column = Some(value.text()?),
            "label_column" => self.label_column = Some(value.text()?),
            "source_column" => self.source_column = value.text()?,
            "target_column" => self.target_column = value.text()?,
            "image_column" => self.image_column = value.text()?,
            "images" => self.images = value.paths()?,
            "labels" => self.labels = value.paths()?,
            "heldout_images" => self.heldout_images = value.paths()?,
            "heldout_labels" => self.heldout_labels = value.paths()?,
            "image_mean" => self.image_mean = value.number("a finite number", |_| true)?,
            "image_std" => self.image_std = value.positive()?,
            "sampler" => self.sampler = value.name()?,
            "class_weights" => self.class_weights = value.weights()?,
            "mask_probability" => {
                self.mask_probability = value.number("above 0 and below 1", |p| p > 0.0 && p < 1.0)?;
            }
            "token_dropout" => self.token_dropout = value.fraction()?,
            "span_corruption" => self.span_corruption = value.switch()?,
            "target_length" => self.target_length = Some(value.count(1)?),
            "tokenizer" => self.tokenizer = Some(value.path()?),
            "tokenizer_vocab" => self.tokenizer_vocab = Some(value.count(1)?),
            "tokenizer_kind" => self.tokenizer_kind = value.name()?,
            "sequence_length" => self.sequence_length = value.count(1)?,
            "length_buckets" => self.length_buckets = value.counts(1)?,
            "validation" => self.validation = value.fraction()?,
            "packing" => self.packing = value.switch()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
