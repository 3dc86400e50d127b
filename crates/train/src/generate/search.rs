//! Writes behind every prompt of a session: token by token, or with beams.

use super::Continuation;
use super::beams::{BeamSearch, Rules};
use super::choose::{choose, log_softmax, penalise};
use super::options::GenerateOptions;
use super::session::{Branch, Session};
use crate::error::TrainError;

/// The continuations of each prompt, best first. `prefilled` is called when the prompts are read.
pub(super) fn search(
    session: &mut Session<'_>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    ends: &[u32],
    prefilled: impl FnOnce(),
) -> Result<Vec<Vec<Continuation>>, TrainError> {
    let begun: Vec<Vec<u32>> = prompts.iter().map(|prompt| session.beginning(prompt)).collect();
    let texts: Vec<&[u32]> = begun.iter().map(Vec::as_slice).collect();
    let scores = session.read(&texts)?;
    prefilled();
    match options.beams {
        1 => token_by_token(session, begun, scores, options, ends),
        _ => with_beams(session, &begun, scores, options, ends),
    }
}

/// A text that is being written.
struct Writing {
    /// What it is written behind, and what is written.
    text: Vec<u32>,
    /// Tokens that it was written behind.
    begun: usize,
    /// First token that the model still reads.
    first: usize,
    ended: bool,
}

fn token_by_token(
    session: &mut Session<'_>,
    begun: Vec<Vec<u32>>,
    mut scores: Vec<Vec<f64>>,
    options: &GenerateOptions,
    ends: &[u32],
) -> Result<Vec<Vec<Continuation>>, TrainError> {
    let writing = |text: Vec<u32>| Writing { begun: text.len(), text, first: 0, ended: false };
    let mut rows: Vec<Writing> = begun.into_iter().map(writing).collect();
    for step in 0..options.tokens {
        for (row, (writing, scores)) in rows.iter_mut().zip(&mut scores).enumerate() {
            if writing.ended {
                continue;
            }
            penalise(scores, &writing.text, options.repetition_penalty);
            let token = choose(scores, options, row, step as u64);
            writing.text.push(token);
            writing.ended = ends.contains(&token);
        }
        if step + 1 == options.tokens || rows.iter().all(|writing| writing.ended) {
            break;
        }
        scores = next_scores(session, &mut rows)?;
    }
    let continuation = |mut writing: Writing| {
        vec![Continuation { tokens: writing.text.split_off(writing.begun), score: None }]
    };
    Ok(rows.into_iter().map(continuation).collect())
}

/// Scores behind texts of which each has one new token, unless it has ended.
///
/// A text that outgrows the model's positions is read again from the last half of them. What others are read then is
/// what they were read before.
fn next_scores(session: &mut Session<'_>, rows: &mut [Writing]) -> Result<Vec<Vec<f64>>, TrainError> {
    let window = session.window();
    let outgrown = |writing: &Writing| !writing.ended && writing.text.len() - writing.first > window;
    if rows.iter().any(outgrown) {
        for writing in rows.iter_mut().filter(|writing| outgrown(writing)) {
            writing.first = writing.text.len() - window.div_ceil(2);
        }
        // Of one that has ended, the last token was never read.
        let read = |writing: &Writing| writing.text.len() - usize::from(writing.ended);
        let texts: Vec<&[u32]> = rows.iter().map(|w| &w.text[w.first..read(w)]).collect();
        return session.read(&texts);
    }
    let branches: Vec<Vec<Branch<'_>>> = rows
        .iter()
        .map(|writing| {
            let text = &writing.text[writing.first..];
            if writing.ended { vec![] } else { vec![Branch { parent: 0, text }] }
        })
        .collect();
    let scores = session.go_on(&branches)?;
    Ok(scores.into_iter().map(|mut branches| branches.swap_remove(0)).collect())
}

fn with_beams(
    session: &mut Session<'_>,
    begun: &[Vec<u32>],
    scores: Vec<Vec<f64>>,
    options: &GenerateOptions,
    ends: &[u32],
) -> Result<Vec<Vec<Continuation>>, TrainError> {
    let GenerateOptions { beams, length_penalty, early_stopping, tokens, .. } = *options;
    let rules = Rules { beams, length_penalty, early_stopping, ends, tokens };
    let mut searches: Vec<BeamSearch> = begun.iter().map(|_| BeamSearch::new()).collect();
    let mut scores: Vec<Vec<Vec<f64>>> = scores.into_iter().map(|scores| vec![scores]).collect();
    loop {
        for ((search, scores), begun) in searches.iter_mut().zip(&mut scores).zip(begun) {
            for (running, scores) in search.running().iter().zip(scores.iter_mut()) {
                log_softmax(scores);
                penalise(scores, &[&begun[..], &running.tokens].concat(), options.repetition_penalty);
            }
            search.advance(scores, &rules);
        }
        if searches.iter().all(|search| search.running().is_empty()) {
            break;
        }
        let texts: Vec<Vec<(usize, Vec<u32>)>> = searches
            .iter()
            .zip(begun)
            .map(|(search, begun)| {
                let text = |tokens: &[u32]| [&begun[..], tokens].concat();
                search.running().iter().map(|r| (r.parent, text(&r.tokens))).collect()
            })
            .collect();
        let branches: Vec<Vec<Branch<'_>>> = texts
            .iter()
            .map(|all| all.iter().map(|(parent, text)| Branch { parent: *parent, text }).collect())
            .collect();
        scores = session.go_on(&branches)?;
    }
    let best = |search: BeamSearch| {
        let continuation = |(score, tokens)| Continuation { tokens, score: Some(score) };
        search.into_best(options.best).map(continuation).collect()
    };
    Ok(searches.into_iter().map(best).collect())
}
