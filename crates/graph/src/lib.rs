//! The logical training step: operations over tensors with named dims, their signatures, their derivatives and the
//! rewrites of the graph.
//!
//! **Invariant: no ranks.** A graph describes one step of one model on one imagined device. How it is divided is
//! decided elsewhere, from the signatures here alone.

#![forbid(unsafe_code)]

mod graph;
mod op;
mod precision;
mod recompute;
mod roles;
mod signature;
mod vjp;

pub use graph::{Dim, DimInfo, Graph, GraphError, Node, NodeId, Place, Role, Value, ValueId, ValueType};
pub use op::{Buckets, Init, NormKind, Op, Pointwise, State, StateKind};
pub use precision::mix_precision;
pub use recompute::{Class, Classes, Layers, Operations, Recompute, cut, recompute};
pub use roles::assign_backward_roles;
pub use signature::{IndexKind, Signature};
pub use vjp::{Cotangents, vjp};
