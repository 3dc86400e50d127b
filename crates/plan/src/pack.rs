//! Packing, a rewrite of a lowered Program: with several microbatches or strips, a narrow matrix that products read as it is
//! stored is brought once per step into the order that their kernel wants, instead of once per product.

use graph::{Dim, Op};

use crate::instruction::{Instruction, When};
use crate::program::{Block, Buffer, BufferId, Class, Phase, Program};

/// Lanes and depth of the squares that kernels pack: extents are rounded up to them.
const SQUARE: usize = 32;

/// Packs every right factor that is a narrow copy of a parameter, in block `Begin`, once for each way of reading it.
pub(crate) fn pack(program: &mut Program, local_shape: impl Fn(&Buffer) -> Vec<usize>) {
    let mut packed: Vec<(BufferId, Vec<Dim>, BufferId)> = Vec::new();
    for block in 0..program.blocks.len() {
        for index in 0..program.blocks[block].instructions.len() {
            for part in 0..program.blocks[block].instructions[index].computations().len() {
                let Instruction::Compute { op: Op::Contract | Op::Linear, inputs, outputs, .. } =
                    &program.blocks[block].instructions[index].computations()[part]
                else {
                    continue;
                };
                let (factor, result) = (program.buffer(inputs[1]), program.buffer(outputs[0]));
                if factor.class != Class::Derived {
                    continue;
                }
                let summed: Vec<Dim> =
                    factor.dims.iter().copied().filter(|d| !result.dims.contains(d)).collect();
                let root = factor.storage;
                let known = packed.iter().find(|(of, over, _)| *of == root && *over == summed).map(|p| p.2);
                let id = known.unwrap_or_else(|| {
                    let id = new_packed(program, root, &summed, &local_shape);
                    packed.push((root, summed, id));
                    id
                });
                let block = &mut program.blocks[block];
                if let Instruction::Compute { inputs, .. } =
                    &mut block.instructions[index].computations_mut()[part]
                {
                    inputs[1] = id;
                }
            }
        }
    }
    if packed.is_empty() {
        return;
    }
    let instructions = packed.into_iter().map(|(of, summed, into)| Instruction::Compute {
        name: format!("{}.packed", program.buffer(of).name),
        op: Op::Pack { summed },
        inputs: vec![of],
        outputs: vec![into],
        accumulate: false,
        when: When::Always,
    });
    let instructions: Vec<Instruction> = instructions.collect();
    match program.blocks.iter_mut().find(|b| b.phase == Phase::Begin) {
        Some(begin) => begin.instructions.extend(instructions),
        None => program.blocks.push(Block { stage: None, phase: Phase::Begin, instructions }),
    }
}

/// A buffer for the packed form of `of`.
fn new_packed(
    program: &mut Program,
    of: BufferId,
    summed: &[Dim],
    local_shape: &impl Fn(&Buffer) -> Vec<usize>,
) -> BufferId {
    let id = BufferId(program.buffers.len() as u32);
    let factor = program.buffer(of);
    let extents = factor.dims.iter().zip(local_shape(factor));
    let (k, n) = extents.fold((1, 1), |(k, n), (dim, extent)| match summed.contains(dim) {
        true => (k * extent, n),
        false => (k, n * extent),
    });
    let len = k.next_multiple_of(SQUARE) * n.next_multiple_of(SQUARE);
    let buffer =
        Buffer { len, capacity: len, class: Class::Step, storage: id, packed: true, ..factor.clone() };
    program.buffers.push(buffer);
    id
}
