//! Lowering: walks the graph once for one pipeline rank and writes its Program. Forward, backward and update go
//! through the same rule; what is special about updates is in `update`, about boundaries in `boundary`.

use std::collections::HashMap;

use graph::{Dim, Graph, Node, NodeId, Op, Place, Role, Signature, StateKind, ValueId, ValueType};
use memory::DType;
use mesh::{Axis, Placement};

use crate::error::PlanError;
use crate::instruction::{GroupKey, Instruction, When};
use crate::layout::Layout;
use crate::legal::{self, Choice, Chooser, Operand};
use crate::plan::Plan;
use crate::program::{Block, Buffer, BufferId, Class, Phase, Program};

#[path = "boundary.rs"]
mod boundary;
#[path = "update.rs"]
mod update;
#[path = "validation.rs"]
mod validation;

/// A value in one layout.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    pub layout: Layout,
    pub buffer: BufferId,
}

/// Writes the Program of one pipeline rank, checked.
///
/// `observe`: also keep the results that only tests and tools read (`gradient:NAME`, `embedding_gradient`).
///
/// # Errors
/// A [`PlanError::Program`] if the result breaks a rule, which is a bug here.
pub fn lower(
    graph: &Graph,
    plan: &Plan,
    pipeline_rank: usize,
    chooser: &Chooser,
    observe: bool,
) -> Result<Program, PlanError> {
    let mut lowering = Lowering::new(graph, plan, pipeline_rank, chooser.clone(), observe);
    for id in graph.order() {
        if lowering.runs_here(graph.node(*id)) {
            lowering.node(*id);
        }
    }
    let program = lowering.finish();
    crate::check::check(graph, plan, &program)?;
    Ok(program)
}

pub(crate) struct Lowering<'a> {
    pub graph: &'a Graph,
    pub plan: &'a Plan,
    pub pipeline_rank: usize,
    pub buffers: Vec<Buffer>,
    chooser: Chooser,
    observe: bool,
    /// Whether the update comes before the norm over all stages is known.
    post_validates: bool,
    blocks: Vec<Block>,
    groups: Vec<GroupKey>,
    states: Vec<(String, BufferId)>,
    caches: Vec<(String, BufferId)>,
    derived: Vec<(String, BufferId)>,
    outputs: Vec<(String, BufferId)>,
    num_tickets: usize,
    /// The version of each value that other blocks read.
    /// A stage that receives a value has a version of its own, also from another stage of the same rank.
    canonical: HashMap<(ValueId, Option<usize>), Version>,
    /// The stage that is being lowered; none in the update.
    stage: Option<usize>,
    /// The version that the update reads of a value made by microbatches.
    step: HashMap<ValueId, Version>,
    /// Versions made in a block for that block.
    memo: HashMap<(usize, ValueId, Layout), BufferId>,
    consumers: HashMap<ValueId, Vec<NodeId>>,
}

