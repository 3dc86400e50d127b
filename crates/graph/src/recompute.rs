//! Recompute as a rewrite: reads that the backward makes of a layer's interior values go to clones made in the
//! backward. A clone keeps its name, hence its random numbers, so the result is bit-identical.

use std::collections::HashMap;

use crate::graph::{Graph, NodeId, Place, Role, ValueId, ValueType};
use crate::op::Op;

/// What is computed again instead of kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Recompute {
    /// Keep everything that the backward reads.
    #[default]
    None,
    /// Compute again what is cheap for its size: norms, activations, dropout, rotations. (Attention is fused and keeps
    /// no score matrix, so there is nothing more to gain in it.)
    Selective,
    /// Keep only each layer's input.
    Full,
}

/// Rewrites the graph, whose backward has been written and whose roles are assigned.
///
/// `layers` are the layers to rewrite (their `Place`); the embedding and the head are best left out.
pub fn recompute(graph: &mut Graph, kind: Recompute, layers: std::ops::Range<usize>) {
    if kind == Recompute::None {
        return;
    }
    let mut clones = Clones { graph, kind, of: HashMap::new() };
    let mut order = Vec::new();
    for id in clones.graph.order().to_vec() {
        let node = clones.graph.node(id);
        let backward = matches!(node.role, Role::BackwardInput | Role::BackwardWeight);
        if backward && matches!(node.place, Place::Layer(l) if layers.contains(&l)) {
            for i in 0..node.inputs.len() {
                let value = clones.graph.node(id).inputs[i];
                let clone = clones.of(value, &mut order);
                clones.graph.node_mut(id).inputs[i] = clone;
            }
        }
        order.push(id);
    }
    graph.set_order(order);
}

struct Clones<'g> {
    graph: &'g mut Graph,
    kind: Recompute,
    of: HashMap<ValueId, ValueId>,
}

impl Clones<'_> {
    /// The clone of `value` if it is one to recompute (cloning its operands first), else `value` itself.
    fn of(&mut self, value: ValueId, order: &mut Vec<NodeId>) -> ValueId {
        if let Some(clone) = self.of.get(&value) {
            return *clone;
        }
        let node = self.graph.producer(value).clone();
        let interior = node.role == Role::Forward
            && !node.outputs.iter().any(|v| self.graph.stream().contains(v))
            && !matches!(node.op, Op::State(_))
            && !node.op.is_source();
        let chosen = match self.kind {
            Recompute::None => false,
            Recompute::Full => true,
            Recompute::Selective => matches!(
                node.op,
                Op::Norm { .. }
                    | Op::Gelu
                    | Op::Pointwise(_)
                    | Op::Multiply
                    | Op::SwiGlu
                    | Op::Dropout { .. }
                    | Op::Rotary { .. }
            ),
        };
        if !interior || !chosen {
            return value;
        }
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| self.of(*v, order)).collect();
        let dims: Vec<_> = node.outputs.iter().map(|v| self.graph.value(*v).dims.clone()).collect();
        let results: Vec<(&[_], ValueType)> = dims.iter().map(|d| (&d[..], ValueType::Float)).collect();
        self.graph.set_place(node.place);
        self.graph.set_role(Role::BackwardInput);
        let id = self.graph.insert(node.op.clone(), node.name.clone(), &inputs, &results);
        order.push(id);
        let outputs = self.graph.node(id).outputs.clone();
        for (old, new) in node.outputs.iter().zip(&outputs) {
            self.of.insert(*old, *new);
        }
        self.of[&value]
    }
}
