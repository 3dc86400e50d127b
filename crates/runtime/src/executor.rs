//! The executor of one rank: arena, communicators, bound programs. The loop is in `step`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use arrayvec::ArrayVec;
use comm::{Communicator, Pending};
use kernels::Cpu;
use memory::{Arena, DType, Region, RegionMut, Span};
use mesh::{Axis, AxisSet, Coord, Tile};
use plan::{Buffer, BufferId, Class, GroupKey, Instruction, Plan, Program, Run};

use crate::batch::Batch;
use crate::bind::{Binder, scratch_bytes};
use crate::error::RuntimeError;
use crate::groups;
use crate::kernel::Kernel;
use crate::profile::{Clock, Recorder, Sample};
use crate::step::Step;
use crate::strips::{self, Strip};
use crate::validation::{NoBatch, Ran};

/// Collectives under way: the Program's limit, and one that is waited for at once.
const IN_FLIGHT: usize = plan::IN_FLIGHT + 1;

/// Puts something between a rank and a group, for tests and measurements.
pub type WrapGroup<'a> = dyn Fn(&GroupKey, Box<dyn Communicator>) -> Box<dyn Communicator> + 'a;

/// What a step gets beside its batch.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the step, from 1; keys the random numbers.
    pub step: u64,
    /// Run-time numbers by name.
    pub scalars: &'a [(&'a str, f64)],
}

/// What kernels know of the step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepContext<'a> {
    pub seed: u64,
    pub step: u64,
    pub cpu: &'a Cpu,
}

/// Bytes that a rank reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankMemory {
    /// States, once for all programs.
    pub state_bytes: usize,
    /// The largest workspace of any program.
    pub workspace_bytes: usize,
    /// The largest scratch of any kernel.
    pub scratch_bytes: usize,
}

impl RankMemory {
    /// What a run of these programs of one pipeline rank reserves with `threads` per rank, without reserving it. The
    /// first has all states.
    pub fn of(programs: &[(&Plan, &Program)], threads: usize) -> RankMemory {
        let max =
            |f: &dyn Fn(&Plan, &Program) -> usize| programs.iter().map(|(l, p)| f(l, p)).max().unwrap_or(0);
        RankMemory {
            state_bytes: programs.first().map_or(0, |(_, p)| p.state_bytes),
            workspace_bytes: max(&|_, p| p.workspace_bytes()),
            scratch_bytes: max(&|l, p| scratch_bytes(l, p, threads)),
        }
    }

    /// The arena's length.
    pub fn arena_bytes(&self) -> usize {
        self.state_bytes + self.workspace_bytes + self.scratch_bytes
    }
}

pub(crate) struct Bound {
    pub(crate) plan: Arc<Plan>,
    pub(crate) program: Arc<Program>,
    pub(crate) blocks: Vec<Vec<Prepared>>,
    /// Blocks in the order of a step.
    pub(crate) runs: Vec<Run>,
    /// Whether what the program derives from states is up to date.
    pub(crate) derived: Cell<bool>,
    /// For each program of the rank, whether this one's update brings what that one derives up to date (for itself, also
    /// what its next step makes in time); none if the update changes no state, so that everything stays as it is.
    pub(crate) brings_derived: Option<Vec<bool>>,
}

/// What was worked out for an instruction before step 0.
pub(crate) enum Prepared {
    Kernel(Kernel),
    /// In order.
    Strips(Vec<Strip>),
    /// A tile per microbatch.
    Load(Vec<Tile>),
    /// The type of what is moved.
    Move(DType),
}

