//! The errors of this crate. Nothing else.

use crate::Span;
use std::path::PathBuf;

/// What can go wrong with bytes.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The operating system refused an arena.
    #[error("cannot reserve an arena of {bytes} bytes")]
    Reserve {
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// A span ends beyond its arena.
    #[error("span {span} ends beyond its arena of {arena_bytes} bytes")]
    OutOfBounds {
        /// The span asked for.
        span: Span,
        /// The size of the arena.
        arena_bytes: usize,
    },
    /// A span starts at an offset that is no multiple of [`crate::SPAN_ALIGN`].
    #[error("span {span} does not start at a multiple of {align} bytes")]
    Misaligned {
        /// The span asked for.
        span: Span,
        /// The required alignment.
        align: usize,
    },
    /// A span overlaps a region that is checked out, and at least one of the two writes.
    #[error("span {wanted} (to {}) overlaps live span {live} (being {})", verb(*.wanted_exclusive), participle(*.live_exclusive))]
    Overlap {
        /// The span asked for.
        wanted: Span,
        /// Whether it was asked for exclusively.
        wanted_exclusive: bool,
        /// The live span in the way.
        live: Span,
        /// Whether that one is exclusive.
        live_exclusive: bool,
    },
    /// More regions are checked out at once than an arena tracks.
    #[error("span {span} cannot be checked out: {limit} regions are live already")]
    TooManyLive {
        /// The span asked for.
        span: Span,
        /// The limit.
        limit: usize,
    },
    /// A file could not be mapped.
    #[error("cannot map {}", path.display())]
    Map {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A typed view of a file does not fit.
    #[error("{}: {bytes} bytes at offset {offset} are no view of {size}-byte elements in a file of {file_bytes} bytes", path.display())]
    View {
        /// Which file.
        path: PathBuf,
        /// Where the view starts.
        offset: usize,
        /// How long it is.
        bytes: usize,
        /// The size (and alignment) of one element.
        size: usize,
        /// The length of the file.
        file_bytes: usize,
    },
}

fn verb(exclusive: bool) -> &'static str {
    if exclusive { "write" } else { "read" }
}

fn participle(exclusive: bool) -> &'static str {
    if exclusive { "written" } else { "read" }
}
