//! The order in which a Program's blocks run in a step, and which of their instructions each run executes.

use std::collections::HashMap;

use schedule::Action;

use crate::instruction::{Instruction, When};
use crate::program::{Block, BufferId, Phase, Program};

/// One run of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Position in [`Program::blocks`].
    pub block: usize,
    /// Microbatch; 0 for blocks of the rank.
    pub microbatch: usize,
    /// Whether it is the block's first of the step.
    pub is_first: bool,
    /// Whether it is the block's last of the step.
    pub is_last: bool,
}

impl Run {
    /// Whether this run executes an instruction of its block.
    pub fn executes(&self, instruction: &Instruction) -> bool {
        match instruction.when() {
            When::Always => true,
            When::FirstRun => self.is_first,
            When::LastRun => self.is_last,
        }
    }

    /// Positions and instructions of `block`, this run's, that it executes.
    pub fn instructions(self, block: &Block) -> impl Iterator<Item = (usize, &Instruction)> {
        block.instructions.iter().enumerate().filter(move |(_, instruction)| self.executes(instruction))
    }
}

/// What a rank does ahead of the validation of the step before, and what it takes back if that step is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validation {
    /// Actions at the beginning of a step that do not wait for the validation: forwards whose values come from forwards
    /// of that kind alone.
    pub num_ahead: usize,
    /// Messages that peers send ahead and this rank receives later: to be read and dropped if the step begins again.
    pub unread: Vec<Unread>,
    /// The factor on gradients that is known in the end.
    pub scale: BufferId,
    /// The factor that the update assumed.
    pub assumed: BufferId,
}

/// A message that was sent and not yet received: where the Program receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    /// Position in [`Program::blocks`].
    pub block: usize,
    /// Position in the block.
    pub index: usize,
    /// Microbatch.
    pub microbatch: usize,
}

impl Program {
    /// The storages that each instruction of a block touches; a wait touches what its start in the block does, or in the
    /// step before.
    pub(crate) fn touched(&self, block: usize) -> Vec<Vec<BufferId>> {
        let mut started: HashMap<usize, Vec<BufferId>> = HashMap::new();
        let of = |instruction: &Instruction| {
            let (reads, writes) = instruction.uses();
            let roots: Vec<BufferId> =
                reads.iter().chain(&writes).map(|id| self.buffer(*id).storage).collect();
            match instruction {
                Instruction::Start { ticket, .. } => {
                    started.insert(*ticket, roots.clone());
                    roots
                }
                Instruction::Wait { ticket, .. } => {
                    started.remove(ticket).unwrap_or_else(|| self.carried_by(*ticket))
                }
                _ => roots,
            }
        };
        self.blocks[block].instructions.iter().map(of).collect()
    }

    /// The storages that the step before left in flight under a ticket.
    fn carried_by(&self, ticket: usize) -> Vec<BufferId> {
        if !self.carried.contains(&ticket) {
            return vec![];
        }
        let starts = self.blocks.iter().flat_map(|b| &b.instructions).filter_map(|i| match i {
            Instruction::Start { inputs, outputs, ticket: t, .. } if *t == ticket => Some((inputs, outputs)),
            _ => None,
        });
        starts
            .flat_map(|(inputs, outputs)| inputs.iter().chain(outputs))
            .map(|id| self.buffer(*id).storage)
            .collect()
    }

    /// All runs of a step in order: what is derived from states (which a step skips if it is up to date), what comes
    /// before the first microbatch, the actions, the update. Under post-validation accumulators are cleared once the
    /// actions ahead are done, where the step before has been validated, and `Validate` belongs to the next step.
    pub fn runs(&self) -> Vec<Run> {
        let of_rank = |phase: Phase| {
            let block = self.blocks.iter().position(|b| b.stage.is_none() && b.phase == phase);
            block.map(|block| (block, 0))
        };
        let of_actions = |actions: &[Action]| -> Vec<(usize, usize)> {
            let runs = |action: &Action| {
                let microbatch = action.microbatch;
                self.blocks_of(action).map(|block| (block, microbatch)).collect::<Vec<_>>()
            };
            actions.iter().flat_map(runs).collect()
        };
        let (ahead, then) =
            self.actions.split_at(self.validation.as_ref().map_or(0, |validation| validation.num_ahead));
        let order: Vec<(usize, usize)> = [Phase::Derive, Phase::Begin]
            .into_iter()
            .filter_map(of_rank)
            .chain(of_actions(ahead))
            .chain(of_rank(Phase::Clear))
            .chain(of_actions(then))
            .chain([Phase::Update, Phase::Apply, Phase::Validate].into_iter().filter_map(of_rank))
            .collect();
        let mut first = vec![usize::MAX; self.blocks.len()];
        let mut last = vec![0; self.blocks.len()];
        for (at, (block, _)) in order.iter().enumerate() {
            first[*block] = first[*block].min(at);
            last[*block] = at;
        }
        let run = |(at, (block, microbatch)): (usize, (usize, usize))| Run {
            block,
            microbatch,
            is_first: first[block] == at,
            is_last: last[block] == at,
        };
        order.into_iter().enumerate().map(run).collect()
    }
}