/// One rank, ready to run.
pub struct Executor {
    pub(crate) world: Box<dyn Communicator>,
    pub(crate) groups: BTreeMap<GroupKey, Box<dyn Communicator>>,
    pub(crate) coord: Coord,
    pub(crate) arena: Rc<Arena>,
    /// Collectives under way, with their tickets. Between steps, those that a Program carries over.
    pub(crate) in_flight: RefCell<ArrayVec<(usize, Pending<'static>), IN_FLIGHT>>,
    pub(crate) scratch: Span,
    /// Whether no state was ever written: all are zero, and their pages take no memory.
    pub(crate) untouched: bool,
    pub(crate) programs: Vec<Bound>,
    pub(crate) cpu: Cpu,
    /// The program of the last step, whose collectives are those under way between steps.
    last: Cell<usize>,
    /// Whether that step has not been validated.
    pub(crate) unsettled: Cell<bool>,
    /// Whether the last validated step was as its update had assumed.
    pub(crate) trusting: Cell<bool>,
    /// Only while somebody asked for a profile.
    recorder: RefCell<Option<Recorder>>,
}

impl Executor {
    /// Binds programs (the first has all states) of this rank's pipeline rank to its processor, reserves the arena,
    /// makes the groups, and compares fingerprints with the other ranks.
    ///
    /// # Errors
    /// If memory cannot be reserved, a peer is missing, or ranks disagree.
    pub fn new(
        world: Box<dyn Communicator>,
        programs: Vec<(Arc<Plan>, Arc<Program>)>,
        cpu: Cpu,
        wrap: Option<&WrapGroup<'_>>,
    ) -> Result<Executor, RuntimeError> {
        let mesh = programs[0].0.mesh.clone();
        let coord = mesh.coord(world.rank());
        let memory =
            RankMemory::of(&programs.iter().map(|(l, p)| (&**l, &**p)).collect::<Vec<_>>(), cpu.threads());
        let arena = Arena::reserve(memory.arena_bytes().max(memory.state_bytes + groups::AGREE_BYTES))?;
        let scratch = Span { offset: memory.state_bytes + memory.workspace_bytes, len: memory.scratch_bytes };
        let first = programs[0].1.clone();
        let mut bound = Vec::new();
        for (plan, mut program) in programs {
            share_states(&first, &programs_tiles(&plan, &coord), &mut program)?;
            bound.push(bind(plan, program, coord));
        }
        relate(&mut bound);
        let mut keys: BTreeSet<GroupKey> =
            bound.iter().flat_map(|b| b.program.groups.iter().cloned()).collect();
        let all: AxisSet = Axis::SPACE.into_iter().collect();
        let stage = GroupKey::along(all.without(Axis::Pp));
        keys.insert(stage.clone());
        let groups = groups::connect(&*world, &mesh, keys, wrap)?;
        let executor = Executor {
            world,
            groups,
            coord,
            arena: Rc::new(arena),
            in_flight: RefCell::default(),
            scratch,
            untouched: true,
            programs: bound,
            cpu,
            last: Cell::new(0),
            unsettled: Cell::new(false),
            trusting: Cell::new(true),
            recorder: RefCell::new(None),
        };
        executor.compare_fingerprints(&stage)?;
        Ok(executor)
    }

    fn compare_fingerprints(&self, stage: &GroupKey) -> Result<(), RuntimeError> {
        // Behind the states, whose pages stay untouched.
        let at = self.programs[0].program.state_bytes;
        for bound in &self.programs {
            let plan = format!("{:?}{:?}", bound.plan.mesh, bound.plan.schedule);
            let hash = plan.bytes().fold(0u64, |h, b| h.wrapping_mul(0x0100_0000_01b3) ^ u64::from(b));
            groups::agree(&*self.world, &self.arena, at, "plan", hash)?;
            let program = bound.program.fingerprint(&bound.plan);
            groups::agree(&*self.groups[stage], &self.arena, at, "program", program)?;
        }
        Ok(())
    }

