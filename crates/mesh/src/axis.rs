//! Axes of the mesh, coordinates of ranks, and groups. Which tensor dims an axis may split is the plan's business.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One direction along which work is divided.
///
/// All axes but [`Axis::Mb`] are directions in space: a rank has a coordinate on each. `Mb` is a direction in time:
/// microbatches are walked one after another by the same rank, and its only collective is accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Pipeline: stages of the model.
    Pp,
    /// Data: samples of the batch (and the shards of ZeRO).
    Dp,
    /// Experts.
    Ep,
    /// Context: positions of the sequence.
    Cp,
    /// Tensor: heads, hidden units, vocabulary.
    Tp,
    /// The inner factor of tensor parallelism, used when there are more tensor ranks than key-value heads: it splits
    /// the query heads that share one key-value head, whose weights are then whole along it.
    TpInner,
    /// Microbatches, in time.
    Mb,
}

impl Axis {
    /// Number of axes.
    pub const COUNT: usize = 7;
    /// Axes in space, outermost (slowest varying rank) first: neighbours along `Tp` have neighbouring ranks.
    pub const SPACE: [Axis; 6] = [Axis::Pp, Axis::Dp, Axis::Ep, Axis::Cp, Axis::Tp, Axis::TpInner];
    /// Every axis, space then time.
    pub const ALL: [Axis; Axis::COUNT] =
        [Axis::Pp, Axis::Dp, Axis::Ep, Axis::Cp, Axis::Tp, Axis::TpInner, Axis::Mb];

    /// Position in arrays that have one entry per axis.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The field's short name.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Pp => "pp",
            Axis::Dp => "dp",
            Axis::Ep => "ep",
            Axis::Cp => "cp",
            Axis::Tp => "tp",
            Axis::TpInner => "tp_inner",
            Axis::Mb => "mb",
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of axes, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct AxisSet(u8);

impl AxisSet {
    /// No axis.
    pub const EMPTY: AxisSet = AxisSet(0);

    /// The set with `axis` added.
    pub fn with(self, axis: Axis) -> AxisSet {
        AxisSet(self.0 | 1 << axis.index())
    }

    /// The set with `axis` removed.
    pub fn without(self, axis: Axis) -> AxisSet {
        AxisSet(self.0 & !(1 << axis.index()))
    }

    /// Whether `axis` is in the set.
    pub fn contains(self, axis: Axis) -> bool {
        self.0 & 1 << axis.index() != 0
    }

    /// Whether the set has no axis.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Members in the order of [`Axis::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Axis> {
        Axis::ALL.into_iter().filter(move |a| self.contains(*a))
    }
}

impl FromIterator<Axis> for AxisSet {
    fn from_iter<I: IntoIterator<Item = Axis>>(axes: I) -> AxisSet {
        axes.into_iter().fold(AxisSet::EMPTY, AxisSet::with)
    }
}

impl fmt::Display for AxisSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Axis::name).collect();
        f.write_str(&names.join("+"))
    }
}

/// A position on every axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Coord([usize; Axis::COUNT]);

impl Coord {
    /// Position on `axis`.
    pub fn get(&self, axis: Axis) -> usize {
        self.0[axis.index()]
    }

    /// The same position but at `value` on `axis`.
    pub fn at(mut self, axis: Axis, value: usize) -> Coord {
        self.0[axis.index()] = value;
        self
    }
}

/// Sizes of all axes: the shape of the world, and the number of microbatches in time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mesh {
    sizes: [usize; Axis::COUNT],
}

/// What can be wrong with a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// An axis of size zero holds nobody.
    #[error("mesh axis `{axis}` has size 0; every axis needs at least 1 (leave it out for 1)")]
    Zero {
        /// The axis.
        axis: Axis,
    },
    /// A rank outside the world.
    #[error("rank {rank} is not in a world of {world_size}")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// Ranks in the mesh.
        world_size: usize,
    },
}

