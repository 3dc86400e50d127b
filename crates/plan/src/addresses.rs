//! Addresses: which buffers live how long, and where each lies. Everything is laid out before step 0.

use std::collections::{BTreeMap, BTreeSet};

use crate::instruction::Instruction;
use crate::placing::{Life, place};
use crate::program::{BufferId, Class, Phase, Program, ProgramMemory, SlotRegion};

/// Slots of all microbatches that are placed one by one at most: placing takes time that grows with their square.
const SLOTS: usize = 2048;
/// Slots and temporaries of all runs that are placed together at most.
const TOGETHER: usize = 1 << 18;

/// Assigns classes and offsets to all buffers, and sizes to all regions.
pub(crate) fn assign(program: &mut Program, is_moment: impl Fn(&str) -> bool) {
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
            Class::Slot(region) => Region::Slot(region),
            Class::Passing(_) | Class::Temp => continue,
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
    memory.activations_bytes = place_all(program);
    memory.buffers_bytes += program.slots_bytes - memory.activations_bytes;
    if program.validation.is_some() {
        let ends = program.states.iter().map(|(_, id)| program.buffer(*id)).map(|b| b.offset + b.bytes());
        program.saved_bytes = ends.max().unwrap_or(0);
    }
    memory.buffers_bytes += program.temp_bytes + program.saved_bytes;
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

/// A buffer that several blocks of one stage touch is kept per microbatch, in a slot; one that only one block touches is
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
    let mut kept: Vec<(BufferId, Kept)> = Vec::new();
    for (id, blocks) in blocks_of {
        let buffer = &mut program.buffers[id.index()];
        if buffer.class != Class::Temp || blocks.len() < 2 {
            continue;
        }
        let stage = program.blocks[*blocks.first().expect("touched")].stage;
        let phases: BTreeSet<Phase> = blocks.iter().map(|b| program.blocks[*b].phase).collect();
        match (stage, phases.first(), phases.last()) {
            (Some(stage), Some(first), Some(last))
                if blocks.iter().all(|b| program.blocks[*b].stage == Some(stage)) =>
            {
                kept.push((id, Kept { stage, first: *first, last: *last }));
            }
            _ => buffer.class = Class::Step,
        }
    }
    share_slots(program, &kept);
}

/// From which phase of a stage to which a buffer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    stage: usize,
    first: Phase,
    last: Phase,
}

/// A slot for each kept buffer, or for several that lie from the same phase to the same phase and follow each other, if
/// there would be more than `SLOTS` of all microbatches.
fn share_slots(program: &mut Program, kept: &[(BufferId, Kept)]) {
    let bytes: usize = kept.iter().map(|(id, _)| program.buffer(*id).bytes()).sum();
    let at_most = match kept.len() * program.num_microbatches() > SLOTS {
        true => (bytes * program.num_microbatches()).div_ceil(SLOTS),
        false => 0,
    };
    // Of what is kept alike, the region that is being filled.
    let mut open: Vec<(Kept, usize)> = Vec::new();
    for (id, kept) in kept {
        let bytes = program.buffer(*id).bytes();
        let position = open.iter().position(|(other, region)| {
            other == kept && program.slots[*region].slot_bytes + bytes <= at_most
        });
        let region = position.map_or(program.slots.len(), |at| open[at].1);
        if position.is_none() {
            open.retain(|(other, _)| other != kept);
            open.push((*kept, region));
            program.slots.push(SlotRegion { stage: kept.stage, slot_bytes: 0, offsets: vec![] });
        }
        program.slots[region].slot_bytes += bytes;
        program.buffers[id.index()].class = Class::Slot(region);
    }
}

/// Step buffers that microbatches add into, gradients among them.
fn accumulators(program: &Program) -> BTreeSet<BufferId> {
    let storage = |b: &BufferId| program.buffers[b.index()].storage;
    let microbatch_blocks = program.blocks.iter().filter(|b| b.stage.is_some());
    microbatch_blocks
        .flat_map(|b| &b.instructions)
        .flat_map(|i| i.uses().1)
        .map(|b| storage(&b))
        .filter(|b| program.buffers[b.index()].class == Class::Step)
        .collect()
}

/// What has a place of its own in the space that all microbatches share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Placed {
    /// A slot of a region.
    Slot { region: usize, microbatch: usize },
    /// A temporary in one run of its block.
    Passing { id: BufferId, run: usize },
}

