//! What outlives a step, and what a step leaves to be read: first values, views for checkpoints, kept results.

use graph::{Graph, Op};
use half::{bf16, f16};
use memory::{DType, Span};
use mesh::{Axis, Tile};
use plan::{Buffer, BufferId};

use crate::error::RuntimeError;
use crate::executor::Executor;
use crate::init;

/// A state tensor as one rank has it.
#[derive(Debug, Clone)]
pub struct StateView<'a> {
    /// Name in checkpoints.
    pub name: &'a str,
    /// Which elements these are.
    pub tile: Tile,
    /// Element type.
    pub dtype: DType,
    /// The elements, padding included.
    pub bytes: &'a [u8],
    /// Whether no earlier rank holds the same elements: a checkpoint needs these only.
    pub is_first_holder: bool,
}

impl Executor {
    /// Sets all states to their first values.
    ///
    /// # Errors
    /// None in practice; the arena's own.
    pub fn initialise(&mut self, graph: &Graph, seed: u64) -> Result<(), RuntimeError> {
        let states: Vec<(String, BufferId)> = self.programs[0].program.states.clone();
        let untouched = self.untouched;
        self.settle()?;
        self.states_changed();
        for (name, id) in states {
            let value = graph.state(&name).ok_or_else(|| RuntimeError::State { name: name.clone() })?;
            let Op::State(state) = &graph.producer(value).op else { unreachable!("a state") };
            if untouched && state.init == graph::Init::Zeros {
                continue; // moments: their pages come with the first step
            }
            let tile = self.state_tile(id);
            let mut region = self.arena.write(self.exact_span(&self.programs[0], id, 0))?;
            match self.programs[0].plan.float {
                DType::F64 => {
                    init::fill::<f64>(&self.cpu, state.init, seed, &name, &tile, region.as_mut_slice());
                }
                _ => init::fill::<f32>(&self.cpu, state.init, seed, &name, &tile, region.as_mut_slice()),
            }
        }
        Ok(())
    }

    fn state_tile(&self, id: BufferId) -> Tile {
        let bound = &self.programs[0];
        let buffer = bound.program.buffer(id);
        bound.plan.tile(&buffer.dims, &buffer.layout, &self.coord)
    }

    /// Calls `with` with a view of every state on this rank.
    ///
    /// # Errors
    /// The arena's, if a state is in use; an update that is not settled.
    pub fn with_states<R>(&self, with: impl FnOnce(&[StateView<'_>]) -> R) -> Result<R, RuntimeError> {
        if self.unsettled.get() || !self.in_flight.borrow().is_empty() {
            return Err(RuntimeError::Unsettled);
        }
        let bound = &self.programs[0];
        let region = self.arena.read(Span { offset: 0, len: bound.program.state_bytes })?;
        let bytes = region.as_slice::<u8>();
        let views: Vec<StateView<'_>> = bound
            .program
            .states
            .iter()
            .map(|(name, id)| {
                let buffer = bound.program.buffer(*id);
                let span = self.exact_span(bound, *id, 0);
                StateView {
                    name,
                    tile: self.state_tile(*id),
                    dtype: buffer.dtype,
                    bytes: &bytes[span.offset..span.offset + span.len],
                    is_first_holder: self.first_holder(name, buffer),
                }
            })
            .collect();
        Ok(with(&views))
    }

    fn first_holder(&self, name: &str, buffer: &Buffer) -> bool {
        let plan = &self.programs[0].plan;
        let in_space = Axis::SPACE.into_iter().filter(|a| *a != Axis::Pp && plan.divides(*a));
        let copies = in_space.filter(|a| buffer.layout.get(*a) == mesh::Placement::Whole);
        let first_copy = copies.into_iter().all(|a| self.coord.get(a) == 0);
        first_copy && plan.first_holder_of(name).is_none_or(|p| p == self.coord.get(Axis::Pp))
    }

    /// Replaces every state: `fill` gets name, part, type and the bytes to write.
    ///
    /// # Errors
    /// Whatever `fill` returns.
    pub fn fill_states<E: From<RuntimeError>>(
        &mut self,
        mut fill: impl FnMut(&str, &Tile, DType, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.settle()?;
        self.states_changed();
        let bound = &self.programs[0];
        for (name, id) in &bound.program.states {
            let buffer = bound.program.buffer(*id);
            let mut region = self.arena.write(self.exact_span(bound, *id, 0)).map_err(RuntimeError::from)?;
            fill(name, &self.state_tile(*id), buffer.dtype, region.as_mut_slice::<u8>())?;
        }
        Ok(())
    }

    /// Copies a kept result, widened to f64, with the part of the global tensor that this rank has.
    ///
    /// # Errors
    /// [`RuntimeError::Output`] if the program does not keep it on this rank.
    pub fn output(&self, program: usize, name: &str) -> Result<(Tile, Vec<f64>), RuntimeError> {
        let bound = &self.programs[program];
        let id = bound.program.output(name).ok_or_else(|| RuntimeError::Output { name: name.to_owned() })?;
        let buffer = bound.program.buffer(id);
        let region = self.arena.read(self.exact_span(bound, id, 0))?;
        let values = match buffer.dtype {
            DType::F64 => region.as_slice::<f64>().to_vec(),
            DType::BF16 => region.as_slice::<bf16>().iter().map(|x| x.to_f64()).collect(),
            DType::F16 => region.as_slice::<f16>().iter().map(|x| x.to_f64()).collect(),
            _ => region.as_slice::<f32>().iter().map(|x| f64::from(*x)).collect(),
        };
        Ok((bound.plan.tile(&buffer.dims, &buffer.layout, &self.coord), values))
    }

    /// Reads the first elements of a kept result without allocating.
    ///
    /// # Errors
    /// As [`Executor::output`].
    pub fn read_output(&self, program: usize, name: &str, into: &mut [f64]) -> Result<(), RuntimeError> {
        let bound = &self.programs[program];
        let id = bound.program.output(name).ok_or_else(|| RuntimeError::Output { name: name.to_owned() })?;
        let region = self.arena.read(self.exact_span(bound, id, 0))?;
        match bound.program.buffer(id).dtype {
            DType::F64 => into.iter_mut().zip(region.as_slice::<f64>()).for_each(|(to, x)| *to = *x),
            _ => into.iter_mut().zip(region.as_slice::<f32>()).for_each(|(to, x)| *to = f64::from(*x)),
        }
        Ok(())
    }
}
