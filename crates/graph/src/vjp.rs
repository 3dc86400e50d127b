//! Reverse-mode differentiation as more graph. Each operation's derivative is one arm of one `match`; no rank, no
//! memory and no order of execution is decided here.

use std::collections::HashMap;

use crate::graph::{Dim, Graph, GraphError, Node, NodeId, Role, ValueId, ValueType};
use crate::op::{Op, StateKind};

/// The cotangents that a backward pass wrote.
#[derive(Debug, Clone, Default)]
pub struct Cotangents {
    /// For each leaf that was asked for: one gradient per use, in the order of the uses' layers. A tied table has two.
    pub leaves: Vec<(ValueId, Vec<ValueId>)>,
    /// For each other value on the way: its cotangent.
    pub values: HashMap<ValueId, ValueId>,
}

/// Writes the backward of `value` (with cotangent `seed`) with respect to the state tensors in `leaves`.
///
/// Only what the leaves need is written: a frozen parameter costs no W, and layers before the first leaf no I.
/// Cotangents of a value with several uses are added in the place of a use, never of the maker, so that a pipeline
/// sends one message.
///
/// # Errors
/// [`GraphError::NoDerivative`] if an operation in between has none.
pub fn vjp(
    graph: &mut Graph,
    value: ValueId,
    seed: ValueId,
    leaves: &[ValueId],
) -> Result<Cotangents, GraphError> {
    let needed = depends_on(graph, leaves);
    let mut cotangents =
        Cotangents { leaves: leaves.iter().map(|l| (*l, vec![])).collect(), ..Default::default() };
    cotangents.values.insert(value, seed);
    let forward: Vec<NodeId> = graph.order().iter().rev().copied().collect();
    for id in forward {
        let node = graph.node(id).clone();
        if node.role != Role::Forward || !node.outputs.iter().any(|v| cotangents.values.contains_key(v)) {
            continue;
        }
        let d_first =
            node.outputs.iter().find_map(|v| cotangents.values.get(v)).copied().expect("checked above");
        let d_outputs: Vec<Option<ValueId>> =
            node.outputs.iter().map(|v| cotangents.values.get(v).copied()).collect();
        graph.set_place(node.place);
        graph.set_role(Role::BackwardInput);
        let wants: Vec<bool> = node.inputs.iter().map(|v| needed[v.index()]).collect();
        if !wants.contains(&true) {
            continue;
        }
        let d_inputs = derivative(graph, &node, d_first, &d_outputs, &wants)?;
        for (input, d_input) in node.inputs.iter().zip(d_inputs) {
            let Some(d_input) = d_input else { continue };
            if let Some((_, uses)) = cotangents.leaves.iter_mut().find(|(l, _)| l == input) {
                uses.insert(0, d_input);
            } else if let Some(&sofar) = cotangents.values.get(input) {
                let name = format!("{}.d", graph.producer(*input).name);
                let dims = graph.value(*input).dims.clone();
                let add = graph.push(Op::Add, name, &[sofar, d_input], &[(&dims, ValueType::Float)]);
                cotangents.values.insert(*input, graph.node(add).outputs[0]);
            } else {
                cotangents.values.insert(*input, d_input);
            }
        }
    }
    Ok(cotangents)
}

/// For each value, whether it depends on one of `leaves`.
fn depends_on(graph: &Graph, leaves: &[ValueId]) -> Vec<bool> {
    let mut needed = vec![false; graph.values().len()];
    for leaf in leaves {
        debug_assert!(
            matches!(&graph.producer(*leaf).op, Op::State(s) if s.kind == StateKind::Parameter),
            "a leaf is a parameter"
        );
        needed[leaf.index()] = true;
    }
    for id in graph.order() {
        let node = graph.node(*id);
        if node.op != Op::RowMax && node.inputs.iter().any(|v| needed[v.index()]) {
            node.outputs.iter().for_each(|v| needed[v.index()] = true);
        }
    }
    needed
}

