//! Which elements of a global tensor one rank holds, in which order: the common tongue of initial weights, batches,
//! checkpoints and tests. A tile holds no data.

use serde::{Deserialize, Serialize};

/// The part of one dim that a tile covers: `base` plus a mixed-radix number over `free` digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TileDim {
    /// Number of real elements of the global dim; indices from here on are padding.
    pub size: usize,
    /// Global index of local position 0.
    pub base: usize,
    /// `(radix, stride)` of each free digit, most significant first.
    pub free: Vec<(usize, usize)>,
}

impl TileDim {
    /// A dim held completely, without padding.
    pub fn whole(size: usize) -> TileDim {
        TileDim { size, base: 0, free: vec![(size, 1)] }
    }

    /// Number of local positions, padding included.
    pub fn extent(&self) -> usize {
        self.free.iter().map(|(radix, _)| radix).product()
    }

    /// Global index of a local position.
    pub fn global(&self, local: usize) -> usize {
        let mut rest = local;
        let mut index = self.base;
        for &(radix, stride) in self.free.iter().rev() {
            index += rest % radix * stride;
            rest /= radix;
        }
        index
    }

    /// Length of the stretches, from local position 0 on, whose positions are neighbours globally as well.
    fn contiguous(&self) -> usize {
        let mut len = 1;
        for &(radix, stride) in self.free.iter().rev() {
            if radix > 1 && stride != len {
                break;
            }
            len *= radix;
        }
        len
    }

    /// Global indices of all local positions in order, padding included.
    pub fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.extent()).map(|i| self.global(i))
    }
}

/// The elements of a global tensor that one rank holds.
///
/// Local order is row-major over the dims; with `flat` the rank holds only that range of the (padded) local elements,
/// which is how ZeRO shards a parameter whatever its dims.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tile {
    /// One entry per dim.
    pub dims: Vec<TileDim>,
    /// `(offset, len)` into the local elements; `len` may reach beyond them (padding).
    pub flat: Option<(usize, usize)>,
}

/// A stretch of elements that are neighbours both locally and globally.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Offset in the rank's own buffer.
    pub local: usize,
    /// Row-major offset in the global tensor.
    pub global: usize,
    /// Number of elements.
    pub len: usize,
}

impl Tile {
    /// The whole tensor of `shape`.
    pub fn whole(shape: &[usize]) -> Tile {
        Tile { dims: shape.iter().map(|n| TileDim::whole(*n)).collect(), flat: None }
    }

    /// Shape of the global tensor.
    pub fn global_shape(&self) -> Vec<usize> {
        self.dims.iter().map(|d| d.size).collect()
    }

    /// Number of elements of the global tensor.
    pub fn global_len(&self) -> usize {
        self.dims.iter().map(|d| d.size).product()
    }

    /// Number of elements in the rank's buffer, padding included.
    pub fn local_len(&self) -> usize {
        self.flat.map_or_else(|| self.dims.iter().map(TileDim::extent).product(), |(_, len)| len)
    }

    /// Number of real elements in the rank's buffer.
    pub fn real_len(&self) -> usize {
        let mut n = 0;
        self.for_each_run(|run| n += run.len);
        n
    }

    /// Visits every real element as maximal runs, in local order; padding is skipped.
    ///
    /// What a contiguous stretch costs does not depend on its length, but for one step a row.
    pub fn for_each_run(&self, mut visit: impl FnMut(Run)) {
        let mut pending: Option<Run> = None;
        self.for_each_stretch(|next| match &mut pending {
            Some(run) if run.local + run.len == next.local && run.global + run.len == next.global => {
                run.len += next.len;
            }
            _ => {
                if let Some(run) = pending.replace(next) {
                    visit(run);
                }
            }
        });
        if let Some(run) = pending {
            visit(run);
        }
    }

