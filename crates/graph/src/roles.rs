//! Splits the backward into I (on the way to an earlier layer) and W (for gradients of parameters only).

use crate::graph::{Graph, Role};
use crate::vjp::Cotangents;

/// Gives every backward node its role: I if it is an ancestor of the cotangent of a residual stream value, else W.
///
/// The embedding's output counts as a boundary, so the division does not depend on where stages are cut.
pub fn assign_backward_roles(graph: &mut Graph, cotangents: &Cotangents) {
    let mut on_the_way = vec![false; graph.nodes().len()];
    for value in graph.stream() {
        if let Some(cotangent) = cotangents.values.get(value) {
            on_the_way[graph.value(*cotangent).node.index()] = true;
        }
    }
    let order: Vec<_> = graph.order().iter().rev().copied().collect();
    for id in order {
        if graph.node(id).role != Role::BackwardInput {
            continue;
        }
        if on_the_way[id.index()] {
            let inputs = graph.node(id).inputs.clone();
            inputs.iter().for_each(|v| on_the_way[graph.value(*v).node.index()] = true);
        } else {
            graph.node_mut(id).role = Role::BackwardWeight;
        }
    }
}
