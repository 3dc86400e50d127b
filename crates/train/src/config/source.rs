//! Where a value was written: a line of a file, a `--set` or a `--mesh`. Used in messages alone.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a value was written. Displays as `in FILE:LINE`, `in --set ...` or `in --mesh ...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A line of a configuration file, counted from 1.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line.
        line: usize,
    },
    /// A `--set` argument.
    Set(Arc<str>),
    /// A `--mesh` argument.
    Mesh(Arc<str>),
    /// Not written: the default.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File { path, line } => write!(out, "in {}:{line}", path.display()),
            Source::Set(text) => write!(out, "in --set {}", shortened(text)),
            Source::Mesh(text) => write!(out, "in --mesh {}", shortened(text)),
            Source::Default => write!(out, "(the default)"),
        }
    }
}

/// Text in a message: one line, not too long.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut line: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    line = line.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(SHOWN).is_some() {
        line.push_str("...");
    }
    line
}
