//! Dims, values, nodes, and the builder that models write their text with. Shapes are checked here, once.

use std::collections::HashMap;

use crate::op::{Buckets, Init, NormKind, Op, State, StateKind};

/// A named dim of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(u16);

impl Dim {
    /// All elements of a tensor in one row, whatever its dims: what ZeRO shards. No graph value has it as a dim.
    pub const FLAT: Dim = Dim(u16::MAX);

    /// Position in [`Graph::dims`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Name and size of a dim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DimInfo {
    /// Role of the dim, unique in the graph: `batch`, `seq`, `embed`, `kv_heads`...
    pub name: String,
    /// Number of elements.
    pub size: usize,
}

/// A value of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// A node of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl ValueId {
    /// Position in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    /// Position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Kind of number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// A real number in the precision that the plan chooses.
    Float,
    /// A real number in the plan's narrow type: what mixed precision computes on.
    Narrow,
    /// A token id or position.
    Int,
}

/// A tensor in the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Dims, outermost first.
    pub dims: Vec<Dim>,
    /// Kind of number.
    pub value_type: ValueType,
    /// The node that makes it.
    pub node: NodeId,
}

/// In which part of the step a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// F.
    Forward,
    /// I: on the way to the cotangent of an earlier layer's output.
    BackwardInput,
    /// W: needed by gradients of parameters only.
    BackwardWeight,
    /// After all microbatches.
    Update,
}

/// Which stages run a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The stage that has this layer.
    Layer(usize),
    /// Every stage whose layers use this parameter.
    Holders(ValueId),
    /// Every stage.
    Everywhere,
}

/// One operation in the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Stable path, such as `layers.3.attention.query`.
    pub name: String,
    /// Where in the step.
    pub role: Role,
    /// On which stages.
    pub place: Place,
}

/// What can go wrong while deriving graphs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// An operation on the path to the loss cannot be differentiated.
    #[error("`{node}`: the operation {op} has no derivative")]
    NoDerivative {
        /// Path of the node.
        node: String,
        /// Name of the operation.
        op: &'static str,
    },
}

