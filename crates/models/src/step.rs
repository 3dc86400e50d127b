//! Whole steps: what a run executes once per batch, as one graph each.

use graph::{Graph, GraphError, Op, Place, Recompute, Role, StateKind, ValueId};

use crate::optimizer::{Optimizer, stack};
use crate::task::{Forward, Given, Model};

/// Extents of a step, over all ranks and microbatches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Sequences.
    pub batch: usize,
    /// Tokens in a sequence.
    pub sequence_length: usize,
    /// Tokens in a target, for models that have a decoder beside their encoder.
    pub target_length: usize,
}

impl Step {
    /// A step whose targets, if the model reads any, are as long as its sequences.
    pub fn new(batch: usize, sequence_length: usize) -> Step {
        Step { batch, sequence_length, target_length: sequence_length }
    }
}

/// In what a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Everything in one type.
    #[default]
    Uniform,
    /// Activations and casts of the parameters in a narrow type; master weights, gradients and moments wide.
    Mixed,
    /// Mixed, with the loss multiplied by the run-time number `loss_scale` before the backward, so that small
    /// cotangents survive in a type of small range; the update divides by it (Micikevicius et al., 2018).
    Scaled,
}

/// Forward, backward and update. Outputs: `statistics` (`[loss sum, number of tokens, squared norms...]`), `grad_norm`,
/// `gradient:NAME` of every parameter and `embedding_gradient`, both of the loss summed over tokens.
///
/// # Errors
/// If the model has an operation without derivative.
///
/// # Panics
/// If no labels are given, or the model's head has no loss.
pub fn train_step(
    model: &dyn Model,
    optimizer: &Optimizer,
    step: Step,
    given: &Given,
    recompute: Recompute,
    precision: Precision,
) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let loss = model.forward(&mut g, step, given).loss.expect("training needs labels");
    let leaves: Vec<ValueId> =
        g.states().filter(|(_, s)| s.kind == StateKind::Parameter).map(|(v, _)| v).collect();
    // Seeding with ones gives gradients of the sum; the update divides by the number of tokens of the whole step.
    g.set_role(Role::BackwardInput);
    let dims = g.value(loss.nll).dims.clone();
    let scaled = precision == Precision::Scaled;
    let seed = if scaled { g.scalar("loss_scale", &dims) } else { g.fill("loss.seed", 1.0, &dims) };
    let cotangents = graph::vjp(&mut g, loss.nll, seed, &leaves)?;
    graph::assign_backward_roles(&mut g, &cotangents);
    graph::recompute(&mut g, recompute, 1..model.num_layers() + 1);
    if let Some(d_embedding) = g.stream().first().and_then(|v| cotangents.values.get(v)) {
        g.mark_output("embedding_gradient", *d_embedding);
    }
    let loss_scale = scaled.then(|| g.scalar("loss_scale", &[]));
    optimizer.write(&mut g, &cotangents, loss.sum, loss.num_tokens, loss_scale);
    mix(&mut g, precision);
    Ok(g)
}

/// Loss of a batch without training. Outputs: `statistics` (`[loss sum, number of tokens]`) and, if `with_output`, the
/// model's first one (`logits`, `embeddings`), on every rank.
///
/// # Panics
/// As for [`train_step`].
pub fn evaluate_step(
    model: &dyn Model,
    step: Step,
    given: &Given,
    with_output: bool,
    precision: Precision,
) -> Graph {
    let mut g = Graph::new();
    let Forward { outputs, loss } = model.forward(&mut g, step, given);
    let loss = loss.expect("an evaluation needs labels");
    if with_output {
        let (name, value) = outputs[0];
        share(&mut g, name, value);
    }
    stack(&mut g, &[loss.sum, loss.num_tokens]);
    mix(&mut g, precision);
    g
}

/// Gives a value to every rank, as an output.
pub(crate) fn share(g: &mut Graph, name: &str, value: ValueId) {
    g.set_role(Role::Update);
    g.set_place(Place::Everywhere);
    let shared = g.elementwise(Op::Share, "head.shared", &[value]);
    g.mark_output(name, shared);
}

pub(crate) fn mix(g: &mut Graph, precision: Precision) {
    if precision != Precision::Uniform {
        graph::mix_precision(g);
    }
}
