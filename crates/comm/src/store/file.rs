//! The store of processes on one host: a directory with one file per key.

use super::{Store, StoreError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells the temporary files of one process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A directory that all processes see.
#[derive(Debug)]
pub struct FileStore {
    dir: PathBuf,
}

impl FileStore {
    /// Opens a directory, creating it if need be.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be created.
    pub fn open(dir: &Path) -> Result<FileStore, StoreError> {
        let store = FileStore { dir: dir.to_owned() };
        fs::create_dir_all(dir).map_err(|e| store.unavailable("create", &e))?;
        Ok(store)
    }

    fn unavailable(&self, action: &'static str, problem: &io::Error) -> StoreError {
        StoreError::Unavailable { store: self.describe(), action, problem: problem.to_string() }
    }

    /// The file of a key: letters, digits, `-` and `_` as they are, the rest by number, so that no key leaves the
    /// directory and no two meet.
    fn path(&self, key: &str) -> PathBuf {
        let mut name = String::with_capacity(key.len() + 8);
        for byte in key.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
                other => name.push_str(&format!("%{other:02x}")),
            }
        }
        self.dir.join(name)
    }

    /// A file of its own with `value`, to be linked or renamed: a reader never sees half a value.
    fn write_temporary(&self, value: &[u8]) -> Result<PathBuf, StoreError> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!(".{}-{number}", std::process::id()));
        fs::write(&path, value).map_err(|e| self.unavailable("write to", &e))?;
        Ok(path)
    }
}

impl Store for FileStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let temporary = self.write_temporary(value)?;
        fs::rename(&temporary, self.path(key)).map_err(|e| self.unavailable("write to", &e))
    }

    fn create(&self, key: &str, value: &[u8]) -> Result<bool, StoreError> {
        let temporary = self.write_temporary(value)?;
        let linked = fs::hard_link(&temporary, self.path(key));
        fs::remove_file(&temporary).map_err(|e| self.unavailable("write to", &e))?;
        match linked {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(self.unavailable("write to", &e)),
        }
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match fs::read(self.path(key)) {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.unavailable("read", &e)),
        }
    }

    fn describe(&self) -> String {
        format!("file:{}", self.dir.display())
    }
}
