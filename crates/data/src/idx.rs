//! IDX: the form of MNIST's files (LeCun, Cortes, Burges 1998), a big-endian header and unsigned bytes.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::rows::source_content;
use crate::{DataError, rows::malformed_at};

/// Type code of unsigned bytes, the only one that images and labels come in.
const UNSIGNED_BYTE: u8 = 8;
/// Largest item: an image of 4096 x 4096 in three colours.
const MAX_ITEM_BYTES: usize = 3 << 24;

/// An open IDX file whose items are read one after another.
pub struct Idx {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    /// Items.
    pub num_items: usize,
    /// Shape of an item: empty for a label, `[height, width]` or `[height, width, channels]` for an image.
    pub shape: Vec<usize>,
    read: usize,
}

impl Idx {
    /// Opens a file, packed with gzip or not.
    ///
    /// # Errors
    /// A file that is missing, not IDX of unsigned bytes, or says sizes that no image has.
    pub fn open(path: &Path) -> Result<Idx, DataError> {
        let mut reader = source_content(path)?;
        let refuse = |problem: &str| malformed_at(path, "", problem);
        let mut magic = [0; 4];
        let cut_off = "ends within its header; fetch it again";
        reader.read_exact(&mut magic).map_err(|_| refuse(cut_off))?;
        let [0, 0, kind, num_dims @ 1..=4] = magic else {
            return Err(refuse("not an IDX file: it must start with two zero bytes, a type and 1 to 4 dims"));
        };
        if kind != UNSIGNED_BYTE {
            return Err(refuse(&format!("holds IDX type {kind}; unsigned bytes (8) are supported")));
        }
        let mut sizes = Vec::new();
        for _ in 0..num_dims {
            let mut size = [0; 4];
            reader.read_exact(&mut size).map_err(|_| refuse(cut_off))?;
            sizes.push(u32::from_be_bytes(size) as usize);
        }
        let (num_items, shape) = (sizes[0], sizes[1..].to_vec());
        let bytes = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        if !bytes.is_some_and(|bytes| (1..=MAX_ITEM_BYTES).contains(&bytes)) {
            let problem =
                format!("its header says items of shape {shape:?}, which no image has; write it again");
            return Err(refuse(&problem));
        }
        Ok(Idx { path: path.to_path_buf(), reader, num_items, shape, read: 0 })
    }

    /// The next item; none behind the last.
    ///
    /// # Errors
    /// A file that has fewer or more bytes than its header says.
    pub fn next_item(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        if self.read == self.num_items {
            let mut beyond = [0];
            return match self.reader.read(&mut beyond) {
                Ok(0) => Ok(None),
                Ok(_) => Err(self.refuse("goes on behind the")),
                Err(source) => Err(DataError::reading(&self.path, source)),
            };
        }
        let mut item = vec![0; self.shape.iter().product()];
        self.reader.read_exact(&mut item).map_err(|_| self.refuse("ends before the"))?;
        self.read += 1;
        Ok(Some(item))
    }

    fn refuse(&self, what: &str) -> DataError {
        let problem = format!("{what} {} items that its header says; fetch it again", self.num_items);
        malformed_at(&self.path, "", &problem)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(content: &[u8]) -> Result<(Vec<usize>, Vec<Vec<u8>>), DataError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.idx");
        std::fs::write(&path, content).unwrap();
        let mut idx = Idx::open(&path)?;
        let mut items = Vec::new();
        while let Some(item) = idx.next_item()? {
            items.push(item);
        }
        Ok((idx.shape, items))
    }

    const TWO: [u8; 20] = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4];

    #[test]
    fn images_and_labels_are_read() {
        assert_eq!(read(&TWO).unwrap(), (vec![1, 2], vec![vec![1, 2], vec![3, 4]]));
        assert_eq!(read(&[0, 0, 8, 1, 0, 0, 0, 1, 7]).unwrap(), (vec![], vec![vec![7]]));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let message = |content: &[u8]| read(content).unwrap_err().to_string();
        assert!(message(&TWO[..19]).contains("ends before the 2 items that its header says"));
        assert!(message(&[&TWO[..], &[0]].concat()).contains("goes on behind the 2 items"));
        assert!(message(&TWO[..10]).contains("ends within its header"));
        assert!(message(b"\x89PNG\r\n\x1a\n").contains("not an IDX file"));
        let mut other = TWO;
        other[2] = 13;
        assert!(message(&other).contains("IDX type 13"));
        other = TWO;
        other[8..16].fill(0xff);
        assert!(message(&other).contains("which no image has"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(content in prop::collection::vec(any::<u8>(), 0..64), starts: bool) {
            let content = if starts { [&[0, 0, 8][..], &content].concat() } else { content };
            // Every item takes bytes that must be there.
            prop_assert!(read(&content).map_or(0, |(_, items)| items.len()) <= content.len());
        }
    }
}
