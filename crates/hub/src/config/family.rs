//! The file itself: which family it describes, its typed form, and the rest of its keys.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::keys::Keys;
use super::{Bert, Gpt2, Labels, Llama, T5, Task, TokenIds, Vit};
use crate::HubError;
use crate::weights::{StoredType, read_regular};

/// Name of the file.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// What a checkpoint is, by family.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Family {
    /// Decoder of GPT-2's style.
    Gpt2(Gpt2),
    /// Decoder of LLaMA's style.
    Llama(Llama),
    /// Encoder of BERT's style.
    Bert(Bert),
    /// Encoder and decoder of T5's style.
    T5(T5),
    /// Encoder of images.
    Vit(Vit),
}

impl Family {
    /// The family's `model_type`.
    pub const fn model_type(&self) -> &'static str {
        match self {
            Family::Gpt2(_) => "gpt2",
            Family::Llama(_) => "llama",
            Family::Bert(_) => "bert",
            Family::T5(_) => "t5",
            Family::Vit(_) => "vit",
        }
    }

    /// What the family can do, and the class of `transformers` that does it; the first is the default.
    pub const fn tasks(&self) -> &'static [(Task, &'static str)] {
        match self {
            Family::Gpt2(_) => &[(Task::CausalLm, "GPT2LMHeadModel")],
            Family::Llama(_) => &[(Task::CausalLm, "LlamaForCausalLM")],
            Family::Bert(_) => &[
                (Task::MaskedLm, "BertForMaskedLM"),
                (Task::Classify, "BertForSequenceClassification"),
                (Task::Tag, "BertForTokenClassification"),
                (Task::Embed, "BertModel"),
            ],
            Family::T5(_) => &[(Task::Seq2Seq, "T5ForConditionalGeneration")],
            Family::Vit(_) => &[(Task::ImageClassify, "ViTForImageClassification")],
        }
    }

    /// Whether embedding and head share one table; `None` without such a head.
    pub(crate) fn tied_mut(&mut self) -> Option<&mut bool> {
        match self {
            Family::Gpt2(c) => Some(&mut c.tied),
            Family::Llama(c) => Some(&mut c.tied),
            Family::Bert(c) => Some(&mut c.tied),
            Family::T5(c) => Some(&mut c.tied),
            Family::Vit(_) => None,
        }
    }

    /// Vocabulary and tokens with a role, if the family reads text.
    pub(crate) fn tokens(&self) -> Option<(usize, &TokenIds)> {
        match self {
            Family::Gpt2(c) => Some((c.vocab_size, &c.tokens)),
            Family::Llama(c) => Some((c.vocab_size, &c.tokens)),
            Family::Bert(c) => Some((c.vocab_size, &c.tokens)),
            Family::T5(c) => Some((c.vocab_size, &c.tokens)),
            Family::Vit(_) => None,
        }
    }

    fn read(keys: &Keys<'_>) -> Result<Family, HubError> {
        // checked before the family's own keys: whatever it is, its tensors are not plain numbers
        if keys.get("quantization_config").is_some() {
            return Err(keys.refuse("quantization_config", "weights that are not quantized (no such key)"));
        }
        match keys.optional_text("model_type")? {
            Some("gpt2") => Gpt2::read(keys).map(Family::Gpt2),
            Some("llama") => Llama::read(keys).map(Family::Llama),
            Some("bert") => Bert::read(keys).map(Family::Bert),
            Some("t5") => T5::read(keys).map(Family::T5),
            Some("vit") => Vit::read(keys).map(Family::Vit),
            _ => Err(keys.refuse("model_type", "\"gpt2\", \"llama\", \"bert\", \"t5\", \"vit\"")),
        }
    }

    fn write(&self, map: &mut Map<String, Value>) {
        match self {
            Family::Gpt2(c) => c.write(map),
            Family::Llama(c) => c.write(map),
            Family::Bert(c) => c.write(map),
            Family::T5(c) => c.write(map),
            Family::Vit(c) => c.write(map),
        }
    }
}

