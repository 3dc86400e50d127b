//! When each action would run, given its times. An exact event simulation without noise: compute in the
//! order of the lists, transfers beside it.

use std::collections::HashMap;

use crate::edges::Edges;
use crate::{Action, Kind, Schedule, ScheduleError};

/// The time of each kind of action on one chunk, in any one unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// `F`.
    pub forward: f64,
    /// `I`.
    pub input: f64,
    /// `W`.
    pub weight: f64,
    /// From the end of an action to the moment another rank has its value.
    pub comm: f64,
}

impl Times {
    /// Times without communication.
    pub fn new(forward: f64, input: f64, weight: f64) -> Times {
        Times { forward, input, weight, comm: 0.0 }
    }

    /// How long an action of that kind takes; `B` is `I` and `W`.
    pub fn of(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Forward => self.forward,
            Kind::BackwardInput => self.input,
            Kind::BackwardWeight => self.weight,
            Kind::Backward => self.input + self.weight,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ScheduleError> {
        let times = [("F", self.forward), ("I", self.input), ("W", self.weight), ("COMM", self.comm)];
        times.into_iter().try_for_each(|(which, seconds)| check_time(which, seconds))
    }
}

fn check_time(which: &'static str, seconds: f64) -> Result<(), ScheduleError> {
    let sane = seconds.is_finite() && seconds >= 0.0;
    if sane { Ok(()) } else { Err(ScheduleError::BadTime { which, seconds }) }
}

/// Times that differ from stage to stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// The times of each stage. Its `comm` is that of the link to the next stage, either way.
    pub stages: Vec<Times>,
    /// Whether a link from one rank to another carries one value at a time, in the order in which
    /// they are ready; else only the delay counts.
    pub serial_links: bool,
}

impl Costs {
    /// The same times for every stage, links that never queue.
    pub fn uniform(times: &Times, num_stages: usize) -> Costs {
        Costs { stages: vec![*times; num_stages], serial_links: false }
    }
}

/// One action in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// The action.
    pub action: Action,
    /// When it starts.
    pub start: f64,
    /// When it ends.
    pub end: f64,
}

/// A schedule in time, in the unit of its [`Times`].
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// For each rank its actions in time, in order.
    pub ranks: Vec<Vec<Span>>,
    /// From 0 to the last end.
    pub makespan: f64,
    /// Per rank, the sum of its actions' times.
    pub work: Vec<f64>,
    /// Per rank, the time it idles between 0 and the makespan.
    pub idle: Vec<f64>,
    /// The longest time any rank takes from its first start to its last end.
    pub longest_span: f64,
    /// The longest span less the work of the busiest rank: what a step loses when ranks need not
    /// wait for each other between steps.
    pub bubble: f64,
}

impl Timeline {
    /// The bubble as a part of the longest span; 0 if nothing takes time.
    pub fn bubble_fraction(&self) -> f64 {
        if self.longest_span > 0.0 { self.bubble / self.longest_span } else { 0.0 }
    }

    /// Live activations of each rank over time, as steps (moment, what is live from then on), given what a
    /// chunk of each stage holds: 1 counts chunks. A chunk lives from the start of its `F` to the end of
    /// its `B`, or of the later of `I` and `W`; without a backward, of the `F`.
    pub fn live(&self, held: impl Fn(usize) -> f64) -> Vec<Vec<(f64, f64)>> {
        let of_rank = |spans: &Vec<Span>| {
            let chunk = |action: Action| (action.stage, action.microbatch);
            let last: HashMap<_, _> = spans.iter().map(|span| (chunk(span.action), span.action)).collect();
            let (mut steps, mut live) = (Vec::new(), 0.0);
            for span in spans {
                if span.action.kind == Kind::Forward {
                    live += held(span.action.stage);
                    steps.push((span.start, live));
                }
                if last[&chunk(span.action)] == span.action {
                    live -= held(span.action.stage);
                    steps.push((span.end, live));
                }
            }
            steps
        };
        self.ranks.iter().map(of_rank).collect()
    }
}

impl Schedule {
    /// Runs the schedule on paper, every stage alike. An action starts once its rank is free and what it
    /// needs is there; values from another rank come `comm` later. An overlapped pair starts once both
    /// have what they need, takes as long as both, and gives both values at its end; without
    /// [`overlaps`](Schedule::overlaps) the two are timed as any others.
    ///
    /// # Errors
    /// A time that is negative or not finite, a schedule with actions outside of its counts, or a deadlock.
    pub fn simulate(&self, times: &Times) -> Result<Timeline, ScheduleError> {
        times.check()?;
        self.simulate_by(|_, action| times.of(action.kind), |_, _| times.comm, false)
    }

