//! Gathers that reach into the next step, a rewrite of a lowered Program: under ZeRO 1 and 2 a parameter's update is
//! followed by the gather of its parts. That goes on while the next step begins, and is waited for just before the
//! parameter's first use there. Updates are made in the order of these first uses, so that what is needed first arrives
//! first.
//!
//! What mixed precision derives from the parameter is made then, too, once the whole parameter has arrived: its narrow copy
//! in front of the first use of either, and each packed form of that in front of its own first use.

use std::collections::{BTreeMap, BTreeSet};

use graph::Op;

use crate::buckets::background;
use crate::instruction::{Collective, Instruction, When};
use crate::program::{BufferId, Class, Phase, Program};

/// Gathers under way from one step to the next at most.
const CARRIED: usize = 64;

/// One parameter's update and the gather behind it: positions in the block.
struct Gather {
    begin: usize,
    end: usize,
    /// The parameter as it is stored.
    into: BufferId,
    /// Its storage.
    state: BufferId,
    ticket: usize,
}

/// What is derived from a parameter, as the first run of a block makes it.
struct Derived {
    /// The storage of the narrow copy.
    copy: BufferId,
    cast: Instruction,
    /// Storages of its packed forms, with what makes them.
    packed: Vec<(BufferId, Instruction)>,
}

/// An instruction of a step that touches something first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    /// In the order of the step.
    order: usize,
    block: usize,
    index: usize,
}

/// By block, instructions to come in front of others.
type Ahead = BTreeMap<usize, Vec<(usize, Instruction)>>;

/// Rewrites the block that changes states, and the blocks that use them first.
pub(crate) fn carry(program: &mut Program) {
    let changes = |phase: Phase| program.blocks.iter().position(|b| b.stage.is_none() && b.phase == phase);
    let Some(at) = changes(Phase::Apply).or_else(|| changes(Phase::Update)) else { return };
    let mut derived = derived(program);
    let found = gathers(program, at);
    let uses = first_uses(program);
    let first_use = |gather: &Gather| {
        let derived = derived.get(&gather.state);
        let copies = derived.into_iter().flat_map(|d| d.packed.iter().map(|p| p.0).chain([d.copy]));
        copies.chain([gather.state]).filter_map(|root| uses.get(&root)).min().copied()
    };
    let mut gathers: Vec<(Use, Gather)> =
        found.into_iter().filter_map(|gather| Some((first_use(&gather)?, gather))).collect();
    if gathers.is_empty() {
        return;
    }
    gathers.sort_by_key(|(first, gather)| (first.order, gather.begin));
    let old = std::mem::take(&mut program.blocks[at].instructions);
    let is_number = |index: &usize| matches!(old[*index], Instruction::Scalar { .. });
    let of =
        |gather: &Gather| (gather.begin..gather.end).filter(|index| !is_number(index)).collect::<Vec<_>>();
    let moved: BTreeSet<usize> = gathers.iter().flat_map(|(_, gather)| of(gather)).collect();
    let kept = old.iter().enumerate().filter(|(index, _)| !moved.contains(index)).map(|(_, i)| i.clone());
    let mut into: Vec<Instruction> = kept.collect();
    // Those that are needed last are under way longest.
    let carried = gathers.split_off(gathers.len().saturating_sub(CARRIED));
    into.extend(gathers.iter().flat_map(|(_, gather)| of(gather)).map(|index| old[index].clone()));
    for (_, gather) in &carried {
        // The wait moves to the next step, and no copy is left to be made.
        for index in of(gather).into_iter().filter(|index| *index < gather.end - 2) {
            let mut instruction = old[index].clone();
            if let Instruction::Start { inputs, outputs, group, .. } = &mut instruction {
                *group = background(program, *group);
                *outputs = vec![gather.into];
                // What is sent has to last until the next step.
                let root = program.buffer(inputs[0]).storage;
                program.buffers[root.index()].class = Class::Step;
            }
            into.push(instruction);
        }
    }
    let mut ahead = Ahead::new();
    let mut packed: BTreeSet<BufferId> = BTreeSet::new();
    for (first, gather) in &carried {
        let here = ahead.entry(first.block).or_default();
        here.push((first.index, Instruction::Wait { ticket: gather.ticket, when: When::FirstRun }));
        let Some(derived) = derived.remove(&gather.state) else { continue };
        here.push((first.index, derived.cast));
        for (form, pack) in derived.packed {
            if let Some(first) = uses.get(&form) {
                ahead.entry(first.block).or_default().push((first.index, pack));
                packed.insert(form);
            }
        }
    }
    // Other copies are made by the end of the update, so that no step begins with one that is out of date.
    let written: BTreeSet<BufferId> =
        into.iter().flat_map(|i| i.uses().1).map(|id| program.buffer(id).storage).collect();
    into.extend(
        derived.into_values().filter(|d| !written.contains(&d.copy)).map(|d| in_runs(d.cast, When::Always)),
    );
    program.blocks[at].instructions = into;
    program.carried = carried.iter().map(|(_, gather)| gather.ticket).collect();
    insert(program, ahead);
    for begin in program.blocks.iter_mut().filter(|b| b.phase == Phase::Begin) {
        begin
            .instructions
            .retain(|i| !matches!(i, Instruction::Compute { outputs, .. } if packed.contains(&outputs[0])));
    }
}

