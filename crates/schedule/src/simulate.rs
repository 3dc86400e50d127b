//! When each action would run, given its times. An exact event simulation: no queue limits, no noise,
//! transfers overlap with compute.

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

    fn check(&self) -> Result<(), ScheduleError> {
        let times = [("F", self.forward), ("I", self.input), ("W", self.weight), ("COMM", self.comm)];
        match times.into_iter().find(|(_, seconds)| !(seconds.is_finite() && *seconds >= 0.0)) {
            Some((which, seconds)) => Err(ScheduleError::BadTime { which, seconds }),
            None => Ok(()),
        }
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
}

impl Schedule {
    /// Runs the schedule on paper. An action starts once its rank is free and what it needs is there;
    /// values from another rank come `comm` later.
    ///
    /// # Errors
    /// A time that is negative or not finite, a schedule with actions outside of its counts, or a deadlock.
    pub fn simulate(&self, times: &Times) -> Result<Timeline, ScheduleError> {
        times.check()?;
        self.check_shape()?;
        let edges = Edges::new(self);
        let order = edges.order().map_err(|cycle| ScheduleError::Cycle { cycle })?;
        let mut ends = vec![0.0f64; edges.nodes.len()];
        let mut ranks: Vec<Vec<Span>> =
            self.ranks.iter().map(|actions| Vec::with_capacity(actions.len())).collect();
        for id in order {
            let node = &edges.nodes[id];
            let free = node.before.map_or(0.0, |before| ends[before]);
            let start = node.needs.iter().fold(free, |start, &need| {
                let away = edges.nodes[need].rank != node.rank;
                start.max(ends[need] + if away { times.comm } else { 0.0 })
            });
            ends[id] = start + times.of(node.action.kind);
            ranks[node.rank].push(Span { action: node.action, start, end: ends[id] });
        }
        let makespan = ends.iter().copied().fold(0.0, f64::max);
        let work: Vec<f64> = self
            .ranks
            .iter()
            .map(|actions| actions.iter().map(|action| times.of(action.kind)).sum())
            .collect();
        let idle = work.iter().map(|work| makespan - work).collect();
        let spans = ranks.iter().filter_map(|spans| Some(spans.last()?.end - spans.first()?.start));
        let longest_span = spans.fold(0.0, f64::max);
        let bubble = (longest_span - work.iter().copied().fold(0.0, f64::max)).max(0.0);
        Ok(Timeline { ranks, makespan, work, idle, longest_span, bubble })
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
    fn senseless_times_are_refused() {
        let schedule = generate("gpipe", 1, 1, 1).unwrap();
        let message = schedule.simulate(&Times::new(1.0, -1.0, 0.0)).unwrap_err().to_string();
        assert_eq!(message, "time `I` is -1; times are finite and not negative");
        assert!(schedule.simulate(&Times::new(f64::NAN, 1.0, 0.0)).is_err());
        assert_eq!(schedule.simulate(&Times::new(0.0, 0.0, 0.0)).unwrap().bubble_fraction(), 0.0);
    }
}
