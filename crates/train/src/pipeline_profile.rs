//! A pipeline's executed schedule in virtual time, action by action, beside what the simulator makes of the same
//! schedule. Measures; prints nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use mesh::Axis;
use plan::{Chooser, Instruction, Phase, Program};
use runtime::{Executor, Sample, StepInput};
use schedule::{Action, Kind, Schedule, Timeline};
use serde::Serialize;

use crate::config::Config;
use crate::error::TrainError;
use crate::explain::{Recomputed, recompute};
use crate::synthetic::Synthetic;
use crate::virtual_clock::{Links, Passage, RankClock, VirtualWorld};
use crate::{assemble, ranks};

/// One action as a rank executed it, in virtual seconds since the step's first microbatch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Executed {
    /// The action.
    pub action: Action,
    /// When the rank was free and all values had arrived.
    pub start: f64,
    /// When its value left, or when it was done if nobody on another rank wants one.
    pub end: f64,
    /// Seconds in which it computed again what its stage's forward had computed.
    pub again: f64,
}

/// One step of every pipeline rank.
#[derive(Debug, Clone)]
pub struct Step {
    /// Actions of each pipeline rank (of its first rank, where there are several).
    pub ranks: Vec<Vec<Executed>>,
}

impl Step {
    /// From the first start to the last end.
    pub fn makespan(&self) -> f64 {
        self.ranks.iter().flatten().map(|e| e.end).fold(0.0, f64::max)
    }

    /// Time that an action took on its rank.
    pub fn durations(&self) -> HashMap<Action, f64> {
        self.ranks.iter().flatten().map(|e| (e.action, e.end - e.start)).collect()
    }
}

/// A run of some steps in virtual time.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The schedule that ran.
    pub schedule: Schedule,
    /// Seconds of one message between pipeline ranks.
    pub message_seconds: f64,
    /// What stages compute again, as explained; those that compute nothing again are left out.
    pub recomputed: Vec<Recomputed>,
    /// Steps whose actions were timed before those that count; the very first, a warm-up, left out.
    pub beforehand: Vec<Step>,
    /// The steps that count.
    pub steps: Vec<Step>,
}

impl Profile {
    /// The simulator's timeline, given the times that one executed step took.
    ///
    /// # Errors
    /// The simulator's.
    pub fn simulate(&self, durations: &HashMap<Action, f64>) -> Result<Timeline, TrainError> {
        // Executed one after the other, whatever the schedule would overlap.
        let schedule = Schedule { overlaps: vec![], ..self.schedule.clone() };
        let duration = |_: usize, action: Action| durations.get(&action).copied().unwrap_or(0.0);
        Ok(schedule
            .simulate_by(duration, |_, _| self.message_seconds, false)
            .map_err(plan::PlanError::from)?)
    }

    /// The mean time of each action in the steps beforehand: what a planner would know. The mean, because times of
    /// actions in a row add up; of each action by itself, because the first ones of a step find cold caches.
    pub fn expected(&self) -> HashMap<Action, f64> {
        let mut sums: HashMap<Action, f64> = HashMap::new();
        for (action, seconds) in self.beforehand.iter().flat_map(Step::durations) {
            *sums.entry(action).or_default() += seconds;
        }
        sums.into_iter().map(|(action, sum)| (action, sum / self.beforehand.len() as f64)).collect()
    }

    /// The part by which what a pipeline rank computes again made each step longer: seconds of it over all others of that rank
    /// in that step.
    pub fn extra_fractions(&self, pipeline_rank: usize) -> Vec<f64> {
        let of_step = |step: &Step| {
            let (mut again, mut all) = (0.0, 0.0);
            for executed in &step.ranks[pipeline_rank] {
                again += executed.again;
                all += executed.end - executed.start;
            }
            again / (all - again)
        };
        self.steps.iter().map(of_step).collect()
    }

    /// The schedule on paper, if each of F, I and W took on every stage what it takes on average over all: where closed
    /// forms hold, they give this timeline's bubble.
    ///
    /// # Errors
    /// The simulator's.
    pub fn on_paper(&self) -> Result<Timeline, TrainError> {
        let mut seen: HashMap<Kind, (f64, usize)> = HashMap::new();
        for executed in self.steps.iter().flat_map(|s| s.ranks.iter().flatten()) {
            let (sum, count) = seen.entry(executed.action.kind).or_default();
            (*sum, *count) = (*sum + executed.end - executed.start, *count + 1);
        }
        let mean = |kind: Kind| seen.get(&kind).map_or(0.0, |(sum, count)| sum / *count as f64);
        let schedule = Schedule { overlaps: vec![], ..self.schedule.clone() };
        Ok(schedule
            .simulate_by(|_, action| mean(action.kind), |_, _| self.message_seconds, false)
            .map_err(plan::PlanError::from)?)
    }
}

/// What a stage's recompute costs in time.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ExtraTime {
    /// The stage's position in the pipeline.
    pub stage: usize,
    /// The part by which forward and backward take longer, as explained.
    pub predicted: f64,
    /// The same as executed; the median step.
    pub executed: f64,
}

