//! What recompute costs in time, read off a Program: operations of the forward that a backward does again.

use std::collections::HashSet;

use plan::{Block, Instruction, Phase, Plan, Program, When};
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
    /// Bytes that they read and write.
    pub bytes: f64,
    /// The part by which forward and backward take longer, with a byte counted as 16 operations.
    pub extra_fraction: f64,
}

/// What products do while others move a byte: a core of today in f32, whose operands lie in its caches.
const FLOPS_PER_BYTE: f64 = 16.0;

/// Counts of one pipeline rank; none if it computes nothing again.
pub(super) fn of(plan: &Plan, program: &Program) -> Option<Recomputed> {
    let (mut operations, mut flops, mut bytes, mut all) = (0, 0.0, 0.0, 0.0);
    let cost = |flops: f64, bytes: f64| flops + FLOPS_PER_BYTE * bytes;
    for (at, block) in program.blocks.iter().enumerate().filter(|(_, block)| block.stage.is_some()) {
        let is_backward = block.phase != Phase::Forward;
        let forward = program.block(block.stage, Phase::Forward).filter(|_| is_backward);
        let known: HashSet<(&str, &str)> = forward.into_iter().flat_map(operations_of).collect();
        let times = runs(program, block);
        for (index, instruction) in block.instructions.iter().enumerate() {
            let work = runtime::work(plan, program, at, index);
            let [of_products, moved] = [work.flops, work.bytes].map(|of_one| times as f64 * of_one);
            if work.queue == runtime::Queue::Compute {
                all += cost(of_products, moved);
            }
            if operation(instruction).is_some_and(|operation| known.contains(&operation)) {
                operations += times;
                flops += of_products;
                bytes += moved;
            }
        }
    }
    (operations > 0).then(|| Recomputed {
        stage: program.pipeline_rank,
        operations,
        flops,
        bytes,
        extra_fraction: cost(flops, bytes) / (all - cost(flops, bytes)),
    })
}

fn operations_of(block: &Block) -> impl Iterator<Item = (&str, &str)> {
    block.instructions.iter().filter_map(operation)
}

/// Name of the node and kind: a clone has those of what it repeats. What is made once a step is no microbatch's.
fn operation(instruction: &Instruction) -> Option<(&str, &str)> {
    match instruction {
        Instruction::Compute { op, name, when: When::Always, .. } => Some((name.as_str(), op.name())),
        _ => None,
    }
}
