//! The table `parallel`: its keys, defaults and single-key ranges. Whether a layout is legal for a
//! model is the planner's to say.

use std::path::PathBuf;

use graph::{Class, Classes, Operations};

use super::layout::{axes_of_table, axes_of_text, axis_size};
use super::names::{named, nearest};
use super::source::shortened;
use super::value::{Raw, Value};
use super::{ConfigError, Source};

named! {
    /// How attention sees other ranks' tokens under context parallelism.
    Context {
        /// Keys and values are gathered; tokens in contiguous pieces.
        Gather = "gather",
        /// Tokens dealt out in turn, so that causal work is even.
        Striped = "striped",
    }
}

named! {
    /// Which instructions kernels may use.
    InstructionSet {
        /// The most that the machine has.
        Auto = "auto",
        /// What every machine has.
        Scalar = "scalar",
        /// AVX2 and FMA.
        Avx2 = "avx2",
        /// AVX-512.
        Avx512 = "avx512",
        /// AVX-512, and AMX's bf16 tiles.
        Amx = "amx",
    }
}

/// Ranks along each axis of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeshSizes {
    /// Data parallel.
    pub dp: usize,
    /// Context parallel.
    pub cp: usize,
    /// Tensor parallel.
    pub tp: usize,
    /// Pipeline parallel.
    pub pp: usize,
    /// Expert parallel.
    pub ep: usize,
}

impl Default for MeshSizes {
    fn default() -> MeshSizes {
        MeshSizes { dp: 1, cp: 1, tp: 1, pp: 1, ep: 1 }
    }
}

impl MeshSizes {
    /// The axes' names, in the order of the contract.
    pub const AXES: [&'static str; 5] = ["dp", "cp", "tp", "pp", "ep"];

    /// Every axis with its size.
    pub fn axes(&self) -> [(&'static str, usize); 5] {
        [("dp", self.dp), ("cp", self.cp), ("tp", self.tp), ("pp", self.pp), ("ep", self.ep)]
    }

    /// The product of all axes.
    pub fn world_size(&self) -> usize {
        self.axes().iter().fold(1, |product: usize, (_, size)| product.saturating_mul(*size))
    }

    pub(super) fn axis_mut(&mut self, axis: &str) -> Option<&mut usize> {
        Some(match axis {
            "dp" => &mut self.dp,
            "cp" => &mut self.cp,
            "tp" => &mut self.tp,
            "pp" => &mut self.pp,
            "ep" => &mut self.ep,
            _ => return None,
        })
    }
}

/// `dp=2,tp=2`: the axes above 1, or `dp=1`.
impl std::fmt::Display for MeshSizes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let split = self.axes().into_iter().filter(|(_, size)| *size != 1);
        let parts: Vec<String> = split.map(|(axis, size)| format!("{axis}={size}")).collect();
        out.write_str(if parts.is_empty() { "dp=1" } else { "" })?;
        out.write_str(&parts.join(","))
    }
}

/// How a model is split across ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Parallel {
    /// Ranks along each axis.
    pub mesh: MeshSizes,
    /// Whether the residual is split along the sequence over tp.
    pub sequence: bool,
    /// How attention sees other ranks' tokens under cp.
    pub context: Context,
    /// ZeRO stage, 0 to 3.
    pub zero: u8,
    /// The pipeline schedule: a name that `schedule` knows, or the path of a CSV file that has one.
    pub schedule: String,
    /// Stages per pipeline rank.
    pub chunks: usize,
    /// Microbatches of a step.
    pub num_microbatches: usize,
    /// Bytes of a bucket in which gradients are reduced while the backward goes on; 0: one by one after it.
    pub bucket_bytes: usize,
    /// Whether stages update before the gradient's norm over all stages is known, and take it back if need be.
    pub post_validation: bool,
    /// Tokens whose logits are held at a time; 0: chosen by the type of activations.
    pub logits_rows: usize,
    /// Which operations are computed again in the backward.
    pub recompute: Operations,
    /// In how many layers of each stage, the first ones; 0: in all.
    pub recompute_layers: usize,
    /// Compute threads of each rank.
    pub threads_per_rank: usize,
    /// Instructions that kernels may use.
    pub instruction_set: InstructionSet,
    /// Whether sums are exact, so that every layout gives the same bits.
    pub exact: bool,
    /// How long a collective may wait for its peers.
    pub deadline_seconds: f64,
}

impl Default for Parallel {
    fn default() -> Parallel {
        Parallel {
            mesh: MeshSizes::default(),
            sequence: false,
            context: Context::Gather,
            zero: 0,
            schedule: "1f1b".to_string(),
            chunks: 1,
            num_microbatches: 1,
            bucket_bytes: plan::BUCKET_BYTES,
            post_validation: false,
            logits_rows: 0,
            recompute: Operations::None,
            recompute_layers: 0,
            threads_per_rank: 1,
            instruction_set: InstructionSet::Auto,
            exact: false,
            deadline_seconds: 60.0,
        }
    }
}

