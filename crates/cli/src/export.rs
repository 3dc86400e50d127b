//! `phalanx export`: a run's model as a directory that other programs read.

use phalanx::ExportOptions;

use crate::arguments::{ExportArguments, ExportFormat};
use crate::failure::Verdict;
use crate::output;

pub fn run(arguments: &ExportArguments) -> anyhow::Result<Verdict> {
    let ExportFormat::Safetensors = arguments.format;
    let out = arguments.out.clone().unwrap_or_else(|| arguments.from.join("safetensors"));
    let options = ExportOptions { dtype: arguments.dtype.clone() };
    let report = phalanx::export(&arguments.from, &out, &options)?;
    if arguments.json {
        output::json(&report)?;
    } else {
        output::line(&format!(
            "{} for {}: {} tensors of {} are in {}",
            report.model_type,
            report.task,
            report.num_tensors,
            report.dtype,
            report.dir.display()
        ))?;
    }
    Ok(Verdict::Success)
}
