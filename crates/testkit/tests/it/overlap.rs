//! Over a slow link the reduction of gradients is hidden behind the backward, as far as the order of work allows it.

use std::collections::HashMap;

use plan::{Buffer, Collective, Instruction, Lane, Phase, Program};
use runtime::Sample;
use testkit::slow_link::{config, span, step};
use testkit::{Throttled, measure};
use train::config::{Config, Precision};

/// What became of the reductions of a step on the rank whose backward ended last, in seconds: what the others wait for
/// is that rank, not the link.
#[derive(Debug)]
struct Hidden {
    /// All transfers.
    total: f64,
    /// What a link that begins with each gradient once it is complete everywhere would leave over at the backward's end.
    unavoidable: f64,
    /// What the rank waited for.
    exposed: f64,
}

impl Hidden {
    /// Seconds that could have been hidden.
    fn can_hide(&self) -> f64 {
        self.total - self.unavoidable
    }

    /// The hidden part of them.
    fn fraction(&self) -> f64 {
        (self.total - self.exposed) / self.can_hide()
    }
}

/// Reductions of gradients: their tickets, and the bytes of each gradient by its storage.
fn reductions(program: &Program) -> (HashMap<usize, Lane>, HashMap<u32, usize>) {
    let statistics = program.output("statistics").map(|id| program.buffer(id).storage);
    let (mut tickets, mut gradients) = (HashMap::new(), HashMap::new());
    for instruction in program.blocks.iter().flat_map(|b| &b.instructions) {
        let Instruction::Start { collective: Collective::AllReduce(_), inputs, group, ticket, .. } =
            instruction
        else {
            continue;
        };
        if inputs.iter().all(|id| Some(program.buffer(*id).storage) != statistics) {
            tickets.insert(*ticket, program.groups[*group].lane);
            let bytes = |b: &Buffer| (b.storage.0, b.len * b.dtype.size_bytes());
            gradients.extend(inputs.iter().map(|id| bytes(program.buffer(*id))));
        }
    }
    (tickets, gradients)
}

/// When a rank's backward ended, when each gradient was complete, and what it waited for.
fn passed(
    program: &Program,
    samples: &[Sample],
    tickets: &HashMap<usize, Lane>,
    gradients: &HashMap<u32, usize>,
) -> (f64, HashMap<u32, f64>, f64) {
    let (mut end, mut exposed) = (0.0f64, 0.0);
    let (mut complete, mut started) = (HashMap::new(), HashMap::new());
    for sample in samples {
        let block = &program.blocks[sample.block];
        let instruction = &block.instructions[sample.index];
        if block.phase == Phase::Backward {
            end = end.max(sample.end_seconds);
        }
        match instruction {
            Instruction::Start { ticket, .. } => {
                started.insert(*ticket, sample.start_seconds);
            }
            Instruction::Wait { ticket, .. } => {
                // Without a communication thread the time passes from the start on.
                exposed += match tickets.get(ticket) {
                    Some(Lane::Background) => sample.end_seconds - sample.start_seconds,
                    Some(Lane::Own) => sample.end_seconds - started[ticket],
                    None => 0.0,
                };
            }
            _ if block.phase == Phase::Backward => {
                let roots = instruction.uses().1.into_iter().map(|id| program.buffer(id).storage.0);
                let grown = roots.filter(|root| gradients.contains_key(root));
                complete.extend(grown.map(|root| (root, sample.end_seconds)));
            }
            _ => {}
        }
    }
    (end, complete, exposed)
}

fn judge(program: &Program, samples: &[Vec<Sample>], bytes_per_second: f64) -> Hidden {
    let (tickets, gradients) = reductions(program);
    let ranks: Vec<_> = samples.iter().map(|s| passed(program, s, &tickets, &gradients)).collect();
    let seconds = |bytes: usize| Throttled::seconds(bytes, 2, samples.len(), bytes_per_second);
    let everywhere = |root: &u32| ranks.iter().map(|(_, complete, _)| complete[root]).fold(0.0, f64::max);
    let mut ready: Vec<(f64, usize)> =
        gradients.iter().map(|(root, bytes)| (everywhere(root), *bytes)).collect();
    ready.sort_by(|a, b| a.0.total_cmp(&b.0));
    let free = ready.iter().fold(0.0f64, |free, (at, bytes)| free.max(*at) + seconds(*bytes));
    let total = ready.iter().map(|(_, bytes)| seconds(*bytes)).sum();
    let last = ranks.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    Hidden { total, unavoidable: (free - last.0).max(0.0), exposed: last.2 }
}

