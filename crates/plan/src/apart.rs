//! The part of the checker that looks at addresses: whatever lives at the same time lies apart, and what is in flight
//! lives until it has been waited for. It knows nothing of how places were found.

use std::collections::{BTreeMap, HashMap};

use memory::Span;

use crate::error::PlanError;
use crate::instruction::Instruction;
use crate::program::{BufferId, Class, Phase, Program};
use crate::runs::Run;

/// The value of a storage: with the microbatch that keeps it, or the run in which it passes.
type Value = (BufferId, usize);

/// From when to when a value lives, in instructions of a step.
struct Life {
    first: usize,
    last: usize,
    span: Span,
    /// Block and position of the first instruction that touches it.
    made: (usize, usize),
}

/// Checks the places of all values of a step, over all its runs.
///
/// # Errors
/// The first value that begins to live where another does.
pub(crate) fn check_apart(program: &Program) -> Result<(), PlanError> {
    let fail = |(block, index): (usize, usize), problem: String| PlanError::Program {
        pipeline_rank: program.pipeline_rank,
        block: program.blocks[block].phase.name().to_owned(),
        index,
        problem,
    };
    let lives = lives(program).map_err(|(at, problem)| fail(at, problem))?;
    // A place is free again after the last instruction that touches it.
    let mut events: Vec<(usize, bool, Value)> = Vec::with_capacity(2 * lives.len());
    for (value, life) in &lives {
        events.extend([(life.first, true, *value), (life.last + 1, false, *value)]);
    }
    events.sort_unstable();
    // What lives, by where it begins.
    let mut taken: BTreeMap<usize, (usize, BufferId)> = BTreeMap::new();
    for (_, begins, value) in events {
        let life = &lives[&value];
        let Span { offset, len } = life.span;
        if !begins {
            taken.remove(&offset);
            continue;
        }
        if let Some((_, (end, other))) = taken.range(..offset + len).next_back()
            && *end > offset
        {
            let [name, other] = [value.0, *other].map(|id| &program.buffer(id).name);
            return Err(fail(life.made, format!("`{name}` lies where `{other}` lives")));
        }
        taken.insert(offset, (offset + len, value.0));
    }
    Ok(())
}

/// All values that take room. What outlives the step, or lasts through it, lives from its beginning to its end.
fn lives(program: &Program) -> Result<HashMap<Value, Life>, ((usize, usize), String)> {
    let mut lives: HashMap<Value, Life> = HashMap::new();
    let mut under_way: HashMap<usize, Vec<Value>> = HashMap::new();
    let mut now = 1;
    for (number, run) in program.runs().into_iter().enumerate() {
        let block = &program.blocks[run.block];
        for (index, instruction) in run.instructions(block) {
            let (reads, writes) = instruction.uses();
            let mut touched: Vec<Value> = Vec::with_capacity(reads.len() + writes.len());
            for id in reads.into_iter().chain(writes) {
                let root = program.buffer(id).storage;
                let (value, span) = value(program, root, number, run);
                if span.len == 0 {
                    continue;
                }
                if matches!(program.buffer(root).class, Class::Passing(_))
                    && matches!(block.phase, Phase::Validate | Phase::Amend)
                {
                    let name = &program.buffer(root).name;
                    let problem = format!("`{name}` lies among what the next step has begun to keep");
                    return Err(((run.block, index), problem));
                }
                let made = (run.block, index);
                lives.entry(value).or_insert(Life { first: now, last: now, span, made }).last = now;
                touched.push(value);
            }
            match instruction {
                Instruction::Start { ticket, .. } => {
                    under_way.insert(*ticket, touched);
                }
                Instruction::Wait { ticket, .. } => {
                    for value in under_way.remove(ticket).into_iter().flatten() {
                        lives.entry(value).and_modify(|life| life.last = now);
                    }
                }
                _ => {}
            }
            now += 1;
        }
    }
    // What nobody waits for in this step is in flight when it begins, too.
    let carried: Vec<Value> = under_way.into_values().flatten().collect();
    for (value, life) in &mut lives {
        let lasts = matches!(program.buffer(value.0).class, Class::State | Class::Derived | Class::Step);
        if lasts || carried.contains(value) {
            (life.first, life.last) = (0, now);
        }
    }
    Ok(lives)
}

/// Whose value a storage holds in a run, and where.
fn value(program: &Program, root: BufferId, number: usize, run: Run) -> (Value, Span) {
    let whose = match program.buffer(root).class {
        Class::State | Class::Derived | Class::Step => 0,
        Class::Slot(_) => run.microbatch,
        Class::Passing(_) | Class::Temp => number,
    };
    ((root, whose), program.span(root, run.microbatch))
}