/// Executed and simulated makespans of a pipeline.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the schedule.
    pub schedule: String,
    /// Ranks of the pipeline.
    pub pipeline_ranks: usize,
    /// Stages over all ranks.
    pub num_stages: usize,
    /// Seconds of one message between pipeline ranks.
    pub message_seconds: f64,
    /// Each step's makespan as executed.
    pub executed_seconds: Vec<f64>,
    /// Each step's makespan by the simulator, given the times of that step's own actions.
    pub simulated_seconds: Vec<f64>,
    /// The makespan by the simulator, given what each action took on average in steps before.
    pub predicted_seconds: f64,
    /// Of the busiest rank's longest span, the part in which it does not work; the median step as executed.
    pub bubble_fraction: f64,
    /// The same on paper, if every stage took as long as the average one.
    pub bubble_fraction_on_paper: f64,
    /// What recompute costs, for each stage that computes something again.
    pub recompute: Vec<ExtraTime>,
    /// Median seconds of an action of each kind, over all stages: F, I, W, and I and W together.
    pub action_seconds: BTreeMap<char, f64>,
}

impl Profile {
    /// Makespans, beside the simulator's.
    ///
    /// # Errors
    /// The simulator's.
    pub fn report(&self) -> Result<Report, TrainError> {
        let mut timelines =
            self.steps.iter().map(|s| self.simulate(&s.durations())).collect::<Result<Vec<_>, _>>()?;
        let simulated_seconds = timelines.iter().map(|t| t.makespan).collect();
        timelines.sort_by(|a, b| a.makespan.total_cmp(&b.makespan));
        let mut kinds: BTreeMap<char, Vec<f64>> = BTreeMap::new();
        for executed in self.steps.iter().flat_map(|s| s.ranks.iter().flatten()) {
            kinds.entry(executed.action.kind.letter()).or_default().push(executed.end - executed.start);
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        Ok(Report {
            schedule: self.schedule.name.clone(),
            pipeline_ranks: self.schedule.num_ranks,
            num_stages: self.schedule.num_stages,
            message_seconds: self.message_seconds,
            executed_seconds: self.steps.iter().map(Step::makespan).collect(),
            simulated_seconds,
            predicted_seconds: self.simulate(&self.expected())?.makespan,
            bubble_fraction: timelines[timelines.len() / 2].bubble_fraction(),
            bubble_fraction_on_paper: self.on_paper()?.bubble_fraction(),
            recompute: self
                .recomputed
                .iter()
                .map(|recomputed| ExtraTime {
                    stage: recomputed.stage,
                    predicted: recomputed.extra_fraction,
                    executed: median(self.extra_fractions(recomputed.stage)),
                })
                .collect(),
            action_seconds: kinds.into_iter().map(|(kind, times)| (kind, median(times))).collect(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { schedule, pipeline_ranks, num_stages, .. } = self;
        writeln!(f, "{schedule} on {pipeline_ranks} pipeline ranks, {num_stages} stages, in virtual time")?;
        for (kind, seconds) in &self.action_seconds {
            writeln!(f, "  {kind}: {:.3} ms", seconds * 1e3)?;
        }
        writeln!(f, "  a message: {:.3} ms", self.message_seconds * 1e3)?;
        for (step, (executed, simulated)) in
            self.executed_seconds.iter().zip(&self.simulated_seconds).enumerate()
        {
            writeln!(
                f,
                "step {}: executed {:.3} ms, simulated from its own times {:.3} ms, from times before {:.3} ms",
                step + 1,
                executed * 1e3,
                simulated * 1e3,
                self.predicted_seconds * 1e3
            )?;
        }
        for ExtraTime { stage, predicted, executed } in &self.recompute {
            writeln!(
                f,
                "stage {stage}: recompute takes {:.1} % more time, {:.1} % predicted",
                100.0 * executed,
                100.0 * predicted
            )?;
        }
        writeln!(
            f,
            "bubble: {:.1} %; {:.1} % if every stage took as long as the average one",
            self.bubble_fraction * 100.0,
            self.bubble_fraction_on_paper * 100.0
        )
    }
}

/// Steps that are timed before those that count.
const BEFOREHAND: usize = 5;

/// Trains on synthetic batches in virtual time: a step to warm up, some that are timed beforehand, then `steps`.
///
/// # Errors
/// Whatever the layout cannot do.
pub fn profile(config: &Config, links: Links, steps: usize) -> Result<Profile, TrainError> {
    let built = assemble::model(config, None)?;
    let stepper = assemble::training(config, &built)?;
    let deadline = Duration::from_secs_f64(config.parallel.deadline_seconds);
    let world = VirtualWorld::new(links);
    let by_rank = ranks::run(stepper.plan.mesh.world_size(), deadline, |inner| {
        let coord = stepper.plan.mesh.coord(inner.rank());
        let programs = vec![stepper.shared(coord.get(Axis::Pp), &Chooser::Policy, false)?];
        let program = programs[0].1.clone();
        let (communicator, clock) = world.join(inner);
        let mut executor = Executor::new(communicator, programs, assemble::cpu(config)?, None)?;
        executor.initialise(&stepper.graph, config.train.seed)?;
        let recomputed = recompute::of(&stepper.plan, &program);
        let mut rank_steps = Vec::new();
        for number in 1..=(1 + BEFOREHAND + steps) as u64 {
            let mut batch = Synthetic::of(&built, config.train.seed, number);
            let scalars = [("lr", config.train.lr), ("step", number as f64), ("loss_scale", 1.0)];
            let input = StepInput { seed: config.train.seed, step: number, scalars: &scalars };
            clock.take_passages();
            let told = clock.clone();
            executor.start_recording(0, Box::new(move || told.now()), count(&program));
            executor.run(0, &mut batch, &input)?;
            let samples = executor.stop_recording();
            rank_steps.push(executed(&program, &samples, &clock.take_passages()));
        }
        drop::<std::sync::Arc<RankClock>>(clock);
        let first_of_its_stage = Axis::SPACE.into_iter().all(|a| a == Axis::Pp || coord.get(a) == 0);
        Ok(first_of_its_stage.then_some((rank_steps, recomputed)))
    })?;
    let (by_stage, recomputed): (Vec<Vec<Vec<Executed>>>, Vec<_>) = by_rank.into_iter().flatten().unzip();
    let step = |number: usize| Step { ranks: by_stage.iter().map(|rank| rank[number].clone()).collect() };
    let beforehand = (1..=BEFOREHAND).map(step).collect();
    let steps = (1 + BEFOREHAND..=BEFOREHAND + steps).map(step).collect();
    let message = stepper.program(0, &Chooser::Policy, false)?;
    let message_bytes = message.blocks.iter().flat_map(|b| &b.instructions).find_map(|i| match i {
        Instruction::Send { input, .. } | Instruction::Recv { output: input, .. } => {
            let buffer = message.buffer(*input);
            Some(buffer.len * buffer.dtype.size_bytes())
        }
        _ => None,
    });
    let message_seconds = message_bytes.map_or(0.0, |bytes| links.message_seconds(bytes));
    Ok(Profile {
        schedule: stepper.plan.schedule.clone(),
        message_seconds,
        recomputed: recomputed.into_iter().flatten().collect(),
        beforehand,
        steps,
    })
}

/// Instructions that a step executes.
fn count(program: &Program) -> usize {
    program.runs().iter().map(|run| run.instructions(&program.blocks[run.block]).count()).sum()
}

/// Actions in time, from the samples of a step's instructions and the ends of its messages.
///
/// An action begins when its rank is free and its values are there, and ends when its own value leaves: what a rank
/// does between two actions belongs to the second.
fn executed(program: &Program, samples: &[Sample], passages: &[Passage]) -> Vec<Executed> {
    let begin = program.blocks.iter().position(|b| b.stage.is_none() && b.phase == Phase::Begin);
    let mut samples = samples.iter().filter(|s| program.blocks[s.block].stage.is_some());
    // Ranks lined up after what they began with, before the first microbatch.
    let is_start = |i: &&Instruction| matches!(i, Instruction::Start { .. });
    let before = begin.map_or(0, |b| program.blocks[b].instructions.iter().filter(is_start).count());
    let mut meetings =
        passages.iter().filter_map(|p| if let Passage::Met(at) = p { Some(*at) } else { None });
    let origin = meetings.nth(before).unwrap_or(0.0);
    let mut passages = passages.iter().filter(|p| !matches!(p, Passage::Met(_)));
    let mut free = origin;
    let mut all = Vec::new();
    let again: Vec<HashSet<usize>> =
        program.blocks.iter().map(|block| recompute::repeated(program, block)).collect();
    let mut runs = program.runs().into_iter().filter(|run| program.blocks[run.block].stage.is_some());
    for action in &program.actions {
        let (mut start, mut sent, mut last, mut repeating) = (free, None, free, 0.0);
        for run in runs.by_ref().take(program.blocks_of(action).count()) {
            for (_, instruction) in run.instructions(&program.blocks[run.block]) {
                let Some(sample) = samples.next() else { break };
                last = sample.end_seconds;
                if again[sample.block].contains(&sample.index) {
                    repeating += sample.end_seconds - sample.start_seconds;
                }
                let passage = match instruction {
                    Instruction::Send { .. } | Instruction::Recv { .. } => passages.next(),
                    _ => None,
                };
                match passage {
                    Some(Passage::Arrived(at)) => start = start.max(*at),
                    Some(Passage::Sent(at)) => sent = sent.or(Some(*at)),
                    Some(Passage::Met(_)) | None => {}
                }
            }
        }
        let end = sent.unwrap_or(last);
        all.push(Executed { action: *action, start: start - origin, end: end - origin, again: repeating });
        free = end;
    }
    all
}
