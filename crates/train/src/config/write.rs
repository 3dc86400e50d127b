//! A configuration as TOML, every key written out. Reading is in `load`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::{Config, Family, Task};

impl Config {
    /// This configuration, [resolved](Config::resolved), as TOML that [`Config::load`] reads back to the
    /// same values, to be written beside a run. Paths are absolute; the name is the file's to keep.
    pub fn to_toml(&self) -> String {
        let config = self.resolved();
        let (model, data, parallel, train) = (&config.model, &config.data, &config.parallel, &config.train);
        let mut text = Text(String::new());
        text.key("task", string(config.task.name()));
        text.table("model");
        match &model.from {
            Some(from) => text.key("from", path(from)),
            None => {
                text.key("family", string(model.family.name()));
                text.key("num_layers", model.num_layers);
                if model.family == Family::T5 {
                    text.optional("num_decoder_layers", model.num_decoder_layers);
                }
                text.key("embed", model.embed);
                text.key("num_heads", model.num_heads);
                text.optional("num_kv_heads", model.num_kv_heads);
                text.optional("head_dim", model.head_dim);
                text.optional("mlp", model.mlp);
                text.optional("vocab_size", model.vocab_size);
                text.optional("max_positions", model.max_positions);
                text.optional("num_labels", model.num_labels);
                if model.family == Family::Vit {
                    text.key("image_size", model.image_size);
                    text.key("patch_size", model.patch_size);
                    text.key("num_channels", model.num_channels);
                }
                text.key("tied", model.tied);
                text.key("rope_theta", float(model.rope_theta));
                text.key("norm_eps", float(model.norm_eps));
            }
        }
        text.optional("dropout", model.dropout.map(float));
        text.table("data");
        text.paths("text", &data.text);
        if config.task != Task::CausalLm || !data.train.is_empty() {
            text.paths("train", &data.train);
            text.paths("heldout", &data.heldout);
            text.optional("format", data.format.map(|format| string(format.name())));
            text.optional("text_column", data.text_column.as_deref().map(string));
            text.optional("pair_column", data.pair_column.as_deref().map(string));
            text.optional("label_column", data.label_column.as_deref().map(string));
            text.key("source_column", string(&data.source_column));
            text.key("target_column", string(&data.target_column));
            text.key("image_column", string(&data.image_column));
            text.paths("images", &data.images);
            text.paths("labels", &data.labels);
            text.paths("heldout_images", &data.heldout_images);
            text.paths("heldout_labels", &data.heldout_labels);
            text.key("image_mean", float(data.image_mean));
            text.key("image_std", float(data.image_std));
            text.key("sampler", string(data.sampler.name()));
            let weights: Vec<String> =
                data.class_weights.iter().map(|(l, w)| format!("{} = {}", string(l), float(*w))).collect();
            text.key("class_weights", format!("{{ {} }}", weights.join(", ")));
            text.key("mask_probability", float(data.mask_probability));
            text.key("token_dropout", float(data.token_dropout));
            text.key("span_corruption", data.span_corruption);
            text.optional("target_length", data.target_length);
        }
        text.optional("tokenizer", data.tokenizer.as_deref().map(path));
        text.optional("tokenizer_vocab", data.tokenizer_vocab);
        text.key("tokenizer_kind", string(data.tokenizer_kind.name()));
        text.key("sequence_length", data.sequence_length);
        let lengths: Vec<String> = data.length_buckets.iter().map(usize::to_string).collect();
        text.key("length_buckets", format!("[{}]", lengths.join(", ")));
        text.key("validation", float(data.validation));
        text.key("packing", data.packing);
        text.table("parallel");
        let axes = parallel.mesh.axes().map(|(axis, size)| format!("{axis} = {size}"));
        text.key("mesh", format!("{{ {} }}", axes.join(", ")));
        text.key("sequence", parallel.sequence);
        text.key("context", string(parallel.context.name()));
        text.key("zero", parallel.zero);
        text.key("schedule", string(&parallel.schedule));
        text.key("chunks", parallel.chunks);
        text.key("num_microbatches", parallel.num_microbatches);
        text.key("bucket_bytes", parallel.bucket_bytes);
        text.key("post_validation", parallel.post_validation);
        text.key("logits_rows", parallel.logits_rows);
        let recompute: Vec<String> = parallel.recompute_names().into_iter().map(string).collect();
        match &recompute[..] {
            [one] => text.key("recompute", one),
            kinds => text.key("recompute", format!("[{}]", kinds.join(", "))),
        }
        text.key("recompute_layers", parallel.recompute_layers);
        text.key("threads_per_rank", parallel.threads_per_rank);
        text.key("instruction_set", string(parallel.instruction_set.name()));
        text.key("exact", parallel.exact);
        text.key("deadline_seconds", float(parallel.deadline_seconds));
        text.table("train");
        text.key("steps", train.steps);
        text.key("batch", train.batch);
        text.key("precision", string(train.precision.name()));
        text.key("optimizer", string(train.optimizer.name()));
        text.key("lr", float(train.lr));
        text.key("lr_schedule", string(train.lr_schedule.name()));
        text.key("warmup_steps", train.warmup_steps);
        text.key("min_lr", float(train.min_lr));
        text.key("betas", format!("[{}, {}]", float(train.betas[0]), float(train.betas[1])));
        text.key("momentum", float(train.momentum));
        text.key("nesterov", train.nesterov);
        text.key("eps", float(train.eps));
        text.key("weight_decay", float(train.weight_decay));
        text.key("clip_norm", float(train.clip_norm));
        text.key("similarity_scale", float(train.similarity_scale));
        text.key("seed", train.seed);
        text.key("eval_every", train.eval_every);
        text.key("checkpoint_every", train.checkpoint_every);
        text.key("keep_checkpoints", train.keep_checkpoints);
        text.0
    }
}

struct Text(String);

impl Text {
    fn table(&mut self, name: &str) {
        let blank = if self.0.is_empty() { "" } else { "\n" };
        writeln!(self.0, "{blank}[{name}]").ok();
    }

    fn key(&mut self, key: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{key} = {value}").ok();
    }

    fn paths(&mut self, key: &str, paths: &[PathBuf]) {
        let paths: Vec<String> = paths.iter().map(|file| path(file)).collect();
        self.key(key, format!("[{}]", paths.join(", ")));
    }

    fn optional(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }
}

/// Debug's form reads back bit-equal and always has a point or an exponent.
fn float(number: f64) -> String {
    format!("{number:?}")
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

/// Paths of a loaded configuration are UTF-8: `load` refuses others.
fn path(path: &Path) -> String {
    string(&path.to_string_lossy())
}
