//! The flight recorder: the last operations of one rank, in a ring that is allocated once.

use crate::Collective;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How an operation ended, if it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was started and not yet waited for, or is being waited for.
    Pending,
    /// It completed, this long after its start.
    Done(Duration),
    /// It failed, this long after its start.
    Failed(Duration),
}

/// One operation of one rank.
#[derive(Clone, Debug)]
pub struct OperationRecord {
    /// The group's name.
    pub group: Arc<str>,
    /// The operation.
    pub operation: Collective,
    /// Its sequence number in the group.
    pub sequence: u64,
    /// The bytes that the ranks agree on: the smaller of send and recv.
    pub bytes: usize,
    /// When it was started, counted from the start of the world.
    pub started: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

impl fmt::Display for OperationRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OperationRecord { group, operation, sequence, bytes, started, outcome } = self;
        write!(f, "{:.6} s {operation} #{sequence} on {group}, {bytes} bytes: ", started.as_secs_f64())?;
        match outcome {
            Outcome::Pending => write!(f, "pending"),
            Outcome::Done(elapsed) => write!(f, "done in {:.6} s", elapsed.as_secs_f64()),
            Outcome::Failed(elapsed) => write!(f, "failed after {:.6} s", elapsed.as_secs_f64()),
        }
    }
}

/// The ring of one rank, shared by its groups.
pub(crate) struct Recorder {
    origin: Instant,
    ring: Mutex<Ring>,
}

struct Ring {
    records: Vec<OperationRecord>,
    capacity: usize,
    next: u64,
}

impl Recorder {
    pub(crate) fn new(capacity: usize, origin: Instant) -> Recorder {
        Recorder {
            origin,
            ring: Mutex::new(Ring { records: Vec::with_capacity(capacity), capacity, next: 0 }),
        }
    }

    /// Notes a start; the result names the entry to `end`.
    pub(crate) fn begin(
        &self,
        group: &Arc<str>,
        operation: Collective,
        sequence: u64,
        bytes: usize,
        started: Instant,
    ) -> u64 {
        let started = started.saturating_duration_since(self.origin);
        let group = Arc::clone(group);
        let record =
            OperationRecord { group, operation, sequence, bytes, started, outcome: Outcome::Pending };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let number = ring.next;
        ring.next += 1;
        if ring.records.len() < ring.capacity {
            ring.records.push(record);
        } else if ring.capacity > 0 {
            let index = (number % ring.capacity as u64) as usize;
            ring.records[index] = record;
        }
        number
    }

    /// Notes how the entry ended, if it is still in the ring.
    pub(crate) fn end(&self, number: u64, outcome: Outcome) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.next - number <= ring.capacity as u64 {
            let index = (number % ring.capacity as u64) as usize;
            ring.records[index].outcome = outcome;
        }
    }

    /// The entries, oldest first.
    pub(crate) fn recent(&self) -> Vec<OperationRecord> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest =
            if ring.records.is_empty() { 0 } else { (ring.next % ring.records.len() as u64) as usize };
        let oldest = if ring.records.len() < ring.capacity { 0 } else { oldest };
        ring.records[oldest..].iter().chain(&ring.records[..oldest]).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last() {
        let recorder = Recorder::new(3, Instant::now());
        let group: Arc<str> = "dp[0,1]".into();
        for sequence in 0..5 {
            let number = recorder.begin(&group, Collective::AllGather, sequence, 8, Instant::now());
            recorder.end(number.saturating_sub(1), Outcome::Done(Duration::ZERO));
        }
        recorder.end(0, Outcome::Failed(Duration::ZERO)); // long gone
        let recent = recorder.recent();
        assert_eq!(recent.iter().map(|r| r.sequence).collect::<Vec<_>>(), [2, 3, 4]);
        let pending = recent.iter().map(|r| r.outcome == Outcome::Pending).collect::<Vec<_>>();
        assert_eq!(pending, [false, false, true]);
        assert!(recent[2].to_string().contains("all_gather #4 on dp[0,1], 8 bytes: pending"));
        let none = Recorder::new(0, Instant::now());
        none.end(none.begin(&group, Collective::Send, 0, 0, Instant::now()), Outcome::Pending);
        assert!(none.recent().is_empty());
    }
}
