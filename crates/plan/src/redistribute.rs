//! Moves of a value from one layout to another, as instructions: shrink first, then exchange, then grow.

use graph::{Dim, ValueId};
use mesh::{Axis, AxisSet, Placement, Reduce};

use crate::instruction::{Collective, GroupKey, Instruction, When};
use crate::layout::Layout;
use crate::lower::{Lowering, Version};
use crate::program::BufferId;

impl Lowering<'_> {
    /// Emits what turns `from` into `target` in block `block`. `may_overwrite`: nobody reads `from` afterwards.
    ///
    /// The first move owed is chosen again and again until none is left: flat shards give way when another axis must
    /// move underneath them; then pieces are cut (flat last), exchanged, summed, and gathered.
    pub(crate) fn redistribute(
        &mut self,
        block: usize,
        value: ValueId,
        from: Version,
        target: Layout,
        mut may_overwrite: bool,
    ) -> Version {
        let mut at = from;
        while at.layout != target {
            at = self.one_move(block, value, at, target, may_overwrite);
            may_overwrite = true;
        }
        at
    }

    fn one_move(
        &mut self,
        block: usize,
        value: ValueId,
        at: Version,
        target: Layout,
        may_overwrite: bool,
    ) -> Version {
        let owed: Vec<(Axis, Placement<Dim>, Placement<Dim>)> = Axis::SPACE
            .into_iter()
            .map(|a| (a, at.layout.get(a), target.get(a)))
            .filter(|(_, now, then)| now != then)
            .collect();
        debug_assert!(!owed.is_empty(), "layouts differ only along time: {} to {target}", at.layout);
        let is_shard = |p: Placement<Dim>| matches!(p, Placement::Shard(_));
        let flat = Placement::Shard(Dim::FLAT);
        if let Some(axis) = at.layout.flat_axis() {
            let moves_beneath = |(a, now, then): &(Axis, Placement<Dim>, Placement<Dim>)| {
                *a != axis && !(now.is_partial() && *then == Placement::Whole)
            };
            if target.get(axis) != flat || owed.iter().any(moves_beneath) {
                return self.gather(block, value, at, axis, Dim::FLAT);
            }
        }
        let cut = |want_flat: bool| {
            owed.iter().find(move |(_, now, then)| {
                is_shard(*then) && !is_shard(*now) && (*then == flat) == want_flat
            })
        };
        if let Some((axis, now, Placement::Shard(dim))) = cut(false).or_else(|| {
            // A flat cut waits until nothing is left to exchange or gather beneath it.
            let beneath = owed.iter().any(|(_, now, then)| is_shard(*now) && *then != flat);
            if beneath { None } else { cut(true) }
        }) {
            return match now {
                Placement::Partial(reduce) => self.reduce_scatter(block, value, at, *axis, *dim, *reduce),
                _ => self.slice(block, value, at, *axis, *dim),
            };
        }
        if let Some((axis, Placement::Shard(old), Placement::Shard(new))) =
            owed.iter().find(|(_, now, then)| is_shard(*now) && is_shard(*then))
        {
            return self.exchange(block, value, at, *axis, *old, *new);
        }
        for reduce in [Reduce::Sum, Reduce::Max] {
            let owing = |p: &Placement<Dim>| *p == Placement::Partial(reduce);
            let axes: AxisSet = owed.iter().filter(|(_, now, _)| owing(now)).map(|(a, _, _)| *a).collect();
            if !axes.is_empty() {
                return self.all_reduce(block, value, at, axes, reduce, may_overwrite);
            }
        }
        let gather = owed.iter().find_map(|(axis, now, _)| match now {
            Placement::Shard(dim) => Some((*axis, *dim)),
            _ => None,
        });
        let (axis, dim) = gather.unwrap_or_else(|| panic!("no move from [{}] to [{target}]", at.layout));
        self.gather(block, value, at, axis, dim)
    }

    fn slice(&mut self, block: usize, value: ValueId, at: Version, axis: Axis, dim: Dim) -> Version {
        let dims = self.buffer_dims(at.buffer);
        let (outer, n, inner) = self.plan.geometry(&dims, &at.layout, axis, dim);
        let layout = at.layout.with(axis, Placement::Shard(dim));
        let output = self.new_buffer(value, &dims, layout);
        self.emit(block, Instruction::Slice { input: at.buffer, output, axis, outer, n, inner });
        Version { layout, buffer: output }
    }

    fn gather(&mut self, block: usize, value: ValueId, at: Version, axis: Axis, dim: Dim) -> Version {
        let dims = self.buffer_dims(at.buffer);
        let layout = at.layout.with(axis, Placement::Whole);
        let (outer, n, inner) = self.plan.geometry(&dims, &layout, axis, dim);
        let gathered = self.new_buffer(value, &dims, layout);
        self.collective(block, Collective::AllGather, at.buffer, gathered, outer * inner, axis);
        let buffer = self.unpacked(block, value, gathered, layout, (outer, n, inner));
        Version { layout, buffer }
    }

    fn reduce_scatter(
        &mut self,
        block: usize,
        value: ValueId,
        at: Version,
        axis: Axis,
        dim: Dim,
        reduce: Reduce,
    ) -> Version {
        let dims = self.buffer_dims(at.buffer);
        let (outer, n, inner) = self.plan.geometry(&dims, &at.layout, axis, dim);
        let packed = self.packed(block, value, at.buffer, at.layout, (outer, n, inner));
        let layout = at.layout.with(axis, Placement::Shard(dim));
        let output = self.new_buffer(value, &dims, layout);
        self.collective(block, Collective::ReduceScatter(reduce), packed, output, outer * inner, axis);
        Version { layout, buffer: output }
    }

    fn exchange(
        &mut self,
        block: usize,
        value: ValueId,
        at: Version,
        axis: Axis,
        old: Dim,
        new: Dim,
    ) -> Version {
        let dims = self.buffer_dims(at.buffer);
        // Cut the new dim, exchange pieces, join the old dim.
        let cut = self.plan.geometry_beside(&dims, &at.layout, axis, new);
        let packed = self.packed(block, value, at.buffer, at.layout, cut);
        let layout = at.layout.with(axis, Placement::Shard(new));
        let join = self.plan.geometry_beside(&dims, &layout, axis, old);
        let received = self.new_buffer(value, &dims, layout);
        self.collective(block, Collective::AllToAll, packed, received, cut.0 * cut.2, axis);
        let buffer = self.unpacked(block, value, received, layout, join);
        Version { layout, buffer }
    }

    fn all_reduce(
        &mut self,
        block: usize,
        value: ValueId,
        at: Version,
        axes: AxisSet,
        reduce: Reduce,
        may_overwrite: bool,
    ) -> Version {
        let dims = self.buffer_dims(at.buffer);
        let layout = axes.iter().fold(at.layout, |l, a| l.with(a, Placement::Whole));
        let owing = if may_overwrite {
            at.buffer
        } else {
            let copy = self.new_buffer(value, &dims, at.layout);
            self.emit(block, Instruction::Copy { from: at.buffer, into: copy });
            copy
        };
        let buffer = self.alias(owing, &dims, layout);
        self.all_reduce_over(block, buffer, reduce, GroupKey::along(axes));
        Version { layout, buffer }
    }

    /// An all_reduce in place over any group.
    pub(crate) fn all_reduce_over(&mut self, block: usize, buffer: BufferId, reduce: Reduce, key: GroupKey) {
        let count = self.buffers[buffer.index()].len;
        self.start_and_wait(block, Collective::AllReduce(reduce), buffer, buffer, count, key);
    }

    fn start_and_wait(
        &mut self,
        block: usize,
        collective: Collective,
        input: BufferId,
        output: BufferId,
        count: usize,
        key: GroupKey,
    ) {
        let (group, ticket, when) = (self.group(key), self.ticket(), When::Always);
        let (inputs, outputs) = (vec![input], vec![output]);
        self.emit(block, Instruction::Start { collective, inputs, outputs, count, group, ticket, when });
        self.emit(block, Instruction::Wait { ticket, when });
    }

    fn collective(
        &mut self,
        block: usize,
        collective: Collective,
        input: BufferId,
        output: BufferId,
        count: usize,
        axis: Axis,
    ) {
        let key = GroupKey::along(AxisSet::EMPTY.with(axis));
        self.start_and_wait(block, collective, input, output, count, key);
    }

    /// Pieces side by side.
    fn packed(
        &mut self,
        block: usize,
        value: ValueId,
        input: BufferId,
        layout: Layout,
        (outer, n, inner): (usize, usize, usize),
    ) -> BufferId {
        let pack = |input, output| Instruction::Pack { input, output, outer, n, inner };
        self.rearranged(block, value, input, layout, outer, pack)
    }

    /// Pieces back in their places.
    fn unpacked(
        &mut self,
        block: usize,
        value: ValueId,
        input: BufferId,
        layout: Layout,
        (outer, n, inner): (usize, usize, usize),
    ) -> BufferId {
        let unpack = |input, output| Instruction::Unpack { input, output, outer, n, inner };
        self.rearranged(block, value, input, layout, outer, unpack)
    }

    /// Moves pieces into a buffer of their own, unless there is nothing before the first piece: then the order of
    /// memory is the same.
    fn rearranged(
        &mut self,
        block: usize,
        value: ValueId,
        input: BufferId,
        layout: Layout,
        outer: usize,
        instruction: impl FnOnce(BufferId, BufferId) -> Instruction,
    ) -> BufferId {
        if outer == 1 {
            return input;
        }
        let dims = self.buffer_dims(input);
        let output = self.new_buffer(value, &dims, layout);
        self.emit(block, instruction(input, output));
        output
    }
}