    /// [`simulate`](Schedule::simulate) with times that differ from stage to stage.
    ///
    /// # Errors
    /// As [`simulate`](Schedule::simulate), and costs of another number of stages.
    pub fn simulate_costs(&self, costs: &Costs) -> Result<Timeline, ScheduleError> {
        let (found, expected) = (costs.stages.len(), self.num_stages);
        if found != expected {
            return Err(ScheduleError::Length { what: "costs", found, expected });
        }
        costs.stages.iter().try_for_each(Times::check)?;
        let transfer = |from: Action, to: Action| costs.stages[from.stage.min(to.stage)].comm;
        self.simulate_by(|_, action| costs.stages[action.stage].of(action.kind), transfer, costs.serial_links)
    }

    /// [`simulate`](Schedule::simulate) with any time for each action, given its rank, and for the
    /// transfer of one action's value to another action on another rank: as measured, for example.
    ///
    /// With `serial_links` a link from one rank to another carries one value at a time.
    ///
    /// # Errors
    /// As [`simulate`](Schedule::simulate).
    pub fn simulate_by(
        &self,
        duration: impl Fn(usize, Action) -> f64,
        transfer: impl Fn(Action, Action) -> f64,
        serial_links: bool,
    ) -> Result<Timeline, ScheduleError> {
        self.check_shape()?;
        let edges = Edges::new(self);
        let order = edges.order().map_err(|cycle| ScheduleError::Cycle { cycle })?;
        let mut ends = vec![0.0f64; edges.nodes.len()];
        let mut ranks: Vec<Vec<Span>> =
            self.ranks.iter().map(|actions| Vec::with_capacity(actions.len())).collect();
        let (mut work, mut free) = (vec![0.0; self.num_ranks], vec![0.0f64; self.num_ranks]);
        // When each value that left its rank has arrived, and when each link is free again.
        let mut arrivals = vec![f64::NAN; if serial_links { edges.nodes.len() } else { 0 }];
        let mut links: HashMap<(usize, usize), f64> = HashMap::new();
        for id in order {
            let node = &edges.nodes[id];
            let mut start = free[node.rank];
            for need in node.needs() {
                let from = &edges.nodes[need];
                let arrival = if from.rank == node.rank {
                    ends[need]
                } else if serial_links {
                    arrivals[need]
                } else {
                    ends[need] + transfer(from.action, node.action)
                };
                start = start.max(arrival);
            }
            let seconds = duration(node.rank, node.action);
            check_time("of an action", seconds)?;
            let end = start + seconds;
            free[node.rank] = end;
            work[node.rank] += seconds;
            ranks[node.rank].push(Span { action: node.action, start, end });
            ends[id] =
                if node.opens_pair { end + duration(node.rank, edges.nodes[id + 1].action) } else { end };
            if serial_links && let Some((to, rank)) = self.consumer(node.action, node.rank) {
                let free = links.entry((node.rank, rank)).or_insert(0.0);
                *free = free.max(ends[id]) + transfer(node.action, to);
                arrivals[id] = *free;
            }
        }
        let makespan = ends.iter().copied().fold(0.0, f64::max);
        let idle = work.iter().map(|work| makespan - work).collect();
        let spans = ranks.iter().filter_map(|spans| Some(spans.last()?.end - spans.first()?.start));
        let longest_span = spans.fold(0.0, f64::max);
        let bubble = (longest_span - work.iter().copied().fold(0.0, f64::max)).max(0.0);
        Ok(Timeline { ranks, makespan, work, idle, longest_span, bubble })
    }

