//! The static checker: re-derives from the instructions alone what every buffer holds, and refuses a Program in which
//! an operation reads what is not there. It shares the one rule with lowering, not its choices; it never executes.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use graph::{Dim, Graph, IndexKind, Op, Signature, StateKind};
use mesh::{Axis, AxisSet, Placement, Reduce};

use crate::error::PlanError;
use crate::instruction::{Collective, GroupKey, Instruction};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::program::{Block, BufferId, Phase, Program};

/// Checks one Program: every read finds its value in the stated layout, every operation is legal on every axis, every
/// collective is the one that its two layouts call for, nothing of a microbatch reaches the update but by
/// accumulation, tied parameters are summed over their holders, and whatever lives at the same time lies apart.
///
/// # Errors
/// The first broken rule, with its block and instruction.
pub fn check(graph: &Graph, plan: &Plan, program: &Program) -> Result<(), PlanError> {
    let mut checker = Checker {
        graph,
        plan,
        program,
        content: HashMap::new(),
        tied: HashMap::new(),
        waiting: BTreeMap::new(),
        in_flight: BTreeMap::new(),
    };
    for (_, buffer) in program.states.iter().chain(&program.caches) {
        checker.content.insert(*buffer, program.buffer(*buffer).layout);
    }
    let order = [
        Phase::Derive,
        Phase::Begin,
        Phase::Clear,
        Phase::Forward,
        Phase::Backward,
        Phase::BackwardInput,
        Phase::BackwardWeight,
        Phase::Update,
        Phase::Apply,
        Phase::Validate,
        Phase::Amend,
    ];
    // Blocks of a phase as they end: a later one may wait for what an earlier one started in its last run.
    let last_run: HashMap<usize, usize> =
        program.runs().iter().enumerate().map(|(at, run)| (run.block, at)).collect();
    for phase in order {
        let of_phase = program.blocks.iter().enumerate().filter(|(_, b)| b.phase == phase);
        let mut blocks: Vec<(usize, &Block)> = of_phase.collect();
        blocks.sort_by_key(|(at, _)| last_run.get(at));
        for (_, block) in blocks {
            checker.block(block)?;
        }
        if phase == Phase::Derive {
            checker.carried();
        }
    }
    if let Some(ticket) = program.carried.iter().find(|ticket| !checker.waiting.contains_key(*ticket)) {
        return Err(PlanError::Program {
            pipeline_rank: program.pipeline_rank,
            block: Phase::Update.name().to_owned(),
            index: 0,
            problem: format!("ticket {ticket} is not under way when the step ends"),
        });
    }
    crate::flight::check_flight(program)?;
    crate::apart::check_apart(program)
}

/// Checks the Programs of all pipeline ranks together: what one sends the other receives, of the same size and in the
/// same layout, for the same microbatches; and ranks that share a group start the same collectives in the same order.
///
/// # Errors
/// The first message or collective without its counterpart.
pub fn check_world<P: Borrow<Program>>(plan: &Plan, programs: &[P]) -> Result<(), PlanError> {
    let programs: Vec<&Program> = programs.iter().map(Borrow::borrow).collect();
    let mut sent = BTreeMap::new();
    let mut received = BTreeMap::new();
    for program in &programs {
        let here = program.pipeline_rank;
        for run in program.runs() {
            for (_, instruction) in run.instructions(&program.blocks[run.block]) {
                let (list, key, id) = match instruction {
                    Instruction::Send { input, to, tag } => {
                        (&mut sent, (here, *to, *tag, run.microbatch), *input)
                    }
                    Instruction::Recv { output, from, tag } => {
                        (&mut received, (*from, here, *tag, run.microbatch), *output)
                    }
                    _ => continue,
                };
                let buffer = program.buffer(id);
                list.insert(key, (buffer.len, buffer.dtype, buffer.layout));
            }
        }
    }
    let fail = |pipeline_rank: usize, problem: String| {
        Err(PlanError::Program { pipeline_rank, block: "messages".to_owned(), index: 0, problem })
    };
    for (key, value) in &sent {
        if received.get(key) != Some(value) {
            return fail(
                key.0,
                format!("value {} of microbatch {} is not received by {}", key.2, key.3, key.1),
            );
        }
    }
    if let Some(key) = received.keys().find(|k| !sent.contains_key(*k)) {
        return fail(key.1, format!("value {} of microbatch {} is never sent by {}", key.2, key.3, key.0));
    }
    collectives_across_stages(plan, &programs)
}

