//! What keys mean together: multiples, limits and exclusions that the text alone shows. Legality of a
//! layout for a model is the planner's.

use std::collections::BTreeMap;

use ::data::TokenizerKind;

use super::{Config, ConfigError, Family, Optimizer, Sampling, Source, Task};

/// Where each key was written, for messages.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: BTreeMap<String, Source>,
}

impl Places {
    /// Notes where a key was written; the last place counts.
    pub fn note(&mut self, key: &str, place: Source) {
        let key = if key.starts_with("parallel.mesh.") { "parallel.mesh" } else { key };
        self.places.insert(key.to_string(), place);
    }

    /// Notes every key that a `--mesh` sets.
    pub fn note_layout(&mut self, layout: &str) {
        let place = Source::Mesh(layout.into());
        self.note("parallel.mesh", place.clone());
        for (key, _) in layout.split(';').skip(1).filter_map(|part| part.split_once('=')) {
            self.note(&format!("parallel.{}", key.trim()), place.clone());
        }
    }

    /// Whether a key was written anywhere.
    pub fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    fn of(&self, key: &str) -> Source {
        self.places.get(key).cloned().unwrap_or(Source::Default)
    }

    fn first(&self, keys: &[&'static str]) -> Option<(&'static str, Source)> {
        keys.iter().find_map(|key| Some((*key, self.places.get(*key)?.clone())))
    }
}

/// Each length has Programs of its own, of which a rank takes fewer than 256.
const MAX_LENGTH_BUCKETS: usize = 64;

/// What a Hugging Face directory's `config.json` says instead.
const SHAPE: [&str; 17] = [
    "model.family",
    "model.num_layers",
    "model.num_decoder_layers",
    "model.embed",
    "model.num_heads",
    "model.num_kv_heads",
    "model.head_dim",
    "model.mlp",
    "model.vocab_size",
    "model.max_positions",
    "model.num_labels",
    "model.image_size",
    "model.patch_size",
    "model.num_channels",
    "model.tied",
    "model.rope_theta",
    "model.norm_eps",
];

impl Config {
    /// Checks how keys go together, as [`Config::load`] has done already; for a configuration that was
    /// changed since.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_with(&Places::default())
    }

    pub(super) fn check_with(&self, places: &Places) -> Result<(), ConfigError> {
        match self.model.from {
            Some(_) => check_from(places)?,
            None => self.check_model(places)?,
        }
        self.check_data(places)?;
        self.check_parallel(places)?;
        self.check_train(places)
    }

    fn check_model(&self, places: &Places) -> Result<(), ConfigError> {
        let model = &self.model;
        if !model.family.tasks().contains(&self.task) {
            let supported: Vec<&str> = model.family.tasks().iter().map(|task| task.name()).collect();
            return Err(ConfigError::TaskOfFamily {
                task: self.task.name(),
                place: places.of("task"),
                family: model.family.name(),
                supported: supported.join(", "),
            });
        }
        let multiple = |key, value: usize, by, divisor: usize| {
            let (place, by_place) = (places.of(key), places.of(by));
            match value.is_multiple_of(divisor) {
                true => Ok(()),
                false => Err(ConfigError::NotDivisible { key, value, place, by, divisor, by_place }),
            }
        };
        if model.head_dim.is_none() {
            multiple("model.embed", model.embed, "model.num_heads", model.num_heads)?;
        }
        let num_kv_heads = model.resolved_num_kv_heads();
        multiple("model.num_heads", model.num_heads, "model.num_kv_heads", num_kv_heads)?;
        let out_of_range = |key: &str, value: usize, allowed: &str| {
            let (key, place) = (key.to_string(), places.of(key));
            Err(ConfigError::OutOfRange {
                key,
                value: value.to_string(),
                place,
                allowed: allowed.to_string(),
            })
        };
        match model.family {
            Family::Llama => {}
            _ if num_kv_heads != model.num_heads => {
                let allowed = "num_heads, since only llama has grouped heads; remove it";
                return out_of_range("model.num_kv_heads", num_kv_heads, allowed);
            }
            Family::Bert | Family::Vit if model.resolved_head_dim() * model.num_heads != model.embed => {
                let allowed = "embed / num_heads for this family; remove it";
                return out_of_range("model.head_dim", model.resolved_head_dim(), allowed);
            }
            Family::Vit if model.num_channels == 2 => {
                return out_of_range("model.num_channels", 2, "1 (grey) or 3 (colours)");
            }
            Family::Vit => {
                multiple("model.image_size", model.image_size, "model.patch_size", model.patch_size)?;
            }
            _ => {}
        }
        match model.family {
            Family::Llama if !model.resolved_head_dim().is_multiple_of(2) => {
                let allowed = "even, since rotary positions turn pairs";
                return out_of_range("model.head_dim", model.resolved_head_dim(), allowed);
            }
            _ => {}
        }
        let (positions, length) = (self.resolved_max_positions(), self.data.sequence_length);
        if model.family.has_position_table() && positions < length {
            return Err(ConfigError::TooLarge {
                key: "data.sequence_length",
                value: length.to_string(),
                place: places.of("data.sequence_length"),
                limit_name: "`model.max_positions`",
                limit: positions.to_string().into(),
                remedy: "shorten the sequences or add positions",
            });
        }
        let num_stages = self.parallel.mesh.pp.saturating_mul(self.parallel.chunks);
        let num_layers = match model.family {
            Family::T5 => model.num_layers.saturating_add(model.resolved_num_decoder_layers()),
            _ => model.num_layers,
        };
        if num_stages > num_layers {
            let (key, place) = places
                .first(&["parallel.chunks", "parallel.mesh"])
                .unwrap_or(("parallel.mesh", Source::Default));
            return Err(ConfigError::TooLarge {
                key,
                value: format!("{} x {} stages", self.parallel.mesh.pp, self.parallel.chunks),
                place,
                limit_name: "`model.num_layers`",
                limit: num_layers.to_string().into(),
                remedy: "use a smaller pp or fewer chunks, or add layers",
            });
        }
        Ok(())
    }