    /// Position of this rank.
    pub fn coord(&self) -> &Coord {
        &self.coord
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// The communicator of all ranks.
    pub fn world(&self) -> &dyn Communicator {
        &*self.world
    }

    /// Bytes reserved.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }

    /// From now on keeps a sample of every instruction of one program, `capacity` at most, and lets ranks line up
    /// before the first microbatch of a step, so that their times have one beginning.
    pub fn start_recording(&mut self, program: usize, clock: Box<Clock>, capacity: usize) {
        let samples = Vec::with_capacity(capacity);
        self.recorder = RefCell::new(Some(Recorder { program, clock, samples }));
    }

    /// Ends the recording and hands the samples over, in the order of execution.
    pub fn stop_recording(&mut self) -> Vec<Sample> {
        self.recorder.take().map(|r| r.samples).unwrap_or_default()
    }

    /// The recorder's time, if it wants samples of `program`.
    pub(crate) fn now(&self, program: usize) -> Option<f64> {
        let recorder = self.recorder.borrow();
        recorder.as_ref().filter(|r| r.program == program).map(|r| (r.clock)())
    }

    pub(crate) fn sample(&self, sample: Sample) {
        if let Some(recorder) = &mut *self.recorder.borrow_mut()
            && recorder.samples.len() < recorder.samples.capacity()
        {
            recorder.samples.push(sample);
        }
    }

    /// Plan and Program number `program`, as samples refer to them.
    pub fn program(&self, program: usize) -> (&Plan, &Program) {
        (&self.programs[program].plan, &self.programs[program].program)
    }

    /// Runs one step of a program, to its end. On an error the other ranks are woken.
    ///
    /// # Errors
    /// A peer's failure or the batch's.
    pub fn run(
        &mut self,
        program: usize,
        batch: &mut dyn Batch,
        input: &StepInput<'_>,
    ) -> Result<(), RuntimeError> {
        self.settle()?;
        let ran = self.run_ahead(program, batch, input)?;
        debug_assert_ne!(ran, Ran::Again, "nothing was to be validated");
        self.settle()
    }

    /// Runs one step of a program, which leaves under way what its Program carries into the next step: gathers of
    /// parameters. If the Program validates steps afterwards, it returns before this one is validated, and validates the
    /// one before on the way. What a step of another program left is settled first; that step's results are then lost
    /// unless they were read before.
    ///
    /// # Errors
    /// A peer's failure or the batch's.
    pub fn run_ahead(
        &mut self,
        program: usize,
        batch: &mut dyn Batch,
        input: &StepInput<'_>,
    ) -> Result<Ran, RuntimeError> {
        if program != self.last.get() {
            self.settle()?;
            self.last.set(program);
        }
        self.stepping(program, batch, input, |step| step.run())
    }

    /// Validates the last step, if that is still to be done, and waits for what it left under way; afterwards its results
    /// are there and states are whole and final.
    ///
    /// # Errors
    /// A peer's failure.
    pub fn settle(&mut self) -> Result<(), RuntimeError> {
        if !self.unsettled.get() && self.in_flight.borrow().is_empty() {
            return Ok(());
        }
        let input = StepInput { seed: 0, step: 0, scalars: &[] };
        self.stepping(self.last.get(), &mut NoBatch, &input, |step| {
            step.validate()?;
            step.finish_carried()
        })
    }

    fn stepping<R>(
        &self,
        program: usize,
        batch: &mut dyn Batch,
        input: &StepInput<'_>,
        work: impl FnOnce(&mut Step<'_, '_>) -> Result<R, RuntimeError>,
    ) -> Result<R, RuntimeError> {
        let result = work(&mut Step::new(self, program, input, batch));
        if let Err(error) = &result {
            // Before what is under way is dropped, which would be the first reason that peers hear.
            self.world.abort_handle().abort(&format!("rank {}: {error}", self.rank()));
            self.in_flight.borrow_mut().clear();
        }
        result
    }

    /// From now on everything that follows from states has to be made anew.
    pub(crate) fn states_changed(&mut self) {
        self.untouched = false;
        self.programs.iter().for_each(|bound| bound.derived.set(false));
    }

    /// The bytes of a buffer's real elements.
    pub(crate) fn exact_span(&self, bound: &Bound, id: BufferId, microbatch: usize) -> Span {
        let buffer = bound.program.buffer(id);
        let span = bound.program.span(id, microbatch);
        let span = Span { len: buffer.len * buffer.dtype.size_bytes(), ..span };
        match buffer.class {
            Class::State | Class::Derived => span,
            // Workspaces lie behind the states of all programs, which may be more than this program's.
            _ => {
                let all = self.programs[0].program.state_bytes;
                Span { offset: span.offset - bound.program.state_bytes + all, ..span }
            }
        }
    }

    pub(crate) fn piece_span(&self, bound: &Bound, id: BufferId, microbatch: usize, elements: usize) -> Span {
        let span = self.exact_span(bound, id, microbatch);
        Span { len: elements * bound.program.buffer(id).dtype.size_bytes(), ..span }
    }

    pub(crate) fn read(
        &self,
        bound: &Bound,
        id: BufferId,
        microbatch: usize,
    ) -> Result<Region<'_>, RuntimeError> {
        Ok(self.arena.read(self.exact_span(bound, id, microbatch))?)
    }

