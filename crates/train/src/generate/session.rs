//! Scores of next tokens from an executor: over whole texts, or over caches that grow with them. What is done with the
//! scores is `search`'s.

use std::sync::Arc;

use comm::Communicator;
use mesh::Axis;
use models::{Decoding, Step};
use plan::{Chooser, Plan, Program};
use runtime::{Executor, RankMemory, StepInput};

use super::options::GenerateOptions;
use super::source::{Shape, Source};
use crate::assemble::{self, Stepper};
use crate::config::Config;
use crate::error::TrainError;
use crate::explain;
use crate::feed::{Fed, Input, Inputs};

/// What the executor of a pipeline rank is given.
type Programs = Vec<(Arc<Plan>, Arc<Program>)>;

/// Sizes of a generation, fixed before it begins.
#[derive(Debug, Clone)]
pub(super) struct Extents {
    /// Whether keys and values are kept.
    cached: bool,
    decoding: Decoding,
    /// Tokens of the longest text that is read or written at once.
    length: usize,
    /// Tokens that a decoder reads at most; none if there is no end to them.
    window: Option<usize>,
    /// Texts that the encoder reads, if there is one.
    sources: Option<Vec<Vec<u32>>>,
}

impl Extents {
    /// Sizes for checked prompts and options, at least one token each.
    pub fn new(source: &Source, prompts: &[Vec<u32>], options: &GenerateOptions) -> Extents {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
        let (batch, beams) = (prompts.len(), options.beams);
        // The last token is written and never read.
        let read_back = options.tokens - 1;
        let (prompt_length, slots, length, window) = match source.shape {
            Shape::EncoderDecoder { .. } => (longest, 1 + beams * read_back, 1 + read_back, None),
            // Where a text outgrows the window it is read again from its middle.
            Shape::Decoder { window, .. } if longest + read_back > window => {
                (window, window, window, Some(window))
            }
            Shape::Decoder { window, .. } => {
                (longest, longest + beams * read_back, longest + read_back, Some(window))
            }
        };
        let sources = matches!(source.shape, Shape::EncoderDecoder { .. }).then(|| prompts.to_vec());
        let decoding = Decoding { batch, prompt_length, beams, slots };
        Extents { cached: options.cache, decoding, length, window, sources }
    }

    /// Graphs and plans of the steps: prefill and decode, or the one over whole texts.
    pub fn steps(&self, source: &Source) -> Result<Steps, TrainError> {
        let model = source.model(self.length)?;
        let config = &source.config;
        if self.cached {
            let prefill = assemble::generation(config, |p| models::prefill_step(&*model, &self.decoding, p))?;
            let decode = assemble::generation(config, |p| models::decode_step(&*model, &self.decoding, p))?;
            return Ok(Steps::new(vec![prefill, decode]));
        }
        let sequence_length = if self.sources.is_some() { self.decoding.prompt_length } else { self.length };
        let batch = self.decoding.batch * self.decoding.beams;
        let step = Step { batch, sequence_length, target_length: self.length };
        let whole = assemble::generation(config, |p| models::next_token_step(&*model, step, p))?;
        Ok(Steps::new(vec![whole]))
    }
}

/// The steps of a generation.
pub(super) struct Steps {
    /// The first has all states.
    steppers: Vec<Stepper>,
    chooser: Chooser,
}

impl Steps {
    fn new(steppers: Vec<Stepper>) -> Steps {
        Steps { steppers, chooser: Chooser::Policy }
    }

    pub fn world_size(&self) -> usize {
        self.steppers[0].plan.mesh.world_size()
    }

    fn programs(&self, pipeline_rank: usize) -> Result<Programs, TrainError> {
        self.steppers.iter().map(|step| step.shared(pipeline_rank, &self.chooser, false)).collect()
    }

    /// Refuses what the machine cannot hold.
    pub fn check_memory(&self, config: &Config) -> Result<(), TrainError> {
        let num_stages = self.steppers[0].plan.mesh.size(Axis::Pp);
        let mut bytes = Vec::new();
        for pipeline_rank in 0..num_stages {
            let programs = self.programs(pipeline_rank)?;
            let programs: Vec<(&Plan, &Program)> = programs.iter().map(|(l, p)| (&**l, &**p)).collect();
            let memory = RankMemory::of(&programs, config.parallel.threads_per_rank);
            let ranks = self.world_size() / num_stages;
            bytes.extend(std::iter::repeat_n(memory.arena_bytes() as u64, ranks));
        }
        explain::check_memory(&bytes)
    }

