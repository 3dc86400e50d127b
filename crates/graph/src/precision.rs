//! Mixed precision as a rewrite: activations and their cotangents become narrow, parameters are cast once per step,
//! and everything that sums over many elements stays wide: statistics, losses, gradients of parameters, the update.

use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, NodeId, Place, Role, ValueId, ValueType};
use crate::op::{Op, StateKind};

/// Rewrites a step, whole with backward and update, to compute in the plan's narrow type (Micikevicius et al., 2018).
///
/// Matrices and tables are read through a [`Op::Cast`] of the parameter; vectors (gains and biases) are read as they
/// are, for they are small. Inputs and numbers that enter products or sums are made narrow where they are loaded. Whatever
/// the update reads stays wide, so gradients accumulate unrounded. A result that is only given to every rank is wide where
/// it is a product, which sums in the wide type anyway, and else in the type in which it was computed.
pub fn mix_precision(graph: &mut Graph) {
    let read_by_update: HashSet<ValueId> = nodes(graph)
        .map(|id| graph.node(id))
        .filter(|node| node.role == Role::Update)
        .flat_map(|node| node.inputs.iter().filter(|input| !is_shown(graph, &node.op, **input)))
        .copied()
        .collect();
    // What is kept of activations is kept as they are.
    let caches: Vec<ValueId> =
        graph.states().filter(|(_, s)| s.kind == StateKind::Cache).map(|(v, _)| v).collect();
    caches.into_iter().for_each(|cache| graph.set_value_type(cache, ValueType::Narrow));
    let mut casts: HashMap<ValueId, ValueId> = HashMap::new();
    let mut made = Vec::new();
    for id in graph.order().to_vec() {
        let node = graph.node(id).clone();
        if node.role == Role::Update {
            if node.op == Op::Share {
                let value_type = graph.value(node.inputs[0]).value_type;
                graph.set_value_type(node.outputs[0], value_type);
            }
            continue;
        }
        for (i, input) in node.inputs.iter().enumerate() {
            if graph.producer(*input).op.is_source()
                && matches!(node.op, Op::Contract | Op::Multiply | Op::Add)
                && graph.value(*input).value_type == ValueType::Float
            {
                graph.set_value_type(*input, ValueType::Narrow);
            }
            let is_state = matches!(graph.producer(*input).op, Op::State(_));
            if !is_state || !casts_operand(&node.op, i) {
                continue;
            }
            let cast = *casts.entry(*input).or_insert_with(|| {
                let id = cast(graph, *input);
                made.push(id);
                graph.node(id).outputs[0]
            });
            graph.node_mut(id).inputs[i] = cast;
        }
        let first = node.inputs.first().map(|v| graph.value(*v).value_type);
        for (i, output) in node.outputs.iter().enumerate() {
            if is_narrow(&node.op, i, first) && !read_by_update.contains(output) {
                graph.set_value_type(*output, ValueType::Narrow);
            }
        }
    }
    // Parameters have no operands: before everything else is a legal place for them and their casts.
    let states = nodes(graph).filter(|id| matches!(graph.node(*id).op, Op::State(_)));
    let rest = nodes(graph).filter(|id| !matches!(graph.node(*id).op, Op::State(_)));
    let order = states.chain(made).chain(rest).collect();
    graph.set_order(order);
}

fn nodes(graph: &Graph) -> impl Iterator<Item = NodeId> + '_ {
    graph.order().iter().copied()
}

fn cast(graph: &mut Graph, parameter: ValueId) -> NodeId {
    let name = format!("{}.cast", graph.producer(parameter).name);
    let dims = graph.value(parameter).dims.clone();
    graph.set_role(Role::Forward);
    graph.set_place(Place::Holders(parameter));
    graph.insert(Op::Cast, name, &[parameter], &[(&dims, ValueType::Narrow)])
}

/// Whether `op` only gives a value to every rank, and the value is no product.
fn is_shown(graph: &Graph, op: &Op, value: ValueId) -> bool {
    *op == Op::Share && graph.producer(value).op != Op::Contract
}

/// Whether an operation reads its `i`th operand in the narrow type even if it is a parameter.
fn casts_operand(op: &Op, i: usize) -> bool {
    match op {
        Op::Contract => true,
        Op::Embedding { .. } => i == 0,
        _ => false,
    }
}

/// Whether the `i`th result is an activation or a cotangent of one. `first`: type of the first operand.
fn is_narrow(op: &Op, i: usize, first: Option<ValueType>) -> bool {
    match op {
        Op::Embedding { .. }
        | Op::Contract
        | Op::Add
        | Op::Norm { .. }
        | Op::NormBackwardInput { .. }
        | Op::Rotary { .. }
        | Op::AttentionBackward { .. }
        | Op::CacheWrite
        | Op::CachedAttention { .. }
        | Op::Gelu
        | Op::GeluBackward
        | Op::Pointwise(_)
        | Op::PointwiseBackward(_)
        | Op::Multiply
        | Op::SwiGlu
        | Op::SwiGluBackward
        | Op::Dropout { .. }
        | Op::SumExpBackward { .. } => true,
        // The second result is a statistic.
        Op::Attention { .. } | Op::RelativeAttention { .. } => i == 0,
        // The last result is the gradient of a parameter.
        Op::RelativeAttentionBackward { .. } => i < 3,
        Op::Rename { .. } | Op::WeightedSum | Op::Spread => first == Some(ValueType::Narrow),
        _ => false,
    }
}
