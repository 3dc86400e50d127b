//! Computations for some rows after others ([`Instruction::Strips`]): the part of each buffer that a strip works on, and
//! its kernels.

use memory::{DType, Span};
use plan::{BufferId, Instruction, Program};

use crate::bind::Binder;
use crate::kernel::Kernel;

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
    let strip = |start: usize| {
        let count = rows.min(all - start);
        let kernels = body.iter().map(|i| kernel(binder, program, i, row_dims, count, start == 0)).collect();
        let part = |(id, bytes): &(BufferId, usize)| {
            let first = if program.buffer(*id).storage == buffer.storage { 0 } else { start };
            (*id, Span { offset: first * bytes, len: count * bytes })
        };
        Strip { kernels, parts: with_rows.iter().map(part).collect() }
    };
    (0..all).step_by(rows).map(strip).collect()
}

/// The kernel of one computation for `rows` rows.
fn kernel(
    binder: &Binder<'_>,
    program: &Program,
    computation: &Instruction,
    row_dims: &[graph::Dim],
    rows: usize,
    first: bool,
) -> Kernel {
    let Instruction::Compute { op, inputs, outputs, accumulate, .. } = computation else {
        unreachable!("checked: strips are of computations")
    };
    let buffers = |ids: &[BufferId]| ids.iter().map(|b| program.buffer(*b)).collect::<Vec<_>>();
    let results = buffers(outputs);
    let mut kernel = binder.kernel(op, &buffers(inputs), &results, *accumulate);
    // The extents of other kernels are those of what they are given.
    if let Kernel::Gemm(gemm) = &mut kernel {
        match results[0].dims.starts_with(row_dims) {
            true => gemm.m = rows,
            false => {
                gemm.k = rows;
                gemm.accumulate |= !first;
            }
        }
    }
    kernel
}

/// Bytes of scratch memory that the products of a strip need.
pub(crate) fn scratch_bytes(strips: &[Strip], dtype: DType, threads: usize) -> usize {
    let kernels = strips.iter().flat_map(|s| &s.kernels);
    kernels
        .map(|kernel| match kernel {
            Kernel::Gemm(gemm) => gemm.scratch_bytes(dtype, threads),
            _ => 0,
        })
        .max()
        .unwrap_or(0)
}