impl Parallel {
    /// Sets a key; false if there is none of that name. `mesh` replaces all axes, `mesh.tp` one.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
        match key {
            "mesh" => {
                self.mesh = match &value.raw {
                    Raw::Table(entries) => axes_of_table(entries, value)?,
                    Raw::String(text) => axes_of_text(text, &value.place)?,
                    _ => return Err(value.wrong_type("a table of axes, as { dp = 2, tp = 2 }")),
                }
            }
            "sequence" => self.sequence = value.switch()?,
            "context" => self.context = value.name()?,
            "zero" => self.zero = value.count_within(0, 3)? as u8,
            "schedule" => self.schedule = schedule_name(value)?,
            "chunks" => self.chunks = value.count(1)?,
            "num_microbatches" => self.num_microbatches = value.count(1)?,
            "bucket_bytes" => self.bucket_bytes = value.count(0)?,
            "post_validation" => self.post_validation = value.switch()?,
            "logits_rows" => self.logits_rows = value.count(0)?,
            "recompute" => self.recompute = operations(value)?,
            "recompute_layers" => self.recompute_layers = value.count(0)?,
            "threads_per_rank" => self.threads_per_rank = value.count(1)?,
            "instruction_set" => self.instruction_set = value.name()?,
            "exact" => self.exact = value.switch()?,
            "deadline_seconds" => self.deadline_seconds = value.positive()?,
            axis => {
                let Some(axis) = axis.strip_prefix("mesh.") else { return Ok(false) };
                axis_size(&mut self.mesh, axis, value)?;
            }
        }
        Ok(true)
    }
}

/// Sets of operations that have a name of their own.
const OPERATIONS: [(&str, Operations); 3] = [
    ("none", Operations::None),
    ("selective", Operations::Chosen(Classes::CHEAP)),
    ("full", Operations::All),
];

/// What is computed again: a name, or kinds of operations.
fn operations(value: &Value) -> Result<Operations, ConfigError> {
    let class = |name: &str| Class::NAMES.iter().find(|(known, _)| *known == name).map(|(_, class)| *class);
    let classes = Class::NAMES.map(|(name, _)| name);
    let unknown = |name: &str, known: Vec<&'static str>| {
        let (key, place) = (value.key.clone(), value.place.clone());
        let nearest = nearest(name, known.iter().copied());
        ConfigError::UnknownName { key, value: shortened(name), place, nearest, known: known.into() }
    };
    if let Raw::Array(items) = &value.raw {
        let chosen = items.iter().map(|item| match item {
            Raw::String(name) => class(name).ok_or_else(|| unknown(name, classes.to_vec())),
            _ => Err(value.wrong_type("a string, or an array of strings")),
        });
        return Ok(Operations::Chosen(Classes::of(&chosen.collect::<Result<Vec<_>, _>>()?)));
    }
    let name = value.text()?;
    let set = OPERATIONS.iter().find(|(known, _)| *known == name).map(|(_, operations)| *operations);
    let of_class = || class(&name).map(|class| Operations::Chosen(Classes::of(&[class])));
    let known = || OPERATIONS.map(|(name, _)| name).into_iter().chain(classes).collect();
    set.or_else(of_class).ok_or_else(|| unknown(&name, known()))
}

impl Parallel {
    /// Names of what is computed again: one of a set, or those of kinds of operations.
    pub(super) fn recompute_names(&self) -> Vec<&'static str> {
        let set = OPERATIONS.iter().find(|(_, operations)| *operations == self.recompute);
        match (set, self.recompute) {
            (Some((name, _)), _) => vec![*name],
            (None, Operations::Chosen(classes)) => {
                Class::NAMES.iter().filter(|(_, class)| classes.has(*class)).map(|(name, _)| *name).collect()
            }
            (None, _) => unreachable!("none and all have names"),
        }
    }
}

/// What the path of a schedule ends with; no name does.
const CSV: &str = ".csv";

impl Parallel {
    /// The schedule that is in a file, if it is; not checked yet.
    ///
    /// # Errors
    /// The file cannot be read, or is no schedule.
    pub fn read_schedule(&self) -> Result<Option<schedule::Schedule>, ConfigError> {
        if !self.schedule.ends_with(CSV) {
            return Ok(None);
        }
        let refuse =
            |reason: String| ConfigError::ScheduleFile { path: PathBuf::from(&self.schedule), reason };
        let text = std::fs::read_to_string(&self.schedule).map_err(|error| {
            refuse(format!("cannot be read: {error}; name a CSV file that has a schedule"))
        })?;
        let read = schedule::Schedule::from_csv(&self.schedule, &text);
        read.map(Some).map_err(|error| refuse(error.to_string()))
    }
}

fn schedule_name(value: &Value) -> Result<String, ConfigError> {
    let name = value.text()?;
    if name.ends_with(CSV) {
        return Ok(value.path()?.to_string_lossy().into_owned());
    }
    let place: Source = value.place.clone();
    schedule::find(&name).map_err(|error| ConfigError::Schedule { place, error: Box::new(error) })?;
    Ok(name)
}
