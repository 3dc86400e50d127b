//! What a step moves between ranks, read off a Program's instructions and how often their blocks run.

use std::collections::BTreeMap;

use mesh::Axis;
use plan::{Block, Collective, Instruction, Phase, Plan, Program};
use serde::Serialize;

use super::element_bytes;

/// Communication of one kind over one group in one phase, in one step, of the rank that has most of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Communication {
    /// Axes of the group; `pp` for send and recv.
    pub axis: String,
    /// `all_reduce`, `reduce_scatter`, `all_gather`, `all_to_all`, `send` or `recv`.
    pub kind: &'static str,
    /// Phase of the block: `forward`, `backward`, `update`...
    pub phase: &'static str,
    /// Operations.
    pub count: u64,
    /// Size of their tensors on a rank: the larger of operand and result.
    pub bytes_per_rank: u64,
    /// What leaves a rank if collectives run as rings: 2 (n - 1) / n of the bytes for all_reduce, (n - 1) / n for the
    /// others.
    pub sent_bytes_per_rank: u64,
    /// `bytes_per_rank` of each pipeline rank.
    pub bytes_by_stage: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    phase: Phase,
    axis: String,
    kind: &'static str,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    bytes: u64,
    count: u64,
    sent: u64,
}

/// Communication of one pipeline rank's step.
pub(super) fn of(plan: &Plan, program: &Program) -> BTreeMap<Key, Traffic> {
    let mut all: BTreeMap<Key, Traffic> = BTreeMap::new();
    for run in program.runs() {
        let block = &program.blocks[run.block];
        for (_, instruction) in run.instructions(block) {
            let Some((axis, kind, bytes, group_size)) = operation(plan, program, instruction) else {
                continue;
            };
            let traffic = all.entry(Key { phase: block.phase, axis, kind }).or_default();
            traffic.count += 1;
            traffic.bytes += bytes;
            traffic.sent += sent(kind, bytes, group_size);
        }
    }
    all
}

/// How often a block runs in a step.
pub(super) fn runs(program: &Program, block: &Block) -> usize {
    program.runs().iter().filter(|run| std::ptr::eq(&program.blocks[run.block], block)).count()
}

fn operation(
    plan: &Plan,
    program: &Program,
    instruction: &Instruction,
) -> Option<(String, &'static str, u64, u64)> {
    match instruction {
        Instruction::Start { collective, outputs, count, group, .. } => {
            let key = &program.groups[*group];
            let n =
                key.pipeline_ranks.as_ref().map_or_else(|| plan.mesh.group_size(key.axes), Vec::len) as u64;
            let piece = *count as u64 * element_bytes(program.buffer(outputs[0]).dtype);
            let (kind, bytes) = match collective {
                Collective::AllReduce(_) => ("all_reduce", piece),
                Collective::ReduceScatter(_) => ("reduce_scatter", n * piece),
                Collective::AllGather => ("all_gather", n * piece),
                Collective::AllToAll => ("all_to_all", n * piece),
            };
            Some((key.ranks(), kind, bytes, n))
        }
        Instruction::Send { input: buffer, .. } | Instruction::Recv { output: buffer, .. } => {
            let kind = if matches!(instruction, Instruction::Send { .. }) { "send" } else { "recv" };
            let buffer = program.buffer(*buffer);
            let bytes = buffer.len as u64 * element_bytes(buffer.dtype);
            Some((Axis::Pp.name().to_owned(), kind, bytes, 2))
        }
        _ => None,
    }
}

fn sent(kind: &str, bytes: u64, n: u64) -> u64 {
    match kind {
        "send" => bytes,
        "recv" => 0,
        "all_reduce" => (2 * bytes * (n - 1)).div_ceil(n),
        _ => (bytes * (n - 1)).div_ceil(n),
    }
}

/// Of every entry the pipeline rank that has most.
pub(super) fn merge(stages: Vec<BTreeMap<Key, Traffic>>) -> Vec<Communication> {
    let mut keys: Vec<&Key> = stages.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    keys.iter()
        .map(|key| {
            let of_stage: Vec<Traffic> =
                stages.iter().map(|s| s.get(key).copied().unwrap_or_default()).collect();
            let most = of_stage.iter().copied().max_by_key(|t| (t.bytes, t.count)).unwrap_or_default();
            Communication {
                axis: key.axis.clone(),
                kind: key.kind,
                phase: key.phase.name(),
                count: most.count,
                bytes_per_rank: most.bytes,
                sent_bytes_per_rank: most.sent,
                bytes_by_stage: of_stage.iter().map(|t| t.bytes).collect(),
            }
        })
        .collect()
}
