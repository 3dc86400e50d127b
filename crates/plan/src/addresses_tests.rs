//! Addresses against lifetimes: what a step has live, walked run by run, beside the arena that is reserved for it.

use std::collections::{BTreeMap, BTreeSet};

use graph::{Graph, Recompute};
use memory::DType;
use models::{Decoder, Family, Given, Precision, Step, Variant, train_step};
use schedule::{Schedule, generators};

use crate::lower_tests::optimizer;
use crate::{BufferId, Chooser, Class, Parallel, Plan, Program, lower};

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
    let step = Step { batch: 60, sequence_length: 64 };
    let given = Given { key_index: false, labels: true };
    train_step(&decoder, &optimizer, step, &given, recompute, Precision::Uniform).unwrap()
}

/// What lives in a step, as a walk over its runs finds it.
struct Walk {
    /// Per run, the (stage, microbatch) pairs of which something is kept beyond a block, while it runs.
    chunks: Vec<BTreeSet<(usize, usize)>>,
    /// The most bytes in slots at once, if each value lives from its first instruction to its last.
    slots: usize,
    /// The most bytes of temporaries at once.
    temporaries: usize,
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
                    Class::Temp => temporary.entry((root, at)),
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
        temporaries: most(&[&temporary]),
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
    for (of, schedule, program) in programs(&graph(Family::Gpt2, Recompute::None)) {
        let live = walk(&program).chunks;
        let peak = live.iter().map(BTreeSet::len).max();
        assert_eq!(peak, Some(schedule.peak_live()[program.pipeline_rank]), "{of}");
    }
}

#[test]
fn the_arena_is_hardly_more_than_what_lives_at_once() {
    let within = |extent: usize, live: usize| live <= extent && extent as f64 <= 1.05 * live as f64;
    for family in [Family::Gpt2, Family::Llama] {
        for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
            for (of, _, program) in programs(&graph(family, recompute)) {
                let Walk { slots, temporaries, both, .. } = walk(&program);
                let (arena, always) =
                    (program.memory.arena_bytes(), program.state_bytes + program.step_bytes);
                assert!(within(program.slots_bytes, slots), "{of}: {} for {slots}", program.slots_bytes);
                assert!(within(arena, always + slots + temporaries), "{of}: {arena}");
                // Temporaries have a space of their own, so where they peak when little is kept, it adds up.
                assert!(arena >= always + both, "{of}: {arena}");
            }
        }
    }
}

#[test]
fn slots_are_shared_where_there_would_be_too_many() {
    let graph = graph(Family::Llama, Recompute::None);
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

#[test]
fn live_values_never_overlap() {
    for (of, _, program) in programs(&graph(Family::Gpt2, Recompute::Selective)) {
        // Who was the last to write each 64 bytes, and what is still to be read from there.
        let mut lives = Lives::new();
        let mut now = 0;
        for (at, run) in program.runs().into_iter().enumerate() {
            for roots in program.touched(run.block) {
                for root in roots {
                    let whose = match program.buffer(root).class {
                        Class::Slot(_) => run.microbatch,
                        Class::Temp => program.num_microbatches() + at,
                        _ => continue,
                    };
                    lives.entry((root, whose)).or_insert((now, now)).1 = now;
                }
                now += 1;
            }
        }
        let mut ends: Vec<(usize, bool, BufferId, usize)> = Vec::new();
        for ((root, whose), (first, last)) in &lives {
            ends.extend([(*first, true, *root, *whose), (*last + 1, false, *root, *whose)]);
        }
        ends.sort_unstable();
        // Live spans by where they begin.
        let mut live: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, begins, root, whose) in ends {
            let span = program.span(root, if whose < program.num_microbatches() { whose } else { 0 });
            let end = span.offset + program.buffer(root).bytes();
            if !begins {
                live.remove(&span.offset);
                continue;
            }
            let before = live.range(..end).next_back();
            assert!(
                before.is_none_or(|(_, other)| *other <= span.offset),
                "{of}: {}",
                program.buffer(root).name
            );
            live.insert(span.offset, end);
        }
    }
}
