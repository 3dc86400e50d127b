//! Fusion, a rewrite of a lowered Program: two operations become one kernel where nothing lies between them. It changes no layout and moves no data, so whatever was legal stays legal; the checker judges the result like
//! any other Program.

use graph::{Dim, Op};

use crate::instruction::{Instruction, When};
use crate::program::{Block, BufferId, Phase, Program};

/// Fuses, in every block:
/// - a contraction and the addition of a bias to it ([`Op::Linear`]): the sums are rounded and written once;
/// - the addition of two values and the norm of their sum ([`Op::AddNorm`]): the sum is not read again;
/// - the update of a parameter and the cast of it that the next step begins with.
///
/// The fused operation stands where the second stood, so the first one's operands must still hold then what they
/// held, and nobody may have read the first one's result meanwhile.
pub(crate) fn fuse(program: &mut Program) {
    copies(program);
    let touches = touches(program);
    for at in 0..program.blocks.len() {
        let mut gone = vec![false; program.blocks[at].instructions.len()];
        for second in 0..gone.len() {
            let found = linear(program, &program.blocks[at], &touches, second)
                .or_else(|| add_norm(program, &program.blocks[at], second));
            if let Some((first, fused)) = found {
                program.blocks[at].instructions[second] = fused;
                gone[first] = true;
            }
        }
        let mut keep = gone.into_iter().map(|gone| !gone);
        program.blocks[at].instructions.retain(|_| keep.next().expect("one for each"));
    }
}

/// Lets updates write the narrow copies of the parameters that they change where these are stored.
fn copies(program: &mut Program) {
    let casts = program.block(None, Phase::Derive).map_or(&[][..], |b| &b.instructions);
    let casts: Vec<(BufferId, BufferId)> = casts
        .iter()
        .filter_map(|i| match i {
            Instruction::Compute { op: Op::Cast, inputs, outputs, .. } => {
                Some((program.buffer(inputs[0]).storage, outputs[0]))
            }
            _ => None,
        })
        .collect();
    let storages: Vec<BufferId> = program.buffers.iter().map(|b| b.storage).collect();
    for block in program.blocks.iter_mut().filter(|b| matches!(b.phase, Phase::Update | Phase::Apply)) {
        for instruction in &mut block.instructions {
            if let Instruction::Compute { op: Op::Adam { .. } | Op::Sgd { .. }, outputs, .. } = instruction
                && let Some((_, copy)) = casts.iter().find(|(of, _)| *of == storages[outputs[0].index()])
            {
                outputs.push(*copy);
            }
        }
    }
}

/// How many instructions touch each storage, over all blocks; results that are read after a step count as one more.
fn touches(program: &Program) -> Vec<usize> {
    let mut touches = vec![0; program.buffers.len()];
    for instruction in program.blocks.iter().flat_map(|b| &b.instructions) {
        for storage in storages(program, instruction) {
            touches[storage] += 1;
        }
    }
    for (_, id) in &program.outputs {
        touches[program.buffer(*id).storage.index()] += 1;
    }
    touches
}

/// The storages that an instruction reads or writes, each once.
fn storages(program: &Program, instruction: &Instruction) -> Vec<usize> {
    let (reads, writes) = instruction.uses();
    let mut all: Vec<usize> =
        reads.iter().chain(&writes).map(|id| program.buffer(*id).storage.index()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The plain computation at `index`, if it is one: operation, operands, results, name.
fn computation(block: &Block, index: usize) -> Option<(&Op, &[BufferId], &[BufferId], &str)> {
    match &block.instructions[index] {
        Instruction::Compute { op, inputs, outputs, accumulate: false, name, when: When::Always } => {
            Some((op, inputs, outputs, name))
        }
        _ => None,
    }
}

/// The computation before `second` that makes `result`.
fn maker(block: &Block, second: usize, result: BufferId) -> Option<usize> {
    (0..second).rev().find(|i| computation(block, *i).is_some_and(|(_, _, made, _)| made == [result]))
}

/// Whether what stands at `first` may as well stand at `second`: nothing between writes its operands or touches its
/// result.
fn may_wait(program: &Program, block: &Block, first: usize, second: usize) -> bool {
    let storage = |id: &BufferId| program.buffer(*id).storage.index();
    let (reads, writes) = block.instructions[first].uses();
    block.instructions[first + 1..second].iter().all(|between| {
        let written = between.uses().1;
        let touched = storages(program, between);
        !written.iter().any(|w| reads.iter().any(|r| storage(r) == storage(w)))
            && !writes.iter().any(|w| touched.contains(&storage(w)))
    })
}

fn linear(
    program: &Program,
    block: &Block,
    touches: &[usize],
    second: usize,
) -> Option<(usize, Instruction)> {
    let (Op::Add, &[product, bias], outputs, _) = computation(block, second)? else { return None };
    let first = maker(block, second, product)?;
    let (Op::Contract, &[a, b], _, name) = computation(block, first)? else { return None };
    let [of_b, of_product, of_bias, of_sum] = [b, product, bias, outputs[0]].map(|id| program.buffer(id));
    let columns: Vec<Dim> = of_b.dims.iter().copied().filter(|d| of_product.dims.contains(d)).collect();
    // Layouts agree already: an addition has its operands where its result is, and with a whole bias it owes nothing.
    let one_row =
        of_bias.dims == columns && of_bias.dtype == program.float && of_product.dtype == of_sum.dtype;
    // Its maker and the addition.
    let unseen = touches[of_product.storage.index()] == 2;
    (one_row && unseen && may_wait(program, block, first, second)).then(|| {
        let fused = Instruction::Compute {
            op: Op::Linear,
            inputs: vec![a, b, bias],
            outputs: outputs.to_vec(),
            accumulate: false,
            name: name.to_owned(),
            when: When::Always,
        };
        (first, fused)
    })
}

fn add_norm(program: &Program, block: &Block, second: usize) -> Option<(usize, Instruction)> {
    let (Op::Norm { kind, eps }, inputs, outputs, name) = computation(block, second)? else { return None };
    let (sum, parameters) = inputs.split_first()?;
    let first = maker(block, second, *sum)?;
    let (Op::Add, &[x, y], _, _) = computation(block, first)? else { return None };
    let [of_x, of_y, of_sum, of_norm] = [x, y, *sum, outputs[0]].map(|id| program.buffer(id));
    let alike = [of_x, of_y, of_norm].iter().all(|b| b.dims == of_sum.dims && b.dtype == of_sum.dtype);
    (alike && may_wait(program, block, first, second)).then(|| {
        let fused = Instruction::Compute {
            op: Op::AddNorm { kind: *kind, eps: *eps },
            inputs: [&[x, y], parameters].concat(),
            outputs: vec![*sum, outputs[0]],
            accumulate: false,
            name: name.to_owned(),
            when: When::Always,
        };
        (first, fused)
    })
}
