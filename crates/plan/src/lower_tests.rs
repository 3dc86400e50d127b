//! Lowering against the checker: every kind of plan, policy and random, lowers to a Program that the checker accepts,
//! and the checker notices what is taken away.

use graph::{Graph, Op, Recompute};
use memory::DType;
use models::{Decoder, Family, Given, Optimizer, OptimizerKind, Precision, Step, train_step};

use crate::{
    BufferId, Chooser, Class, Collective, Instruction, Parallel, Phase, Plan, PlanError, Program, When,
    check, check_world, lower,
};

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
        dropout: models::Dropout::uniform(0.1),
        rope_theta: 10000.0,
        norm_eps: 1e-5,
        variant: models::Variant::default(),
    }
}

/// AdamW with clipping.
pub(crate) fn optimizer() -> Optimizer {
    Optimizer {
        kind: OptimizerKind::AdamW,
        betas: [0.9, 0.95],
        eps: 1e-8,
        momentum: 0.0,
        nesterov: false,
        weight_decay: 0.1,
        clip_norm: 1.0,
        post_validation: false,
    }
}

pub(crate) fn graph(family: Family, tied: bool, recompute: Recompute) -> Graph {
    graph_in(family, tied, recompute, Precision::Uniform)
}

pub(crate) fn graph_in(family: Family, tied: bool, recompute: Recompute, precision: Precision) -> Graph {
    let optimizer = optimizer();
    let step = Step::new(12, 16);
    let given = Given { key_index: false, labels: true };
    train_step(&decoder(family, tied), &optimizer, step, &given, recompute, precision).unwrap()
}

pub(crate) fn layouts() -> Vec<Parallel> {
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
    all.push(Parallel { pp: 4, num_microbatches: 5, ..one.clone() });
    // Several buckets, one for each gradient, and none.
    for (bucket_bytes, zero) in [(9000, 0), (9000, 1), (1, 0), (1, 1), (0, 0), (0, 1)] {
        all.push(Parallel { dp: 2, pp: 2, num_microbatches: 3, zero, bucket_bytes, ..one.clone() });
    }
    // More collectives than may be under way: one stage's backward waits for what the other's started.
    let schedule = "looped".to_owned();
    all.push(Parallel { dp: 2, zero: 1, num_microbatches: 3, schedule, chunks: 2, ..one.clone() });
    for schedule in ["zb-h1", "zb-v"] {
        let chunks = if schedule == "zb-v" { 2 } else { 1 };
        let schedule = schedule.to_owned();
        let bucket_bytes = 9000;
        all.push(Parallel {
            dp: 2,
            pp: 2,
            num_microbatches: 4,
            schedule,
            chunks,
            bucket_bytes,
            ..one.clone()
        });
    }
    all
}

pub(crate) fn programs(graph: &Graph, parallel: &Parallel, chooser: &Chooser) -> (Plan, Vec<Program>) {
    let plan = Plan::new(graph, parallel, DType::F64).unwrap();
    let programs: Vec<Program> =
        (0..parallel.pp).map(|c| lower(graph, &plan, c, chooser, true).unwrap()).collect();
    check_world(&plan, &programs).unwrap();
    (plan, programs)
}

/// How often an operation stands in a Program's blocks.
fn count(program: &Program, name: &str) -> usize {
    let instructions = program.blocks.iter().flat_map(|b| &b.instructions);
    instructions.filter(|i| matches!(i, Instruction::Compute { op, .. } if op.name() == name)).count()
}

