//! T5 (Raffel et al., 2020): an encoder and a decoder that reads what the encoder wrote. Norms are RMS norms before the
//! blocks, projections have no biases, scores are not scaled but biased by relative position.

use graph::{Buckets, Dim, Graph, Init, NormKind, Place, Role, ValueId, ValueType};

use crate::cache::Cache;
use crate::dropout::Dropout;
use crate::generation::{Decoding, Generator};
use crate::parts::{self, Dims, Spread, Widths};
use crate::pointwise::Activation;
use crate::step::Step;
use crate::task::{Forward, Given, Model, loss};

/// Form of the feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeedForward {
    /// `down(activation(up(x)))`.
    Plain(Activation),
    /// `down(activation(gate(x)) * up(x))`.
    Gated(Activation),
}

/// Shape of a T5.
#[derive(Debug, Clone, PartialEq)]
pub struct T5 {
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Sizes of both.
    pub widths: Widths,
    /// Token ids.
    pub vocab_size: usize,
    /// Form of the feed-forward blocks.
    pub feed_forward: FeedForward,
    /// Buckets of relative positions.
    pub num_buckets: usize,
    /// Distance from which on all share the last bucket.
    pub max_distance: usize,
    /// Added under the root of the norms.
    pub norm_eps: f64,
    /// Whether the decoder's output is divided by the root of the width before the head.
    pub scale_output: bool,
    /// Whether embedding and head share one table.
    pub tied: bool,
    /// What is dropped in training.
    pub dropout: Dropout,
}

/// One of the two stacks.
struct Stack {
    name: &'static str,
    num_layers: usize,
    /// Place of its first layer.
    first: usize,
    dims: Dims,
    /// Padding of its own keys.
    key_index: Option<ValueId>,
    /// Its own keys and values, if they are kept from step to step.
    cache: Option<Cache>,
    is_decoder: bool,
}

/// What the encoder wrote.
#[derive(Clone, Copy)]
struct Encoded {
    output: ValueId,
    seq: Dim,
    key_seq: Dim,
    key_index: Option<ValueId>,
}

/// What the decoder reads of the encoder.
#[derive(Clone, Copy)]
enum Source {
    /// Its output.
    Encoded(Encoded),
    /// Keys and values that every layer keeps: of the output, where there is one, else of an earlier step.
    Kept(Cache, Option<Encoded>),
}

impl T5 {
    fn norm(&self, g: &mut Graph, x: ValueId) -> ValueId {
        parts::norm(g, NormKind::Rms, self.norm_eps, x)
    }

    fn layers(&self, g: &mut Graph, stack: &Stack, source: Option<Source>, mut x: ValueId) -> ValueId {
        let d = &stack.dims;
        let buckets = g.dim("buckets", self.num_buckets);
        g.mark_stream(x);
        for layer in 0..stack.num_layers {
            g.set_place(Place::Layer(stack.first + layer));
            let table = g.scoped(stack.name, |g| {
                let dims = [buckets, d.kv_heads, d.group];
                g.parameter("relative_bias", &dims, Init::Normal { std: d.std(g, &[d.embed]) }, false)
            });
            x = g.scoped(&format!("{}.layers.{layer}", stack.name), |g| {
                let x = g.scoped("attention", |g| self.self_attention(g, stack, table, x));
                let x = match source {
                    Some(source) => g.scoped("cross_attention", |g| self.cross_attention(g, d, source, x)),
                    None => x,
                };
                g.scoped("mlp", |g| self.mlp(g, d, x))
            });
            g.mark_stream(x);
        }
        x
    }

    fn self_attention(&self, g: &mut Graph, stack: &Stack, table: ValueId, x: ValueId) -> ValueId {
        let d = &stack.dims;
        let normed = self.norm(g, x);
        let buckets = Buckets { max_distance: self.max_distance, bidirectional: !stack.is_decoder };
        let o = match stack.cache {
            Some(cache) => {
                let q = parts::queries(g, d, normed, false);
                let new = parts::keys_and_values(g, d, normed, false);
                let kept = cache.write(g, new);
                Self::over_cache(g, q, kept, &cache, Some((table, buckets)))
            }
            None => {
                let [q, k, v] = parts::project(g, d, normed, normed, [d.seq, d.key_seq], false);
                let qkv = [q, k, v, table];
                g.relative_attention(
                    "core",
                    qkv,
                    stack.key_index,
                    stack.is_decoder,
                    1.0,
                    buckets,
                    self.dropout.attention,
                )
            }
        };
        let y = parts::output(g, d, o, false);
        self.residual(g, x, y)
    }

