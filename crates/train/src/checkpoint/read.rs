//! Reading tensors out of a checkpoint in any layout, bit for bit.

use mesh::Tile;

use super::cover;
use super::dtype::{DType, Element};
use super::error::CheckpointError;
use super::manifest::{Piece, TensorEntry};
use super::open::Checkpoint;

impl Checkpoint {
    /// Fills `out`, a buffer of all local positions of `want`, with the elements of tensor `name`; padding becomes 0.
    ///
    /// A piece that was written with the same tile is read directly. Otherwise the pieces that may meet `want` are
    /// assembled in a temporary of the size of the tensor.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or type, a buffer of another size, a file that can no longer be
    /// read.
    pub fn read(&self, name: &str, want: &Tile, dtype: DType, out: &mut [u8]) -> Result<(), CheckpointError> {
        let tensor = self.tensor(name)?;
        if tensor.dtype != dtype {
            let (tensor, saved) = (name.to_owned(), tensor.dtype);
            return Err(CheckpointError::DTypeMismatch { tensor, saved, wanted: dtype });
        }
        let wanted = want.global_shape();
        if wanted != tensor.shape {
            let (tensor, saved) = (name.to_owned(), tensor.shape.clone());
            return Err(CheckpointError::ShapeMismatch { tensor, saved, wanted });
        }
        cover::check_tile(want, &tensor.shape)
            .map_err(|reason| CheckpointError::BadTile { tensor: name.to_owned(), reason })?;
        let size = dtype.size_bytes();
        let expected = want.local_len().saturating_mul(size);
        if out.len() != expected {
            return Err(CheckpointError::WrongBuffer {
                tensor: name.to_owned(),
                actual: out.len(),
                expected,
            });
        }
        out.fill(0);
        if let Some(piece) = tensor.pieces.iter().find(|p| p.tile == *want) {
            return self.copy(tensor, piece, out, |run| run.local);
        }
        if *want == Tile::whole(&tensor.shape) {
            return self.assemble(tensor, want, out);
        }
        let mut global = vec![0; want.global_len() * size];
        self.assemble(tensor, want, &mut global)?;
        want.for_each_run(|run| {
            let from = &global[run.global * size..(run.global + run.len) * size];
            out[run.local * size..(run.local + run.len) * size].copy_from_slice(from);
        });
        Ok(())
    }

    /// [`read`](Checkpoint::read) into a slice of numbers.
    ///
    /// # Errors
    /// Those of [`read`](Checkpoint::read).
    pub fn read_into<T: Element>(
        &self,
        name: &str,
        want: &Tile,
        out: &mut [T],
    ) -> Result<(), CheckpointError> {
        self.read(name, want, T::DTYPE, bytemuck::cast_slice_mut(out))
    }

    /// The whole tensor `name`, row-major, without padding: what an export needs. Its shape and type are in
    /// [`tensor`](Checkpoint::tensor).
    ///
    /// # Errors
    /// A tensor that is missing, a file that can no longer be read.
    pub fn read_whole(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let want = Tile::whole(&tensor.shape);
        let mut out = vec![0; want.global_len() * tensor.dtype.size_bytes()];
        self.read(name, &want, tensor.dtype, &mut out)?;
        Ok(out)
    }

    /// Copies the pieces that may meet `want` to their places in the whole tensor.
    fn assemble(&self, tensor: &TensorEntry, want: &Tile, global: &mut [u8]) -> Result<(), CheckpointError> {
        let wanted = bounds(want);
        for piece in &tensor.pieces {
            let held = bounds(&piece.tile);
            if wanted.iter().zip(&held).all(|(a, b)| a.0 <= b.1 && b.0 <= a.1) {
                self.copy(tensor, piece, global, |run| run.global)?;
            }
        }
        Ok(())
    }

    fn copy(
        &self,
        tensor: &TensorEntry,
        piece: &Piece,
        out: &mut [u8],
        place: impl Fn(mesh::Run) -> usize,
    ) -> Result<(), CheckpointError> {
        let shard = self.by_file.get(&piece.shard).and_then(|i| self.shards.get(*i));
        // both were found when the checkpoint was opened
        let Some((shard, region)) = shard.and_then(|s| Some((s, s.region(&piece.key)?))) else {
            return Err(CheckpointError::MissingFile { path: self.dir.join(&piece.shard) });
        };
        debug_assert_eq!(region.dtype, tensor.dtype);
        shard.copy(region, &piece.tile, out, place)
    }
}

/// First and last global index along each dim, generously: a flat range narrows the first dim alone.
fn bounds(tile: &Tile) -> Vec<(usize, usize)> {
    let mut bounds: Vec<(usize, usize)> = tile
        .dims
        .iter()
        .map(|d| {
            (
                d.base,
                d.base + d.free.iter().map(|(radix, stride)| radix.saturating_sub(1) * stride).sum::<usize>(),
            )
        })
        .collect();
    if let (Some((offset, len)), Some((first, inner))) = (tile.flat, tile.dims.split_first()) {
        let row: usize = inner.iter().map(mesh::TileDim::extent).product();
        let ascending = first.free.windows(2).all(|w| w[0].1 >= w[1].0.saturating_mul(w[1].1));
        let extent = first.extent();
        if ascending && row > 0 && extent > 0 && len > 0 {
            let start = (offset / row).min(extent - 1);
            let end = ((offset + len - 1) / row).min(extent - 1);
            bounds[0] = (first.global(start), first.global(end));
        }
    }
    bounds
}
