//! Lowering: sends and receives, put between the actions of a schedule, and the check that they match and
//! progress. What travels and over which wire is known elsewhere.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use crate::edges::Edges;
use crate::{Action, Kind, Schedule, ScheduleError, Span, Times};

/// One step of a rank: an action, or its value leaving for or coming from another rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Performs the action.
    Compute(Action),
    /// Sends the value of this rank's action `value` to rank `to`.
    Send {
        /// The action whose value it is.
        value: Action,
        /// The other rank.
        to: usize,
    },
    /// Receives the value of action `value` from rank `from`.
    Receive {
        /// The action whose value it is.
        value: Action,
        /// The other rank.
        from: usize,
    },
}

/// PyTorch's form: `1F0`, `1SEND_F0`, `2RECV_F0`.
impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |value: &Action| if value.kind == Kind::Forward { 'F' } else { 'B' };
        match self {
            Step::Compute(action) => action.fmt(out),
            Step::Send { value, .. } => {
                write!(out, "{}SEND_{}{}", value.stage, letter(value), value.microbatch)
            }
            Step::Receive { value, .. } => {
                let stage = if value.kind == Kind::Forward { value.stage + 1 } else { value.stage - 1 };
                write!(out, "{stage}RECV_{}{}", letter(value), value.microbatch)
            }
        }
    }
}

impl Schedule {
    /// The steps of each rank: a value is sent right after its action, and received where the other rank
    /// will be by then, going by `times`. Every rank so sees all transfers in one common order, in which
    /// they progress even without any buffer.
    ///
    /// # Errors
    /// As [`simulate`](Schedule::simulate).
    pub fn with_transfers(&self, times: &Times) -> Result<Vec<Vec<Step>>, ScheduleError> {
        let timeline = self.simulate(times)?;
        let edges = Edges::new(self);
        let order = edges.order().map_err(|cycle| ScheduleError::Cycle { cycle })?;
        // Spans lie as nodes do: rank after rank.
        let spans: Vec<Span> = timeline.ranks.into_iter().flatten().collect();
        let mut events: Vec<(f64, usize, Step, usize)> = Vec::with_capacity(2 * order.len());
        for (turn, &id) in order.iter().enumerate() {
            let node = &edges.nodes[id];
            events.push((spans[id].start, 2 * turn, Step::Compute(node.action), node.rank));
            if let Some((_, to)) = self.consumer(node.action, node.rank) {
                // The values of a pair leave when both have run, which in any order is the next turn of the rank.
                let end = if node.opens_pair { spans[id + 1].end } else { spans[id].end };
                let turn = if node.opens_pair { turn + 1 } else { turn };
                events.push((end, 2 * turn + 1, Step::Send { value: node.action, to }, node.rank));
            }
        }
        events.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        let mut steps: Vec<Vec<Step>> = vec![Vec::new(); self.num_ranks];
        for (_, _, step, rank) in events {
            steps[rank].push(step);
            if let Step::Send { value, to } = step {
                steps[to].push(Step::Receive { value, from: rank });
            }
        }
        Ok(steps)
    }

    /// Checks the steps of all ranks: on each channel (from one rank to another) what is sent is what is
    /// received, in the same order; nothing is used before it is there; and no rank waits for ever, if a
    /// send waits while `capacity` values are under way on its channel, and with a `capacity` of 0 until
    /// the other rank receives.
    ///
    /// # Errors
    /// The first value that does not match, a missing receive or send, or the cycle of steps.
    pub fn check_transfers(&self, steps: &[Vec<Step>], capacity: usize) -> Result<(), ScheduleError> {
        self.check_shape()?;
        if steps.len() != self.num_ranks {
            let (found, expected) = (steps.len(), self.num_ranks);
            return Err(ScheduleError::Length { what: "steps", found, expected });
        }
        self.check_compute(steps)?;
        check_channels(steps)?;
        Machine::new(steps, capacity).run()
    }

    /// Actions as in the schedule, each value received before it is used and sent after it is made.
    fn check_compute(&self, steps: &[Vec<Step>]) -> Result<(), ScheduleError> {
        for (rank, steps) in steps.iter().enumerate() {
            let mut actions = self.ranks[rank].iter();
            let mut there = std::collections::HashSet::new();
            for (position, step) in steps.iter().enumerate() {
                let fault = |needed: Step| ScheduleError::Transfer { rank, position, step: *step, needed };
                match *step {
                    Step::Compute(action) => {
                        let expected = actions.next().copied();
                        if let Some(expected) = expected.filter(|&expected| expected != action) {
                            return Err(fault(Step::Compute(expected)));
                        }
                        if expected.is_none() {
                            return Err(ScheduleError::Repeated { action, rank, count: 2 });
                        }
                        if let Some((value, from)) = self.received(action, rank)
                            && !value.iter().any(|value| there.contains(value))
                        {
                            return Err(fault(Step::Receive { value: value[0], from }));
                        }
                        there.insert(action);
                    }
                    Step::Send { value, to } => {
                        let receiver = self.in_bounds(value).then(|| self.consumer(value, rank)).flatten();
                        if receiver.map(|(_, rank)| rank) != Some(to) || !there.contains(&value) {
                            return Err(fault(Step::Compute(value)));
                        }
                    }
                    Step::Receive { value, from } => {
                        let maker = self.in_bounds(value).then(|| self.placement[value.stage]);
                        let receiver = maker.and_then(|maker| self.consumer(value, maker));
                        if maker != Some(from) || receiver.map(|(_, to)| to) != Some(rank) {
                            return Err(fault(Step::Send { value, to: rank }));
                        }
                        there.insert(value);
                    }
                }
            }
            if let Some(&action) = actions.next() {
                return Err(ScheduleError::Missing { action, rank });
            }
        }
        Ok(())
    }