    fn cross_attention(&self, g: &mut Graph, d: &Dims, source: Source, x: ValueId) -> ValueId {
        let normed = self.norm(g, x);
        let o = match source {
            Source::Encoded(encoded) => {
                let context = [encoded.seq, encoded.key_seq];
                let [q, k, v] = parts::project(g, d, normed, encoded.output, context, false);
                g.attention("core", q, k, v, encoded.key_index, false, 1.0, self.dropout.attention)
            }
            Source::Kept(cache, encoded) => {
                let q = parts::queries(g, d, normed, false);
                let kept = match encoded {
                    Some(encoded) => {
                        let new = parts::keys_and_values(g, d, encoded.output, false);
                        cache.write(g, new)
                    }
                    None => cache.read(g, [d.batch, d.kv_heads, d.head_dim]),
                };
                Self::over_cache(g, q, kept, &cache, None)
            }
        };
        let y = parts::output(g, d, o, false);
        self.residual(g, x, y)
    }

    fn residual(&self, g: &mut Graph, x: ValueId, y: ValueId) -> ValueId {
        let y = g.dropout("dropout", y, self.dropout.residual);
        g.add("residual", &[x, y])
    }

    fn over_cache(
        g: &mut Graph,
        q: ValueId,
        [k, v]: [ValueId; 2],
        cache: &Cache,
        bias: Option<(ValueId, Buckets)>,
    ) -> ValueId {
        let distance = cache.distance.expect("the decoder says what it sees");
        g.cached_attention("core", [q, k, v], distance, 1.0, bias)
    }

    fn mlp(&self, g: &mut Graph, d: &Dims, x: ValueId) -> ValueId {
        let normed = self.norm(g, x);
        let gate = |g: &mut Graph| d.linear(g, "gate", normed, &[d.embed], &[d.mlp], false);
        let up = |g: &mut Graph| d.linear(g, "up", normed, &[d.embed], &[d.mlp], false);
        let inner = match self.feed_forward {
            FeedForward::Plain(activation) => {
                let up = up(g);
                activation.write(g, up)
            }
            FeedForward::Gated(activation) => {
                let (gate, up) = (gate(g), up(g));
                parts::gated(g, activation, gate, up)
            }
        };
        let inner = g.dropout("inner_dropout", inner, self.dropout.residual);
        let y = d.linear(g, "down", inner, &[d.mlp], &[d.embed], false);
        self.residual(g, x, y)
    }
}

impl T5 {
    /// Dims of the encoder's tensors.
    fn source_dims(&self, g: &mut Graph, batch: usize, seq: usize) -> Dims {
        Dims { spread: Spread::ByInputs, ..Dims::new(g, batch, seq, &self.widths) }
    }

    /// Dims of the decoder's tensors.
    fn target_dims(&self, g: &mut Graph, source: &Dims, target_length: usize) -> Dims {
        let seq = g.dim("target_seq", target_length);
        let key_seq = g.dim("target_key_seq", target_length);
        Dims { seq, key_seq, ..*source }
    }

    /// The table of all tokens.
    fn table(&self, g: &mut Graph, d: &Dims) -> ValueId {
        let vocab = g.dim("vocab", self.vocab_size);
        g.set_place(Place::Layer(0));
        let init = Init::Normal { std: 1.0 };
        g.scoped("embedding", |g| g.parameter("token", &[vocab, d.embed], init, true))
    }

    fn embed(&self, g: &mut Graph, name: &str, table: ValueId, tokens: ValueId) -> ValueId {
        g.set_place(Place::Layer(0));
        g.scoped("embedding", |g| {
            let x = g.embedding(name, table, tokens);
            g.dropout(&format!("{name}.dropout"), x, self.dropout.embedding)
        })
    }

    fn encode(&self, g: &mut Graph, d: Dims, key_index: Option<ValueId>, x: ValueId) -> Encoded {
        let (seq, key_seq) = (d.seq, d.key_seq);
        let encoder = Stack {
            name: "encoder",
            num_layers: self.num_layers,
            first: 1,
            dims: d,
            key_index,
            cache: None,
            is_decoder: false,
        };
        let x = self.layers(g, &encoder, None, x);
        let output = g.scoped("encoder", |g| {
            let x = self.norm(g, x);
            g.dropout("dropout", x, self.dropout.residual)
        });
        g.mark_stream(output);
        Encoded { output, seq, key_seq, key_index }
    }

    fn decoded(&self, g: &mut Graph, d: Dims, cache: Option<Cache>, source: Source, y: ValueId) -> ValueId {
        let decoder = Stack {
            name: "decoder",
            num_layers: self.num_decoder_layers,
            first: 1 + self.num_layers,
            dims: d,
            key_index: None,
            cache,
            is_decoder: true,
        };
        self.layers(g, &decoder, Some(source), y)
    }

