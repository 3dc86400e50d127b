//! `phalanx train`: a run from its configuration to its summary.

use std::path::{Path, PathBuf};

use phalanx::{RunOptions, Summary};

use crate::arguments::TrainArguments;
use crate::failure::Verdict;
use crate::output;
use crate::place;
use crate::progress::{Progress, duration, scores};

pub fn run(arguments: &TrainArguments) -> anyhow::Result<Verdict> {
    let steps: Vec<String> = arguments.steps.iter().map(|n| format!("train.steps={n}")).collect();
    let config = arguments.config.load(&steps, arguments.mesh.as_deref())?;
    let job = place::find()?;
    let options = RunOptions {
        out: arguments.out.clone(),
        resume: arguments.resume.clone(),
        metrics: arguments.metrics.clone(),
        runs: PathBuf::from("runs"),
        // Reading the whole binary takes a tenth of a second: only where there is another to compare it with.
        binary: job.as_ref().map(|_| place::binary()).unwrap_or_default(),
        job,
        #[cfg(feature = "faults")]
        fault: crate::faults::find()?,
    };
    let progress = Progress::new();
    let result = phalanx::train(&config, &options, &|event| progress.event(&event));
    progress.finish();
    let summary = result?;
    if options.job.is_some_and(|job| job.process != 0) {
        // Rank 0's process speaks for all.
        return Ok(Verdict::Success);
    }
    if arguments.json {
        output::json(&summary)?;
    } else {
        output::bytes(describe(&summary).as_bytes())?;
    }
    Ok(Verdict::Success)
}

fn describe(summary: &Summary) -> String {
    let mut lines = vec![format!(
        "trained in {}; loss of the last step {:.4}",
        duration(summary.seconds),
        summary.last_loss
    )];
    if let Some(validation) = &summary.validation {
        let mut line = format!("held out: loss {:.4}{}", validation.validation_loss, scores(validation));
        if let (Some(unigram), Some(bigram)) = (summary.unigram_bits_per_byte, summary.bigram_bits_per_byte) {
            line.push_str(&format!(
                " (unigram model {unigram:.3}, bigram model {bigram:.3}; less is better)"
            ));
        }
        lines.push(line);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let peak =
        summary.peak_resident_bytes.map_or(String::new(), |b| format!("; process at most {:.1} MiB", mib(b)));
    lines.push(format!("memory: arenas {:.1} MiB{peak}", mib(summary.arena_bytes_total)));
    if let Some(sample) = &summary.sample {
        lines.push("sample:".to_owned());
        lines.extend(sample.trim_end().lines().map(|line| format!("  | {}", harmless(line))));
    }
    if let Some(checkpoint) = &summary.checkpoint {
        lines.push(format!("checkpoint: {}", checkpoint.display()));
    }
    if let (Some(checkpoint), Some(_)) = (&summary.checkpoint, &summary.sample) {
        lines.push("continue a text with it:".to_owned());
        lines.push(format!(
            "  {} generate {} --prompt \"She was\"",
            quoted(&this_program()),
            quoted(checkpoint)
        ));
    }
    lines.join("\n") + "\n"
}

/// Text that cannot steer a terminal, whatever a young model writes.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The command as it was called, so that the hint works where this one did.
fn this_program() -> PathBuf {
    std::env::args_os().next().map_or_else(|| PathBuf::from("phalanx"), PathBuf::from)
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_cannot_steer_a_terminal() {
        assert_eq!(harmless("a\tb\x1b[31m\u{9b}c"), "a\tb\u{fffd}[31m\u{fffd}c");
    }

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(quoted(Path::new("my runs/it's")), "'my runs/it'\\''s'");
        assert_eq!(quoted(Path::new("")), "''");
    }
}