    fn in_bounds(&self, action: Action) -> bool {
        action.stage < self.num_stages && action.microbatch < self.num_microbatches
    }

    /// The values (one of them) that an action must have received, and from which rank.
    fn received(&self, action: Action, rank: usize) -> Option<([Action; 2], usize)> {
        let Action { kind, stage, microbatch } = action;
        let values = match kind {
            Kind::Forward => [Action::forward(stage.checked_sub(1)?, microbatch); 2],
            Kind::BackwardWeight => return None,
            Kind::Backward | Kind::BackwardInput if stage + 1 == self.num_stages => return None,
            Kind::Backward | Kind::BackwardInput => {
                [Action::backward(stage + 1, microbatch), Action::backward_input(stage + 1, microbatch)]
            }
        };
        let from = self.placement[values[0].stage];
        (from != rank).then_some((values, from))
    }
}

/// What is sent on each channel is what is received, in that order.
fn check_channels(steps: &[Vec<Step>]) -> Result<(), ScheduleError> {
    let mut channels: HashMap<(usize, usize), [Vec<Action>; 2]> = HashMap::new();
    for (rank, steps) in steps.iter().enumerate() {
        for step in steps {
            match *step {
                Step::Send { value, to } => channels.entry((rank, to)).or_default()[0].push(value),
                Step::Receive { value, from } => channels.entry((from, rank)).or_default()[1].push(value),
                Step::Compute(_) => {}
            }
        }
    }
    let mut channels: Vec<_> = channels.into_iter().collect();
    channels.sort_by_key(|(channel, _)| *channel);
    for ((from, to), [sent, received]) in channels {
        let longest = sent.len().max(received.len());
        let pairs = (0..longest).map(|at| (sent.get(at).copied(), received.get(at).copied()));
        if let Some((position, (sent, received))) = pairs.enumerate().find(|(_, (s, r))| s != r) {
            return Err(ScheduleError::Mismatch { from, to, position, sent, received });
        }
    }
    Ok(())
}

/// Ranks that run their steps against channels of bounded capacity.
struct Machine<'a> {
    steps: &'a [Vec<Step>],
    capacity: usize,
    next: Vec<usize>,
    channels: HashMap<(usize, usize), VecDeque<Action>>,
}

