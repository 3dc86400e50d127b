//! Strips, a rewrite of a lowered Program: products with the vocabulary, cross-entropy and what follows from its
//! gradient are made for some rows after others, so that the logits of a whole microbatch are never there.
//!
//! A stage's head moves from its forward into its backward, where one [`Instruction::Strips`] makes the logits of some
//! rows, their loss, their gradient, and what that gives to the hidden state and to the weight, before the next rows
//! (Hsu et al., "Liger Kernel", 2024). An evaluation does the same without gradients. Where ranks share the vocabulary
//! they exchange maxima and sums in between: their logits, a part of each row, are held as a whole.

use std::collections::BTreeSet;
use std::ops::Range;

use graph::Op;

use crate::instruction::Instruction;
use crate::program::{Block, Buffer, BufferId, Class, Phase, Program};

/// Strips have a multiple of so many rows, so that those of every buffer begin where regions of the arena may.
pub const STRIP_ALIGN: usize = 32;

/// Rewrites every stage that has logits of more than `rows` rows; with 0 the Program stays as it is.
pub(crate) fn strip(program: &mut Program, rows: usize, local_shape: impl Fn(&Buffer) -> Vec<usize>) {
    for forward in 0..program.blocks.len() {
        let Block { stage, phase: Phase::Forward, .. } = program.blocks[forward] else { continue };
        let of_phase = |phase| program.blocks.iter().position(|b| b.stage == stage && b.phase == phase);
        if of_phase(Phase::BackwardWeight).is_some() {
            continue; // the gradient of the logits waits for W
        }
        let backward = of_phase(Phase::Backward);
        let Some(head) = Head::find(program, forward) else { continue };
        let shape = local_shape(program.buffer(head.logits));
        let Some((width, leading)) = shape.split_last() else { continue };
        let all: usize = leading.iter().product();
        if rows == 0 || all <= rows {
            continue;
        }
        let rows = all.div_ceil(all.div_ceil(rows)).next_multiple_of(STRIP_ALIGN);
        let done = match backward {
            Some(backward) => head.with_gradients(program, forward, backward, rows),
            None => head.alone(program, forward, rows),
        };
        if done {
            let root = program.buffer(head.logits).storage;
            for buffer in program.buffers.iter_mut().filter(|b| b.storage == root) {
                (buffer.len, buffer.capacity) = (rows * width, rows * width);
            }
        }
    }
}

/// Where a forward makes logits and what their loss is made of.
struct Head {
    logits: BufferId,
    /// Product, maximum, sum of exponentials.
    makers: [usize; 3],
}

/// What a backward does with the logits.
struct Gradients {
    /// Gradient of the loss, gradient of the logits, then products with it; ascending.
    body: Vec<usize>,
    products: usize,
}

impl Head {
    fn find(program: &Program, forward: usize) -> Option<Head> {
        let block = &program.blocks[forward];
        let max = block.instructions.iter().position(|i| computes(i, |op| *op == Op::RowMax))?;
        let (logits, of_max) = (operands(&block.instructions[max])[0], results(&block.instructions[max])[0]);
        let product = block.instructions[..max].iter().position(|i| {
            computes(i, |op| matches!(op, Op::Contract | Op::Linear)) && results(i) == [logits]
        })?;
        let sum = block.instructions.iter().position(|i| {
            computes(i, |op| *op == Op::SumExp) && operands(i).starts_with(&[logits, of_max])
        })?;
        let head = Head { logits, makers: [product, max, sum] };
        // Nothing of it is exchanged or changed in between.
        let undisturbed = head.makers.iter().all(|at| may_move(program, forward, *at, sum, &head.makers));
        let rows_first = head.makers.iter().all(|at| head.rows_lead(program, &block.instructions[*at]));
        let is_output =
            program.outputs.iter().any(|(_, id)| roots(program, &[logits]).contains(&root(program, *id)));
        (max < sum && rows_first && undisturbed && !is_output).then_some(head)
    }

