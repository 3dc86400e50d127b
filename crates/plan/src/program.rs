//! The Program: typed buffers, blocks of instructions per (stage, phase), and actions. Pure data; the executor is one
//! loop with one `match` over it.

use std::collections::BTreeSet;

use graph::Dim;
use memory::{DType, Span};
use schedule::{Action, Kind};

use crate::instruction::{GroupKey, Instruction};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::runs::Validation;

/// A buffer of a Program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

impl BufferId {
    /// Position in [`Program::buffers`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How long a buffer lives, and so in which part of the arena it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Outlives the step; shared by all Programs of a run.
    State,
    /// Follows from states alone (a narrow copy of a parameter), outlives the step and is shared like them; made anew
    /// whenever states changed otherwise than by an update that writes it too.
    Derived,
    /// Lives through one step: accumulators, and results that are read after it.
    Step,
    /// Kept from one phase of a stage to another, each microbatch's in a slot of this region ([`Program::slots`]).
    Slot(usize),
    /// Lives inside one block, and lies among the slots, at a place of its own in each microbatch
    /// ([`Program::passing`]).
    Passing(usize),
    /// Lives inside one block, in a space that all blocks share.
    Temp,
}

/// A typed stretch of the arena.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// Name of the value it holds.
    pub name: String,
    /// Dims of the value.
    pub dims: Vec<Dim>,
    /// Where the value lies.
    pub layout: Layout,
    /// Element type.
    pub dtype: DType,
    /// Local elements, padding of the last ranks included.
    pub len: usize,
    /// Local elements with room for gathers of uneven flat shards; at least `len`. Of what is held in strips, both count
    /// one strip.
    pub capacity: usize,
    /// Whether the elements are in the order that products want of a right factor, with room to round extents up.
    pub packed: bool,
    /// Lifetime.
    pub class: Class,
    /// The buffer whose memory this is: itself, or the one it is another view of.
    pub storage: BufferId,
    /// Byte offset: from the start of the arena (State, Derived), of the step region (Step), of the slot (Slot) or of the
    /// temporary region (Temp).
    pub offset: usize,
}

impl Buffer {
    /// Bytes taken in the arena, alignment included.
    pub fn bytes(&self) -> usize {
        (self.capacity * self.dtype.size_bytes()).next_multiple_of(64)
    }
}

/// Label of a block. Labels order the work of a step; the executor runs whatever blocks the actions name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Before anything else, if what is derived from states is out of date.
    Derive,
    /// Before the first microbatch.
    Begin,
    /// Under post-validation, once the step before is known to stand: accumulators to zero.
    Clear,
    /// F.
    Forward,
    /// I.
    BackwardInput,
    /// W.
    BackwardWeight,
    /// I and W together.
    Backward,
    /// After the last microbatch.
    Update,
    /// Under post-validation what changes states, apart from `Update`: it may have to be made again.
    Apply,
    /// Under post-validation, what is true of the step, which the next one learns.
    Validate,
    /// Under post-validation, what is true in the place of what was assumed; `Apply` follows once more.
    Amend,
}

impl Phase {
    /// Phase of a schedule's action.
    pub fn of(kind: Kind) -> Phase {
        match kind {
            Kind::Forward => Phase::Forward,
            Kind::BackwardInput => Phase::BackwardInput,
            Kind::BackwardWeight => Phase::BackwardWeight,
            Kind::Backward => Phase::Backward,
        }
    }

    /// Name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Derive => "derive",
            Phase::Begin => "begin",
            Phase::Clear => "clear",
            Phase::Forward => "forward",
            Phase::BackwardInput => "backward_input",
            Phase::BackwardWeight => "backward_weight",
            Phase::Backward => "backward",
            Phase::Update => "update",
            Phase::Apply => "apply",
            Phase::Validate => "validate",
            Phase::Amend => "amend",
        }
    }
}

/// Instructions of one phase of one stage (stage `None`: of the pipeline rank).
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// The stage.
    pub stage: Option<usize>,
    /// The phase.
    pub phase: Phase,
    /// In order.
    pub instructions: Vec<Instruction>,
}

/// Bytes of one rank's arena by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgramMemory {
    /// Parameters as stored between steps.
    pub parameters_bytes: usize,
    /// Accumulated gradients.
    pub gradients_bytes: usize,
    /// Optimizer moments.
    pub optimizer_bytes: usize,
    /// Values kept from forward to backward: the extent of all slots, if nothing else lay among them.
    pub activations_bytes: usize,
    /// What temporaries take beyond that, caches, results kept through the step, and the copy of states.
    pub buffers_bytes: usize,
}

impl ProgramMemory {
    /// All of it.
    pub fn arena_bytes(&self) -> usize {
        self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.buffers_bytes
    }
}

