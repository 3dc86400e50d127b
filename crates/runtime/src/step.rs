//! One step of one rank: the loop over the runs of a Program's blocks, with what is in flight between them.

use comm::{Communicator, Pending};
use half::{bf16, f16};
use memory::DType;
use mesh::Axis;
use plan::{BufferId, Collective, Instruction, Phase, Run};

use crate::batch::{Batch, Destination};
use crate::call::Call;
use crate::error::RuntimeError;
use crate::executor::{Bound, Executor, Prepared, StepContext, StepInput};
use crate::kernel::Kernel;
use crate::profile::Sample;
use crate::strips::Strip;
use crate::validation::{Ran, Verdict};

/// A step under way.
pub(crate) struct Step<'e, 'b> {
    pub executor: &'e Executor,
    pub bound: &'e Bound,
    program: usize,
    input: &'e StepInput<'e>,
    batch: &'b mut dyn Batch,
}

impl<'e, 'b> Step<'e, 'b> {
    /// A step of program number `program`.
    pub fn new(
        executor: &'e Executor,
        program: usize,
        input: &'e StepInput<'e>,
        batch: &'b mut dyn Batch,
    ) -> Step<'e, 'b> {
        let bound = &executor.programs[program];
        Step { executor, bound, program, input, batch }
    }

    /// Runs it.
    pub fn run(&mut self) -> Result<Ran, RuntimeError> {
        let bound = self.bound;
        let mut lined_up = self.executor.now(self.program).is_none();
        for run in &bound.runs {
            match bound.program.blocks[run.block].phase {
                Phase::Derive if bound.derived.get() => continue,
                // It reads whole parameters, which may still be under way.
                Phase::Derive => self.finish_carried()?,
                Phase::Begin | Phase::Update => {}
                Phase::Clear if self.validate()? == Verdict::Refused => {
                    self.drop_unread()?;
                    return Ok(Ran::Again);
                }
                Phase::Clear => {}
                Phase::Apply => {
                    self.finish_carried()?;
                    self.save()?;
                }
                Phase::Validate => continue,
                Phase::Amend => unreachable!("no part of a step"),
                _ if !lined_up => {
                    self.executor.world.barrier()?;
                    lined_up = true;
                }
                _ => {}
            }
            self.block(run)?;
        }
        self.updated();
        if bound.program.validation.is_none() {
            return Ok(Ran::Complete);
        }
        self.executor.unsettled.set(true);
        if self.executor.trusting.get() {
            return Ok(Ran::Ahead);
        }
        self.validate()?;
        Ok(Ran::Complete)
    }

    /// Says what the update brought up to date.
    fn updated(&self) {
        let bound = self.bound;
        bound.derived.set(true);
        if bound.program.block(None, Phase::Update).is_some() {
            for (other, brought) in self.executor.programs.iter().zip(bound.brings_derived.iter().flatten()) {
                other.derived.set(*brought);
            }
        }
    }

    /// Runs a block of the rank by itself.
    pub fn only(&mut self, phase: Phase) -> Result<(), RuntimeError> {
        let is_it = |b: &plan::Block| b.stage.is_none() && b.phase == phase;
        match self.bound.program.blocks.iter().position(is_it) {
            Some(block) => self.block(&Run { block, microbatch: 0, is_first: true, is_last: true }),
            None => Ok(()),
        }
    }

    fn block(&mut self, run: &Run) -> Result<(), RuntimeError> {
        let block = &self.bound.program.blocks[run.block];
        for (index, instruction) in run.instructions(block) {
            let started = self.executor.now(self.program);
            let done = self.instruction(run, index, instruction)?;
            if let Some(start_seconds) = started {
                let end_seconds = self.executor.now(self.program).unwrap_or(start_seconds);
                self.executor.sample(Sample {
                    step: self.input.step,
                    block: run.block,
                    index,
                    microbatch: run.microbatch,
                    start_seconds,
                    end_seconds,
                    done_seconds: done.map_or(end_seconds, |done| end_seconds - done.elapsed().as_secs_f64()),
                });
            }
        }
        Ok(())
    }