    /// Whether an instruction's buffers have all rows in front, or none.
    fn rows_lead(&self, program: &Program, instruction: &Instruction) -> bool {
        let dims = &program.buffer(self.logits).dims;
        let rows = &dims[..dims.len() - 1];
        let (reads, writes) = instruction.uses();
        reads
            .iter()
            .chain(&writes)
            .map(|id| &program.buffer(*id).dims)
            .all(|dims| dims.starts_with(rows) || !dims.iter().any(|dim| rows.contains(dim)))
    }

    /// How many instructions of the Program touch the logits.
    fn num_touches(&self, program: &Program) -> usize {
        let logits = root(program, self.logits);
        let all = program.blocks.iter().flat_map(|b| &b.instructions);
        all.filter(|i| touched(program, i).contains(&logits)).count()
    }

    /// Without gradients: the three become one.
    fn alone(&self, program: &mut Program, forward: usize, rows: usize) -> bool {
        if self.num_touches(program) != self.makers.len() {
            return false;
        }
        let body = take(program, forward, &self.makers);
        let at = self.makers[2] + 1 - self.makers.len();
        let strips = Instruction::Strips { body, held: self.logits, rows };
        program.blocks[forward].instructions.insert(at, strips);
        true
    }

    /// With gradients: what the forward has of it follows them into the backward.
    fn with_gradients(&self, program: &mut Program, forward: usize, backward: usize, rows: usize) -> bool {
        let Some(gradients) = self.gradients(program, forward, backward) else { return false };
        let Some(place) = gradients.place(program, backward) else { return false };
        let mut made: BTreeSet<BufferId> = BTreeSet::new();
        for at in self.makers {
            made.extend(roots(program, results(&program.blocks[forward].instructions[at])));
        }
        let behind = self.makers[0]..program.blocks[forward].instructions.len();
        let Some(follow) = followers(program, forward, behind, &self.makers, &mut made) else { return false };
        let Some(later) = followers(program, backward, 0..place, &gradients.body, &mut made) else {
            return false;
        };

        let mut from_forward = self.makers.to_vec();
        from_forward.extend(&follow);
        let mut moved = take(program, forward, &from_forward);
        let followers = moved.split_off(self.makers.len());
        let before = place - count_before(&gradients.body, place) - later.len();
        let mut from_backward = gradients.body.clone();
        from_backward.extend(&later);
        let mut taken = take(program, backward, &from_backward);
        let later = taken.split_off(gradients.body.len());
        moved.extend(taken);

        let strips = Instruction::Strips { body: moved, held: self.logits, rows };
        let mut all: Vec<Instruction> = std::iter::once(strips).chain(followers).chain(later).collect();
        let loads = at_home(program, forward, backward, before, &mut all);
        let instructions = &mut program.blocks[backward].instructions;
        instructions.splice(before..before, loads.into_iter().chain(all));
        sweep(program, forward);
        true
    }

    /// What the backward does with the logits, if nothing else does anything with them.
    fn gradients(&self, program: &Program, forward: usize, backward: usize) -> Option<Gradients> {
        let sum_exp = results(&program.blocks[forward].instructions[self.makers[2]])[0];
        let instructions = &program.blocks[backward].instructions;
        let logits = root(program, self.logits);
        let in_place = Op::SumExpBackward { in_place: true };
        let gradient = instructions
            .iter()
            .position(|i| computes(i, |op| *op == in_place) && root(program, results(i)[0]) == logits)?;
        let of_loss = instructions[..gradient].iter().position(|i| {
            computes(i, |op| *op == Op::TokenLossBackward)
                && operands(i)[0] == sum_exp
                && operands(&instructions[gradient]).ends_with(results(i))
        })?;
        let is_product = |i: &Instruction| {
            computes(i, |op| *op == Op::Contract) && root(program, operands(i)[0]) == logits
        };
        let products: Vec<usize> =
            (gradient..instructions.len()).filter(|at| is_product(&instructions[*at])).collect();
        let mut body = vec![of_loss, gradient];
        body.extend(&products);
        let sums_are_wide = products.iter().all(|at| {
            let result = program.buffer(results(&instructions[*at])[0]);
            result.dims.starts_with(&program.buffer(self.logits).dims[..1]) || result.dtype == program.float
        });
        let unseen = self.num_touches(program) == self.makers.len() + 1 + products.len();
        let rows_first = body.iter().all(|at| self.rows_lead(program, &instructions[*at]));
        (!products.is_empty() && sums_are_wide && unseen && rows_first)
            .then_some(Gradients { body, products: products.len() })
    }
}

