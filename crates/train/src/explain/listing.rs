//! A Program as text: one line for each instruction, with the names of buffers and dims. Nothing is decided here.

use graph::{Dim, Graph};
use plan::{Block, BufferId, Class, Collective, Instruction, Program, When};
use serde::Serialize;

use super::table::size;
use super::{Steps, communication, element_bytes, layout_with_names};
use crate::config::Config;
use crate::error::TrainError;

/// The training Program of one pipeline rank as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageListing {
    /// Position in the pipeline.
    pub stage: usize,
    /// Its order of work, as in a schedule: `0F0`, `0B0`.
    pub actions: Vec<String>,
    /// A heading for each block, then its instructions, one a line and indented.
    pub lines: Vec<String>,
}

/// The training Programs of `config` for its longest batches, one for each pipeline rank.
///
/// # Errors
/// As [`explain`](super::explain()).
pub fn listing(config: &Config) -> Result<Vec<StageListing>, TrainError> {
    let steps = Steps::new(config)?;
    let graph = &steps.steppers[0].graph;
    steps.for_each_stage(|stage, programs| {
        let program = &programs[0];
        let writer = Writer { graph, program };
        StageListing {
            stage,
            actions: program.actions.iter().map(|action| action.to_string()).collect(),
            lines: program.blocks.iter().flat_map(|block| writer.block(block)).collect(),
        }
    })
}

struct Writer<'a> {
    graph: &'a Graph,
    program: &'a Program,
}

impl Writer<'_> {
    fn block(&self, block: &Block) -> Vec<String> {
        let runs = communication::runs(self.program, block);
        let stage = block.stage.map_or(String::new(), |stage| format!(" of stage {stage}"));
        let heading = format!("{}{stage}, {runs} x a step:", block.phase.name());
        let lines = block.instructions.iter().flat_map(|instruction| {
            let body = match instruction {
                Instruction::Strips { body, .. } => &body[..],
                _ => &[],
            };
            let body = body.iter().map(|part| format!("    {}", self.instruction(part)));
            std::iter::once(format!("  {}", self.instruction(instruction))).chain(body)
        });
        std::iter::once(heading).chain(lines).collect()
    }

    fn instruction(&self, instruction: &Instruction) -> String {
        use Instruction as I;
        match instruction {
            I::Compute { op, inputs, outputs, accumulate, name, when } => {
                let arrow = if *accumulate { "+=>" } else { "=>" };
                let (when, inputs, outputs) = (occasion(*when), self.list(inputs), self.list(outputs));
                format!("{when}{} {name}: {inputs} {arrow} {outputs}", op.name())
            }
            I::Strips { held, rows, .. } => {
                format!("{rows} rows at a time, of which {} is held:", self.one(*held))
            }
            I::Load { input, output } => format!("load {input} => {}", self.one(*output)),
            I::Scalar { name, output } => format!("scalar {name} => {}", self.one(*output)),
            I::Fill { value, output } => format!("fill {value} => {}", self.one(*output)),
            I::Slice { input, output, axis, .. } => {
                format!("slice along {axis}: {} => {}", self.one(*input), self.one(*output))
            }
            I::Pack { input, output, n, .. } => {
                format!("pack {n} pieces: {} => {}", self.one(*input), self.one(*output))
            }
            I::Unpack { input, output, n, .. } => {
                format!("unpack {n} pieces: {} => {}", self.one(*input), self.one(*output))
            }
            I::Start { collective, inputs, outputs, group, ticket, when, .. } => {
                let kind = match collective {
                    Collective::AllReduce(mesh::Reduce::Sum) => "all_reduce(sum)",
                    Collective::AllReduce(mesh::Reduce::Max) => "all_reduce(max)",
                    Collective::ReduceScatter(mesh::Reduce::Sum) => "reduce_scatter(sum)",
                    Collective::ReduceScatter(mesh::Reduce::Max) => "reduce_scatter(max)",
                    Collective::AllGather => "all_gather",
                    Collective::AllToAll => "all_to_all",
                };
                let (inputs, outputs) = (self.list(inputs), self.list(outputs));
                let (group, when) = (&self.program.groups[*group], occasion(*when));
                format!("{when}start {kind} over {group} #{ticket}: {inputs} => {outputs}")
            }
            I::Wait { ticket, when } => format!("{}wait #{ticket}", occasion(*when)),
            I::Send { input, to, .. } => format!("send {} to stage {to}", self.one(*input)),
            I::Recv { output, from, .. } => format!("recv {} from stage {from}", self.one(*output)),
            I::Accumulate { from, into } => format!("accumulate {} += {}", self.one(*into), self.one(*from)),
            I::Store { from, into, n, .. } => {
                format!("store as one of {n}: {} => {}", self.one(*from), self.one(*into))
            }
            I::Entry { from, into, index, .. } => {
                format!("entry {index}: {} => {}", self.one(*from), self.one(*into))
            }
            I::Copy { from, into } => format!("copy {} => {}", self.one(*from), self.one(*into)),
        }
    }

    fn list(&self, buffers: &[BufferId]) -> String {
        let all: Vec<String> = buffers.iter().map(|b| self.one(*b)).collect();
        all.join(", ")
    }

    /// `%7 embedding.sum [batch seq embed] dp:batch 64.0 KiB state`.
    fn one(&self, id: BufferId) -> String {
        let buffer = self.program.buffer(id);
        let dim = |d: &Dim| if *d == Dim::FLAT { "flat" } else { self.graph.dim_info(*d).name.as_str() };
        let dims: Vec<&str> = buffer.dims.iter().map(dim).collect();
        let layout = layout_with_names(self.graph, &buffer.layout);
        let bytes = size(buffer.len as u64 * element_bytes(buffer.dtype));
        let class = match buffer.class {
            Class::State => " state",
            Class::Derived => " derived",
            Class::Step => " step",
            Class::Slot(_) => " slot",
            Class::Passing(_) | Class::Temp => "",
        };
        format!("%{} {} [{}] {layout} {bytes}{class}", buffer.storage.0, buffer.name, dims.join(" "))
    }
}

/// In which runs of a block something is done, before what is done.
fn occasion(when: When) -> &'static str {
    match when {
        When::Always => "",
        When::FirstRun => "in the first run: ",
        When::LastRun => "in the last run: ",
    }
}