    /// Who on another rank needs the value of an action, as `F` or `B`, and that rank.
    pub(crate) fn consumer(&self, action: Action, rank: usize) -> Option<(Action, usize)> {
        let Action { kind, stage, microbatch } = action;
        let to = match kind {
            Kind::Forward if stage + 1 < self.num_stages => Action::forward(stage + 1, microbatch),
            Kind::Backward | Kind::BackwardInput => Action { kind, stage: stage.checked_sub(1)?, microbatch },
            Kind::Forward | Kind::BackwardWeight => return None,
        };
        let other = self.placement[to.stage];
        (other != rank).then_some((to, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    #[test]
    fn communication_is_added_between_ranks_alone() {
        let two = generate("gpipe", 2, 1, 1).unwrap();
        let times = Times { forward: 1.0, input: 2.0, weight: 3.0, comm: 10.0 };
        let timeline = two.simulate(&times).unwrap();
        let spans: Vec<(f64, f64)> =
            timeline.ranks.iter().flatten().map(|span| (span.start, span.end)).collect();
        assert_eq!(spans, [(0.0, 1.0), (27.0, 32.0), (11.0, 12.0), (12.0, 17.0)]);
        assert_eq!((timeline.makespan, timeline.bubble), (32.0, 26.0));
        assert_eq!(timeline.idle, [26.0, 26.0]);
        let same_rank = Schedule::from_csv("one rank", "0F0,1F0,1B0,0B0").unwrap();
        assert_eq!(same_rank.simulate(&times).unwrap().bubble, 0.0);
    }

    #[test]
    fn a_split_backward_frees_the_stage_before() {
        let times = Times::new(1.0, 1.0, 5.0);
        let whole = generate("gpipe", 2, 1, 1).unwrap().simulate(&times).unwrap();
        let split =
            Schedule::from_csv("split", "0F0,0I0,0W0\n1F0,1I0,1W0\n").unwrap().simulate(&times).unwrap();
        assert_eq!((whole.makespan, split.makespan), (14.0, 9.0));
    }

    #[test]
    fn stages_and_links_may_differ() {
        let schedule = generate("1f1b", 2, 2, 1).unwrap();
        let stages = vec![Times { comm: 0.5, ..Times::new(1.0, 2.0, 3.0) }, Times::new(10.0, 20.0, 30.0)];
        let costs = Costs { stages, serial_links: false };
        // 0F0 to 1, over the link to 1.5, two rounds of 60 on rank 1, back over the link, 0B1.
        let timeline = schedule.simulate_costs(&costs).unwrap();
        assert_eq!(timeline.makespan, 1.5 + 120.0 + 0.5 + 5.0);
        assert_eq!(timeline.work, [12.0, 120.0]);
        let measured = |rank: usize, action: Action| (1 + rank + action.microbatch) as f64;
        let timeline = schedule.simulate_by(measured, |_, _| 0.0, false).unwrap();
        assert_eq!(timeline.work, [6.0, 10.0]);
        let short = Costs::uniform(&Times::new(1.0, 1.0, 1.0), 1);
        let message = schedule.simulate_costs(&short).unwrap_err().to_string();
        assert_eq!(message, "`costs` has 1 entries, not 2");
    }

    #[test]
    fn a_serial_link_carries_one_value_at_a_time() {
        let schedule = Schedule::from_csv("two", "0F0,0F1\n1F0,1F1\n").unwrap();
        let mut costs = Costs::uniform(&Times { comm: 4.0, ..Times::new(1.0, 0.0, 0.0) }, 2);
        assert_eq!(schedule.simulate_costs(&costs).unwrap().makespan, 7.0);
        costs.serial_links = true;
        assert_eq!(schedule.simulate_costs(&costs).unwrap().makespan, 10.0);
    }

    #[test]
    fn memory_over_time_peaks_where_the_lists_do() {
        for (name, chunks) in [("1f1b", 1), ("zb-h1", 1), ("zb-v", 2)] {
            let schedule = generate(name, 4, 9, chunks).unwrap();
            let live = schedule.simulate(&Times::new(2.0, 3.0, 1.0)).unwrap().live(|_| 1.0);
            let peaks = live.iter().map(|steps| steps.iter().map(|step| step.1 as usize).max().unwrap());
            assert_eq!(peaks.collect::<Vec<_>>(), schedule.peak_live());
            assert!(live.iter().all(|steps| steps.last().unwrap().1 == 0.0));
        }
    }

    #[test]
    fn senseless_times_are_refused() {
        let schedule = generate("gpipe", 1, 1, 1).unwrap();
        let message = schedule.simulate(&Times::new(1.0, -1.0, 0.0)).unwrap_err().to_string();
        assert_eq!(message, "time `I` is -1; times are finite and not negative");
        assert!(schedule.simulate(&Times::new(f64::NAN, 1.0, 0.0)).is_err());
        assert_eq!(schedule.simulate(&Times::new(0.0, 0.0, 0.0)).unwrap().bubble_fraction(), 0.0);
    }
}
