//! The table of a model: its parameters, and what else a file may hold. How a family fills it is in the family's file.

use super::{Piece, bert, gpt2, llama, t5, vit};
use crate::{Config, Family, HubError, Task};

/// Endings of names, and what older files call the same tensor. (The two biases were one until heads could be untied.)
const OLDER_NAMES: [(&str, &str); 3] = [
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
];

/// One of our parameters and where it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Our name, as the graph has it.
    pub name: String,
    /// Where it is stored.
    pub piece: Piece,
    /// Other names of the same tensor, in the order in which they are tried: a tied table's second name.
    pub aliases: Vec<String>,
    /// Whether a checkpoint may lack it: the head of a task that the checkpoint was not made for starts anew.
    pub may_be_new: bool,
    /// Whether it starts anew whatever the files hold: a classifier for other labels than theirs.
    pub is_renewed: bool,
}

/// All parameters of a model for a task, by the names of the graph and of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub(super) model_type: &'static str,
    pub(super) parameters: Vec<Parameter>,
    /// The body's prefix in a model with a head. Files of a bare body lack it.
    pub(super) prefix: &'static str,
    /// Whether the names of this table have the prefix.
    pub(super) has_prefix: bool,
    /// Endings of tensors that files hold though they are no parameters: constants and copies.
    pub(super) ignored: &'static [&'static str],
}

impl Table {
    /// The table of a model for a task.
    ///
    /// # Errors
    /// If the family does not do the task.
    pub fn new(config: &Config, task: Task) -> Result<Table, HubError> {
        config.check_task(task)?;
        Ok(match &config.family {
            Family::Gpt2(c) => gpt2::table(c),
            Family::Llama(c) => llama::table(c),
            Family::Bert(c) => bert::table(c, task),
            Family::T5(c) => t5::table(c),
            Family::Vit(c) => vit::table(c),
        })
    }

    /// All parameters, in the order of the model.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameter called `name` in the graph.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }

    /// Lets the classifier start anew.
    pub(crate) fn renew_classifier(&mut self) {
        let classifier = self.parameters.iter_mut().filter(|p| p.name.starts_with("head.classifier."));
        classifier.for_each(|p| (p.may_be_new, p.is_renewed) = (true, true));
    }

    /// Names under which a tensor may be stored, the table's own first.
    pub(super) fn candidates(&self, tensor: &str) -> Vec<String> {
        let mut names = vec![tensor.to_owned()];
        if !self.prefix.is_empty() {
            if self.has_prefix {
                names.extend(tensor.strip_prefix(self.prefix).map(str::to_owned));
            } else {
                names.push(format!("{}{tensor}", self.prefix));
            }
        }
        for (now, then) in OLDER_NAMES {
            let older: Vec<String> = names
                .iter()
                .filter_map(|n| n.strip_suffix(now).map(|stem| format!("{stem}{then}")))
                .collect();
            names.extend(older);
        }
        names
    }
}

/// Collects a family's parameters.
pub(super) struct Rows(Vec<Parameter>);

impl Rows {
    pub fn new() -> Rows {
        Rows(Vec::new())
    }

    /// A parameter that every checkpoint has.
    pub fn add(&mut self, name: impl Into<String>, piece: Piece) {
        self.0.push(Parameter {
            name: name.into(),
            piece,
            aliases: Vec::new(),
            may_be_new: false,
            is_renewed: false,
        });
    }

    /// A parameter with other names.
    pub fn add_shared(&mut self, name: &str, piece: Piece, aliases: &[&str]) {
        let aliases = aliases.iter().map(|a| (*a).to_owned()).collect();
        self.0.push(Parameter {
            name: name.to_owned(),
            piece,
            aliases,
            may_be_new: false,
            is_renewed: false,
        });
    }

    /// A parameter of a head that may start anew.
    pub fn add_head(&mut self, name: &str, piece: Piece) {
        self.0.push(Parameter {
            name: name.to_owned(),
            piece,
            aliases: Vec::new(),
            may_be_new: true,
            is_renewed: false,
        });
    }

    /// A norm over `size`: `NAME.gain` and, if it has one, `NAME.bias`.
    pub fn norm(&mut self, name: &str, tensor: &str, size: usize, has_bias: bool) {
        self.add(format!("{name}.gain"), Piece::of(format!("{tensor}.weight"), &[size]));
        if has_bias {
            self.add(format!("{name}.bias"), Piece::of(format!("{tensor}.bias"), &[size]));
        }
    }

    /// A linear layer, stored `[output, input]`: `NAME.weight` with dims `input` then `output`, and `NAME.bias`.
    pub fn linear(&mut self, name: &str, tensor: &str, input: &[usize], output: &[usize], has_bias: bool) {
        let (weight, bias) = linear(tensor, input, output);
        self.add(format!("{name}.weight"), weight);
        if has_bias {
            self.add(format!("{name}.bias"), bias);
        }
    }

    pub fn finish(self) -> Vec<Parameter> {
        self.0
    }
}

/// Weight and bias of a linear layer that is stored `[output, input]`, as `[input..., output...]` and `[output...]`.
pub(super) fn linear(tensor: &str, input: &[usize], output: &[usize]) -> (Piece, Piece) {
    let (num_in, num_out) = (input.iter().product(), output.iter().product());
    let weight = Piece::of(format!("{tensor}.weight"), &[num_out, num_in]).split(1, input).split(0, output);
    let order: Vec<usize> = (output.len()..output.len() + input.len()).chain(0..output.len()).collect();
    let bias = Piece::of(format!("{tensor}.bias"), &[num_out]).split(0, output);
    (weight.permute(&order), bias)
}

/// Attention's dims: query `[kv_heads, group, head_dim]`, key and value `[kv_heads, head_dim]`.
pub(super) struct Heads {
    pub query: [usize; 3],
    pub key: [usize; 2],
}

impl Heads {
    pub fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Heads {
        Heads { query: [num_kv_heads, num_heads / num_kv_heads, head_dim], key: [num_kv_heads, head_dim] }
    }
}
