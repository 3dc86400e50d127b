//! Lowering against the checker: every kind of plan, policy and random, lowers to a Program that the checker accepts,
//! and the checker notices what is taken away.

use graph::{Graph, Recompute};
use memory::DType;
use models::{Decoder, Family, Optimizer, OptimizerKind, Precision, Step, train_step};

use crate::{Chooser, Instruction, Parallel, Plan, PlanError, Program, check, check_world, lower};

fn decoder(family: Family, tied: bool) -> Decoder {
    Decoder {
        family,
        num_layers: 7,
        embed: 16,
        num_heads: 8,
        num_kv_heads: if family == Family::Llama { 2 } else { 8 },
        head_dim: 4,
        mlp: 24,
        vocab_size: 53,
        max_positions: 16,
        tied,
        dropout: 0.1,
        rope_theta: 10000.0,
        norm_eps: 1e-5,
        variant: models::Variant::default(),
    }
}

fn graph(family: Family, tied: bool, recompute: Recompute) -> Graph {
    graph_in(family, tied, recompute, Precision::Uniform)
}

fn graph_in(family: Family, tied: bool, recompute: Recompute, precision: Precision) -> Graph {
    let optimizer = Optimizer {
        kind: OptimizerKind::AdamW,
        betas: [0.9, 0.95],
        eps: 1e-8,
        momentum: 0.0,
        nesterov: false,
        weight_decay: 0.1,
        clip_norm: 1.0,
    };
    let step = Step { batch: 12, sequence_length: 16 };
    train_step(&decoder(family, tied), &optimizer, step, recompute, precision).unwrap()
}

fn layouts() -> Vec<Parallel> {
    let one = Parallel::default();
    let mut all = vec![one.clone()];
    for zero in 0..=3 {
        all.push(Parallel { dp: 2, zero, ..one.clone() });
        all.push(Parallel { dp: 4, zero, num_microbatches: 3, ..one.clone() });
        all.push(Parallel { dp: 2, cp: 2, tp: 2, sequence: true, zero, num_microbatches: 2, ..one.clone() });
        let schedule = "gpipe".to_owned();
        all.push(Parallel { pp: 2, dp: 2, tp: 4, zero, num_microbatches: 3, schedule, ..one.clone() });
    }
    for tp in [2, 4, 8] {
        for sequence in [false, true] {
            all.push(Parallel { tp, sequence, ..one.clone() });
        }
    }
    all.push(Parallel { cp: 4, striped: true, ..one.clone() });
    all.push(Parallel { cp: 2, tp: 4, sequence: true, striped: true, ..one.clone() });
    all.push(Parallel { pp: 4, num_microbatches: 5, ..one });
    all
}

fn programs(graph: &Graph, parallel: &Parallel, chooser: &Chooser) -> (Plan, Vec<Program>) {
    let plan = Plan::new(graph, parallel, DType::F64).unwrap();
    let programs: Vec<Program> =
        (0..parallel.pp).map(|c| lower(graph, &plan, c, chooser, true).unwrap()).collect();
    check_world(&plan, &programs).unwrap();
    (plan, programs)
}

#[test]
fn every_layout_lowers_to_a_program_that_the_checker_accepts() {
    for family in [Family::Gpt2, Family::Llama] {
        for (tied, recompute) in
            [(true, Recompute::None), (false, Recompute::Selective), (true, Recompute::Full)]
        {
            let graph = graph(family, tied, recompute);
            for parallel in layouts() {
                programs(&graph, &parallel, &Chooser::Policy);
            }
        }
    }
}

#[test]
fn mixed_precision_lowers_in_every_layout_and_keeps_what_is_summed_wide() {
    for (family, tied, recompute, precision) in [
        (Family::Gpt2, true, Recompute::None, Precision::Mixed),
        (Family::Llama, true, Recompute::Selective, Precision::Scaled),
        (Family::Llama, false, Recompute::Full, Precision::Mixed),
    ] {
        let graph = graph_in(family, tied, recompute, precision);
        for parallel in layouts() {
            let mut plan = Plan::new(&graph, &parallel, DType::F32).unwrap();
            plan.narrow = DType::BF16;
            let programs: Vec<Program> =
                (0..parallel.pp).map(|c| lower(&graph, &plan, c, &Chooser::Policy, false).unwrap()).collect();
            check_world(&plan, &programs).unwrap();
            for program in &programs {
                let dtype = |name: &str| {
                    let buffer = program.buffers.iter().find(|b| b.name == name);
                    buffer.map(|b| b.dtype)
                };
                for (name, wanted) in [
                    ("layers.0.mlp.up", DType::BF16),
                    ("layers.0.mlp.up.weight", DType::F32),
                    ("layers.0.mlp.up.weight.cast", DType::BF16),
                    ("layers.0.mlp.up.d_right", DType::F32),
                    ("layers.0.mlp.up.d_left", DType::BF16),
                    ("head.logits", DType::BF16),
                    ("loss.nll.max", DType::F32),
                    ("loss.nll", DType::F32),
                ] {
                    assert!(dtype(name).is_none_or(|d| d == wanted), "{name} is {:?}", dtype(name));
                }
                // A parameter is cast once, however many stages and microbatches read it.
                let casts = program.blocks.iter().flat_map(|b| &b.instructions).filter_map(|i| match i {
                    Instruction::Compute { op: graph::Op::Cast, inputs, .. } => Some(inputs[0]),
                    _ => None,
                });
                let mut casts: Vec<_> = casts.collect();
                let num_casts = casts.len();
                casts.sort_unstable();
                casts.dedup();
                assert!(num_casts > 0 && num_casts == casts.len());
            }
        }
    }
}

