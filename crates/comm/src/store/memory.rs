//! The store of ranks that are threads of one process.

use super::{Store, StoreError};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A table in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    table: Mutex<HashMap<String, Vec<u8>>>,
}

impl MemoryStore {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.table().insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn create(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        let mut table = self.table();
        let is_new = !table.contains_key(key);
        if is_new {
            table.insert(key.to_owned(), value.to_vec());
        }
        Ok(is_new)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.table().get(key).cloned())
    }

    fn describe(&self) -> String {
        "in memory".to_owned()
    }
}
