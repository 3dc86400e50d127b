//! A model with the head and the loss of its task, and the steps that only look: gradients without an update, logits.

use graph::{Graph, GraphError, Place, Role, StateKind, ValueId, ValueType};

use crate::decoder::{Decoder, Inputs};
use crate::optimizer::{stack, sum_uses};
use crate::step::{Precision, Step, mix};

/// What a batch has beside the inputs that a model always reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    /// Whether `key_index` says which keys are padding.
    pub key_index: bool,
    /// Whether `targets` and `weights` are there, so that there is a loss.
    pub labels: bool,
}

/// A weighted loss, summed.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// Weighted negative log likelihood of each target.
    pub nll: ValueId,
    /// Its sum.
    pub sum: ValueId,
    /// The sum of the weights.
    pub num_tokens: ValueId,
}

/// What a forward pass gives.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Results by name: `logits`, the scores of each class before softmax; or what an embedding model gives.
    pub outputs: Vec<(&'static str, ValueId)>,
    /// The loss, if the batch has labels.
    pub loss: Option<Loss>,
}

/// A model with the head of a task, as text.
pub trait Model: Sync {
    /// Writes the forward pass.
    fn forward(&self, g: &mut Graph, step: Step, given: &Given) -> Forward;

    /// Its layers, those of encoder and decoder together.
    fn num_layers(&self) -> usize;
}

impl Model for Decoder {
    fn forward(&self, g: &mut Graph, step: Step, given: &Given) -> Forward {
        g.set_role(Role::Forward);
        let d = self.dims(g, step.batch, step.sequence_length);
        g.set_place(Place::Everywhere);
        let tokens = g.input("tokens", &[d.batch, d.seq], ValueType::Int);
        let positions = g.input("positions", &[d.batch, d.seq], ValueType::Int);
        let key_index = given.key_index.then(|| g.input("key_index", &[d.batch, d.key_seq], ValueType::Int));
        let (x, table) = self.body(g, &d, &Inputs { tokens, positions, key_index, cache: None });
        let x = self.final_norm(g, x);
        let logits = self.logits(g, &d, x, table, &[d.batch, d.seq, d.vocab]);
        Forward { outputs: vec![("logits", logits)], loss: given.labels.then(|| loss(g, logits)) }
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }
}

/// The loss of `logits` `[.., classes]` against the inputs `targets` and `weights` `[..]`.
pub(crate) fn loss(g: &mut Graph, logits: ValueId) -> Loss {
    let dims = g.value(logits).dims.clone();
    let rows = &dims[..dims.len() - 1];
    let targets = g.input("targets", rows, ValueType::Int);
    let weights = g.input("weights", rows, ValueType::Float);
    g.scoped("loss", |g| {
        let nll = g.token_loss("nll", logits, targets, weights);
        Loss { nll, sum: g.sum("sum", nll, &[]), num_tokens: g.sum("num_tokens", weights, &[]) }
    })
}

/// Forward and backward without an update. Outputs: `statistics` (`[loss sum, sum of weights]`), the model's own, and
/// `gradient:NAME` of every parameter, of the loss summed over targets.
///
/// # Errors
/// If the model has an operation without derivative.
///
/// # Panics
/// If no labels are given.
pub fn gradients_step(
    model: &dyn Model,
    step: Step,
    given: &Given,
    precision: Precision,
) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let Forward { outputs, loss } = model.forward(&mut g, step, given);
    let loss = loss.expect("gradients need labels");
    outputs.iter().for_each(|(name, value)| g.mark_output(name, *value));
    let leaves: Vec<ValueId> =
        g.states().filter(|(_, s)| s.kind == StateKind::Parameter).map(|(v, _)| v).collect();
    g.set_role(Role::BackwardInput);
    let dims = g.value(loss.nll).dims.clone();
    let seed = g.fill("loss.seed", 1.0, &dims);
    let cotangents = graph::vjp(&mut g, loss.nll, seed, &leaves)?;
    graph::assign_backward_roles(&mut g, &cotangents);
    sum_uses(&mut g, &cotangents);
    stack(&mut g, &[loss.sum, loss.num_tokens]);
    mix(&mut g, precision);
    Ok(g)
}

/// The forward pass alone, with the model's outputs.
pub fn logits_step(model: &dyn Model, step: Step, given: &Given, precision: Precision) -> Graph {
    let mut g = Graph::new();
    let Forward { outputs, .. } = model.forward(&mut g, step, &Given { labels: false, ..*given });
    outputs.iter().for_each(|(name, value)| g.mark_output(name, *value));
    mix(&mut g, precision);
    g
}
