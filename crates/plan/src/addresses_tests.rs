//! Addresses against lifetimes: what a step has live, walked run by run, beside the arena that is reserved for it.

use std::collections::{BTreeMap, BTreeSet};

use graph::{Graph, Recompute};
use memory::DType;
use models::{Decoder, Family, Given, Precision, Step, Variant, train_step};
use schedule::{Schedule, generators};

use crate::apart::check_apart;
use crate::lower_tests::optimizer;
use crate::{BufferId, Chooser, Class, Instruction, Parallel, Plan, Program, lower};

/// A step of nine layers over few tokens each, of which no extent divides evenly.
fn graph(family: Family, recompute: Recompute) -> Graph {
    let decoder = Decoder {
        family,
        num_layers: 9,
        embed: 96,
        num_heads: 8,
        num_kv_heads: if family == Family::Llama { 2 } else { 8 },
        head_dim: 12,
        mlp: 260,
        vocab_size: 503,
        max_positions: 64,
        tied: true,
        dropout: models::Dropout::uniform(0.1),
        rope_theta: 10000.0,
        norm_eps: 1e-5,
        variant: Variant::default(),
    };
    let optimizer = optimizer();
    let step = Step::new(60, 64);
    let given = Given { key_index: false, labels: true };
    train_step(&decoder, &optimizer, step, &given, recompute, Precision::Uniform).unwrap()
}

/// What lives in a step, as a walk over its runs finds it.
struct Walk {
    /// Per run, the (stage, microbatch) pairs of which something is kept beyond a block, while it runs.
    chunks: Vec<BTreeSet<(usize, usize)>>,
    /// The most bytes in slots at once, if each value lives from its first instruction to its last.
    slots: usize,
    /// The most bytes of both at once.
    both: usize,
}

/// A storage with the microbatch or run whose it is, and the first and last moment that touches it.
type Lives = BTreeMap<(BufferId, usize), (usize, usize)>;

fn walk(program: &Program) -> Walk {
    let (mut kept, mut temporary) = (Lives::new(), Lives::new());
    let mut chunks: BTreeMap<(usize, usize), (usize, usize)> = BTreeMap::new();
    let (mut now, runs) = (0, program.runs());
    for (at, run) in runs.iter().enumerate() {
        for roots in program.touched(run.block) {
            for root in roots {
                let life = match program.buffer(root).class {
                    Class::State | Class::Derived | Class::Step => continue,
                    Class::Slot(region) => {
                        let chunk = (program.slots[region].stage, run.microbatch);
                        chunks.entry(chunk).or_insert((at, at)).1 = at;
                        kept.entry((root, run.microbatch))
                    }
                    Class::Passing(_) | Class::Temp => temporary.entry((root, at)),
                };
                life.or_insert((now, now)).1 = now;
            }
            now += 1;
        }
    }
    let most = |lives: &[&Lives]| -> usize {
        let mut changes = vec![0isize; now + 1];
        for ((root, _), (first, last)) in lives.iter().copied().flatten() {
            let bytes = program.buffer(*root).bytes() as isize;
            changes[*first] += bytes;
            changes[*last + 1] -= bytes;
        }
        let live = changes.into_iter().scan(0, |live, change| {
            *live += change;
            Some(*live)
        });
        live.max().unwrap_or(0) as usize
    };
    let during = |at: usize| {
        let live = chunks.iter().filter(|(_, (first, last))| *first <= at && at <= *last);
        live.map(|(chunk, _)| *chunk).collect()
    };
    Walk {
        chunks: (0..runs.len()).map(during).collect(),
        slots: most(&[&kept]),
        both: most(&[&kept, &temporary]),
    }
}

/// Every generator's schedule on 1, 2 and 4 pipeline ranks, alone, under ZeRO 3, and under ZeRO 1 with tp.
fn programs(graph: &Graph) -> Vec<(String, Schedule, Program)> {
    let one = Parallel::default();
    let inside = [
        one.clone(),
        Parallel { dp: 2, zero: 3, ..one.clone() },
        Parallel { dp: 2, tp: 2, zero: 1, sequence: true, ..one },
    ];
    let mut all = Vec::new();
    for generator in generators() {
        for (pp, num_microbatches) in [(1, 4), (2, 8), (4, 8)] {
            for inside in &inside {
                let (schedule, chunks) = (generator.name.to_owned(), generator.chunks.unwrap_or(2));
                let parallel = Parallel { pp, num_microbatches, chunks, schedule, ..inside.clone() };
                let plan = Plan::new(graph, &parallel, DType::F64).unwrap();
                for rank in 0..pp {
                    let program = lower(graph, &plan, rank, &Chooser::Policy, false).unwrap();
                    all.push((format!("rank {rank} of {parallel:?}"), plan.schedule.clone(), program));
                }
            }
        }
    }
    all
}

