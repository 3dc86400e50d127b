//! Index tables: for each local position along a dim, its global index; and the inverse. Made once, before step 0.

use std::sync::Arc;

use graph::Dim;
use mesh::{Axis, Coord};
use plan::{Layout, Plan};

/// Global index of every local position.
pub(crate) fn index(plan: &Plan, dim: Dim, layout: &Layout, coord: &Coord) -> Arc<[u32]> {
    plan.digits(dim).tile(layout.sharding(dim), coord).indices().map(|i| i as u32).collect()
}

/// The same for each microbatch.
pub(crate) fn index_by_microbatch(plan: &Plan, dim: Dim, layout: &Layout, coord: &Coord) -> Vec<Arc<[u32]>> {
    (0..plan.mesh.size(Axis::Mb)).map(|mb| index(plan, dim, layout, &coord.at(Axis::Mb, mb))).collect()
}

/// Local position of every global index, [`kernels::NOT_LOCAL`] where another rank has it.
pub(crate) fn local_row(plan: &Plan, dim: Dim, layout: &Layout, coord: &Coord) -> Arc<[u32]> {
    let mut rows = vec![kernels::NOT_LOCAL; plan.digits(dim).padded()];
    for (local, global) in index(plan, dim, layout, coord).iter().enumerate() {
        rows[*global as usize] = local as u32;
    }
    rows.into()
}