    fn check_data(&self, places: &Places) -> Result<(), ConfigError> {
        self.check_sampler(places)?;
        self.check_length_buckets(places)?;
        let unused = |key: &str, reason| {
            let (key, place) = (key.to_string(), places.of(key));
            Err(ConfigError::Conflict { key, place, other: "task", reason })
        };
        if self.data.pair_column.is_some() && !matches!(self.task, Task::Classify | Task::Embed) {
            return unused("data.pair_column", "only classify and embed read pairs of texts; remove it");
        }
        if self.data.tokenizer_kind != TokenizerKind::Bytes {
            let conflict = |other, reason| {
                let key = "data.tokenizer_kind".to_string();
                let place = places.of(&key);
                Err(ConfigError::Conflict { key, place, other, reason })
            };
            if self.data.tokenizer_vocab.is_none() {
                return conflict(
                    "data.tokenizer_vocab",
                    "no tokenizer is trained; set its size, or remove it",
                );
            }
            if self.task == Task::CausalLm && self.data.train.is_empty() {
                return conflict("data.text", "running text is read as bytes; remove it");
            }
        }
        if self.data.token_dropout > 0.0 && !matches!(self.task, Task::Classify | Task::Tag | Task::Embed) {
            return unused("data.token_dropout", "only classify, tag and embed drop tokens; remove it");
        }
        if self.data.tokenizer.is_some() && self.data.tokenizer_vocab.is_some() {
            let (key, place) = ("data.tokenizer_vocab".to_string(), places.of("data.tokenizer_vocab"));
            let reason = "one trains a tokenizer, the other reads one; remove one of them";
            return Err(ConfigError::Conflict { key, place, other: "data.tokenizer", reason });
        }
        if let (Some(vocab_size), Some(tokens)) = (self.model.vocab_size, self.data.tokenizer_vocab)
            && tokens > vocab_size
        {
            return Err(ConfigError::TooLarge {
                key: "data.tokenizer_vocab",
                value: tokens.to_string(),
                place: places.of("data.tokenizer_vocab"),
                limit_name: "`model.vocab_size`",
                limit: vocab_size.to_string().into(),
                remedy: "raise the model's or lower the tokenizer's",
            });
        }
        Ok(())
    }

    fn check_sampler(&self, places: &Places) -> Result<(), ConfigError> {
        let data = &self.data;
        let conflict = |key: &str, other, reason| {
            Err(ConfigError::Conflict { key: key.to_owned(), place: places.of(key), other, reason })
        };
        let by_class = matches!(data.sampler, Sampling::Balanced | Sampling::Weighted);
        if by_class && !matches!(self.task, Task::Classify | Task::ImageClassify) {
            return conflict(
                "data.sampler",
                "task",
                "only classify and image-classify have classes; remove it",
            );
        }
        if data.sampler == Sampling::Length && matches!(self.task, Task::ImageClassify) {
            return conflict("data.sampler", "task", "images have no lengths; remove it");
        }
        match (data.sampler == Sampling::Weighted, data.class_weights.is_empty()) {
            (true, true) => {
                let remedy = "say how often each class is seen, as { spam = 1, ham = 2 }";
                Err(ConfigError::Missing { key: "data.class_weights", remedy })
            }
            (false, false) => {
                conflict("data.class_weights", "data.sampler", "set the sampler to weighted, or remove them")
            }
            _ => Ok(()),
        }
    }