/// A `config.json`: typed, and with all its other keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What the checkpoint is. May be changed; [`Config::to_json`] writes the change.
    pub family: Family,
    path: PathBuf,
    json: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` of a directory.
    ///
    /// # Errors
    /// No such file, not JSON, or a key that is missing or has a value that is not supported: named, with what is.
    pub fn open(dir: &Path) -> Result<Config, HubError> {
        let path = dir.join(CONFIG_FILE);
        if !path.exists() {
            return Err(HubError::NoConfig { dir: dir.to_path_buf() });
        }
        Config::parse(&read_regular(&path)?, &path)
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As for [`Config::open`].
    pub fn parse(text: &[u8], path: &Path) -> Result<Config, HubError> {
        let json: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|e| HubError::Json { path: path.to_path_buf(), reason: e.to_string() })?;
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = Family::read(&Keys { path, model_type, map: &json, prefix: "" })?;
        Ok(Config { family, path: path.to_path_buf(), json })
    }

    /// A description that comes from no file, such as of a model trained here.
    pub fn new(family: Family) -> Config {
        Config { family, path: PathBuf::from(CONFIG_FILE), json: Map::new() }
    }

    /// Labels of the classifier; none if the family has none.
    pub fn labels(&self) -> Option<&Labels> {
        match &self.family {
            Family::Bert(c) => Some(&c.labels),
            Family::Vit(c) => Some(&c.labels),
            _ => None,
        }
    }

    /// Gives the classifier other labels, if the family has one.
    pub fn set_labels(&mut self, names: Vec<String>) {
        match &mut self.family {
            Family::Bert(c) => c.labels.names = names,
            Family::Vit(c) => c.labels.names = names,
            _ => {}
        }
    }

    /// The file, or where it would be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A key that has no typed form, as the file has it.
    pub fn other(&self, key: &str) -> Option<&Value> {
        self.json.get(key)
    }

    /// The task that the checkpoint was saved for, by its `architectures`; else the family's first.
    pub fn default_task(&self) -> Task {
        let classes = self.json.get("architectures").and_then(Value::as_array);
        let saved = classes.and_then(|c| c.first()).and_then(Value::as_str);
        let tasks = self.family.tasks();
        tasks
            .iter()
            .find(|(_, class)| Some(*class) == saved)
            .or(tasks.first())
            .map_or(Task::CausalLm, |(t, _)| *t)
    }

    /// Checks that the family does a task, and that its labels fit it.
    ///
    /// # Errors
    /// The tasks that it does; a `problem_type` other than one label out of several.
    pub fn check_task(&self, task: Task) -> Result<(), HubError> {
        if !self.family.tasks().iter().any(|(t, _)| *t == task) {
            let supported: Vec<&str> = self.family.tasks().iter().map(|(t, _)| t.name()).collect();
            return Err(HubError::Task {
                path: self.path.clone(),
                model_type: self.family.model_type(),
                task: task.name(),
                supported: supported.join(", "),
            });
        }
        let keys =
            Keys { path: &self.path, model_type: self.family.model_type(), map: &self.json, prefix: "" };
        match &self.family {
            // the loss of tags is that of one label out of several, whatever `problem_type` says
            Family::Bert(c) if task == Task::Classify => c.labels.check(&keys),
            Family::Vit(c) => c.labels.check(&keys),
            _ => Ok(()),
        }
    }

    /// The file's content: the keys that were read, with what the typed form says now, and the class and number type
    /// that `transformers` should load it with.
    pub fn to_json(&self, task: Task, dtype: StoredType) -> String {
        let mut map = self.json.clone();
        map.insert("model_type".into(), self.family.model_type().into());
        self.family.write(&mut map);
        // a file's own are as they were, for they do not change
        if let Some((_, tokens)) = self.family.tokens().filter(|_| self.json.is_empty()) {
            tokens.write(&mut map);
        }
        if let Some((_, class)) = self.family.tasks().iter().find(|(t, _)| *t == task) {
            map.insert("architectures".into(), Value::from(vec![*class]));
        }
        if let Some(name) = dtype.torch_name() {
            // the key's older name is kept where it is used
            let key = if map.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
            map.insert(key.into(), name.into());
        }
        let mut text = format!("{:#}", Value::Object(map));
        text.push('\n');
        text
    }
}