    /// Scores of tokens behind each position, or behind those that `select` marks.
    fn head(&self, g: &mut Graph, y: ValueId, table: ValueId, select: Option<ValueId>) -> ValueId {
        g.set_place(Place::Layer(1 + self.num_layers + self.num_decoder_layers));
        g.scoped("head", |g| {
            let y = self.norm(g, y);
            let mut y = g.dropout("dropout", y, self.dropout.residual);
            if let Some(select) = select {
                y = g.weighted_sum("chosen", y, select);
            }
            let by_inputs = 1.0 / (self.widths.embed as f64).sqrt();
            if self.scale_output {
                y = parts::scaled(g, y, by_inputs);
            }
            let [vocab, embed] = g.value(table).dims[..] else { unreachable!("a table is a matrix") };
            let weight = match self.tied {
                true => table,
                false => g.parameter("weight", &[vocab, embed], Init::Normal { std: by_inputs }, true),
            };
            let mut dims = g.value(y).dims.clone();
            dims.pop();
            dims.push(vocab);
            g.contract("logits", y, weight, &dims)
        })
    }

    /// Scores of the targets of a batch: at every position, or where the input `select` says.
    fn scores(&self, g: &mut Graph, step: Step, has_key_index: bool, selects: bool) -> ValueId {
        let source = self.source_dims(g, step.batch, step.sequence_length);
        let target = self.target_dims(g, &source, step.target_length);
        g.set_place(Place::Everywhere);
        let rows = [target.batch, target.seq];
        let tokens = g.input("tokens", &[source.batch, source.seq], ValueType::Int);
        let target_tokens = g.input("target_tokens", &rows, ValueType::Int);
        let key_index = parts::key_index(g, has_key_index, [source.batch, source.key_seq]);
        let select = selects.then(|| g.input("select", &rows, ValueType::Float));
        let table = self.table(g, &source);
        let x = self.embed(g, "tokens", table, tokens);
        let y = self.embed(g, "targets", table, target_tokens);
        let encoded = self.encode(g, source, key_index, x);
        let y = self.decoded(g, target, None, Source::Encoded(encoded), y);
        self.head(g, y, table, select)
    }

    /// Scores of the token behind each continuation; the prompts are `read` now, or were in an earlier step.
    fn scores_over_caches(&self, g: &mut Graph, extents: &Decoding, beams: usize, read: bool) -> ValueId {
        let source = self.source_dims(g, extents.batch, extents.prompt_length);
        let target = self.target_dims(g, &source, beams);
        let (slot, source_slot) = (g.dim("slot", extents.slots), g.dim("source_slot", extents.prompt_length));
        g.set_place(Place::Everywhere);
        let rows = [target.batch, target.seq];
        let [target_tokens, slots] =
            ["target_tokens", "slots"].map(|name| g.input(name, &rows, ValueType::Int));
        let [distance, source_distance] = [("distance", slot), ("source_distance", source_slot)]
            .map(|(name, slot)| g.input(name, &[target.batch, target.seq, slot], ValueType::Int));
        let table = self.table(g, &source);
        let key_index = parts::key_index(g, read, [source.batch, source.key_seq]);
        let encoded = key_index.map(|key_index| {
            let tokens = g.input("tokens", &[source.batch, source.seq], ValueType::Int);
            let x = self.embed(g, "tokens", table, tokens);
            self.encode(g, Dims { ..source }, Some(key_index), x)
        });
        let y = self.embed(g, "targets", table, target_tokens);
        let cache = Cache { slot, slots: Some(slots), distance: Some(distance) };
        let of_source = Cache { slot: source_slot, slots: key_index, distance: Some(source_distance) };
        let y = self.decoded(g, target, Some(cache), Source::Kept(of_source, encoded), y);
        self.head(g, y, table, None)
    }
}

impl Model for T5 {
    fn forward(&self, g: &mut Graph, step: Step, given: &Given) -> Forward {
        g.set_role(Role::Forward);
        let logits = self.scores(g, step, given.key_index, false);
        Forward { outputs: vec![("logits", logits)], loss: given.labels.then(|| loss(g, logits)) }
    }

    fn num_layers(&self) -> usize {
        self.num_layers + self.num_decoder_layers
    }
}

impl Generator for T5 {
    fn next_token(&self, g: &mut Graph, step: Step) -> ValueId {
        self.scores(g, step, true, true)
    }

    fn prefill(&self, g: &mut Graph, extents: &Decoding) -> ValueId {
        self.scores_over_caches(g, extents, 1, true)
    }

    fn decode(&self, g: &mut Graph, extents: &Decoding) -> ValueId {
        self.scores_over_caches(g, extents, extents.beams, false)
    }
}
