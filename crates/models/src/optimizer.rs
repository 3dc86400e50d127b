//! Optimizers as graph text: gradient clipping by global norm, then the update of each parameter.

use graph::{Cotangents, Graph, Init, Op, Place, Role, State, StateKind, ValueId, ValueType};

/// Which update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptimizerKind {
    /// Stochastic gradient descent with momentum (PyTorch's form; decay added to the gradient).
    Sgd,
    /// Adam (Kingma and Ba, 2015), decay added to the gradient.
    Adam,
    /// AdamW (Loshchilov and Hutter, 2019), decoupled decay.
    AdamW,
}

/// An optimizer and its settings. The learning rate is a run-time input.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// Which update.
    pub kind: OptimizerKind,
    /// Adam's decay rates.
    pub betas: [f64; 2],
    /// Adam's epsilon.
    pub eps: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// SGD's look-ahead.
    pub nesterov: bool,
    /// Decay of matrices and tables; norms and biases have none.
    pub weight_decay: f64,
    /// Largest norm of the mean gradient; 0 for no clipping.
    pub clip_norm: f64,
    /// Whether the update assumes that nothing is clipped and all is finite, so that it need not wait for the norm over
    /// all stages; what was assumed is compared with what is true afterwards (Qi et al., 2023, section 4).
    pub post_validation: bool,
}

impl Optimizer {
    /// Writes the update after the backward.
    ///
    /// Gradients arrive as sums over tokens; dividing by the number of unmasked tokens of the whole step and clipping
    /// are one factor, computed from statistics that every rank agrees on. One squared norm per parameter, in name
    /// order, so that the fold does not depend on the layout.
    ///
    /// `loss_scale`: what the loss was multiplied by before the backward, if it was.
    pub(crate) fn write(
        &self,
        g: &mut Graph,
        cotangents: &Cotangents,
        loss: ValueId,
        num_tokens: ValueId,
        loss_scale: Option<ValueId>,
    ) {
        let parameters = sum_uses(g, cotangents);
        let mut statistics = vec![loss, num_tokens];
        for Gradient { name, parameter, gradient, .. } in &parameters {
            g.set_place(Place::Holders(*parameter));
            let node = g.push(
                Op::SumSquares,
                format!("{name}.sum_squares"),
                &[*gradient],
                &[(&[], ValueType::Float)],
            );
            statistics.push(g.node(node).outputs[0]);
        }
        let statistics = stack(g, &statistics);
        // Every stage counts tokens by itself: those of the loss are on the last one.
        let weights = g.producer(num_tokens).inputs[0];
        let assumed = self.post_validation.then(|| {
            let num_tokens = g.sum("assumed.num_tokens", weights, &[]);
            let operands: Vec<ValueId> = [num_tokens].into_iter().chain(loss_scale).collect();
            let results: [(&[_], ValueType); 1] = [(&[], ValueType::Float)];
            let node = g.push(Op::AssumedScale, "assumed.scale".to_owned(), &operands, &results);
            g.node(node).outputs[0]
        });
        let clip = Op::ClipScale { max_norm: self.clip_norm };
        let operands: Vec<ValueId> = [statistics].into_iter().chain(loss_scale).collect();
        let results: [(&[_], ValueType); 2] = [(&[], ValueType::Float), (&[], ValueType::Float)];
        let node = g.push(clip, "clip".to_owned(), &operands, &results);
        let [scale, grad_norm] = g.node(node).outputs[..] else { unreachable!("two results") };
        g.mark_output("grad_norm", grad_norm);
        let scale = assumed.unwrap_or(scale);
        let (lr, step) = (g.scalar("lr", &[]), g.scalar("step", &[]));
        for Gradient { name, parameter, gradient, decay } in parameters {
            g.set_place(Place::Holders(parameter));
            let dims = g.value(parameter).dims.clone();
            let moment = |g: &mut Graph, kind: &str| {
                let state = State {
                    name: format!("{kind}:{name}"),
                    kind: StateKind::Moment,
                    init: Init::Zeros,
                    decay: false,
                };
                g.declare_state(state, &dims)
            };
            let weight_decay = if decay { self.weight_decay } else { 0.0 };
            let (op, inputs) = match self.kind {
                OptimizerKind::Sgd => {
                    let velocity = moment(g, "velocity");
                    let op = Op::Sgd { momentum: self.momentum, nesterov: self.nesterov, weight_decay };
                    (op, vec![parameter, gradient, velocity, scale, lr, step])
                }
                OptimizerKind::Adam | OptimizerKind::AdamW => {
                    let (first, second) = (moment(g, "first_moment"), moment(g, "second_moment"));
                    let op = Op::Adam {
                        beta1: self.betas[0],
                        beta2: self.betas[1],
                        eps: self.eps,
                        weight_decay,
                        decoupled: self.kind == OptimizerKind::AdamW,
                    };
                    (op, vec![parameter, gradient, first, second, scale, lr, step])
                }
            };
            let results = vec![(&dims[..], ValueType::Float); op.in_place().len()];
            g.push(op, format!("{name}.update"), &inputs, &results);
        }
    }
}

/// A parameter and the sum of its gradients over its uses.
pub(crate) struct Gradient {
    pub name: String,
    pub parameter: ValueId,
    pub gradient: ValueId,
    /// Whether weight decay applies.
    pub decay: bool,
}

/// The gradient of every leaf as the output `gradient:NAME`, in the order of names.
pub(crate) fn sum_uses(g: &mut Graph, cotangents: &Cotangents) -> Vec<Gradient> {
    g.set_role(Role::Update);
    let mut gradients: Vec<Gradient> = Vec::new();
    for (parameter, uses) in &cotangents.leaves {
        let Op::State(state) = &g.producer(*parameter).op else { unreachable!("a leaf is a state") };
        let (name, decay) = (state.name.clone(), state.decay);
        g.set_place(Place::Holders(*parameter));
        let dims = g.value(*parameter).dims.clone();
        let node = g.push(Op::Add, format!("{name}.gradient"), uses, &[(&dims, ValueType::Float)]);
        let gradient = g.node(node).outputs[0];
        g.mark_output(&format!("gradient:{name}"), gradient);
        gradients.push(Gradient { name, parameter: *parameter, gradient, decay });
    }
    gradients.sort_by(|a, b| a.name.cmp(&b.name));
    gradients
}

/// Scalars side by side on every rank, as the output `statistics`.
pub(crate) fn stack(g: &mut Graph, scalars: &[ValueId]) -> ValueId {
    g.set_role(Role::Update);
    g.set_place(Place::Everywhere);
    let dim = g.dim("statistics", scalars.len());
    let node = g.push(Op::Stack, "statistics".to_owned(), scalars, &[(&[dim], ValueType::Float)]);
    let statistics = g.node(node).outputs[0];
    g.mark_output("statistics", statistics);
    statistics
}
