//! The command line's grammar and its help. What the values do is each command's file.

mod evaluate;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use phalanx::Config;
use phalanx::EarlyStopping;
use phalanx::schedule::{Times, generators};

pub use evaluate::EvaluateArguments;

/// Trains Transformers in parallel: write the model once; a plan splits it across ranks; it trains the same.
#[derive(Debug, Parser)]
#[command(
    name = "phalanx",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  phalanx train examples/austen.toml                     train on real text, 4 ranks
  phalanx train examples/austen.toml --mesh pp=2,tp=2    the same, split otherwise
  phalanx explain examples/llama3-405b.toml              what 16,384 ranks would hold and say
  phalanx parity examples/austen.toml --mesh dp=2,tp=2   prove that the split changes nothing

Exit codes: 0 success; 1 a check failed; 2 the input or environment is wrong.
`phalanx help COMMAND` has more, with examples."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model from a configuration, or continue a run
    Train(TrainArguments),
    /// Continue a text with a trained model, in any layout
    Generate(GenerateArguments),
    /// Score a trained model on held-out data, beside what counting alone reaches
    Evaluate(EvaluateArguments),
    /// Write a run's model as a directory that other programs read
    Export(ExportArguments),
    /// Compute loss, logits and every gradient of a Hugging Face checkpoint for a batch, in any layout
    Gradients(GradientsArguments),
    /// Say what a configuration would do, without doing it: memory, communication, placements
    Explain(ExplainArguments),
    /// Train some steps in other layouts and on one rank, and measure how far they are apart
    Parity(ParityArguments),
    /// Start the ranks of a run as processes of this host, watch them, and start them anew if one fails
    Launch(LaunchArguments),
    /// Measure latency and bandwidth of each collective, beside what the machine can do
    BenchComm(BenchCommArguments),
    /// Run some steps and say where their time goes, beside what this machine gives at its best
    Profile(ProfileArguments),
    /// Make, read, draw and time a pipeline schedule
    Schedule(ScheduleArguments),
    /// Work with text
    Data {
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Work with tokenizers
    Tokenizer {
        #[command(subcommand)]
        command: TokenizerCommand,
    },
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  phalanx completions bash > ~/.local/share/bash-completion/completions/phalanx"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Build the tokenizer and the token cache of a configuration before a run, and count them
    Prepare(PrepareArguments),
}

#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on text files
    Train(TokenizerArguments),
}

