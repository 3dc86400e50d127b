//! Checkpoints as Hugging Face directories: a run's, in the names and shapes that `transformers` reads, or a Hugging
//! Face directory's own, written anew.

use std::path::{Path, PathBuf};

use hub::{Config as Description, Directory, Export, Family, HubError, Parameter, StoredType, Table};
use models::Decoder;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, DType};
use crate::error::TrainError;
use crate::{assemble, pretrained, saving};

/// Largest file of weights, as `transformers` splits them.
const MAX_SHARD_BYTES: u64 = 50_000_000_000;
/// What `transformers` calls the tokenizer's file.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// How to write.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// Type of the stored elements: `f64`, `f32`, `bf16` or `f16`. Without it, that of a run's master weights, or of a
    /// directory's first tensor.
    pub dtype: Option<String>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportReport {
    /// Where.
    pub dir: PathBuf,
    /// Family.
    pub model_type: String,
    /// Task that it is saved for.
    pub task: String,
    /// Tensors, without those carried along.
    pub num_tensors: usize,
    /// Type of their elements.
    pub dtype: String,
}

/// Writes the model of `from` (a run, one of its checkpoints, or a Hugging Face directory) as safetensors with
/// `config.json` and tokenizer into the directory `out`.
///
/// # Errors
/// Neither a checkpoint nor a directory of a model; sizes that the family's `config.json` cannot say; a place that
/// cannot be written.
pub fn export(from: &Path, out: &Path, options: &ExportOptions) -> Result<ExportReport, TrainError> {
    let dtype = options.dtype.as_deref().map(stored_type).transpose()?;
    if same_dir(from, out) {
        return Err(TrainError::File {
            path: out.display().to_string(),
            problem: "--out is the directory that is exported; name another one".to_owned(),
        });
    }
    match from.join("config.json").is_file() {
        true => export_directory(from, out, dtype),
        false => export_run(from, out, dtype),
    }
}

fn stored_type(name: &str) -> Result<StoredType, TrainError> {
    match name {
        "f64" => Ok(StoredType::F64),
        "f32" => Ok(StoredType::F32),
        "bf16" => Ok(StoredType::Bf16),
        "f16" => Ok(StoredType::F16),
        _ => Err(TrainError::Unsupported {
            key: "--dtype",
            value: name.to_owned(),
            remedy: "stored types are f64, f32, bf16 and f16",
        }),
    }
}

