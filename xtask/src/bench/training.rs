//! One rank: Phalanx and PyTorch train the same model on the same tokens with the same threads, in turns.

use std::fmt::Write;
use std::path::Path;

use super::options::Options;
use super::report::{Row, Table};
use super::run::{Run, run};
use super::statistics::{Estimate, median};
use super::{Place, machine};
use crate::Failure;

/// Steps whose losses are compared.
const COMPARED_STEPS: usize = 5;
/// How far they may be apart: weights are drawn from the same distributions by other generators.
const LOSS_TOLERANCE: f64 = 0.02;
/// Bytes of state a parameter: weight, gradient and Adam's two moments in f32.
const STATE_BYTES: f64 = 16.0;
/// Eager may be this much faster in one trial before compiling is given up.
const TRIAL_MARGIN: f64 = 1.03;

/// Who runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Phalanx,
    Eager,
    Compile,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Program::Phalanx => "phalanx",
            Program::Eager => "eager",
            Program::Compile => "compile",
        }
    }
}

/// All runs of one program, by round.
struct Series {
    program: Program,
    runs: Vec<Run>,
}

impl Series {
    fn all(&self, measure: fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(measure).collect()
    }
}

/// A table per number of threads, and every run as CSV.
pub fn measure(place: &Place, options: &Options) -> Result<(Vec<Table>, String), Failure> {
    let corpus = place.corpus(&options.model)?;
    let mut csv = String::from(
        "threads,round,load,program,tokens_per_second,tokens_per_cpu_second,until_first_step,first_step,peak_bytes,losses\n",
    );
    let mut tables = Vec::new();
    for &threads in &options.threads {
        let series = rounds(place, options, &corpus, threads, &mut csv)?;
        check_losses(&series)?;
        tables.push(table(options, threads, &series));
    }
    Ok((tables, csv))
}

fn rounds(
    place: &Place,
    options: &Options,
    corpus: &Path,
    threads: usize,
    csv: &mut String,
) -> Result<Vec<Series>, Failure> {
    let once = |program| one(place, options, corpus, threads, program);
    let mut series = vec![Series { program: Program::Phalanx, runs: Vec::new() }];
    if place.python.is_some() {
        series.push(Series { program: Program::Eager, runs: Vec::new() });
        // A trial, not counted: files come into the page cache, and graphs are compiled for later runs.
        once(Program::Phalanx)?;
        let eager = once(Program::Eager)?.tokens_per_second;
        if !options.quick {
            match once(Program::Compile) {
                Ok(run) if run.tokens_per_second * TRIAL_MARGIN >= eager => {
                    series.push(Series { program: Program::Compile, runs: Vec::new() });
                }
                Ok(_) => eprintln!("  compile is slower than eager here and is left out"),
                Err(failure) => eprintln!("  compile fails here and is left out: {failure}"),
            }
        }
    }
    for round in 1..=options.pairs {
        // Every other round backwards, so that no one always follows the same.
        let mut order: Vec<usize> = (0..series.len()).collect();
        if round % 2 == 0 {
            order.reverse();
        }
        for at in order {
            let (load, program) = (machine::load(), series[at].program);
            let run = once(program)?;
            eprintln!(
                "  {threads} threads, round {round}/{}: {} {:.0} tokens/s",
                options.pairs,
                program.name(),
                run.tokens_per_second
            );
            let losses: Vec<String> = run.losses.iter().map(f64::to_string).collect();
            writeln!(
                csv,
                "{threads},{round},{load},{},{},{},{},{},{},{}",
                program.name(),
                run.tokens_per_second,
                run.tokens_per_cpu_second,
                run.until_first_step_seconds,
                run.first_step_seconds,
                run.peak_bytes,
                losses.join(" ")
            )
            .expect("a string takes all");
            series[at].runs.push(run);
        }
    }
    Ok(series)
}

