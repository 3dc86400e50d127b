//! Gathers that reach into the next step, a rewrite of a lowered Program: under ZeRO 1 and 2 a parameter's update is
//! followed by the gather of its parts. That goes on while the next step begins, and is waited for just before the
//! parameter's first use there. Updates are made in the order of these first uses, so that what is needed first arrives
//! first.
//!
//! What mixed precision derives from the parameter is needed at the step's very beginning: there a gather ends with the
//! update, as before.

use std::collections::{BTreeMap, BTreeSet};

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
    state: BufferId,
    ticket: usize,
}

/// Rewrites the block that changes states.
pub(crate) fn carry(program: &mut Program) {
    let changes = |phase: Phase| program.blocks.iter().position(|b| b.stage.is_none() && b.phase == phase);
    let Some(at) = changes(Phase::Apply).or_else(|| changes(Phase::Update)) else { return };
    let uses = first_uses(program);
    let mut gathers: Vec<(usize, Gather)> = gathers(program, at)
        .into_iter()
        .filter_map(|gather| {
            let (order, ..) = uses.get(&program.buffer(gather.state).storage)?;
            Some((*order, gather))
        })
        .collect();
    if gathers.is_empty() {
        return;
    }
    gathers.sort_by_key(|(order, gather)| (*order, gather.begin));
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
                *outputs = vec![gather.state];
                // What is sent has to last until the next step.
                let root = program.buffer(inputs[0]).storage;
                program.buffers[root.index()].class = Class::Step;
            }
            into.push(instruction);
        }
    }
    program.blocks[at].instructions = into;
    program.carried = carried.iter().map(|(_, gather)| gather.ticket).collect();
    let under_way = carried.into_iter().map(|(_, gather)| gather).collect();
    wait_at_first_use(program, under_way);
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
    let derived_from: BTreeSet<BufferId> = program
        .blocks
        .iter()
        .filter(|b| b.phase == Phase::Derive)
        .flat_map(|b| &b.instructions)
        .flat_map(touched)
        .collect();
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
            && !derived_from.contains(&state.storage)
            && within_stage
            && alone)
            .then_some(Gather { begin, end: index + 3, state: *into, ticket: *ticket })
    });
    found.collect()
}

/// Of every state, where a step first touches it before its update: the order of that in the step, the block, and the
/// position there.
fn first_uses(program: &Program) -> BTreeMap<BufferId, (usize, usize, usize)> {
    let mut uses: BTreeMap<BufferId, (usize, usize, usize)> = BTreeMap::new();
    let mut order = 0;
    for run in program.runs() {
        if matches!(program.blocks[run.block].phase, Phase::Update | Phase::Apply) {
            break;
        }
        for (index, instruction) in run.instructions(&program.blocks[run.block]) {
            let (reads, writes) = instruction.uses();
            for id in reads.iter().chain(&writes) {
                let root = program.buffer(*id).storage;
                if program.buffer(root).class == Class::State {
                    uses.entry(root).or_insert((order, run.block, index));
                }
            }
            order += 1;
        }
    }
    uses
}

/// Puts each wait before the first use of what it waits for, in the order of starts.
fn wait_at_first_use(program: &mut Program, under_way: Vec<Gather>) {
    let uses = first_uses(program);
    let mut waits: BTreeMap<usize, Vec<(usize, Instruction)>> = BTreeMap::new();
    for gather in under_way {
        let (_, block, index) = uses[&program.buffer(gather.state).storage];
        let wait = Instruction::Wait { ticket: gather.ticket, when: When::FirstRun };
        waits.entry(block).or_default().push((index, wait));
    }
    for (block, waits) in waits {
        let mut waits = waits.into_iter().peekable();
        let old = std::mem::take(&mut program.blocks[block].instructions);
        let into = &mut program.blocks[block].instructions;
        for (index, instruction) in old.into_iter().enumerate() {
            while let Some((_, wait)) = waits.next_if(|(before, _)| *before == index) {
                into.push(wait);
            }
            into.push(instruction);
        }
    }
}
