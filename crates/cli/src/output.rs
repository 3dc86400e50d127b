//! Writing: results to stdout, everything else to stderr.

use std::io::{ErrorKind, Write};

use anyhow::anyhow;
use serde::Serialize;

use crate::failure::ReaderGone;

/// Writes to stdout.
pub fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(error) => Err(anyhow!("cannot write to stdout: {error}; redirect it elsewhere")),
    }
}

/// Writes a line to stdout.
pub fn line(text: &str) -> anyhow::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes one JSON document to stdout.
pub fn json(document: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(document)?)
}

/// Writes a line to stderr; if nobody listens there, nobody hears it.
pub fn note(text: &str) {
    // In one write: `mpirun` takes whatever comes in one for a line, and so puts its tag between text and line end.
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}
