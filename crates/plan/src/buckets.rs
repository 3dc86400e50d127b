//! Buckets, a rewrite of a lowered Program: gradients whose sums over ranks are owed until the update are reduced in
//! the background, as soon as the last microbatch's backward has completed them, instead of one by one in the update.
//!
//! All gradients of a bucket lie one behind the other in the arena, so that one all_reduce covers them without a copy.
//! Under ZeRO 1, where each rank keeps its part of each gradient, a bucket's reduce_scatters start together.
//! *Source:* Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", 2020, section 3.2.

use std::collections::{HashMap, VecDeque};

use graph::Op;
use mesh::Axis;

use crate::instruction::{Collective, Instruction, Lane, When};
use crate::program::{Block, BufferId, Class, Phase, Program};

/// Buckets and parts of buckets under way at most. Each has one or two regions of the arena checked out, of which there
/// is a limit.
const BUCKETS: usize = 64;

/// Collectives of a rank under way at most: buckets, and what blocks have in the background beside them, two kinds.
pub const IN_FLIGHT: usize = BUCKETS + 2 * crate::overlap::IN_BLOCK;

/// A reduction that the update makes, of a gradient that one block completes.
struct Reduction {
    collective: Collective,
    input: BufferId,
    output: BufferId,
    count: usize,
    group: usize,
    /// The block that completes the gradient, and its last instruction that touches it.
    block: usize,
    ready: usize,
}

/// Starts the reductions of `members` together.
struct Bucket {
    members: Vec<Reduction>,
    bytes: usize,
}

impl Bucket {
    fn ready(&self) -> usize {
        self.members.iter().map(|m| m.ready).max().unwrap_or(0)
    }

    fn takes(&self, other: &Reduction, bytes: usize, bucket_bytes: usize) -> bool {
        let key = |r: &Reduction| (r.collective, r.group, r.block);
        key(&self.members[0]) == key(other) && self.bytes + bytes <= bucket_bytes
    }
}

/// Moves reductions of gradients from the update to where the gradients are complete, in buckets of at most
/// `bucket_bytes` (a larger gradient is one of its own). With 0 the Program stays as it is.
pub(crate) fn bucket(program: &mut Program, bucket_bytes: usize) {
    let Some(update) = program.blocks.iter().position(|b| b.phase == Phase::Update) else { return };
    if bucket_bytes == 0 {
        return;
    }
    let mut reductions = take_reductions(program, update);
    let last_run: HashMap<usize, usize> =
        program.runs().iter().enumerate().map(|(at, run)| (run.block, at)).collect();
    reductions.sort_by_key(|r| (last_run[&r.block], r.ready));
    let mut buckets: Vec<Bucket> = Vec::new();
    for reduction in reductions {
        let bytes = program.buffer(program.buffer(reduction.input).storage).bytes();
        match buckets.iter_mut().rev().find(|b| b.takes(&reduction, bytes, bucket_bytes)) {
            Some(bucket) => {
                bucket.bytes += bytes;
                bucket.members.push(reduction);
            }
            None => buckets.push(Bucket { members: vec![reduction], bytes }),
        }
    }
    buckets.sort_by_key(|b| (last_run[&b.members[0].block], b.ready()));
    let mut in_flight: VecDeque<(usize, Vec<BufferId>)> = VecDeque::new();
    let mut inserted: HashMap<usize, Vec<(usize, Instruction)>> = HashMap::new();
    for bucket in buckets {
        let (block, ready) = (bucket.members[0].block, bucket.ready());
        let here = inserted.entry(block).or_default();
        for (start, ticket, outputs) in starts(program, bucket) {
            if in_flight.len() == BUCKETS
                && let Some((ticket, _)) = in_flight.pop_front()
            {
                here.push((ready, Instruction::Wait { ticket, when: When::LastRun }));
            }
            here.push((ready, start));
            in_flight.push_back((ticket, outputs));
        }
    }
    for (block, inserted) in inserted {
        insert_after(&mut program.blocks[block], inserted);
    }
    wait_in_update(program, update, in_flight);
}

/// Takes out of the update each reduction that is the first thing it does with a gradient, if one block of a stage
/// completed that.
fn take_reductions(program: &mut Program, update: usize) -> Vec<Reduction> {
    let touched = touched_by_blocks(program);
    let mut seen: Vec<bool> = vec![false; program.buffers.len()];
    let (mut reductions, mut gone) = (Vec::new(), Vec::new());
    let instructions = &program.blocks[update].instructions;
    for (at, pair) in instructions.windows(2).enumerate() {
        if let [
            Instruction::Start { collective, inputs, outputs, count, group, ticket, .. },
            Instruction::Wait { ticket: waited, .. },
        ] = pair
            && let ([input], [output]) = (&inputs[..], &outputs[..])
            && ticket == waited
            && matches!(collective, Collective::AllReduce(_) | Collective::ReduceScatter(_))
        {
            let key = &program.groups[*group];
            let within_stage = key.pipeline_ranks.is_none() && !key.axes.contains(Axis::Pp);
            let root = program.buffer(*input).storage;
            if let Some(Touch::Once { block, last }) = touched[root.index()]
                && within_stage
                && !seen[root.index()]
                && program.buffer(root).class == Class::Step
            {
                let (collective, input, output) = (*collective, *input, *output);
                let (count, group) = (*count, *group);
                reductions.push(Reduction { collective, input, output, count, group, block, ready: last });
                gone.extend([at, at + 1]);
            }
        }
        let (reads, writes) = pair[0].uses();
        reads.iter().chain(&writes).for_each(|id| seen[program.buffer(*id).storage.index()] = true);
    }
    let mut at = 0;
    program.blocks[update].instructions.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
    reductions
}