/// Groups that span pipeline ranks see the same collectives in the same order on each.
fn collectives_across_stages(plan: &Plan, programs: &[&Program]) -> Result<(), PlanError> {
    let sequence = |program: &Program, key: &GroupKey| -> Vec<(Collective, usize)> {
        let executed =
            program.runs().into_iter().flat_map(|run| run.instructions(&program.blocks[run.block]));
        executed
            .filter_map(|(_, i)| match i {
                Instruction::Start { collective, count, group, .. } if program.groups[*group] == *key => {
                    Some((*collective, *count))
                }
                _ => None,
            })
            .collect()
    };
    let keys: BTreeSet<&GroupKey> = programs.iter().flat_map(|p| &p.groups).collect();
    for key in keys {
        let spans = |rank: usize| match &key.pipeline_ranks {
            Some(ranks) => ranks.contains(&rank),
            None => key.axes.contains(Axis::Pp) && rank < plan.mesh.size(Axis::Pp),
        };
        let members: Vec<&Program> = programs.iter().copied().filter(|p| spans(p.pipeline_rank)).collect();
        let Some(first) = members.first().map(|p| sequence(p, key)) else { continue };
        if let Some(other) = members.iter().find(|p| sequence(p, key) != first) {
            return Err(PlanError::Program {
                pipeline_rank: other.pipeline_rank,
                block: "collectives".to_owned(),
                index: 0,
                problem: format!(
                    "group {key} starts other collectives than pipeline rank {}",
                    members[0].pipeline_rank
                ),
            });
        }
    }
    Ok(())
}

struct Checker<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    program: &'a Program,
    /// What each storage holds now.
    content: HashMap<BufferId, Layout>,
    /// Storages summed over the holders of a tied parameter.
    tied: HashMap<BufferId, Vec<usize>>,
    /// Results of what was started, with the layouts that they will have.
    waiting: BTreeMap<usize, Vec<(BufferId, Layout)>>,
    /// Storages in flight, with their ticket.
    in_flight: BTreeMap<BufferId, usize>,
}

type Problem = Result<(), String>;

