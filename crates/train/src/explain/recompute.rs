//! What recompute costs in time, read off a Program: operations of the forward that a backward does again.

use std::collections::HashSet;

use graph::Op;
use memory::DType;
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
    /// The part by which forward and backward take longer, with bytes and attention priced in operations of
    /// products.
    pub extra_fraction: f64,
}

/// What other work costs, in operations of the products that could be done meanwhile. As measured on a core with AVX-512
/// and tiles, for operands that lie in its caches.
struct Prices {
    /// Of a byte that is read or written.
    byte: f64,
    /// Of an operation of attention, between whose two products stand exponentials.
    attention: f64,
}

impl Prices {
    fn of(plan: &Plan) -> Prices {
        match plan.narrow {
            DType::BF16 => Prices { byte: 140.0, attention: 7.0 },
            _ => Prices { byte: 12.0, attention: 2.0 },
        }
    }

    fn cost(&self, instruction: &Instruction, flops: f64, bytes: f64) -> f64 {
        let is_attention = matches!(
            instruction,
            Instruction::Compute { op: Op::Attention { .. } | Op::AttentionBackward { .. }, .. }
        );
        let flop = if is_attention { self.attention } else { 1.0 };
        flop * flops + self.byte * bytes
    }
}

/// Counts of one pipeline rank; none if it computes nothing again.
pub(crate) fn of(plan: &Plan, program: &Program) -> Option<Recomputed> {
    let (mut operations, mut flops, mut bytes, mut extra, mut all) = (0, 0.0, 0.0, 0.0, 0.0);
    let prices = Prices::of(plan);
    for (at, block) in program.blocks.iter().enumerate().filter(|(_, block)| block.stage.is_some()) {
        let again = repeated(program, block);
        let times = runs(program, block);
        for index in 0..block.instructions.len() {
            let work = runtime::work(plan, program, at, index);
            let [of_products, moved] = [work.flops, work.bytes].map(|of_one| times as f64 * of_one);
            let cost = prices.cost(&block.instructions[index], of_products, moved);
            if work.queue == runtime::Queue::Compute {
                all += cost;
            }
            if again.contains(&index) {
                (operations, extra) = (operations + times, extra + cost);
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
        extra_fraction: extra / (all - extra),
    })
}

/// Positions in a block of the operations of its stage's forward that it does again.
pub(crate) fn repeated(program: &Program, block: &Block) -> HashSet<usize> {
    let is_backward = block.stage.is_some() && block.phase != Phase::Forward;
    let forward = program.block(block.stage, Phase::Forward).filter(|_| is_backward);
    let known: HashSet<&str> = forward.into_iter().flat_map(operations).map(|(_, name)| name).collect();
    operations(block).filter(|(_, name)| known.contains(name)).map(|(index, _)| index).collect()
}

/// Positions and names of nodes: a clone has the name of what it repeats, though perhaps another kind, because forward and
/// backward fuse it with other neighbours. What is made once a step is no microbatch's.
fn operations(block: &Block) -> impl Iterator<Item = (usize, &str)> {
    block.instructions.iter().enumerate().filter_map(|(index, instruction)| match instruction {
        Instruction::Compute { name, when: When::Always, .. } => Some((index, name.as_str())),
        _ => None,
    })
}
