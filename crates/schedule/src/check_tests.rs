//! Tests of the checker: each fault by hand, then random mutations of good schedules.

use proptest::prelude::*;

use crate::{Action, Kind, Schedule, ScheduleError, Times, generate};

fn message(change: impl FnOnce(&mut Schedule)) -> String {
    let mut schedule = generate("1f1b", 2, 2, 1).unwrap();
    change(&mut schedule);
    schedule.check().unwrap_err().to_string()
}

#[test]
fn each_fault_is_named() {
    // rank 0: 0F0 0F1 0B0 0B1, rank 1: 1F0 1B0 1F1 1B1
    let faults = [
        (
            message(|s| {
                let _ = s.ranks[0].remove(0);
            }),
            "`0F0` is missing from rank 0",
        ),
        (
            message(|s| {
                let _ = s.ranks[1].remove(3);
            }),
            "`1B1` is missing from rank 1",
        ),
        (
            message(|s| s.ranks[0].push(Action::forward(0, 1))),
            "`0F1` is listed 2 times on rank 0; once is right",
        ),
        (
            message(|s| s.ranks[0].push(Action::backward_input(0, 1))),
            "stage 0, microbatch 1 has both `B` and `I`; `B` is `I` and `W` in one",
        ),
        (message(|s| s.ranks[0][3].kind = Kind::BackwardWeight), "`0I1` is missing from rank 0"),
        (message(|s| s.ranks[0][3].kind = Kind::BackwardInput), "`0W1` is missing from rank 0"),
        (
            message(|s| s.ranks[1].swap(0, 1)),
            "rank 1 lists `1B0` before `1F0`, which it needs; list `1F0` first",
        ),
        (
            message(|s| s.ranks[0].swap(2, 3)),
            "rank 0 lists `0B1` before `0B0`; a stage's weight gradients accumulate in microbatch order, so that every schedule gives the same bits",
        ),
        (message(|s| s.ranks[0][0].stage = 1), "`1F0` is listed on rank 0, but stage 1 is on rank 1"),
        (
            message(|s| s.ranks[0][0].microbatch = 2),
            "`0F2` on rank 0 is outside of 2 stages and 2 microbatches (counted from 0)",
        ),
        (message(|s| s.placement[1] = 2), "stage 1 is placed on rank 2, but there are 2 ranks"),
        (message(|s| s.placement[1] = 0), "rank 1 holds no stage; use fewer ranks or more stages"),
        (
            message(|s| {
                let _ = s.placement.pop();
            }),
            "`placement` has 1 entries, not 2",
        ),
        (message(|s| s.num_ranks = 0), "num_ranks is 0; a schedule needs at least 1"),
    ];
    for (found, expected) in faults {
        assert_eq!(found, expected);
    }
}

#[test]
fn a_deadlock_is_reported_as_its_cycle() {
    // Rank 0 wants microbatch 0's gradient before it sends microbatch 1, rank 1 wants 1 before 0.
    let rows = "0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n";
    let schedule = Schedule::from_csv("stuck", rows).unwrap();
    let error = schedule.check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "deadlock: 0F1 -> 1F1 -> 1F0 -> 1B0 -> 0B0 -> 0F1; reorder one of these ranks"
    );
    assert_eq!(schedule.simulate(&Times::new(1.0, 1.0, 1.0)).unwrap_err(), error);
    let ScheduleError::Cycle { cycle } = error else { panic!("not a cycle") };
    assert_eq!(cycle.len(), 5);
}

#[test]
fn split_backwards_pass() {
    let rows = "0F0,0F1,0I0,0W0,0I1,0W1\n1F0,1I0,1F1,1I1,1W0,1W1\n";
    let schedule = Schedule::from_csv("split", rows).unwrap();
    schedule.check().unwrap();
    assert!(schedule.splits_backward());
    assert_eq!(schedule.peak_live(), [2, 2]);
    let early = Schedule::from_csv("early", "0F0,0W0,0I0\n").unwrap().check().unwrap_err();
    assert_eq!(early.to_string(), "rank 0 lists `0W0` before `0I0`, which it needs; list `0I0` first");
}

#[test]
fn a_thousand_ranks_are_checked_at_once() {
    generate("1f1b", 1024, 64, 1).unwrap().check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn mutants_are_refused_or_still_run(
        gpipe: bool, p in 1usize..5, m in 1usize..6, mutation in 0..5,
        seeds in proptest::array::uniform3(any::<prop::sample::Index>()),
    ) {
        let good = generate(if gpipe { "gpipe" } else { "1f1b" }, p, m, 1).unwrap();
        let mut schedule = good.clone();
        let rank = seeds[0].index(p);
        let (from, to) = (seeds[1].index(2 * m), seeds[2].index(2 * m));
        let must_refuse = match mutation {
            // Without its only backward a schedule is one for evaluation.
            0 => { schedule.ranks[rank].remove(from); schedule.has_backward() }
            1 => { let action = schedule.ranks[rank][from]; schedule.ranks[rank].insert(to, action); true }
            2 => { schedule.ranks[rank].swap(from, to); false }
            3 => { let action = schedule.ranks[rank].remove(from); schedule.ranks[rank].insert(to, action); false }
            _ => {
                let action = schedule.ranks[rank].remove(from);
                let other = seeds[2].index(p);
                schedule.ranks[other].push(action);
                other != rank
            }
        };
        let times = Times { forward: 1.0, input: 2.0, weight: 1.0, comm: 0.5 };
        let verdict = schedule.check();
        schedule.peak_live();
        let simulated = schedule.simulate(&times);
        schedule.draw(&times).ok();
        if must_refuse {
            prop_assert!(verdict.is_err());
        }
        if verdict.is_ok() {
            let makespan = simulated.unwrap().makespan;
            let each = if schedule.has_backward() { 4.0 } else { 1.0 };
            prop_assert!(makespan >= m as f64 * each && makespan.is_finite());
        }
    }
}
