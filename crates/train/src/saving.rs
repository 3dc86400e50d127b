//! Between an executor's states and checkpoints: who writes what, and the order of writing that ranks agree on.

use std::path::{Path, PathBuf};

use comm::Communicator;
use models::Decoder;
use runtime::Executor;
use serde_json::{Value, json};

use crate::checkpoint::{self, Checkpoint, DType, LocalTensor, Manifest};
use crate::config::Config;
use crate::error::TrainError;
use crate::loss_scale::LossScale;

/// Key of the configuration in a manifest.
const CONFIG: &str = "config";
/// Key of the tokenizer's file in a manifest.
const TOKENIZER: &str = "tokenizer";
/// Key of the `config.json` in a manifest, if the model came from a Hugging Face directory.
const DESCRIPTION: &str = "config.json";
/// Key of the loss scale in a manifest.
const LOSS_SCALE: &str = "loss_scale";

/// What a checkpoint says beside its tensors.
pub(crate) struct Description<'a> {
    pub config: &'a Config,
    pub model: &'a Value,
    pub tokenizer: Option<&'a data::Tokenizer>,
    pub layout: String,
    pub loss_scale: Option<LossScale>,
}

/// A decoder as a checkpoint describes it.
pub(crate) fn model(decoder: &Decoder) -> Value {
    let mut model = json!({
        "family": format!("{:?}", decoder.family).to_lowercase(),
        "num_layers": decoder.num_layers,
        "embed": decoder.embed,
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "mlp": decoder.mlp,
        "vocab_size": decoder.vocab_size,
        "max_positions": decoder.max_positions,
        "tied": decoder.tied,
        "rope_theta": decoder.rope_theta,
        "norm_eps": decoder.norm_eps,
    });
    if decoder.variant != models::Variant::default() {
        model["variant"] = format!("{:?}", decoder.variant).into();
    }
    model
}

fn dtype(dtype: memory::DType) -> DType {
    match dtype {
        memory::DType::F64 => DType::F64,
        memory::DType::F32 => DType::F32,
        memory::DType::I32 => DType::I32,
        memory::DType::BF16 | memory::DType::F16 => unreachable!("states are wide"),
    }
}

/// Saves all ranks' states; every rank calls it. Returns the checkpoint's directory.
///
/// # Errors
/// A full disk or a missing peer; the previous checkpoint is then untouched. The partial one is ignored by every reader and
/// removed by the next save, or here if this rank's own file was refused.
pub(crate) fn save(
    executor: &Executor,
    checkpoints: &Path,
    step: u64,
    data_position: u64,
    about: &Description<'_>,
) -> Result<PathBuf, TrainError> {
    let result = write(executor, checkpoints, step, data_position, about);
    if result.is_err() {
        executor
            .world()
            .abort_handle()
            .abort(&format!("rank {} could not save step {step}", executor.rank()));
        // A full disk wants its room back. Where a peer is missing, others may still be writing: a directory that vanished
        // would be their error then, instead of the peer.
        if matches!(result, Err(TrainError::Checkpoint(_))) {
            let _ = checkpoint::abandon(checkpoints, step);
        }
    }
    result
}

fn write(
    executor: &Executor,
    checkpoints: &Path,
    step: u64,
    data_position: u64,
    about: &Description<'_>,
) -> Result<PathBuf, TrainError> {
    let barrier = |world: &dyn Communicator| world.barrier().map_err(runtime::RuntimeError::from);
    let world = executor.world();
    if world.rank() == 0 {
        checkpoint::begin(checkpoints, step)?;
    }
    barrier(world)?;
    let partial = checkpoint::partial_dir(checkpoints, step);
    executor.with_states(|states| {
        let owned: Vec<LocalTensor<'_>> = states
            .iter()
            .filter(|s| s.is_first_holder)
            .map(|s| LocalTensor { name: s.name, tile: s.tile.clone(), data: s.bytes, dtype: dtype(s.dtype) })
            .collect();
        checkpoint::write_shard(&partial, world.rank(), &owned)
    })??;
    barrier(world)?;
    if world.rank() == 0 {
        let mut manifest = Manifest::new(about.model.clone(), step);
        manifest.tokenizer_hash = about.tokenizer.map(|tokenizer| tokenizer.hash().to_string());
        manifest.data_position = data_position;
        manifest.seed = about.config.train.seed;
        manifest.layout = about.layout.clone();
        manifest.extra.insert(CONFIG.to_owned(), about.config.to_toml());
        if let Some(tokenizer) = about.tokenizer {
            manifest.extra.insert(TOKENIZER.to_owned(), tokenizer.json().to_owned());
        }
        if let Some(described) = &about.config.model.described {
            manifest.extra.insert(DESCRIPTION.to_owned(), described.clone());
        }
        if let Some(loss_scale) = &about.loss_scale {
            manifest.extra.insert(LOSS_SCALE.to_owned(), json!(loss_scale).to_string());
        }
        checkpoint::commit(checkpoints, world.world_size(), manifest, about.config.train.keep_checkpoints)?;
    }
    barrier(world)?;
    Ok(checkpoint::step_dir(checkpoints, step))
}

/// Fills an executor's states from a checkpoint of any layout.
///
/// # Errors
/// Tensors that are missing or of another shape or type.
pub(crate) fn load(executor: &mut Executor, from: &Checkpoint) -> Result<(), TrainError> {
    executor.fill_states(|name, tile, kind, bytes| {
        bytes.fill(0);
        from.read(name, tile, dtype(kind), bytes).map_err(TrainError::from)
    })
}

/// The loss scale that a checkpoint carries; none if it was trained in another precision.
///
/// # Errors
/// If it is not one.
pub(crate) fn loss_scale(from: &Checkpoint) -> Result<Option<LossScale>, TrainError> {
    let carried = from.manifest().extra.get(LOSS_SCALE).map(|text| serde_json::from_str(text));
    carried.transpose().map_err(|e| TrainError::File {
        path: from.dir().display().to_string(),
        problem: format!("its {LOSS_SCALE} is not one ({e}); the checkpoint was changed by hand"),
    })
}

/// The configuration and the tokenizer that a checkpoint of a model of texts carries.
///
/// # Errors
/// If it carries none, as one made by hand may.
pub(crate) fn carried(from: &Checkpoint) -> Result<(Config, data::Tokenizer), TrainError> {
    match carried_any(from)? {
        (config, Some(tokenizer)) => Ok((config, tokenizer)),
        (_, None) => Err(lacks(from, TOKENIZER)),
    }
}

/// The same of any model; those of images have no tokenizer.
///
/// # Errors
/// If it carries no configuration.
pub(crate) fn carried_any(from: &Checkpoint) -> Result<(Config, Option<data::Tokenizer>), TrainError> {
    let extra = &from.manifest().extra;
    let text = extra.get(CONFIG).ok_or_else(|| lacks(from, CONFIG))?;
    let mut config = Config::from_bytes(&from.dir().join("config.toml"), text.as_bytes(), &[], None)?;
    config.model.described = extra.get(DESCRIPTION).cloned();
    let parse = |json: &String| data::Tokenizer::parse(json.clone(), from.dir());
    Ok((config, extra.get(TOKENIZER).map(parse).transpose()?))
}

fn lacks(from: &Checkpoint, key: &str) -> TrainError {
    TrainError::File {
        path: from.dir().display().to_string(),
        problem: format!("the checkpoint carries no {key}; use one that `phalanx train` wrote"),
    }
}