#[test]
fn biases_and_residuals_are_fused_where_nothing_is_owed() {
    let whole = Parallel::default();
    let graph = graph(Family::Gpt2, false, Recompute::NONE);
    let (_, programs) = programs(&graph, &whole, &Chooser::Policy);
    // Of each of 7 layers: q, k, v, the output, both of the feed-forward; then the norm of every sum but the first.
    assert_eq!([count(&programs[0], "linear"), count(&programs[0], "add_norm")], [7 * 6, 2 * 7]);
    // Dropout stands between the second products and the residual, so sums of the residual stay additions of two.
    let tensor = Parallel { tp: 2, ..whole };
    let plan = Plan::new(&graph, &tensor, DType::F64).unwrap();
    let program = lower(&graph, &plan, 0, &Chooser::Policy, true).unwrap();
    // The output and the second of the feed-forward owe a sum, to which a bias is added once, after it is paid.
    assert_eq!(count(&program, "linear"), 7 * 4);
    // Had such a product its bias, each part of the sum would have it: the checker refuses that.
    let bias = program.states.iter().find(|(name, _)| name.ends_with("output.bias")).unwrap().1;
    let mut mutant = program.clone();
    let owing = mutant.blocks.iter_mut().flat_map(|b| &mut b.instructions).find_map(|i| match i {
        Instruction::Compute { op, inputs, outputs, .. }
            if *op == graph::Op::Contract && !program.buffer(outputs[0]).layout.partial().is_empty() =>
        {
            Some((op, inputs))
        }
        _ => None,
    });
    let (op, inputs) = owing.expect("a row-parallel product");
    *op = graph::Op::Linear;
    inputs.push(bias);
    let verdict = check(&graph, &plan, &mutant).unwrap_err().to_string();
    assert!(verdict.contains("linear is not legal on tp"), "{verdict}");
}

#[test]
fn the_gradient_of_the_logits_takes_their_place() {
    let graph = graph(Family::Gpt2, false, Recompute::NONE);
    let gradients = |program: &Program| -> Vec<bool> {
        let instructions = program.blocks.iter().flat_map(|b| &b.instructions);
        let of = |i: &Instruction| match i {
            Instruction::Compute { op: graph::Op::SumExpBackward { in_place }, .. } => Some(*in_place),
            _ => None,
        };
        instructions.filter_map(of).collect()
    };
    for parallel in layouts() {
        let (_, programs) = programs(&graph, &parallel, &Chooser::Policy);
        let with_loss: Vec<bool> = programs.iter().flat_map(gradients).collect();
        assert_eq!(with_loss, [true], "{parallel:?}");
    }
}

#[test]
fn logits_that_are_read_again_keep_their_place() {
    let graph = graph(Family::Gpt2, false, Recompute::NONE);
    let (_, programs) = programs(&graph, &Parallel::default(), &Chooser::Policy);
    // As lowering leaves it: the gradient has a place of its own, and addresses are not assigned yet.
    let mut program = programs[0].clone();
    program
        .buffers
        .iter_mut()
        .filter(|b| matches!(b.class, Class::Slot(_)))
        .for_each(|b| b.class = Class::Temp);
    let in_place = graph::Op::SumExpBackward { in_place: true };
    let is_gradient = |i: &Instruction| matches!(i, Instruction::Compute { op, .. } if *op == in_place);
    let block = program.blocks.iter().position(|b| b.instructions.iter().any(is_gradient)).unwrap();
    let at = program.blocks[block].instructions.iter().position(is_gradient).unwrap();
    let Instruction::Compute { op, inputs, outputs, .. } = &mut program.blocks[block].instructions[at] else {
        unreachable!("found above")
    };
    let gradient = outputs[0];
    let logits = program.buffers[gradient.index()].storage;
    *op = graph::Op::SumExpBackward { in_place: false };
    inputs.insert(0, logits);
    program.buffers[gradient.index()].storage = gradient;
    let reader = Instruction::Send { input: logits, to: 0, tag: 0 };
    let sharing = |readers: &[(usize, usize)]| {
        let mut program = program.clone();
        for (block, at) in readers {
            program.blocks[*block].instructions.insert(*at, reader.clone());
        }
        crate::reuse::reuse(&mut program);
        program.buffers[gradient.index()].storage == logits
    };
    let forward = program.blocks.iter().position(|b| b.phase == Phase::Forward).unwrap();
    assert!(sharing(&[]) && sharing(&[(forward, program.blocks[forward].instructions.len())]));
    assert!(sharing(&[(block, at)]), "read before");
    assert!(!sharing(&[(block, at + 1)]), "read after");
    let update = program.blocks.iter().position(|b| b.phase == Phase::Update).unwrap();
    assert!(!sharing(&[(update, 0)]), "read in a later phase");
}