#[test]
fn what_is_kept_is_what_the_schedule_counts() {
    for (of, schedule, program) in programs(&graph(Family::Gpt2, Recompute::NONE)) {
        let live = walk(&program).chunks;
        let peak = live.iter().map(BTreeSet::len).max();
        assert_eq!(peak, Some(schedule.peak_live()[program.pipeline_rank]), "{of}");
    }
}

#[test]
fn the_arena_is_hardly_more_than_what_lives_at_once() {
    let within = |extent: usize, live: usize| live <= extent && extent as f64 <= 1.05 * live as f64;
    for family in [Family::Gpt2, Family::Llama] {
        for recompute in [Recompute::NONE, Recompute::SELECTIVE, Recompute::FULL] {
            for (of, _, program) in programs(&graph(family, recompute)) {
                let Walk { slots, both, .. } = walk(&program);
                let kept = program.memory.activations_bytes;
                assert!(within(kept, slots), "{of}: {kept} for {slots} kept");
                let arena = program.slots_bytes + program.temp_bytes;
                assert!(within(arena, both), "{of}: {arena} for {both}");
                let all = program.memory.arena_bytes();
                assert_eq!(all, program.state_bytes + program.step_bytes + arena, "{of}");
            }
        }
    }
}

#[test]
fn slots_are_shared_where_there_would_be_too_many() {
    let graph = graph(Family::Llama, Recompute::NONE);
    let of = |num_microbatches: usize| {
        let schedule = "zb-h1".to_owned();
        let parallel = Parallel { pp: 2, num_microbatches, schedule, ..Parallel::default() };
        let plan = Plan::new(&graph, &parallel, DType::F64).unwrap();
        lower(&graph, &plan, 0, &Chooser::Policy, false).unwrap()
    };
    let (few, many) = (of(4), of(60));
    let kept = |program: &Program| {
        let is_kept = |id: &BufferId| {
            let buffer = program.buffer(*id);
            buffer.storage == *id && matches!(buffer.class, Class::Slot(_))
        };
        (0..program.buffers.len() as u32).map(BufferId).filter(is_kept).count()
    };
    assert_eq!(few.slots.len(), kept(&few));
    assert!(kept(&many) * 60 > 2048 && many.slots.len() * 60 < 2 * 2048, "{} slots", many.slots.len());
}

/// Moves a value of one microbatch to where another lies; false if its place is nobody's but its own.
fn moved(program: &mut Program, root: BufferId, onto: BufferId, microbatch: usize) -> bool {
    let by = program.span(onto, microbatch).offset as isize - program.span(root, microbatch).offset as isize;
    let offset = match program.buffer(root).class {
        Class::Slot(region) => &mut program.slots[region].offsets[microbatch],
        Class::Passing(place) => &mut program.passing[place][microbatch],
        _ => return false,
    };
    let to = *offset as isize + by;
    if by == 0 || to < 0 {
        return false;
    }
    *offset = to as usize;
    true
}

#[test]
fn a_value_in_the_place_of_another_is_refused() {
    let graph = graph(Family::Gpt2, Recompute::SELECTIVE);
    let (mut num_operands, mut num_in_flight) = (0, 0);
    for (of, _, program) in programs(&graph).into_iter().step_by(3) {
        let run = *program.runs().iter().rev().find(|run| program.blocks[run.block].stage.is_some()).unwrap();
        let root = |id: &BufferId| program.buffer(*id).storage;
        let mut under_way: BTreeMap<usize, Vec<BufferId>> = BTreeMap::new();
        let refused = |of_value: BufferId, onto: BufferId, count: &mut usize| {
            let mut mutant = program.clone();
            if moved(&mut mutant, of_value, onto, run.microbatch) {
                let found = check_apart(&mutant).err().map(|e| e.to_string()).unwrap_or_default();
                assert!(found.contains("lies where"), "{of}: {found}");
                *count += 1;
            }
        };
        for (index, instruction) in run.instructions(&program.blocks[run.block]) {
            let (reads, writes) = instruction.uses();
            match instruction {
                // Of what it reads, often nothing else says that it lives on.
                Instruction::Start { inputs, outputs, ticket, .. } => {
                    under_way.insert(*ticket, inputs.iter().chain(outputs).map(root).collect());
                }
                Instruction::Wait { ticket, .. } => {
                    under_way.remove(ticket);
                }
                _ if index % 7 == 0 => {
                    let Some(written) = writes.first().map(root) else { continue };
                    if let Some(read) = reads.iter().map(root).find(|read| *read != written) {
                        refused(written, read, &mut num_operands);
                    }
                    // While it computes, a collective reads or writes elsewhere.
                    for held in under_way.values().next().into_iter().flatten() {
                        refused(written, *held, &mut num_in_flight);
                    }
                }
                _ => {}
            }
        }
    }
    assert!(num_operands > 100 && num_in_flight > 20, "{num_operands} and {num_in_flight} mutants");
}