/// A step: nodes in an order in which operands come before their uses.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    dims: Vec<DimInfo>,
    values: Vec<Value>,
    nodes: Vec<Node>,
    order: Vec<NodeId>,
    stream: Vec<ValueId>,
    outputs: Vec<(String, ValueId)>,
    states: HashMap<String, ValueId>,
    place: Option<Place>,
    role: Option<Role>,
    scope: Vec<String>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// All dims.
    pub fn dims(&self) -> &[DimInfo] {
        &self.dims
    }

    /// All values.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Nodes in the order of execution.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// The value's node.
    pub fn producer(&self, value: ValueId) -> &Node {
        &self.nodes[self.value(value).node.index()]
    }

    /// A value.
    pub fn value(&self, value: ValueId) -> &Value {
        &self.values[value.index()]
    }

    /// A node.
    pub fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.index()]
    }

    /// Name and size of a dim.
    pub fn dim_info(&self, dim: Dim) -> &DimInfo {
        &self.dims[dim.index()]
    }

    /// The dim called `name`, if the graph has it.
    pub fn find_dim(&self, name: &str) -> Option<Dim> {
        self.dims.iter().position(|d| d.name == name).map(|i| Dim(i as u16))
    }

    /// Global shape of a value.
    pub fn shape(&self, value: ValueId) -> Vec<usize> {
        self.value(value).dims.iter().map(|d| self.dim_info(*d).size).collect()
    }

    /// Outputs of the layers that carry the residual stream, the embedding's output first.
    pub fn stream(&self) -> &[ValueId] {
        &self.stream
    }

    /// Named results that a run reads or keeps.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// The named result, if there is one.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// State tensors in the order of their declaration.
    pub fn states(&self) -> impl Iterator<Item = (ValueId, &State)> {
        self.nodes.iter().filter_map(|n| match &n.op {
            Op::State(state) => Some((n.outputs[0], state)),
            _ => None,
        })
    }

    /// The state called `name`.
    pub fn state(&self, name: &str) -> Option<ValueId> {
        self.states.get(name).copied()
    }

    /// Number of trained scalars.
    pub fn num_parameters(&self) -> u64 {
        self.states()
            .filter(|(_, s)| s.kind == StateKind::Parameter)
            .map(|(v, _)| self.shape(v).iter().map(|n| *n as u64).product::<u64>())
            .sum()
    }

    // ---- writing ----

    /// Declares a dim, or returns the one of that name.
    ///
    /// # Panics
    /// If the dim exists with another size.
    pub fn dim(&mut self, name: &str, size: usize) -> Dim {
        if let Some(dim) = self.find_dim(name) {
            assert_eq!(self.dim_info(dim).size, size, "dim `{name}` declared twice with different sizes");
            return dim;
        }
        self.dims.push(DimInfo { name: name.to_owned(), size });
        Dim(self.dims.len() as u16 - 1)
    }

    /// Nodes written from now on belong to this place.
    pub fn set_place(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Nodes written from now on have this role.
    pub fn set_role(&mut self, role: Role) {
        self.role = Some(role);
    }

    /// Writes `text` with `name` in front of the names of its nodes.
    pub fn scoped<T>(&mut self, name: &str, text: impl FnOnce(&mut Graph) -> T) -> T {
        self.scope.push(name.to_owned());
        let result = text(self);
        self.scope.pop();
        result
    }

    /// `name` with the current scope in front.
    pub fn path(&self, name: &str) -> String {
        let mut parts: Vec<&str> = self.scope.iter().map(String::as_str).collect();
        if !name.is_empty() {
            parts.push(name);
        }
        parts.join(".")
    }

    /// Marks the residual stream between layers.
    pub fn mark_stream(&mut self, value: ValueId) {
        self.stream.push(value);
    }

    /// Names a result.
    pub fn mark_output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.to_owned(), value));
    }

    /// Adds a node; results have the given dims and types.
    pub fn push(
        &mut self,
        op: Op,
        name: String,
        inputs: &[ValueId],
        results: &[(&[Dim], ValueType)],
    ) -> NodeId {
        let id = self.insert(op, name, inputs, results);
        self.order.push(id);
        id
    }

    /// Adds a node without giving it a position in the order (see [`Graph::set_order`]).
    pub(crate) fn insert(
        &mut self,
        op: Op,
        name: String,
        inputs: &[ValueId],
        results: &[(&[Dim], ValueType)],
    ) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let outputs = results
            .iter()
            .map(|(dims, value_type)| {
                self.values.push(Value { dims: dims.to_vec(), value_type: *value_type, node: id });
                ValueId(self.values.len() as u32 - 1)
            })
            .collect();
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs,
            name,
            role: self.role.unwrap_or(Role::Forward),
            place: self.place.unwrap_or(Place::Everywhere),
        });
        id
    }

    pub(crate) fn set_order(&mut self, order: Vec<NodeId>) {
        self.order = order;
    }

    pub(crate) fn set_value_type(&mut self, value: ValueId, value_type: ValueType) {
        self.values[value.index()].value_type = value_type;
    }

    pub(crate) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    fn float(&mut self, op: Op, name: &str, inputs: &[ValueId], dims: &[Dim]) -> ValueId {
        let name = self.path(name);
        let node = self.push(op, name, inputs, &[(dims, ValueType::Float)]);
        self.node(node).outputs[0]
    }

    fn dims_of(&self, value: ValueId) -> Vec<Dim> {
        self.value(value).dims.clone()
    }

    /// A tensor of the batch.
    pub fn input(&mut self, name: &str, dims: &[Dim], value_type: ValueType) -> ValueId {
        let node = self.push(Op::Input, name.to_owned(), &[], &[(dims, value_type)]);
        self.node(node).outputs[0]
    }

    /// A number given at run time; with dims, a tensor full of it.
    pub fn scalar(&mut self, name: &str, dims: &[Dim]) -> ValueId {
        let node = self.push(Op::Scalar, name.to_owned(), &[], &[(dims, ValueType::Float)]);
        self.node(node).outputs[0]
    }

    /// A constant tensor.
    pub fn fill(&mut self, name: &str, value: f64, dims: &[Dim]) -> ValueId {
        self.float(Op::Fill(value), name, &[], dims)
    }

    /// A state tensor; leaves are unique by name, so asking twice gives the same value.
    pub fn declare_state(&mut self, state: State, dims: &[Dim]) -> ValueId {
        if let Some(value) = self.states.get(&state.name) {
            assert_eq!(
                self.value(*value).dims,
                dims,
                "state `{}` declared twice with different dims",
                state.name
            );
            return *value;
        }
        let name = state.name.clone();
        let node = self.push(Op::State(state), name.clone(), &[], &[(dims, ValueType::Float)]);
        let value = self.node(node).outputs[0];
        self.states.insert(name, value);
        value
    }

    /// A parameter under the current scope.
    pub fn parameter(&mut self, name: &str, dims: &[Dim], init: Init, decay: bool) -> ValueId {
        let name = self.path(name);
        self.declare_state(State { name, kind: StateKind::Parameter, init, decay }, dims)
    }

    /// Rows of `table` (`[rows, width]`) picked by `ids`.
    pub fn embedding(&mut self, name: &str, table: ValueId, ids: ValueId) -> ValueId {
        self.padded_embedding(name, table, ids, None)
    }

    /// [`embedding`](Graph::embedding) where the row `padding`, if there is one, is read but gets no gradient.
    pub fn padded_embedding(
        &mut self,
        name: &str,
        table: ValueId,
        ids: ValueId,
        padding: Option<u32>,
    ) -> ValueId {
        let mut dims = self.dims_of(ids);
        dims.push(self.value(table).dims[1]);
        self.float(Op::Embedding { padding }, name, &[table, ids], &dims)
    }

    /// Contraction of `a` and `b` with the given result dims.
    ///
    /// # Panics
    /// If the dims do not form a matrix product of contiguous groups.
    pub fn contract(&mut self, name: &str, a: ValueId, b: ValueId, dims: &[Dim]) -> ValueId {
        let (da, db) = (self.dims_of(a), self.dims_of(b));
        let rows = |x: &[Dim]| x.iter().copied().filter(|d| dims.contains(d)).collect::<Vec<_>>();
        let joined = |x: &[Dim], y: &[Dim]| [rows(x), rows(y)].concat();
        let inputs = if joined(&da, &db) == dims { [a, b] } else { [b, a] };
        let (da, db) = (self.dims_of(inputs[0]), self.dims_of(inputs[1]));
        assert_eq!(joined(&da, &db), dims, "`{name}`: result dims are not those of the operands in order");
        let inner = |x: &[Dim]| x.iter().copied().filter(|d| !dims.contains(d)).collect::<Vec<_>>();
        assert_eq!(inner(&da), inner(&db), "`{name}`: operands are summed over different dims");
        for x in [&da, &db] {
            let (r, i) = (rows(x), inner(x));
            assert!(
                [&r[..], &i[..]].concat() == **x || [&i[..], &r[..]].concat() == **x,
                "`{name}`: dims interleave"
            );
        }
        self.float(Op::Contract, name, &inputs, dims)
    }

    /// Sum of values whose dims are suffixes of the first one's.
    pub fn add(&mut self, name: &str, values: &[ValueId]) -> ValueId {
        let dims = self.dims_of(values[0]);
        for value in values {
            assert!(dims.ends_with(&self.value(*value).dims), "`{name}`: dims do not line up");
        }
        self.float(Op::Add, name, values, &dims)
    }

    /// Sum over all dims but `dims`.
    pub fn sum(&mut self, name: &str, x: ValueId, dims: &[Dim]) -> ValueId {
        self.float(Op::Sum, name, &[x], dims)
    }

    /// `x` `[.., n, rest..]` weighted by `w` `[.., n]` and summed over `n`.
    pub fn weighted_sum(&mut self, name: &str, x: ValueId, w: ValueId) -> ValueId {
        let (dx, dw) = (self.dims_of(x), self.dims_of(w));
        assert!(dx.starts_with(&dw), "`{name}`: weights are not a prefix");
        let dims = [&dw[..dw.len() - 1], &dx[dw.len()..]].concat();
        self.float(Op::WeightedSum, name, &[x, w], &dims)
    }

    /// Normalisation over the last dim.
    pub fn norm(
        &mut self,
        name: &str,
        kind: NormKind,
        eps: f64,
        x: ValueId,
        gain: ValueId,
        bias: Option<ValueId>,
    ) -> ValueId {
        let dims = self.dims_of(x);
        let inputs: Vec<ValueId> = [x, gain].into_iter().chain(bias).collect();
        self.float(Op::Norm { kind, eps }, name, &inputs, &dims)
    }

    /// An operation that keeps the dims of its first operand.
    pub fn elementwise(&mut self, op: Op, name: &str, inputs: &[ValueId]) -> ValueId {
        let dims = self.dims_of(inputs[0]);
        self.float(op, name, inputs, &dims)
    }

    /// `x` with dim `from` called `to`.
    pub fn rename(&mut self, name: &str, x: ValueId, from: Dim, to: Dim) -> ValueId {
        let dims: Vec<Dim> = self.dims_of(x).into_iter().map(|d| if d == from { to } else { d }).collect();
        self.float(Op::Rename { from, to }, name, &[x], &dims)
    }

    /// Attention output (and the log-sum-exp it keeps for the backward). `key_index`: see [`Op::Attention`].
    pub fn attention(
        &mut self,
        name: &str,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        key_index: Option<ValueId>,
        causal: bool,
        scale: f64,
        dropout: f64,
    ) -> ValueId {
        let dims = self.dims_of(q);
        let key = self.path(name);
        let op = Op::Attention { causal, scale, dropout, key: key.clone() };
        let statistics = &dims[..dims.len() - 1];
        let inputs: Vec<ValueId> = [q, k, v].into_iter().chain(key_index).collect();
        let node = self.push(op, key, &inputs, &[(&dims, ValueType::Float), (statistics, ValueType::Float)]);
        self.node(node).outputs[0]
    }

    /// Attention with a bias by relative position: see [`Op::RelativeAttention`].
    pub fn relative_attention(
        &mut self,
        name: &str,
        [q, k, v, table]: [ValueId; 4],
        key_index: Option<ValueId>,
        causal: bool,
        scale: f64,
        buckets: Buckets,
        dropout: f64,
    ) -> ValueId {
        let dims = self.dims_of(q);
        let statistics = &dims[..dims.len() - 1];
        let inputs: Vec<ValueId> = [q, k, v, table].into_iter().chain(key_index).collect();
        let key = self.path(name);
        let op = Op::RelativeAttention { causal, scale, buckets, dropout, key: key.clone() };
        let results = [(&dims[..], ValueType::Float), (statistics, ValueType::Float)];
        let node = self.push(op, key, &inputs, &results);
        self.node(node).outputs[0]
    }

    /// A cache under the current scope that holds nothing yet.
    pub fn cache(&mut self, name: &str, dims: &[Dim]) -> ValueId {
        let name = self.path(name);
        self.declare_state(State { name, kind: StateKind::Cache, init: Init::Zeros, decay: false }, dims)
    }

    /// The cache with `rows` in their slots: see [`Op::CacheWrite`].
    pub fn cache_write(&mut self, name: &str, cache: ValueId, rows: ValueId, slots: ValueId) -> ValueId {
        self.elementwise(Op::CacheWrite, name, &[cache, rows, slots])
    }

    /// Attention over caches, with a bias by relative position if `bias` is given: see [`Op::CachedAttention`].
    pub fn cached_attention(
        &mut self,
        name: &str,
        [q, k, v]: [ValueId; 3],
        distance: ValueId,
        scale: f64,
        bias: Option<(ValueId, Buckets)>,
    ) -> ValueId {
        let op = Op::CachedAttention { scale, buckets: bias.map(|(_, buckets)| buckets) };
        let table = bias.map(|(table, _)| table);
        let inputs: Vec<ValueId> = [q, k, v].into_iter().chain(table).chain([distance]).collect();
        self.elementwise(op, name, &inputs)
    }

    /// Inverted dropout; nothing at `p = 0`.
    pub fn dropout(&mut self, name: &str, x: ValueId, p: f64) -> ValueId {
        if p == 0.0 {
            return x;
        }
        let key = self.path(name);
        self.elementwise(Op::Dropout { p, key }, name, &[x])
    }

    /// Weighted negative log likelihood of each token, from logits `[.., vocab]`.
    pub fn token_loss(&mut self, name: &str, logits: ValueId, targets: ValueId, weights: ValueId) -> ValueId {
        let dims = self.dims_of(targets);
        let path = self.path(name);
        let max = self.float(Op::RowMax, &format!("{name}.max"), &[logits], &dims);
        let results: [(&[Dim], ValueType); 2] = [(&dims, ValueType::Float), (&dims, ValueType::Float)];
        let node = self.push(Op::SumExp, format!("{path}.sum_exp"), &[logits, max, targets], &results);
        let [sum_exp, target] = self.node(node).outputs[..] else { unreachable!("two results") };
        self.float(Op::TokenLoss, name, &[max, sum_exp, target, weights], &dims)
    }
}
