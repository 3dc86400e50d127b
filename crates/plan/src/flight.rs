//! The part of the checker that follows a step over all its runs: what is in flight from one block to another is touched
//! by nobody, every start is waited for once, and the buffers of a bucket lie one behind the other.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::PlanError;
use crate::instruction::{Collective, Instruction};
use crate::program::{BufferId, Phase, Program};

/// Checks every run of a step in order.
///
/// # Errors
/// The first instruction that touches what is in flight, waits for what was not started or starts what is under way; a
/// ticket that nobody waits for; a bucket with gaps.
pub(crate) fn check_flight(program: &Program) -> Result<(), PlanError> {
    let fail = |block: usize, index: usize, problem: String| PlanError::Program {
        pipeline_rank: program.pipeline_rank,
        block: program.blocks[block].phase.name().to_owned(),
        index,
        problem,
    };
    let storages = |ids: &[BufferId]| -> Vec<usize> {
        ids.iter().map(|id| program.buffer(*id).storage.index()).collect()
    };
    let mut touched_by: Vec<BTreeSet<usize>> = Vec::new();
    let mut has_tickets: Vec<bool> = Vec::new();
    for (at, block) in program.blocks.iter().enumerate() {
        let mut touched = BTreeSet::new();
        for (index, instruction) in block.instructions.iter().enumerate() {
            let (reads, writes) = instruction.uses();
            touched.extend(storages(&reads).into_iter().chain(storages(&writes)));
            if let Instruction::Start { .. } = instruction {
                adjoining(program, instruction).map_err(|problem| fail(at, index, problem))?;
            }
        }
        touched_by.push(touched);
        let is_ticket = |i: &Instruction| matches!(i, Instruction::Start { .. } | Instruction::Wait { .. });
        has_tickets.push(block.instructions.iter().any(is_ticket));
    }
    // What each ticket under way holds. The step before left what is carried.
    let mut carried: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for instruction in program.blocks.iter().flat_map(|b| &b.instructions) {
        if let Instruction::Start { inputs, outputs, ticket, .. } = instruction
            && program.carried.contains(ticket)
        {
            carried.insert(*ticket, [storages(inputs), storages(outputs)].concat());
        }
    }
    let mut in_flight: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for run in program.runs() {
        // A step that derives anew has waited for it.
        if program.blocks[run.block].phase != Phase::Derive {
            in_flight.append(&mut carried);
        }
        let held = in_flight.values().flatten().any(|root| touched_by[run.block].contains(root));
        if !held && !has_tickets[run.block] {
            continue;
        }
        for (index, instruction) in run.instructions(&program.blocks[run.block]) {
            let (reads, writes) = instruction.uses();
            let roots: Vec<usize> = [storages(&reads), storages(&writes)].concat();
            if let Some(root) = in_flight.values().flatten().find(|root| roots.contains(root)) {
                return Err(fail(
                    run.block,
                    index,
                    format!("`{}` is in flight", program.buffers[*root].name),
                ));
            }
            match instruction {
                Instruction::Start { ticket, .. } if in_flight.insert(*ticket, roots).is_some() => {
                    return Err(fail(run.block, index, format!("ticket {ticket} is under way already")));
                }
                Instruction::Wait { ticket, .. } if in_flight.remove(ticket).is_none() => {
                    return Err(fail(run.block, index, format!("ticket {ticket} was not started")));
                }
                _ => {}
            }
        }
    }
    match in_flight.keys().find(|ticket| !program.carried.contains(ticket)) {
        None => Ok(()),
        Some(ticket) => {
            let last = program.blocks.len() - 1;
            let end = program.blocks[last].instructions.len();
            Err(fail(last, end, format!("ticket {ticket} is never waited for")))
        }
    }
}

/// Copies derived from states that are older than these when a step begins, if the step relies on its own update.
pub(crate) fn out_of_date(program: &Program) -> Vec<BufferId> {
    if !program.keeps_derived() {
        return vec![];
    }
    let root = |id: &BufferId| program.buffer(*id).storage;
    let updates = program.blocks.iter().filter(|b| matches!(b.phase, Phase::Update | Phase::Apply));
    let writes: Vec<Vec<BufferId>> =
        updates.flat_map(|b| &b.instructions).map(|i| i.uses().1.iter().map(root).collect()).collect();
    let last = |of: BufferId| writes.iter().rposition(|written| written.contains(&of));
    let casts = program.block(None, Phase::Derive).into_iter().flat_map(|b| &b.instructions);
    let pairs = casts.map(|cast| {
        let (reads, writes) = cast.uses();
        (root(&reads[0]), root(&writes[0]))
    });
    pairs.filter(|(state, copy)| last(*copy) < last(*state)).map(|(_, copy)| copy).collect()
}

/// Of several buffers, each begins where the one before ends, and the count is what they span.
fn adjoining(program: &Program, start: &Instruction) -> Result<(), String> {
    let Instruction::Start { collective, inputs, outputs, count, .. } = start else {
        unreachable!("called for starts")
    };
    if inputs.len() == 1 && outputs.len() == 1 {
        return Ok(());
    }
    if !matches!(collective, Collective::AllReduce(_)) || inputs != outputs || inputs.is_empty() {
        return Err("only an all_reduce has several buffers, in place".to_owned());
    }
    for pair in inputs.windows(2) {
        let [before, after] = [pair[0], pair[1]].map(|id| program.buffer(id));
        if (before.class, before.dtype) != (after.class, after.dtype)
            || program.buffer(before.storage).bytes() + before.offset != after.offset
        {
            return Err(format!("`{}` does not lie behind `{}`", after.name, before.name));
        }
    }
    let (first, last) = (program.buffer(inputs[0]), program.buffer(inputs[inputs.len() - 1]));
    let spanned = (last.offset - first.offset) / first.dtype.size_bytes() + last.len;
    if *count != spanned {
        return Err(format!("a bucket of {spanned} elements is counted as {count}"));
    }
    Ok(())
}
