//! The models of the bench, and the settings that both programs read. Nothing is run here.

use std::path::Path;

use crate::Failure;

/// AdamW's numbers, the same for both.
const LR: f64 = 1e-3;
const BETAS: [f64; 2] = [0.9, 0.95];
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.1;

/// A model in GPT-2's style (pre-norm, learned positions, biases, tanh GELU, untied head, no dropout) and its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    pub name: &'static str,
    pub layers: usize,
    pub embed: usize,
    pub heads: usize,
    pub sequence: usize,
    pub vocab: usize,
    /// Sequences in a step of one rank.
    pub batch: usize,
    /// What Phalanx computes again in the backward instead of keeping it, `parallel.recompute`.
    pub recompute: &'static str,
    /// Steps of a run that are not counted.
    pub warmup: usize,
    /// Steps of a run that are.
    pub steps: usize,
    /// Rounds, unless the call says otherwise.
    pub pairs: usize,
}

pub const SMALL: Model = Model {
    name: "small",
    layers: 6,
    embed: 384,
    heads: 6,
    sequence: 256,
    vocab: 8192,
    batch: 8,
    recompute: "none",
    warmup: 2,
    steps: 5,
    pairs: 15,
};

pub const LARGE: Model = Model {
    name: "large",
    layers: 12,
    embed: 768,
    heads: 12,
    sequence: 256,
    vocab: 32000,
    batch: 4,
    recompute: "selective",
    warmup: 2,
    steps: 4,
    pairs: 6,
};

/// For `--quick`: runs in a fraction of a second.
pub const TINY: Model = Model {
    name: "tiny",
    layers: 2,
    embed: 64,
    heads: 2,
    sequence: 64,
    vocab: 512,
    batch: 4,
    recompute: "none",
    warmup: 1,
    steps: 4,
    pairs: 1,
};

impl Model {
    /// Trained scalars.
    pub fn num_parameters(&self) -> usize {
        let Model { layers, embed, sequence, vocab, .. } = *self;
        let layer = 12 * embed * embed + 13 * embed;
        2 * vocab * embed + sequence * embed + layers * layer + 2 * embed
    }

    /// Tokens in a step of one rank.
    pub fn tokens(&self) -> usize {
        self.batch * self.sequence
    }

    /// `m, n, k` of the forward products `[m, k] x [k, n]` of a step.
    pub fn products(&self) -> [[usize; 3]; 5] {
        let (m, d) = (self.tokens(), self.embed);
        [[m, 3 * d, d], [m, d, d], [m, 4 * d, d], [m, d, 4 * d], [m, self.vocab, d]]
    }

    /// `config.toml` for `phalanx` and `settings.json` for the scripts, beside the tokens in `dir`.
    pub fn write_settings(&self, dir: &Path) -> Result<(), Failure> {
        let Model { layers, embed, heads, sequence, vocab, batch, recompute, .. } = self;
        // A run is ended from outside when it has shown enough steps, before it saves anything.
        let config = format!(
            "[model]\nfamily = \"gpt2\"\nnum_layers = {layers}\nembed = {embed}\nnum_heads = {heads}\n\
             vocab_size = {vocab}\ntied = false\ndropout = 0.0\n\n\
             [data]\ntext = [\"tokens.txt\"]\ntokenizer = \"tokenizer.json\"\nsequence_length = {sequence}\n\
             validation = 0.0\n\n\
             [parallel]\nrecompute = \"{recompute}\"\n\n\
             [train]\nsteps = 1000000\nbatch = {batch}\noptimizer = \"adamw\"\nlr = {LR}\n\
             lr_schedule = \"constant\"\nwarmup_steps = 0\nbetas = {BETAS:?}\neps = {EPS:?}\n\
             weight_decay = {WEIGHT_DECAY}\nclip_norm = 0.0\neval_every = 0\nseed = {}\n",
            super::tokens::SEED
        );
        let settings = format!(
            "{{\"layers\": {layers}, \"embed\": {embed}, \"heads\": {heads}, \"sequence\": {sequence}, \
             \"vocab\": {vocab}, \"batch\": {batch}, \"tokens\": {:?}, \"lr\": {LR}, \"betas\": {BETAS:?}, \
             \"eps\": {EPS:?}, \"weight_decay\": {WEIGHT_DECAY}}}\n",
            dir.join("tokens.bin")
        );
        super::write(&dir.join("config.toml"), config.as_bytes())?;
        super::write(&dir.join("settings.json"), settings.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_published_sizes() {
        assert_eq!(SMALL.num_parameters(), 17_037_312);
        assert_eq!(LARGE.num_parameters(), 134_404_608);
    }
}
