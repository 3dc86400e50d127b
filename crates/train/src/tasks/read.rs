//! From the files of a configuration to stored examples: which columns, which label, which tokens.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{
    Column, ContentHash, DataError, ExampleStore, ExampleWriter, Field, Format, Framed, Framing, MASK, Row,
    Rows, Tokenizer, TokenizerKind, Wanted,
};
use hub::Task;
use serde::{Deserialize, Serialize};

use super::images::{self, Shape};
use super::{Examples, Known, Split, column};
use crate::config::Config;
use crate::error::TrainError;

/// T5's sentinels that a tokenizer trained here has.
const NUM_SENTINELS: usize = 100;
/// A tag that no token has: it is no target.
pub(super) const IGNORED: i32 = -100;

/// Which examples of a store are for what.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    train: Vec<Range<usize>>,
    heldout: Vec<Range<usize>>,
}

/// What a task reads.
struct Reader<'a> {
    config: &'a Config,
    known: Option<&'a Known>,
    source: Option<Framing>,
    target: Option<Framing>,
    shape: Option<Shape>,
}

/// The tokenizer that a configuration names: a file, the directory's, or one trained on its training examples; none for
/// images.
///
/// # Errors
/// A missing or broken file, data that cannot be read, no tokenizer named, one without a token that the task needs.
pub(crate) fn tokenizer(config: &Config) -> Result<Option<Tokenizer>, TrainError> {
    if config.task == Task::ImageClassify {
        return Ok(None);
    }
    let data = &config.data;
    let of_directory = || config.model.from.as_deref().map(|dir| dir.join("tokenizer.json"));
    let tokenizer = match (&data.tokenizer, data.tokenizer_vocab) {
        (Some(path), _) => Tokenizer::load(path)?,
        (None, Some(vocab)) => trained(config, vocab)?,
        (None, None) => match of_directory().filter(|path| path.is_file()) {
            Some(path) => Tokenizer::load(&path)?,
            None => {
                return Err(TrainError::Missing {
                    key: "data.tokenizer",
                    remedy: "name a tokenizer.json (model.from has none), or set data.tokenizer_vocab to train one"
                        .to_owned(),
                });
            }
        },
    };
    let missing = |what, remedy| Err(DataError::MissingToken { what, remedy }.into());
    if data.token_dropout > 0.0 && tokenizer.unknown_id().or(tokenizer.mask_id()).is_none() {
        return missing("unknown token", "use one that has [UNK], <unk> or [MASK] among its special tokens");
    }
    if config.task == Task::MaskedLm && tokenizer.mask_id().is_none() {
        return missing("mask token", "use one that has [MASK], <mask> or <|mask|> among its special tokens");
    }
    if data.span_corruption && tokenizer.sentinels().is_empty() {
        return missing("sentinel token", "use one that has <extra_id_0> and others, as T5's");
    }
    if config.task == Task::Seq2Seq && tokenizer.end_id().is_none() {
        return missing("end token", "use one that has </s> or another end among its special tokens");
    }
    Ok(Some(tokenizer))
}