fn one(
    place: &Place,
    options: &Options,
    corpus: &Path,
    threads: usize,
    program: Program,
) -> Result<Run, Failure> {
    let (model, precision) = (&options.model, &options.precision);
    let command = match (&place.python, program) {
        (Some(python), Program::Eager | Program::Compile) => {
            let mut script = python.script("train_torch.py", threads, threads);
            script
                .arg(corpus.join("settings.json"))
                .args([precision, program.name()])
                .arg(threads.to_string());
            script
        }
        _ => {
            let sets =
                [format!("train.precision={precision}"), format!("parallel.threads_per_rank={threads}")];
            place.train(corpus, threads, &[], &sets)?
        }
    };
    run(command, model, model.tokens(), &corpus.join(format!("{}.log", program.name())))
}

/// Refuses a comparison of two that do not train the same.
fn check_losses(series: &[Series]) -> Result<(), Failure> {
    let ours = &series[0].runs[0].losses;
    for other in &series[1..] {
        let theirs = &other.runs[0].losses;
        for (step, (a, b)) in ours.iter().zip(theirs).enumerate().take(COMPARED_STEPS) {
            if (a - b).abs() > LOSS_TOLERANCE * b.abs() {
                let (step, name) = (step + 1, other.program.name());
                return Err(Failure::Failed(format!(
                    "step {step}: loss {a:.4} here, {b:.4} with PyTorch {name}: they do not train the same"
                )));
            }
        }
    }
    Ok(())
}

fn table(options: &Options, threads: usize, series: &[Series]) -> Table {
    let model = &options.model;
    let ours = &series[0];
    let speed = |series: &&Series| median(&series.all(|run| run.tokens_per_second));
    let best = series[1..].iter().max_by(|a, b| speed(a).total_cmp(&speed(b)));
    let eager = series.get(1);
    let row = |measure: &str, peer: Option<&Series>, of: &dyn Fn(&Run) -> f64| {
        let values = |series: &Series| series.runs.iter().map(of).collect::<Vec<f64>>();
        let theirs = peer.map(values);
        Row {
            measure: peer.map_or(measure.to_owned(), |p| format!("{measure} (PyTorch {})", p.program.name())),
            ours: median(&values(ours)),
            theirs: theirs.as_deref().map_or(f64::NAN, median),
            ratio: theirs.map(|theirs| Estimate::of_ratios(&values(ours), &theirs)),
        }
    };
    let mib = f64::from(1 << 20);
    let state = STATE_BYTES * model.num_parameters() as f64;
    let mut rows = vec![
        row("tokens/s", best, &|run| run.tokens_per_second),
        row("tokens per s of processor time", best, &|run| run.tokens_per_cpu_second),
        row("peak resident memory, MiB", best, &|run| run.peak_bytes / mib),
        row("the same beyond the state, MiB", best, &|run| (run.peak_bytes - state) / mib),
        row("s from start until step 1 begins", eager, &|run| run.until_first_step_seconds),
        row("s from start until step 1 is done", best, &|run| {
            run.until_first_step_seconds + run.first_step_seconds
        }),
    ];
    if best.is_some_and(|best| best.program == Program::Compile) {
        rows.insert(1, row("tokens/s", eager, &|run| run.tokens_per_second));
    }
    let losses = |series: &Series| {
        let shown: Vec<String> =
            series.runs[0].losses.iter().take(COMPARED_STEPS).map(|loss| format!("{loss:.3}")).collect();
        format!("{}: {}", series.program.name(), shown.join(" "))
    };
    Table {
        title: format!(
            "{} ({:.1} M parameters, {} tokens a step), {}, {threads} thread{}; medians of {} runs of {} steps after {}",
            model.name,
            model.num_parameters() as f64 / 1e6,
            model.tokens(),
            options.precision,
            if threads == 1 { "" } else { "s" },
            options.pairs,
            model.steps,
            model.warmup
        ),
        ours: "Phalanx".to_owned(),
        theirs: "PyTorch".to_owned(),
        rows,
        notes: vec![format!(
            "losses of the first steps: {}",
            series.iter().map(losses).collect::<Vec<_>>().join("; ")
        )],
    }
}