#[test]
fn random_legal_choices_lower_too() {
    let graph = graph(Family::Llama, true, Recompute::None);
    for seed in 0..12 {
        for parallel in layouts() {
            programs(&graph, &parallel, &Chooser::Random(seed));
        }
    }
}

#[test]
fn the_checker_notices_every_missing_collective() {
    for family in [Family::Gpt2, Family::Llama] {
        let graph = graph(family, true, Recompute::None);
        for parallel in layouts() {
            let (plan, programs) = programs(&graph, &parallel, &Chooser::Policy);
            for program in programs {
                let places: Vec<(usize, usize)> = program
                    .blocks
                    .iter()
                    .enumerate()
                    .flat_map(|(b, block)| (0..block.instructions.len()).map(move |i| (b, i)))
                    .filter(|(b, i)| matches!(program.blocks[*b].instructions[*i], Instruction::Start { .. }))
                    .collect();
                for (block, index) in places {
                    let mut mutant = program.clone();
                    mutant.blocks[block].instructions.drain(index..index + 2);
                    let verdict = check(&graph, &plan, &mutant);
                    assert!(
                        matches!(verdict, Err(PlanError::Program { .. })),
                        "{parallel:?}: {:?} can be dropped",
                        program.blocks[block].instructions[index]
                    );
                }
            }
        }
    }
}

#[test]
fn a_missing_message_or_a_foreign_collective_is_noticed() {
    let graph = graph(Family::Llama, true, Recompute::None);
    let parallel = Parallel { pp: 4, dp: 2, num_microbatches: 5, zero: 1, ..Parallel::default() };
    let (plan, programs) = programs(&graph, &parallel, &Chooser::Policy);
    let mut mutants = 0;
    for rank in 0..4 {
        for block in 0..programs[rank].blocks.len() {
            for index in 0..programs[rank].blocks[block].instructions.len() {
                let spans_stages = match &programs[rank].blocks[block].instructions[index] {
                    Instruction::Send { .. } | Instruction::Recv { .. } => true,
                    Instruction::Start { group, .. } => {
                        let key = &programs[rank].groups[*group];
                        key.pipeline_ranks.is_some() || key.axes.contains(mesh::Axis::Pp)
                    }
                    _ => false,
                };
                if spans_stages {
                    let mut mutant = programs.clone();
                    mutant[rank].blocks[block].instructions.remove(index);
                    assert!(check_world(&plan, &mutant).is_err());
                    mutants += 1;
                }
            }
        }
    }
    assert!(mutants > 10);
}

#[test]
fn live_temporaries_and_stored_buffers_never_overlap() {
    let graph = graph(Family::Llama, false, Recompute::None);
    for parallel in layouts() {
        for program in programs(&graph, &parallel, &Chooser::Policy).1 {
            let memory = program.memory;
            assert_eq!(memory.arena_bytes(), program.state_bytes + program.workspace_bytes());
            let roots: Vec<_> = program
                .buffers
                .iter()
                .enumerate()
                .filter(|(i, b)| b.storage.index() == *i)
                .map(|(_, b)| b)
                .collect();
            for (i, a) in roots.iter().enumerate() {
                for b in roots[..i].iter().filter(|b| b.class == a.class && a.class != crate::Class::Temp) {
                    assert!(a.offset + a.bytes() <= b.offset || b.offset + b.bytes() <= a.offset);
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_split_is_named() {
    let graph = graph(Family::Llama, true, Recompute::None);
    let one = Parallel::default();
    let cases = [
        (Parallel { tp: 3, ..one.clone() }, "tp = 3"),
        (Parallel { tp: 16, ..one.clone() }, "choose tp among 1, 2, 4, 8"),
        (Parallel { pp: 8, ..one.clone() }, "model.num_layers = 7"),
        (Parallel { ep: 2, ..one.clone() }, "nothing that ep can split"),
        (Parallel { cp: 32, ..one.clone() }, "`seq` = 16"),
        (Parallel { zero: 4, ..one }, "parallel.zero = 4"),
    ];
    for (parallel, phrase) in cases {
        let message = Plan::new(&graph, &parallel, DType::F64).unwrap_err().to_string();
        assert!(message.contains(phrase), "{message}");
    }
}
