//! Phalanx trains Transformers in parallel: **write the model once; a plan splits it across ranks; it trains the
//! same.**
//!
//! This crate is the public face: it holds no code of its own. What most programs need stands at the top
//! ([`Config`], [`train()`], [`generate()`], [`explain()`], [`compare()`]); the rooms behind it are re-exported whole.
//!
//! Say what to train and how to split it, ask what that would take, then prove that the split changes nothing:
//!
//! ```
//! use phalanx::Config;
//!
//! let text = r#"
//!     [model]
//!     family = "llama"
//!     num_layers = 2
//!     embed = 16
//!     num_heads = 4
//!     vocab_size = 50
//!     [data]
//!     sequence_length = 8
//!     [parallel]
//!     mesh = { dp = 2, tp = 2 }
//!     [train]
//!     batch = 4
//!     precision = "f64"
//! "#;
//! let config = Config::from_bytes("tiny.toml".as_ref(), text.as_bytes(), &[], None)?;
//!
//! // What would each of the four ranks hold, and what would they say to each other?
//! let explanation = phalanx::explain(&config)?;
//! assert_eq!(explanation.world_size, 4);
//! println!("{explanation}");
//!
//! // Two steps in this layout against two steps on one rank: losses, gradients, parameters.
//! let report = phalanx::compare(&config, &[], 2, 1e-10, &mut |_| {})?;
//! assert!(report.ok);
//! # Ok::<(), phalanx::TrainError>(())
//! ```
//!
//! Training reads text and writes a run's directory, and tells an observer what happens:
//!
//! ```no_run
//! use phalanx::{Config, Event, RunOptions};
//!
//! let config = Config::load("examples/austen.toml".as_ref(), &[], Some("dp=2,tp=2"))?;
//! let options = RunOptions { runs: "runs".into(), ..RunOptions::default() };
//! let summary = phalanx::train(&config, &options, &|event| {
//!     if let Event::Step(step) = event {
//!         println!("step {}: loss {:.3}", step.step, step.loss);
//!     }
//! })?;
//! println!("{:?}", summary.checkpoint);
//! # Ok::<(), phalanx::TrainError>(())
//! ```

#![forbid(unsafe_code)]

pub use ::train::TrainError;
pub use ::train::config::{Config, ConfigError, Precision};
pub use ::train::evaluate::{Baseline, EvaluateOptions, EvaluateReport, evaluate};
pub use ::train::explain::{
    Communication, Explanation, ParameterPlacement, RankBytes, StageListing, explain, listing,
};
pub use ::train::export::{ExportOptions, ExportReport, export};
pub use ::train::generate::{
    Continuation, EarlyStopping, GenerateOptions, Generated, Written, generate, generate_tokens,
};
pub use ::train::gradients::{GradientsOptions, GradientsReport, gradients};
pub use ::train::parity_report::{LayoutReport, ParityReport, all_layouts, compare, compare_in};
pub use ::train::prepare::{DataReport, prepare};
pub use ::train::trainer::{EvaluationReport, Event, Prepared, RunOptions, StepReport, Summary, train};

/// The training loop's room, whole.
pub use ::train as training;
/// Collective communication: threads as ranks.
pub use comm;
/// Tokenizers, token files, samples.
pub use data;
/// Operations over named dims, and their derivatives.
pub use graph;
/// Arenas and mapped files.
pub use memory;
/// Axes, placements and coordinates.
pub use mesh;
/// Model families and optimizers as graph text.
pub use models;
/// From graph and mesh to Programs.
pub use plan;
/// Execution of Programs.
pub use runtime;
/// Pipeline schedules as data.
pub use schedule;
