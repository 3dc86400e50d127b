//! Addresses: which buffers live how long, and where each lies. Everything is laid out before step 0.

use std::collections::{BTreeMap, BTreeSet};

use crate::program::{BufferId, Class, Instruction, Phase, Program, ProgramMemory, SlotRegion};

/// Assigns classes and offsets to all buffers, and sizes to all regions.
pub(crate) fn assign(program: &mut Program, num_slots: &[usize], is_moment: impl Fn(&str) -> bool) {
    classify(program);
    let mut next: BTreeMap<Region, usize> = BTreeMap::new();
    let mut memory = ProgramMemory::default();
    let moments: BTreeSet<BufferId> =
        program.states.iter().filter(|(name, _)| is_moment(name)).map(|(_, b)| *b).collect();
    let accumulators = accumulators(program);
    let beside_states: BTreeSet<BufferId> =
        program.caches.iter().chain(&program.derived).map(|(_, b)| *b).collect();
    let outlive: Vec<BufferId> = program.outlives().map(|(_, b)| *b).collect();
    let in_buckets = in_buckets(program);
    let apart: BTreeSet<BufferId> = outlive.iter().chain(&in_buckets).copied().collect();
    let rest = (0..program.buffers.len() as u32).map(BufferId).filter(|b| !apart.contains(b));
    let order: Vec<BufferId> =
        outlive.iter().copied().chain(rest).chain(in_buckets.iter().copied()).collect();
    for id in order {
        let buffer = &mut program.buffers[id.index()];
        if buffer.storage != id {
            continue;
        }
        let region = match buffer.class {
            Class::State | Class::Derived => Region::State,
            Class::Step => Region::Step,
            Class::Slot(stage) => Region::Slot(stage),
            Class::Temp => continue,
        };
        let offset = next.entry(region).or_default();
        buffer.offset = *offset;
        *offset += buffer.bytes();
        match region {
            Region::State if beside_states.contains(&id) => memory.buffers_bytes += buffer.bytes(),
            Region::State if moments.contains(&id) => memory.optimizer_bytes += buffer.bytes(),
            Region::State => memory.parameters_bytes += buffer.bytes(),
            Region::Step if accumulators.contains(&id) => memory.gradients_bytes += buffer.bytes(),
            Region::Step => memory.buffers_bytes += buffer.bytes(),
            Region::Slot(_) => {}
        }
    }
    program.state_bytes = next.get(&Region::State).copied().unwrap_or(0);
    program.step_bytes = next.get(&Region::Step).copied().unwrap_or(0);
    let mut offset = 0;
    for (region, bytes) in &next {
        if let Region::Slot(stage) = *region {
            let slots = SlotRegion { stage, slot_bytes: *bytes, num_slots: num_slots[stage], offset };
            offset += slots.slot_bytes * slots.num_slots;
            program.slots.push(slots);
        }
    }
    memory.activations_bytes = offset;
    program.temp_bytes = place_temporaries(program);
    memory.buffers_bytes += program.temp_bytes;
    program.memory = memory;
    for i in 0..program.buffers.len() {
        let root = program.buffers[i].storage.index();
        program.buffers[i].offset = program.buffers[root].offset;
        program.buffers[i].class = program.buffers[root].class;
    }
}

