//! Where ranks sit and which part of a tensor each one holds: axes, coordinates, groups, placements, digits.
//!
//! **Invariant: pure arithmetic.** Nothing here knows an operation, a byte, a clock or a peer; every function
//! depends on its arguments alone, so two ranks that ask the same question get the same answer.

#![forbid(unsafe_code)]

mod axis;
mod digits;
mod placement;
mod tile;

pub use axis::{Axis, AxisSet, Coord, Mesh, MeshError};
pub use digits::{Digit, DimDigits};
pub use placement::{Placement, Redistribution, Reduce};
pub use tile::{Run, Tile, TileDim};