impl Mesh {
    /// A mesh with the given sizes; axes that are not named have size 1.
    ///
    /// # Errors
    /// [`MeshError::Zero`] if a size is 0.
    pub fn new(sizes: &[(Axis, usize)]) -> Result<Mesh, MeshError> {
        let mut all = [1; Axis::COUNT];
        for &(axis, size) in sizes {
            if size == 0 {
                return Err(MeshError::Zero { axis });
            }
            all[axis.index()] = size;
        }
        Ok(Mesh { sizes: all })
    }

    /// Extent of `axis`.
    pub fn size(&self, axis: Axis) -> usize {
        self.sizes[axis.index()]
    }

    /// Number of ranks: the product over the axes in space.
    pub fn world_size(&self) -> usize {
        Axis::SPACE.iter().map(|a| self.size(*a)).product()
    }

    /// Coordinates of `rank` (microbatch 0).
    pub fn coord(&self, rank: usize) -> Coord {
        let mut coord = Coord::default();
        let mut rest = rank;
        for axis in Axis::SPACE.into_iter().rev() {
            coord = coord.at(axis, rest % self.size(axis));
            rest /= self.size(axis);
        }
        coord
    }

    /// The rank at `coord`.
    pub fn rank(&self, coord: &Coord) -> usize {
        Axis::SPACE.into_iter().fold(0, |rank, axis| rank * self.size(axis) + coord.get(axis))
    }

    /// Ranks that differ from the one at `coord` only along `axes`, in ascending order.
    pub fn group(&self, coord: &Coord, axes: AxisSet) -> Vec<usize> {
        let mut members = vec![*coord];
        for axis in axes.iter().filter(|a| *a != Axis::Mb) {
            let n = self.size(axis);
            members = members.iter().flat_map(|c| (0..n).map(move |i| c.at(axis, i))).collect();
        }
        let mut ranks: Vec<usize> = members.iter().map(|c| self.rank(c)).collect();
        ranks.sort_unstable();
        ranks
    }

    /// Number of ranks in a group over `axes`.
    pub fn group_size(&self, axes: AxisSet) -> usize {
        axes.iter().filter(|a| *a != Axis::Mb).map(|a| self.size(a)).product()
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> = Axis::SPACE
            .iter()
            .filter(|a| self.size(**a) > 1)
            .map(|a| format!("{a}={}", self.size(*a)))
            .collect();
        f.write_str(if named.is_empty() { "one rank" } else { "" })?;
        f.write_str(&named.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_coordinates_are_inverse_and_tensor_neighbours_are_adjacent() {
        let mesh = Mesh::new(&[(Axis::Pp, 2), (Axis::Dp, 3), (Axis::Tp, 2), (Axis::TpInner, 2)]).unwrap();
        assert_eq!(mesh.world_size(), 24);
        for rank in 0..24 {
            assert_eq!(mesh.rank(&mesh.coord(rank)), rank);
        }
        let tp: AxisSet = [Axis::Tp, Axis::TpInner].into_iter().collect();
        assert_eq!(mesh.group(&mesh.coord(5), tp), [4, 5, 6, 7]);
        assert_eq!(mesh.group(&mesh.coord(5), AxisSet::EMPTY.with(Axis::Dp)), [1, 5, 9]);
    }

    #[test]
    fn groups_over_one_axis_set_partition_the_world() {
        let mesh = Mesh::new(&[(Axis::Pp, 2), (Axis::Dp, 2), (Axis::Cp, 2), (Axis::Tp, 2)]).unwrap();
        for axes in 0..64u8 {
            let axes = AxisSet(axes);
            let mut seen = vec![0; mesh.world_size()];
            for rank in 0..mesh.world_size() {
                let group = mesh.group(&mesh.coord(rank), axes);
                assert!(group.contains(&rank));
                assert_eq!(group.len(), mesh.group_size(axes));
                if group[0] == rank {
                    group.iter().for_each(|r| seen[*r] += 1);
                }
            }
            assert!(seen.iter().all(|n| *n == 1));
        }
    }

    #[test]
    fn a_zero_axis_is_refused() {
        assert_eq!(Mesh::new(&[(Axis::Dp, 0)]), Err(MeshError::Zero { axis: Axis::Dp }));
    }
}
