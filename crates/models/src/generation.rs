//! The steps of generation: the scores of the next token, over whole texts or over the caches of what was read before.

use graph::{Graph, Place, Role, ValueId, ValueType};

use crate::cache::Cache;
use crate::decoder::{Decoder, Inputs};
use crate::step::{Precision, Step, mix, share};

/// Extents of a generation that keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// Prompts.
    pub batch: usize,
    /// Tokens of the longest prompt.
    pub prompt_length: usize,
    /// Continuations of each prompt that are written at once.
    pub beams: usize,
    /// Keys that are kept of each prompt and all its continuations.
    pub slots: usize,
}

/// A model that writes token by token.
pub trait Generator: Sync {
    /// Scores `[batch, vocab]` of the token behind one position of each text, which the input `select` marks with 1;
    /// everything is computed from the text.
    ///
    /// Inputs of a decoder: `tokens`, `positions`, `select` `[batch, seq]`. Of an encoder-decoder: `tokens` `[batch, seq]`,
    /// `key_index` `[batch, key_seq]`, `target_tokens`, `select` `[batch, target_seq]`.
    fn next_token(&self, g: &mut Graph, step: Step) -> ValueId;

    /// Scores of the first token behind each prompt. Keys and values of the prompt are kept.
    ///
    /// Inputs of a decoder: as of [`next_token`](Generator::next_token), and `slots` `[batch, key_seq]`, where the keys of
    /// each position go. Of an encoder-decoder: `tokens`, `key_index`, by which the encoder's keys are kept too, and those
    /// of [`decode`](Generator::decode) for the token that decoding starts from.
    fn prefill(&self, g: &mut Graph, extents: &Decoding) -> ValueId;

    /// Scores `[batch, beams, vocab]` of the token behind each continuation, given its last one.
    ///
    /// Inputs: `tokens` (of an encoder-decoder `target_tokens`) and `slots` `[batch, beams]`, the new tokens and where their
    /// keys go; `distance` `[batch, beams, slot]`, positions from each slot's key to the new one, negative if it belongs to
    /// another continuation. Of a decoder: `positions` `[batch, beams]`. Of an encoder-decoder: `source_distance`
    /// `[batch, beams, source_slot]`, negative where the prompt has no token.
    fn decode(&self, g: &mut Graph, extents: &Decoding) -> ValueId;
}

impl Generator for Decoder {
    fn next_token(&self, g: &mut Graph, step: Step) -> ValueId {
        self.read_texts(g, step, None)
    }

    fn prefill(&self, g: &mut Graph, extents: &Decoding) -> ValueId {
        let step = Step::new(extents.batch, extents.prompt_length);
        self.read_texts(g, step, Some(extents.slots))
    }

    fn decode(&self, g: &mut Graph, extents: &Decoding) -> ValueId {
        let d = self.dims(g, extents.batch, extents.beams);
        let slot = g.dim("slot", extents.slots);
        g.set_place(Place::Everywhere);
        let [tokens, positions, slots] =
            ["tokens", "positions", "slots"].map(|name| g.input(name, &[d.batch, d.seq], ValueType::Int));
        let distance = g.input("distance", &[d.batch, d.seq, slot], ValueType::Int);
        let cache = Some(Cache { slot, slots: Some(slots), distance: Some(distance) });
        let (x, table) = self.body(g, &d, &Inputs { tokens, positions, key_index: None, cache });
        let x = self.final_norm(g, x);
        self.logits(g, &d, x, table, &[d.batch, d.seq, d.vocab])
    }
}

impl Decoder {
    /// Scores of the token behind the selected position of each text; `slots`: how many keys to keep, if any.
    fn read_texts(&self, g: &mut Graph, step: Step, slots: Option<usize>) -> ValueId {
        let d = self.dims(g, step.batch, step.sequence_length);
        g.set_place(Place::Everywhere);
        let tokens = g.input("tokens", &[d.batch, d.seq], ValueType::Int);
        let positions = g.input("positions", &[d.batch, d.seq], ValueType::Int);
        let select = g.input("select", &[d.batch, d.seq], ValueType::Float);
        let cache = slots.map(|num_slots| Cache {
            slot: g.dim("slot", num_slots),
            slots: Some(g.input("slots", &[d.batch, d.key_seq], ValueType::Int)),
            distance: None,
        });
        let (x, table) = self.body(g, &d, &Inputs { tokens, positions, key_index: None, cache });
        let x = self.final_norm(g, x);
        let chosen = g.weighted_sum("head.chosen", x, select);
        self.logits(g, &d, chosen, table, &[d.batch, d.vocab])
    }
}

/// [`Generator::next_token`] as a step. Output: `logits`, on every rank.
pub fn next_token_step(model: &dyn Generator, step: Step, precision: Precision) -> Graph {
    scores(precision, |g| model.next_token(g, step))
}

/// [`Generator::prefill`] as a step, which has all states of [`decode_step`]. Output: `logits`, on every rank.
pub fn prefill_step(model: &dyn Generator, extents: &Decoding, precision: Precision) -> Graph {
    scores(precision, |g| model.prefill(g, extents))
}

/// [`Generator::decode`] as a step. Output: `logits`, on every rank.
pub fn decode_step(model: &dyn Generator, extents: &Decoding, precision: Precision) -> Graph {
    scores(precision, |g| model.decode(g, extents))
}

fn scores(precision: Precision, text: impl FnOnce(&mut Graph) -> ValueId) -> Graph {
    let mut g = Graph::new();
    g.set_role(Role::Forward);
    let logits = text(&mut g);
    share(&mut g, "logits", logits);
    mix(&mut g, precision);
    g
}