    /// Executes one instruction of a block for a microbatch.
    pub fn one(&mut self, block: usize, index: usize, microbatch: usize) -> Result<(), RuntimeError> {
        let run = Run { block, microbatch, is_first: true, is_last: true };
        self.instruction(&run, index, &self.bound.program.blocks[block].instructions[index]).map(|_| ())
    }

    /// Executes one instruction; says when it was done, if that was before its end.
    fn instruction(
        &mut self,
        run: &Run,
        index: usize,
        instruction: &'e Instruction,
    ) -> Result<Option<std::time::Instant>, RuntimeError> {
        let (executor, bound, microbatch) = (self.executor, self.bound, run.microbatch);
        let prepared = &bound.blocks[run.block][index];
        match instruction {
            Instruction::Compute { .. } => {
                let Prepared::Kernel(kernel) = prepared else { unreachable!("bound as a kernel") };
                self.compute(instruction, kernel, microbatch, None)?;
            }
            Instruction::Strips { body, .. } => {
                let Prepared::Strips(strips) = prepared else { unreachable!("bound as strips") };
                for strip in strips {
                    for (computation, kernel) in body.iter().zip(&strip.kernels) {
                        self.compute(computation, kernel, microbatch, Some(strip))?;
                    }
                }
            }
            Instruction::Load { input, output } => {
                let Prepared::Load(tiles) = prepared else { unreachable!("bound as a load") };
                let mut region = executor.write(bound, *output, microbatch)?;
                let to = match bound.program.buffer(*output).dtype {
                    DType::I32 => Destination::I32(region.as_mut_slice()),
                    DType::F64 => Destination::F64(region.as_mut_slice()),
                    DType::BF16 => Destination::BF16(region.as_mut_slice()),
                    DType::F16 => Destination::F16(region.as_mut_slice()),
                    DType::F32 => Destination::F32(region.as_mut_slice()),
                };
                self.batch.load(input, &tiles[microbatch], to)?;
            }
            Instruction::Scalar { name, output } => {
                let value = self.input.scalars.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
                let value = value.ok_or_else(|| RuntimeError::Scalar { name: name.clone() })?;
                self.fill(*output, microbatch, value)?;
            }
            Instruction::Fill { value, output } => self.fill(*output, microbatch, *value)?,
            Instruction::Start { collective, inputs, outputs, count, group, ticket, .. } => {
                let group = &*executor.groups[&bound.program.groups[*group]];
                let pending = self.start(group, *collective, inputs[0], outputs[0], *count, microbatch)?;
                executor.in_flight.borrow_mut().push((*ticket, pending));
            }
            Instruction::Wait { ticket, .. } => {
                let at = executor.in_flight.borrow().iter().position(|(t, _)| t == ticket);
                let Some(at) = at else {
                    // Nothing is carried into a first step, or over one that was settled.
                    assert!(bound.program.carried.contains(ticket), "checked: it was started");
                    return Ok(None);
                };
                let (_, pending) = executor.in_flight.borrow_mut().remove(at);
                return Ok(Some(pending.completion()?));
            }
            Instruction::Send { input, to, tag } => {
                let to = bound.plan.mesh.rank(&executor.coord.at(Axis::Pp, *to));
                let data = executor.read(bound, *input, microbatch)?;
                executor.world.send(data, to, self.message(*tag, microbatch))?.wait()?;
            }
            Instruction::Recv { output, from, tag } => {
                let from = bound.plan.mesh.rank(&executor.coord.at(Axis::Pp, *from));
                let data = executor.write(bound, *output, microbatch)?;
                executor.world.recv(data, from, self.message(*tag, microbatch))?.wait()?;
            }
            _ => {
                let Prepared::Move(dtype) = prepared else { unreachable!("bound as a move") };
                match dtype {
                    DType::I32 => executor.mover::<i32>(bound, instruction, microbatch)?,
                    DType::F64 => executor.mover::<f64>(bound, instruction, microbatch)?,
                    DType::BF16 => executor.mover::<bf16>(bound, instruction, microbatch)?,
                    DType::F16 => executor.mover::<f16>(bound, instruction, microbatch)?,
                    DType::F32 => executor.mover::<f32>(bound, instruction, microbatch)?,
                }
            }
        }
        Ok(None)
    }

