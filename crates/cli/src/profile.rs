//! `phalanx profile`: where the time of a step goes.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::anyhow;
use phalanx::Config;
use phalanx::training::pipeline_profile;
use phalanx::training::profile::{Record, profile, write_trace};
use phalanx::training::virtual_clock::Links;

use crate::arguments::ProfileArguments;
use crate::failure::Verdict;
use crate::output;

pub fn run(arguments: &ProfileArguments) -> anyhow::Result<Verdict> {
    let config = arguments.config.load(&[], arguments.mesh.as_deref())?;
    if arguments.virtual_clock {
        return in_virtual_time(&config, arguments);
    }
    if let Some(path) = &arguments.trace {
        check(path)?;
    }
    let profile = profile(&config, arguments.steps)?;
    if let Some(path) = &arguments.trace {
        write(path, &profile.records).map_err(|error| unusable(path, error))?;
        output::note(&format!("trace: {}", path.display()));
    }
    if arguments.json {
        output::json(&profile.report)?;
    } else {
        output::bytes(profile.report.to_string().as_bytes())?;
    }
    Ok(Verdict::Success)
}

fn in_virtual_time(config: &Config, arguments: &ProfileArguments) -> anyhow::Result<Verdict> {
    let links = Links {
        latency_seconds: arguments.latency,
        bytes_per_second: arguments.bandwidth.unwrap_or(f64::INFINITY),
    };
    let sane =
        links.latency_seconds >= 0.0 && links.latency_seconds.is_finite() && links.bytes_per_second > 0.0;
    if !sane {
        return Err(anyhow!(
            "--latency must be 0 or more seconds and --bandwidth more than 0 bytes per second"
        ));
    }
    let report = pipeline_profile::profile(config, links, arguments.steps)?.report()?;
    match arguments.json {
        true => output::json(&report)?,
        false => output::bytes(report.to_string().as_bytes())?,
    }
    Ok(Verdict::Success)
}

/// Refuses a file that cannot be written before a run is spent on it, without touching one that is there.
fn check(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent.is_none_or(Path::is_dir) && !path.is_dir() {
        true => Ok(()),
        false => Err(unusable(path, "there is no such directory, or it is one")),
    }
}

fn unusable(path: &Path, reason: impl Display) -> anyhow::Error {
    anyhow!("cannot write {}: {reason}; give another file to --trace", path.display())
}

fn write(path: &Path, records: &[Record]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    write_trace(records, &mut file)?;
    file.flush()
}
