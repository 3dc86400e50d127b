//! A dim as a mixed-radix number whose digits belong to axes. Sharding a dim on an axis fixes that axis's digit, so a
//! gather on any axis in any order is well defined and the global index is a function of coordinates.

use serde::{Deserialize, Serialize};

use crate::axis::{Axis, AxisSet, Coord, Mesh};
use crate::tile::TileDim;

/// One digit: the axis it belongs to (`None`: the rest, held by every rank) and its number of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digit {
    /// Owner of the digit.
    pub axis: Option<Axis>,
    /// Number of values.
    pub radix: usize,
}

/// The digits of one dim, most significant first, in the one order that a plan fixes.
///
/// The product of the radices is the padded size; global indices from `size` on are padding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DimDigits {
    size: usize,
    digits: Vec<Digit>,
}

impl DimDigits {
    /// Digits in `order` (exactly one `None`, the rest, whose radix is the ceiling that covers `size`).
    pub fn new(size: usize, order: &[Option<Axis>], mesh: &Mesh) -> DimDigits {
        debug_assert_eq!(order.iter().filter(|a| a.is_none()).count(), 1);
        let ranks: usize = order.iter().flatten().map(|a| mesh.size(*a)).product();
        let digits = order
            .iter()
            .map(|axis| Digit { axis: *axis, radix: axis.map_or(size.div_ceil(ranks), |a| mesh.size(a)) })
            .collect();
        DimDigits { size, digits }
    }

    /// A dim that no axis splits, padded to `padded`.
    pub fn unsplit(size: usize, padded: usize) -> DimDigits {
        DimDigits { size, digits: vec![Digit { axis: None, radix: padded }] }
    }

    /// Number of real elements.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of elements with padding.
    pub fn padded(&self) -> usize {
        self.digits.iter().map(|d| d.radix).product()
    }

    /// Whether a digit belongs to `axis`.
    pub fn has(&self, axis: Axis) -> bool {
        self.digits.iter().any(|d| d.axis == Some(axis))
    }

    /// Extent on a rank that is sharded along the axes in `fixed`.
    pub fn local_extent(&self, fixed: AxisSet) -> usize {
        self.free(fixed).map(|d| d.radix).product()
    }

    fn free(&self, fixed: AxisSet) -> impl Iterator<Item = &Digit> {
        self.digits.iter().filter(move |d| d.axis.is_none_or(|a| !fixed.contains(a)))
    }

    /// Local extents around the digit of `axis` when the axes in `fixed` (not `axis`) are fixed: `(outer, n, inner)`
    /// such that the local dim is `[outer][n][inner]` and one rank of `axis` holds `[outer][inner]` of it.
    pub fn around(&self, axis: Axis, fixed: AxisSet) -> (usize, usize, usize) {
        let (mut outer, mut n, mut inner, mut seen) = (1, 1, 1, false);
        for digit in self.free(fixed) {
            if digit.axis == Some(axis) {
                (n, seen) = (digit.radix, true);
            } else if seen {
                inner *= digit.radix;
            } else {
                outer *= digit.radix;
            }
        }
        (outer, n, inner)
    }

    /// The part of the dim held at `coord` when the axes in `fixed` are fixed.
    pub fn tile(&self, fixed: AxisSet, coord: &Coord) -> TileDim {
        let mut stride = 1;
        let (mut base, mut free) = (0, Vec::new());
        for digit in self.digits.iter().rev() {
            match digit.axis {
                Some(axis) if fixed.contains(axis) => base += stride * coord.get(axis),
                _ => free.push((digit.radix, stride)),
            }
            stride *= digit.radix;
        }
        free.reverse();
        TileDim { size: self.size, base, free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh() -> Mesh {
        Mesh::new(&[(Axis::Cp, 2), (Axis::Tp, 3), (Axis::Dp, 4)]).unwrap()
    }

    #[test]
    fn every_element_is_held_once_and_padding_by_nobody() {
        let mesh = mesh();
        for (order, size) in [
            ([Some(Axis::Cp), Some(Axis::Tp), None], 50),
            ([Some(Axis::Tp), None, Some(Axis::Cp)], 47),
            ([None, Some(Axis::Cp), Some(Axis::Tp)], 6),
        ] {
            let digits = DimDigits::new(size, &order, &mesh);
            let fixed: AxisSet = [Axis::Cp, Axis::Tp].into_iter().collect();
            let mut seen = vec![0; digits.padded()];
            for cp in 0..2 {
                for tp in 0..3 {
                    let coord = Coord::default().at(Axis::Cp, cp).at(Axis::Tp, tp);
                    for i in digits.tile(fixed, &coord).indices() {
                        seen[i] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|n| *n == 1), "{order:?}");
            assert_eq!(digits.local_extent(fixed) * 6, digits.padded());
        }
    }

    #[test]
    fn a_whole_dim_is_in_global_order_whatever_the_digits() {
        let digits = DimDigits::new(10, &[Some(Axis::Tp), None, Some(Axis::Cp)], &mesh());
        let tile = digits.tile(AxisSet::EMPTY, &Coord::default());
        assert_eq!(tile.indices().collect::<Vec<_>>(), (0..digits.padded()).collect::<Vec<_>>());
    }

    #[test]
    fn around_splits_the_local_dim_at_the_axis() {
        let digits = DimDigits::new(24, &[Some(Axis::Cp), Some(Axis::Tp), None], &mesh());
        assert_eq!(digits.around(Axis::Cp, AxisSet::EMPTY), (1, 2, 12));
        assert_eq!(digits.around(Axis::Tp, AxisSet::EMPTY), (2, 3, 4));
        assert_eq!(digits.around(Axis::Tp, AxisSet::EMPTY.with(Axis::Cp)), (1, 3, 4));
    }
}
