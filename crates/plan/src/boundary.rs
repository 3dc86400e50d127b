//! Boundaries of blocks: values that go to other pipeline ranks, to the backward, and from microbatches to the update.

use graph::{Node, Op, Place, Role, ValueId};
use mesh::{Axis, Placement};

use super::{Lowering, Version};
use crate::instruction::Instruction;
use crate::layout::Layout;
use crate::plan::StateHome;
use crate::program::{BufferId, Class, Phase};

impl Lowering<'_> {
    /// Home of a value on every axis: the layout in which it travels between pipeline ranks.
    fn home_layout(&self, value: ValueId) -> Layout {
        let dims = &self.graph.value(value).dims;
        Axis::ALL.into_iter().fold(Layout::WHOLE, |l, a| l.with(a, self.plan.home(a, dims)))
    }

    /// The stage that runs a node; none for updates.
    pub(super) fn stage_of(&self, node: &Node) -> Option<usize> {
        match (node.role, node.place) {
            (Role::Update, _) => None,
            (_, Place::Layer(layer)) => Some(self.plan.stage_of_layer(layer)),
            _ => None,
        }
    }

    /// Identity of a value on its way to a stage, the same at both ends.
    fn tag(&self, value: ValueId, stage: usize) -> u64 {
        u64::from(value.0) * self.plan.schedule.num_stages as u64 + stage as u64
    }

    /// Receives `value` on the present stage if another one makes it, once, in the phase in which it is made.
    pub(super) fn receive(&mut self, value: ValueId) {
        let maker = self.graph.producer(value);
        if maker.op.is_source()
            || matches!(maker.op, Op::State(_) | Op::Cast)
            || self.canonical.contains_key(&self.key(value))
        {
            return;
        }
        let (Some(stage), Some(made_by)) = (self.stage, self.stage_of(maker)) else {
            unreachable!("only layers receive, from layers")
        };
        let from = self.plan.schedule.placement[made_by];
        let block = self.block(Some(stage), self.phase(maker.role));
        let layout = self.home_layout(value);
        let dims = self.graph.value(value).dims.clone();
        let output = self.new_buffer(value, &dims, layout);
        self.emit(block, Instruction::Recv { output, from, tag: self.tag(value, stage) });
        self.set_canonical(value, Version { layout, buffer: output });
    }

    /// Does what the readers of a new value in other blocks, ranks and in the update need.
    pub(super) fn leave(&mut self, block: usize, value: ValueId, maker: &Node) {
        let readers = self.consumers.get(&value).cloned().unwrap_or_default();
        let mut in_other_block = false;
        let mut to = Vec::new();
        let mut in_update = false;
        let mut is_gradient = false;
        for id in readers {
            let reader = self.graph.node(id).clone();
            match self.stage_of(&reader) {
                None => {
                    in_update = true;
                    is_gradient |= matches!(reader.place, Place::Holders(_));
                }
                stage if stage == self.stage => in_other_block |= self.block_of(&reader) != block,
                Some(stage) if !to.contains(&stage) => to.push(stage),
                Some(_) => {}
            }
        }
        let observed = self.observe && self.graph.outputs().iter().any(|(_, v)| *v == value);
        if in_other_block {
            // Readers elsewhere see the value with nothing owed.
            let version = self.canonical(value);
            let dims = self.graph.value(value).dims.clone();
            let layout = Axis::SPACE.into_iter().fold(version.layout, |l, a| {
                if l.get(a).is_partial() { l.with(a, self.plan.home(a, &dims)) } else { l }
            });
            let buffer = self.need(block, value, maker.role, layout);
            self.set_canonical(value, Version { layout, buffer });
        }
        for stage in to {
            let home = self.home_layout(value);
            let input = self.need(block, value, maker.role, home);
            let to = self.plan.schedule.placement[stage];
            self.emit(block, Instruction::Send { input, to, tag: self.tag(value, stage) });
        }
        if in_update || observed {
            self.cross_into_update(block, value, maker, is_gradient);
        }
    }

    /// Accumulates (or gathers) a value over microbatches for the update.
    ///
    /// A gradient goes to its gradient home if that is sharded (ZeRO 2 and 3 reduce per microbatch); otherwise sums
    /// over dp and cp stay owed until the update, where they are paid once per step.
    fn cross_into_update(&mut self, block: usize, value: ValueId, maker: &Node, is_gradient: bool) {
        let dims = self.graph.value(value).dims.clone();
        let version = self.canonical(value);
        let layout = Axis::SPACE.into_iter().fold(version.layout, |layout, axis| {
            let home = match is_gradient {
                true => self.plan.state_home(axis, &dims, StateHome::Gradient),
                false => self.plan.home(axis, &dims),
            };
            let keep_owed = (is_gradient && home == Placement::Whole) || dims.is_empty();
            if !layout.get(axis).is_partial() || keep_owed { layout } else { layout.with(axis, home) }
        });
        let from = self.need(block, value, maker.role, layout);
        let step_layout = layout.with(Axis::Mb, Placement::Whole);
        let one_microbatch = !self.plan.divides(Axis::Mb);
        if is_gradient && let Some(into) = self.other_use(value, maker, step_layout) {
            self.step.insert(value, Version { layout: step_layout, buffer: into });
            if !self.accumulate_in_place(block, from, into) {
                self.emit(block, Instruction::Accumulate { from, into });
            }
            return;
        }
        let into = if one_microbatch && !matches!(maker.op, Op::Input) {
            from
        } else {
            self.new_buffer(value, &dims, step_layout)
        };
        self.set_class(into, Class::Step);
        self.step.insert(value, Version { layout: step_layout, buffer: into });
        if one_microbatch {
            return;
        }
        match layout.get(Axis::Mb) {
            Placement::Partial(_) => {
                let clear = if self.post_validates { Phase::Clear } else { Phase::Begin };
                let before = self.block(None, clear);
                self.emit(before, Instruction::Fill { value: 0.0, output: into });
                // Sums grow in the order of microbatches, which schedules keep in W alone: those of the forward wait.
                if maker.role == Role::Forward && self.plan.schedule.has_backward() {
                    let later = self.block(self.stage, self.phase(Role::BackwardWeight));
                    self.emit(later, Instruction::Accumulate { from, into });
                } else if !self.accumulate_in_place(block, from, into) {
                    self.emit(block, Instruction::Accumulate { from, into });
                }
            }
            Placement::Shard(dim) => {
                let (outer, n, inner) = self.plan.geometry(&dims, &layout, Axis::Mb, dim);
                self.emit(block, Instruction::Store { from, into, outer, n, inner });
            }
            Placement::Whole => self.emit(block, Instruction::Copy { from, into }),
        }
    }

    /// Where the same block adds up the gradient of another use of the same parameter, in the same layout: one sum, that is
    /// complete with the last use.
    fn other_use(&self, value: ValueId, maker: &Node, layout: Layout) -> Option<BufferId> {
        let sum = self.consumers.get(&value)?.iter().map(|id| self.graph.node(*id));
        let uses =
            sum.filter(|node| node.op == Op::Add && node.role == Role::Update).flat_map(|node| &node.inputs);
        uses.filter(|other| **other != value).find_map(|other| {
            let version = self.step.get(other)?;
            let of_other = self.graph.producer(*other);
            let same_block = self.stage_of(of_other) == self.stage && of_other.role == maker.role;
            (same_block && version.layout == layout).then_some(version.buffer)
        })
    }

    /// If the last instruction is the contraction that made `from`, lets it add into the accumulator directly.
    fn accumulate_in_place(&mut self, block: usize, from: BufferId, into: BufferId) -> bool {
        let last = self.blocks[block].instructions.last_mut();
        if let Some(Instruction::Compute { op: Op::Contract, outputs, accumulate, .. }) = last
            && outputs[..] == [from]
        {
            (outputs[0], *accumulate) = (into, true);
            return true;
        }
        false
    }
}
