//! A run's configuration: the task, and the tables `model`, `data`, `parallel` and `train`, read from a TOML file and
//! the command line, checked as far as the text alone allows. What the values do, files named in it
//! and the environment are known elsewhere.
//!
//! ```no_run
//! # use train::config::Config;
//! # fn main() -> Result<(), train::config::ConfigError> {
//! let sets = ["train.steps=10".to_string()];
//! let config = Config::load("examples/tiny.toml".as_ref(), &sets, Some("dp=2,tp=2"))?;
//! println!("{} on {} ranks", config.name, config.parallel.mesh.world_size());
//! # Ok(())
//! # }
//! ```

mod check;
mod data;
mod error;
mod keys;
mod layout;
mod load;
mod model;
mod names;
mod parallel;
mod source;
mod task;
mod train;
mod value;
mod write;

pub use data::{Data, Sampling};
pub use error::ConfigError;
pub use layout::{parse_layout, parse_mesh};
pub use model::{Family, Model};
pub use names::Name;
pub use parallel::{Context, InstructionSet, MeshSizes, Parallel};
pub use source::Source;
pub use task::Task;
pub use train::{LrSchedule, Optimizer, Precision, Train};

/// A checked configuration. `None` stands for a default that needs more than the text to resolve.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The configuration file's name without its extension; names the run's directory.
    pub name: String,
    /// What the model is trained to do.
    pub task: Task,
    /// What is trained.
    pub model: Model,
    /// On which data.
    pub data: Data,
    /// How it is split across ranks.
    pub parallel: Parallel,
    /// How it is trained.
    pub train: Train,
}

impl Config {
    /// This configuration with every default filled in that the text alone gives: `num_kv_heads`,
    /// `head_dim`, `mlp`, `max_positions` and `dropout`. `vocab_size` stays `None` where the tokenizer decides it.
    pub fn resolved(&self) -> Config {
        let mut config = self.clone();
        if self.model.from.is_none() {
            config.model.num_kv_heads = Some(self.model.resolved_num_kv_heads());
            config.model.head_dim = Some(self.model.resolved_head_dim());
            config.model.mlp = Some(self.model.resolved_mlp());
            config.model.max_positions = Some(self.resolved_max_positions());
            config.model.dropout = Some(self.model.dropout.unwrap_or(0.0));
        }
        config
    }

    /// Sequences that a model reads in a step: two for each pair of texts that is embedded.
    pub fn sequences_per_step(&self) -> usize {
        self.sequences_of(self.train.batch)
    }

    /// Sequences of a number of examples.
    pub(crate) fn sequences_of(&self, num_examples: usize) -> usize {
        if self.task == Task::Embed { num_examples.saturating_mul(2) } else { num_examples }
    }

    /// What pairs of texts learn: their scores if they have some, else to find each other.
    pub(crate) fn pair_loss(&self) -> models::PairLoss {
        match self.data.label_column {
            Some(_) => models::PairLoss::Cosine,
            None => models::PairLoss::Ranking { scale: self.train.similarity_scale },
        }
    }

    /// `model.max_positions`, by default `data.sequence_length`.
    pub fn resolved_max_positions(&self) -> usize {
        self.model.max_positions.unwrap_or(self.data.sequence_length)
    }
}

#[cfg(test)]
mod tests;