#[test]
fn every_layout_lowers_to_a_program_that_the_checker_accepts() {
    for family in [Family::Gpt2, Family::Llama] {
        for (tied, recompute) in
            [(true, Recompute::NONE), (false, Recompute::SELECTIVE), (true, Recompute::FULL)]
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
        (Family::Gpt2, true, Recompute::NONE, Precision::Mixed),
        (Family::Llama, true, Recompute::SELECTIVE, Precision::Scaled),
        (Family::Llama, false, Recompute::FULL, Precision::Mixed),
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
                let derive = program.block(None, Phase::Derive).unwrap();
                let casts = derive.instructions.iter().filter_map(|i| match i {
                    Instruction::Compute { op: graph::Op::Cast, inputs, .. } => Some(inputs[0]),
                    _ => None,
                });
                let mut casts: Vec<_> = casts.collect();
                let num_casts = casts.len();
                casts.sort_unstable();
                casts.dedup();
                assert!(num_casts > 0 && num_casts == casts.len());
                // An update that changes parameters where they are stored writes their copies too.
                assert_eq!(program.update_derives(), matches!(parallel.zero, 0 | 3), "{parallel:?}");
                let several = parallel.num_microbatches > 1 && parallel.zero < 3;
                assert_eq!(count(program, "pack_weight") > 0, several, "{parallel:?}");
            }
            if let Some(mutant) = programs.iter().find_map(reads_packed_as_plain) {
                let verdict = check(&graph, &plan, &mutant);
                assert!(matches!(verdict, Err(PlanError::Program { .. })), "{verdict:?}");
            }
        }
    }
}

/// A Program in which a product reads a packed matrix as its left factor; none if there is none.
fn reads_packed_as_plain(program: &Program) -> Option<Program> {
    let packed = program.buffers.iter().position(|b| b.packed)?;
    let mut mutant = program.clone();
    for instruction in mutant.blocks.iter_mut().flat_map(|b| &mut b.instructions) {
        if let Instruction::Compute { op: graph::Op::Contract, inputs, .. } = instruction {
            inputs[0] = BufferId(packed as u32);
            return Some(mutant);
        }
    }
    None
}

#[test]
fn random_legal_choices_lower_too() {
    let graph = graph(Family::Llama, true, Recompute::NONE);
    for seed in 0..12 {
        for parallel in layouts() {
            programs(&graph, &parallel, &Chooser::Random(seed));
        }
    }
}

