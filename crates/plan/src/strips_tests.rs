//! Strips: where they stand, what is not held any more, and what the checker refuses in them.

use graph::{Op, Recompute};
use models::Family;

use crate::lower_tests::{graph, layouts, programs};
use crate::{Chooser, Instruction, Parallel, PlanError, Program, check};

const ROWS: usize = 32;

fn in_strips(parallel: &Parallel) -> Parallel {
    Parallel { logits_rows: ROWS, ..parallel.clone() }
}

fn strips(program: &mut Program) -> Vec<&mut Instruction> {
    let all = program.blocks.iter_mut().flat_map(|b| &mut b.instructions);
    all.filter(|i| matches!(i, Instruction::Strips { .. })).collect()
}

#[test]
fn no_rank_holds_more_logits_than_a_strip_has() {
    for tied in [false, true] {
        let graph = graph(Family::Gpt2, tied, Recompute::NONE);
        let [batch, vocab] = ["batch", "vocab"].map(|name| graph.find_dim(name).unwrap());
        for parallel in layouts() {
            let (_, mut programs) = programs(&graph, &in_strips(&parallel), &Chooser::Policy);
            let found: usize = programs.iter_mut().map(|p| strips(p).len()).sum();
            let held = programs.iter().flat_map(|p| &p.buffers);
            let held = held.filter(|b| b.dims.contains(&batch) && b.dims.contains(&vocab));
            let most = held.map(|b| b.len).max().unwrap();
            // Ranks that share the vocabulary exchange maxima in between; weight gradients apart wait for the gradient.
            let rows = 12 * 16 / (parallel.dp * parallel.cp * parallel.num_microbatches);
            let whole = rows <= ROWS || parallel.tp > 1 || parallel.schedule.starts_with("zb");
            let context = format!("{parallel:?}");
            assert_eq!(found, usize::from(!whole), "{context}");
            assert!(whole || most == ROWS * 53, "{most}, {context}");
        }
    }
}

#[test]
fn a_forward_gathers_no_head_that_its_backward_has() {
    let graph = graph(Family::Llama, false, Recompute::NONE);
    let parallel = Parallel { dp: 2, pp: 2, zero: 3, num_microbatches: 2, ..Parallel::default() };
    let gathers = |parallel: &Parallel| -> Vec<usize> {
        let (_, programs) = programs(&graph, parallel, &Chooser::Policy);
        let of_head = |i: &&Instruction| match i {
            Instruction::Start { inputs, .. } => {
                programs[1].buffer(inputs[0]).name.starts_with("head.weight")
            }
            _ => false,
        };
        let blocks = programs[1].blocks.iter().filter(|b| b.stage.is_some());
        blocks.map(|b| b.instructions.iter().filter(of_head).count()).collect()
    };
    assert_eq!(gathers(&parallel), [1, 1]);
    assert_eq!(gathers(&in_strips(&parallel)), [0, 1]);
}

#[test]
fn what_does_not_go_strip_by_strip_is_refused() {
    let graph = graph(Family::Gpt2, false, Recompute::NONE);
    let (plan, programs) = programs(&graph, &in_strips(&Parallel::default()), &Chooser::Policy);
    let verdict = |change: &dyn Fn(&mut Program)| -> String {
        let mut mutant = programs[0].clone();
        change(&mut mutant);
        match check(&graph, &plan, &mutant) {
            Err(PlanError::Program { problem, .. }) => problem,
            other => panic!("accepted: {other:?}"),
        }
    };
    let body = |program: &mut Program, change: &dyn Fn(&mut Vec<Instruction>)| match &mut strips(program)[..]
    {
        [Instruction::Strips { body, .. }] => change(body),
        other => panic!("{other:?}"),
    };
    let op_of = |instruction: &Instruction| match instruction {
        Instruction::Compute { op, .. } => op.clone(),
        other => panic!("{other:?}"),
    };

    // The gradient of the logits is read by what stands behind the strips.
    let read_outside = verdict(&|program| {
        let mut product = None;
        body(program, &|body| assert!(op_of(body.last().unwrap()) == Op::Contract));
        for block in &mut program.blocks {
            if let Some(at) = block.instructions.iter().position(|i| matches!(i, Instruction::Strips { .. }))
            {
                if let Instruction::Strips { body, .. } = &mut block.instructions[at] {
                    product = body.pop();
                }
                block.instructions.insert(at + 1, product.take().unwrap());
            }
        }
    });
    assert!(read_outside.contains("is there for some rows only"), "{read_outside}");

    // A sum over the rows of one strip is no sum over all.
    let overwritten = verdict(&|program| {
        body(program, &|body| {
            let Instruction::Compute { op, .. } = body.last_mut().unwrap() else { unreachable!() };
            *op = Op::Sum;
        });
    });
    assert!(overwritten.contains("does not go strip by strip"), "{overwritten}");

    // The weight's gradient is read while strips are missing.
    let too_early = verdict(&|program| {
        body(program, &|body| {
            let [.., to_hidden, to_weight] = &mut body[..] else { unreachable!() };
            let Instruction::Compute { outputs, .. } = to_weight.clone() else { unreachable!() };
            let Instruction::Compute { inputs, .. } = to_hidden else { unreachable!() };
            inputs[1] = outputs[0];
            body.swap(5, 6);
        });
    });
    assert!(too_early.contains("read before the last one"), "{too_early}");

    let moved = verdict(&|program| {
        let load = program.blocks.iter().flat_map(|b| &b.instructions);
        let load = load.clone().find(|i| matches!(i, Instruction::Load { .. })).cloned().unwrap();
        body(program, &|body| body.push(load.clone()));
    });
    assert!(moved.contains("computations alone"), "{moved}");
}