fn trained(config: &Config, vocab: usize) -> Result<Tokenizer, TrainError> {
    let sentinels: Vec<String> = (0..NUM_SENTINELS).map(|i| format!("<extra_id_{i}>")).collect();
    let special: Vec<&str> = match config.task {
        Task::MaskedLm => vec![MASK],
        // Byte-level BPE has no unknown token.
        _ if config.data.token_dropout > 0.0 && config.data.tokenizer_kind == TokenizerKind::Bytes => {
            vec![MASK]
        }
        Task::Seq2Seq if config.data.span_corruption => sentinels.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let mut texts: Vec<Box<dyn Iterator<Item = Result<String, DataError>> + Send>> = Vec::new();
    for path in records(config, false)? {
        let kept = kept_rows(config, &path)?;
        let rows = rows(config, &path)?.take(kept);
        let is_pair = match config.task {
            Task::Classify => config.data.pair_column.is_some(),
            task => matches!(task, Task::Seq2Seq | Task::Embed),
        };
        let num_texts = if is_pair { 2 } else { 1 };
        texts.push(Box::new(rows.flat_map(move |row| match row {
            Ok(row) => row.fields.into_iter().take(num_texts).map(|f| Ok(f.into_text())).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })));
    }
    Ok(Tokenizer::train_on(texts.into_iter().flatten(), config.data.tokenizer_kind, vocab, &special)?)
}

/// The record files of training or of what is held out.
fn records(config: &Config, heldout: bool) -> Result<Vec<PathBuf>, TrainError> {
    let data = &config.data;
    let files = match (heldout, data.train.is_empty()) {
        (true, _) => data.heldout.clone(),
        (false, false) => data.train.clone(),
        (false, true) => data.text.clone(),
    };
    if files.is_empty() && !heldout {
        let remedy =
            format!("name the record files of the task, as `train = [\"a.jsonl\"]` for {}", config.task);
        return Err(TrainError::Missing { key: "data.train", remedy });
    }
    Ok(files)
}

/// The columns that a task reads.
fn wanted(config: &Config) -> Vec<Wanted<'_>> {
    let data = &config.data;
    let text = |default| Wanted { name: data.text_column.as_deref().unwrap_or(default), key: "text_column" };
    let label =
        |default| Wanted { name: data.label_column.as_deref().unwrap_or(default), key: "label_column" };
    let second = || data.pair_column.as_deref().map(|name| Wanted { name, key: "pair_column" });
    match config.task {
        Task::Classify => {
            [Some(text("text")), second(), Some(label("label"))].into_iter().flatten().collect()
        }
        Task::Embed => {
            let default = Wanted { name: "positive", key: "pair_column" };
            let score = data.label_column.as_deref().map(|name| Wanted { name, key: "label_column" });
            [Some(text("anchor")), second().or(Some(default)), score].into_iter().flatten().collect()
        }
        Task::Tag => vec![text("tokens"), label("tags")],
        Task::Seq2Seq if !data.span_corruption => vec![
            Wanted { name: &data.source_column, key: "source_column" },
            Wanted { name: &data.target_column, key: "target_column" },
        ],
        Task::ImageClassify => vec![Wanted { name: &data.image_column, key: "image_column" }, label("label")],
        _ => vec![text("text")],
    }
}

fn rows(config: &Config, path: &Path) -> Result<Rows, DataError> {
    let format = config.data.format.map_or_else(|| Format::of(path), Ok)?;
    let wanted = wanted(config);
    if format == Format::Text && wanted.len() > 1 {
        return Err(DataError::UnknownFormat {
            path: path.to_path_buf(),
            known: "jsonl, csv, tsv, parquet, iob: plain text has one column and this task reads two"
                .to_owned(),
        });
    }
    Rows::open(path, format, &wanted)
}

/// Rows of a training file that are not held out.
fn kept_rows(config: &Config, path: &Path) -> Result<usize, DataError> {
    if config.data.validation == 0.0 || !config.data.heldout.is_empty() {
        return Ok(usize::MAX);
    }
    let mut num_rows = 0usize;
    for row in rows(config, path)? {
        row?;
        num_rows += 1;
    }
    Ok(num_rows - (num_rows as f64 * config.data.validation) as usize)
}

/// The examples of a configuration, read or opened as they were stored. `labels` are those of the model that training
/// starts from, if it has a classifier.
///
/// # Errors
/// Files that cannot be read or do not fit the task, each with its place; nothing to train on.
pub(crate) fn open(
    config: &Config,
    labels: Option<&[String]>,
    shape: Option<Shape>,
    cache: &Path,
) -> Result<(Examples, Option<Known>), TrainError> {
    let tokenizer = tokenizer(config)?;
    let known = match config.task.has_labels() {
        false => None,
        true => {
            let found = found_labels(config)?;
            Some(match labels {
                Some(names) => Known::of_model(names, &found)?,
                None => Known::of_data(&found)?,
            })
        }
    };
    let (store, note) = stored(config, tokenizer.as_ref(), known.as_ref(), shape, cache)?;
    let train = Split::new(&store, &note.train);
    let heldout = Some(Split::new(&store, &note.heldout)).filter(|split| split.len() > 0);
    if train.len() == 0 {
        return Err(DataError::NoSamples.into());
    }
    let labels = known.as_ref().map(|known| known.names.clone()).unwrap_or_default();
    Ok((Examples { tokenizer, labels, train, heldout }, known))
}

