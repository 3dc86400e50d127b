//! One step of a run, from its numbers to its report, which may come one step later: where updates are validated
//! afterwards, a step is open until the next one has shown whether its update stands.

use std::time::Instant;

use runtime::{Executor, Ran, StepInput};

use super::{Event, Outcome, Run, StepReport};
use crate::corpus::CorpusBatch;
use crate::error::TrainError;
use crate::learning_rate::learning_rate;
use crate::loss_scale::LossScale;

/// A step that ran.
pub(super) struct Attempt {
    step: u64,
    /// The length bucket of its batch, which is the number of its program.
    pub bucket: usize,
    lr: f64,
    /// Before the step.
    loss_scale: Option<LossScale>,
    seconds: f64,
}

impl Attempt {
    /// Loss scaling after the step, if its update stands.
    pub fn if_it_stands(&self) -> Option<LossScale> {
        self.after(false)
    }

    fn after(&self, skipped: bool) -> Option<LossScale> {
        self.loss_scale.map(|mut scale| {
            scale.after(skipped);
            scale
        })
    }
}

impl Run<'_> {
    /// Runs a step.
    pub(super) fn attempt(
        &self,
        executor: &mut Executor,
        batch: &mut CorpusBatch,
        step: u64,
        loss_scale: Option<LossScale>,
    ) -> Result<(Attempt, Ran), TrainError> {
        let started = Instant::now();
        let update = step - loss_scale.map_or(0, |s| s.skipped_steps);
        let lr = learning_rate(&self.config.train, update);
        let num_tokens = self.config.sequences_per_step() * self.built.sequence_length;
        let factor = loss_scale.map_or(1.0, |s| s.factor(num_tokens));
        let scalars = [("lr", lr), ("step", update as f64), ("loss_scale", factor)];
        let input = StepInput { seed: self.config.train.seed, step, scalars: &scalars };
        let bucket = batch.bucket();
        #[cfg(feature = "faults")]
        let batch = &mut self.following.step(executor.rank(), step, batch);
        let ran = executor.run_ahead(bucket, batch, &input)?;
        Ok((Attempt { step, bucket, lr, loss_scale, seconds: started.elapsed().as_secs_f64() }, ran))
    }

    /// Reports a step whose results are there, and says where loss scaling stands after it.
    pub(super) fn close(
        &self,
        executor: &Executor,
        attempt: Attempt,
        outcome: &mut Outcome,
    ) -> Result<Option<LossScale>, TrainError> {
        let (mut statistics, mut grad_norm) = ([0.0; 2], [0.0]);
        let Attempt { step, bucket, lr, seconds, .. } = attempt;
        executor.read_output(bucket, "statistics", &mut statistics)?;
        executor.read_output(bucket, "grad_norm", &mut grad_norm)?;
        let ([loss, tokens], [grad_norm]) = (statistics, grad_norm);
        let buckets = &self.built.buckets;
        let skipped = attempt.loss_scale.is_some() && !grad_norm.is_finite();
        let report = StepReport {
            step,
            loss: if tokens > 0.0 { loss / tokens } else { 0.0 },
            grad_norm,
            lr,
            tokens: tokens as u64,
            tokens_per_second: tokens / seconds,
            step_seconds: seconds,
            sequence_length: (buckets.num_buckets() > 1).then(|| buckets.lengths(bucket).sequence),
            loss_scale: attempt.loss_scale.map(|s| s.scale),
            skipped,
        };
        let loss_scale = attempt.after(skipped);
        outcome.last_loss = report.loss;
        self.report(executor, Event::Step(&report), &report)?;
        if let Some(scale) = loss_scale.filter(LossScale::is_exhausted) {
            return Err(TrainError::Overflow { step, loss_scale: scale.scale });
        }
        if !(skipped || report.loss.is_finite() && report.grad_norm.is_finite()) {
            return Err(TrainError::NotFinite { step, loss: report.loss, grad_norm: report.grad_norm });
        }
        Ok(loss_scale)
    }
}