impl Gradients {
    /// Where all of them may stand: at one of the products, if what lies between that and the others neither touches
    /// what they make nor changes what they read.
    fn place(&self, program: &Program, backward: usize) -> Option<usize> {
        let (_, products) = self.body.split_at(self.body.len() - self.products);
        products
            .iter()
            .rev()
            .copied()
            .find(|place| self.body.iter().all(|at| may_move(program, backward, *at, *place, &self.body)))
    }
}

/// The instructions of a part of a block, `except` left out, that touch what was `made`, or what such ones make in turn;
/// `None` if one of them cannot be moved.
fn followers(
    program: &Program,
    block: usize,
    part: Range<usize>,
    except: &[usize],
    made: &mut BTreeSet<BufferId>,
) -> Option<Vec<usize>> {
    let touched = program.touched(block);
    let mut found = Vec::new();
    for at in part.filter(|at| !except.contains(at)) {
        if !touched[at].iter().any(|root| made.contains(root)) {
            continue;
        }
        let instruction = &program.blocks[block].instructions[at];
        match instruction {
            Instruction::Compute { .. } | Instruction::Accumulate { .. } | Instruction::Copy { .. } => {
                made.extend(roots(program, &instruction.uses().1));
                found.push(at);
            }
            _ => return None,
        }
    }
    Some(found)
}

/// Lets instructions that came from the forward read what the backward has: inputs that it loads itself, and weights
/// that it gathers itself, `before` the place where they go. Returns the loads that it lacks.
fn at_home(
    program: &Program,
    forward: usize,
    backward: usize,
    before: usize,
    moved: &mut [Instruction],
) -> Vec<Instruction> {
    let there = &program.blocks[forward].instructions;
    let here = &program.blocks[backward].instructions[..before];
    let alike = |a: BufferId, b: BufferId| {
        let [a, b] = [program.buffer(a), program.buffer(b)];
        (&a.name, &a.dims, a.layout, a.dtype, a.class) == (&b.name, &b.dims, b.layout, b.dtype, Class::Temp)
    };
    let made_here: BTreeSet<BufferId> = here.iter().flat_map(|i| i.uses().1).collect();
    let mut loads: Vec<Instruction> = Vec::new();
    for part in moved.iter_mut().flat_map(|i| match i {
        Instruction::Strips { body, .. } => body.iter_mut().collect::<Vec<_>>(),
        other => vec![other],
    }) {
        let Instruction::Compute { inputs, .. } = part else { continue };
        for id in inputs {
            let wanted = |i: &Instruction| matches!(i, Instruction::Load { output, .. } if output == id);
            if let Some(load) = there.iter().find(|i| wanted(i)) {
                let Instruction::Load { input, .. } = load else { unreachable!("found as a load") };
                let own = here.iter().find_map(|i| match i {
                    Instruction::Load { input: name, output } if name == input && alike(*output, *id) => {
                        Some(*output)
                    }
                    _ => None,
                });
                match own {
                    Some(own) => *id = own,
                    None if loads.contains(load) => {}
                    None => loads.push(load.clone()),
                }
            } else if let Some(own) = made_here.iter().find(|own| **own != *id && alike(**own, *id)) {
                *id = *own;
            }
        }
    }
    loads
}