/// Examples to evaluate on: those of `files` if any are given, else those that the configuration holds out.
///
/// # Errors
/// As [`open`]; nothing held out.
pub(crate) fn open_heldout(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    labels: &[String],
    shape: Option<Shape>,
    cache: &Path,
) -> Result<Examples, TrainError> {
    let known = Known::of_checkpoint(labels.to_vec());
    let known = Some(&known).filter(|_| config.task.has_labels());
    let (store, note) = stored(config, tokenizer, known, shape, cache)?;
    Ok(Examples {
        tokenizer: tokenizer.cloned(),
        labels: labels.to_vec(),
        train: Split::new(&store, &note.train),
        heldout: Some(Split::new(&store, &note.heldout)).filter(|split| split.len() > 0),
    })
}

/// Every label in the training files and those held out.
fn found_labels(config: &Config) -> Result<BTreeSet<String>, TrainError> {
    let mut found = BTreeSet::new();
    if config.task == Task::ImageClassify && config.data.train.is_empty() {
        images::labels(config, &mut found)?;
        return Ok(found);
    }
    for path in records(config, false)? {
        for row in rows(config, &path)? {
            let label = row?.fields.pop();
            match label {
                Some(Field::List(tags)) => found.extend(tags),
                Some(Field::Text(text)) if config.task == Task::Tag => {
                    found.extend(text.split_whitespace().map(str::to_owned));
                }
                // Refused with its line when the row is read.
                Some(Field::Text(label)) if label.trim().is_empty() => {}
                Some(Field::Text(label)) => _ = found.insert(label),
                None => {}
            }
        }
    }
    Ok(found)
}

fn stored(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
    known: Option<&Known>,
    shape: Option<Shape>,
    cache: &Path,
) -> Result<(Arc<ExampleStore>, Note), TrainError> {
    let data = &config.data;
    let framing = |most, key| {
        let frame = |tokenizer| Framing::new(tokenizer, most, key, config.task != Task::Seq2Seq);
        tokenizer.map(frame).transpose()
    };
    let reader = Reader {
        config,
        known,
        shape,
        source: framing(data.sequence_length, "data.sequence_length")?,
        target: match config.task {
            Task::Seq2Seq => framing(data.resolved_target_length(), "data.target_length")?,
            _ => None,
        },
    };
    let key = reader.key(tokenizer)?;
    let store = ExampleStore::open_or_build(cache, &key, column::count(config.task), |writer| {
        let note = reader.write(writer)?;
        writer.set_note(serde_json::to_string(&note).expect("ranges can be written"));
        Ok(())
    })?;
    let note = serde_json::from_str(store.note()).unwrap_or_default();
    Ok((Arc::new(store), note))
}

