//! Liveness before there are connections: each member of a rendezvous counts in the store, and the others see whether
//! it still does. So a process that dies or is stopped while the others are joining is missed within seconds.

use super::{Store, StoreError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between counts, and between two looks at those of the others.
const BEAT: Duration = Duration::from_millis(500);

/// Counts in the store until it is dropped, and watches the counts of others.
pub struct Vigil {
    store: Arc<dyn Store>,
    kind: &'static str,
    size: usize,
    silence: Duration,
    over: Arc<AtomicBool>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last_look: Option<Instant>,
    /// By member: its count and when it changed.
    counts: HashMap<usize, (Vec<u8>, Instant)>,
}

impl Vigil {
    /// Begins to count as member `number` of `size`, each of which is a `kind` (a word).
    pub fn begin(
        store: Arc<dyn Store>,
        kind: &'static str,
        number: usize,
        size: usize,
        silence: Duration,
    ) -> Result<Vigil, StoreError> {
        let over = Arc::new(AtomicBool::new(false));
        let vigil = Vigil { store, kind, size, silence, over, seen: Mutex::default() };
        let key = vigil.key(number);
        vigil.store.set(&key, b"0")?;
        let (store, over) = (Arc::clone(&vigil.store), Arc::clone(&vigil.over));
        std::thread::spawn(move || {
            let mut count = 0u64;
            let mut last = Instant::now();
            while !over.load(Ordering::Relaxed) {
                if last.elapsed() >= BEAT {
                    count += 1;
                    last = Instant::now();
                    // A store that is away is noticed by whoever waits for it.
                    let _ = store.set(&key, count.to_string().as_bytes());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Ok(vigil)
    }

    /// Stops counting: nobody waits for this member any more.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn key(&self, number: usize) -> String {
        format!("alive/{}/{number}", self.kind)
    }

    /// Who has begun and fallen silent, in words.
    pub fn missed(&self) -> Option<String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.last_look.is_some_and(|at| at.elapsed() < BEAT) {
            return None;
        }
        let was_away = seen.last_look.is_some_and(|at| at.elapsed() > self.silence);
        seen.last_look = Some(Instant::now());
        for number in 0..self.size {
            let Ok(Some(count)) = self.store.get(&self.key(number)) else { continue };
            let now = Instant::now();
            let entry = seen.counts.entry(number).or_insert_with(|| (count.clone(), now));
            if entry.0 != count || was_away {
                *entry = (count, now);
            } else if entry.1.elapsed() > self.silence {
                let silent = entry.1.elapsed().as_secs_f64();
                return Some(format!(
                    "{} {number} fell silent {silent:.1} s ago, before the ranks were connected: it has died or is \
                     stopped",
                    self.kind
                ));
            }
        }
        None
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        self.end();
    }
}