fn same_dir(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn export_directory(from: &Path, out: &Path, dtype: Option<StoredType>) -> Result<ExportReport, TrainError> {
    let directory = Directory::open(from, None)?;
    let bound = directory.bind()?;
    let first = directory.weights().tensors().find(|t| t.dtype.is_real()).map(|t| t.dtype);
    let dtype = dtype.or(first).unwrap_or(StoredType::F32);
    if let Some(name) = bound.report().new.first() {
        return Err(TrainError::File {
            path: from.display().to_string(),
            problem: format!("has no `{name}`, so it is no whole model for {}", directory.task()),
        });
    }
    let export = Export {
        config: directory.config(),
        task: directory.task(),
        table: directory.table(),
        dtype,
        max_shard_bytes: MAX_SHARD_BYTES,
        carry: Some((directory.weights(), &bound.report().extra)),
        companions: Some(from),
    };
    let read = |parameter: &Parameter| {
        let values = bound.read_all::<f64>(&parameter.name)?;
        values.ok_or_else(|| HubError::NoParameter { name: parameter.name.clone() })
    };
    export.write(out, read)?;
    Ok(report(&export, out))
}

fn export_run(from: &Path, out: &Path, dtype: Option<StoredType>) -> Result<ExportReport, TrainError> {
    let checkpoint = Checkpoint::open_verified(from)?;
    let (config, tokenizer) = saving::carried_any(&checkpoint)?;
    let built = assemble::model(&config, tokenizer.as_ref().map(data::Tokenizer::vocab_size))?;
    checkpoint.check_model(&built.saved)?;
    let described = match built.description {
        Some(description) => Some(description),
        None => pretrained::describe(&config)?,
    };
    let description = match (described, &tokenizer) {
        (Some(description), _) => description,
        (None, Some(tokenizer)) => {
            describe(&assemble::decoder(&config, Some(tokenizer.vocab_size()))?, tokenizer)?
        }
        (None, None) => unreachable!("a model of images is described"),
    };
    let task = config.task;
    let table = Table::new(&description, task)?;
    let saved = table.parameters().first().map(|p| checkpoint.tensor(&p.name)).transpose()?;
    let master = if saved.is_some_and(|t| t.dtype == DType::F64) { StoredType::F64 } else { StoredType::F32 };
    let source = config.model.from.as_deref().filter(|dir| dir.is_dir());
    let export = Export {
        config: &description,
        task,
        table: &table,
        dtype: dtype.unwrap_or(master),
        max_shard_bytes: MAX_SHARD_BYTES,
        carry: None,
        companions: source,
    };
    export.write(out, |parameter: &Parameter| whole(&checkpoint, &parameter.name))?;
    if let Some(tokenizer) = tokenizer {
        let path = out.join(TOKENIZER_FILE);
        std::fs::write(&path, tokenizer.json()).map_err(|source| HubError::Write { path, source })?;
    }
    Ok(report(&export, out))
}

/// All elements of a saved tensor. (f32 in f64 is exact, so what is written as f32 has the saved bits.)
fn whole(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f64>, TrainError> {
    let bytes = checkpoint.read_whole(name)?;
    Ok(match checkpoint.tensor(name)?.dtype {
        DType::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
    })
}

fn report(export: &Export<'_>, out: &Path) -> ExportReport {
    ExportReport {
        dir: out.to_path_buf(),
        model_type: export.config.family.model_type().to_owned(),
        task: export.task.to_string(),
        num_tensors: export.table.tensors().len(),
        dtype: export.dtype.to_string(),
    }
}

/// The description of a model that comes from no directory.
fn describe(decoder: &Decoder, tokenizer: &data::Tokenizer) -> Result<Description, TrainError> {
    let tokens = hub::TokenIds {
        bos: tokenizer.start_id(),
        eos: tokenizer.end_id().into_iter().collect(),
        pad: tokenizer.pad_id(),
    };
    let family = match decoder.family {
        models::Family::Gpt2 => {
            if decoder.head_dim * decoder.num_heads != decoder.embed {
                return Err(TrainError::Unsupported {
                    key: "model.head_dim",
                    value: decoder.head_dim.to_string(),
                    remedy: "config.json of GPT-2 has heads of width embed / num_heads alone, so this cannot be exported",
                });
            }
            Family::Gpt2(hub::Gpt2 {
                vocab_size: decoder.vocab_size,
                max_positions: decoder.max_positions,
                embed: decoder.embed,
                num_layers: decoder.num_layers,
                num_heads: decoder.num_heads,
                mlp: decoder.mlp,
                activation: hub::Activation::GeluTanh,
                scale_attention: true,
                scale_by_layer: false,
                norm_eps: decoder.norm_eps,
                embedding_dropout: decoder.dropout.embedding,
                attention_dropout: decoder.dropout.attention,
                residual_dropout: decoder.dropout.residual,
                tied: decoder.tied,
                tokens,
            })
        }
        models::Family::Llama => Family::Llama(hub::Llama {
            vocab_size: decoder.vocab_size,
            max_positions: decoder.max_positions,
            embed: decoder.embed,
            num_layers: decoder.num_layers,
            num_heads: decoder.num_heads,
            num_kv_heads: decoder.num_kv_heads,
            head_dim: decoder.head_dim,
            mlp: decoder.mlp,
            activation: hub::Activation::Silu,
            norm_eps: decoder.norm_eps,
            rope: hub::Rope { theta: decoder.rope_theta, scaling: hub::RopeScaling::None },
            attention_bias: false,
            mlp_bias: false,
            attention_dropout: decoder.dropout.attention,
            tied: decoder.tied,
            tokens,
        }),
    };
    Ok(Description::new(family))
}
