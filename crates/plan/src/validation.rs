//! Lowering of post-validation: a stage updates as soon as it is done, on the assumption that nothing is clipped and all
//! is finite; statistics follow from stage to stage, and each learns in the next step whether the assumption held. If
//! not, it restores its states, updates again, and the next step begins anew.
//!
//! *Source:* Qi et al., "Zero Bubble Pipeline Parallelism", 2023, section 4.

use std::collections::HashSet;

use graph::{Graph, Node, Op, Place, ValueId};
use mesh::Axis;
use schedule::{Kind, Schedule};

use super::Lowering;
use crate::instruction::{Instruction, When};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::program::{BufferId, Phase, Program};
use crate::runs::{Unread, Validation};

impl Lowering<'_> {
    /// Sums a stage's statistics over all stages, in their order, without waiting for those behind: the sum so far goes to
    /// the next stage, and from the last one to all. Returns where it arrives in `Validate`.
    pub(super) fn pass_on(&mut self, block: usize, node: &Node, own: BufferId) -> BufferId {
        let value = node.outputs[0];
        let dims = self.graph.value(value).dims.clone();
        let (here, last) = (self.pipeline_rank, self.plan.mesh.size(Axis::Pp) - 1);
        let tag = |to: usize| u64::from(value.0) * self.plan.schedule.num_stages as u64 + to as u64;
        let [to_next, to_here] = [tag(here + 1), tag(here)];
        let to_all: Vec<(usize, u64)> = (0..last).map(|to| (to, tag(to))).collect();
        let mut sum = own;
        if here > 0 {
            let before = self.new_buffer(value, &dims, Layout::WHOLE);
            self.emit(block, Instruction::Recv { output: before, from: here - 1, tag: to_here });
            sum = self.new_buffer(value, &dims, Layout::WHOLE);
            let (inputs, outputs, name) = (vec![before, own], vec![sum], node.name.clone());
            self.emit(
                block,
                Instruction::Compute {
                    op: Op::Add,
                    inputs,
                    outputs,
                    accumulate: false,
                    name,
                    when: When::Always,
                },
            );
        }
        let validate = self.block(None, Phase::Validate);
        let all = self.new_buffer(value, &dims, Layout::WHOLE);
        if here < last {
            self.emit(block, Instruction::Send { input: sum, to: here + 1, tag: to_next });
            self.emit(validate, Instruction::Recv { output: all, from: last, tag: to_here });
        } else {
            for (to, tag) in to_all {
                self.emit(block, Instruction::Send { input: sum, to, tag });
            }
            self.emit(validate, Instruction::Copy { from: sum, into: all });
        }
        all
    }

    /// The true and the assumed factor. Writes what takes the assumed one's place, and makes sure that there is a point at
    /// which accumulators are cleared: there the step before is validated.
    pub(super) fn validation(&mut self) -> (BufferId, BufferId) {
        let result = |op: &dyn Fn(&Op) -> bool| -> ValueId {
            let found = self.graph.order().iter().map(|id| self.graph.node(*id)).find(|node| op(&node.op));
            found.expect("an update has its factor").outputs[0]
        };
        let scale = result(&|op| matches!(op, Op::ClipScale { .. }));
        let assumed = result(&|op| *op == Op::AssumedScale);
        let [scale, assumed] = [scale, assumed].map(|value| self.canonical[&(value, None)].buffer);
        self.block(None, Phase::Clear);
        let amend = self.block(None, Phase::Amend);
        self.emit(amend, Instruction::Copy { from: scale, into: assumed });
        (scale, assumed)
    }
}

/// What a rank does ahead, and what it may have to take back.
pub(super) fn of(
    graph: &Graph,
    plan: &Plan,
    program: &Program,
    scale: BufferId,
    assumed: BufferId,
) -> Validation {
    let ahead = ahead(&plan.schedule);
    let done = forwards(&plan.schedule, &ahead);
    let num_ahead = ahead[program.pipeline_rank];
    let made_by = |tag: u64| {
        let value = ValueId((tag / plan.schedule.num_stages as u64) as u32);
        match graph.producer(value).place {
            Place::Layer(layer) => plan.stage_of_layer(layer),
            _ => unreachable!("stages receive from layers"),
        }
    };
    let later = program.actions[num_ahead..].iter().filter(|action| action.kind == Kind::Forward);
    let unread = later.flat_map(|action| {
        let microbatch = action.microbatch;
        let done = &done;
        program.blocks_of(action).flat_map(move |block| {
            let is_unread = move |instruction: &Instruction| match instruction {
                Instruction::Recv { tag, .. } => done.contains(&(made_by(*tag), microbatch)),
                _ => false,
            };
            let instructions = program.blocks[block].instructions.iter().enumerate();
            instructions
                .filter(move |(_, instruction)| is_unread(instruction))
                .map(move |(index, _)| Unread { block, index, microbatch })
        })
    });
    Validation { num_ahead, unread: unread.collect(), scale, assumed }
}

/// How many actions each rank does ahead: forwards, as long as all that they need is done ahead too.
pub(crate) fn ahead(schedule: &Schedule) -> Vec<usize> {
    let forwards_first = |actions: &Vec<schedule::Action>| {
        actions.iter().take_while(|action| action.kind == Kind::Forward).count()
    };
    let mut ahead: Vec<usize> = schedule.ranks.iter().map(forwards_first).collect();
    loop {
        let done = forwards(schedule, &ahead);
        let cut = schedule.ranks.iter().zip(&ahead).map(|(actions, ahead)| {
            let lacks = |action: &schedule::Action| {
                action.stage > 0 && !done.contains(&(action.stage - 1, action.microbatch))
            };
            actions[..*ahead].iter().position(lacks).unwrap_or(*ahead)
        });
        let cut: Vec<usize> = cut.collect();
        if cut == ahead {
            return ahead;
        }
        ahead = cut;
    }
}

/// Stage and microbatch of the first so many actions of each rank.
fn forwards(schedule: &Schedule, ahead: &[usize]) -> HashSet<(usize, usize)> {
    let of_rank = |(actions, ahead): (&Vec<schedule::Action>, &usize)| -> Vec<(usize, usize)> {
        actions[..*ahead].iter().map(|action| (action.stage, action.microbatch)).collect()
    };
    schedule.ranks.iter().zip(ahead).flat_map(of_rank).collect()
}
