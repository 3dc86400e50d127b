//! Messages between two ranks: copied by the sender into a buffer that is used again, so that a send completes alone.

use super::world::lock;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

struct Message {
    from: usize,
    tag: u64,
    bytes: Vec<u8>,
}

/// The letters to one member of a group, and the buffers that carried earlier ones.
#[derive(Default)]
pub(super) struct Mailbox {
    /// How many messages ever came.
    arrivals: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<Message>,
    free: Vec<Vec<u8>>,
}

impl Inner {
    /// The smallest free buffer that is large enough, or a new one.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let fit = |(_, b): &(usize, &Vec<u8>)| b.capacity() >= len;
        match self.free.iter().enumerate().filter(fit).min_by_key(|(_, b)| b.capacity()) {
            Some((i, _)) => self.free.swap_remove(i),
            None => Vec::with_capacity(len),
        }
    }
}

impl Mailbox {
    /// How many messages ever came: changes when there may be something to take.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::SeqCst)
    }

    /// Copies a message in. The caller wakes the receiver.
    pub(super) fn put(&self, from: usize, tag: u64, content: &[u8]) {
        let mut bytes = lock(&self.inner).buffer(content.len());
        bytes.extend_from_slice(content); // outside the lock: it may be long
        lock(&self.inner).messages.push_back(Message { from, tag, bytes });
        self.arrivals.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes the oldest message of this sender and tag.
    pub(super) fn take(&self, from: usize, tag: u64) -> Option<Vec<u8>> {
        let mut inner = lock(&self.inner);
        let index = inner.messages.iter().position(|m| (m.from, m.tag) == (from, tag))?;
        inner.messages.remove(index).map(|m| m.bytes)
    }

    /// Gives a buffer back for later messages.
    pub(super) fn recycle(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        lock(&self.inner).free.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_match_by_sender_and_tag_in_order() {
        let mailbox = Mailbox::default();
        for (from, tag, content) in [(0, 7, "a"), (1, 7, "b"), (0, 8, "c"), (0, 7, "d")] {
            mailbox.put(from, tag, content.as_bytes());
        }
        for (from, tag, content) in [(0, 8, "c"), (0, 7, "a"), (0, 7, "d"), (1, 7, "b")] {
            assert_eq!(mailbox.take(from, tag).unwrap(), content.as_bytes());
        }
        assert!(mailbox.take(0, 7).is_none());
        assert_eq!(mailbox.arrivals(), 4);
    }

    #[test]
    fn the_best_fitting_buffer_is_used_again() {
        let mailbox = Mailbox::default();
        for capacity in [100, 10, 1000] {
            mailbox.recycle(Vec::with_capacity(capacity));
        }
        mailbox.put(0, 0, &[1; 50]);
        assert_eq!(mailbox.take(0, 0).unwrap().capacity(), 100);
    }
}
