//! [`MappedFile`]: a file's bytes, mapped read-only. What they encode is the reader's business.

use crate::{MemoryError, Plain};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A file mapped read-only; pages are read when touched and may be dropped again by the system.
pub struct MappedFile {
    map: memmap2::Mmap,
    path: PathBuf,
}

/// Maps a file read-only.
///
/// The file must not be truncated or changed in place while it is mapped; replace it by renaming, as this project
/// writes all its own files.
///
/// # Errors
/// [`MemoryError::Map`] if it cannot be opened or mapped.
pub fn map_file(path: impl AsRef<Path>) -> Result<MappedFile, MemoryError> {
    let path = path.as_ref().to_path_buf();
    let map = File::open(&path).and_then(|file| {
        // SAFETY: private and read-only; the documentation above asks that nobody changes the file in place.
        unsafe { memmap2::MmapOptions::new().map(&file) }
    });
    match map {
        Ok(map) => Ok(MappedFile { map, path }),
        Err(source) => Err(MemoryError::Map { path, source }),
    }
}

impl MappedFile {
    /// All bytes of the file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `bytes` bytes from `offset` as elements in the machine's byte order, without a copy.
    ///
    /// # Errors
    /// [`MemoryError::View`] if they are not all in the file, not a whole number of elements, or not aligned.
    pub fn view<T: Plain>(&self, offset: usize, bytes: usize) -> Result<&[T], MemoryError> {
        let part = offset.checked_add(bytes).and_then(|end| self.map.get(offset..end)).filter(|part| {
            part.len().is_multiple_of(size_of::<T>()) && part.as_ptr().cast::<T>().is_aligned()
        });
        match part {
            // SAFETY: in bounds, aligned and a whole number of elements, just checked; any bits are a `T`.
            Some(part) => {
                Ok(unsafe { std::slice::from_raw_parts(part.as_ptr().cast::<T>(), bytes / size_of::<T>()) })
            }
            None => Err(MemoryError::View {
                path: self.path.clone(),
                offset,
                bytes,
                size: size_of::<T>(),
                file_bytes: self.map.len(),
            }),
        }
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("path", &self.path).field("len", &self.map.len()).finish()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn views_are_checked() {
        let path = std::env::temp_dir().join(format!("phalanx-memory-{}.bin", std::process::id()));
        let numbers = [1.0f64, -2.5, 3.25];
        std::fs::write(&path, numbers.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
        let file = map_file(&path).unwrap();
        assert_eq!(file.as_bytes().len(), 24);
        assert_eq!(file.view::<f64>(0, 24).unwrap(), &numbers);
        assert_eq!(file.view::<f64>(8, 16).unwrap(), &numbers[1..]);
        assert!(file.view::<f64>(24, 0).unwrap().is_empty());
        for (offset, bytes) in [(4, 8), (0, 20), (16, 16), (usize::MAX, 8)] {
            assert!(
                matches!(file.view::<f64>(offset, bytes), Err(MemoryError::View { .. })),
                "{offset} {bytes}"
            );
        }
        std::fs::remove_file(&path).unwrap();
        assert!(map_file(&path).unwrap_err().to_string().contains("cannot map"));
    }

    #[test]
    fn an_empty_file_maps() {
        let path = std::env::temp_dir().join(format!("phalanx-memory-empty-{}.bin", std::process::id()));
        std::fs::write(&path, []).unwrap();
        let file = map_file(&path).unwrap();
        assert!(file.as_bytes().is_empty() && file.view::<u16>(0, 0).unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
