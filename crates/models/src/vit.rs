//! ViT (Dosovitskiy et al., 2021): an encoder of images. Patches are rows of numbers, the class token stands first.

use graph::{Graph, Init, Place, Role, ValueType};

use crate::encoder::{Encoder, Order};
use crate::parts::{self, Dims, STD};
use crate::step::Step;
use crate::task::{Forward, Given, Model, loss};

/// Shape of a ViT that classifies. Its sequences are the class token and `num_patches` patches.
#[derive(Debug, Clone, PartialEq)]
pub struct Vit {
    /// Its layers.
    pub encoder: Encoder,
    /// Patches of an image.
    pub num_patches: usize,
    /// Numbers of a patch, all channels together.
    pub patch: usize,
    /// Number of labels.
    pub labels: usize,
}

impl Model for Vit {
    /// The inputs `patches` `[batch, seq, patch]` (zeros at the class token), `is_patch` and `is_class` `[batch, seq]`
    /// put the two kinds of rows into one sequence by products alone.
    fn forward(&self, g: &mut Graph, step: Step, given: &Given) -> Forward {
        g.set_role(Role::Forward);
        let d = Dims::new(g, step.batch, step.sequence_length, &self.encoder.widths);
        let (patch, slots) = (g.dim("patch", self.patch), g.dim("positions", self.num_patches + 1));
        g.set_place(Place::Everywhere);
        let rows = [d.batch, d.seq];
        let patches = g.input("patches", &[d.batch, d.seq, patch], ValueType::Float);
        let [is_patch, is_class] =
            ["is_patch", "is_class"].map(|name| g.input(name, &rows, ValueType::Float));
        let positions = g.input("positions", &rows, ValueType::Int);
        g.set_place(Place::Layer(0));
        let x = g.scoped("embedding", |g| {
            let stream = [d.batch, d.seq, d.embed];
            let std = Init::Normal { std: STD };
            let y = g.scoped("patch", |g| {
                let weight = g.parameter("weight", &[patch, d.embed], std, true);
                let bias = g.parameter("bias", &[d.embed], Init::Zeros, false);
                [g.contract("", patches, weight, &stream), g.contract("biases", is_patch, bias, &stream)]
            });
            let class = g.parameter("class", &[d.embed], std, false);
            let class = g.contract("classes", is_class, class, &stream);
            let table = g.parameter("position", &[slots, d.embed], std, true);
            let position = g.embedding("positions", table, positions);
            let x = g.add("sum", &[y[0], y[1], class, position]);
            g.dropout("dropout", x, self.encoder.dropout.embedding)
        });
        let x = self.encoder.layers(g, &d, Order::NormFirst, None, x);
        let logits = g.scoped("head", |g| {
            let x = self.encoder.norm(g, x);
            let class = parts::select(g, &d, x);
            let labels = g.dim("labels", self.labels);
            parts::linear(g, "classifier", class, &[d.embed], &[labels], true)
        });
        Forward { outputs: vec![("logits", logits)], loss: given.labels.then(|| loss(g, logits)) }
    }

    fn num_layers(&self) -> usize {
        self.encoder.num_layers
    }
}
