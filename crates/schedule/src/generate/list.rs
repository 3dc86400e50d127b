//! List scheduling under a memory cap: ranks in time, each taking the best action that is ready. What
//! "best" means comes in as a [`Policy`]; who searches for a good one is in `auto`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Request;
use crate::{Action, Kind, Schedule};

/// What is to be ordered: counts, times and cap of the request, and the placement.
pub(super) struct Problem<'a> {
    pub request: &'a Request,
    pub placement: &'a [usize],
    pub cap: usize,
    /// For each rank its stages, in model order.
    pub stages: Vec<Vec<usize>>,
}

/// When each action would like to run. Smaller is sooner; the unit is that of the times.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Policy {
    /// `F` of microbatch 0, by stage.
    pub forward: Vec<f64>,
    /// `I` of microbatch 0, by stage.
    pub input: Vec<f64>,
    /// From a microbatch to the next.
    pub period: f64,
    /// Whether `F` and `I` run in exactly that order, and a rank waits for the next; else it takes the
    /// first that is ready.
    pub strict: bool,
    /// A `W` fills a gap of at least this part of its time; a gap of unknown length it always fills.
    pub patience: f64,
}

/// The order that a policy led to, and how long it takes.
pub(super) struct Outcome {
    pub ranks: Vec<Vec<Action>>,
    pub longest_span: f64,
    pub makespan: f64,
}

impl<'a> Problem<'a> {
    pub fn new(request: &'a Request, placement: &'a [usize], cap: usize) -> Problem<'a> {
        let mut stages = vec![Vec::new(); request.num_ranks];
        placement.iter().enumerate().for_each(|(stage, &rank)| stages[rank].push(stage));
        Problem { request, placement, cap, stages }
    }

    /// Runs a policy; `None` if its strict order does not fit under the cap.
    ///
    /// What is not strict always ends if the cap is at least the number of chunks: microbatches pass every
    /// stage in order, and each rank keeps a place for the later chunks of the oldest.
    pub fn run(&self, policy: &Policy) -> Option<Outcome> {
        let mut run = Run::new(self, policy);
        while let Some(Reverse((time, rank))) = run.agenda.pop() {
            let time = f64::from_bits(time);
            if run.next_event[rank] == time && !run.decide(rank, time) {
                return None;
            }
        }
        let complete = run.ranks.iter().zip(&self.stages).all(|(actions, stages)| {
            actions.len() == Kind::ALL[..3].len() * stages.len() * self.request.num_microbatches
        });
        let spans = run.starts.iter().zip(&run.free).map(|(start, end)| end - start);
        let longest_span = spans.fold(0.0, f64::max);
        let makespan = run.free.iter().copied().fold(0.0, f64::max);
        complete.then_some(Outcome { ranks: run.ranks, longest_span, makespan })
    }

    pub fn schedule(&self, name: &str, ranks: Vec<Vec<Action>>) -> Schedule {
        let Request { num_ranks, num_microbatches, .. } = *self.request;
        Schedule::new(name, num_ranks, num_microbatches, self.placement.to_vec(), ranks)
    }
}

const UNKNOWN: f64 = f64::INFINITY;

/// What a rank may do next.
#[derive(Clone, Copy)]
struct Candidate {
    key: f64,
    arrival: f64,
    action: Action,
}

struct Run<'a> {
    problem: &'a Problem<'a>,
    policy: &'a Policy,
    /// Moments (as the bits of a time that is not negative, which sort as it does) when ranks decide.
    agenda: BinaryHeap<Reverse<(u64, usize)>>,
    next_event: Vec<f64>,
    free: Vec<f64>,
    starts: Vec<f64>,
    ranks: Vec<Vec<Action>>,
    /// By stage, how many microbatches have had their `F`, `I` and `W`.
    listed: Vec<[usize; 3]>,
    /// By stage and microbatch, when the input of `F` and of `I` is there.
    arrivals: [Vec<f64>; 2],
}

