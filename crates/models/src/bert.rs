//! BERT (Devlin et al., 2019): an encoder of text with the heads of its tasks.

use graph::{Dim, Graph, Init, NormKind, Place, Role, ValueId, ValueType};

use crate::encoder::{Encoder, Order};
use crate::pairs::PairLoss;
use crate::parts::{self, Dims, STD};
use crate::step::Step;
use crate::task::{Forward, Given, Model, loss};

/// What stands on the encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BertHead {
    /// Predicts the tokens at marked positions.
    MaskedLm {
        /// Whether it shares the embedding's table.
        tied: bool,
    },
    /// One label for a sequence, from its first token.
    Classify {
        /// Number of labels.
        labels: usize,
    },
    /// One label for each token.
    Tag {
        /// Number of labels.
        labels: usize,
    },
    /// A vector of length 1 for a sequence: the mean over its tokens.
    Embed {
        /// What pairs of sequences learn.
        loss: PairLoss,
    },
}

/// Shape of a BERT.
#[derive(Debug, Clone, PartialEq)]
pub struct Bert {
    /// Its layers.
    pub encoder: Encoder,
    /// Token ids.
    pub vocab_size: usize,
    /// Learned positions.
    pub max_positions: usize,
    /// Kinds of segments.
    pub num_segments: usize,
    /// Token whose embedding is read but not trained.
    pub padding: Option<u32>,
    /// What stands on it.
    pub head: BertHead,
}

impl Bert {
    /// The normalised sum of the embeddings, and the table of tokens.
    fn embedding(&self, g: &mut Graph, d: &Dims, vocab: Dim) -> (ValueId, ValueId) {
        let ids = |g: &mut Graph, name: &str| g.input(name, &[d.batch, d.seq], ValueType::Int);
        let (tokens, positions, segments) = (ids(g, "tokens"), ids(g, "positions"), ids(g, "segments"));
        g.set_place(Place::Layer(0));
        g.scoped("embedding", |g| {
            let std = Init::Normal { std: STD };
            let table = g.parameter("token", &[vocab, d.embed], std, true);
            let tokens = g.padded_embedding("tokens", table, tokens, self.padding);
            let dim = g.dim("positions", self.max_positions);
            let position = g.parameter("position", &[dim, d.embed], std, true);
            let positions = g.embedding("positions", position, positions);
            let dim = g.dim("segments", self.num_segments);
            let segment = g.parameter("segment", &[dim, d.embed], std, true);
            let segments = g.embedding("segments", segment, segments);
            let sum = g.add("sum", &[tokens, positions, segments]);
            let x = self.encoder.norm(g, sum);
            (g.dropout("dropout", x, self.encoder.dropout.embedding), table)
        })
    }

    fn masked_lm(&self, g: &mut Graph, d: &Dims, x: ValueId, table: Option<ValueId>, vocab: Dim) -> ValueId {
        let transform = g.dim("transform", self.encoder.widths.embed);
        let y = parts::linear(g, "transform", x, &[d.embed], &[transform], true);
        let y = self.encoder.activation.write(g, y);
        let y = parts::norm(g, NormKind::Layer, self.encoder.norm_eps, y);
        let dims = [d.batch, d.seq, vocab];
        let logits = match table {
            Some(table) => {
                // The table's width is the stream's.
                let y = g.rename("as_stream", y, transform, d.embed);
                g.contract("logits", y, table, &dims)
            }
            None => {
                let weight = g.parameter("weight", &[vocab, transform], Init::Normal { std: STD }, true);
                g.contract("logits", y, weight, &dims)
            }
        };
        let bias = g.parameter("bias", &[vocab], Init::Zeros, false);
        g.add("biased", &[logits, bias])
    }

    fn classify(&self, g: &mut Graph, d: &Dims, x: ValueId, labels: usize) -> ValueId {
        let first = parts::select(g, d, x);
        let (pooled, labels) = (g.dim("pooled", self.encoder.widths.embed), g.dim("labels", labels));
        let y = parts::linear(g, "pooler", first, &[d.embed], &[pooled], true);
        let y = crate::Activation::Tanh.write(g, y);
        let y = g.dropout("dropout", y, self.encoder.dropout.classifier);
        parts::linear(g, "classifier", y, &[pooled], &[labels], true)
    }
}

impl Model for Bert {
    fn forward(&self, g: &mut Graph, step: Step, given: &Given) -> Forward {
        g.set_role(Role::Forward);
        let d = Dims::new(g, step.batch, step.sequence_length, &self.encoder.widths);
        let vocab = g.dim("vocab", self.vocab_size);
        g.set_place(Place::Everywhere);
        let key_index = parts::key_index(g, given.key_index, [d.batch, d.key_seq]);
        let (x, table) = self.embedding(g, &d, vocab);
        let x = self.encoder.layers(g, &d, Order::NormLast, key_index, x);
        let logits = g.scoped("head", |g| match self.head {
            BertHead::MaskedLm { tied } => self.masked_lm(g, &d, x, tied.then_some(table), vocab),
            BertHead::Classify { labels } => self.classify(g, &d, x, labels),
            BertHead::Tag { labels } => {
                let labels = g.dim("labels", labels);
                let x = g.dropout("dropout", x, self.encoder.dropout.classifier);
                parts::linear(g, "classifier", x, &[d.embed], &[labels], true)
            }
            BertHead::Embed { .. } => {
                // `select` has equal weights on the tokens of a sequence. A vector of length 1 is one of mean square
                // 1 / width.
                let mean = parts::select(g, &d, x);
                let gain = 1.0 / (self.encoder.widths.embed as f64).sqrt();
                let gain = g.fill("length", gain, &[d.embed]);
                g.norm("unit", NormKind::Rms, 1e-24, mean, gain, None)
            }
        });
        match self.head {
            BertHead::Embed { loss } => Forward {
                outputs: vec![("embeddings", logits), ("hidden", x)],
                loss: given.labels.then(|| loss.write(g, &d, logits)),
            },
            _ => Forward { outputs: vec![("logits", logits)], loss: given.labels.then(|| loss(g, logits)) },
        }
    }

    fn num_layers(&self) -> usize {
        self.encoder.num_layers
    }
}