    /// One kernel, on all rows or some.
    fn compute(
        &self,
        computation: &Instruction,
        kernel: &Kernel,
        microbatch: usize,
        strip: Option<&Strip>,
    ) -> Result<(), RuntimeError> {
        let Instruction::Compute { inputs, outputs, .. } = computation else {
            unreachable!("checked: strips are of computations")
        };
        let (executor, bound) = (self.executor, self.bound);
        let context = StepContext { seed: self.input.seed, step: self.input.step, cpu: &executor.cpu };
        let call = Call { executor, bound, microbatch, context, inputs, outputs, strip };
        match bound.plan.narrow {
            DType::F64 => call.run::<f64>(kernel),
            DType::BF16 => call.run::<bf16>(kernel),
            DType::F16 => call.run::<f16>(kernel),
            _ => call.run::<f32>(kernel),
        }
    }

    fn fill(&self, id: BufferId, microbatch: usize, value: f64) -> Result<(), RuntimeError> {
        let buffer = self.bound.program.buffer(id);
        // Room behind the elements is filled too: gathers of flat shards may read it.
        let span = self.executor.piece_span(self.bound, id, microbatch, buffer.capacity);
        let mut region = self.executor.arena.write(span)?;
        match buffer.dtype {
            DType::F64 => region.as_mut_slice::<f64>().fill(value),
            DType::BF16 => region.as_mut_slice().fill(bf16::from_f64(value)),
            DType::F16 => region.as_mut_slice().fill(f16::from_f64(value)),
            DType::I32 => region.as_mut_slice::<i32>().fill(value as i32),
            DType::F32 => region.as_mut_slice::<f32>().fill(value as f32),
        }
        Ok(())
    }

    /// Starts a collective; a bucket is the region from its first buffer on.
    fn start(
        &self,
        group: &dyn Communicator,
        collective: Collective,
        input: BufferId,
        output: BufferId,
        count: usize,
        microbatch: usize,
    ) -> Result<Pending<'static>, RuntimeError> {
        let (executor, bound) = (self.executor, self.bound);
        let dtype = bound.program.buffer(output).dtype;
        let n = group.world_size();
        let send = |pieces: usize| {
            executor.arena.read_shared(executor.piece_span(bound, input, microbatch, pieces * count))
        };
        let recv = |pieces: usize| {
            executor.arena.write_shared(executor.piece_span(bound, output, microbatch, pieces * count))
        };
        Ok(match collective {
            Collective::AllReduce(reduce) => group.all_reduce(recv(1)?, dtype, operation(reduce))?,
            Collective::ReduceScatter(reduce) => {
                group.reduce_scatter(send(n)?, recv(1)?, dtype, operation(reduce))?
            }
            Collective::AllGather => group.all_gather(send(1)?, recv(n)?)?,
            Collective::AllToAll => group.all_to_all(send(n)?, recv(n)?)?,
        })
    }

    fn message(&self, value: u64, microbatch: usize) -> u64 {
        (self.program as u64) << 56 | value << 24 | microbatch as u64
    }
}

fn operation(reduce: mesh::Reduce) -> comm::Reduce {
    match reduce {
        mesh::Reduce::Sum => comm::Reduce::Sum,
        mesh::Reduce::Max => comm::Reduce::Max,
    }
}