impl<'a> Run<'a> {
    fn new(problem: &'a Problem<'a>, policy: &'a Policy) -> Run<'a> {
        let Request { num_ranks, num_microbatches, .. } = *problem.request;
        let num_stages = problem.placement.len();
        let unknown = vec![UNKNOWN; num_stages * num_microbatches];
        let mut arrivals = [unknown.clone(), unknown];
        arrivals[0][..num_microbatches].fill(0.0);
        Run {
            problem,
            policy,
            agenda: (0..num_ranks).map(|rank| Reverse((0, rank))).collect(),
            next_event: vec![0.0; num_ranks],
            free: vec![0.0; num_ranks],
            starts: vec![UNKNOWN; num_ranks],
            ranks: problem
                .stages
                .iter()
                .map(|s| Vec::with_capacity(3 * s.len() * num_microbatches))
                .collect(),
            listed: vec![[0; 3]; num_stages],
            arrivals,
        }
    }

    /// Rank `rank` is free at `time`: starts something, waits for a known moment, or sleeps until
    /// something arrives. Says whether the order can still be completed.
    fn decide(&mut self, rank: usize, time: f64) -> bool {
        self.next_event[rank] = UNKNOWN;
        let (mut first, mut ready, mut soonest) = (None::<Candidate>, None::<Candidate>, UNKNOWN);
        let sooner = |best: Option<Candidate>, other: Candidate| match best {
            Some(best) if best.key <= other.key => Some(best),
            _ => Some(other),
        };
        for candidate in self.candidates(rank) {
            first = sooner(first, candidate);
            if !self.policy.strict && self.admits(rank, candidate.action) {
                if candidate.arrival <= time {
                    ready = sooner(ready, candidate);
                } else {
                    soonest = soonest.min(candidate.arrival);
                }
            }
        }
        let weight = self.weight(rank);
        if self.policy.strict
            && let Some(next) = first
        {
            if !self.admits(rank, next.action) {
                return weight.map(|weight| self.start(rank, time, weight)).is_some();
            }
            if next.arrival <= time {
                ready = Some(next);
            }
            soonest = next.arrival;
        }
        let gap = self.policy.patience * self.problem.request.times.weight;
        match (ready, weight) {
            (Some(ready), _) => self.start(rank, time, ready.action),
            (None, Some(weight)) if soonest >= time + gap => self.start(rank, time, weight),
            (None, _) if soonest < UNKNOWN => self.wake(rank, soonest),
            (None, _) => {}
        }
        true
    }

    /// The next `F` and `I` of each stage of the rank, `I` first.
    fn candidates(&self, rank: usize) -> impl Iterator<Item = Candidate> + '_ {
        let num_microbatches = self.problem.request.num_microbatches;
        let of_stage = move |&stage: &usize| {
            let [forwards, inputs, _] = self.listed[stage];
            let candidate = |kind: Kind, microbatch: usize, offset: f64| Candidate {
                key: offset + microbatch as f64 * self.policy.period,
                arrival: self.arrivals[kind.index()][stage * num_microbatches + microbatch],
                action: Action::new(kind, stage, microbatch),
            };
            let input = (inputs < num_microbatches)
                .then(|| candidate(Kind::BackwardInput, inputs, self.policy.input[stage]));
            let forward = (forwards < num_microbatches)
                .then(|| candidate(Kind::Forward, forwards, self.policy.forward[stage]));
            input.into_iter().chain(forward)
        };
        self.problem.stages[rank].iter().flat_map(of_stage)
    }

    /// The oldest `W` put off on this rank.
    fn weight(&self, rank: usize) -> Option<Action> {
        let pending = self.problem.stages[rank].iter().filter(|&&s| self.listed[s][2] < self.listed[s][1]);
        let stage = pending.copied().min_by_key(|&stage| (self.listed[stage][2], Reverse(stage)))?;
        Some(Action::backward_weight(stage, self.listed[stage][2]))
    }

    /// Whether there is memory for an action: always, but for `F`.
    fn admits(&self, rank: usize, action: Action) -> bool {
        if action.kind != Kind::Forward {
            return true;
        }
        let stages = &self.problem.stages[rank];
        let live = |stage: &usize| self.listed[*stage][0] - self.listed[*stage][2];
        let total: usize = stages.iter().map(live).sum();
        if self.policy.strict {
            return total < self.problem.cap;
        }
        let up_to: usize = stages.iter().take_while(|&&stage| stage <= action.stage).map(live).sum();
        let later = stages.iter().filter(|&&stage| stage > action.stage).count();
        total < self.problem.cap && up_to + later < self.problem.cap
    }

    fn start(&mut self, rank: usize, time: f64, action: Action) {
        let (problem, Action { kind, stage, microbatch }) = (self.problem, action);
        let Request { num_microbatches, times, .. } = *problem.request;
        let end = time + times.of(kind);
        self.starts[rank] = self.starts[rank].min(time);
        self.free[rank] = end;
        self.ranks[rank].push(action);
        self.listed[stage][kind.index()] += 1;
        self.wake(rank, end);
        let num_stages = problem.placement.len();
        let to = match kind {
            Kind::Forward if stage + 1 < num_stages => Some((0, stage + 1)),
            Kind::Forward => Some((1, stage)),
            Kind::BackwardInput => stage.checked_sub(1).map(|before| (1, before)),
            Kind::BackwardWeight | Kind::Backward => None,
        };
        if let Some((row, to)) = to {
            let other = problem.placement[to];
            let arrival = end + if other == rank { 0.0 } else { times.comm };
            self.arrivals[row][to * num_microbatches + microbatch] = arrival;
            if other != rank && arrival < self.next_event[other] {
                self.wake(other, arrival.max(self.free[other]));
            }
        }
    }

    fn wake(&mut self, rank: usize, time: f64) {
        self.next_event[rank] = time;
        self.agenda.push(Reverse((time.to_bits(), rank)));
    }
}
