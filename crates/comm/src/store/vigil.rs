//! Liveness before there are connections: each member of a rendezvous counts in the store, and the others see whether
//! it still does. So a process that dies or is stopped while the others are joining is missed within seconds.

use super::{Store, StoreError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between counts, and between two looks at those of the others.
const BEAT: Duration = Duration::from_millis(500);
/// In place of a count: this member is waited for no more.
const OVER: &[u8] = b"over";

/// What the counting thread is to do: count, stop as one that is done, stop as one that is lost.
const COUNT: u8 = 0;
const END: u8 = 1;
const LOSE: u8 = 2;

/// Counts in the store until it ends, and watches the counts of others. Dropped without [`Vigil::end`] its member is
/// missed by the others, as one that has died.
pub struct Vigil {
    store: Arc<dyn Store>,
    /// Who is watched: members of a kind, and how many of them there are.
    watched: Vec<(&'static str, usize)>,
    silence: Duration,
    orders: Arc<AtomicU8>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last_look: Option<Instant>,
    /// By member: its count and when it changed.
    counts: HashMap<(&'static str, usize), (Vec<u8>, Instant)>,
}

impl Vigil {
    /// Begins to count as member `number` of `size`, each of which is a `kind` (a word).
    ///
    /// # Errors
    /// If the store cannot be written to.
    pub fn begin(
        store: Arc<dyn Store>,
        kind: &'static str,
        number: usize,
        size: usize,
        silence: Duration,
    ) -> Result<Vigil, StoreError> {
        let orders = Arc::new(AtomicU8::new(COUNT));
        let vigil = Vigil { store, watched: vec![(kind, size)], silence, orders, seen: Mutex::default() };
        let key = key(kind, number);
        vigil.store.set(&key, b"0")?;
        let (store, orders) = (Arc::clone(&vigil.store), Arc::clone(&vigil.orders));
        std::thread::spawn(move || {
            let mut count = 0u64;
            let mut last = Instant::now();
            while orders.load(Ordering::Relaxed) == COUNT {
                if last.elapsed() >= BEAT {
                    count += 1;
                    last = Instant::now();
                    // A store that is away is noticed by whoever waits for it.
                    let _ = store.set(&key, count.to_string().as_bytes());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if orders.load(Ordering::Relaxed) == END {
                // As above.
                let _ = store.set(&key, OVER);
            }
        });
        Ok(vigil)
    }

    /// Watches `size` members of another kind as well, as far as they have begun.
    pub fn and_watch(mut self, kind: &'static str, size: usize) -> Vigil {
        self.watched.push((kind, size));
        self
    }

    /// Stops counting: nobody waits for this member any more.
    pub fn end(&self) {
        self.orders.store(END, Ordering::Relaxed);
    }

    /// Who has begun and fallen silent, in words.
    pub fn missed(&self) -> Option<String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.last_look.is_some_and(|at| at.elapsed() < BEAT) {
            return None;
        }
        let was_away = seen.last_look.is_some_and(|at| at.elapsed() > self.silence);
        seen.last_look = Some(Instant::now());
        let members = self.watched.iter().flat_map(|&(kind, size)| (0..size).map(move |n| (kind, n)));
        for (kind, number) in members {
            let Ok(Some(count)) = self.store.get(&key(kind, number)) else { continue };
            let now = Instant::now();
            let entry = seen.counts.entry((kind, number)).or_insert_with(|| (count.clone(), now));
            if entry.0 != count || was_away {
                *entry = (count, now);
            } else if count != OVER && entry.1.elapsed() > self.silence {
                let silent = entry.1.elapsed().as_secs_f64();
                return Some(format!(
                    "{kind} {number} fell silent {silent:.1} s ago, before the ranks were connected: it has died or is \
                     stopped"
                ));
            }
        }
        None
    }
}

fn key(kind: &str, number: usize) -> String {
    format!("alive/{kind}/{number}")
}

impl Drop for Vigil {
    fn drop(&mut self) {
        // Unless it has ended.
        let _ = self.orders.compare_exchange(COUNT, LOSE, Ordering::Relaxed, Ordering::Relaxed);
    }
}
