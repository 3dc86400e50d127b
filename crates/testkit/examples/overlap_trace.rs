//! Draws one step of two data-parallel ranks over a throttled link as SVG, on standard output: what each rank computes,
//! and when the link carries its gradients.
//!
//! `cargo run --release -p phalanx-testkit --example overlap_trace > docs/images/overlap.svg`

use std::collections::HashMap;
use std::fmt::Write;

use plan::{Instruction, Phase, Program};
use runtime::Sample;
use testkit::slow_link::{config, span, step};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 120.0;
const ROW: f64 = 22.0;

/// A bar: when, what colour, what it is called.
struct Bar {
    start: f64,
    end: f64,
    color: &'static str,
    name: String,
}

/// Bars of what a rank computes, one for each run of a block, and of what it waits for.
fn computing(program: &Program, samples: &[Sample]) -> Vec<Bar> {
    let mut bars: Vec<(usize, usize, Bar)> = Vec::new();
    let mut waiting = Vec::new();
    for sample in samples {
        let block = &program.blocks[sample.block];
        // Without a communication thread the time passes where a collective is started.
        if let Instruction::Wait { .. } | Instruction::Start { .. } = block.instructions[sample.index] {
            let (start, end) = (sample.start_seconds, sample.end_seconds);
            waiting.push(Bar { start, end, color: "#d64545", name: "waits".to_owned() });
        }
        match bars.last_mut() {
            Some((block, microbatch, bar)) if (*block, *microbatch) == (sample.block, sample.microbatch) => {
                bar.end = sample.end_seconds;
            }
            _ => {
                let (color, letter) = match block.phase {
                    Phase::Forward => ("#a9cbf0", "F"),
                    Phase::Update => ("#dddddd", "update"),
                    _ => ("#d3bdea", "B"),
                };
                let name = match block.phase {
                    Phase::Forward | Phase::Backward => format!("{letter}{}", sample.microbatch),
                    Phase::Update => letter.to_owned(),
                    _ => continue,
                };
                let (start, end) = (sample.start_seconds, sample.end_seconds);
                bars.push((sample.block, sample.microbatch, Bar { start, end, color, name }));
            }
        }
    }
    // What is shorter than a pixel is no waiting that anybody would see.
    bars.into_iter().map(|(.., bar)| bar).chain(waiting).collect()
}

/// Bars of what the link carries: one after another, from when a bucket was started and the one before was through.
fn carrying(program: &Program, samples: &[Sample]) -> Vec<Bar> {
    let mut started: HashMap<usize, (f64, usize)> = HashMap::new();
    let (mut bars, mut free): (Vec<Bar>, f64) = (Vec::new(), 0.0);
    for sample in samples {
        match &program.blocks[sample.block].instructions[sample.index] {
            Instruction::Start { ticket, inputs, .. } => {
                started.insert(*ticket, (sample.start_seconds, inputs.len()));
            }
            Instruction::Wait { ticket, .. } => {
                let Some((start, gradients)) = started.remove(ticket) else { continue };
                let (start, end) = (start.max(free), sample.done_seconds);
                free = end;
                bars.push(Bar { start, end, color: "#6cc398", name: gradients.to_string() });
            }
            _ => {}
        }
    }
    bars
}

fn main() {
    let layout = |bucket_bytes| config(&format!("dp=2;bucket_bytes={bucket_bytes};num_microbatches=2"));
    let (program, samples) = step(&layout(1 << 18), f64::INFINITY);
    // As fast as makes all transfers take half of the last backward.
    let seconds = 0.5 * span(&program, &samples[0], 1, Phase::Backward);
    let bytes_per_second = program.memory.gradients_bytes as f64 / seconds;
    let runs = [("buckets of 256 KiB", 1 << 18), ("without buckets", 0)]
        .map(|(title, bucket_bytes)| (title, step(&layout(bucket_bytes), bytes_per_second)));
    let bounds = |samples: &[Vec<Sample>]| {
        let all = || samples.iter().flatten();
        let start = all().map(|s| s.start_seconds).fold(f64::INFINITY, f64::min);
        (start, all().map(|s| s.end_seconds).fold(0.0, f64::max) - start)
    };
    let longest = runs.iter().map(|(_, (_, samples))| bounds(samples).1).fold(0.0, f64::max);
    let scale = (WIDTH - LEFT - 20.0) / longest;
    let (mut svg, mut y) = (String::new(), 12.0);
    for (title, (program, samples)) in &runs {
        let (origin, length) = bounds(samples);
        y += 14.0;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{y}\" font-size=\"13\">{title}: {:.0} ms</text>",
            length * 1e3
        );
        y += 8.0;
        for (rank, samples) in samples.iter().enumerate() {
            let rows = [("computes", computing(program, samples)), ("link", carrying(program, samples))];
            for (what, bars) in rows {
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">rank {rank} {what}</text>",
                    LEFT - 8.0,
                    y + ROW / 2.0 + 4.0
                );
                for bar in bars {
                    let (x, width) = (LEFT + (bar.start - origin) * scale, (bar.end - bar.start) * scale);
                    if width < 0.5 {
                        continue;
                    }
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{ROW}\" fill=\"{}\" \
                         stroke=\"#fff\" stroke-width=\"0.5\"><title>{}</title></rect>",
                        bar.color, bar.name
                    );
                    if width > 24.0 && bar.color != "#6cc398" {
                        let middle = x + width / 2.0;
                        let below = y + ROW / 2.0 + 4.0;
                        let _ = writeln!(
                            svg,
                            "<text x=\"{middle:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>",
                            bar.name
                        );
                    }
                }
                y += ROW + 3.0;
            }
        }
        y += 8.0;
    }
    let legend = "blue: forward, violet: backward, grey: update, red: waits, green: gradients on the link";
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.0}\" fill=\"#555\">{legend}</text>", y + 8.0);
    let height = y + 20.0;
    println!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{svg}</svg>"
    );
}
