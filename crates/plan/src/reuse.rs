//! Reuse, a rewrite of a lowered Program: an operation that can write its result over an operand does so where nobody
//! reads that operand again. The gradient of the logits takes the place of the logits, the largest activation.

use graph::Op;

use crate::instruction::Instruction;
use crate::program::{BufferId, Class, Phase, Program};

/// Lets every [`Op::SumExpBackward`] whose logits are not read afterwards work in place.
pub(crate) fn reuse(program: &mut Program) {
    for block in 0..program.blocks.len() {
        for index in 0..program.blocks[block].instructions.len() {
            let Instruction::Compute { op: Op::SumExpBackward { in_place: false }, inputs, outputs, .. } =
                &program.blocks[block].instructions[index]
            else {
                continue;
            };
            let (logits, gradient) = (inputs[0], outputs[0]);
            if alike(program, logits, gradient) && is_last_reader(program, logits, block, index) {
                share(program, logits, gradient);
                let instruction = &mut program.blocks[block].instructions[index];
                if let Instruction::Compute { op, inputs, .. } = instruction {
                    *op = Op::SumExpBackward { in_place: true };
                    inputs.remove(0);
                }
            }
        }
    }
}

/// Whether two buffers have the same elements in the same places, of which the first may be overwritten: what is read
/// after the step is of another class.
fn alike(program: &Program, from: BufferId, to: BufferId) -> bool {
    let [from, to] = [from, to].map(|id| program.buffer(id));
    let root = program.buffer(from.storage);
    root.class == Class::Temp
        && [from.dtype, root.dtype] == [to.dtype; 2]
        && (&from.dims, from.layout, from.len, from.capacity) == (&to.dims, to.layout, to.len, to.capacity)
}

/// Whether nothing touches the storage of `id` after instruction `index` of `block`, in the order in which phases of a
/// microbatch follow each other.
fn is_last_reader(program: &Program, id: BufferId, block: usize, index: usize) -> bool {
    let storage = |id: &BufferId| program.buffer(*id).storage;
    let wanted = storage(&id);
    let order = |phase: Phase| match phase {
        Phase::Derive | Phase::Begin | Phase::Clear => 0,
        Phase::Forward => 1,
        Phase::Backward | Phase::BackwardInput => 2,
        Phase::BackwardWeight => 3,
        Phase::Update | Phase::Apply | Phase::Validate | Phase::Amend => 4,
    };
    let here = order(program.blocks[block].phase);
    let touched_later = program.blocks.iter().enumerate().any(|(at, other)| {
        let skip = match (at == block, order(other.phase) < here) {
            (true, _) => index + 1,
            (false, true) => other.instructions.len(),
            (false, false) => 0,
        };
        other.instructions[skip..].iter().any(|i| {
            let (reads, writes) = i.uses();
            reads.iter().chain(&writes).any(|id| storage(id) == wanted)
        })
    });
    !touched_later
}

/// All views of `to` become views of the memory of `from`.
fn share(program: &mut Program, from: BufferId, to: BufferId) {
    let (root, old) = (program.buffer(from).storage, program.buffer(to).storage);
    program.buffers.iter_mut().filter(|b| b.storage == old).for_each(|b| b.storage = root);
}
