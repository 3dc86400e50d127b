//! The placement of one value on every axis, and the numbers that follow from it: local extents and the geometry of
//! moves along one axis.

use std::fmt;

use graph::Dim;
use mesh::{Axis, AxisSet, Coord, Placement, Tile};

use crate::plan::Plan;

/// One placement per axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    placements: [Placement<Dim>; Axis::COUNT],
}

impl Layout {
    /// Equal on all ranks.
    pub const WHOLE: Layout = Layout { placements: [Placement::Whole; Axis::COUNT] };

    /// Placement along `axis`.
    pub fn get(&self, axis: Axis) -> Placement<Dim> {
        self.placements[axis.index()]
    }

    /// The same layout but for `axis`.
    #[must_use]
    pub fn with(mut self, axis: Axis, placement: Placement<Dim>) -> Layout {
        self.placements[axis.index()] = placement;
        self
    }

    /// Axes on which `dim` is sharded.
    pub fn sharding(&self, dim: Dim) -> AxisSet {
        Axis::ALL.into_iter().filter(|a| self.get(*a) == Placement::Shard(dim)).collect()
    }

    /// Axes in space on which a reduction is owed.
    pub fn partial(&self) -> AxisSet {
        Axis::SPACE.into_iter().filter(|a| self.get(*a).is_partial()).collect()
    }

    /// The axis that shards all elements in one row, if any.
    pub fn flat_axis(&self) -> Option<Axis> {
        self.sharding(Dim::FLAT).iter().next()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for axis in Axis::ALL {
            let text = match self.get(axis) {
                Placement::Whole => continue,
                Placement::Shard(Dim::FLAT) => "flat".to_owned(),
                Placement::Shard(dim) => format!("shard({})", dim.index()),
                Placement::Partial(reduce) => format!("partial({reduce:?})"),
            };
            write!(f, "{}{axis}:{text}", if first { "" } else { " " })?;
            first = false;
        }
        f.write_str(if first { "whole" } else { "" })
    }
}

impl Plan {
    /// Local extents of the dims, before any flat shard.
    pub fn local_shape(&self, dims: &[Dim], layout: &Layout) -> Vec<usize> {
        dims.iter().map(|d| self.digits(*d).local_extent(layout.sharding(*d))).collect()
    }

    /// Number of local elements, padding included.
    pub fn local_len(&self, dims: &[Dim], layout: &Layout) -> usize {
        let len = self.local_shape(dims, layout).iter().product::<usize>();
        layout.flat_axis().map_or(len, |axis| len.div_ceil(self.mesh.size(axis)))
    }

    /// Which elements of the global tensor a rank at `coord` holds.
    pub fn tile(&self, dims: &[Dim], layout: &Layout, coord: &Coord) -> Tile {
        let tile_dims = dims.iter().map(|d| self.digits(*d).tile(layout.sharding(*d), coord)).collect();
        let flat = layout.flat_axis().map(|axis| {
            let len = self.local_len(dims, layout);
            (coord.get(axis) * len, len)
        });
        Tile { dims: tile_dims, flat }
    }

    /// `(outer, n, inner)` such that a value in `layout`, were it whole along `axis`, is `[outer][n][inner]`, and one
    /// rank's shard of `dim` along `axis` is `[outer][inner]` of it.
    pub fn geometry(&self, dims: &[Dim], layout: &Layout, axis: Axis, dim: Dim) -> (usize, usize, usize) {
        self.geometry_beside(dims, &layout.with(axis, Placement::Whole), axis, dim)
    }

    /// The same where the value stays in `layout` along `axis` (sharded on another dim, during an exchange).
    pub(crate) fn geometry_beside(
        &self,
        dims: &[Dim],
        open: &Layout,
        axis: Axis,
        dim: Dim,
    ) -> (usize, usize, usize) {
        if dim == Dim::FLAT {
            let n = self.mesh.size(axis);
            return (1, n, self.local_len(dims, open).div_ceil(n));
        }
        let shape = self.local_shape(dims, open);
        let at = dims.iter().position(|d| *d == dim).expect("a value is sharded on its own dims");
        let (outer, n, inner) = self.digits(dim).around(axis, open.sharding(dim));
        let before: usize = shape[..at].iter().product();
        let after: usize = shape[at + 1..].iter().product();
        (before * outer, n, inner * after)
    }
}
