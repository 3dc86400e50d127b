//! Recompute as a rewrite: reads that the backward makes of a layer's interior values go to clones made in the
//! backward. A clone keeps its name, hence its random numbers, so the result is bit-identical.

use std::collections::HashMap;
use std::ops::Range;

use crate::graph::{Graph, Node, NodeId, Place, Role, ValueId, ValueType};
use crate::op::Op;

/// Kinds of operations that may be computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Normalisations.
    Norm,
    /// What stands between the products of a feed-forward layer.
    Activation,
    /// Masks and their products.
    Dropout,
    /// Rotations of queries and keys.
    Rotary,
    /// Attention: its output and the logarithms of its sums. No score matrix is kept in any case.
    Attention,
    /// Products with weights, and their biases.
    Linear,
}

impl Class {
    /// All of them with their names, in this order.
    pub const NAMES: [(&'static str, Class); 6] = [
        ("norm", Class::Norm),
        ("activation", Class::Activation),
        ("dropout", Class::Dropout),
        ("rotary", Class::Rotary),
        ("attention", Class::Attention),
        ("linear", Class::Linear),
    ];

    fn of(graph: &Graph, node: &Node) -> Option<Class> {
        let is_state = |value: &ValueId| matches!(graph.producer(*value).op, Op::State(_));
        match &node.op {
            Op::Norm { .. } => Some(Class::Norm),
            Op::Gelu | Op::Pointwise(_) | Op::Multiply | Op::SwiGlu => Some(Class::Activation),
            Op::Dropout { .. } => Some(Class::Dropout),
            Op::Rotary { .. } => Some(Class::Rotary),
            Op::Attention { .. } | Op::RelativeAttention { .. } => Some(Class::Attention),
            Op::Contract => Some(Class::Linear),
            // A bias.
            Op::Add if node.inputs.iter().any(is_state) => Some(Class::Linear),
            _ => None,
        }
    }
}

/// A set of [`Class`]es.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Classes(u8);

impl Classes {
    /// What is cheap for its size: norms, activations, dropout, rotations.
    pub const CHEAP: Classes = Classes::of(&[Class::Norm, Class::Activation, Class::Dropout, Class::Rotary]);

    /// The set of these.
    pub const fn of(classes: &[Class]) -> Classes {
        let (mut bits, mut at) = (0, 0);
        while at < classes.len() {
            bits |= 1 << classes[at] as u8;
            at += 1;
        }
        Classes(bits)
    }

    /// Whether it has this one.
    pub const fn has(self, class: Class) -> bool {
        self.0 & 1 << class as u8 != 0
    }
}

/// Which operations of a layer are computed again instead of kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Operations {
    /// None: everything that the backward reads is kept.
    #[default]
    None,
    /// Those of these kinds.
    Chosen(Classes),
    /// All: a layer's input alone is kept.
    All,
}

/// In which layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Layers {
    /// In all.
    #[default]
    All,
    /// In the first ones of each of so many stages, among which layers are [cut](cut).
    FirstOfEach {
        /// Layers of a stage, at most.
        first: usize,
        /// Stages.
        stages: usize,
    },
}

/// What is computed again instead of kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Recompute {
    /// Which operations.
    pub operations: Operations,
    /// In which layers.
    pub layers: Layers,
}

impl Recompute {
    /// Nothing.
    pub const NONE: Recompute = Recompute::everywhere(Operations::None);
    /// What is cheap for its size, everywhere.
    pub const SELECTIVE: Recompute = Recompute::everywhere(Operations::Chosen(Classes::CHEAP));
    /// All but each layer's input.
    pub const FULL: Recompute = Recompute::everywhere(Operations::All);

    const fn everywhere(operations: Operations) -> Recompute {
        Recompute { operations, layers: Layers::All }
    }
}

/// The parts of `layers` layers on `stages` stages, as even as they can be, the larger ones first.
pub fn cut(layers: usize, stages: usize) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    (0..stages).map(move |stage| {
        let start = end;
        end += layers / stages + usize::from(stage < layers % stages);
        start..end
    })
}

/// Rewrites the graph, whose backward has been written and whose roles are assigned.
///
/// `layers` are the layers that may be rewritten (their `Place`); the embedding and the head are best left out.
pub fn recompute(graph: &mut Graph, what: Recompute, layers: Range<usize>) {
    if what.operations == Operations::None {
        return;
    }
    let is_of = |layer: usize| {
        layers.contains(&layer)
            && match what.layers {
                Layers::All => true,
                Layers::FirstOfEach { first, stages } => {
                    let at = layer - layers.start;
                    cut(layers.len(), stages).any(|part| part.contains(&at) && at - part.start < first)
                }
            }
    };
    let mut clones = Clones { graph, operations: what.operations, of: HashMap::new() };
    let mut order = Vec::new();
    for id in clones.graph.order().to_vec() {
        let node = clones.graph.node(id);
        let backward = matches!(node.role, Role::BackwardInput | Role::BackwardWeight);
        if backward && matches!(node.place, Place::Layer(layer) if is_of(layer)) {
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
    operations: Operations,
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
        let chosen = match self.operations {
            Operations::None => false,
            Operations::All => true,
            Operations::Chosen(classes) => {
                Class::of(self.graph, &node).is_some_and(|class| classes.has(class))
            }
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
