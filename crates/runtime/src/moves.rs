//! Instructions that move elements within a rank: cutting, packing, accumulating over microbatches.

use half::{bf16, f16};
use kernels::Cpu;
use memory::Plain;
use plan::Instruction;

use crate::error::RuntimeError;
use crate::executor::{Bound, Executor};

impl Executor {
    /// Runs one of them on elements of type `T`.
    pub(crate) fn mover<T: Plain + Accumulate>(
        &self,
        bound: &Bound,
        instruction: &Instruction,
        microbatch: usize,
    ) -> Result<(), RuntimeError> {
        match instruction {
            Instruction::Slice { input, output, axis, outer, n, inner } => {
                let piece = self.coord.get(*axis);
                let source =
                    self.arena.read(self.piece_span(bound, *input, microbatch, outer * n * inner))?;
                let mut target =
                    self.arena.write(self.piece_span(bound, *output, microbatch, outer * inner))?;
                let (source, target) = (source.as_slice::<T>(), target.as_mut_slice::<T>());
                for row in 0..*outer {
                    let from = (row * n + piece) * inner;
                    target[row * inner..(row + 1) * inner].copy_from_slice(&source[from..from + inner]);
                }
            }
            Instruction::Pack { input, output, outer, n, inner } => {
                let source = self.read(bound, *input, microbatch)?;
                let mut target = self.write(bound, *output, microbatch)?;
                kernels::pack(&self.cpu, source.as_slice::<T>(), *outer, *n, *inner, target.as_mut_slice());
            }
            Instruction::Unpack { input, output, outer, n, inner } => {
                let source = self.read(bound, *input, microbatch)?;
                let mut target = self.write(bound, *output, microbatch)?;
                kernels::unpack(&self.cpu, source.as_slice::<T>(), *outer, *n, *inner, target.as_mut_slice());
            }
            Instruction::Accumulate { from, into } => {
                let source = self.read(bound, *from, microbatch)?;
                let mut target = self.write(bound, *into, microbatch)?;
                T::accumulate(&self.cpu, source.as_slice(), target.as_mut_slice());
            }
            Instruction::Store { from, into, outer, n, inner } => {
                let source = self.read(bound, *from, microbatch)?;
                let mut target = self.write(bound, *into, microbatch)?;
                let (source, target) = (source.as_slice::<T>(), target.as_mut_slice::<T>());
                for row in 0..*outer {
                    let to = (row * n + microbatch) * inner;
                    target[to..to + inner].copy_from_slice(&source[row * inner..(row + 1) * inner]);
                }
            }
            Instruction::Entry { from, into, index, owners } => {
                if owners.iter().all(|axis| self.coord.get(axis) == 0) {
                    let source = self.read(bound, *from, microbatch)?;
                    self.write(bound, *into, microbatch)?.as_mut_slice::<T>()[*index] =
                        source.as_slice::<T>()[0];
                }
            }
            Instruction::Copy { from, into } => {
                let source = self.read(bound, *from, microbatch)?;
                self.write(bound, *into, microbatch)?.as_mut_slice::<T>().copy_from_slice(source.as_slice());
            }
            _ => unreachable!("not a move"),
        }
        Ok(())
    }
}

/// Addition of slices, for the types that accumulate over microbatches.
pub(crate) trait Accumulate: Sized {
    fn accumulate(cpu: &Cpu, from: &[Self], into: &mut [Self]);
}

macro_rules! floats {
    ($($float:ty)*) => {$(
        impl Accumulate for $float {
            fn accumulate(cpu: &Cpu, from: &[$float], into: &mut [$float]) {
                kernels::accumulate(cpu, from, into);
            }
        }
    )*};
}
floats!(f32 f64 bf16 f16);

impl Accumulate for i32 {
    fn accumulate(_: &Cpu, from: &[i32], into: &mut [i32]) {
        into.iter_mut().zip(from).for_each(|(to, x)| *to += *x);
    }
}
