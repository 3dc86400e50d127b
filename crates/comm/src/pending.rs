//! [`Pending`]: an operation between start and wait. It owns the regions; how it ends is the backend's business.

use crate::{Collective, CommError, Reduce};
use memory::{DType, Region, RegionMut};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// What was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) operation: Collective,
    pub(crate) dtype: Option<DType>,
    pub(crate) reduce: Option<Reduce>,
    /// The size that all ranks must agree on: the smaller of send and recv.
    pub(crate) bytes: usize,
    /// The root, or the other side of a message, as a rank within the group.
    pub(crate) peer: usize,
    pub(crate) tag: u64,
    pub(crate) sequence: u64,
    pub(crate) started: Instant,
    /// Its number in the flight recorder.
    pub(crate) record: u64,
}

/// A backend's way to end what was started.
pub(crate) trait Finish: Send + Sync {
    /// Ends it and says when it was complete. When this returns, also with an error, no peer touches the regions any
    /// more.
    fn finish(
        &self,
        ticket: &Ticket,
        send: Option<&Region<'_>>,
        recv: Option<&mut RegionMut<'_>>,
    ) -> Result<Instant, CommError>;

    /// It will never be waited for. When this returns, no peer touches the regions any more.
    fn abandon(&self, ticket: &Ticket);
}

/// An operation that was started and owns its regions until it is waited for.
///
/// Dropping it instead aborts the world (except for a send, which is complete once started): the peers that count
/// on it get an error at once and not at their deadline.
#[must_use = "a collective makes progress in wait(); dropping it aborts the world"]
pub struct Pending<'a> {
    // Taken by wait() or drop.
    finish: Option<Arc<dyn Finish>>,
    ticket: Ticket,
    send: Option<Region<'a>>,
    recv: Option<RegionMut<'a>>,
}

impl<'a> Pending<'a> {
    pub(crate) fn new(
        finish: Arc<dyn Finish>,
        ticket: Ticket,
        send: Option<Region<'a>>,
        recv: Option<RegionMut<'a>>,
    ) -> Pending<'a> {
        Pending { finish: Some(finish), ticket, send, recv }
    }

    /// An operation that was complete when it started: for communicators that stand before another one.
    pub fn done(operation: Collective) -> Pending<'a> {
        let ticket = Ticket {
            operation,
            dtype: None,
            reduce: None,
            bytes: 0,
            peer: 0,
            tag: 0,
            sequence: 0,
            started: Instant::now(),
            record: 0,
        };
        Pending { finish: None, ticket, send: None, recv: None }
    }

    /// Completes the operation and releases its regions.
    ///
    /// # Errors
    /// `DeadlineExceeded`, `Aborted`, `PeerGone`, `Mismatch`, `OutOfOrder`. The content of what was to be received
    /// is then unspecified, and the world is aborted.
    pub fn wait(self) -> Result<(), CommError> {
        self.completion().map(|_| ())
    }

    /// As [`Pending::wait`]; says when the operation was complete, which may be long before it was waited for.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn completion(mut self) -> Result<Instant, CommError> {
        match self.finish.take() {
            Some(finish) => finish.finish(&self.ticket, self.send.as_ref(), self.recv.as_mut()),
            None => Ok(self.ticket.started),
        }
    }

    /// Which operation it is.
    pub fn operation(&self) -> Collective {
        self.ticket.operation
    }

    /// Its sequence number.
    pub fn sequence(&self) -> u64 {
        self.ticket.sequence
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(finish) = self.finish.take() {
            finish.abandon(&self.ticket);
        }
    }
}

impl fmt::Debug for Pending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({} #{}, {} bytes)", self.ticket.operation, self.ticket.sequence, self.ticket.bytes)
    }
}