#[test]
fn the_checker_notices_every_missing_collective() {
    for family in [Family::Gpt2, Family::Llama] {
        let graph = graph(family, true, Recompute::NONE);
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
                    let start = mutant.blocks[block].instructions.remove(index);
                    let Instruction::Start { ticket, .. } = start else { unreachable!("filtered above") };
                    let waits =
                        |i: &Instruction| matches!(i, Instruction::Wait { ticket: t, .. } if *t == ticket);
                    mutant.blocks.iter_mut().for_each(|b| b.instructions.retain(|i| !waits(i)));
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
fn gradients_are_reduced_in_buckets_before_the_update() {
    let graph = graph(Family::Gpt2, false, Recompute::NONE);
    let plain = Parallel { dp: 2, num_microbatches: 3, ..Parallel::default() };
    let starts = |program: &Program, phase: Phase| -> Vec<(usize, usize, When)> {
        let blocks = program.blocks.iter().filter(|b| b.phase == phase);
        let of = |i: &Instruction| match i {
            Instruction::Start { inputs, count, when, .. } => Some((inputs.len(), *count, *when)),
            _ => None,
        };
        blocks.flat_map(|b| &b.instructions).filter_map(of).collect()
    };
    let of = |bucket_bytes: usize, zero: u8| {
        let parallel = Parallel { bucket_bytes, zero, ..plain.clone() };
        programs(&graph, &parallel, &Chooser::Policy).1.remove(0)
    };
    let none = of(0, 0);
    let num_parameters = none.states.iter().filter(|(name, _)| !name.contains(':')).count();
    assert_eq!(starts(&none, Phase::Backward), []);
    // Each gradient, and the statistics.
    assert_eq!(starts(&none, Phase::Update).len(), num_parameters + 1);
    let (one, several) = (of(1 << 30, 0), of(9000, 0));
    for program in [&one, &several] {
        let buckets = starts(program, Phase::Backward);
        assert_eq!(buckets.iter().map(|b| b.0).sum::<usize>(), num_parameters);
        assert!(buckets.iter().all(|b| b.2 == When::LastRun));
        assert_eq!(starts(program, Phase::Update).len(), 1, "the statistics");
    }
    assert_eq!(starts(&one, Phase::Backward).len(), 1);
    let buckets = starts(&several, Phase::Backward);
    assert!(buckets.len() > 5 && buckets.iter().all(|b| b.0 == 1 || b.1 * 8 <= 9000), "{buckets:?}");
    // A reduce_scatter for each gradient, in the last backward too.
    let sharded = of(9000, 1);
    assert_eq!(starts(&sharded, Phase::Backward).len(), num_parameters);
    assert!(sharded.groups.iter().any(|g| g.to_string() == "dp in background"));
}

#[test]
fn sharded_gradients_and_parameters_move_in_the_background() {
    let graph = graph(Family::Llama, false, Recompute::NONE);
    let of = |zero: u8, bucket_bytes: usize| {
        let parallel = Parallel { dp: 2, num_microbatches: 3, zero, bucket_bytes, ..Parallel::default() };
        programs(&graph, &parallel, &Chooser::Policy).1.remove(0)
    };
    // Starts in a block, and how many instructions that are none of these lie between them and their waits.
    let hidden = |program: &Program, phase: Phase, collective: &str| -> (usize, usize) {
        let block = program.blocks.iter().find(|b| b.phase == phase).unwrap();
        let (mut starts, mut between) = (0, 0);
        for (at, instruction) in block.instructions.iter().enumerate() {
            let Instruction::Start { collective: of, ticket, .. } = instruction else { continue };
            if format!("{of:?}").starts_with(collective) {
                let is_wait =
                    |i: &Instruction| matches!(i, Instruction::Wait { ticket: t, .. } if t == ticket);
                // A gather behind an update is waited for in the next step.
                let wait = block.instructions.iter().position(is_wait).unwrap_or(block.instructions.len());
                let is_work = |i: &&Instruction| matches!(i, Instruction::Compute { .. });
                starts += 1;
                between += usize::from(block.instructions[at..wait].iter().filter(is_work).count() > 0);
            }
        }
        (starts, between)
    };
    for (zero, phase, collective) in [
        (2, Phase::Backward, "ReduceScatter"),
        (3, Phase::Backward, "ReduceScatter"),
        (3, Phase::Forward, "AllGather"),
        (3, Phase::Backward, "AllGather"),
        (1, Phase::Update, "AllGather"),
        (2, Phase::Update, "AllGather"),
    ] {
        let (all, plain) = hidden(&of(zero, 0), phase, collective);
        let (same, most) = hidden(&of(zero, 1 << 20), phase, collective);
        assert!(all > 20 && all == same && plain == 0, "zero {zero}: {all} {collective}, {plain} hidden");
        assert!(most + 3 > all, "zero {zero}: {most} of {all} {collective} hidden");
        // A window that holds only one gradient still lets the next gather run ahead.
        let (_, some) = hidden(&of(zero, 1), phase, collective);
        assert!(collective == "ReduceScatter" || phase == Phase::Update || some + 3 > all, "{some} of {all}");
    }
}

#[test]
fn a_tied_gradient_within_a_stage_is_one_sum() {
    let graph = graph(Family::Llama, true, Recompute::NONE);
    for num_microbatches in [1, 3] {
        for zero in [0, 1, 2] {
            let parallel = Parallel { dp: 2, zero, num_microbatches, ..Parallel::default() };
            let program = programs(&graph, &parallel, &Chooser::Policy).1.remove(0);
            let update = program.block(None, Phase::Update).unwrap();
            let adds =
                update.instructions.iter().filter(|i| matches!(i, Instruction::Compute { op: Op::Add, .. }));
            assert_eq!(adds.count(), 0, "zero {zero}, {num_microbatches} microbatches");
            let reductions = update.instructions.iter().filter(|i| {
                matches!(
                    i,
                    Instruction::Start {
                        collective: Collective::AllReduce(_) | Collective::ReduceScatter(_),
                        ..
                    }
                )
            });
            assert_eq!(reductions.count(), 1, "the statistics alone");
        }
    }
}

#[test]
fn what_is_in_flight_may_not_be_touched_nor_lie_apart() {
    let graph = graph(Family::Llama, true, Recompute::NONE);
    let parallel = Parallel { dp: 2, num_microbatches: 3, bucket_bytes: 9000, ..Parallel::default() };
    let (plan, programs) = programs(&graph, &parallel, &Chooser::Policy);
    let program = &programs[0];
    let refused = |change: &dyn Fn(&mut Program), why: &str| {
        let mut mutant = program.clone();
        change(&mut mutant);
        let verdict = check(&graph, &plan, &mutant).unwrap_err().to_string();
        assert!(verdict.contains(why), "{why}: {verdict}");
    };
    let backward = program.blocks.iter().position(|b| b.phase == Phase::Backward).unwrap();
    let update = program.blocks.iter().position(|b| b.phase == Phase::Update).unwrap();
    let is_bucket = |i: &Instruction| matches!(i, Instruction::Start { inputs, .. } if inputs.len() > 2);
    let at = program.blocks[backward].instructions.iter().position(is_bucket).unwrap();
    let Instruction::Start { inputs, .. } = program.blocks[backward].instructions[at].clone() else {
        unreachable!("found above")
    };
    let touch = Instruction::Fill { value: 0.0, output: inputs[1] };
    refused(&|p| p.blocks[backward].instructions.insert(at + 1, touch.clone()), "is in flight");
    refused(&|p| p.blocks[update].instructions.insert(0, touch.clone()), "is in flight");
    // Started in the first microbatch, its gradients grow in the second.
    let first = |p: &mut Program, as_in: When| {
        let start = &mut p.blocks[backward].instructions[at];
        if let Instruction::Start { when, .. } = start {
            *when = as_in;
        }
    };
    refused(&|p| first(p, When::FirstRun), "is in flight");
    refused(&|p| first(p, When::Always), "is in flight");
    refused(
        &|p| p.blocks[update].instructions.retain(|i| !matches!(i, Instruction::Wait { .. })),
        "in flight",
    );
    let root = program.buffer(inputs[1]).storage;
    let moved = |p: &mut Program| {
        p.buffers.iter_mut().filter(|b| b.storage == root).for_each(|b| b.offset += 64);
    };
    refused(&moved, "does not lie behind");
    let miscounted = |p: &mut Program| {
        if let Instruction::Start { count, .. } = &mut p.blocks[backward].instructions[at] {
            *count += 8;
        }
    };
    refused(&miscounted, "is counted as");
}

#[test]
fn a_missing_message_or_a_foreign_collective_is_noticed() {
    let graph = graph(Family::Llama, true, Recompute::NONE);
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
    let graph = graph(Family::Llama, false, Recompute::NONE);
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
    let graph = graph(Family::Llama, true, Recompute::NONE);
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