impl<'a> Lowering<'a> {
    fn new(
        graph: &'a Graph,
        plan: &'a Plan,
        pipeline_rank: usize,
        chooser: Chooser,
        observe: bool,
    ) -> Lowering<'a> {
        let mut consumers: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        for id in graph.order() {
            for value in &graph.node(*id).inputs {
                consumers.entry(*value).or_default().push(*id);
            }
        }
        Lowering {
            graph,
            plan,
            pipeline_rank,
            chooser,
            observe,
            post_validates: graph.order().iter().any(|id| graph.node(*id).op == Op::AssumedScale),
            consumers,
            buffers: vec![],
            blocks: vec![],
            groups: vec![],
            states: vec![],
            caches: vec![],
            derived: vec![],
            outputs: vec![],
            num_tickets: 0,
            canonical: HashMap::new(),
            stage: None,
            step: HashMap::new(),
            memo: HashMap::new(),
        }
    }

    fn runs_here(&self, node: &Node) -> bool {
        if matches!(node.op, Op::State(_)) || node.op.is_source() {
            return false; // made where they are read
        }
        match node.place {
            Place::Layer(layer) => self.plan.pipeline_rank_of_layer(layer) == self.pipeline_rank,
            // A squared norm is counted once, by the first holder.
            Place::Holders(p) if node.op == Op::SumSquares => self.plan.holders(p)[0] == self.pipeline_rank,
            Place::Holders(p) => self.plan.holders(p).contains(&self.pipeline_rank),
            Place::Everywhere => true,
        }
    }

    // ---- blocks, buffers, groups ----

    fn phase(&self, role: Role) -> Phase {
        let split = self.plan.schedule.splits_backward();
        match role {
            Role::Forward => Phase::Forward,
            Role::BackwardInput if split => Phase::BackwardInput,
            Role::BackwardWeight if split => Phase::BackwardWeight,
            Role::BackwardInput | Role::BackwardWeight => Phase::Backward,
            Role::Update => Phase::Update,
        }
    }

    fn block_of(&mut self, node: &Node) -> usize {
        let stage = match (node.role, node.place) {
            (Role::Update, _) => None,
            (_, Place::Layer(layer)) => Some(self.plan.stage_of_layer(layer)),
            _ => unreachable!("`{}`: only updates run outside layers", node.name),
        };
        self.block(stage, self.phase(node.role))
    }

    fn block(&mut self, stage: Option<usize>, phase: Phase) -> usize {
        if let Some(found) = self.blocks.iter().position(|b| b.stage == stage && b.phase == phase) {
            return found;
        }
        self.blocks.push(Block { stage, phase, instructions: vec![] });
        self.blocks.len() - 1
    }

    pub(crate) fn emit(&mut self, block: usize, instruction: Instruction) {
        self.blocks[block].instructions.push(instruction);
    }

    pub(crate) fn ticket(&mut self) -> usize {
        self.num_tickets += 1;
        self.num_tickets - 1
    }

    pub(crate) fn group(&mut self, key: GroupKey) -> usize {
        if let Some(found) = self.groups.iter().position(|g| *g == key) {
            return found;
        }
        self.groups.push(key);
        self.groups.len() - 1
    }

    pub(crate) fn buffer_dims(&self, buffer: BufferId) -> Vec<Dim> {
        self.buffers[buffer.index()].dims.clone()
    }

    /// A buffer of its own for `value` in `layout`.
    pub(crate) fn new_buffer(&mut self, value: ValueId, dims: &[Dim], layout: Layout) -> BufferId {
        let dtype = match self.graph.value(value).value_type {
            ValueType::Float => self.plan.float,
            ValueType::Narrow => self.plan.narrow,
            ValueType::Int => DType::I32,
        };
        let len = self.plan.local_len(dims, &layout);
        // Room for a gather of flat shards, whose sum of lengths is rounded up.
        let flat = self.plan.zero > 0 && layout.flat_axis().is_none();
        let capacity = if flat { len.next_multiple_of(self.plan.mesh.size(Axis::Dp)) } else { len };
        let id = BufferId(self.buffers.len() as u32);
        self.buffers.push(Buffer {
            name: self.graph.producer(value).name.clone(),
            dims: dims.to_vec(),
            layout,
            dtype,
            len,
            capacity,
            packed: false,
            class: Class::Temp,
            storage: id,
            offset: 0,
        });
        id
    }

    /// Another view of the same storage: an operation in place, or a rename.
    pub(crate) fn alias(&mut self, of: BufferId, dims: &[Dim], layout: Layout) -> BufferId {
        let id = BufferId(self.buffers.len() as u32);
        let buffer = Buffer { dims: dims.to_vec(), layout, ..self.buffers[of.index()].clone() };
        self.buffers.push(buffer);
        id
    }

    fn set_class(&mut self, buffer: BufferId, class: Class) {
        let root = self.buffers[buffer.index()].storage;
        self.buffers[root.index()].class = class;
    }

    // ---- versions ----

    /// States, their casts and what updates make belong to the rank, everything else to a stage.
    fn key(&self, value: ValueId) -> (ValueId, Option<usize>) {
        let maker = self.graph.producer(value);
        let of_rank = maker.role == Role::Update || matches!(maker.op, Op::State(_) | Op::Cast);
        (value, if of_rank { None } else { self.stage })
    }

    fn canonical(&self, value: ValueId) -> Version {
        self.canonical[&self.key(value)]
    }

    fn set_canonical(&mut self, value: ValueId, version: Version) {
        self.canonical.insert(self.key(value), version);
    }

    /// What is known of `value` when a node of `role` reads it, if it exists on this rank.
    fn version(&mut self, value: ValueId, role: Role) -> Option<Version> {
        if role == Role::Update
            && let Some(version) = self.step.get(&value)
        {
            return Some(*version);
        }
        if let Some(version) = self.canonical.get(&self.key(value)) {
            return Some(*version);
        }
        let Op::State(state) = &self.graph.producer(value).op else { return None };
        let (name, kind) = (state.name.clone(), state.kind);
        let dims = self.graph.value(value).dims.clone();
        let layout = self.plan.state_layout(&dims, kind);
        let buffer = self.new_buffer(value, &dims, layout);
        self.set_class(buffer, Class::State);
        match kind {
            StateKind::Cache => self.caches.push((name, buffer)),
            StateKind::Parameter | StateKind::Moment => self.states.push((name, buffer)),
        }
        let version = Version { layout, buffer };
        self.set_canonical(value, version);
        Some(version)
    }

    /// `value` in exactly `target`, for block `block`.
    fn need(&mut self, block: usize, value: ValueId, role: Role, target: Layout) -> BufferId {
        if self.graph.producer(value).op.is_source() {
            return self.materialise(block, value, target);
        }
        let version = self.version(value, role).expect("operands are made before they are read");
        if version.layout == target {
            return version.buffer;
        }
        if let Some(buffer) = self.memo.get(&(block, value, target)) {
            return *buffer;
        }
        // What is owed is paid at home, once, for all readers in the block; a gradient that ZeRO shards has one reader,
        // and each rank is paid its part.
        let dims = self.graph.value(value).dims.clone();
        let resolved = Axis::SPACE.into_iter().fold(version.layout, |layout, axis| {
            match (version.layout.get(axis), target.get(axis)) {
                (Placement::Partial(_), Placement::Partial(_)) => layout,
                (Placement::Partial(_), flat @ Placement::Shard(Dim::FLAT)) => layout.with(axis, flat),
                (Placement::Partial(_), _) => layout.with(axis, self.plan.home(axis, &dims)),
                _ => layout,
            }
        });
        let may_overwrite = !self.read_while_owed(value);
        let from = match self.memo.get(&(block, value, resolved)) {
            Some(buffer) => Version { layout: resolved, buffer: *buffer },
            None if resolved != version.layout => {
                let home = self.redistribute(block, value, version, resolved, may_overwrite);
                self.memo.insert((block, value, resolved), home.buffer);
                home
            }
            None => version,
        };
        let to = self.redistribute(block, value, from, target, false);
        self.memo.insert((block, value, target), to.buffer);
        to.buffer
    }

    /// Whether, beside the reader that wants what is owed paid, another may want it as it is.
    fn read_while_owed(&self, value: ValueId) -> bool {
        let readers = self.consumers.get(&value).map_or(&[][..], Vec::as_slice);
        let passes_on = |id: &NodeId| match self.chooser {
            Chooser::Policy => matches!(self.graph.node(*id).op, Op::Add | Op::Rename { .. } | Op::Stack),
            Chooser::Random(_) => true,
        };
        readers.len() > 1 && readers.iter().any(passes_on)
    }

    fn materialise(&mut self, block: usize, value: ValueId, layout: Layout) -> BufferId {
        // Numbers that are given per step are kept for an update that has to be made again.
        let block = match (self.blocks[block].phase, &self.graph.producer(value).op) {
            (Phase::Apply | Phase::Validate, Op::Scalar) => self.block(None, Phase::Update),
            _ => block,
        };
        if let Some(buffer) = self.memo.get(&(block, value, layout)) {
            return *buffer;
        }
        let node = self.graph.producer(value);
        let dims = self.graph.value(value).dims.clone();
        let output = self.new_buffer(value, &dims, layout);
        let instruction = match &node.op {
            Op::Input => Instruction::Load { input: node.name.clone(), output },
            Op::Scalar => Instruction::Scalar { name: node.name.clone(), output },
            Op::Fill(fill) => Instruction::Fill { value: *fill, output },
            _ => unreachable!("not a source"),
        };
        self.emit(block, instruction);
        self.memo.insert((block, value, layout), output);
        output
    }

    // ---- nodes ----

    fn node(&mut self, id: NodeId) {
        let node = self.graph.node(id).clone();
        self.stage = self.stage_of(&node);
        if node.op == Op::Cast {
            return self.cast(node);
        }
        if self.stage.is_none() {
            return self.update_node(&node);
        }
        for value in &node.inputs {
            self.receive(*value);
        }
        let block = self.block_of(&node);
        self.compute(block, &node, &node.inputs);
        self.write_back(block, &node);
        for value in &node.outputs {
            self.leave(block, *value, &node);
        }
    }

    /// Casts a state where updates do not, in the layout in which it is stored: what is gathered later is narrow already.
    fn cast(&mut self, node: Node) {
        let block = self.block(None, Phase::Derive);
        let state = self.version(node.inputs[0], Role::Forward).expect("a state");
        let dims = self.graph.value(node.outputs[0]).dims.clone();
        let buffer = self.new_buffer(node.outputs[0], &dims, state.layout);
        self.set_class(buffer, Class::Derived);
        self.derived.push((node.name.clone(), buffer));
        self.set_canonical(node.outputs[0], Version { layout: state.layout, buffer });
        let (inputs, outputs) = (vec![state.buffer], vec![buffer]);
        self.emit(
            block,
            Instruction::Compute {
                op: Op::Cast,
                inputs,
                outputs,
                accumulate: false,
                name: node.name,
                when: When::Always,
            },
        );
    }

    /// Emits a node's operation on the given operands and records its results.
    fn compute(&mut self, block: usize, node: &Node, inputs: &[ValueId]) {
        let node = &Node { inputs: inputs.to_vec(), ..node.clone() };
        let signature = self.graph.signature(node);
        let choices: Vec<Choice> = Axis::ALL.into_iter().map(|a| self.choose(a, node, &signature)).collect();
        let layout_of = |place: &dyn Fn(Choice) -> Placement<Dim>| {
            Axis::ALL.into_iter().fold(Layout::WHOLE, |l, a| l.with(a, place(choices[a.index()])))
        };
        let mut operands = Vec::new();
        for (i, value) in inputs.iter().enumerate() {
            let dims = self.graph.value(*value).dims.clone();
            let target = layout_of(&|c| legal::operand_target(c, &signature, i, &dims));
            operands.push(self.need(block, *value, node.role, target));
        }
        let in_place = node.op.in_place();
        let mut outputs = Vec::new();
        for (i, value) in node.outputs.iter().enumerate() {
            let dims = self.graph.value(*value).dims.clone();
            let layout = layout_of(&|c| legal::result_placement(c, &signature, &dims));
            let buffer = match (in_place.iter().find(|(r, _)| *r == i), &node.op) {
                (Some((_, operand)), _) => operands[*operand],
                (None, Op::Rename { .. }) if self.consumers[&inputs[0]].len() == 1 => {
                    self.alias(operands[0], &dims, layout)
                }
                _ => self.new_buffer(*value, &dims, layout),
            };
            self.set_canonical(*value, Version { layout, buffer });
            outputs.push(buffer);
        }
        if let Op::Rename { .. } = node.op {
            let same = self.buffers[outputs[0].index()].storage == self.buffers[operands[0].index()].storage;
            let copy = Instruction::Copy { from: operands[0], into: outputs[0] };
            return if same {
            } else {
                self.emit(block, copy)
            };
        }
        let (op, name) = (node.op.clone(), node.name.clone());
        let operands = operands.into_iter().enumerate();
        let inputs =
            operands.filter(|(i, _)| !in_place.iter().any(|(_, o)| o == i)).map(|(_, b)| b).collect();
        self.emit(
            block,
            Instruction::Compute { op, inputs, outputs, accumulate: false, name, when: When::Always },
        );
    }

    fn choose(&mut self, axis: Axis, node: &Node, signature: &Signature) -> Choice {
        // The update sees all microbatches at once.
        let at_once = axis == Axis::Mb && node.role == Role::Update;
        if axis == Axis::Pp || at_once || !self.plan.divides(axis) {
            return Choice::Whole;
        }
        let mut operands = Vec::new();
        for value in &node.inputs {
            let source = self.graph.producer(*value).op.is_source();
            let dims = self.graph.value(*value).dims.clone();
            let placement = if source {
                Placement::Whole
            } else {
                self.version(*value, node.role)
                    .expect("operands are made before they are read")
                    .layout
                    .get(axis)
            };
            operands.push(Operand { dims, placement, source });
        }
        // Where an operand owes a sum and cannot pass it on, it will be at home when it is read.
        // If every operand can be made anywhere, each rank makes its part at home.
        let all_sources = operands.iter().all(|o| o.source);
        let at_home: Vec<Operand> = operands
            .iter()
            .map(|o| match o.placement {
                _ if all_sources => {
                    Operand { placement: self.plan.home(axis, &o.dims), source: false, dims: o.dims.clone() }
                }
                Placement::Partial(_) if axis != Axis::Mb => {
                    Operand { placement: self.plan.home(axis, &o.dims), ..o.clone() }
                }
                _ => o.clone(),
            })
            .collect();
        let choices = legal::legal(self.plan, axis, node, signature, &operands);
        assert!(!choices.is_empty(), "`{}` ({}) has no legal choice on {axis}", node.name, node.op.name());
        match &mut self.chooser {
            Chooser::Policy => {
                legal::preferred(self.plan, self.graph, axis, node, signature, &at_home, &choices)
            }
            Chooser::Random(state) => {
                // SplitMix64 (Steele et al., 2014): any generator will do, as long as ranks draw the same.
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                choices[((z ^ (z >> 31)) % choices.len() as u64) as usize]
            }
        }
    }

    // ---- the end ----

    fn finish(mut self) -> Program {
        let keep_always = ["statistics", "grad_norm", "logits", "embeddings"];
        for (name, value) in self.graph.outputs() {
            if !self.observe && !keep_always.contains(&name.as_str()) {
                continue;
            }
            let made_here = self.step.get(value).or_else(|| self.canonical.get(&(*value, None))).copied();
            if let Some(version) = made_here.filter(|_| self.is_step_value(*value)) {
                self.set_class(version.buffer, Class::Step);
                self.outputs.push((name.clone(), version.buffer));
            }
        }
        let validation = self.post_validates.then(|| self.validation());
        for block in self.blocks.iter_mut().filter(|block| block.stage.is_some()) {
            // An action waits for what it needs before it begins and gives what it made when it ends, as schedules
            // are checked and simulated.
            block.instructions.sort_by_key(|i| match i {
                Instruction::Recv { .. } => 0,
                Instruction::Send { .. } => 2,
                _ => 1,
            });
        }
        self.states.sort_by(|a, b| a.0.cmp(&b.0));
        self.caches.sort_by(|a, b| a.0.cmp(&b.0));
        self.derived.sort_by(|a, b| a.0.cmp(&b.0));
        let mut program = Program {
            pipeline_rank: self.pipeline_rank,
            float: self.plan.float,
            buffers: self.buffers,
            blocks: self.blocks,
            actions: self.plan.schedule.ranks[self.pipeline_rank].clone(),
            groups: self.groups,
            states: self.states,
            caches: self.caches,
            derived: self.derived,
            outputs: self.outputs,
            num_tickets: self.num_tickets,
            state_bytes: 0,
            step_bytes: 0,
            slots: vec![],
            passing: vec![],
            slots_bytes: 0,
            temp_bytes: 0,
            saved_bytes: 0,
            carried: vec![],
            validation: None,
            memory: Default::default(),
        };
        let moment = |name: &str| {
            self.graph.state(name).is_some_and(
                |v| matches!(&self.graph.producer(v).op, Op::State(s) if s.kind == StateKind::Moment),
            )
        };
        crate::fuse::fuse(&mut program);
        crate::reuse::reuse(&mut program);
        let local_shape = |b: &Buffer| self.plan.local_shape(&b.dims, &b.layout);
        crate::strips::strip(&mut program, self.plan.logits_rows(), local_shape);
        if self.plan.narrow == DType::BF16 && self.plan.mesh.size(Axis::Mb) > 1 {
            crate::pack::pack(&mut program, local_shape);
        }
        if self.plan.bucket_bytes > 0 {
            crate::carry::carry(&mut program);
        }
        crate::overlap::overlap(&mut program, self.plan.bucket_bytes);
        crate::buckets::bucket(&mut program, self.plan.bucket_bytes);
        if let Some((scale, assumed)) = validation {
            program.validation = Some(validation::of(self.graph, self.plan, &program, scale, assumed));
        }
        crate::addresses::assign(&mut program, moment);
        program
    }

    fn is_step_value(&self, value: ValueId) -> bool {
        self.step.contains_key(&value) || self.graph.producer(value).role == Role::Update
    }
}