/// Removes from a block what makes temporaries that nobody reads any more: loads, and gathers with what follows them.
fn sweep(program: &mut Program, block: usize) {
    loop {
        let read: BTreeSet<BufferId> = program
            .blocks
            .iter()
            .flat_map(|b| &b.instructions)
            .filter(|i| !matches!(i, Instruction::Start { inputs, outputs, .. } if inputs == outputs))
            .flat_map(|i| roots(program, &i.uses().0))
            .collect();
        let is_dead = |i: &Instruction| match i {
            Instruction::Load { output, .. } | Instruction::Unpack { output, .. } => {
                is_temporary(program, *output) && !read.contains(&root(program, *output))
            }
            Instruction::Start { outputs, .. } => {
                outputs.iter().all(|id| is_temporary(program, *id) && !read.contains(&root(program, *id)))
            }
            _ => false,
        };
        let Some(at) = program.blocks[block].instructions.iter().position(is_dead) else { return };
        let removed = program.blocks[block].instructions.remove(at);
        if let Instruction::Start { ticket: gone, .. } = removed {
            program.blocks[block]
                .instructions
                .retain(|i| !matches!(i, Instruction::Wait { ticket, .. } if *ticket == gone));
        }
    }
}

fn is_temporary(program: &Program, id: BufferId) -> bool {
    let root = root(program, id);
    program.buffer(root).class == Class::Temp
        && !program.outputs.iter().any(|(_, output)| program.buffer(*output).storage == root)
}

/// Whether an instruction may as well stand at another place: what lies between, `group` left out, neither touches what
/// it makes nor changes what it reads.
fn may_move(program: &Program, block: usize, from: usize, to: usize, group: &[usize]) -> bool {
    let instructions = &program.blocks[block].instructions;
    let touched = program.touched(block);
    let (reads, writes) = instructions[from].uses();
    let (reads, writes) = (roots(program, &reads), roots(program, &writes));
    (from.min(to)..=from.max(to)).filter(|at| !group.contains(at)).all(|at| {
        let changed = match &instructions[at] {
            Instruction::Wait { .. } => touched[at].iter().copied().collect(),
            other => roots(program, &other.uses().1),
        };
        changed.is_disjoint(&reads) && !touched[at].iter().any(|root| writes.contains(root))
    })
}

/// Takes instructions out of a block, in the given order.
fn take(program: &mut Program, block: usize, which: &[usize]) -> Vec<Instruction> {
    let instructions = &mut program.blocks[block].instructions;
    let taken = which.iter().map(|at| instructions[*at].clone()).collect();
    let mut index = 0..;
    instructions.retain(|_| !which.contains(&index.next().expect("one for each")));
    taken
}

fn count_before(which: &[usize], place: usize) -> usize {
    which.iter().filter(|at| **at < place).count()
}

fn computes(instruction: &Instruction, is: impl Fn(&Op) -> bool) -> bool {
    matches!(instruction, Instruction::Compute { op, .. } if is(op))
}

fn operands(instruction: &Instruction) -> &[BufferId] {
    match instruction {
        Instruction::Compute { inputs, .. } => inputs,
        _ => &[],
    }
}

fn results(instruction: &Instruction) -> &[BufferId] {
    match instruction {
        Instruction::Compute { outputs, .. } => outputs,
        _ => &[],
    }
}

fn root(program: &Program, id: BufferId) -> BufferId {
    program.buffer(id).storage
}

fn roots(program: &Program, ids: &[BufferId]) -> BTreeSet<BufferId> {
    ids.iter().map(|id| root(program, *id)).collect()
}

fn touched(program: &Program, instruction: &Instruction) -> BTreeSet<BufferId> {
    let (reads, writes) = instruction.uses();
    roots(program, &[reads, writes].concat())
}