#[derive(Debug, Clone, Copy)]
enum Touch {
    /// By one block of a stage, last by this instruction.
    Once { block: usize, last: usize },
    /// By several.
    Often,
}

/// Which block of a stage touches each storage.
fn touched_by_blocks(program: &Program) -> Vec<Option<Touch>> {
    let mut touched: Vec<Option<Touch>> = vec![None; program.buffers.len()];
    for (at, _) in program.blocks.iter().enumerate().filter(|(_, b)| b.stage.is_some()) {
        for (index, roots) in program.touched(at).into_iter().enumerate() {
            for root in roots {
                let touch = &mut touched[root.index()];
                *touch = Some(match *touch {
                    None => Touch::Once { block: at, last: index },
                    Some(Touch::Once { block, .. }) if block == at => Touch::Once { block, last: index },
                    Some(_) => Touch::Often,
                });
            }
        }
    }
    touched
}

/// The instructions that start a bucket: one all_reduce of all, or a reduce_scatter of each. With ticket and results.
fn starts(program: &mut Program, bucket: Bucket) -> Vec<(Instruction, usize, Vec<BufferId>)> {
    let group = background(program, bucket.members[0].group);
    let together = matches!(bucket.members[0].collective, Collective::AllReduce(_));
    let parts: Vec<Vec<Reduction>> = match together {
        true => vec![bucket.members],
        false => bucket.members.into_iter().map(|member| vec![member]).collect(),
    };
    let mut all = Vec::new();
    for members in parts {
        let collective = members[0].collective;
        let (before, last) = members.split_at(members.len() - 1);
        let whole = |r: &Reduction| {
            let root = program.buffer(program.buffer(r.input).storage);
            root.bytes() / root.dtype.size_bytes()
        };
        let count = before.iter().map(whole).sum::<usize>() + last[0].count;
        let inputs = members.iter().map(|m| m.input).collect();
        let outputs: Vec<BufferId> = members.iter().map(|m| m.output).collect();
        let ticket = program.num_tickets;
        program.num_tickets += 1;
        let (results, when) = (outputs.clone(), When::LastRun);
        all.push((
            Instruction::Start { collective, inputs, outputs, count, group, ticket, when },
            ticket,
            results,
        ));
    }
    all
}

/// The same group on the communication thread.
pub(crate) fn background(program: &mut Program, group: usize) -> usize {
    let key = crate::instruction::GroupKey { lane: Lane::Background, ..program.groups[group].clone() };
    program.groups.iter().position(|g| *g == key).unwrap_or_else(|| {
        program.groups.push(key);
        program.groups.len() - 1
    })
}

/// Puts each instruction behind the one at its index; those of one index stay in order.
fn insert_after(block: &mut Block, inserted: Vec<(usize, Instruction)>) {
    let mut inserted = inserted.into_iter().peekable();
    let old = std::mem::take(&mut block.instructions);
    for (at, instruction) in old.into_iter().enumerate() {
        block.instructions.push(instruction);
        while let Some((_, new)) = inserted.next_if(|(index, _)| *index == at) {
            block.instructions.push(new);
        }
    }
}

/// Waits in the update for each collective where its result is first needed, in the order of starts, and takes norms of
/// what arrives first first.
fn wait_in_update(program: &mut Program, update: usize, in_flight: VecDeque<(usize, Vec<BufferId>)>) {
    let storage: Vec<usize> = program.buffers.iter().map(|b| b.storage.index()).collect();
    let mut arrival: HashMap<usize, usize> = HashMap::new();
    for (order, (_, outputs)) in in_flight.iter().enumerate() {
        arrival.extend(outputs.iter().map(|id| (storage[id.index()], order)));
    }
    let mut instructions = std::mem::take(&mut program.blocks[update].instructions);
    let is_norm = |i: &Instruction| matches!(i, Instruction::Compute { op: Op::SumSquares, .. });
    let needs = |i: &Instruction| {
        let (reads, writes) = i.uses();
        let touched = reads.iter().chain(&writes).map(|id| storage[id.index()]);
        touched.filter_map(|root| arrival.get(&root).copied()).max()
    };
    for norms in instructions.chunk_by_mut(|a, b| is_norm(a) && is_norm(b)) {
        norms.sort_by_key(|i| needs(i));
    }
    let mut waits = in_flight.into_iter().map(|(ticket, _)| ticket).enumerate().peekable();
    let into = &mut program.blocks[update].instructions;
    for instruction in instructions {
        let needed = needs(&instruction);
        while let Some((_, ticket)) = waits.next_if(|(order, _)| needed.is_some_and(|n| *order <= n)) {
            into.push(Instruction::Wait { ticket, when: When::Always });
        }
        into.push(instruction);
    }
    into.extend(waits.map(|(_, ticket)| Instruction::Wait { ticket, when: When::Always }));
}