impl Reader<'_> {
    fn is_of_images(&self) -> bool {
        self.config.task == Task::ImageClassify && self.config.data.train.is_empty()
    }

    /// The hash of all that the stored examples depend on.
    fn key(&self, tokenizer: Option<&Tokenizer>) -> Result<ContentHash, TrainError> {
        let data = &self.config.data;
        let wanted: Vec<&str> = wanted(self.config).iter().map(|column| column.name).collect();
        let settings = serde_json::json!({
            "task": self.config.task.name(),
            "tokenizer": tokenizer.map(|tokenizer| tokenizer.hash().to_string()),
            "labels": self.known.map(|known| format!("{known:?}")),
            "columns": wanted,
            "format": data.format.map(Format::name),
            "lengths": [data.sequence_length, data.resolved_target_length()],
            "span_corruption": data.span_corruption,
            "validation": data.validation,
            "shape": self.shape.map(|shape| format!("{shape:?}")),
        });
        let mut parts = vec![settings.to_string()];
        for heldout in [false, true] {
            parts.push(format!("held out: {heldout}"));
            match self.is_of_images() {
                true => images::hashes(self.config, heldout, &mut parts)?,
                false => {
                    for path in records(self.config, heldout)? {
                        parts.push(images::hash(&path)?.to_string());
                        if self.config.task == Task::ImageClassify {
                            for row in rows(self.config, &path)? {
                                parts.push(
                                    images::hash(&image_of(&path, row?.fields.swap_remove(0)))?.to_string(),
                                );
                            }
                        }
                    }
                }
            }
        }
        Ok(ContentHash::of_parts(parts.iter().map(String::as_bytes)))
    }

    fn write(&self, writer: &mut ExampleWriter<'_>) -> Result<Note, DataError> {
        let mut note = Note::default();
        if let Some(shape) = self.shape.filter(|_| self.is_of_images()) {
            let known = self.known.expect("images have labels");
            let data = &self.config.data;
            let validation = if data.heldout_images.is_empty() { data.validation } else { 0.0 };
            for (heldout, images, labels) in
                [(false, &data.images, &data.labels), (true, &data.heldout_images, &data.heldout_labels)]
            {
                let range = images::write(images, labels, shape, known, writer)?;
                let kept =
                    range.len() - (range.len() as f64 * if heldout { 1.0 } else { validation }) as usize;
                note.train.push(range.start..range.start + kept);
                note.heldout.push(range.start + kept..range.end);
            }
            return Ok(note);
        }
        let failed = |error: TrainError| match error {
            TrainError::Data(error) => *error,
            other => unreachable!("{other}: files were named before"),
        };
        for heldout in [false, true] {
            for path in records(self.config, heldout).map_err(failed)? {
                let kept = if heldout { 0 } else { kept_rows(self.config, &path)? };
                let start = writer.num_examples();
                let mut cut = start;
                let mut rows = rows(self.config, &path)?;
                let mut num_rows = 0;
                while let Some(row) = rows.next() {
                    let row = row?;
                    self.example(&path, &rows, row, writer)?;
                    num_rows += 1;
                    if num_rows <= kept {
                        cut = writer.num_examples();
                    }
                }
                note.train.push(start..cut);
                note.heldout.push(cut..writer.num_examples());
            }
        }
        Ok(note)
    }

    /// Writes what a row gives: an example, or several of a long text.
    fn example(
        &self,
        path: &Path,
        rows: &Rows,
        row: Row,
        writer: &mut ExampleWriter<'_>,
    ) -> Result<(), DataError> {
        let Row { line, fields } = row;
        let mut fields = fields.into_iter();
        let mut next = || fields.next().unwrap_or(Field::Text(String::new()));
        let source = self.source.as_ref();
        let wrote = match (self.config.task, source) {
            (Task::Classify, Some(framing)) => {
                let text = next().into_text();
                let framed = match self.config.data.pair_column {
                    Some(_) => framing.pair(&text, &next().into_text())?,
                    None => Framed { segments: Vec::new(), ..framing.text(&text)? },
                };
                let label = [self.label(rows, line, &next().into_text())?];
                writer.push(&[&framed.ids, &label[..], &framed.segments].map(Column::Ints))
            }
            (Task::Embed, Some(framing)) => {
                let [first, second] = [next(), next()].map(|field| framing.text(&field.into_text()));
                let score = match self.config.data.label_column {
                    Some(_) => vec![score(rows, line, &next().into_text())?],
                    None => Vec::new(),
                };
                writer.push(&[&first?.ids, &second?.ids, &score].map(|ints| Column::Ints(ints)))
            }
            (Task::Tag, Some(framing)) => {
                let (words, tags) = (next().into_list(), next().into_list());
                self.sentence(framing, rows, line, &words, &tags, writer)?
            }
            (Task::Seq2Seq, Some(framing)) if !self.config.data.span_corruption => {
                let (from, to) = (next().into_text(), next().into_text());
                let target = self.target.as_ref().unwrap_or(framing);
                let (ids, target) = (framing.text(&from)?.ids, target.text(&to)?.ids);
                let texts = [Column::Bytes(from.as_bytes()), Column::Bytes(to.as_bytes())];
                writer.push(&[Column::Ints(&ids), Column::Ints(&target), texts[0], texts[1]])
            }
            (Task::Seq2Seq, Some(framing)) => {
                let mut wrote = Ok(());
                for part in framing.parts(&next().into_text())? {
                    let empty = Column::Bytes(&[]);
                    wrote = wrote.and(writer.push(&[Column::Ints(&part.ids), empty, empty, empty]));
                }
                wrote
            }
            (_, Some(framing)) => {
                let mut wrote = Ok(());
                for part in framing.parts(&next().into_text())? {
                    wrote = wrote.and(writer.push(&[Column::Ints(&part.ids)]));
                }
                wrote
            }
            (_, None) => {
                let shape = self.shape.expect("images have a shape");
                let image = image_of(path, next());
                let pixels = data::picture(&image, shape.size, shape.num_channels)?;
                let label = [self.label(rows, line, &next().into_text())?];
                writer.push(&[Column::Bytes(&pixels), Column::Ints(&label)])
            }
        };
        wrote.map_err(cannot_write)
    }

    fn label(&self, rows: &Rows, line: u64, label: &str) -> Result<i32, DataError> {
        if label.trim().is_empty() {
            let problem = "the label is empty; give the row one, or remove it".to_owned();
            return Err(rows.refuse(line, problem));
        }
        let known = self.known.expect("this task has labels");
        known.number(label).ok_or_else(|| {
            let shown: Vec<&str> = known.names.iter().take(20).map(String::as_str).collect();
            let (num, shown) = (known.names.len(), shown.join(", "));
            rows.refuse(
                line,
                format!("the label \"{label}\" is none of the {num} that there are ({shown}); mend it"),
            )
        })
    }

    fn sentence(
        &self,
        framing: &Framing,
        rows: &Rows,
        line: u64,
        words: &[String],
        tags: &[String],
        writer: &mut ExampleWriter<'_>,
    ) -> Result<io::Result<()>, DataError> {
        if words.len() != tags.len() {
            let (words, tags) = (words.len(), tags.len());
            return Err(rows.refuse(line, format!("{words} tokens and {tags} tags; give each token one")));
        }
        let numbers =
            tags.iter().map(|tag| self.label(rows, line, tag)).collect::<Result<Vec<i32>, DataError>>()?;
        let framed = framing.words(words)?;
        let mut targets = vec![IGNORED; framed.ids.len()];
        let mut word_of = vec![-1; framed.ids.len()];
        let mut last = None;
        for (at, word) in framed.words.iter().enumerate() {
            if let (Some(word), true) = (word, *word != last) {
                (targets[at], word_of[at]) = (numbers[*word as usize], *word as i32);
            }
            if word.is_some() {
                last = *word;
            }
        }
        let hashes: Vec<i32> = words.iter().flat_map(|word| halves(word)).collect();
        let columns = [&framed.ids, &targets, &word_of, &numbers, &hashes].map(|c| Column::Ints(c));
        Ok(writer.push(&columns))
    }
}

/// How alike the texts of a pair are, as the bits of an `f32`.
fn score(rows: &Rows, line: u64, written: &str) -> Result<i32, DataError> {
    let score = written.trim().parse::<f32>().ok().filter(|score| (-1.0..=1.0).contains(score));
    let score = score.ok_or_else(|| {
        let problem = format!("the score \"{written}\" is no number from -1 to 1, as cosines are; scale it");
        rows.refuse(line, problem)
    })?;
    Ok(score.to_bits() as i32)
}

/// The image that a row of a record file names.
fn image_of(records: &Path, field: Field) -> PathBuf {
    records.parent().unwrap_or(Path::new("")).join(field.into_text())
}

/// A word's hash in two numbers.
fn halves(word: &str) -> [i32; 2] {
    let hash = ContentHash::of(word.as_bytes());
    let at = |i: usize| i32::from_le_bytes(std::array::from_fn(|j| hash.as_bytes()[i + j]));
    [at(0), at(4)]
}

/// The store's own directory is what cannot be written to.
pub(super) fn cannot_write(source: io::Error) -> DataError {
    DataError::Write { path: crate::text::CACHE_DIR.into(), source }
}