    pub(crate) fn write(
        &self,
        bound: &Bound,
        id: BufferId,
        microbatch: usize,
    ) -> Result<RegionMut<'_>, RuntimeError> {
        Ok(self.arena.write(self.exact_span(bound, id, microbatch))?)
    }
}

fn programs_tiles<'a>(plan: &'a Plan, coord: &'a Coord) -> impl Fn(&Buffer) -> Tile + 'a {
    move |buffer| plan.tile(&buffer.dims, &buffer.layout, coord)
}

/// Works out which updates bring what other programs derive up to date.
fn relate(programs: &mut [Bound]) {
    let names = |bound: &Bound| -> BTreeSet<String> {
        bound.program.derived.iter().map(|(name, _)| name.clone()).collect()
    };
    let all: Vec<BTreeSet<String>> = programs.iter().map(names).collect();
    for (at, bound) in programs.iter_mut().enumerate() {
        let (for_itself, for_others) = (bound.program.keeps_derived(), bound.program.update_derives());
        let brings = |(other, names): (usize, &BTreeSet<String>)| match other == at {
            true => for_itself,
            false => for_others && names.is_subset(&all[at]),
        };
        bound.brings_derived =
            bound.program.update_changes_states().then(|| all.iter().enumerate().map(brings).collect());
    }
}

/// Gives the states and caches of `program`, and what is derived from states, the addresses that they have in `first`. Ranks share a Program unless this changes it.
fn share_states(
    first: &Program,
    tile: &impl Fn(&Buffer) -> Tile,
    program: &mut Arc<Program>,
) -> Result<(), RuntimeError> {
    let own: Vec<(String, BufferId)> = program.outlives().cloned().collect();
    for (name, id) in own {
        let shared = first.outlives().find(|(n, _)| *n == name).map(|(_, b)| first.buffer(*b));
        let own = program.buffer(id);
        match shared {
            Some(shared) if shared.len == own.len && shared.layout.flat_axis() == own.layout.flat_axis() => {
                debug_assert_eq!(tile(own).local_len(), own.len);
                if own.offset != shared.offset {
                    let buffers = &mut Arc::make_mut(program).buffers;
                    buffers.iter_mut().filter(|b| b.storage == id).for_each(|b| b.offset = shared.offset);
                }
            }
            _ => return Err(RuntimeError::State { name }),
        }
    }
    Ok(())
}

fn bind(plan: Arc<Plan>, program: Arc<Program>, coord: Coord) -> Bound {
    let mut blocks = Vec::new();
    for block in &program.blocks {
        let binder = Binder { plan: &plan, coord };
        let prepare = |instruction: &Instruction| match instruction {
            Instruction::Compute { op, inputs, outputs, accumulate, .. } => {
                let buffers = |ids: &[BufferId]| ids.iter().map(|b| program.buffer(*b)).collect::<Vec<_>>();
                Prepared::Kernel(binder.kernel(op, &buffers(inputs), &buffers(outputs), *accumulate))
            }
            Instruction::Strips { body, held, rows } => {
                Prepared::Strips(strips::bind(&binder, &program, body, *held, *rows))
            }
            Instruction::Load { output, .. } => {
                let buffer = program.buffer(*output);
                let tiles = (0..plan.mesh.size(Axis::Mb))
                    .map(|mb| plan.tile(&buffer.dims, &buffer.layout, &coord.at(Axis::Mb, mb)))
                    .collect();
                Prepared::Load(tiles)
            }
            _ => {
                let written = instruction.uses().1.first().map(|id| program.buffer(*id).dtype);
                Prepared::Move(written.unwrap_or(plan.float))
            }
        };
        blocks.push(block.instructions.iter().map(prepare).collect());
    }
    let runs = program.runs();
    Bound { plan, program, blocks, runs, derived: Cell::new(false), brings_derived: None }
}
