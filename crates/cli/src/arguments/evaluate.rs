//! Flags of `phalanx evaluate`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx evaluate runs/spam-1                                   on what the run held out
  phalanx evaluate runs/spam-1 --data new.jsonl --json
  phalanx evaluate path/to/gpt2 --data my.txt                    a Hugging Face directory
  phalanx evaluate runs/digits-1 --at-least accuracy=0.97        exit 1 if it is below
  phalanx evaluate runs/digits-1 --data images-idx3-ubyte --labels labels-idx1-ubyte

Metrics follow from the task: accuracy, precision, recall and f1 of classes or entities, bleu and chrf of texts,
perplexity of language models; docs/tasks.md has them, and what the baselines are.")]
pub struct EvaluateArguments {
    /// A run's directory, one of its checkpoints, or a Hugging Face directory
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,
    /// Files in the form of those it was trained on; may be repeated [default: what the run held out]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Task of a Hugging Face directory [default: what its config.json says]
    #[arg(long, value_name = "TASK")]
    pub task: Option<String>,
    /// Key of a configuration for a Hugging Face directory, as data.sequence_length=128; may be repeated
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// IDX files with the labels of images in --data
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "data")]
    pub labels: Vec<PathBuf>,
    /// Ranks along each axis (dp, cp, tp, pp) instead of those that trained it
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// A bar: exit 1 if the metric is below; may be repeated
    #[arg(long, value_name = "METRIC=VALUE", value_parser = bar)]
    pub at_least: Vec<(String, f64)>,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

fn bar(text: &str) -> Result<(String, f64), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
    parsed.ok_or_else(|| "write METRIC=VALUE, as in accuracy=0.97".to_owned())
}
