//! What recompute costs in time, read off a Program: operations of the forward that a backward does again.

use std::collections::HashSet;

use plan::{Block, Instruction, Phase, Plan, Program};
use serde::Serialize;

use super::communication::runs;

/// What one pipeline rank computes again in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recomputed {
    /// Its position in the pipeline.
    pub stage: usize,
    /// Operations, over all microbatches.
    pub operations: usize,
    /// Floating-point operations of the products among them.
    pub flops: f64,
    /// The same as a part of what the rank would compute without: about the part by which its forward and backward take
    /// longer, as far as products take the time.
    pub extra_fraction: f64,
}

/// Counts of one pipeline rank; none if it computes nothing again.
pub(super) fn of(plan: &Plan, program: &Program) -> Option<Recomputed> {
    let (mut operations, mut flops, mut all) = (0, 0.0, 0.0);
    for (at, block) in program.blocks.iter().enumerate().filter(|(_, block)| block.stage.is_some()) {
        let is_backward = block.phase != Phase::Forward;
        let forward = program.block(block.stage, Phase::Forward).filter(|_| is_backward);
        let known: HashSet<(&str, &str)> = forward.into_iter().flat_map(operations_of).collect();
        let times = runs(program, block);
        for (index, instruction) in block.instructions.iter().enumerate() {
            let work = times as f64 * runtime::work(plan, program, at, index).flops;
            all += work;
            if operation(instruction).is_some_and(|operation| known.contains(&operation)) {
                operations += times;
                flops += work;
            }
        }
    }
    (operations > 0).then(|| Recomputed {
        stage: program.pipeline_rank,
        operations,
        flops,
        extra_fraction: flops / (all - flops),
    })
}

fn operations_of(block: &Block) -> impl Iterator<Item = (&str, &str)> {
    block.instructions.iter().filter_map(operation)
}

/// Name of the node and kind: a clone has those of what it repeats.
fn operation(instruction: &Instruction) -> Option<(&str, &str)> {
    match instruction {
        Instruction::Compute { op, name, .. } => Some((name.as_str(), op.name())),
        _ => None,
    }
}