    /// The executor of one rank, its states not yet filled.
    pub fn executor(&self, world: Box<dyn Communicator>, config: &Config) -> Result<Executor, TrainError> {
        let pipeline_rank = self.steppers[0].plan.mesh.coord(world.rank()).get(Axis::Pp);
        Ok(Executor::new(world, self.programs(pipeline_rank)?, assemble::cpu(config)?, None)?)
    }
}

/// A continuation that wants scores.
pub(super) struct Branch<'a> {
    /// Its place among the prompt's branches of the step before.
    pub parent: usize,
    /// What was read of it and the token that is new.
    pub text: &'a [u32],
}

/// One rank's executor and what its caches hold.
pub(super) struct Session<'a> {
    executor: Executor,
    extents: &'a Extents,
    vocab_size: usize,
    /// The token that a text begins with that is not the prompt's.
    start: Option<u32>,
    step: u64,
    /// For each prompt and branch, the slots of its keys by position.
    lineages: Vec<Vec<Vec<usize>>>,
    /// For each prompt, slots in use.
    used: Vec<usize>,
}

impl<'a> Session<'a> {
    pub fn new(executor: Executor, source: &Source, extents: &'a Extents) -> Session<'a> {
        let start = match source.shape {
            Shape::Decoder { .. } => None,
            Shape::EncoderDecoder { start, .. } => Some(start),
        };
        let vocab_size = source.vocab_size();
        Session { executor, extents, vocab_size, start, step: 0, lineages: vec![], used: vec![] }
    }

    /// What is written behind a prompt, together with what it is written behind.
    pub fn beginning(&self, prompt: &[u32]) -> Vec<u32> {
        self.start.map_or_else(|| prompt.to_vec(), |start| vec![start])
    }

    /// Most tokens that a text may have to be read at once.
    pub fn window(&self) -> usize {
        self.extents.window.unwrap_or(usize::MAX)
    }

    /// Scores behind texts, one of each prompt, which are read from their beginnings.
    pub fn read(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f64>>, TrainError> {
        let mut rows = if self.extents.cached {
            self.prefill(texts)?
        } else {
            let rows: Vec<Vec<&[u32]>> = texts.iter().map(|text| vec![*text]).collect();
            self.whole(&rows)?
        };
        Ok(rows.iter_mut().map(|branches| branches.swap_remove(0)).collect())
    }

    /// Scores behind each branch of each prompt, given the token that is new.
    pub fn go_on(&mut self, branches: &[Vec<Branch<'_>>]) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
        if self.extents.cached {
            return self.decode(branches);
        }
        let rows: Vec<Vec<&[u32]>> =
            branches.iter().map(|branches| branches.iter().map(|b| b.text).collect()).collect();
        self.whole(&rows)
    }

    fn prefill(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
        let Decoding { batch, prompt_length, slots, .. } = self.extents.decoding;
        let mut inputs = Inputs::new();
        match &self.extents.sources {
            None => {
                insert_texts(&mut inputs, texts, prompt_length);
                let position = |text: &&[u32], i: usize| if i < text.len() { i as i32 } else { -1 };
                let at = texts.iter().flat_map(|text| (0..prompt_length).map(move |i| position(text, i)));
                inputs.insert("slots", Input::Ints(at.collect(), -1));
                self.lineages = texts.iter().map(|text| vec![(0..text.len()).collect()]).collect();
            }
            Some(sources) => {
                insert_sources(&mut inputs, sources.iter(), prompt_length);
                let starts = texts.iter().map(|text| text[0] as i32).collect();
                inputs.insert("target_tokens", Input::Ints(starts, 0));
                inputs.insert("slots", Input::Ints(vec![0; batch], -1));
                let seen = (0..batch * slots).map(|i| if i.is_multiple_of(slots) { 0 } else { -1 });
                inputs.insert("distance", Input::Ints(seen.collect(), -1));
                inputs.insert("source_distance", Input::Ints(self.sources_seen(1), -1));
                self.lineages = vec![vec![vec![0]]; batch];
            }
        }
        self.used = self.lineages.iter().map(|branches| branches[0].len()).collect();
        self.run(0, &inputs, 1)
    }

    fn decode(&mut self, branches: &[Vec<Branch<'_>>]) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
        let Decoding { batch, beams, slots, .. } = self.extents.decoding;
        let rows = batch * beams;
        let (mut tokens, mut positions) = (vec![0; rows], vec![0; rows]);
        let (mut at, mut distance) = (vec![-1; rows], vec![-1; rows * slots]);
        let mut lineages = Vec::with_capacity(batch);
        for (prompt, branches) in branches.iter().enumerate() {
            let mut grown = Vec::with_capacity(branches.len());
            for (beam, branch) in branches.iter().enumerate() {
                let mut lineage = self.lineages[prompt][branch.parent].clone();
                lineage.push(self.used[prompt] + beam);
                let (row, last) = (prompt * beams + beam, lineage.len() - 1);
                tokens[row] = branch.text[branch.text.len() - 1] as i32;
                positions[row] = last as i32;
                at[row] = lineage[last] as i32;
                for (position, slot) in lineage.iter().enumerate() {
                    distance[row * slots + slot] = (last - position) as i32;
                }
                grown.push(lineage);
            }
            self.used[prompt] += branches.len();
            lineages.push(grown);
        }
        self.lineages = lineages;
        let mut inputs = Inputs::new();
        inputs.insert("slots", Input::Ints(at, -1));
        inputs.insert("distance", Input::Ints(distance, -1));
        if self.extents.sources.is_some() {
            inputs.insert("target_tokens", Input::Ints(tokens, 0));
            inputs.insert("source_distance", Input::Ints(self.sources_seen(beams), -1));
        } else {
            inputs.insert("tokens", Input::Ints(tokens, 0));
            inputs.insert("positions", Input::Ints(positions, 0));
        }
        self.run(1, &inputs, beams)
    }

    fn whole(&mut self, rows: &[Vec<&[u32]>]) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
        let Decoding { prompt_length, beams, .. } = self.extents.decoding;
        let nothing: &[u32] = &[];
        let texts: Vec<&[u32]> = rows
            .iter()
            .flat_map(|branches| (0..beams).map(|beam| branches.get(beam).copied().unwrap_or(nothing)))
            .collect();
        let mut inputs = Inputs::new();
        insert_texts(&mut inputs, &texts, self.extents.length);
        if let Some(sources) = &self.extents.sources {
            let tokens = inputs.remove("tokens").expect("texts have tokens");
            inputs.insert("target_tokens", tokens);
            let repeated = sources.iter().flat_map(|source| std::iter::repeat_n(source, beams));
            insert_sources(&mut inputs, repeated, prompt_length);
        }
        self.run(0, &inputs, beams)
    }

    /// Which slots of the encoder's keys `beams` queries of each prompt see.
    fn sources_seen(&self, beams: usize) -> Vec<i32> {
        let length = self.extents.decoding.prompt_length;
        let sources = self.extents.sources.iter().flatten();
        let seen = |len: usize| (0..length).map(move |i| if i < len { 0 } else { -1 });
        sources.flat_map(|source| (0..beams).flat_map(move |_| seen(source.len()))).collect()
    }

    /// Runs a step; its scores by prompt and branch.
    fn run(
        &mut self,
        program: usize,
        inputs: &Inputs,
        beams: usize,
    ) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
        self.step += 1;
        let input = StepInput { seed: 0, step: self.step, scalars: &[] };
        self.executor.run(program, &mut Fed { inputs }, &input)?;
        let (tile, values) = self.executor.output(program, "logits")?;
        let mut logits = vec![0.0; tile.global_len()];
        tile.for_each_run(|run| {
            logits[run.global..run.global + run.len].copy_from_slice(&values[run.local..run.local + run.len]);
        });
        let rows = logits.chunks_exact(self.vocab_size).map(<[f64]>::to_vec).collect::<Vec<_>>();
        Ok(rows.chunks_exact(beams).map(<[Vec<f64>]>::to_vec).collect())
    }
}

/// Texts at the front of rows of `length`, each with its last position selected.
fn insert_texts(inputs: &mut Inputs, texts: &[&[u32]], length: usize) {
    let places = || texts.iter().flat_map(|text| (0..length).map(move |i| (*text, i)));
    let tokens = places().map(|(text, i)| text.get(i).map_or(0, |token| *token as i32));
    inputs.insert("tokens", Input::Ints(tokens.collect(), 0));
    let positions = places().map(|(text, i)| if i < text.len() { i as i32 } else { 0 });
    inputs.insert("positions", Input::Ints(positions.collect(), 0));
    let select = places().map(|(text, i)| f64::from(u8::from(i + 1 == text.len())));
    inputs.insert("select", Input::Reals(select.collect()));
}

/// What the encoder reads, at the front of rows of `length`.
fn insert_sources<'s>(inputs: &mut Inputs, sources: impl Iterator<Item = &'s Vec<u32>>, length: usize) {
    let (mut tokens, mut key_index) = (Vec::new(), Vec::new());
    for source in sources {
        tokens.extend((0..length).map(|i| source.get(i).map_or(0, |token| *token as i32)));
        key_index.extend((0..length).map(|i| if i < source.len() { i as i32 } else { -1 }));
    }
    inputs.insert("tokens", Input::Ints(tokens, 0));
    inputs.insert("key_index", Input::Ints(key_index, -1));
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;
    use crate::config::Precision;
    use crate::ranks;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../hub/fixtures").join(name)
    }

