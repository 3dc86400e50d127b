//! Whether the tiles of a tensor's pieces are possible at all, and whether together they hold each element exactly
//! once. Tiles come from files that may lie, so everything is bounded before it is walked.

use std::collections::HashMap;

use mesh::{Tile, TileDim};

/// More digits than any mesh gives a dim.
const MAX_DIGITS: usize = 32;
/// Padding that is accepted whatever the size of the tensor, in elements.
const FREE_PADDING: usize = 1 << 20;
/// Local elements, padding included, per element of the tensor.
const MAX_PADDING: usize = 64;

/// What is wrong with a list of tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The tile contradicts itself or the shape.
    Tile { piece: usize, reason: String },
    /// An element is held twice.
    Overlap { piece: usize, element: usize },
    /// An element is not held.
    Hole { element: usize, covered: usize, total: usize },
}

/// Number of elements of a shape, `None` if it does not fit.
pub(super) fn num_elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= isize::MAX as usize)
}

/// Whether `tile` may be walked: it is of a tensor of `shape`, its numbers do not overflow, and its padding is in
/// proportion.
pub(super) fn check_tile(tile: &Tile, shape: &[usize]) -> Result<(), String> {
    if tile.dims.len() != shape.len() || tile.dims.iter().zip(shape).any(|(d, n)| d.size != *n) {
        let sizes: Vec<usize> = tile.dims.iter().map(|d| d.size).collect();
        return Err(format!("it is of shape {sizes:?}, the tensor of {shape:?}"));
    }
    let total = num_elements(shape).ok_or_else(|| format!("shape {shape:?} has too many elements"))?;
    let mut extent = 1usize;
    for dim in &tile.dims {
        let dim_extent = check_dim(dim).ok_or_else(|| format!("the digits of {dim:?} overflow"))?;
        extent = extent.checked_mul(dim_extent).ok_or("its extent overflows")?;
    }
    let walked = match tile.flat {
        Some((offset, len)) => {
            offset.checked_add(len).ok_or_else(|| format!("range {offset}+{len} overflows"))?;
            len.min(extent)
        }
        None => extent,
    };
    let limit = total.saturating_mul(MAX_PADDING).saturating_add(FREE_PADDING);
    if walked > limit {
        return Err(format!("it has {walked} places for a tensor of {total} elements"));
    }
    Ok(())
}

/// Extent of a dim if all its indices fit.
fn check_dim(dim: &TileDim) -> Option<usize> {
    if dim.free.len() > MAX_DIGITS {
        return None;
    }
    let mut extent = 1usize;
    let mut last = dim.base;
    for &(radix, stride) in &dim.free {
        extent = extent.checked_mul(radix)?;
        last = last.checked_add(radix.saturating_sub(1).checked_mul(stride)?)?;
    }
    (last <= isize::MAX as usize && extent <= isize::MAX as usize).then_some(extent)
}

/// Checks lists of tiles; layers that are cut alike are walked once.
#[derive(Debug, Default)]
pub(super) struct Cover {
    known: HashMap<(Vec<usize>, Vec<Tile>), Vec<usize>>,
}

impl Cover {
    /// Number of real elements of each piece, if the pieces hold every element of a tensor of `shape` exactly once.
    ///
    /// The caller has made sure that the tensor's bytes are there, so that a bit per element is a fair price.
    pub(super) fn check(&mut self, shape: &[usize], tiles: Vec<Tile>) -> Result<&[usize], Fault> {
        let key = (shape.to_vec(), tiles);
        if !self.known.contains_key(&key) {
            let lens = walk(shape, &key.1)?;
            self.known.insert(key.clone(), lens);
        }
        Ok(self.known.get(&key).map_or(&[], Vec::as_slice))
    }
}

fn walk(shape: &[usize], tiles: &[Tile]) -> Result<Vec<usize>, Fault> {
    for (piece, tile) in tiles.iter().enumerate() {
        check_tile(tile, shape).map_err(|reason| Fault::Tile { piece, reason })?;
    }
    let total = num_elements(shape).unwrap_or(0);
    let mut held = Bits::new(total);
    let mut lens = Vec::with_capacity(tiles.len());
    for (piece, tile) in tiles.iter().enumerate() {
        let (mut len, mut twice) = (0, None);
        tile.for_each_run(|run| {
            if twice.is_none() {
                twice = held.set(run.global, run.len);
                len += run.len;
            }
        });
        if let Some(element) = twice {
            return Err(Fault::Overlap { piece, element });
        }
        lens.push(len);
    }
    let covered = lens.iter().sum();
    if covered != total {
        return Err(Fault::Hole { element: held.first_clear(), covered, total });
    }
    Ok(lens)
}

/// One bit per element.
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Bits {
        Bits(vec![0; n.div_ceil(64)])
    }

    /// Sets `len` bits from `start`; returns one that was set before, if any.
    fn set(&mut self, start: usize, len: usize) -> Option<usize> {
        let end = start + len;
        let mut at = start;
        while at < end {
            let n = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - n)) << (at % 64);
            let word = &mut self.0[at / 64];
            if *word & mask != 0 {
                return Some(at / 64 * 64 + (*word & mask).trailing_zeros() as usize);
            }
            *word |= mask;
            at += n;
        }
        None
    }

    fn first_clear(&self) -> usize {
        let word = self.0.iter().position(|w| *w != u64::MAX).unwrap_or(0);
        word * 64 + self.0.get(word).map_or(0, |w| w.trailing_ones() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(size: usize, base: usize, n: usize) -> Tile {
        Tile { dims: vec![TileDim { size, base, free: vec![(n, 1)] }], flat: None }
    }

    #[test]
    fn a_partition_passes_and_holes_and_overlaps_are_found() {
        let mut cover = Cover::default();
        assert_eq!(cover.check(&[300], vec![part(300, 0, 130), part(300, 130, 200)]).unwrap(), [130, 170]);
        assert_eq!(
            cover.check(&[300], vec![part(300, 0, 130), part(300, 131, 169)]),
            Err(Fault::Hole { element: 130, covered: 299, total: 300 })
        );
        assert_eq!(
            cover.check(&[300], vec![part(300, 0, 130), part(300, 129, 171)]),
            Err(Fault::Overlap { piece: 1, element: 129 })
        );
        assert_eq!(cover.check(&[], vec![Tile::whole(&[])]).unwrap(), [1]);
        assert_eq!(cover.check(&[0, 3], vec![Tile::whole(&[0, 3])]).unwrap(), [0]);
    }

    #[test]
    fn lying_tiles_are_refused_before_they_are_walked() {
        let dim = |base, free| Tile { dims: vec![TileDim { size: 8, base, free }], flat: None };
        for tile in [
            dim(usize::MAX, vec![(8, 1)]),
            dim(0, vec![(usize::MAX, 1)]),
            dim(0, vec![(1 << 40, 1)]),
            dim(0, vec![(2, usize::MAX)]),
            dim(0, vec![(1 << 33, 0), (1 << 33, 0)]),
            dim(0, vec![(1, 1); 1000]),
            Tile { flat: Some((usize::MAX, 2)), ..Tile::whole(&[8]) },
            Tile::whole(&[2, 4]),
        ] {
            assert!(check_tile(&tile, &[8]).is_err(), "{tile:?}");
        }
        assert!(check_tile(&Tile { flat: Some((1 << 40, 1 << 40)), ..Tile::whole(&[8]) }, &[8]).is_ok());
        assert!(check_tile(&Tile::whole(&[usize::MAX, 2]), &[usize::MAX, 2]).is_err());
    }
}
