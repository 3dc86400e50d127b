//! Greedy translations for evaluation: each token is the most likely one behind those before it. Every step reads the
//! whole sequences again, which short targets bear.

use runtime::{Executor, StepInput};

use super::TaskBatch;
use crate::error::TrainError;
use crate::parity::whole;

/// What the model writes for each example of a batch, without the end token, in at most `most` tokens. `program` is the
/// first of the executor's programs that give the scores of the next token, one for each length bucket.
///
/// # Errors
/// What stops the executor.
pub(crate) fn greedy(
    executor: &mut Executor,
    program: usize,
    batch: &mut TaskBatch,
    end: i32,
    most: usize,
    input: &StepInput<'_>,
) -> Result<Vec<Vec<i32>>, TrainError> {
    let mut written: Vec<Vec<i32>> = vec![Vec::new(); batch.examples.len()];
    let mut has_ended: Vec<bool> = batch.examples.iter().map(Option::is_none).collect();
    // All ranks have the same scores, so that all stop at the same step.
    for _ in 0..most {
        if has_ended.iter().all(|ended| *ended) {
            break;
        }
        batch.decode(&written);
        let program = program + batch.bucket();
        executor.run(program, batch, input)?;
        let (tile, values) = executor.output(program, "logits")?;
        let logits = whole(&tile, &values);
        let vocab = logits.len() / written.len();
        for ((written, ended), logits) in
            written.iter_mut().zip(&mut has_ended).zip(logits.chunks_exact(vocab))
        {
            if *ended {
                continue;
            }
            match largest(logits) as i32 {
                token if token == end => *ended = true,
                token => written.push(token),
            }
        }
    }
    Ok(written)
}

/// The class of the largest score, the first of equals.
pub(crate) fn largest(scores: &[f64]) -> usize {
    scores.iter().enumerate().fold(0, |best, (i, score)| if *score > scores[best] { i } else { best })
}