#[test]
fn buckets_hide_what_the_backward_allows() {
    let bucketed = config("dp=2;bucket_bytes=262144;num_microbatches=2");
    // As fast as makes all transfers take half of the last backward.
    let bytes_per_second = || {
        let (program, samples) = step(&bucketed, f64::INFINITY);
        program.memory.gradients_bytes as f64 / (0.5 * span(&program, &samples[0], 1, Phase::Backward))
    };
    // Other work on the machine keeps threads from their cores and so exposes transfers; nothing hides them by chance.
    let once = || {
        let bytes_per_second = bytes_per_second();
        let (program, samples) = step(&bucketed, bytes_per_second);
        judge(&program, &samples, bytes_per_second)
    };
    let is_good = |hidden: &Hidden| hidden.fraction() >= 0.8 && hidden.can_hide() > 0.5 * hidden.total;
    let tries = measure(once, is_good);
    let hidden = &tries[tries.len() - 1];
    println!("{:.1} % hidden of what could be: {tries:?}", 100.0 * hidden.fraction());
    assert!(hidden.can_hide() > 0.5 * hidden.total, "little could be hidden: {hidden:?}");
    assert!(hidden.fraction() >= 0.8, "{tries:?}");

    let plain = config("dp=2;bucket_bytes=0;num_microbatches=2");
    let bytes_per_second = bytes_per_second();
    let (program, samples) = step(&plain, bytes_per_second);
    let nothing = judge(&program, &samples, bytes_per_second);
    assert!(nothing.fraction() < 0.1, "without buckets nothing is hidden: {nothing:?}");
}

/// Seconds of the gathers behind the update, and what of them the next step waited for, on the rank that waited longest.
fn gathers(program: &Program, samples: &[Vec<Sample>], bytes_per_second: f64) -> (f64, f64) {
    let mut total = 0.0;
    for instruction in program.blocks.iter().flat_map(|b| &b.instructions) {
        if let Instruction::Start { collective: Collective::AllGather, inputs, outputs, count, .. } =
            instruction
        {
            let part = count * program.buffer(inputs[0]).dtype.size_bytes();
            total += Throttled::seconds(samples.len() * part, 1, samples.len(), bytes_per_second);
            assert_eq!(outputs.len(), 1);
        }
    }
    let waited = |samples: &Vec<Sample>| -> f64 {
        let waits = samples.iter().filter(|s| match &program.blocks[s.block].instructions[s.index] {
            Instruction::Wait { ticket, .. } => program.carried.contains(ticket),
            _ => false,
        });
        waits.map(|s| s.end_seconds - s.start_seconds).sum()
    };
    (total, samples.iter().map(waited).fold(0.0, f64::max))
}

#[test]
fn parameters_are_gathered_behind_the_next_forward() {
    hides_gathers(&config("dp=2;zero=1;num_microbatches=2"));
}

/// Narrow copies and their packed forms are made as the parameters arrive.
#[test]
fn parameters_of_bf16_are_gathered_behind_the_next_forward() {
    let mut layout = config("dp=2;zero=1;num_microbatches=2");
    layout.train.precision = Precision::Bf16;
    hides_gathers(&layout);
}

fn hides_gathers(layout: &Config) {
    let (program, _) = step(layout, f64::INFINITY);
    assert!(!program.carried.is_empty());
    let once = || {
        // As fast as makes all gathers take half of the first forward.
        let (program, samples) = step(layout, f64::INFINITY);
        let (at_one_byte, _) = gathers(&program, &samples, 1.0);
        let bytes_per_second = at_one_byte / (0.5 * span(&program, &samples[0], 0, Phase::Forward));
        let (program, samples) = step(layout, bytes_per_second);
        let (total, waited) = gathers(&program, &samples, bytes_per_second);
        1.0 - waited / total
    };
    let tries = measure(once, |hidden| *hidden >= 0.8);
    println!("hidden: {tries:.2?}");
    assert!(tries[tries.len() - 1] >= 0.8, "{tries:?}");
}