/// What block `Derive` makes of each state, and block `Begin` of that, by the state's storage.
fn derived(program: &Program) -> BTreeMap<BufferId, Derived> {
    let root = |id: BufferId| program.buffer(id).storage;
    let instructions = |phase: Phase| program.block(None, phase).into_iter().flat_map(|b| &b.instructions);
    let mut all: BTreeMap<BufferId, Derived> = BTreeMap::new();
    for cast in instructions(Phase::Derive) {
        let (reads, writes) = cast.uses();
        all.insert(root(reads[0]), Derived { copy: root(writes[0]), cast: once(cast), packed: vec![] });
    }
    for pack in instructions(Phase::Begin).filter(|i| is_pack(i)) {
        let (reads, writes) = pack.uses();
        if let Some(derived) = all.values_mut().find(|d| d.copy == root(reads[0])) {
            derived.packed.push((root(writes[0]), once(pack)));
        }
    }
    all
}

fn is_pack(instruction: &Instruction) -> bool {
    matches!(instruction, Instruction::Compute { op: Op::Pack { .. }, .. })
}

/// The computation, executed when its block runs first.
fn once(computation: &Instruction) -> Instruction {
    in_runs(computation.clone(), When::FirstRun)
}

fn in_runs(mut computation: Instruction, runs: When) -> Instruction {
    if let Instruction::Compute { when, .. } = &mut computation {
        *when = runs;
    }
    computation
}

/// Updates of the block whose result is gathered and then copied to where it is stored, and touched nowhere else there:
/// consecutive instructions, of which the last are a start, its wait and the copy.
fn gathers(program: &Program, at: usize) -> Vec<Gather> {
    let instructions = &program.blocks[at].instructions;
    let root = |id: &BufferId| program.buffer(*id).storage;
    let touched = |i: &Instruction| -> Vec<BufferId> {
        let (reads, writes) = i.uses();
        reads.iter().chain(&writes).map(root).collect()
    };
    let found = instructions.windows(3).enumerate().filter_map(|(index, three)| {
        let [
            Instruction::Start {
                collective: Collective::AllGather,
                inputs,
                outputs,
                count,
                group,
                ticket,
                ..
            },
            Instruction::Wait { ticket: waited, .. },
            Instruction::Copy { from, into },
        ] = three
        else {
            return None;
        };
        let (part, state) = (root(&inputs[0]), program.buffer(root(into)));
        let key = &program.groups[*group];
        let within_stage = key.pipeline_ranks.is_none() && !key.axes.contains(mesh::Axis::Pp);
        // Beside the update and its gather, only what cuts the part from the parameter touches either; run-time numbers
        // come where the first update needs them.
        let belongs = |i: &Instruction| touched(i).contains(&part) || matches!(i, Instruction::Scalar { .. });
        let begin = instructions[..index].iter().rposition(|i| !belongs(i)).map_or(0, |at| at + 1);
        let inside = begin..index + 3;
        let elsewhere = instructions.iter().enumerate().filter(|(i, _)| !inside.contains(i));
        let alone = elsewhere.flat_map(|(_, i)| touched(i)).all(|id| id != part && id != state.storage);
        (ticket == waited
            && root(from) == root(&outputs[0])
            && state.class == Class::State
            && program.buffer(part).class == Class::Temp
            && state.capacity.is_multiple_of(*count)
            && within_stage
            && alone)
            .then_some(Gather { begin, end: index + 3, into: *into, state: state.storage, ticket: *ticket })
    });
    found.collect()
}

/// Where a step first touches each state, and what is derived from states, between making it and the update.
fn first_uses(program: &Program) -> BTreeMap<BufferId, Use> {
    let mut uses: BTreeMap<BufferId, Use> = BTreeMap::new();
    let mut order = 0;
    for run in program.runs() {
        let phase = program.blocks[run.block].phase;
        match phase {
            Phase::Derive => continue,
            Phase::Update | Phase::Apply => break,
            _ => {}
        }
        for (index, instruction) in run.instructions(&program.blocks[run.block]) {
            let (reads, writes) = instruction.uses();
            for id in reads.iter().chain(&writes).filter(|_| phase != Phase::Begin || !is_pack(instruction)) {
                let root = program.buffer(program.buffer(*id).storage);
                if matches!(root.class, Class::State | Class::Derived) || root.packed {
                    uses.entry(root.storage).or_insert(Use { order, block: run.block, index });
                }
            }
            order += 1;
        }
    }
    uses
}

/// Puts instructions in front of others, in the order in which they come for each.
fn insert(program: &mut Program, ahead: Ahead) {
    for (block, mut ahead) in ahead {
        ahead.sort_by_key(|(index, _)| *index);
        let mut ahead = ahead.into_iter().peekable();
        let old = std::mem::take(&mut program.blocks[block].instructions);
        let into = &mut program.blocks[block].instructions;
        for (index, instruction) in old.into_iter().enumerate() {
            while let Some((_, first)) = ahead.next_if(|(before, _)| *before == index) {
                into.push(first);
            }
            into.push(instruction);
        }
    }
}