impl Checker<'_> {
    fn block(&mut self, block: &Block) -> Result<(), PlanError> {
        for (index, instruction) in block.instructions.iter().enumerate() {
            let fail = |problem: String| PlanError::Program {
                pipeline_rank: self.program.pipeline_rank,
                block: block.phase.name().to_owned(),
                index,
                problem,
            };
            let (reads, writes) = instruction.uses();
            for id in reads.iter().chain(&writes) {
                if self.in_flight.contains_key(&self.storage(*id)) {
                    return Err(fail(format!("`{}` is in flight", self.program.buffer(*id).name)));
                }
                let layout = self.program.buffer(*id).layout;
                if block.phase >= Phase::Update && layout.get(Axis::Mb) != Placement::Whole {
                    return Err(fail(format!("`{}` belongs to a microbatch", self.program.buffer(*id).name)));
                }
            }
            match instruction {
                Instruction::Start { ticket, .. } => {
                    let results = self.collective(instruction).map_err(fail)?;
                    if let ([input], [output]) = (&reads[..], &writes[..])
                        && self.storage(*input) != self.storage(*output)
                    {
                        self.moved(*input, *output);
                    }
                    self.waiting.insert(*ticket, results);
                    let held: Vec<BufferId> = reads.iter().chain(&writes).map(|b| self.storage(*b)).collect();
                    self.in_flight.extend(held.into_iter().map(|root| (root, *ticket)));
                }
                Instruction::Wait { ticket, .. } => {
                    let results = self.waiting.remove(ticket);
                    let results = results.ok_or_else(|| fail(format!("ticket {ticket} was not started")))?;
                    for (output, layout) in results {
                        self.content.insert(self.storage(output), layout);
                    }
                    self.in_flight.retain(|_, t| t != ticket);
                }
                _ => self.instruction(instruction).map_err(fail)?,
            }
        }
        Ok(())
    }

    /// What the step before left under way is touched by nobody before it is waited for, and is a state then; and what it
    /// left out of date is made anew. Only a step that derives everything waits first.
    fn carried(&mut self) {
        let program = self.program;
        for copy in crate::flight::out_of_date(program) {
            self.content.remove(&copy);
        }
        for instruction in program.blocks.iter().flat_map(|b| &b.instructions) {
            let Instruction::Start { inputs, outputs, ticket, .. } = instruction else { continue };
            if program.carried.contains(ticket) {
                let results = outputs.iter().map(|id| (*id, self.layout(*id))).collect();
                self.waiting.insert(*ticket, results);
                let held = inputs.iter().chain(outputs).map(|id| (self.storage(*id), *ticket));
                self.in_flight.extend(held.collect::<Vec<_>>());
            }
        }
    }

    fn storage(&self, id: BufferId) -> BufferId {
        self.program.buffer(id).storage
    }

    fn layout(&self, id: BufferId) -> Layout {
        self.program.buffer(id).layout
    }

    /// The buffer's storage holds a value in the buffer's layout.
    fn readable(&self, id: BufferId) -> Problem {
        let buffer = self.program.buffer(id);
        match self.content.get(&buffer.storage) {
            None => Err(format!("`{}` is read before it is written", buffer.name)),
            Some(layout) if *layout != buffer.layout => {
                Err(format!("`{}` is read as [{}] but is [{layout}]", buffer.name, buffer.layout))
            }
            Some(_) => Ok(()),
        }
    }

    fn write(&mut self, id: BufferId) {
        self.content.insert(self.storage(id), self.layout(id));
        self.tied.remove(&self.storage(id));
    }

    /// `to` now holds what `from` holds, moved.
    fn moved(&mut self, from: BufferId, to: BufferId) {
        match self.tied.get(&self.storage(from)).cloned() {
            Some(holders) => self.tied.insert(self.storage(to), holders),
            None => self.tied.remove(&self.storage(to)),
        };
    }

    /// What was packed for products is read by products alone, as their right factor.
    fn order_of_elements(&self, instruction: &Instruction) -> Problem {
        let packed = |id: &BufferId| self.program.buffer(*id).packed;
        let (mut reads, writes) = instruction.uses();
        let packs = match instruction {
            Instruction::Compute { op: Op::Contract | Op::Linear, .. } => {
                reads.remove(1);
                false
            }
            Instruction::Compute { op, .. } => matches!(op, Op::Pack { .. }),
            Instruction::Strips { .. } => return Ok(()), // each of its computations is asked
            _ => false,
        };
        match reads.iter().find(|id| packed(id)) {
            Some(id) => Err(format!("`{}` is packed for products", self.program.buffer(*id).name)),
            None if writes.iter().any(|id| packed(id) != packs) => Err("only packing packs".to_owned()),
            None => Ok(()),
        }
    }

    fn instruction(&mut self, instruction: &Instruction) -> Problem {
        use Instruction as I;
        self.order_of_elements(instruction)?;
        match instruction {
            I::Compute { op, inputs, outputs, accumulate, name, .. } => {
                self.compute(op, inputs, outputs, *accumulate).map_err(|e| format!("{name}: {e}"))?;
                outputs.iter().for_each(|b| self.write(*b));
            }
            I::Strips { body, held, .. } => self.strips(instruction, body, *held)?,
            I::Load { output, .. } | I::Scalar { output, .. } | I::Recv { output, .. } => {
                if self.layout(*output).partial() != AxisSet::EMPTY {
                    return Err("a loaded value owes nothing".to_owned());
                }
                self.write(*output);
            }
            I::Fill { value, output } => {
                if *value != 0.0 && self.layout(*output).partial() != AxisSet::EMPTY {
                    return Err("only zero may stand for a part of a sum".to_owned());
                }
                self.write(*output);
            }
            I::Slice { input, output, axis, .. } => {
                self.readable(*input)?;
                let whole = self.layout(*output).with(*axis, Placement::Whole);
                if self.layout(*input) != whole
                    || !matches!(self.layout(*output).get(*axis), Placement::Shard(_))
                {
                    return Err("a slice turns Whole into Shard along its axis".to_owned());
                }
                self.write(*output);
                self.moved(*input, *output);
            }
            I::Pack { input, output, .. }
            | I::Unpack { input, output, .. }
            | I::Copy { from: input, into: output } => {
                self.readable(*input)?;
                if self.layout(*input) != self.layout(*output) {
                    return Err("a copy keeps the layout".to_owned());
                }
                self.write(*output);
                self.moved(*input, *output);
            }
            I::Send { input, .. } => self.readable(*input)?,
            I::Accumulate { from, into } => {
                self.readable(*from)?;
                self.readable(*into)?;
                // With one microbatch, only another use of the same parameter.
                let sum = match self.plan.divides(Axis::Mb) {
                    true => self.layout(*into).with(Axis::Mb, Placement::Partial(Reduce::Sum)),
                    false => self.layout(*into),
                };
                if self.layout(*from) != sum {
                    return Err("only parts of a sum over microbatches accumulate".to_owned());
                }
            }
            I::Store { from, into, .. } => {
                self.readable(*from)?;
                let whole = self.layout(*from).with(Axis::Mb, Placement::Whole);
                if whole != self.layout(*into)
                    || !matches!(self.layout(*from).get(Axis::Mb), Placement::Shard(_))
                {
                    return Err("only shards over microbatches are stored side by side".to_owned());
                }
                self.write(*into);
            }
            I::Entry { from, into, owners, .. } => {
                self.readable(*from)?;
                self.readable(*into)?;
                for axis in Axis::SPACE.into_iter().filter(|a| *a != Axis::Pp && self.plan.divides(*a)) {
                    let whole = self.layout(*from).get(axis) == Placement::Whole;
                    if whole != owners.contains(axis) || !self.layout(*into).get(axis).is_partial() {
                        return Err(format!("a scalar counts once along {axis}"));
                    }
                }
            }
            I::Start { .. } | I::Wait { .. } => unreachable!("handled by the block"),
        }
        Ok(())
    }

    /// The rows of one strip know nothing of others: every operation maps them, or adds over them into a result that
    /// nobody reads before the last strip. What is held is there nowhere else.
    fn strips(&mut self, whole: &Instruction, body: &[Instruction], held: BufferId) -> Problem {
        let dims = |id: BufferId| self.program.buffer(id).dims.as_slice();
        let rows = &dims(held)[..dims(held).len().saturating_sub(1)];
        let has_rows = |id: BufferId| dims(id).starts_with(rows);
        for (index, instruction) in body.iter().enumerate() {
            let Instruction::Compute { op, name, .. } = instruction else {
                return Err("strips are of computations alone".to_owned());
            };
            let (reads, writes) = instruction.uses();
            let mut all = reads.iter().chain(&writes);
            if let Some(id) = all.find(|id| !has_rows(**id) && dims(**id).iter().any(|d| rows.contains(d))) {
                return Err(format!(
                    "{name}: the rows of `{}` are not one block",
                    self.program.buffer(*id).name
                ));
            }
            let of = |ids: &[BufferId]| ids.iter().map(|id| dims(*id)).collect::<Vec<_>>();
            let signature = Signature::of(op, &of(&reads), &of(&writes));
            let maps = rows.iter().all(|d| matches!(signature.kind(*d), None | Some(IndexKind::Map)));
            let sums = *op == Op::Contract
                && writes
                    .iter()
                    .all(|id| !has_rows(*id) && self.program.buffer(*id).dtype == self.program.float);
            if !maps && !sums {
                return Err(format!("{name}: {} does not go strip by strip", op.name()));
            }
            let later = body[index + 1..].iter().flat_map(|i| i.uses().0);
            if sums && later.into_iter().any(|id| writes.iter().any(|w| self.storage(*w) == self.storage(id)))
            {
                return Err(format!("{name}: a sum over strips is read before the last one"));
            }
            if writes.iter().any(|id| !has_rows(*id)) && !sums {
                return Err(format!("{name}: each strip overwrites the result of the one before"));
            }
        }
        let outside = self.program.blocks.iter().flat_map(|b| &b.instructions).filter(|i| *i != whole);
        let root = self.storage(held);
        let touches = |i: &Instruction| {
            let (reads, writes) = i.uses();
            reads.iter().chain(&writes).any(|id| self.storage(*id) == root)
        };
        if outside.into_iter().any(touches) {
            return Err(format!("`{}` is there for some rows only", self.program.buffer(held).name));
        }
        body.iter().try_for_each(|instruction| self.instruction(instruction))?;
        self.content.remove(&root);
        Ok(())
    }

    /// A legal choice on every axis explains the layouts of operands and results.
    fn compute(&self, op: &Op, inputs: &[BufferId], outputs: &[BufferId], accumulate: bool) -> Problem {
        let in_place = op.in_place();
        let mut operands = inputs.to_vec();
        for (result, operand) in in_place {
            operands.insert((*operand).min(operands.len()), outputs[*result]);
        }
        operands.iter().try_for_each(|b| self.readable(*b))?;
        if accumulate {
            outputs.iter().try_for_each(|b| self.readable(*b))?;
        }
        let dims = |b: &BufferId| self.program.buffer(*b).dims.as_slice();
        let operand_dims: Vec<&[Dim]> = operands.iter().map(dims).collect();
        let result_dims: Vec<&[Dim]> = outputs.iter().map(dims).collect();
        let signature = Signature::of(op, &operand_dims, &result_dims);
        for axis in Axis::ALL.into_iter().filter(|a| *a != Axis::Pp && self.plan.divides(*a)) {
            let place = |b: &BufferId| self.layout(*b).get(axis);
            let result_place = |b: &BufferId| match place(b) {
                Placement::Whole if accumulate && axis == Axis::Mb => Placement::Partial(Reduce::Sum),
                p => p,
            };
            let explained = |choice: &Explanation| {
                operands
                    .iter()
                    .enumerate()
                    .all(|(i, b)| place(b) == choice.operand(&signature, i, operand_dims[i]))
                    && outputs
                        .iter()
                        .enumerate()
                        .all(|(i, b)| result_place(b) == choice.result(&signature, result_dims[i]))
            };
            let dims = signature.indices.iter().map(|(d, _)| *d).chain(signature.flat.map(|_| Dim::FLAT));
            let splits =
                dims.filter(|d| signature.kind(*d) != Some(IndexKind::Whole)).map(Explanation::Split);
            let passes = (0..signature.linear.len()).map(Explanation::Pass);
            if !std::iter::once(Explanation::Whole).chain(splits).chain(passes).any(|c| explained(&c)) {
                let layouts: Vec<String> =
                    operands.iter().chain(outputs).map(|b| format!("[{}]", self.layout(*b))).collect();
                return Err(format!("{} is not legal on {axis}: {}", op.name(), layouts.join(" ")));
            }
        }
        if matches!(op, Op::Adam { .. } | Op::Sgd { .. }) {
            self.summed_over_holders(inputs[0], outputs[0])?;
        }
        Ok(())
    }

    /// The gradient of a parameter that several stages hold was summed over exactly those.
    fn summed_over_holders(&self, gradient: BufferId, parameter: BufferId) -> Problem {
        let name = &self.program.buffer(parameter).name;
        let Some(value) = self.graph.state(name) else { return Ok(()) };
        let Op::State(state) = &self.graph.producer(value).op else { return Ok(()) };
        let holders = self.plan.holders(value).to_vec();
        if state.kind != StateKind::Parameter || holders.len() < 2 {
            return Ok(());
        }
        if self.tied.get(&self.storage(gradient)) == Some(&holders) {
            return Ok(());
        }
        Err(format!("the gradient of `{name}` is not summed over its holders {holders:?}"))
    }

    /// The results of a collective, with the layouts that it leaves behind.
    fn collective(&mut self, instruction: &Instruction) -> Result<Vec<(BufferId, Layout)>, String> {
        let Instruction::Start { collective, inputs, outputs, group, .. } = instruction else {
            unreachable!("called for starts")
        };
        let key = self.program.groups.get(*group).ok_or("the group does not exist")?.clone();
        if inputs.len() != outputs.len() {
            return Err(format!("{} operands have {} results", inputs.len(), outputs.len()));
        }
        let results = inputs.iter().zip(outputs).map(|(input, output)| {
            let after = self.redistributes(collective, &key, *input, *output)?;
            Ok((*output, after))
        });
        results.collect()
    }

    /// The layout that a collective over one buffer leaves behind.
    fn redistributes(
        &mut self,
        collective: &Collective,
        key: &GroupKey,
        input: BufferId,
        output: BufferId,
    ) -> Result<Layout, String> {
        let after = self.layout(output);
        if let (Collective::AllReduce(reduce), GroupKey { pipeline_ranks: Some(holders), .. }) =
            (collective, key)
        {
            self.readable(input)?;
            if *reduce != Reduce::Sum || self.tied.insert(self.storage(output), holders.clone()).is_some() {
                return Err("a tied gradient is summed over its holders once".to_owned());
            }
            return Ok(after);
        }
        if let Collective::AllReduce(reduce) = collective {
            let before = self.content.get(&self.storage(input)).copied().ok_or("nothing to reduce")?;
            for axis in Axis::SPACE {
                let expected = match key.axes.contains(axis) {
                    true => Placement::Partial(*reduce),
                    // The value of one stage, made whole by zeros elsewhere.
                    false => after.get(axis),
                };
                let shared = axis == Axis::Pp && before.get(axis) == Placement::Whole;
                if before.get(axis) != expected && !shared {
                    return Err(format!("all_reduce over {key} of [{before}] does not give [{after}]"));
                }
                if key.axes.contains(axis) && after.get(axis) != Placement::Whole {
                    return Err(format!("all_reduce over {key} leaves [{after}]"));
                }
            }
            return Ok(after);
        }
        self.readable(input)?;
        let before = self.layout(input);
        let [axis] = key.axes.iter().collect::<Vec<_>>()[..] else {
            return Err(format!("{collective:?} works along one axis, not {key}"));
        };
        let fits = match (collective, before.get(axis), after.get(axis)) {
            (Collective::AllGather, Placement::Shard(_), Placement::Whole) => true,
            (Collective::ReduceScatter(r), Placement::Partial(p), Placement::Shard(_)) => *r == p,
            (Collective::AllToAll, Placement::Shard(a), Placement::Shard(b)) => a != b,
            _ => false,
        };
        if !fits || before.with(axis, Placement::Whole) != after.with(axis, Placement::Whole) {
            return Err(format!("{collective:?} over {key} does not turn [{before}] into [{after}]"));
        }
        Ok(after)
    }
}

