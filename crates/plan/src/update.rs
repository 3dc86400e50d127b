//! Lowering of the update: gradients of a parameter's uses to the optimizer's home, the vector of statistics, and
//! results that go back into states.

use graph::{Node, Op, Place, Role, StateKind, ValueId};
use mesh::{Axis, AxisSet, Placement, Reduce};

use super::{Lowering, Version};
use crate::instruction::{GroupKey, Instruction, Lane};
use crate::layout::Layout;
use crate::plan::StateHome;
use crate::program::{BufferId, Phase};

impl Lowering<'_> {
    pub(super) fn update_node(&mut self, node: &Node) {
        let phase = match &node.op {
            Op::Adam { .. } | Op::Sgd { .. } if self.post_validates => Phase::Apply,
            Op::ClipScale { .. } if self.post_validates => Phase::Validate,
            _ => Phase::Update,
        };
        let block = self.block(None, phase);
        match (&node.op, node.place) {
            (Op::Add, Place::Holders(parameter)) => self.gradient(block, node, parameter),
            (Op::Stack, _) => self.stack(block, node),
            (Op::Share, _) => self.share(block, node),
            _ => {
                self.compute(block, node, &node.inputs);
                self.write_back(block, node);
            }
        }
    }

    /// Adds the gradients of this rank's uses, brings the sum to the optimizer's home, then adds the uses that other
    /// stages have of a tied parameter: each holder then updates its own copy with the same bits.
    fn gradient(&mut self, block: usize, node: &Node, parameter: ValueId) {
        // Uses within one block are one sum already.
        let mut sums: Vec<BufferId> = Vec::new();
        let uses: Vec<ValueId> = node
            .inputs
            .iter()
            .copied()
            .filter(|value| {
                let Some(version) = self.version(*value, Role::Update) else { return false };
                let is_new = !sums.contains(&version.buffer);
                sums.push(version.buffer);
                is_new
            })
            .collect();
        let result = node.outputs[0];
        let dims = self.graph.value(result).dims.clone();
        let home = Axis::SPACE
            .into_iter()
            .fold(Layout::WHOLE, |l, a| l.with(a, self.plan.state_home(a, &dims, StateHome::Optimizer)));
        if let [only] = uses[..] {
            let version = self.version(only, Role::Update).expect("filtered above");
            self.set_canonical(result, version);
        } else {
            if self.plan.schedule.num_stages > 1 {
                // Uses may lie on one rank or on several, as the schedule places stages. Paid one by one and added
                // then, they give the same bits either way.
                for value in &uses {
                    let version = self.version(*value, Role::Update).expect("filtered above");
                    let paid = self.redistribute(block, *value, version, home, true);
                    self.step.insert(*value, paid);
                }
            }
            self.compute(block, node, &uses);
        }
        let mut version = self.canonical(result);
        if version.layout != home {
            version = self.redistribute(block, result, version, home, true);
        }
        let holders = self.plan.holders(parameter).to_vec();
        if holders.len() > 1 {
            let key = GroupKey { axes: AxisSet::EMPTY, pipeline_ranks: Some(holders), lane: Lane::Own };
            self.all_reduce_over(block, version.buffer, Reduce::Sum, key);
        }
        self.set_canonical(result, version);
    }

    /// Every scalar into its place; what is whole counts once; then one all_reduce over the world. Under post-validation
    /// over a stage, and from stage to stage by message.
    fn stack(&mut self, block: usize, node: &Node) {
        let result = node.outputs[0];
        let dims = self.graph.value(result).dims.clone();
        let over_stages = !self.post_validates;
        let axes: AxisSet = Axis::SPACE
            .into_iter()
            .filter(|a| self.plan.divides(*a) && (over_stages || *a != Axis::Pp))
            .collect();
        let owed = axes.iter().fold(Layout::WHOLE, |l, a| l.with(a, Placement::Partial(Reduce::Sum)));
        let into = self.new_buffer(result, &dims, owed);
        self.emit(block, Instruction::Fill { value: 0.0, output: into });
        for (index, value) in node.inputs.iter().enumerate() {
            let Some(version) = self.version(*value, Role::Update) else { continue };
            let owners: AxisSet = Axis::SPACE
                .into_iter()
                .filter(|a| *a != Axis::Pp && self.plan.divides(*a))
                .filter(|a| version.layout.get(*a) == Placement::Whole)
                .collect();
            self.emit(block, Instruction::Entry { from: version.buffer, into, index, owners });
        }
        let buffer = self.alias(into, &dims, Layout::WHOLE);
        if !axes.is_empty() {
            self.all_reduce_over(block, buffer, Reduce::Sum, GroupKey::along(axes));
        }
        let buffer = if over_stages { buffer } else { self.pass_on(block, node, buffer) };
        self.set_canonical(result, Version { layout: Layout::WHOLE, buffer });
    }

    /// The value of one pipeline rank on all: whole there, zero elsewhere, summed over pp.
    fn share(&mut self, block: usize, node: &Node) {
        let (value, result) = (node.inputs[0], node.outputs[0]);
        let dims = self.graph.value(result).dims.clone();
        let buffer = if self.version(value, Role::Update).is_some() {
            self.need(block, value, Role::Update, Layout::WHOLE)
        } else {
            let owed = Layout::WHOLE.with(Axis::Pp, Placement::Partial(Reduce::Sum));
            let empty = self.new_buffer(result, &dims, owed);
            self.emit(block, Instruction::Fill { value: 0.0, output: empty });
            self.alias(empty, &dims, Layout::WHOLE)
        };
        if self.plan.divides(Axis::Pp) {
            let key = GroupKey::along(AxisSet::EMPTY.with(Axis::Pp));
            self.all_reduce_over(block, buffer, Reduce::Sum, key);
        }
        self.set_canonical(result, Version { layout: Layout::WHOLE, buffer });
    }

    /// Brings updated states that were changed in another layout back into their buffers.
    pub(super) fn write_back(&mut self, block: usize, node: &Node) {
        for (result, operand) in node.op.in_place() {
            let Op::State(state) = &self.graph.producer(node.inputs[*operand]).op else { continue };
            let state_version = self.version(node.inputs[*operand], Role::Update).expect("a state");
            let updated = self.canonical(node.outputs[*result]);
            if updated.buffer == state_version.buffer {
                continue;
            }
            let dims = self.graph.value(node.outputs[*result]).dims.clone();
            let home = self.plan.state_layout(&dims, state.kind);
            debug_assert!(state.kind != StateKind::Moment || home == state_version.layout);
            let back = self.redistribute(block, node.outputs[*result], updated, home, true);
            self.emit(block, Instruction::Copy { from: back.buffer, into: state_version.buffer });
        }
    }
}
