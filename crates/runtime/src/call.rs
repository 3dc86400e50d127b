//! One kernel call: checks regions out of the arena and hands slices over.

use arrayvec::ArrayVec;
use memory::{DType, Region, Span};
use plan::BufferId;

use crate::error::RuntimeError;
use crate::executor::{Bound, Executor, StepContext};
use crate::kernel::{Kernel, Operands, Stored, Target};
use crate::strips::Strip;

/// Most operands of one operation (a sum of gradients of uses, attention's backward).
const MAX_OPERANDS: usize = 12;
/// Most results of one operation.
const MAX_RESULTS: usize = 4;

/// Everything that a call needs beside the kernel.
pub(crate) struct Call<'a> {
    pub executor: &'a Executor,
    pub bound: &'a Bound,
    pub microbatch: usize,
    pub context: StepContext<'a>,
    pub inputs: &'a [BufferId],
    pub outputs: &'a [BufferId],
    /// Which rows, if not all.
    pub strip: Option<&'a Strip>,
}

impl Call<'_> {
    fn span(&self, id: BufferId) -> Span {
        let span = self.executor.exact_span(self.bound, id, self.microbatch);
        self.strip.map_or(span, |strip| strip.part(id, span))
    }

    /// Runs `kernel` on activations stored as `S`.
    pub fn run<S: Stored>(&self, kernel: &Kernel) -> Result<(), RuntimeError> {
        let mut floats: ArrayVec<(Region<'_>, DType), MAX_OPERANDS> = ArrayVec::new();
        let mut ints: Option<Region<'_>> = None;
        for id in self.inputs {
            let region = self.executor.arena.read(self.span(*id))?;
            match self.bound.program.buffer(*id).dtype {
                DType::I32 => ints = Some(region),
                dtype => floats.push((region, dtype)),
            }
        }
        let mut results: ArrayVec<Target<'_>, MAX_RESULTS> = ArrayVec::new();
        for id in self.outputs {
            let region = self.executor.arena.write(self.span(*id))?;
            results.push(Target { region, dtype: self.bound.program.buffer(*id).dtype });
        }
        let operands = Operands {
            floats: &floats,
            ints: ints.as_ref().map_or(&[][..], |r| r.as_slice()),
            indices: ints.as_ref().map_or(&[][..], |r| r.as_slice()),
        };
        let mut scratch = self.executor.arena.write(self.executor.scratch)?;
        kernel.run::<S>(&self.context, self.microbatch, &operands, &mut results, &mut scratch);
        Ok(())
    }
}