    /// Scores behind prompts and, for two steps, behind branches that leave the others of their prompt again.
    fn scores(name: &str, cache: bool, mesh: &str, chooser: Chooser) -> Vec<f64> {
        let options = GenerateOptions {
            beams: 2,
            tokens: 3,
            cache,
            precision: Some(Precision::F64),
            mesh: Some(mesh.to_owned()),
            ..GenerateOptions::default()
        };
        let source = Source::open(&fixture(name), &options).unwrap();
        let prompts = [vec![5, 9, 13, 7], vec![8], vec![20, 21, 22]];
        let extents = Extents::new(&source, &prompts, &options);
        let steps = Steps { chooser, ..extents.steps(&source).unwrap() };
        let ranks = ranks::run(steps.world_size(), Duration::from_secs(60), |world| {
            let executor = steps.executor(world, &source.config)?;
            let mut session = Session::new(source.load(executor)?, &source, &extents);
            let begun = prompts.each_ref().map(|prompt| session.beginning(prompt));
            let mut found = session.read(&begun.each_ref().map(Vec::as_slice))?.concat();
            let text = |prompt: usize, more: &[u32]| [&begun[prompt], more].concat();
            // The third prompt has one branch, then none.
            let first =
                [vec![text(0, &[3]), text(0, &[4])], vec![text(1, &[6]), text(1, &[2])], vec![text(2, &[1])]];
            let second =
                [vec![text(0, &[4, 9]), text(0, &[4, 30])], vec![text(1, &[2, 2]), text(1, &[6, 7])], vec![]];
            let parents = [[[0, 0], [0, 0], [0, 0]], [[1, 1], [1, 0], [0, 0]]];
            for (texts, parents) in [first, second].iter().zip(parents) {
                let branches: Vec<Vec<Branch<'_>>> = texts
                    .iter()
                    .zip(parents)
                    .map(|(texts, parents)| {
                        texts.iter().zip(parents).map(|(text, parent)| Branch { parent, text }).collect()
                    })
                    .collect();
                let scores = session.go_on(&branches)?;
                for (branches, scores) in branches.iter().zip(scores) {
                    found.extend(scores.into_iter().take(branches.len()).flatten());
                }
            }
            Ok(found)
        });
        ranks.unwrap().swap_remove(0)
    }

    #[test]
    fn caches_give_the_scores_of_whole_texts() {
        let names = [
            "gpt2",
            "gpt2-inverse",
            "llama",
            "llama-left",
            "llama-biases",
            "llama-yarn",
            "t5-gated",
            "t5-plain",
        ];
        for name in names {
            let whole = scores(name, false, "dp=1", Chooser::Policy);
            let check = |mesh: &str, chooser: Chooser| {
                let cached = scores(name, true, mesh, chooser.clone());
                let apart = whole.iter().zip(&cached).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(apart <= 1e-10, "{name} on {mesh}, {chooser:?}: {apart:e}");
            };
            assert_eq!(whole.len(), (3 + 5 + 4) * 41);
            let meshes: &[&str] = match name {
                "llama-biases" | "llama-yarn" => &["dp=1", "tp=2"], // of one layer
                _ => &["dp=1", "tp=2,pp=2", "dp=2,tp=2,pp=2"],
            };
            meshes.iter().for_each(|mesh| check(mesh, Chooser::Policy));
            // Whatever else is legal changes no cache.
            (0..5).for_each(|seed| check("dp=2,tp=2", Chooser::Random(seed)));
        }
    }
}