/// What every rank of one pipeline rank executes; coordinates enter at run time.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Position on the pipeline axis.
    pub pipeline_rank: usize,
    /// Type of parameters, statistics and sums.
    pub float: DType,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// All blocks.
    pub blocks: Vec<Block>,
    /// Order of work.
    pub actions: Vec<Action>,
    /// Groups that collectives name.
    pub groups: Vec<GroupKey>,
    /// State buffers by name, but for caches: what checkpoints hold.
    pub states: Vec<(String, BufferId)>,
    /// State buffers of caches, by name; they lie behind the states.
    pub caches: Vec<(String, BufferId)>,
    /// Buffers that follow from states alone, by name; they lie behind the states and caches.
    pub derived: Vec<(String, BufferId)>,
    /// Results that can be read after a step, by name.
    pub outputs: Vec<(String, BufferId)>,
    /// Number of tickets.
    pub num_tickets: usize,
    /// Bytes of states, caches and what is derived from states (the first part of the arena).
    pub state_bytes: usize,
    /// Bytes of the step region.
    pub step_bytes: usize,
    /// Where what is kept from phase to phase lies, microbatch by microbatch.
    pub slots: Vec<SlotRegion>,
    /// Offsets of temporaries in the space of all slots, by microbatch.
    pub passing: Vec<Vec<usize>>,
    /// Bytes of the space that all slots share.
    pub slots_bytes: usize,
    /// Bytes of the temporary region.
    pub temp_bytes: usize,
    /// Bytes of the copy of all states from before an update that may be refused; behind the temporaries.
    pub saved_bytes: usize,
    /// Tickets that are started in a step and waited for in the next: gathers of parameters.
    pub carried: Vec<usize>,
    /// How an update is refused, if its step is validated after it.
    pub validation: Option<Validation>,
    /// The same bytes by purpose.
    pub memory: ProgramMemory,
}

/// Buffers that a stage keeps of every microbatch from one of its phases to another. Slots that live at different times,
/// of whichever stage, share their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRegion {
    /// The stage.
    pub stage: usize,
    /// Bytes of one slot.
    pub slot_bytes: usize,
    /// Byte offset of each microbatch's slot in the space of all slots.
    pub offsets: Vec<usize>,
}

impl Program {
    /// A buffer.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.index()]
    }

    /// Microbatches of a step.
    pub(crate) fn num_microbatches(&self) -> usize {
        self.actions.iter().map(|action| action.microbatch + 1).max().unwrap_or(0)
    }

    /// The block of a stage's phase.
    pub fn block(&self, stage: Option<usize>, phase: Phase) -> Option<&Block> {
        self.blocks.iter().find(|b| b.stage == stage && b.phase == phase)
    }

    /// The blocks that an action runs, in order: a whole backward on a program that splits it runs I, then W.
    pub fn blocks_of(&self, action: &Action) -> impl Iterator<Item = usize> + '_ {
        let (stage, kind) = (Some(action.stage), action.kind);
        let find = move |phase| self.blocks.iter().position(|b| b.stage == stage && b.phase == phase);
        let whole = find(Phase::of(kind));
        let halves = (kind == Kind::Backward && whole.is_none())
            .then(|| [find(Phase::BackwardInput), find(Phase::BackwardWeight)]);
        whole.into_iter().chain(halves.into_iter().flatten().flatten())
    }

    /// Whether a step's update changes states.
    pub fn update_changes_states(&self) -> bool {
        let written = self.written(|phase| matches!(phase, Phase::Update | Phase::Apply));
        self.states.iter().any(|(_, id)| written.contains(&self.buffer(*id).storage))
    }

    /// Whether a step's update writes everything derived, so that other programs find it up to date.
    pub fn update_derives(&self) -> bool {
        self.writes_derived(|phase| matches!(phase, Phase::Update | Phase::Apply))
    }

    /// Whether a step finds up to date what it derives from states, or makes it in time, if only its own update changed
    /// them: then it skips [`Phase::Derive`].
    pub fn keeps_derived(&self) -> bool {
        self.update_changes_states() && self.writes_derived(|phase| phase != Phase::Derive)
    }

    fn writes_derived(&self, in_phases: impl Fn(Phase) -> bool) -> bool {
        let written = self.written(in_phases);
        self.derived.iter().all(|(_, id)| written.contains(&self.buffer(*id).storage))
    }

    fn written(&self, in_phases: impl Fn(Phase) -> bool) -> BTreeSet<BufferId> {
        let blocks = self.blocks.iter().filter(|b| in_phases(b.phase));
        blocks
            .flat_map(|b| &b.instructions)
            .flat_map(|i| i.uses().1)
            .map(|id| self.buffer(id).storage)
            .collect()
    }

    /// Every buffer that outlives the step, in the order of their addresses.
    pub fn outlives(&self) -> impl Iterator<Item = &(String, BufferId)> {
        self.states.iter().chain(&self.caches).chain(&self.derived)
    }

    /// The named result.
    pub fn output(&self, name: &str) -> Option<BufferId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, b)| *b)
    }

    /// Bytes of everything but states.
    pub fn workspace_bytes(&self) -> usize {
        self.step_bytes + self.slots_bytes + self.temp_bytes + self.saved_bytes
    }

    /// Place of the copy of all states, in an arena that has the states first.
    pub fn saved(&self) -> Span {
        let offset = self.state_bytes + self.step_bytes + self.slots_bytes + self.temp_bytes;
        Span { offset, len: self.saved_bytes }
    }

    /// Place of a buffer in an arena that has the states first, for an action on `microbatch`.
    pub fn span(&self, id: BufferId, microbatch: usize) -> Span {
        let buffer = self.buffer(id);
        let steps = self.state_bytes;
        let slots = steps + self.step_bytes;
        let temps = slots + self.slots_bytes;
        let offset = match buffer.class {
            Class::State | Class::Derived => buffer.offset,
            Class::Step => steps + buffer.offset,
            Class::Slot(region) => slots + self.slots[region].offsets[microbatch] + buffer.offset,
            Class::Passing(place) => slots + self.passing[place][microbatch],
            Class::Temp => temps + buffer.offset,
        };
        Span { offset, len: buffer.capacity * buffer.dtype.size_bytes() }
    }

    /// A number that differs whenever two Programs differ: ranks compare it before step 0.
    pub fn fingerprint(&self, plan: &Plan) -> u64 {
        let text = format!("{:?}{:?}{:?}", self, plan.mesh, plan.schedule);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }
}
