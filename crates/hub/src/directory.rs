//! A Hugging Face directory as one thing: description, weights, task and names, consistent with each other.

use std::path::{Path, PathBuf};

use crate::config::ends;
use crate::{Bound, Config, Family, HubError, Table, Task, Weights};

/// Name of the tokenizer's file.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// An opened directory. Parameters are not read yet.
#[derive(Debug)]
pub struct Directory {
    dir: PathBuf,
    config: Config,
    weights: Weights,
    task: Task,
    table: Table,
}

impl Directory {
    /// Opens a directory for a task, by default the one that it was saved for.
    ///
    /// Whether embedding and head share one table is decided as `transformers` does: by `tie_word_embeddings`, unless
    /// the files hold both and they differ. (A T5 without a head of its own shares, whatever its file says.)
    ///
    /// # Errors
    /// Whatever is wrong with `config.json` or the weights, apart from missing tensors: see [`Directory::bind`].
    pub fn open(dir: &Path, task: Option<Task>) -> Result<Directory, HubError> {
        let mut config = Config::open(dir)?;
        let task = task.unwrap_or_else(|| config.default_task());
        config.check_task(task)?;
        let weights = Weights::open(dir)?;
        resolve_tied(&mut config.family, &weights);
        let table = Table::new(&config, task)?;
        Ok(Directory { dir: dir.to_path_buf(), config, weights, task, table })
    }

    /// The same model with a classifier for other labels, which starts anew.
    ///
    /// # Errors
    /// A family or a task without labels, or a single label.
    pub fn relabelled(mut self, names: Vec<String>) -> Result<Directory, HubError> {
        self.config.set_labels(names);
        self.table = Table::new(&self.config, self.task)?;
        self.table.renew_classifier();
        Ok(self)
    }

    /// Finds every parameter.
    ///
    /// # Errors
    /// As for [`Table::bind`].
    pub fn bind(&self) -> Result<Bound<'_>, HubError> {
        self.table.bind(&self.weights)
    }

    /// What the model is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the model is opened for.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Tokens of which each ends a text: those of `generation_config.json`, as `transformers` has it, else those of
    /// `config.json`.
    ///
    /// # Errors
    /// A `generation_config.json` that is damaged.
    pub fn ends(&self) -> Result<Vec<u32>, HubError> {
        let Some((vocab_size, tokens)) = self.config.family.tokens() else { return Ok(Vec::new()) };
        Ok(ends(&self.dir, vocab_size)?.unwrap_or_else(|| tokens.eos.clone()))
    }

    /// The names of its parameters.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Its files.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Its `tokenizer.json`, if it has one.
    pub fn tokenizer(&self) -> Option<PathBuf> {
        Some(self.dir.join(TOKENIZER_FILE)).filter(|path| path.is_file())
    }
}

fn resolve_tied(family: &mut Family, weights: &Weights) {
    let (tables, head): (&[&str], &str) = match family {
        Family::Gpt2(_) => (&["transformer.wte.weight", "wte.weight"], "lm_head.weight"),
        Family::Llama(_) => (&["model.embed_tokens.weight", "embed_tokens.weight"], "lm_head.weight"),
        Family::Bert(_) => (
            &["bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"],
            "cls.predictions.decoder.weight",
        ),
        Family::T5(_) => (&["shared.weight"], "lm_head.weight"),
        Family::Vit(_) => return,
    };
    let always_ties = matches!(family, Family::T5(_));
    let Some(tied) = family.tied_mut() else { return };
    let table = tables.iter().find_map(|name| weights.get(name));
    match (table, weights.get(head)) {
        (Some(table), Some(head)) => {
            let same = table.dtype == head.dtype && table.shape == head.shape && table.bytes == head.bytes;
            *tied = (*tied || always_ties) && same;
        }
        (_, None) if always_ties => *tied = true,
        _ => {}
    }
}
