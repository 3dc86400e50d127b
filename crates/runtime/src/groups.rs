//! Communicators for the groups that Programs name, and the comparison of fingerprints over them.

use std::collections::{BTreeMap, BTreeSet};

use comm::{Communicator, Lane, Reduce};
use memory::{Arena, DType, Span};
use mesh::{Coord, Mesh};
use plan::GroupKey;

use crate::error::RuntimeError;
use crate::executor::WrapGroup;

/// World ranks of the group of `key` around `coord`.
pub(crate) fn members(mesh: &Mesh, coord: &Coord, key: &GroupKey) -> Vec<usize> {
    match &key.pipeline_ranks {
        Some(ranks) => ranks.iter().map(|p| mesh.rank(&coord.at(mesh::Axis::Pp, *p))).collect(),
        None => mesh.group(coord, key.axes),
    }
}

/// Makes all groups, in one order on all ranks, so that no two ranks wait for each other. What is to be served in the
/// background shares one communication thread, which ends with the last of its groups.
pub(crate) fn connect(
    world: &dyn Communicator,
    mesh: &Mesh,
    keys: BTreeSet<GroupKey>,
    wrap: Option<&WrapGroup<'_>>,
) -> Result<BTreeMap<GroupKey, Box<dyn Communicator>>, RuntimeError> {
    let coord = mesh.coord(world.rank());
    let mut groups = BTreeMap::new();
    let mut lane: Option<Lane> = None;
    for key in keys {
        let group = world.split(&members(mesh, &coord, &key), &key.to_string())?;
        let group = match wrap {
            Some(wrap) => wrap(&key, group),
            None => group,
        };
        let gains = group.world_size() > 1 && !group.completes_at_start();
        let group = match key.lane {
            plan::Lane::Background if gains => {
                let lane = match &mut lane {
                    Some(lane) => lane,
                    none => none.insert(Lane::start(world.rank()).map_err(RuntimeError::Thread)?),
                };
                lane.serve(group)
            }
            _ => group,
        };
        groups.insert(key, group);
    }
    Ok(groups)
}

/// Bytes of the arena that [`agree`] uses.
pub(crate) const AGREE_BYTES: usize = 32;

/// Refuses to go on if `fingerprint` is not the same on all ranks of `group`.
pub(crate) fn agree(
    group: &dyn Communicator,
    arena: &Arena,
    at: usize,
    what: &'static str,
    fingerprint: u64,
) -> Result<(), RuntimeError> {
    // The maximum of x and of -x over the ranks tells whether all x are equal; 16 bits at a time keep both in range.
    let mut region = arena.write(Span { offset: at, len: AGREE_BYTES })?;
    let parts = (0..4).map(|i| ((fingerprint >> (16 * i)) & 0xffff) as i32);
    for (i, part) in parts.enumerate() {
        region.as_mut_slice::<i32>()[i] = part;
        region.as_mut_slice::<i32>()[i + 4] = -part;
    }
    group.all_reduce(region, DType::I32, Reduce::Max)?.wait()?;
    let region = arena.read(Span { offset: at, len: AGREE_BYTES })?;
    let all = region.as_slice::<i32>();
    if (0..4).any(|i| all[i] != -all[i + 4]) {
        return Err(RuntimeError::Mismatch { rank: group.rank(), what });
    }
    Ok(())
}
