//! The names of all tables and keys, and what to suggest for a wrong one. What a key holds is in the
//! table's own file; a test sees that both agree.

use super::names::nearest;
use super::source::shortened;
use super::value::Value;
use super::{Config, ConfigError, Source};

/// The one key that stands above all tables.
pub(super) const TASK: &str = "task";

/// Every table with its keys.
pub(super) const TABLES: [(&str, &[&str]); 4] = [
    (
        "model",
        &[
            "from",
            "family",
            "num_layers",
            "num_decoder_layers",
            "embed",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "mlp",
            "vocab_size",
            "max_positions",
            "num_labels",
            "image_size",
            "patch_size",
            "num_channels",
            "tied",
            "dropout",
            "rope_theta",
            "norm_eps",
        ],
    ),
    (
        "data",
        &[
            "text",
            "train",
            "heldout",
            "format",
            "text_column",
            "pair_column",
            "label_column",
            "source_column",
            "target_column",
            "image_column",
            "images",
            "labels",
            "heldout_images",
            "heldout_labels",
            "image_mean",
            "image_std",
            "sampler",
            "class_weights",
            "mask_probability",
            "token_dropout",
            "span_corruption",
            "target_length",
            "tokenizer",
            "tokenizer_vocab",
            "tokenizer_kind",
            "sequence_length",
            "length_buckets",
            "validation",
            "packing",
        ],
    ),
    (
        "parallel",
        &[
            "mesh",
            "sequence",
            "context",
            "zero",
            "schedule",
            "chunks",
            "num_microbatches",
            "bucket_bytes",
            "post_validation",
            "logits_rows",
            "recompute",
            "recompute_layers",
            "threads_per_rank",
            "instruction_set",
            "exact",
            "deadline_seconds",
        ],
    ),
    (
        "train",
        &[
            "steps",
            "batch",
            "precision",
            "optimizer",
            "lr",
            "lr_schedule",
            "warmup_steps",
            "min_lr",
            "betas",
            "momentum",
            "nesterov",
            "eps",
            "weight_decay",
            "clip_norm",
            "similarity_scale",
            "seed",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
        ],
    ),
];

impl Config {
    /// Sets `table.key` to a value; `value.key` is the full name.
    pub(super) fn set(&mut self, table: &str, key: &str, value: &Value) -> Result<(), ConfigError> {
        match table {
            "" => {
                self.task = value.name()?;
                Ok(())
            }
            "model" => set_in(table, key, value, |key, value| self.model.set(key, value)),
            "data" => set_in(table, key, value, |key, value| self.data.set(key, value)),
            "parallel" => set_in(table, key, value, |key, value| self.parallel.set(key, value)),
            "train" => set_in(table, key, value, |key, value| self.train.set(key, value)),
            _ => Err(unknown_table(table, &value.place)),
        }
    }
}

/// Sets a key by its table's own `set`; an error with a suggestion if it knows none of that name.
pub(super) fn set_in(
    table: &str,
    key: &str,
    value: &Value,
    set: impl FnOnce(&str, &Value) -> Result<bool, ConfigError>,
) -> Result<(), ConfigError> {
    if set(key, value)? { Ok(()) } else { Err(unknown_key(table, key, &value.place)) }
}

/// `table` is no table; perhaps it is a key that lacks its table.
pub(super) fn unknown_table(table: &str, place: &Source) -> ConfigError {
    let home = TABLES.iter().find(|(_, keys)| keys.contains(&table));
    let nearest = match home {
        Some((home, _)) => format!("{home}.{table}"),
        None => nearest(table, TABLES.map(|(table, _)| table).into_iter().chain([TASK])),
    };
    ConfigError::UnknownTable { table: shortened(table), place: place.clone(), nearest }
}

/// `key` is not in `table`; perhaps it is in another, or misspelt.
fn unknown_key(table: &str, key: &str, place: &Source) -> ConfigError {
    let home = TABLES.iter().find(|(_, keys)| keys.contains(&key));
    let here = TABLES.iter().find(|(name, _)| *name == table).map_or(&[][..], |(_, keys)| keys);
    let nearest = match home {
        Some((home, _)) => format!("{home}.{key}"),
        None => format!("{table}.{}", nearest(key, here.iter().copied())),
    };
    ConfigError::UnknownKey { key: format!("{table}.{}", shortened(key)), place: place.clone(), nearest }
}