/// Slots of all regions and microbatches, each of which lives from the first instruction of the step that touches it to
/// the last. Instructions are counted over all runs.
fn slot_lives(program: &Program) -> Vec<Life<Placed>> {
    let touches: Vec<BTreeMap<usize, (usize, usize)>> =
        (0..program.blocks.len()).map(|block| touched_regions(program, block)).collect();
    let mut lives: BTreeMap<(usize, usize), (usize, usize)> = BTreeMap::new();
    let mut before = 0;
    for run in program.runs() {
        for (region, (first, last)) in &touches[run.block] {
            lives.entry((*region, run.microbatch)).or_insert((before + first, 0)).1 = before + last;
        }
        before += program.blocks[run.block].instructions.len();
    }
    let life = |((region, microbatch), (first, last)): ((usize, usize), _)| Life {
        of: Placed::Slot { region, microbatch },
        bytes: program.slots[region].slot_bytes,
        first,
        last,
    };
    lives.into_iter().map(life).collect()
}

/// Temporaries of every run, but of blocks that run between two steps, of which one has begun.
fn passing_lives(program: &Program) -> Vec<Life<Placed>> {
    let of_block: Vec<Vec<Life<BufferId>>> = (0..program.blocks.len())
        .map(|block| match program.blocks[block].phase {
            Phase::Validate | Phase::Amend => vec![],
            _ => lifetimes(program, block),
        })
        .collect();
    let (mut before, mut all) = (0, Vec::new());
    for (number, run) in program.runs().into_iter().enumerate() {
        all.extend(of_block[run.block].iter().map(|life| Life {
            of: Placed::Passing { id: life.of, run: number },
            bytes: life.bytes,
            first: before + life.first,
            last: before + life.last,
        }));
        before += program.blocks[run.block].instructions.len();
    }
    all
}

/// Gives slots and temporaries their offsets: together, where that takes less than apart. Returns the bytes of what is
/// kept.
fn place_all(program: &mut Program) -> usize {
    let num_microbatches = program.num_microbatches();
    program.slots.iter_mut().for_each(|region| region.offsets = vec![0; num_microbatches]);
    let slots = slot_lives(program);
    let passing = passing_lives(program);
    let (alone, kept) = place(slots.clone());
    give(program, alone);
    program.slots_bytes = kept;
    program.temp_bytes = place_temporaries(program);
    if slots.len() + passing.len() > TOGETHER {
        return kept;
    }
    let (together, extent) = place(slots.into_iter().chain(passing).collect());
    if extent >= program.slots_bytes + program.temp_bytes {
        return kept;
    }
    give(program, together);
    program.slots_bytes = extent;
    program.temp_bytes = place_temporaries(program);
    kept.min(extent)
}

fn give(program: &mut Program, placed: Vec<(Placed, usize)>) {
    let runs = program.runs();
    for (what, offset) in placed {
        match what {
            Placed::Slot { region, microbatch } => program.slots[region].offsets[microbatch] = offset,
            Placed::Passing { id, run } => {
                let class = program.buffer(id).class;
                let place = match class {
                    Class::Passing(place) => place,
                    _ => {
                        program.passing.push(vec![0; program.num_microbatches().max(1)]);
                        let place = program.passing.len() - 1;
                        let buffer = &mut program.buffers[id.index()];
                        (buffer.class, buffer.offset) = (Class::Passing(place), 0);
                        place
                    }
                };
                program.passing[place][runs[run].microbatch] = offset;
            }
        }
    }
}

/// First and last instruction of a block that touch each region of slots.
fn touched_regions(program: &Program, block: usize) -> BTreeMap<usize, (usize, usize)> {
    let mut regions: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (index, roots) in program.touched(block).into_iter().enumerate() {
        for root in roots {
            if let Class::Slot(region) = program.buffer(root).class {
                regions.entry(region).or_insert((index, index)).1 = index;
            }
        }
    }
    regions
}

/// Temporaries of each block, but those that lie among the slots; blocks share the space.
fn place_temporaries(program: &mut Program) -> usize {
    let mut extent = 0;
    for block in 0..program.blocks.len() {
        let (placed, end) = place(lifetimes(program, block));
        for (id, offset) in placed {
            program.buffers[id.index()].offset = offset;
        }
        extent = extent.max(end);
    }
    extent
}

/// First and last instruction of a block that touch each temporary; a collective holds its buffers until its wait.
fn lifetimes(program: &Program, block: usize) -> Vec<Life<BufferId>> {
    let mut lives: BTreeMap<BufferId, (usize, usize)> = BTreeMap::new();
    for (index, roots) in program.touched(block).into_iter().enumerate() {
        for root in roots.into_iter().filter(|root| program.buffer(*root).class == Class::Temp) {
            lives.entry(root).or_insert((index, index)).1 = index;
        }
    }
    let life = |(of, (first, last))| Life { of, bytes: program.buffer(of).bytes(), first, last };
    lives.into_iter().map(life).collect()
}
