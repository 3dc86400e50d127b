//! Where the processes of a job find each other before they can talk: a small table of keys and values that all of
//! them reach. No rank, no collective and no clock but the one that bounds waiting.
//!
//! Every key of a job carries its name and its generation (see [`Scoped`]), so that neither another job on the same
//! store nor an earlier life of the same job is mistaken for this one.

#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod memory;
mod tcp;
mod vigil;

#[cfg(test)]
mod tests;

#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use file::FileStore;
pub use memory::MemoryStore;
pub use tcp::{TcpStore, TcpStoreServer};
pub use vigil::Vigil;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First and longest pause between two looks for a key.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

/// What can go wrong with a store.
#[non_exhaustive]
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached or refuses.
    #[error(
        "cannot {action} the rendezvous store {store}: {problem}; check that it runs there and can be reached"
    )]
    Unavailable {
        /// The store.
        store: String,
        /// What was tried.
        action: &'static str,
        /// Its answer.
        problem: String,
    },
    /// The address of a store is not one.
    #[error("`{text}` names no rendezvous store; write file:DIR, tcp://HOST:PORT{}", if cfg!(feature = "etcd") { " or etcd://HOST:PORT" } else { " (etcd://HOST:PORT needs a build with the feature `etcd`)" })]
    Unknown {
        /// What was given.
        text: String,
    },
    /// Nobody set the key in time.
    #[error("nobody set {key} in the rendezvous store {store} within {:.1} s", waited.as_secs_f64())]
    Absent {
        /// The store.
        store: String,
        /// The key.
        key: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The wait was broken off.
    #[error("the wait for {key} was broken off: {reason}")]
    Interrupted {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
}

/// A table of keys and values that all processes of a job reach.
pub trait Store: Send + Sync + Debug {
    /// Sets a key, replacing what was there.
    ///
    /// # Errors
    /// `Unavailable`.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// Sets a key unless it exists; says whether it did. Of many who try, exactly one does.
    ///
    /// # Errors
    /// `Unavailable`.
    fn create(&self, key: &str, value: &[u8]) -> Result<bool, StoreError>;

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// `Unavailable`.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// What it is and where, for messages.
    fn describe(&self) -> String;
}

/// Waits until a key is set and returns its value. `interrupted` is asked now and then whether to give up, and why.
///
/// # Errors
/// `Absent`, `Interrupted`, `Unavailable`.
pub fn wait_for(
    store: &dyn Store,
    key: &str,
    limit: Duration,
    interrupted: &dyn Fn() -> Option<String>,
) -> Result<Vec<u8>, StoreError> {
    let begun = Instant::now();
    let mut pause = PAUSES[0];
    loop {
        if let Some(value) = store.get(key)? {
            return Ok(value);
        }
        if let Some(reason) = interrupted() {
            return Err(StoreError::Interrupted { key: key.to_owned(), reason });
        }
        if begun.elapsed() > limit {
            return Err(StoreError::Absent { store: store.describe(), key: key.to_owned(), waited: limit });
        }
        std::thread::sleep(pause.min(limit));
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// A store under a prefix.
#[derive(Clone, Debug)]
pub struct Scoped {
    store: Arc<dyn Store>,
    prefix: String,
}

impl Scoped {
    /// The part of `store` that belongs to one generation of one job.
    pub fn of_generation(store: Arc<dyn Store>, job: &str, generation: u64) -> Scoped {
        Scoped { store, prefix: format!("phalanx/{job}/{generation}/") }
    }
}

impl Store for Scoped {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store.set(&format!("{}{key}", self.prefix), value)
    }

    fn create(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        self.store.create(&format!("{}{key}", self.prefix), value)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(&format!("{}{key}", self.prefix))
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}

/// Opens the store that an address names: `file:DIR`, `tcp://HOST:PORT`, `etcd://HOST:PORT`.
///
/// # Errors
/// `Unknown`; `Unavailable` if nothing answers within `limit`.
pub fn open(address: &str, limit: Duration) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(dir) = address.strip_prefix("file:") {
        return Ok(Arc::new(FileStore::open(dir.as_ref())?));
    }
    if let Some(server) = address.strip_prefix("tcp://") {
        return Ok(Arc::new(TcpStore::connect(server, limit)?));
    }
    #[cfg(feature = "etcd")]
    if let Some(server) = address.strip_prefix("etcd://") {
        return Ok(Arc::new(EtcdStore::connect(server, limit)?));
    }
    Err(StoreError::Unknown { text: address.to_owned() })
}
