//! Two ranks of one thread against one: Phalanx with dp (threads, or processes over Gloo) and with tp, PyTorch with DDP over
//! Gloo; and what memory gives to one thread and to two, which bounds both.

use std::fmt::Write;
use std::path::Path;

use super::options::Options;
use super::report::{Row, Table};
use super::run::{Run, run};
use super::statistics::{Estimate, median};
use super::{Place, machine};
use crate::Failure;

/// A layout of two ranks or one; the batch is one rank's times the replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    One,
    Dp,
    DpGloo,
    Tp,
    TorchOne,
    TorchDdp,
}

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Layout::One => "1 rank",
            Layout::Dp => "dp=2",
            Layout::DpGloo => "dp=2, processes over Gloo",
            Layout::Tp => "tp=2",
            Layout::TorchOne => "PyTorch, 1 process",
            Layout::TorchDdp => "PyTorch DDP, 2 processes",
        }
    }

    fn ranks(self) -> usize {
        match self {
            Layout::One | Layout::TorchOne => 1,
            Layout::Dp | Layout::DpGloo | Layout::Tp | Layout::TorchDdp => 2,
        }
    }

    fn replicas(self) -> usize {
        if self == Layout::Tp { 1 } else { self.ranks() }
    }
}

/// One table, and every run as CSV.
pub fn measure(place: &Place, options: &Options) -> Result<(Vec<Table>, String), Failure> {
    let corpus = place.corpus(&options.model)?;
    let mut layouts = vec![Layout::One, Layout::Dp, Layout::Tp];
    if options.gloo {
        layouts.push(Layout::DpGloo);
    }
    if place.python.is_some() {
        layouts.extend([Layout::TorchOne, Layout::TorchDdp]);
        // Not counted: brings PyTorch's files into the page cache.
        one(place, options, &corpus, Layout::TorchOne)?;
    }
    let mut csv = String::from("round,load,layout,tokens_per_second\n");
    let mut speeds: Vec<Vec<f64>> = vec![Vec::new(); layouts.len()];
    for round in 1..=options.pairs {
        let mut order: Vec<usize> = (0..layouts.len()).collect();
        if round % 2 == 0 {
            order.reverse();
        }
        for at in order {
            let (load, layout) = (machine::load(), layouts[at]);
            let speed = one(place, options, &corpus, layout)?.tokens_per_second;
            eprintln!("  round {round}/{}: {} {speed:.0} tokens/s", options.pairs, layout.name());
            writeln!(csv, "{round},{load},\"{}\",{speed}", layout.name()).expect("a string takes all");
            speeds[at].push(speed);
        }
    }
    let speeds_of = |layout: Layout| &speeds[layouts.iter().position(|l| *l == layout).expect("it ran")];
    let pairs = [
        (Layout::Dp, Layout::One),
        (Layout::Tp, Layout::One),
        (Layout::DpGloo, Layout::Dp),
        (Layout::TorchDdp, Layout::TorchOne),
    ];
    let ran = pairs.into_iter().filter(|(two, _)| layouts.contains(two));
    let mut rows: Vec<Row> = ran
        .map(|(two, one)| Row {
            measure: format!("{} against {}, tokens/s", two.name(), one.name()),
            ours: median(speeds_of(two)),
            theirs: median(speeds_of(one)),
            ratio: Some(Estimate::of_ratios(speeds_of(two), speeds_of(one))),
        })
        .collect();
    rows.push(bandwidth(options));
    let table = Table {
        title: format!(
            "{}, {}: two ranks of one thread against one rank of one thread, or two ways of having two",
            options.model.name, options.precision
        ),
        ours: "two".to_owned(),
        theirs: "one".to_owned(),
        rows,
        notes: vec![format!(
            "dp and DDP: {} sequences a rank (twice the tokens); tp: {} sequences over both",
            options.model.batch, options.model.batch
        )],
    };
    Ok((vec![table], csv))
}

/// Copies beyond the cache by two threads and by one, in turns.
fn bandwidth(options: &Options) -> Row {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..options.pairs {
        one.push(machine::copied_bytes_per_second(1) / 1e9);
        two.push(machine::copied_bytes_per_second(2) / 1e9);
    }
    Row {
        measure: "copies beyond the cache, GB/s, by threads".to_owned(),
        ours: median(&two),
        theirs: median(&one),
        ratio: Some(Estimate::of_ratios(&two, &one)),
    }
}

fn one(place: &Place, options: &Options, corpus: &Path, layout: Layout) -> Result<Run, Failure> {
    let (model, precision) = (&options.model, &options.precision);
    let settings = corpus.join("settings.json");
    let command = match (&place.python, layout) {
        (Some(python), Layout::TorchOne) => {
            let mut script = python.script("train_torch.py", 1, 1);
            script.arg(settings).args([precision, "eager", "1"]);
            script
        }
        (Some(python), Layout::TorchDdp) => {
            let mut script = python.script("ddp_torch.py", layout.ranks(), 1);
            script.arg(settings).args([precision, &layout.ranks().to_string()]);
            script
        }
        _ => {
            let mut sets = vec![
                format!("train.precision={precision}"),
                "parallel.threads_per_rank=1".to_owned(),
                format!("train.batch={}", layout.replicas() * model.batch),
            ];
            match layout {
                Layout::Dp | Layout::DpGloo => sets.push("parallel.mesh.dp=2".to_owned()),
                Layout::Tp => sets.push("parallel.mesh.tp=2".to_owned()),
                _ => {}
            }
            let before: &[&str] = if layout == Layout::DpGloo { &["launch", "--"] } else { &[] };
            place.train(corpus, layout.ranks(), before, &sets)?
        }
    };
    run(command, model, layout.replicas() * model.tokens(), &corpus.join("ranks.log"))
}
