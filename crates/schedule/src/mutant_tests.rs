//! Tests: a hundred thousand mutated schedules are each shown to be right or refused with a reason.
//! Debug builds take a tenth of them, unless `PHALANX_FULL` is set.

use std::collections::{HashMap, HashSet};

use crate::mutate::{Draw, mutate};
use crate::{Action, Kind, Schedule, ScheduleError, Step, Times, generate, generators};

/// Whether a schedule is right, by brute force and from the rules alone: run ranks in turn, each as far as
/// what has been done allows, then count.
fn is_right(schedule: &Schedule) -> bool {
    let (s, m) = (schedule.num_stages, schedule.num_microbatches);
    let mut done: HashMap<Action, usize> = HashMap::new();
    let mut next = vec![0; schedule.num_ranks];
    let mut weights = vec![0; s];
    let pairs: HashSet<(usize, usize)> = schedule.overlaps.iter().copied().collect();
    let ready = |action: &Action, done: &HashMap<Action, usize>| {
        let Action { kind, stage, microbatch } = *action;
        let input = |stage| {
            done.contains_key(&Action::backward(stage, microbatch))
                || done.contains_key(&Action::backward_input(stage, microbatch))
        };
        let forward = |stage| done.contains_key(&Action::forward(stage, microbatch));
        match kind {
            Kind::Forward => stage == 0 || forward(stage - 1),
            Kind::Backward | Kind::BackwardInput => forward(stage) && (stage + 1 == s || input(stage + 1)),
            Kind::BackwardWeight => {
                forward(stage) && done.contains_key(&Action::backward_input(stage, microbatch))
            }
        }
    };
    loop {
        let mut moved = false;
        for (rank, actions) in schedule.ranks.iter().enumerate() {
            while let Some(action) = actions.get(next[rank]) {
                let pair = pairs.contains(&(rank, next[rank]));
                let together = if pair { actions.get(next[rank]..next[rank] + 2) } else { None };
                if pair
                    && !together.is_some_and(|pair| {
                        pair[0].kind == Kind::Forward
                            && matches!(pair[1].kind, Kind::Backward | Kind::BackwardInput)
                            && (pair[0].stage, pair[0].microbatch) != (pair[1].stage, pair[1].microbatch)
                    })
                {
                    return false;
                }
                if !together.unwrap_or(&[*action]).iter().all(|action| ready(action, &done)) {
                    break;
                }
                for &action in together.unwrap_or(&[*action]) {
                    if schedule.placement[action.stage] != rank {
                        return false;
                    }
                    if matches!(action.kind, Kind::Backward | Kind::BackwardWeight) {
                        if action.microbatch != weights[action.stage] {
                            return false;
                        }
                        weights[action.stage] += 1;
                    }
                    *done.entry(action).or_insert(0) += 1;
                    next[rank] += 1;
                }
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let complete = next.iter().zip(&schedule.ranks).all(|(next, actions)| *next == actions.len());
    let once = |action: Action| done.get(&action) == Some(&1);
    let all = (0..s).flat_map(|stage| (0..m).map(move |microbatch| (stage, microbatch)));
    let mut pairs = all.map(|(stage, microbatch)| {
        let [i, w, b] = [Kind::BackwardInput, Kind::BackwardWeight, Kind::Backward]
            .map(|kind| done.contains_key(&Action::new(kind, stage, microbatch)));
        let backward = (b && !i && !w) || (!b && i && w) || !schedule.has_backward();
        once(Action::forward(stage, microbatch)) && backward
    });
    complete && done.values().all(|&count| count == 1) && pairs.all(|right| right)
}

/// The reason of a refusal holds by itself, without the checker.
fn holds(schedule: &Schedule, error: &ScheduleError) -> bool {
    let count = |action: &Action, rank: usize| schedule.ranks[rank].iter().filter(|a| *a == action).count();
    let at = |action: &Action, rank: usize| schedule.ranks[rank].iter().position(|a| a == action);
    match error {
        ScheduleError::Missing { action, rank } => count(action, *rank) == 0,
        ScheduleError::Repeated { action, rank, count: times } => {
            count(action, *rank) == *times && *times > 1
        }
        ScheduleError::WrongRank { action, rank, expected } => {
            count(action, *rank) > 0 && schedule.placement[action.stage] == *expected && rank != expected
        }
        ScheduleError::Order { rank, later, earlier } => at(later, *rank) < at(earlier, *rank),
        ScheduleError::WeightOrder { rank, later, earlier } => {
            at(later, *rank) < at(earlier, *rank)
                && later.stage == earlier.stage
                && later.microbatch > earlier.microbatch
        }
        ScheduleError::Cycle { cycle } => {
            let distinct: HashSet<&Action> = cycle.iter().collect();
            cycle.len() >= 2 && distinct.len() == cycle.len()
        }
        ScheduleError::Overlap { rank, position } => schedule.overlaps.contains(&(*rank, *position)),
        ScheduleError::BackwardTwice { .. } => true,
        _ => false,
    }
}

#[test]
fn mutated_schedules_are_right_or_refused_with_a_reason() {
    let mut bases = Vec::new();
    for generator in generators() {
        for (p, m) in [(2, 4), (3, 6), (4, 8)] {
            bases.push(generate(generator.name, p, m, generator.chunks.unwrap_or(2)).unwrap());
        }
    }
    let full = !cfg!(debug_assertions) || std::env::var_os("PHALANX_FULL").is_some();
    let (mut draw, mut accepted, mut refused) = (Draw(20240801), 0, HashMap::new());
    let times = Times { comm: 0.5, ..Times::new(1.0, 2.0, 1.5) };
    for mutant in 0..if full { 100_000 } else { 10_000 } {
        let mut schedule = bases[mutant % bases.len()].clone();
        for _ in 0..1 + draw.below(2) {
            mutate(&mut schedule, &mut draw);
        }
        let right = is_right(&schedule);
        match schedule.check() {
            Ok(()) => {
                assert!(right, "accepted, but wrong: {}\n{}", schedule.name, schedule.to_csv());
                let timeline = schedule.simulate(&times).unwrap();
                assert!(timeline.makespan.is_finite() && timeline.bubble >= 0.0);
                let steps = schedule.with_transfers(&times).unwrap();
                for capacity in [0, 1] {
                    schedule.check_transfers(&steps, capacity).unwrap();
                }
                accepted += 1;
            }
            Err(error) => {
                assert!(!right, "refused, but right: {error}\n{}", schedule.to_csv());
                assert!(holds(&schedule, &error), "not so: {error}\n{}", schedule.to_csv());
                let name = format!("{error:?}");
                *refused.entry(name.split([' ', '{']).next().unwrap().to_string()).or_insert(0) += 1;
            }
        }
    }
    println!("{accepted} accepted, refused: {refused:?}");
    assert!(accepted > 500 && refused.len() >= 5, "{accepted} accepted, refused: {refused:?}");
}

#[test]
fn mutated_transfers_are_right_or_refused() {
    let mut draw = Draw(4711);
    let bases = generators().iter().map(|g| generate(g.name, 3, 6, g.chunks.unwrap_or(2)).unwrap());
    let lowered = bases.map(|base| (base.with_transfers(&Times::new(1.0, 1.0, 1.0)).unwrap(), base));
    let lowered: Vec<(Vec<Vec<Step>>, Schedule)> = lowered.collect();
    for round in 0..10_000 {
        let (mut steps, schedule) = lowered[round % lowered.len()].clone();
        let rank = draw.below(3);
        let (from, to) = (draw.below(steps[rank].len()), draw.below(steps[rank].len()));
        match draw.below(3) {
            0 => drop(steps[rank].remove(from)),
            1 => steps[rank].swap(from, to),
            _ => {
                let row = &mut steps[rank];
                let step = row.remove(from);
                row.insert(to.min(row.len()), step);
            }
        }
        let verdicts = [0, 1, 1000].map(|capacity| schedule.check_transfers(&steps, capacity));
        // More room never makes a deadlock.
        assert!(verdicts.windows(2).all(|pair| pair[0].is_err() || pair[1].is_ok()));
    }
}
