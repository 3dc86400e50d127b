//! The one rule: what an operation may do on one axis, which of it the policy prefers, and what follows for operands
//! and results. Legality is correctness, policy is only speed.

use graph::{Dim, Graph, IndexKind, Node, Op, Role, Signature};
use mesh::{Axis, Placement, Reduce};

use crate::plan::{Plan, StateHome};

/// What an operation does on one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// Every rank does the same.
    Whole,
    /// Each rank does its part of a dim.
    Split(Dim),
    /// The linear operands of this set (a position in [`Signature::linear`]) stay Partial, and so do the results.
    Pass(usize),
}

/// Who picks among the legal choices.
#[derive(Debug, Clone)]
pub enum Chooser {
    /// The policy of the design.
    Policy,
    /// Any legal choice, drawn from a seed: a test of legality.
    Random(u64),
}

/// An operand as one axis sees it.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    /// Its dims.
    pub dims: Vec<Dim>,
    /// Its present placement.
    pub placement: Placement<Dim>,
    /// Any part can be made locally.
    pub source: bool,
}

impl Operand {
    fn has(&self, dim: Dim) -> bool {
        if dim == Dim::FLAT { !self.dims.is_empty() } else { self.dims.contains(&dim) }
    }
}

/// Placement of an operand or result with `dims` under a choice on one axis; `None` if the choice is illegal for it.
pub(crate) fn operand_target(
    choice: Choice,
    signature: &Signature,
    position: usize,
    dims: &[Dim],
) -> Placement<Dim> {
    match choice {
        Choice::Whole => Placement::Whole,
        Choice::Split(dim) if has(dims, dim) => Placement::Shard(dim),
        Choice::Split(_) => Placement::Whole,
        Choice::Pass(set) if signature.linear[set].contains(&position) => Placement::Partial(Reduce::Sum),
        Choice::Pass(_) => Placement::Whole,
    }
}

/// Placement of a result with `dims` under a choice on one axis.
pub(crate) fn result_placement(choice: Choice, signature: &Signature, dims: &[Dim]) -> Placement<Dim> {
    match choice {
        Choice::Whole => Placement::Whole,
        Choice::Split(dim) if has(dims, dim) => Placement::Shard(dim),
        Choice::Split(dim) => Placement::Partial(match signature.kind(dim) {
            Some(IndexKind::ReduceMax) => Reduce::Max,
            _ => Reduce::Sum,
        }),
        Choice::Pass(_) => Placement::Partial(Reduce::Sum),
    }
}

fn has(dims: &[Dim], dim: Dim) -> bool {
    if dim == Dim::FLAT { !dims.is_empty() } else { dims.contains(&dim) }
}

/// All legal choices of `node` on `axis`.
pub(crate) fn legal(
    plan: &Plan,
    axis: Axis,
    node: &Node,
    signature: &Signature,
    operands: &[Operand],
) -> Vec<Choice> {
    let mut choices = Vec::new();
    // Time has no gather and no slice: what a microbatch has is what the operation gets.
    let reachable = |operand: &Operand, target: Placement<Dim>| {
        let now = if operand.source { plan.home(Axis::Mb, &operand.dims) } else { operand.placement };
        axis != Axis::Mb || now == target
    };
    let fits = |choice: Choice| {
        operands.iter().enumerate().all(|(i, operand)| {
            let target = operand_target(choice, signature, i, &operand.dims);
            if target.is_partial() { operand.placement == target } else { reachable(operand, target) }
        })
    };
    let candidates =
        signature.indices.iter().map(|(d, k)| (*d, *k)).chain(signature.flat.map(|k| (Dim::FLAT, k)));
    for (dim, kind) in candidates {
        let splittable = kind != IndexKind::Whole && plan.may_split(axis, dim);
        let in_update = dim != Dim::FLAT || node.role == Role::Update;
        if splittable && in_update && fits(Choice::Split(dim)) {
            choices.push(Choice::Split(dim));
        }
    }
    for (set, members) in signature.linear.iter().enumerate() {
        let others_owe =
            operands.iter().enumerate().any(|(i, o)| o.placement.is_partial() && !members.contains(&i));
        if !others_owe && !members.is_empty() && fits(Choice::Pass(set)) {
            choices.push(Choice::Pass(set));
        }
    }
    if fits(Choice::Whole) {
        choices.push(Choice::Whole);
    }
    choices
}

/// Home of the first result of a node along an axis.
fn result_home(plan: &Plan, graph: &Graph, node: &Node, axis: Axis) -> Placement<Dim> {
    let dims = &graph.value(node.outputs[0]).dims;
    if node.role == Role::Update && !dims.is_empty() {
        return plan.state_home(axis, dims, StateHome::Optimizer);
    }
    plan.home(axis, dims)
}

/// The policy: (0) keep what is owed through additions; (1) operands split on one reduced index stay so; (2) else the
/// result's home; (3) else an already split reduced index; (4) else whole.
pub(crate) fn preferred(
    plan: &Plan,
    graph: &Graph,
    axis: Axis,
    node: &Node,
    signature: &Signature,
    operands: &[Operand],
    choices: &[Choice],
) -> Choice {
    let pass = choices.iter().find(|c| matches!(c, Choice::Pass(_)));
    if let (Some(pass), Op::Add | Op::Rename { .. }) = (pass, &node.op) {
        return *pass;
    }
    let reduced = |dim: Dim| matches!(signature.kind(dim), Some(IndexKind::ReduceSum | IndexKind::ReduceMax));
    let splits = || choices.iter().filter_map(|c| if let Choice::Split(d) = c { Some(*d) } else { None });
    let split_on = |dim: Dim, o: &Operand| o.placement == Placement::Shard(dim);
    let all_split = splits().find(|d| {
        let mut having = operands.iter().filter(|o| o.has(*d) && !o.source).peekable();
        reduced(*d) && having.peek().is_some() && having.all(|o| split_on(*d, o))
    });
    let home = match result_home(plan, graph, node, axis) {
        Placement::Shard(d) => splits().find(|s| *s == d),
        _ => None,
    };
    let some_split = splits().find(|d| reduced(*d) && operands.iter().any(|o| split_on(*d, o)));
    let order =
        if signature.prefers_home { [home, all_split, some_split] } else { [all_split, home, some_split] };
    let split = order.into_iter().flatten().next().map(Choice::Split);
    // On the microbatch axis there may be a single legal choice, whatever the preference.
    split.or_else(|| choices.contains(&Choice::Whole).then_some(Choice::Whole)).unwrap_or(choices[0])
}
