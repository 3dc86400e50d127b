//! `phalanx generate`: continues texts.

use std::path::Path;

use anyhow::anyhow;
use phalanx::{GenerateOptions, Written};
use serde::Serialize;

use crate::arguments::GenerateArguments;
use crate::failure::Verdict;
use crate::output;

#[derive(Serialize)]
struct Document<'a> {
    /// The only prompt and its best continuation.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation: Option<&'a str>,
    generations: Vec<Generation<'a>>,
}

#[derive(Serialize)]
struct Generation<'a> {
    prompt: &'a str,
    /// Best first.
    continuations: Vec<Continuation<'a>>,
}

#[derive(Serialize)]
struct Continuation<'a> {
    text: &'a str,
    num_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

pub fn run(arguments: &GenerateArguments) -> anyhow::Result<Verdict> {
    let mut prompts = arguments.prompt.clone();
    if let Some(path) = &arguments.prompts {
        prompts.extend(lines(path)?);
    }
    let options = GenerateOptions {
        prompts,
        tokens: arguments.tokens,
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        repetition_penalty: arguments.repetition_penalty,
        beams: arguments.beams,
        length_penalty: arguments.length_penalty,
        early_stopping: arguments.early_stopping,
        best: arguments.best,
        seed: arguments.seed,
        mesh: arguments.mesh.clone(),
        precision: arguments.dtype.map(Into::into),
        ends: arguments.ignore_end.then(Vec::new),
        cache: !arguments.no_cache,
    };
    let written = phalanx::generate(&arguments.checkpoint, &options)?;
    if arguments.speed {
        output::note(&speed(&written));
    }
    if arguments.json {
        output::json(&document(&options.prompts, &written))?;
        return Ok(Verdict::Success);
    }
    match &written.texts.concat()[..] {
        [only] => output::line(only)?,
        several => several.iter().try_for_each(|text| output::line(&on_one_line(text)))?,
    }
    Ok(Verdict::Success)
}

fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let name = path.display();
    let bytes = std::fs::read(path)
        .map_err(|error| anyhow!("--prompts {name}: {error}; name a text file with a prompt on each line"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow!("--prompts {name}: byte {at} is not UTF-8; save it as UTF-8")
    })?;
    let prompts: Vec<String> =
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(anyhow!("--prompts {name}: it has no prompt; write one on each line"));
    }
    Ok(prompts)
}

fn on_one_line(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

fn speed(written: &Written) -> String {
    let generated = &written.generated;
    format!(
        "prompts read in {:.3} s; then {} tokens in {:.3} s, {:.1} tokens/s",
        generated.prefill_seconds,
        generated.decoded_tokens,
        generated.decode_seconds,
        generated.decoded_tokens as f64 / generated.decode_seconds.max(1e-9)
    )
}

fn document<'a>(prompts: &'a [String], written: &'a Written) -> Document<'a> {
    let all = prompts.iter().zip(&written.texts).zip(&written.generated.continuations);
    let generations: Vec<Generation<'a>> = all
        .map(|((prompt, texts), tokens)| {
            let continuation = |(text, tokens): (&'a String, &phalanx::Continuation)| Continuation {
                text,
                num_tokens: tokens.tokens.len(),
                score: tokens.score,
            };
            Generation { prompt, continuations: texts.iter().zip(tokens).map(continuation).collect() }
        })
        .collect();
    let only = match &generations[..] {
        [only] => Some(only),
        _ => None,
    };
    let (prompt, continuation) = (only.map(|g| g.prompt), only.map(|g| g.continuations[0].text));
    Document { prompt, continuation, generations }
}