/// Cotangents of the wanted operands of `node`.
fn derivative(
    graph: &mut Graph,
    node: &Node,
    dy: ValueId,
    d_outputs: &[Option<ValueId>],
    wants: &[bool],
) -> Result<Vec<Option<ValueId>>, GraphError> {
    let x = &node.inputs;
    let dims = |graph: &Graph, i: usize| graph.value(x[i]).dims.clone();
    let name = |suffix: &str| format!("{}.{suffix}", node.name);
    let mut result = vec![None; x.len()];
    let single = |graph: &mut Graph, op: Op, suffix: &str, inputs: &[ValueId], like: &[Dim]| {
        let id = graph.push(op, name(suffix), inputs, &[(like, ValueType::Float)]);
        graph.node(id).outputs[0]
    };
    match &node.op {
        Op::Embedding { padding } => {
            let like = dims(graph, 0);
            let op = Op::EmbeddingBackward { padding: *padding };
            result[0] = Some(single(graph, op, "d_table", &[x[1], dy], &like));
        }
        Op::Contract => {
            for (i, suffix) in [(0, "d_left"), (1, "d_right")] {
                if wants[i] {
                    let like = dims(graph, i);
                    let full = name(suffix);
                    result[i] = Some(graph.contract(&full, dy, x[1 - i], &like));
                }
            }
        }
        Op::WeightedSum => {
            let like = dims(graph, 0);
            result[0] = Some(single(graph, Op::Spread, "d_rows", &[dy, x[1]], &like));
        }
        Op::Add => {
            let full = dims(graph, 0);
            for i in (0..x.len()).filter(|i| wants[*i]) {
                let like = dims(graph, i);
                let same = like == full;
                result[i] = Some(if same { dy } else { single(graph, Op::Sum, "d_bias", &[dy], &like) });
            }
        }
        Op::Norm { kind, eps } => {
            let (kind, eps) = (*kind, *eps);
            let (like, gain) = (dims(graph, 0), dims(graph, 1));
            if wants[0] {
                let op = Op::NormBackwardInput { kind, eps };
                result[0] = Some(single(graph, op, "d_input", &[x[0], x[1], dy], &like));
            }
            if wants[1] {
                let op = Op::NormBackwardWeight { kind, eps };
                result[1] = Some(single(graph, op, "d_gain", &[x[0], dy], &gain));
            }
            if wants.get(2) == Some(&true) {
                result[2] = Some(single(graph, Op::Sum, "d_bias", &[dy], &gain));
            }
        }
        Op::Rotary { frequencies, factor, inverse } => {
            let like = dims(graph, 0);
            let op = Op::Rotary { frequencies: frequencies.clone(), factor: *factor, inverse: !inverse };
            result[0] = Some(single(graph, op, "d_input", &[dy, x[1]], &like));
        }
        Op::Attention { causal, scale, dropout, key } => {
            let op =
                Op::AttentionBackward { causal: *causal, scale: *scale, dropout: *dropout, key: key.clone() };
            let like: Vec<Vec<Dim>> = (0..3).map(|i| dims(graph, i)).collect();
            let results: Vec<(&[Dim], ValueType)> = like.iter().map(|d| (&d[..], ValueType::Float)).collect();
            let mut inputs = vec![x[0], x[1], x[2], node.outputs[0], node.outputs[1], dy];
            inputs.extend(&x[3..]);
            let id = graph.push(op, name("d_qkv"), &inputs, &results);
            for (d_input, v) in result.iter_mut().zip(&graph.node(id).outputs) {
                *d_input = Some(*v);
            }
        }
        Op::RelativeAttention { causal, scale, buckets, dropout, key } => {
            let op = Op::RelativeAttentionBackward {
                causal: *causal,
                scale: *scale,
                buckets: *buckets,
                dropout: *dropout,
                key: key.clone(),
            };
            let like: Vec<Vec<Dim>> = (0..4).map(|i| dims(graph, i)).collect();
            let results: Vec<(&[Dim], ValueType)> = like.iter().map(|d| (&d[..], ValueType::Float)).collect();
            let mut inputs = vec![x[0], x[1], x[2], x[3], node.outputs[0], node.outputs[1], dy];
            inputs.extend(&x[4..]);
            let id = graph.push(op, name("d_qkv"), &inputs, &results);
            for (d_input, v) in result.iter_mut().zip(&graph.node(id).outputs) {
                *d_input = Some(*v);
            }
        }
        Op::Gelu => {
            let like = dims(graph, 0);
            result[0] = Some(single(graph, Op::GeluBackward, "d_input", &[x[0], dy], &like));
        }
        Op::Pointwise(kind) => {
            let (like, op) = (dims(graph, 0), Op::PointwiseBackward(*kind));
            result[0] = Some(single(graph, op, "d_input", &[x[0], dy], &like));
        }
        Op::Multiply => {
            let like = dims(graph, 0);
            for (i, suffix) in [(0, "d_left"), (1, "d_right")] {
                if wants[i] {
                    result[i] = Some(single(graph, Op::Multiply, suffix, &[dy, x[1 - i]], &like));
                }
            }
        }
        Op::SwiGlu => {
            let like = dims(graph, 0);
            let results: [(&[Dim], ValueType); 2] = [(&like, ValueType::Float), (&like, ValueType::Float)];
            let id = graph.push(Op::SwiGluBackward, name("d_input"), &[x[0], x[1], dy], &results);
            result = graph.node(id).outputs.iter().map(|v| Some(*v)).collect();
        }
        Op::Dropout { p, key } => {
            let like = dims(graph, 0);
            let op = Op::Dropout { p: *p, key: key.clone() };
            result[0] = Some(single(graph, op, "d_input", &[dy], &like));
        }
        Op::Rename { from, to } => {
            let like = dims(graph, 0);
            result[0] = Some(single(graph, Op::Rename { from: *to, to: *from }, "d_input", &[dy], &like));
        }
        Op::SumExp => {
            let like = dims(graph, 0);
            let both = d_outputs.iter().copied().collect::<Option<Vec<_>>>();
            let Some(both) = both else { return Err(no_derivative(node)) };
            let inputs = [x[0], x[1], x[2], both[0], both[1]];
            result[0] =
                Some(single(graph, Op::SumExpBackward { in_place: false }, "d_logits", &inputs, &like));
        }
        Op::TokenLoss => {
            let like = dims(graph, 1);
            let results: [(&[Dim], ValueType); 2] = [(&like, ValueType::Float), (&like, ValueType::Float)];
            let id = graph.push(Op::TokenLossBackward, name("d_input"), &[x[1], x[3], dy], &results);
            result[1] = Some(graph.node(id).outputs[0]);
            result[2] = Some(graph.node(id).outputs[1]);
        }
        _ => return Err(no_derivative(node)),
    }
    Ok(result)
}

fn no_derivative(node: &Node) -> GraphError {
    GraphError::NoDerivative { node: node.name.clone(), op: node.op.name() }
}
