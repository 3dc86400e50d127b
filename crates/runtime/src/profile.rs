//! What a step's time went to: one sample per instruction, and what an instruction is worth in operations and bytes.

use graph::Op;
use plan::{BufferId, Collective, Instruction, Plan, Program};

/// Which of a rank's queues an instruction keeps busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// Kernels and moves within the rank.
    Compute,
    /// Collectives and messages.
    Communication,
}

/// One execution of one instruction. Times are the recorder's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Number of the step, as given to the run.
    pub step: u64,
    /// Position in [`Program::blocks`].
    pub block: usize,
    /// Position in the block.
    pub index: usize,
    /// Microbatch.
    pub microbatch: usize,
    /// Begin.
    pub start_seconds: f64,
    /// End.
    pub end_seconds: f64,
    /// Of a wait: when the collective was complete, which may be long before. Of others: the end.
    pub done_seconds: f64,
}

/// What tells the time of samples, in seconds since a moment that all ranks share.
pub type Clock = dyn Fn() -> f64;

/// Keeps samples of one program's steps.
pub(crate) struct Recorder {
    pub program: usize,
    pub clock: Box<Clock>,
    pub samples: Vec<Sample>,
}

/// What an instruction does, for reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Path of the node, or the kind of move.
    pub name: String,
    /// Kind of operation: [`Op::name`], or the kind of move or collective.
    pub class: &'static str,
    /// Where it runs.
    pub queue: Queue,
    /// Floating-point operations of products (contractions, attention); others count as 0.
    pub flops: f64,
    /// Bytes that are read and written at least once. Of a collective: bytes that this rank sends.
    pub bytes: f64,
}

/// What the instruction at `index` of `block` does on one rank.
pub fn work(plan: &Plan, program: &Program, block: usize, index: usize) -> Work {
    let instruction = &program.blocks[block].instructions[index];
    let size = |id: &BufferId| {
        let buffer = program.buffer(*id);
        (buffer.len * buffer.dtype.size_bytes()) as f64
    };
    let (reads, writes) = instruction.uses();
    let bytes = reads.iter().chain(&writes).map(size).sum();
    let moved = |class: &'static str, name: &BufferId| Work {
        name: program.buffer(*name).name.clone(),
        class,
        queue: Queue::Compute,
        flops: 0.0,
        bytes,
    };
    let sent = |class, id: &BufferId, bytes| Work { queue: Queue::Communication, bytes, ..moved(class, id) };
    match instruction {
        Instruction::Compute { op, outputs, name, .. } => Work {
            name: name.clone(),
            class: op.name(),
            flops: flops_of(plan, program, instruction),
            ..moved("", &outputs[0])
        },
        Instruction::Strips { body, held, .. } => Work {
            class: "cross_entropy",
            flops: body.iter().map(|part| flops_of(plan, program, part)).sum(),
            ..moved("", held)
        },
        Instruction::Start { collective, inputs, outputs, group, .. } => {
            let ranks = group_size(plan, program, *group) as f64;
            let others = (ranks - 1.0) / ranks;
            let sum = |ids: &[BufferId]| ids.iter().map(size).sum::<f64>();
            let (class, bytes) = match collective {
                Collective::AllReduce(_) => ("all_reduce", 2.0 * others * sum(outputs)),
                Collective::ReduceScatter(_) => ("reduce_scatter", others * sum(inputs)),
                Collective::AllGather => ("all_gather", others * sum(outputs)),
                Collective::AllToAll => ("all_to_all", others * sum(inputs)),
            };
            let first = sent(class, &outputs[0], bytes);
            match outputs.len() - 1 {
                0 => first,
                more => Work { name: format!("{} and {more} more", first.name), ..first },
            }
        }
        Instruction::Wait { ticket, .. } => {
            let is_start = |i: &Instruction| matches!(i, Instruction::Start { ticket: t, .. } if t == ticket);
            let start =
                program.blocks.iter().enumerate().find_map(|(block, b)| {
                    b.instructions.iter().position(is_start).map(|index| (block, index))
                });
            let (block, index) = start.expect("checked: a wait has its start");
            Work { bytes: 0.0, ..work(plan, program, block, index) }
        }
        Instruction::Send { input, .. } => sent("send", input, size(input)),
        Instruction::Recv { output, .. } => sent("recv", output, 0.0),
        Instruction::Load { output, .. } => moved("load", output),
        Instruction::Scalar { output, .. } | Instruction::Fill { output, .. } => moved("fill", output),
        Instruction::Slice { output, .. } => moved("slice", output),
        Instruction::Pack { output, .. } | Instruction::Unpack { output, .. } => moved("pack", output),
        Instruction::Accumulate { into, .. } => moved("accumulate", into),
        Instruction::Store { into, .. }
        | Instruction::Entry { into, .. }
        | Instruction::Copy { into, .. } => moved("copy", into),
    }
}

fn group_size(plan: &Plan, program: &Program, group: usize) -> usize {
    let key = &program.groups[group];
    match &key.pipeline_ranks {
        Some(ranks) => ranks.len(),
        None => key.axes.iter().map(|axis| plan.mesh.size(axis)).product(),
    }
}

/// Operations of a product on local extents. Causal attention counts the pairs that see each other.
fn flops_of(plan: &Plan, program: &Program, computation: &Instruction) -> f64 {
    let Instruction::Compute { op, inputs, outputs, .. } = computation else { return 0.0 };
    let buffer = |id: &BufferId| program.buffer(*id);
    let shape = |id: &BufferId| plan.local_shape(&buffer(id).dims, &buffer(id).layout);
    let elements = |id: &BufferId| shape(id).iter().product::<usize>() as f64;
    match op {
        Op::Contract | Op::Linear => {
            // Every pair of a row of a and a column of b is summed over the dims that c lacks.
            let (a, c) = (buffer(&inputs[0]), buffer(&outputs[0]));
            let summed: usize = a
                .dims
                .iter()
                .zip(shape(&inputs[0]))
                .filter(|(d, _)| !c.dims.contains(d))
                .map(|(_, n)| n)
                .product();
            2.0 * elements(&outputs[0]) * summed as f64
        }
        Op::Attention { causal, .. } | Op::AttentionBackward { causal, .. } => {
            // Two products in the forward, five in the backward.
            let products = if matches!(op, Op::Attention { .. }) { 2.0 } else { 5.0 };
            let num_keys = shape(&inputs[1])[1] as f64;
            let seen = if *causal { 0.5 } else { 1.0 };
            2.0 * products * seen * elements(&inputs[0]) * num_keys
        }
        _ => 0.0,
    }
}
