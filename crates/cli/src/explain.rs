//! `phalanx explain`: what a configuration would do.

use phalanx::{Explanation, StageListing};
use serde::Serialize;

use crate::arguments::ExplainArguments;
use crate::failure::Verdict;
use crate::output;

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    explanation: Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<Vec<StageListing>>,
}

pub fn run(arguments: &ExplainArguments) -> anyhow::Result<Verdict> {
    let config = arguments.config.load(&[], arguments.mesh.as_deref())?;
    let explanation = phalanx::explain(&config)?;
    let programs = if arguments.program { Some(phalanx::listing(&config)?) } else { None };
    if arguments.json {
        output::json(&Document { explanation, programs })?;
        return Ok(Verdict::Success);
    }
    output::bytes(explanation.to_string().as_bytes())?;
    for program in programs.iter().flatten() {
        output::line(&format!("\nProgram of stage {}: {}", program.stage, program.actions.join(" ")))?;
        output::line(&program.lines.join("\n"))?;
    }
    Ok(Verdict::Success)
}
