//! Files that appear whole or not at all, however many writers there are. What is written is decided elsewhere.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::DataError;

/// Writes `path` through a temporary file beside it: write, fsync, rename, fsync of the directory.
///
/// A failed write leaves nothing behind, not even the directories that it made. Readers see the old file or the new one, never a part; a reader that has the old file mapped keeps it. Writers in
/// other threads and processes do not disturb each other: the last rename wins. A writer that is killed leaves its
/// temporary file (`*.tmp`), which nobody reads.
pub(crate) fn write(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), DataError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let made: Vec<&Path> = directory.ancestors().take_while(|d| !d.exists()).collect();
    fs::create_dir_all(directory).map_err(|source| DataError::writing(directory, source))?;
    let (temporary, file) = create_beside(path).map_err(|source| DataError::writing(path, source))?;
    let written = (|| {
        let mut writer = BufWriter::new(file);
        content(&mut writer)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // A rename is durable once its directory is; some file systems refuse to sync one, which loses nothing now.
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
        Ok(())
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        // Those that others have begun to use are not empty and stay.
        made.iter().for_each(|directory| _ = fs::remove_dir(directory));
        DataError::writing(path, source)
    })
}

/// A new file that no other writer has: named by process and count, and created only if absent, since processes of
/// several hosts may share the directory and a process number.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}-{}.tmp", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes bytes; see [`write`].
pub(crate) fn write_bytes(path: &Path, content: &[u8]) -> Result<(), DataError> {
    write(path, |writer| writer.write_all(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write_bytes(&path, b"old").unwrap();
        let failed = write(&path, |writer| {
            writer.write_all(b"ne")?;
            Err(io::Error::other("disk full"))
        });
        assert!(matches!(failed, Err(DataError::Write { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
