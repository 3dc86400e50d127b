//! `phalanx parity`: proves that layouts change nothing, or shows where they do.

use phalanx::LayoutReport;

use crate::arguments::{ParityArguments, Precision};
use crate::failure::Verdict;
use crate::{output, place};

pub fn run(arguments: &ParityArguments) -> anyhow::Result<Verdict> {
    let precision = match arguments.precision {
        Precision::F32 => "train.precision=f32",
        Precision::F64 => "train.precision=f64",
    };
    let config = arguments.config.load(&[precision.to_owned()], None)?;
    let mut layouts = arguments.meshes.clone();
    if arguments.all {
        layouts.extend(phalanx::all_layouts(&config, arguments.max_world)?);
        layouts.dedup();
    }
    let total = layouts.len().max(1);
    let number = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut done = 0;
    let mut broken: Option<anyhow::Error> = None;
    let mut observe = |report: &LayoutReport| {
        done += 1;
        let line = format!("{done}/{total} {}", describe(report));
        match arguments.json {
            true => output::note(&line),
            false => broken = broken.take().or(output::line(&line).err()),
        }
    };
    let (job, steps, tolerance) = (place::find()?, arguments.steps, arguments.tolerance);
    let report = phalanx::compare_in(job.as_ref(), &config, &layouts, steps, tolerance, &mut observe)?;
    if let Some(error) = broken {
        return Err(error);
    }
    if job.is_some_and(|job| job.process != 0) {
        // The first process has compared, and says so.
        return Ok(Verdict::Success);
    }
    if arguments.json {
        output::json(&report)?;
    } else {
        let agreeing = report.layouts.iter().filter(|l| l.ok).count();
        output::line(&format!(
            "{agreeing} of {} agreed with one rank over {} (tolerance {:e} for losses and gradients, {:.0e} for \
             parameters)",
            number(total, "layout"),
            number(report.steps, "step"),
            report.tolerance,
            report.parameter_tolerance
        ))?;
    }
    Ok(if report.ok { Verdict::Success } else { Verdict::CheckFailed })
}

fn describe(report: &LayoutReport) -> String {
    let verdict = if report.ok { "ok  " } else { "FAIL" };
    let disagreements = match report.num_disagreements {
        0 => String::new(),
        n => format!(", {n} elements differ between ranks"),
    };
    format!(
        "{verdict} {}: loss {:.1e}, gradients {:.1e} ({}), parameters {:.1e}{disagreements}, {:.1} s",
        report.layout,
        report.loss_error,
        report.gradient_error,
        if report.worst_gradient.is_empty() { "all equal" } else { &report.worst_gradient },
        report.parameter_error,
        report.seconds
    )
}
