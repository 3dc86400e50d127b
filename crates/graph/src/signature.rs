//! What each operation allows: for every dim it touches, whether a mesh axis may split it and what the results then
//! are. This table is the only place where an operation's parallelism is written.

use crate::graph::{Dim, Graph, Node};
use crate::op::Op;

/// What happens to a result that lacks a dim on which operands are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IndexKind {
    /// Every result has the dim: it is split too.
    Map,
    /// Results that lack the dim owe a sum.
    ReduceSum,
    /// Results that lack the dim owe a maximum.
    ReduceMax,
    /// May not be split.
    Whole,
}

/// The indices of an operation. An axis splits at most one of them; operands that lack it are then whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Each dim of operands and results, with its kind.
    pub indices: Vec<(Dim, IndexKind)>,
    /// Sets of operands in which the operation is jointly linear: if exactly those are Partial, the results may be.
    pub linear: Vec<Vec<usize>>,
    /// How the operation treats all dims in one row ([`Dim::FLAT`]), if it can.
    pub flat: Option<IndexKind>,
    /// Prefer splitting the result to splitting a sum: the result is larger than the operands.
    pub prefers_home: bool,
}

impl Signature {
    /// Kind of `dim`, [`Dim::FLAT`] included; `None` if the operation does not have it.
    pub fn kind(&self, dim: Dim) -> Option<IndexKind> {
        if dim == Dim::FLAT {
            return self.flat;
        }
        self.indices.iter().find(|(d, _)| *d == dim).map(|(_, k)| *k)
    }
}

impl Graph {
    /// Signature of a node.
    pub fn signature(&self, node: &Node) -> Signature {
        let dims = |v: &crate::ValueId| self.value(*v).dims.as_slice();
        let operands: Vec<&[Dim]> = node.inputs.iter().map(dims).collect();
        let results: Vec<&[Dim]> = node.outputs.iter().map(dims).collect();
        Signature::of(&node.op, &operands, &results)
    }
}

impl Signature {
    /// Signature of an operation on operands and results with the given dims.
    pub fn of(op: &Op, operands: &[&[Dim]], results: &[&[Dim]]) -> Signature {
        let mut all: Vec<Dim> = Vec::new();
        for dim in operands.iter().chain(results).copied().flatten() {
            if !all.contains(dim) {
                all.push(*dim);
            }
        }
        let in_every_result = |d: &Dim| results.iter().all(|r| r.contains(d));
        let last = |v: usize| operands[v].last().copied();
        let whole: Vec<Dim> = match op {
            Op::Norm { .. }
            | Op::AddNorm { .. }
            | Op::NormBackwardInput { .. }
            | Op::NormBackwardWeight { .. }
            | Op::Rotary { .. } => last(0).into_iter().collect(),
            Op::Attention { .. } | Op::AttentionBackward { .. } => {
                [operands[1].get(1).copied(), last(0)].into_iter().flatten().collect()
            }
            // Each part of a sum would have the bias.
            Op::Linear => all.iter().copied().filter(|d| !in_every_result(d)).collect(),
            Op::RelativeAttention { .. } | Op::RelativeAttentionBackward { .. } => {
                [operands[1].get(1).copied(), last(0), operands[3].first().copied()]
                    .into_iter()
                    .flatten()
                    .collect()
            }
            Op::CacheWrite => {
                [operands[0].get(1), operands[1].get(1)].into_iter().flatten().copied().collect()
            }
            Op::CachedAttention { buckets, .. } => {
                let table = buckets.and_then(|_| operands[3].first());
                [operands[1].get(1), operands[0].last(), table].into_iter().flatten().copied().collect()
            }
            Op::Rename { from, to } => vec![*from, *to],
            Op::ClipScale { .. } | Op::Stack | Op::Share => all.clone(),
            _ => vec![],
        };
        let reduce = if *op == Op::RowMax { IndexKind::ReduceMax } else { IndexKind::ReduceSum };
        let indices = all
            .into_iter()
            .map(|d| {
                let kind = if whole.contains(&d) {
                    IndexKind::Whole
                } else if in_every_result(&d) {
                    IndexKind::Map
                } else {
                    reduce
                };
                (d, kind)
            })
            .collect();
        let linear = match op {
            Op::Embedding { .. }
            | Op::Sum
            | Op::WeightedSum
            | Op::Spread
            | Op::Rotary { .. }
            | Op::Dropout { .. }
            | Op::Rename { .. } => vec![vec![0]],
            Op::Contract | Op::Multiply => vec![vec![0], vec![1]],
            Op::Linear => vec![vec![0, 2], vec![1, 2]],
            Op::Add | Op::Stack => vec![(0..operands.len()).collect()],
            Op::EmbeddingBackward { .. }
            | Op::NormBackwardWeight { .. }
            | Op::GeluBackward
            | Op::PointwiseBackward(_) => vec![vec![1]],
            Op::NormBackwardInput { .. } | Op::SwiGluBackward | Op::TokenLossBackward => vec![vec![2]],
            _ => vec![],
        };
        let flat = match op {
            Op::Add | Op::Cast | Op::Adam { .. } | Op::Sgd { .. } => Some(IndexKind::Map),
            Op::SumSquares => Some(IndexKind::ReduceSum),
            _ => None,
        };
        Signature { indices, linear, flat, prefers_home: matches!(op, Op::EmbeddingBackward { .. }) }
    }
}
