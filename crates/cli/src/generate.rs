//! `phalanx generate`: continues a text.

use phalanx::GenerateOptions;
use serde::Serialize;

use crate::arguments::GenerateArguments;
use crate::failure::Verdict;
use crate::output;

#[derive(Serialize)]
struct Document<'a> {
    prompt: &'a str,
    continuation: &'a str,
}

pub fn run(arguments: &GenerateArguments) -> anyhow::Result<Verdict> {
    let options = GenerateOptions {
        prompt: arguments.prompt.clone(),
        tokens: arguments.tokens,
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        seed: arguments.seed,
        mesh: arguments.mesh.clone(),
    };
    let continuation = phalanx::generate(&arguments.checkpoint, &options)?;
    if arguments.json {
        output::json(&Document { prompt: &arguments.prompt, continuation: &continuation })?;
    } else {
        output::line(&continuation)?;
    }
    Ok(Verdict::Success)
}