/// The rule, written a second time from the design rather than called from lowering.
enum Explanation {
    Whole,
    Split(Dim),
    Pass(usize),
}

impl Explanation {
    fn operand(&self, signature: &Signature, position: usize, dims: &[Dim]) -> Placement<Dim> {
        match self {
            Explanation::Split(dim) if dims.contains(dim) || (*dim == Dim::FLAT && !dims.is_empty()) => {
                Placement::Shard(*dim)
            }
            Explanation::Pass(set) if signature.linear[*set].contains(&position) => {
                Placement::Partial(Reduce::Sum)
            }
            _ => Placement::Whole,
        }
    }

    fn result(&self, signature: &Signature, dims: &[Dim]) -> Placement<Dim> {
        match self {
            Explanation::Whole => Placement::Whole,
            Explanation::Pass(_) => Placement::Partial(Reduce::Sum),
            Explanation::Split(dim) if dims.contains(dim) || (*dim == Dim::FLAT && !dims.is_empty()) => {
                Placement::Shard(*dim)
            }
            Explanation::Split(dim) => match signature.kind(*dim) {
                Some(IndexKind::ReduceMax) => Placement::Partial(Reduce::Max),
                Some(IndexKind::ReduceSum) => Placement::Partial(Reduce::Sum),
                // A result may only lack a dim that is reduced: no layout matches this.
                _ => Placement::Shard(*dim),
            },
        }
    }
}
