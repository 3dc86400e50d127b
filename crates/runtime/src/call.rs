//! One kernel call: checks regions out of the arena and hands slices over.

use arrayvec::ArrayVec;
use kernels::Float;
use memory::{DType, Plain, Region, RegionMut};
use plan::BufferId;

use crate::error::RuntimeError;
use crate::executor::{Bound, Executor, StepContext};
use crate::kernel::{Kernel, Operands};

/// Most operands of one operation (a sum of gradients of uses, attention's backward).
const MAX_OPERANDS: usize = 12;
/// Most results of one operation.
const MAX_RESULTS: usize = 4;

/// Everything that a call needs beside the kernel.
pub(crate) struct Call<'a> {
    pub executor: &'a Executor,
    pub bound: &'a Bound,
    pub slot: usize,
    pub microbatch: usize,
    pub context: StepContext,
    pub inputs: &'a [BufferId],
    pub outputs: &'a [BufferId],
}

impl Call<'_> {
    /// Runs `kernel` in the precision `T`.
    pub fn run<T: Float + Plain>(&self, kernel: &Kernel) -> Result<(), RuntimeError> {
        let mut regions: ArrayVec<Region<'_>, MAX_OPERANDS> = ArrayVec::new();
        let mut ints: Option<Region<'_>> = None;
        for id in self.inputs {
            let region = self.executor.read(self.bound, *id, self.slot)?;
            match self.bound.program.buffer(*id).dtype {
                DType::I32 => ints = Some(region),
                _ => regions.push(region),
            }
        }
        let mut targets: ArrayVec<RegionMut<'_>, MAX_RESULTS> = ArrayVec::new();
        for id in self.outputs {
            targets.push(self.executor.write(self.bound, *id, self.slot)?);
        }
        let floats: ArrayVec<&[T], MAX_OPERANDS> = regions.iter().map(|r| r.as_slice()).collect();
        let mut results: ArrayVec<&mut [T], MAX_RESULTS> =
            targets.iter_mut().map(|r| r.as_mut_slice()).collect();
        let operands = Operands { floats: &floats, ints: ints.as_ref().map_or(&[][..], |r| r.as_slice()) };
        let mut scratch = self.executor.arena.write(self.executor.scratch)?;
        kernel.run(&self.context, self.microbatch, &operands, &mut results, scratch.as_mut_slice());
        Ok(())
    }
}