/// A configuration and what changes it.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// The configuration, a TOML file
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Sets a key: `train.lr=3e-4`, `model.family=gpt2`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl ConfigArguments {
    /// The configuration with every `--set`, then `more` of the same form, then `--mesh`.
    pub fn load(&self, more: &[String], mesh: Option<&str>) -> anyhow::Result<Config> {
        let sets = [&self.sets[..], more].concat();
        Ok(Config::load(&self.config, &sets, mesh)?)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx train examples/austen.toml
  phalanx train examples/austen.toml --mesh dp=4 --set train.lr=2e-3 --steps 500
  phalanx train examples/austen.toml --mesh \"dp=2,pp=2;schedule=gpipe;num_microbatches=4\"
  phalanx train examples/austen.toml --resume runs/austen-1 --steps 1400 --mesh tp=2")]
pub struct TrainArguments {
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Ranks along each axis (dp, cp, tp, pp), replacing the file's mesh; other settings after a semicolon
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// Steps to train in all, those of a resumed run included
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub steps: Option<u64>,
    /// Directory of the run [default: runs/NAME-N, a new one]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue a run, or one of its checkpoints, in any layout
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// File for metrics, one JSON object a line [default: metrics.jsonl in the run's directory]
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Print the run's summary as one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx generate runs/austen-1 --prompt \"It is a truth\"
  phalanx generate runs/austen-1 --prompt \"She\" --tokens 200 --temperature 0.8 --top-k 40 --seed 7
  phalanx generate runs/austen-1 --prompt \"She\" --mesh pp=2    the same tokens from another layout
  phalanx generate t5-small --prompts questions.txt --beams 4 --best 2 --json

Several continuations are written a line each, with their own line ends as \\n.")]
pub struct GenerateArguments {
    /// A run's directory, one of its checkpoints, or a Hugging Face directory
    pub checkpoint: PathBuf,
    /// Text to continue (of an encoder-decoder: to answer); may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present = "prompts")]
    pub prompt: Vec<String>,
    /// File with a prompt on each line, after those of --prompt; blank lines are skipped
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true)]
    pub tokens: usize,
    /// 0 always takes the likeliest token; higher is more surprising
    #[arg(long, value_name = "T", default_value = "0", value_parser = non_negative, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Draw from the K likeliest tokens only
    #[arg(long, value_name = "K", value_parser = positive, allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens whose probabilities sum to P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Make tokens that are there already less likely; 1 is none
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Keep the N likeliest texts at once (beam search)
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub beams: usize,
    /// Power of the length that beams' scores are divided by
    #[arg(long, value_name = "L", default_value_t = 1.0, allow_negative_numbers = true)]
    pub length_penalty: f64,
    /// When a beam search is over: estimate, always, never (as early_stopping = False, True, "never" of transformers)
    #[arg(long, value_name = "WHEN", default_value = "estimate")]
    pub early_stopping: EarlyStopping,
    /// Write the N best beams of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub best: usize,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 1, allow_negative_numbers = true)]
    pub seed: u64,
    /// Layout to compute in [default: the one of the checkpoint's run]
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// Type to compute in [default: the run's; f32 for a Hugging Face directory]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Write on where a text would end
    #[arg(long)]
    pub ignore_end: bool,
    /// Compute the whole text anew for each token, instead of keeping keys and values: to check and to compare
    #[arg(long)]
    pub no_cache: bool,
    /// Say on stderr how fast it was
    #[arg(long)]
    pub speed: bool,
    /// Print prompts and continuations as one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx explain examples/austen.toml
  phalanx explain examples/austen.toml --mesh \"dp=2,tp=2;zero=3\" --program
  phalanx explain examples/llama3-405b.toml --json | jq .per_rank[0]

Opens no data file if model.vocab_size is set. Arenas are to the byte what `phalanx train` reserves.")]
pub struct ExplainArguments {
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Ranks along each axis (dp, cp, tp, pp), replacing the file's mesh; other settings after a semicolon
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// Add the instructions of each pipeline rank
    #[arg(long)]
    pub program: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A Hugging Face directory: config.json, model.safetensors, tokenizer.json
    Safetensors,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx export runs/austen-1 --format safetensors                  into runs/austen-1/safetensors
  phalanx export runs/austen-1 --format safetensors --out my-model --dtype bf16

`transformers` loads the result by AutoModelForCausalLM.from_pretrained. It does not depend on the layout that trained.")]
pub struct ExportArguments {
    /// A run's directory, one of its checkpoints, or a Hugging Face directory
    #[arg(value_name = "DIR")]
    pub from: PathBuf,
    /// Form of the result
    #[arg(long, value_name = "F")]
    pub format: ExportFormat,
    /// Directory to write to [default: safetensors in DIR]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Type of the stored numbers, f64, f32, bf16 or f16 [default: as DIR has them]
    #[arg(long, value_name = "D")]
    pub dtype: Option<String>,
    /// Print a report as one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    F64,
    F32,
    Bf16,
}

impl From<Dtype> for phalanx::Precision {
    fn from(dtype: Dtype) -> phalanx::Precision {
        match dtype {
            Dtype::F64 => phalanx::Precision::F64,
            Dtype::F32 => phalanx::Precision::F32,
            Dtype::Bf16 => phalanx::Precision::Bf16,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx gradients --from gpt2 --batch batch.safetensors --out out.safetensors
  phalanx gradients --from gpt2 --batch batch.safetensors --out out.safetensors --dtype f64 --mesh dp=2,tp=2,pp=2

The batch holds what the model of `transformers` takes: input_ids [batch, seq], attention_mask, labels (-100 is ignored,
those of a causal model are not shifted)... The result holds loss, logits and the gradient of every parameter by its name,
whole, whatever the layout. Dropout is off.")]
pub struct GradientsArguments {
    /// A Hugging Face directory: config.json and safetensors
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// The batch, as safetensors
    #[arg(long, value_name = "FILE")]
    pub batch: PathBuf,
    /// Where to write loss, logits and gradients, as safetensors
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Ranks along each axis (dp, cp, tp, pp); other settings after a semicolon, as num_microbatches=2
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// Number format to compute in
    #[arg(long, value_name = "D", default_value = "f32")]
    pub dtype: Dtype,
    /// Task, if not the one that the checkpoint was saved for: causal-lm, masked-lm, classify, tag, seq2seq, image-classify, embed
    #[arg(long, value_name = "T")]
    pub task: Option<String>,
    /// Print a report as one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    F32,
    F64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx parity examples/austen.toml                        the configuration's own layout
  phalanx parity examples/austen.toml --mesh dp=2 --mesh \"dp=2,tp=2;zero=3;sequence=true\"
  phalanx parity small.toml --all                            every mesh of 2, 4 and 8 ranks, settings pairwise

Batches are synthetic: no data file is opened if model.vocab_size is set. Exits 1 if a layout is not within the
tolerance, or if two ranks that should hold the same bits do not.")]
pub struct ParityArguments {
    #[command(flatten)]
    pub config: ConfigArguments,
    /// A layout to compare, as `dp=2,tp=2;zero=3;num_microbatches=4`; may be repeated
    #[arg(long = "mesh", value_name = "MESH")]
    pub meshes: Vec<String>,
    /// Compare every mesh of 2, 4 and 8 ranks that the model admits, with pairs of the other settings
    #[arg(long)]
    pub all: bool,
    /// Largest world of --all
    #[arg(long, value_name = "RANKS", default_value_t = 8, allow_negative_numbers = true)]
    pub max_world: usize,
    /// Steps to train
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive, allow_negative_numbers = true)]
    pub steps: usize,
    /// Number format to compute in
    #[arg(long, value_name = "P", default_value = "f64")]
    pub precision: Precision,
    /// Largest error of losses and gradients; parameters may have 100 times that under Adam
    #[arg(long, value_name = "T", default_value = "1e-10", value_parser = non_negative, allow_negative_numbers = true)]
    pub tolerance: f64,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LaunchBackend {
    Gloo,
    Mpi,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx launch -- train examples/austen.toml --mesh dp=2,tp=2
  phalanx launch --ranks 4 --max-restarts 3 -- train examples/austen.toml --out runs/a
  phalanx launch --ranks 2 --backend mpi -- bench-comm

Lines begin with the rank that wrote them (stdout is passed on unchanged if the command has --json). If a rank dies, is stopped or falls silent, all others
end with an error that names it; with --max-restarts the run continues from its last checkpoint, with the same bits.
Several hosts: docs/distributed.md.")]
pub struct LaunchArguments {
    /// Processes to start [default: the ranks of the configuration's mesh]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub ranks: Option<usize>,
    /// What carries bytes between them
    #[arg(long, value_name = "BACKEND", default_value = "gloo")]
    pub backend: LaunchBackend,
    /// How often to start anew from the last checkpoint
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub max_restarts: usize,
    /// With --backend mpi: the command that starts MPI processes, with its options
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "mpirun --oversubscribe --tag-output",
        allow_hyphen_values = true
    )]
    pub mpirun: String,
    /// What each process runs: `train`, `parity` or `bench-comm` with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx bench-comm --ranks 2                              threads of this process
  phalanx launch --ranks 2 -- bench-comm --json             two processes over Gloo
  phalanx bench-comm --ranks 4 --mesh dp=2,tp=2             every group of a mesh as well")]
pub struct BenchCommArguments {
    /// Ranks as threads [default: 2]; under a launcher, as many as it started
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub ranks: Option<usize>,
    /// Measure the groups of this mesh too
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// Bytes of each message; may be repeated [default: 4 KiB, 64 KiB, 1 MiB, 16 MiB]
    #[arg(long = "bytes", value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub bytes: Vec<usize>,
    /// Time for each measurement, in seconds
    #[arg(long, value_name = "S", default_value = "0.3", value_parser = non_negative, allow_negative_numbers = true)]
    pub seconds: f64,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx profile examples/austen.toml
  phalanx profile examples/austen.toml --mesh tp=2,pp=2 --steps 20 --trace trace.json
  phalanx profile examples/austen.toml --set parallel.threads_per_rank=2 --json | jq .classes

Batches are synthetic: no data file is opened if model.vocab_size is set. Open a trace in Perfetto or at
chrome://tracing: a process per rank, a track per queue. Timing every instruction costs a little itself.")]
pub struct ProfileArguments {
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Ranks along each axis (dp, cp, tp, pp), replacing the file's mesh; other settings after a semicolon
    #[arg(long, value_name = "MESH")]
    pub mesh: Option<String>,
    /// Steps to time, after one to warm up
    #[arg(long, value_name = "N", default_value = "5", value_parser = positive, allow_negative_numbers = true)]
    pub steps: usize,
    /// Write every instruction's time as a Chrome trace
    #[arg(long, value_name = "FILE", conflicts_with = "virtual_clock")]
    pub trace: Option<PathBuf>,
    /// Run the pipeline in virtual time, one rank computing at a time, and compare it with the simulator
    #[arg(long)]
    pub virtual_clock: bool,
    /// Seconds that a message between ranks takes on the virtual clock, whatever its size
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, requires = "virtual_clock")]
    pub latency: f64,
    /// Bytes per second of a link on the virtual clock; without limit if not given
    #[arg(long, value_name = "BYTES", requires = "virtual_clock")]
    pub bandwidth: Option<f64>,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  phalanx schedule 1f1b --stages 4 --microbatches 8
  phalanx schedule gpipe --stages 4 --microbatches 8 --times 1,1,1,0.2 --json
  phalanx schedule zb-v --stages 4 --microbatches 8 --svg schedule.svg
  phalanx schedule auto --stages 4 --microbatches 8 --chunks 2 --times 2,3,1 --memory-cap 6
  phalanx schedule 1f1b --stages 4 --microbatches 8 --csv schedule.csv
  phalanx schedule --from-csv schedule.csv --times 2,2,1")]
pub struct ScheduleArguments {
    #[arg(required_unless_present = "from_csv", help = schedule_names())]
    pub name: Option<String>,
    /// Pipeline ranks
    #[arg(long, value_name = "P", required_unless_present = "from_csv", allow_negative_numbers = true)]
    pub stages: Option<usize>,
    /// Microbatches of a step
    #[arg(long, value_name = "M", required_unless_present = "from_csv", allow_negative_numbers = true)]
    pub microbatches: Option<usize>,
    /// Stages on each pipeline rank [default: 1, or as many as the schedule needs]
    #[arg(long, value_name = "V", allow_negative_numbers = true)]
    pub chunks: Option<usize>,
    /// Most live chunks on a rank: `auto` keeps to it, any other schedule that needs more is refused
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    pub memory_cap: Option<usize>,
    /// Times of forward, backward for inputs, backward for weights, and of a transfer, on one stage
    #[arg(long, value_name = "F,I,W[,COMM]", default_value = "1,1,1", value_parser = times, allow_hyphen_values = true)]
    pub times: Times,
    /// Draw it as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write it as CSV: a line per rank, an action per cell
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Read it from such a file instead of making it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stages", "microbatches"])]
    pub from_csv: Option<PathBuf>,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  phalanx data prepare examples/austen.toml")]
pub struct PrepareArguments {
    #[command(flatten)]
    pub config: ConfigArguments,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  phalanx tokenizer train a.txt b.txt --vocab 4096 --out tokenizer.json")]
pub struct TokenizerArguments {
    /// Text files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Tokens in the vocabulary, the 256 bytes and 2 special tokens included
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub vocab: usize,
    /// Where to write it, in Hugging Face's `tokenizer.json` form
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print one JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

fn schedule_names() -> String {
    let names: Vec<&str> = generators().iter().map(|generator| generator.name).collect();
    format!("Its name: {}", names.join(", "))
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it must be a whole number of at least 1".to_owned()),
    }
}

fn non_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("it must be a finite number of at least 0".to_owned()),
    }
}

fn times(text: &str) -> Result<Times, String> {
    let numbers = text.split(',').map(|part| non_negative(part.trim())).collect::<Result<Vec<_>, _>>();
    match numbers.map_err(|why| format!("each time: {why}"))?[..] {
        [forward, input, weight] => Ok(Times::new(forward, input, weight)),
        [forward, input, weight, comm] => Ok(Times { forward, input, weight, comm }),
        _ => Err("write three or four times, as in 1,1,1 or 1,1,1,0.2".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn numbers_are_read_or_refused() {
        assert_eq!(times("1, 2,3,0.5"), Ok(Times { forward: 1.0, input: 2.0, weight: 3.0, comm: 0.5 }));
        for text in ["1,2", "1,2,3,4,5", "1,nan,3", "1,-1,1", "", "inf,1,1"] {
            assert!(times(text).is_err(), "{text}");
        }
        assert!(positive("0").is_err() && positive("-1").is_err() && positive("x").is_err());
        assert_eq!(positive("3"), Ok(3));
    }
}
