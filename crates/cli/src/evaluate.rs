//! `phalanx evaluate`: a checkpoint's scores on held-out data, beside what counting alone reaches.

use phalanx::{EvaluateOptions, EvaluateReport};

use crate::arguments::EvaluateArguments;
use crate::failure::Verdict;
use crate::output;

pub fn run(arguments: &EvaluateArguments) -> anyhow::Result<Verdict> {
    let options = EvaluateOptions {
        data: arguments.data.clone(),
        labels: arguments.labels.clone(),
        mesh: arguments.mesh.clone(),
        task: arguments.task.clone(),
        settings: arguments.set.clone(),
    };
    let report = phalanx::evaluate(&arguments.checkpoint, &options)?;
    let mut below = Vec::new();
    for (name, least) in &arguments.at_least {
        let known: Vec<&str> = report.metrics.keys().copied().collect();
        let found = report.metrics.get(name.as_str());
        let found = found.ok_or_else(|| {
            anyhow::anyhow!(
                "--at-least {name}={least}: {} has no `{name}`, but {}",
                report.task,
                known.join(", ")
            )
        })?;
        // What is not a number is below every bar.
        if found.partial_cmp(least).is_none_or(std::cmp::Ordering::is_lt) {
            below.push(format!("{name} is {found:.4}, below the bar of {least}"));
        }
    }
    match arguments.json {
        true => output::json(&report)?,
        false => output::bytes(describe(&report).as_bytes())?,
    }
    below.iter().for_each(|line| output::note(line));
    Ok(if below.is_empty() { Verdict::Success } else { Verdict::CheckFailed })
}

fn describe(report: &EvaluateReport) -> String {
    let what = if report.bits_per_byte.is_some() { "tokens" } else { "examples" };
    let trained = report.step.map_or(String::new(), |step| format!(" after {step} steps"));
    let mut lines = vec![format!("{}{trained}, on {} {what}", report.task, report.num_examples)];
    lines.push(format!("{:<14} {:>10.4}", "loss", report.loss));
    if let Some(bits) = report.bits_per_byte {
        lines.push(format!("{:<14} {bits:>10.4}", "bits_per_byte"));
    }
    for (name, value) in &report.metrics {
        let of_baseline = report.baseline.as_ref().and_then(|baseline| baseline.metrics.get(name));
        let beside = of_baseline.map_or(String::new(), |value| format!("   baseline {value:.4}"));
        lines.push(format!("{name:<14} {value:>10.4}{beside}"));
    }
    if let Some(baseline) = &report.baseline {
        lines.push(format!("baseline: {}", baseline.name));
    }
    lines.join("\n") + "\n"
}