/// Storages that a collective covers together, bucket by bucket: they lie one behind the other.
fn in_buckets(program: &Program) -> Vec<BufferId> {
    let starts = program.blocks.iter().flat_map(|b| &b.instructions).filter_map(|i| match i {
        Instruction::Start { inputs, .. } if inputs.len() > 1 => Some(inputs),
        _ => None,
    });
    starts.flatten().map(|id| program.buffer(*id).storage).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Region {
    State,
    Step,
    Slot(usize),
}

/// A buffer that several blocks of one stage touch is kept per microbatch; one that only one block touches is
/// temporary. States and step values were marked by lowering.
fn classify(program: &mut Program) {
    let mut blocks_of: BTreeMap<BufferId, BTreeSet<usize>> = BTreeMap::new();
    for (index, block) in program.blocks.iter().enumerate() {
        for instruction in &block.instructions {
            let (reads, writes) = instruction.uses();
            for id in reads.into_iter().chain(writes) {
                blocks_of.entry(program.buffers[id.index()].storage).or_default().insert(index);
            }
        }
    }
    for (id, blocks) in blocks_of {
        let buffer = &mut program.buffers[id.index()];
        if buffer.class != Class::Temp || blocks.len() < 2 {
            continue;
        }
        let stage = program.blocks[*blocks.first().expect("touched")].stage;
        buffer.class = match stage {
            Some(stage) if blocks.iter().all(|b| program.blocks[*b].stage == Some(stage)) => {
                Class::Slot(stage)
            }
            _ => Class::Step,
        };
    }
}

/// Step buffers that microbatches add into, gradients among them.
fn accumulators(program: &Program) -> BTreeSet<BufferId> {
    let storage = |b: &BufferId| program.buffers[b.index()].storage;
    let microbatch_blocks =
        program.blocks.iter().filter(|b| !matches!(b.phase, Phase::Derive | Phase::Begin | Phase::Update));
    microbatch_blocks
        .flat_map(|b| &b.instructions)
        .flat_map(|i| i.uses().1)
        .map(|b| storage(&b))
        .filter(|b| program.buffers[b.index()].class == Class::Step)
        .collect()
}

/// Temporaries of each block, largest first, each at the lowest address that is free while it lives.
fn place_temporaries(program: &mut Program) -> usize {
    let mut extent = 0;
    for block in 0..program.blocks.len() {
        let mut lives = lifetimes(program, block);
        lives.sort_by_key(|l| (std::cmp::Reverse(program.buffers[l.buffer.index()].bytes()), l.buffer));
        let mut placed: Vec<(usize, usize, usize, usize)> = Vec::new(); // offset, end, first, last
        for life in lives {
            let bytes = program.buffers[life.buffer.index()].bytes();
            let mut busy: Vec<(usize, usize)> = placed
                .iter()
                .filter(|(_, _, first, last)| *first <= life.last && life.first <= *last)
                .map(|(offset, end, _, _)| (*offset, *end))
                .collect();
            busy.sort_unstable();
            let mut offset = 0;
            for (start, end) in busy {
                if start >= offset + bytes {
                    break;
                }
                offset = offset.max(end);
            }
            program.buffers[life.buffer.index()].offset = offset;
            placed.push((offset, offset + bytes, life.first, life.last));
            extent = extent.max(offset + bytes);
        }
    }
    extent
}

struct Life {
    buffer: BufferId,
    first: usize,
    last: usize,
}

/// First and last instruction of a block that touch each temporary; a collective holds its buffers until its wait.
fn lifetimes(program: &Program, block: usize) -> Vec<Life> {
    let mut lives: BTreeMap<BufferId, (usize, usize)> = BTreeMap::new();
    let mut in_flight: BTreeMap<usize, Vec<BufferId>> = BTreeMap::new();
    for (index, instruction) in program.blocks[block].instructions.iter().enumerate() {
        let (reads, writes) = instruction.uses();
        let mut touched: Vec<BufferId> = reads.into_iter().chain(writes).collect();
        match instruction {
            Instruction::Start { ticket, .. } => {
                in_flight.insert(*ticket, touched.clone());
            }
            Instruction::Wait { ticket, .. } => touched.extend(in_flight.remove(ticket).unwrap_or_default()),
            _ => {}
        }
        for id in touched {
            let root = program.buffers[id.index()].storage;
            if program.buffers[root.index()].class == Class::Temp {
                lives.entry(root).or_insert((index, index)).1 = index;
            }
        }
    }
    lives.into_iter().map(|(buffer, (first, last))| Life { buffer, first, last }).collect()
}
