//! Gathers that reach into the next step: where they are waited for, and what the checker says where they are not.

use graph::{Op, Recompute};
use memory::DType;
use models::{Family, Precision};

use crate::lower_tests::{graph, graph_in, programs};
use crate::{Chooser, Instruction, Parallel, Phase, Plan, Program, When, check, lower};

#[test]
fn updated_parameters_are_gathered_behind_the_next_forward() {
    let graph = graph(Family::Llama, true, Recompute::NONE);
    for (zero, pp) in [(1, 1), (2, 1), (1, 2)] {
        let parallel = Parallel { dp: 2, pp, num_microbatches: 3, zero, ..Parallel::default() };
        let (plan, programs) = programs(&graph, &parallel, &Chooser::Policy);
        for program in &programs {
            let refused = |change: &dyn Fn(&mut Program), why: &str| {
                let mut mutant = program.clone();
                change(&mut mutant);
                let verdict = check(&graph, &plan, &mutant).unwrap_err().to_string();
                assert!(verdict.contains(why), "{why}: {verdict}");
            };
            let num_parameters = program.states.iter().filter(|(name, _)| !name.contains(':')).count();
            assert_eq!(program.carried.len(), num_parameters.min(64));
            for ticket in &program.carried {
                let is_wait =
                    |i: &Instruction| matches!(i, Instruction::Wait { ticket: t, .. } if t == ticket);
                let waits: Vec<(usize, usize)> = program
                    .blocks
                    .iter()
                    .enumerate()
                    .flat_map(|(b, block)| {
                        let found = block.instructions.iter().enumerate().filter(|(_, i)| is_wait(i));
                        found.map(move |(index, _)| (b, index)).collect::<Vec<_>>()
                    })
                    .collect();
                let [(block, index)] = waits[..] else { panic!("waited for at {waits:?}") };
                assert_eq!(program.blocks[block].phase, Phase::Forward);
                assert_eq!(program.blocks[block].instructions[index].when(), When::FirstRun);
                let late = |p: &mut Program| {
                    let wait = p.blocks[block].instructions.remove(index);
                    p.blocks[block].instructions.push(wait);
                };
                refused(&late, "is in flight");
                refused(&|p| p.carried.retain(|t| t != ticket), "was not started");
                let unstarted = |p: &mut Program| {
                    let is_start =
                        |i: &Instruction| matches!(i, Instruction::Start { ticket: t, .. } if t == ticket);
                    p.blocks.iter_mut().for_each(|b| b.instructions.retain(|i| !is_start(i)));
                };
                refused(&unstarted, "ticket");
            }
        }
    }
}

#[test]
fn narrow_copies_are_made_behind_the_next_forward() {
    let graph = graph_in(Family::Llama, true, Recompute::NONE, Precision::Scaled);
    for (pp, num_microbatches, narrow) in [(1, 3, DType::BF16), (2, 1, DType::BF16), (2, 3, DType::F16)] {
        let parallel = Parallel { dp: 2, pp, num_microbatches, zero: 1, ..Parallel::default() };
        let mut plan = Plan::new(&graph, &parallel, DType::F32).unwrap();
        plan.narrow = narrow;
        for rank in 0..pp {
            let program = lower(&graph, &plan, rank, &Chooser::Policy, false).unwrap();
            let refused = |change: &dyn Fn(&mut Program), why: &str| {
                let mut mutant = program.clone();
                change(&mut mutant);
                let verdict = check(&graph, &plan, &mutant).unwrap_err().to_string();
                assert!(verdict.contains(why), "{why}: {verdict}");
            };
            let mut num_casts = 0;
            for (at, block) in program.blocks.iter().enumerate().filter(|(_, b)| b.stage.is_some()) {
                for (index, instruction) in block.instructions.iter().enumerate() {
                    let Instruction::Compute { op: Op::Cast, when, .. } = instruction else { continue };
                    assert_eq!(*when, When::FirstRun);
                    num_casts += 1;
                    let late = |p: &mut Program| p.blocks[at].instructions[index..].rotate_left(1);
                    refused(&late, "is read before it is written");
                    let wait = |i: &Instruction| matches!(i, Instruction::Wait { .. });
                    let waited = block.instructions[..index].iter().rposition(wait).unwrap();
                    refused(&|p| p.blocks[at].instructions[waited..=index].rotate_right(1), "is in flight");
                }
            }
            // Of more parameters than may be under way, the first is complete when the step ends.
            let parameters = program.states.iter().filter(|(name, _)| !name.contains(':')).count();
            assert_eq!(program.derived.len() - num_casts, parameters - program.carried.len(), "{parallel:?}");
            assert!(program.keeps_derived() && !program.update_derives() && num_casts > 20);
            let begin = program.block(None, Phase::Begin).into_iter().flat_map(|b| &b.instructions);
            let is_pack = |i: &&Instruction| matches!(i, Instruction::Compute { op: Op::Pack { .. }, .. });
            let packed = begin.filter(is_pack).count();
            assert!(
                packed <= 2 * (program.derived.len() - num_casts),
                "{packed} before the first microbatch"
            );
            let stale = |p: &mut Program| {
                let update = p.blocks.iter_mut().find(|b| b.phase == Phase::Update).unwrap();
                let is_cast = |i: &Instruction| matches!(i, Instruction::Compute { op: Op::Cast, .. });
                if let Some(at) = update.instructions.iter().position(is_cast) {
                    update.instructions[..=at].rotate_right(1);
                }
            };
            if num_casts < program.derived.len() {
                refused(&stale, "is read before it is written");
            }
        }
    }
}
