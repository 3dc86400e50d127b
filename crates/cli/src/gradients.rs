//! `phalanx gradients`: loss, logits and gradients of a Hugging Face checkpoint for a batch.

use phalanx::GradientsOptions;

use crate::arguments::GradientsArguments;
use crate::failure::Verdict;
use crate::output;

pub fn run(arguments: &GradientsArguments) -> anyhow::Result<Verdict> {
    let options = GradientsOptions { mesh: arguments.mesh.clone(), task: arguments.task.clone() };
    let report = phalanx::gradients(
        &arguments.from,
        &arguments.batch,
        &arguments.out,
        arguments.dtype.into(),
        &options,
    )?;
    for (names, what) in [
        (&report.extra, "tensors of the directory are not used"),
        (&report.new, "parameters are not in the directory and were drawn anew"),
    ] {
        if !names.is_empty() {
            output::note(&format!("{} {what}: {}", names.len(), names.join(", ")));
        }
    }
    if arguments.json {
        output::json(&report)?;
        return Ok(Verdict::Success);
    }
    let out = arguments.out.display();
    output::line(&match report.loss {
        Some(loss) => format!(
            "loss {loss} over {} targets; {} gradients and the logits are in {out}",
            report.num_targets, report.num_gradients
        ),
        None => format!("no labels, hence no loss and no gradients; what the model gives is in {out}"),
    })?;
    Ok(Verdict::Success)
}
