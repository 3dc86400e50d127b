//! Overlap, a rewrite of a lowered Program: within a block, collectives that need not be waited for at once go on in the
//! background. Buckets, which reach from one block to another, are in `buckets`.
//!
//! - Under ZeRO 2 and 3 gradients are reduced in every microbatch: a reduce_scatter is waited for when the backward
//!   comes to something that needs it, or has started too much behind it.
//! - Under ZeRO 3 parameters are gathered where they are used: a gather starts while the one before is in use.
//! - Under ZeRO 1 and 2 parameters are gathered after their update: while the next ones are updated.

use std::collections::VecDeque;

use crate::buckets::background;
use crate::instruction::{Collective, Instruction, When};
use crate::program::{Block, BufferId, Class, Phase, Program};

/// Collectives of a kind under way in a block at most.
pub(crate) const IN_BLOCK: usize = 15;

/// Rewrites every block; about `window_bytes` are under way at once in each direction. With 0 the Program stays as it
/// is.
pub(crate) fn overlap(program: &mut Program, window_bytes: usize) {
    if window_bytes == 0 {
        return;
    }
    for at in 0..program.blocks.len() {
        let kind = match program.blocks[at].phase {
            Phase::Update | Phase::Apply => Kind::AllGather,
            Phase::Derive | Phase::Begin | Phase::Clear | Phase::Validate | Phase::Amend => continue,
            _ => Kind::ReduceScatter,
        };
        wait_late(program, at, kind, window_bytes);
        if kind == Kind::ReduceScatter {
            start_early(program, at, window_bytes);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ReduceScatter,
    AllGather,
}

/// A collective that is waited for where it is started.
struct Pair {
    input: BufferId,
    output: BufferId,
}

/// The pair at `at`, if there is one of this kind within a stage.
fn pair(program: &Program, block: &Block, at: usize, kind: Kind) -> Option<Pair> {
    let Some(Instruction::Start { collective, inputs, outputs, group, ticket, when: When::Always, .. }) =
        block.instructions.get(at)
    else {
        return None;
    };
    let wanted = match collective {
        Collective::ReduceScatter(_) => kind == Kind::ReduceScatter,
        Collective::AllGather => kind == Kind::AllGather,
        _ => false,
    };
    let waited =
        matches!(block.instructions.get(at + 1), Some(Instruction::Wait { ticket: t, .. }) if t == ticket);
    let key = &program.groups[*group];
    let within_stage = key.pipeline_ranks.is_none() && !key.axes.contains(mesh::Axis::Pp);
    match (&inputs[..], &outputs[..]) {
        ([input], [output]) if wanted && waited && within_stage => {
            Some(Pair { input: *input, output: *output })
        }
        _ => None,
    }
}

/// The same start over the group of the communication thread.
fn in_background(program: &mut Program, start: &Instruction) -> Instruction {
    let mut start = start.clone();
    if let Instruction::Start { group, .. } = &mut start {
        *group = background(program, *group);
    }
    start
}

fn bytes(program: &Program, pair: &Pair) -> usize {
    program.buffer(pair.input).bytes().max(program.buffer(pair.output).bytes())
}

fn touched(program: &Program, instruction: &Instruction) -> Vec<BufferId> {
    let (reads, writes) = instruction.uses();
    reads.iter().chain(&writes).map(|id| program.buffer(*id).storage).collect()
}

/// Started and not yet waited for: the wait, with what follows at once from its result.
struct Held {
    rest: Vec<Instruction>,
    roots: Vec<BufferId>,
    bytes: usize,
}

/// Moves the waits of a block's collectives of one kind behind what does not need them, in the order of their starts.
fn wait_late(program: &mut Program, at: usize, kind: Kind, window_bytes: usize) {
    let block = program.blocks[at].clone();
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut into: Vec<Instruction> = Vec::with_capacity(block.instructions.len());
    let mut index = 0;
    while index < block.instructions.len() {
        let instruction = &block.instructions[index];
        let roots = touched(program, instruction);
        let found = pair(program, &block, index, kind);
        let more = found.as_ref().map_or(0, |pair| bytes(program, pair));
        let is_full = |held: &VecDeque<Held>| {
            let under_way: usize = held.iter().map(|h| h.bytes).sum();
            found.is_some() && (held.len() == IN_BLOCK || under_way + more > window_bytes)
        };
        while held.iter().any(|h| h.roots.iter().any(|root| roots.contains(root))) || is_full(&held) {
            let Some(oldest) = held.pop_front() else { break };
            into.extend(oldest.rest);
        }
        let Some(pair) = found else {
            into.push(instruction.clone());
            index += 1;
            continue;
        };
        into.push(in_background(program, instruction));
        let result = program.buffer(pair.output).storage;
        let follows = block.instructions.get(index + 2).filter(|next| match next {
            Instruction::Accumulate { from, .. } | Instruction::Copy { from, .. } => {
                program.buffer(*from).storage == result
            }
            _ => false,
        });
        let rest: Vec<Instruction> =
            std::iter::once(&block.instructions[index + 1]).chain(follows).cloned().collect();
        index += 1 + rest.len();
        let roots = roots.into_iter().chain(rest.iter().flat_map(|i| touched(program, i))).collect();
        held.push_back(Held { rest, roots, bytes: more });
    }
    into.extend(held.into_iter().flat_map(|h| h.rest));
    program.blocks[at].instructions = into;
}

/// Starts gathers of what lies there from the block's beginning while earlier ones are in use: the next one at least,
/// more within the window.
fn start_early(program: &mut Program, at: usize, window_bytes: usize) {
    let block = program.blocks[at].clone();
    let touched = program.touched(at);
    // Each with the first place at which it may start: behind whatever touches its buffers before it.
    let mut gathers: Vec<(usize, usize, usize)> = Vec::new();
    for index in 0..block.instructions.len() {
        let Some(pair) = pair(program, &block, index, Kind::AllGather) else { continue };
        let roots = &touched[index];
        let of_input = program.buffer(program.buffer(pair.input).storage);
        if matches!(of_input.class, Class::State | Class::Derived) {
            let shares = |other: &Vec<BufferId>| other.iter().any(|root| roots.contains(root));
            let earliest = touched[..index].iter().rposition(shares).map_or(0, |last| last + 1);
            gathers.push((index, earliest, bytes(program, &pair)));
        }
    }
    let mut into: Vec<Instruction> = Vec::with_capacity(block.instructions.len());
    let (mut started, mut reached) = (0, 0);
    for (index, instruction) in block.instructions.iter().enumerate() {
        if gathers.get(reached).is_none_or(|(of, ..)| *of != index) {
            into.push(instruction.clone());
            continue;
        }
        let mut until = started.max(reached + 1);
        let mut under_way: usize = gathers[reached..until].iter().map(|(.., bytes)| bytes).sum();
        while let Some((_, earliest, more)) = gathers.get(until)
            && *earliest <= index
            && until - reached < IN_BLOCK
            && (until == reached + 1 || under_way + more <= window_bytes)
        {
            under_way += more;
            until += 1;
        }
        for (of, ..) in &gathers[started..until] {
            into.push(in_background(program, &block.instructions[*of]));
        }
        (started, reached) = (until, reached + 1);
    }
    program.blocks[at].instructions = into;
}
