//! A walk over what is held out, once: the loss, and what the task's metrics say beside the trivial baseline.

use data::Walk;
use hub::Task;
use runtime::{Executor, StepInput};

use crate::assemble::Built;
use crate::config::Config;
use crate::corpus::{Corpus, CorpusBatch};
use crate::error::TrainError;
use crate::parity::whole;
use crate::tasks::{Score, Tally, greedy};

/// Evaluations hide tokens as no step of training does, and always the same.
const FIRST_STEP: u64 = 1 << 40;

/// What an evaluation found; scores are on the first rank alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Evaluation {
    /// Nats per target.
    pub loss: f64,
    /// Bits per byte of a running text.
    pub bits_per_byte: Option<f64>,
    /// The task's metrics.
    pub score: Score,
}

/// Walks over what is held out.
pub(crate) struct Evaluator<'a> {
    corpus: &'a Corpus,
    config: &'a Config,
    batch: CorpusBatch,
    walk: Walk,
    /// The samples in the order of the walk, if that is not their own.
    order: Option<Vec<usize>>,
    num_classes: usize,
    num_buckets: usize,
    /// Number of the first evaluation program in the executor, one for each length bucket; those of decoding follow.
    program: usize,
}

impl<'a> Evaluator<'a> {
    /// Of a corpus that holds something out.
    pub fn new(
        config: &'a Config,
        built: &Built,
        corpus: &'a Corpus,
        program: usize,
    ) -> Option<Evaluator<'a>> {
        let (batch, walk) = corpus.heldout(config)?;
        let num_buckets = built.buckets.num_buckets();
        let order = if num_buckets > 1 { corpus.heldout_by_length(config) } else { None };
        let num_classes = built.num_classes;
        Some(Evaluator { corpus, config, batch, walk, order, num_classes, num_buckets, program })
    }

    /// Evaluates; every rank calls it.
    ///
    /// # Errors
    /// What stops the executor.
    pub fn run(&mut self, executor: &mut Executor) -> Result<Evaluation, TrainError> {
        let (mut loss, mut targets) = (0.0, 0.0);
        let mut tally = Tally::default();
        let seed = self.config.train.seed;
        for at in 0..self.walk.num_steps() {
            let in_order = |sample| self.order.as_ref().map_or(sample, |order| order[sample]);
            let samples = self.walk.samples_of_step(at).map(|sample| sample.map(in_order));
            self.batch.set(samples, seed, FIRST_STEP + at as u64);
            let program = self.program + self.batch.bucket();
            executor.run(program, &mut self.batch, &StepInput { seed, step: at as u64, scalars: &[] })?;
            let mut statistics = [0.0; 2];
            executor.read_output(program, "statistics", &mut statistics)?;
            loss += statistics[0];
            targets += statistics[1];
            self.collect(executor, program, &mut tally, at as u64)?;
        }
        let loss = if targets > 0.0 { loss / targets } else { 0.0 };
        let mut found = Evaluation { loss, ..Evaluation::default() };
        match self.corpus {
            Corpus::Text(text) => {
                found.bits_per_byte = text.heldout.as_ref().map(|heldout| heldout.bits_per_byte(loss));
            }
            Corpus::Examples { examples, .. } if executor.rank() == 0 => {
                let heldout = examples.heldout.as_ref().expect("there is a walk over it");
                found.score = tally.score(self.config.task, examples, heldout)?;
            }
            Corpus::Examples { .. } => {}
        }
        if !self.config.task.has_labels() && self.config.task != Task::Embed {
            found.score.metrics.insert("perplexity", loss.exp());
        }
        Ok(found)
    }

    /// Notes what the model said of a batch in a step of `program`.
    fn collect(
        &mut self,
        executor: &mut Executor,
        program: usize,
        tally: &mut Tally,
        at: u64,
    ) -> Result<(), TrainError> {
        let CorpusBatch::Examples(batch) = &mut self.batch else { return Ok(()) };
        let is_first = executor.rank() == 0;
        match self.config.task {
            task if task.has_labels() && is_first => {
                let (tile, values) = executor.output(program, "logits")?;
                let logits = whole(&tile, &values);
                tally.add_logits(task, &batch.split, &batch.examples, &logits, self.num_classes);
            }
            Task::Embed if is_first => {
                let (tile, values) = executor.output(program, "embeddings")?;
                tally.add_embeddings(&batch.examples, &whole(&tile, &values));
            }
            Task::Seq2Seq if !self.config.data.span_corruption => {
                let tokenizer = self.corpus.tokenizer().expect("texts have a tokenizer");
                let end = tokenizer.end_id().map_or(-1, |end| end as i32);
                let most = self.config.data.resolved_target_length();
                let input = StepInput { seed: self.config.train.seed, step: at, scalars: &[] };
                let written = greedy(executor, self.program + self.num_buckets, batch, end, most, &input)?;
                if is_first {
                    // A model may have ids that its tokenizer does not know; they have no text.
                    let known = |ids: Vec<i32>| -> Vec<u32> {
                        let ids = ids.into_iter().map(|id| id as u32);
                        ids.filter(|id| (*id as usize) < tokenizer.vocab_size()).collect()
                    };
                    let texts: Result<Vec<String>, _> =
                        written.into_iter().map(|ids| tokenizer.decode(&known(ids))).collect();
                    tally.add_texts(&batch.examples, texts?);
                }
            }
            Task::MaskedLm | Task::CausalLm | Task::Seq2Seq if is_first => {
                tally.add_tokens(batch.predicted())
            }
            _ => {}
        }
        Ok(())
    }
}
