//! Changes to the file system that a save makes, one function each: written, synced, renamed, removed. Every change of
//! a save goes through here, so that tests can stop it before any one of them, or halfway through.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::error::CheckpointError;

/// Bytes gathered before they are hashed and written.
const CHUNK_BYTES: usize = 1 << 16;

/// Creates a directory and its parents.
pub(super) fn create_dirs(path: &Path) -> Result<(), CheckpointError> {
    stop().and_then(|()| fs::create_dir_all(path)).map_err(CheckpointError::io("create directory", path))
}

/// Creates a directory that must not exist.
pub(super) fn create_dir(path: &Path) -> Result<(), CheckpointError> {
    stop().and_then(|()| fs::create_dir(path)).map_err(CheckpointError::io("create directory", path))
}

/// Renames, replacing a file at `to`.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    stop().and_then(|()| fs::rename(from, to)).map_err(CheckpointError::io("rename", from))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), CheckpointError> {
    stop().and_then(|()| File::open(path)?.sync_all()).map_err(CheckpointError::io("sync directory", path))
}

/// Removes one file.
pub(super) fn remove_file(path: &Path) -> Result<(), CheckpointError> {
    stop().and_then(|()| fs::remove_file(path)).map_err(CheckpointError::io("remove", path))
}

/// Removes a directory and what is in it.
pub(super) fn remove_tree(path: &Path) -> Result<(), CheckpointError> {
    #[cfg(test)]
    if fault::next_strikes() {
        let _ =
            fs::read_dir(path).map(|mut d| d.next().and_then(Result::ok).map(|f| fs::remove_file(f.path())));
    }
    stop().map_err(CheckpointError::io("remove", path))?;
    fs::remove_dir_all(path).map_err(CheckpointError::io("remove", path))
}

/// Writes a small file whole: temporary name, sync, rename. The directory is not synced.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let mut file = HashedFile::create(temporary)?;
    file.push(bytes).map_err(CheckpointError::io("write", temporary))?;
    file.finish().map_err(CheckpointError::io("write", temporary))?;
    rename(temporary, path)
}

/// A new file that is hashed while it is written.
pub(super) struct HashedFile {
    file: File,
    hasher: blake3::Hasher,
    waiting: Vec<u8>,
    bytes: u64,
}

impl HashedFile {
    /// Creates the file; it must not exist.
    pub(super) fn create(path: &Path) -> Result<HashedFile, CheckpointError> {
        let file =
            stop().and_then(|()| File::create_new(path)).map_err(CheckpointError::io("create", path))?;
        Ok(HashedFile { file, hasher: blake3::Hasher::new(), waiting: Vec::new(), bytes: 0 })
    }

    /// Appends.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.waiting.len() + bytes.len() > CHUNK_BYTES {
            self.flush()?;
        }
        if bytes.len() > CHUNK_BYTES {
            return self.write(bytes);
        }
        self.waiting.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes the file durable and returns its size and hash.
    pub(super) fn finish(mut self) -> io::Result<(u64, String)> {
        self.flush()?;
        stop()?;
        self.file.sync_all()?;
        Ok((self.bytes, self.hasher.finalize().to_hex().to_string()))
    }

    fn flush(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.write(&waiting)?;
        self.waiting = waiting;
        self.waiting.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if fault::next_strikes() {
            self.file.write_all(&bytes[..bytes.len() / 2])?;
        }
        stop()?;
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Where a test may stop the save, as a kill would; does nothing otherwise.
fn stop() -> io::Result<()> {
    #[cfg(test)]
    fault::pass()?;
    Ok(())
}

/// A simulated kill: after a number of changes the thread makes no more of them.
#[cfg(test)]
pub(super) mod fault {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<i64>> = const { Cell::new(None) };
    }

    /// Lets `changes` more changes happen on this thread, tears the next one, and drops the rest; `None`: no limit.
    pub(in super::super) fn after(changes: Option<i64>) {
        LEFT.set(changes);
    }

    /// Whether the limit was reached.
    pub(in super::super) fn struck() -> bool {
        LEFT.get().is_some_and(|left| left < 0)
    }

    /// Whether the next change is the one to tear.
    pub(super) fn next_strikes() -> bool {
        LEFT.get() == Some(0)
    }

    pub(super) fn pass() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(left) => {
                LEFT.set(Some(left - 1));
                if left > 0 { Ok(()) } else { Err(io::Error::other("killed by the test")) }
            }
        }
    }
}