    fn check_length_buckets(&self, places: &Places) -> Result<(), ConfigError> {
        const KEY: &str = "data.length_buckets";
        let (lengths, parallel) = (&self.data.length_buckets, &self.parallel);
        let Some(shortest) = lengths.first() else { return Ok(()) };
        let conflict = |other, reason| {
            Err(ConfigError::Conflict { key: KEY.to_owned(), place: places.of(KEY), other, reason })
        };
        let refuse = |value: String, allowed: String| {
            Err(ConfigError::OutOfRange { key: KEY.to_owned(), value, place: places.of(KEY), allowed })
        };
        if self.task == Task::ImageClassify {
            return conflict("task", "images have no lengths; remove it");
        }
        if self.task == Task::CausalLm && self.data.train.is_empty() && self.data.packing {
            let reason = "packed sequences are all as long as data.sequence_length; remove it, or set \
                          data.packing = false";
            return conflict("data.packing", reason);
        }
        if lengths.len() > MAX_LENGTH_BUCKETS {
            return refuse(
                format!("a list of {}", lengths.len()),
                format!("of at most {MAX_LENGTH_BUCKETS} lengths"),
            );
        }
        if let Some(pair) = lengths.windows(2).find(|pair| pair[0] >= pair[1]) {
            return refuse(format!("[.., {}, {}, ..]", pair[0], pair[1]), "in ascending order".to_owned());
        }
        if let Some(length) = lengths.iter().find(|length| **length > self.data.sequence_length) {
            return Err(ConfigError::TooLarge {
                key: KEY,
                value: length.to_string(),
                place: places.of(KEY),
                limit_name: "`data.sequence_length`",
                limit: self.data.sequence_length.to_string().into(),
                remedy: "leave it out, or lengthen the sequences",
            });
        }
        let tp = if parallel.sequence { parallel.mesh.tp } else { 1 };
        let (axis, ranks) = if parallel.mesh.cp < tp { ("tp", tp) } else { ("cp", parallel.mesh.cp) };
        if *shortest < ranks {
            let allowed = format!("at least {ranks}, for each rank of {axis} has a part of a sequence");
            return refuse(shortest.to_string(), allowed);
        }
        Ok(())
    }

    fn check_parallel(&self, places: &Places) -> Result<(), ConfigError> {
        let parallel = &self.parallel;
        super::layout::check_world(&parallel.mesh, &places.of("parallel.mesh"))?;
        let pieces = parallel.mesh.dp.saturating_mul(parallel.num_microbatches);
        if pieces > self.train.batch {
            let keys = ["parallel.num_microbatches", "parallel.mesh"];
            let (_, place) = places.first(&keys).unwrap_or(("", Source::Default));
            return Err(ConfigError::TooLarge {
                key: "parallel.num_microbatches",
                value: format!("{} for each of dp = {}", parallel.num_microbatches, parallel.mesh.dp),
                place,
                limit_name: "`train.batch`",
                limit: self.train.batch.to_string().into(),
                remedy: "each microbatch needs a sequence: raise the batch or use fewer microbatches",
            });
        }
        if self.task == Task::Embed && parallel.num_microbatches > 1 {
            let key = "parallel.num_microbatches".to_string();
            let place = places.of(&key);
            let reason = "pairs are compared with all of the batch: use one microbatch and more ranks of dp";
            return Err(ConfigError::Conflict { key, place, other: "task", reason });
        }
        if parallel.recompute_layers > 0 && parallel.recompute == graph::Operations::None {
            let key = "parallel.recompute_layers".to_string();
            let place = places.of(&key);
            let reason = "in no layer is anything computed again: set parallel.recompute";
            return Err(ConfigError::Conflict { key, place, other: "parallel.recompute = none", reason });
        }
        let [pp, m, chunks] = [parallel.mesh.pp, parallel.num_microbatches, parallel.chunks];
        let fits = match parallel.read_schedule()? {
            Some(read) => read.check_fits(pp, m, chunks).and_then(|()| read.check().map(|_| ())),
            None => schedule::generate(&parallel.schedule, pp, m, chunks).map(|_| ()),
        };
        fits.map_err(|error| {
            let keys = ["parallel.chunks", "parallel.schedule", "parallel.num_microbatches", "parallel.mesh"];
            let (_, place) = places.first(&keys).unwrap_or(("", Source::Default));
            ConfigError::Schedule { place, error: Box::new(error) }
        })?;
        Ok(())
    }

    fn check_train(&self, places: &Places) -> Result<(), ConfigError> {
        let train = &self.train;
        if train.min_lr > train.lr {
            return Err(ConfigError::TooLarge {
                key: "train.min_lr",
                value: format!("{:?}", train.min_lr),
                place: places.of("train.min_lr"),
                limit_name: "`train.lr`",
                limit: format!("{:?}", train.lr).into(),
                remedy: "the learning rate falls to min_lr: lower it",
            });
        }
        if train.nesterov && (train.momentum == 0.0 || train.optimizer != Optimizer::Sgd) {
            let (key, place) = ("train.nesterov".to_string(), places.of("train.nesterov"));
            let (other, reason) = match train.optimizer {
                Optimizer::Sgd => ("train.momentum = 0", "set a momentum, or remove nesterov"),
                _ => ("train.optimizer", "only sgd has a Nesterov momentum; remove one of them"),
            };
            return Err(ConfigError::Conflict { key, place, other, reason });
        }
        Ok(())
    }
}

fn check_from(places: &Places) -> Result<(), ConfigError> {
    match places.first(&SHAPE) {
        Some((key, place)) => {
            let reason = "the directory's config.json gives it; remove one of them";
            Err(ConfigError::Conflict { key: key.to_string(), place, other: "model.from", reason })
        }
        None => Ok(()),
    }
}