impl<'a> Machine<'a> {
    fn new(steps: &'a [Vec<Step>], capacity: usize) -> Machine<'a> {
        Machine { steps, capacity, next: vec![0; steps.len()], channels: HashMap::new() }
    }

    /// Runs every rank as far as it goes, again and again for those that another's step may have woken.
    fn run(mut self) -> Result<(), ScheduleError> {
        let mut awake: Vec<usize> = (0..self.steps.len()).rev().collect();
        while let Some(rank) = awake.pop() {
            while let Some(&step) = self.steps[rank].get(self.next[rank]) {
                let other = match step {
                    Step::Compute(_) => None,
                    Step::Send { to, .. } => Some(to),
                    Step::Receive { from, .. } => Some(from),
                };
                if !self.step(rank, step) {
                    break;
                }
                self.next[rank] += 1;
                awake.extend(other);
            }
        }
        match (0..self.steps.len()).find(|&rank| self.next[rank] < self.steps[rank].len()) {
            None => Ok(()),
            Some(rank) => Err(self.cycle(rank)),
        }
    }

    /// Performs a step if it need not wait.
    fn step(&mut self, rank: usize, step: Step) -> bool {
        match step {
            Step::Compute(_) => true,
            Step::Send { value, to } if self.capacity == 0 => {
                // A meeting: the receiver's part is done here, too.
                let meets = self.waits_for(to) == Some(Step::Receive { value, from: rank });
                if meets {
                    self.next[to] += 1;
                }
                meets
            }
            Step::Receive { value, from } if self.capacity == 0 => {
                let meets = self.waits_for(from) == Some(Step::Send { value, to: rank });
                if meets {
                    self.next[from] += 1;
                }
                meets
            }
            Step::Send { value, to } => {
                let channel = self.channels.entry((rank, to)).or_default();
                let free = channel.len() < self.capacity;
                if free {
                    channel.push_back(value);
                }
                free
            }
            Step::Receive { value, from } => {
                let channel = self.channels.entry((from, rank)).or_default();
                let there = channel.front() == Some(&value);
                if there {
                    channel.pop_front();
                }
                there
            }
        }
    }

    fn waits_for(&self, rank: usize) -> Option<Step> {
        self.steps[rank].get(self.next[rank]).copied()
    }

    /// From a rank that waits to the rank it waits for, until one comes up again.
    fn cycle(&self, start: usize) -> ScheduleError {
        let mut path: Vec<(usize, Step)> = Vec::new();
        let mut rank = start;
        while let Some(step) = self.waits_for(rank) {
            if let Some(at) = path.iter().position(|&(seen, _)| seen == rank) {
                return ScheduleError::TransferCycle { capacity: self.capacity, cycle: path.split_off(at) };
            }
            path.push((rank, step));
            rank = match step {
                Step::Send { to, .. } => to,
                Step::Receive { from, .. } => from,
                Step::Compute(_) => break,
            };
        }
        ScheduleError::TransferCycle { capacity: self.capacity, cycle: path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{generate, generators};

    #[test]
    fn transfers_of_every_schedule_match_and_progress() {
        for generator in generators() {
            for (p, m) in [(1, 3), (2, 4), (3, 6), (4, 8), (5, 20)] {
                let schedule = generate(generator.name, p, m, generator.chunks.unwrap_or(2)).unwrap();
                let steps = schedule.with_transfers(&Times::new(1.0, 2.0, 0.0)).unwrap();
                for capacity in [0, 1, 2, usize::MAX] {
                    schedule.check_transfers(&steps, capacity).unwrap();
                }
            }
        }
    }

    fn one_f_one_b() -> (Schedule, Vec<Vec<Step>>) {
        let schedule = generate("1f1b", 2, 2, 1).unwrap();
        let steps = schedule.with_transfers(&Times::new(1.0, 1.0, 1.0)).unwrap();
        (schedule, steps)
    }

    #[test]
    fn steps_read_as_pytorch_writes_them() {
        let (_, steps) = one_f_one_b();
        let rows: Vec<String> =
            steps.iter().map(|row| row.iter().map(Step::to_string).collect::<Vec<_>>().join(",")).collect();
        insta::assert_snapshot!(rows.join("\n"), @r"
        0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1
        1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1,1B1,1SEND_B1
        ");
    }

    #[test]
    fn each_fault_is_named() {
        let message = |change: fn(&mut Vec<Vec<Step>>), capacity| {
            let (schedule, mut steps) = one_f_one_b();
            change(&mut steps);
            schedule.check_transfers(&steps, capacity).unwrap_err().to_string()
        };
        insta::assert_snapshot!(message(|s| s[1].retain(|step| step.to_string() != "1RECV_F1"), 1), @"rank 1, step 4: `1F1` comes without `1RECV_F1` before it; put `1RECV_F1` there");
        insta::assert_snapshot!(message(|s| s[0].retain(|step| step.to_string() != "0SEND_F1"), 1), @"from rank 0 to rank 1, value 1 (counted from 0): sent is nothing, received is the value of `0F1`; use one order on both");
        insta::assert_snapshot!(message(|s| s[0].swap(0, 1), 1), @"rank 0, step 0: `0SEND_F0` comes without `0F0` before it; put `0F0` there");
        insta::assert_snapshot!(message(|s| { s[0].pop(); }, 1), @"`0B1` is missing from rank 0");
    }

    #[test]
    fn sends_that_wait_for_each_other_need_a_buffer() {
        // Both ranks send before they receive.
        let rows = [
            "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1",
            "1RECV_F0,1F0,1B0,1SEND_B0,1RECV_F1,1F1,1B1,1SEND_B1",
        ];
        let (schedule, sorted) = one_f_one_b();
        let find = |rank: usize, name: &str| {
            let step = sorted[rank].iter().find(|step| step.to_string() == name);
            *step.unwrap()
        };
        let steps: Vec<Vec<Step>> =
            (0..2).map(|rank| rows[rank].split(',').map(|name| find(rank, name)).collect()).collect();
        insta::assert_snapshot!(schedule.check_transfers(&steps, 0).unwrap_err(), @"deadlock of transfers with room for 0 values on a channel: rank 0 waits in `0SEND_F1`, rank 1 waits in `1SEND_B0`; reorder one of these ranks");
        schedule.check_transfers(&steps, 1).unwrap();
    }

    #[test]
    fn values_that_overtake_each_other_do_not_match() {
        let schedule = generate("gpipe", 2, 2, 1).unwrap();
        let mut steps = schedule.with_transfers(&Times::new(1.0, 1.0, 1.0)).unwrap();
        let sends: Vec<usize> =
            (0..steps[0].len()).filter(|&at| matches!(steps[0][at], Step::Send { .. })).collect();
        let first = steps[0].remove(sends[0]);
        steps[0].insert(sends[1], first);
        insta::assert_snapshot!(schedule.check_transfers(&steps, 4).unwrap_err(), @"from rank 0 to rank 1, value 0 (counted from 0): sent is the value of `0F1`, received is the value of `0F0`; use one order on both");
    }
}
