//! Computations for some rows after others ([`Instruction::Strips`]): the part of each buffer that a strip works on, and
//! its kernels.

use graph::Op;
use memory::Span;
use plan::{BufferId, Instruction, Program};

use crate::bind::Binder;
use crate::kernel::{Gemm, Kernel};

/// Some rows of all.
#[derive(Debug)]
pub(crate) struct Strip {
    /// One for each computation.
    pub kernels: Vec<Kernel>,
    /// Of each buffer that has rows, the bytes of these.
    parts: Vec<(BufferId, Span)>,
}

impl Strip {
    /// What the strip works on of a buffer that lies at `span`: all of it, if the buffer has no rows.
    pub fn part(&self, id: BufferId, span: Span) -> Span {
        match self.parts.iter().find(|(of, _)| *of == id) {
            Some((_, part)) => Span { offset: span.offset + part.offset, len: part.len },
            None => span,
        }
    }
}

/// The strips of an [`Instruction::Strips`], in order.
pub(crate) fn bind(
    binder: &Binder<'_>,
    program: &Program,
    body: &[Instruction],
    held: BufferId,
    rows: usize,
) -> Vec<Strip> {
    let buffer = program.buffer(held);
    let shape = binder.plan.local_shape(&buffer.dims, &buffer.layout);
    let (width, leading) = shape.split_last().expect("logits have a vocabulary");
    let all: usize = leading.iter().product();
    let row_dims = &buffer.dims[..leading.len()];
    let mut with_rows: Vec<(BufferId, usize)> = Vec::new();
    for id in body.iter().flat_map(|i| [i.uses().0, i.uses().1].concat()) {
        let other = program.buffer(id);
        if other.dims.starts_with(row_dims) && !with_rows.iter().any(|(known, _)| *known == id) {
            let elements = if other.storage == buffer.storage { *width } else { other.len / all };
            with_rows.push((id, elements * other.dtype.size_bytes()));
        }
    }
    let whole: Vec<Kernel> = body.iter().map(|part| kernel(binder, program, part)).collect();
    let strip = |start: usize| {
        let count = rows.min(all - start);
        let kernels = body.iter().zip(&whole).map(|(part, kernel)| match kernel {
            Kernel::Gemm(gemm) => {
                let maps = has_rows(program, part, row_dims);
                Kernel::Gemm(of_rows(*gemm, maps, count, start == 0))
            }
            // The extents of others are those of what they are given.
            other => other.clone(),
        });
        let part = |(id, bytes): &(BufferId, usize)| {
            let first = if program.buffer(*id).storage == buffer.storage { 0 } else { start };
            (*id, Span { offset: first * bytes, len: count * bytes })
        };
        Strip { kernels: kernels.collect(), parts: with_rows.iter().map(part).collect() }
    };
    (0..all).step_by(rows).map(strip).collect()
}

/// The kernel of one computation for all rows.
fn kernel(binder: &Binder<'_>, program: &Program, computation: &Instruction) -> Kernel {
    let Instruction::Compute { op, inputs, outputs, accumulate, .. } = computation else {
        unreachable!("checked: strips are of computations")
    };
    let buffers = |ids: &[BufferId]| ids.iter().map(|b| program.buffer(*b)).collect::<Vec<_>>();
    binder.kernel(op, &buffers(inputs), &buffers(outputs), *accumulate)
}

/// Whether a computation's results have rows.
fn has_rows(program: &Program, computation: &Instruction, row_dims: &[graph::Dim]) -> bool {
    computation.uses().1.iter().all(|id| program.buffer(*id).dims.starts_with(row_dims))
}

/// A product of some rows: it has as many, or sums over as many and adds to what earlier strips have left.
fn of_rows(product: Gemm, maps: bool, rows: usize, first: bool) -> Gemm {
    match maps {
        true => Gemm { m: rows, ..product },
        false => Gemm { k: rows, accumulate: product.accumulate || !first, ..product },
    }
}

/// Bytes of scratch memory that the products of a strip need.
pub(crate) fn scratch_bytes(
    binder: &Binder<'_>,
    program: &Program,
    body: &[Instruction],
    held: BufferId,
    rows: usize,
    threads: usize,
) -> usize {
    let buffer = program.buffer(held);
    let shape = binder.plan.local_shape(&buffer.dims, &buffer.layout);
    let leading = &shape[..shape.len() - 1];
    let all: usize = leading.iter().product();
    let products = body.iter().filter_map(|part| match part {
        Instruction::Compute { op: Op::Contract | Op::Linear, inputs, outputs, .. } => {
            let [a, b, c] = [inputs[0], inputs[1], outputs[0]].map(|id| program.buffer(id));
            let maps = has_rows(program, part, &buffer.dims[..leading.len()]);
            Some((binder.contract(a, b, c, false), maps, a.dtype))
        }
        _ => None,
    });
    // Every strip has `rows` rows, but the last one, which has the rest.
    let extents = [rows, all - (all - 1) / rows * rows];
    let bytes = products.flat_map(|(product, maps, dtype)| {
        extents.map(|rows| of_rows(product, maps, rows, true).scratch_bytes(dtype, threads))
    });
    bytes.max().unwrap_or(0)
}
