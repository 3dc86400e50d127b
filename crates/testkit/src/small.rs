//! Small models that still have everything that can go wrong: sizes that do not divide, grouped heads, dropout, masks.

use std::path::Path;

use train::config::Config;

/// A small training configuration.
#[derive(Debug, Clone)]
pub struct Small {
    /// `gpt2` or `llama`.
    pub family: &'static str,
    /// One table for embedding and head.
    pub tied: bool,
    /// `sgd`, `adam` or `adamw`.
    pub optimizer: &'static str,
    /// Transformer layers.
    pub num_layers: usize,
    /// Sequences per step.
    pub batch: usize,
    /// Dropout.
    pub dropout: f64,
}

impl Default for Small {
    /// LLaMA style, 2 key-value heads for 4 query heads, vocabulary 53, sequences of 15, 7 layers, AdamW, dropout, clipping.
    fn default() -> Small {
        Small { family: "llama", tied: true, optimizer: "adamw", num_layers: 7, batch: 12, dropout: 0.1 }
    }
}

impl Small {
    /// The configuration in f64 on one rank.
    ///
    /// # Panics
    /// If the text below is no configuration: a bug here.
    pub fn config(&self) -> Config {
        let kv = if self.family == "llama" { "num_kv_heads = 2" } else { "" };
        let momentum = if self.optimizer == "sgd" { "momentum = 0.9\nnesterov = true" } else { "" };
        let text = format!(
            "[model]\nfamily = \"{}\"\nnum_layers = {}\nembed = 16\nnum_heads = 4\n{kv}\nmlp = 21\nvocab_size = 53\n\
             tied = {}\ndropout = {}\n[data]\nsequence_length = 15\n[train]\nbatch = {}\nprecision = \"f64\"\n\
             optimizer = \"{}\"\n{momentum}\nlr = 1e-2\nlr_schedule = \"constant\"\nwarmup_steps = 0\n\
             weight_decay = 0.1\nclip_norm = 0.1\nseed = 7\n",
            self.family, self.num_layers, self.tied, self.dropout, self.batch, self.optimizer
        );
        Config::from_bytes(Path::new("small.toml"), text.as_bytes(), &[], None)
            .expect("a valid configuration")
    }

    /// The same in a layout, as the parity command writes it.
    ///
    /// # Panics
    /// If the layout is no layout.
    pub fn layout(&self, layout: &str) -> Config {
        self.config().with_layout(layout).unwrap_or_else(|e| panic!("{layout}: {e}"))
    }
}

/// Whether the exhaustive matrices were asked for (`cargo xtask test --full`).
pub fn full() -> bool {
    std::env::var_os("PHALANX_FULL").is_some()
}

/// All of `cases` in a full run; otherwise those whose turn it is, so that every layout meets every variant somewhere.
pub fn pairwise(variant: usize, layout: usize, variants: usize) -> bool {
    full() || layout % variants == variant
}
