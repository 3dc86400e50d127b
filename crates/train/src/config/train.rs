//! The table `train`: its keys, defaults and single-key ranges. How keys go together is in `check`.

use super::ConfigError;
use super::names::named;
use super::value::Value;

named! {
    /// The number format of computation.
    Precision {
        /// 32-bit floats.
        F32 = "f32",
        /// 64-bit floats, the reference.
        F64 = "f64",
        /// bfloat16 with 32-bit master weights.
        Bf16 = "bf16",
        /// 16-bit floats with loss scaling.
        Fp16 = "fp16",
    }
}

named! {
    /// The update rule.
    Optimizer {
        /// Gradient descent, with momentum if that is not 0.
        Sgd = "sgd",
        /// Adam; weight decay is added to the gradient.
        Adam = "adam",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }
}

named! {
    /// How the learning rate goes after warm-up.
    LrSchedule {
        /// Stays.
        Constant = "constant",
        /// Falls linearly to `min_lr`.
        Linear = "linear",
        /// Falls to `min_lr` as half a cosine.
        Cosine = "cosine",
        /// Stays, then falls at the end.
        Wsd = "wsd",
    }
}

/// The training loop's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    /// Number of steps.
    pub steps: usize,
    /// Sequences per step, over all ranks and microbatches.
    pub batch: usize,
    /// The number format of computation.
    pub precision: Precision,
    /// The update rule.
    pub optimizer: Optimizer,
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate goes after warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// The learning rate at the end.
    pub min_lr: f64,
    /// Adam's decay rates.
    pub betas: [f64; 2],
    /// SGD's momentum.
    pub momentum: f64,
    /// Whether SGD's momentum is Nesterov's.
    pub nesterov: bool,
    /// Adam's epsilon.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0 for no clipping.
    pub clip_norm: f64,
    /// Factor on cosines before the softmax over a batch's pairs.
    pub similarity_scale: f64,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Steps between evaluations; 0 for none.
    pub eval_every: usize,
    /// Steps between checkpoints; 0 for one at the end.
    pub checkpoint_every: usize,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
}

impl Default for Train {
    fn default() -> Train {
        Train {
            steps: 300,
            batch: 16,
            precision: Precision::F32,
            optimizer: Optimizer::AdamW,
            lr: 1e-3,
            lr_schedule: LrSchedule::Cosine,
            warmup_steps: 20,
            min_lr: 0.0,
            betas: [0.9, 0.95],
            momentum: 0.0,
            nesterov: false,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            similarity_scale: 20.0,
            seed: 1,
            eval_every: 50,
            checkpoint_every: 0,
            keep_checkpoints: 2,
        }
    }
}

impl Train {
    /// Sets a key; false if there is none of that name.
    pub(super) fn set(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
        match key {
            "steps" => self.steps = value.count(1)?,
            "batch" => self.batch = value.count(1)?,
            "precision" => self.precision = value.name()?,
            "optimizer" => self.optimizer = value.name()?,
            "lr" => self.lr = value.non_negative()?,
            "lr_schedule" => self.lr_schedule = value.name()?,
            "warmup_steps" => self.warmup_steps = value.count(0)?,
            "min_lr" => self.min_lr = value.non_negative()?,
            "betas" => self.betas = value.fractions()?,
            "momentum" => self.momentum = value.fraction()?,
            "nesterov" => self.nesterov = value.switch()?,
            "eps" => self.eps = value.positive()?,
            "weight_decay" => self.weight_decay = value.non_negative()?,
            "similarity_scale" => self.similarity_scale = value.positive()?,
            "clip_norm" => self.clip_norm = value.non_negative()?,
            "seed" => self.seed = value.seed()?,
            "eval_every" => self.eval_every = value.count(0)?,
            "checkpoint_every" => self.checkpoint_every = value.count(0)?,
            "keep_checkpoints" => self.keep_checkpoints = value.count(1)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