    /// As [`for_each_run`](Self::for_each_run), but a run may be cut in several.
    fn for_each_stretch(&self, mut visit: impl FnMut(Run)) {
        let Some((last, outer)) = self.dims.split_last() else {
            if self.flat.is_none_or(|(offset, len)| offset == 0 && len > 0) {
                visit(Run { local: 0, global: 0, len: 1 });
            }
            return;
        };
        let width = last.extent();
        let rows: usize = outer.iter().map(TileDim::extent).product();
        let (start, len) = self.flat.unwrap_or((0, rows * width));
        if width == 0 || len == 0 {
            return;
        }
        let block = last.contiguous();
        for row in start / width..rows.min((start + len).div_ceil(width)) {
            let Some(row_global) = global_row(outer, row) else { continue };
            let mut column = start.saturating_sub(row * width);
            let end = width.min(start + len - row * width);
            while column < end {
                let (first, next) = (last.global(column), end.min((column / block + 1) * block));
                if first < last.size {
                    visit(Run {
                        local: row * width + column - start,
                        global: row_global * last.size + first,
                        len: (next - column).min(last.size - first),
                    });
                }
                column = next;
            }
        }
    }
}

/// Row-major global index of a local row over the outer dims, `None` if it is padding.
fn global_row(outer: &[TileDim], mut row: usize) -> Option<usize> {
    let (mut global, mut scale) = (0, 1);
    for dim in outer.iter().rev() {
        let index = dim.global(row % dim.extent());
        if index >= dim.size {
            return None;
        }
        row /= dim.extent();
        global += index * scale;
        scale *= dim.size;
    }
    Some(global)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::axis::{Axis, AxisSet, Coord, Mesh};
    use crate::digits::DimDigits;

    proptest! {
        /// Tiles of all ranks cover each element exactly once, with flat shards on top as well.
        #[test]
        fn tiles_partition_the_tensor(a in 1usize..7, b in 1usize..9, striped: bool, parts in 1usize..4) {
            let mesh = Mesh::new(&[(Axis::Tp, 2), (Axis::Cp, 2)]).unwrap();
            let order = if striped { [Some(Axis::Tp), None] } else { [None, Some(Axis::Tp)] };
            let rows = DimDigits::new(a, &order, &mesh);
            let columns = DimDigits::new(b, &[Some(Axis::Cp), None], &mesh);
            let fixed: AxisSet = [Axis::Tp, Axis::Cp].into_iter().collect();
            let mut seen = vec![0; a * b];
            for tp in 0..2 {
                for cp in 0..2 {
                    let coord = Coord::default().at(Axis::Tp, tp).at(Axis::Cp, cp);
                    let dims = vec![rows.tile(fixed, &coord), columns.tile(fixed, &coord)];
                    let n: usize = dims.iter().map(TileDim::extent).product();
                    let chunk = n.div_ceil(parts);
                    for part in 0..parts {
                        let tile = Tile { dims: dims.clone(), flat: Some((part * chunk, chunk)) };
                        let mut next = 0;
                        tile.for_each_run(|run| {
                            assert!(run.local >= next && run.local + run.len <= chunk);
                            next = run.local + run.len;
                            let held = |i| dims[0].global(i / dims[1].extent()) * b + dims[1].global(i % dims[1].extent());
                            assert!((0..run.len).all(|i| held(part * chunk + run.local + i) == run.global + i));
                            for i in 0..run.len {
                                seen[run.global + i] += 1;
                            }
                        });
                    }
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1));
        }
    }

    #[test]
    fn a_scalar_has_one_element() {
        let mut runs = vec![];
        Tile::whole(&[]).for_each_run(|r| runs.push(r));
        assert_eq!(runs, [Run { local: 0, global: 0, len: 1 }]);
        assert_eq!(Tile::whole(&[]).local_len(), 1);
    }

    #[test]
    fn runs_are_as_long_as_they_can_be() {
        let runs = |tile: &Tile| {
            let mut runs = vec![];
            tile.for_each_run(|run| runs.push((run.local, run.global, run.len)));
            runs
        };
        assert_eq!(runs(&Tile::whole(&[2, 3])), [(0, 0, 6)]);
        // The first and the last of three blocks of two columns; the last is half padding.
        let columns = TileDim { size: 5, base: 0, free: vec![(2, 4), (2, 1)] };
        let tile = Tile { dims: vec![TileDim::whole(2), columns], flat: None };
        assert_eq!(runs(&tile), [(0, 0, 2), (2, 4, 1), (4, 5, 2), (6, 9, 1)]);
        assert_eq!(runs(&Tile { flat: Some((1, 6)), ..tile }), [(0, 1, 1), (1, 4, 1), (3, 5, 2), (5, 9, 1)]);
    }
}
