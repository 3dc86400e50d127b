//! Matrix products at the shapes of both models: our kernels beside PyTorch's (MKL for f32, oneDNN for bf16), in turns.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use super::model::{LARGE, SMALL};
use super::options::Options;
use super::report::{Row, Table};
use super::run::pinned;
use super::statistics::{Estimate, median};
use super::{Place, machine};
use crate::Failure;

/// A layer's products: forward, and backward for input and for weight.
const PRODUCTS: usize = 3;
/// How long a program repeats a product in one round.
const SECONDS: &str = "0.3";
/// Columns of what a program prints, split at `|`: product and extents, and the speed.
struct Columns {
    product: usize,
    speed: usize,
}

/// Speeds of all products in one round, in the order in which both programs print them.
type Round = Vec<(String, f64)>;

/// A table per number of threads, and every measurement as CSV.
pub fn measure(place: &Place, options: &Options) -> Result<(Vec<Table>, String), Failure> {
    let kernels = build()?;
    let models = if options.quick { vec![SMALL] } else { vec![SMALL, LARGE] };
    let seconds = if options.quick { "0" } else { SECONDS };
    let shapes: Vec<String> = models
        .iter()
        .flat_map(|model| model.products())
        .map(|shape| shape.map(|extent| extent.to_string()).join(","))
        .collect();
    // Our bench's own table has both precisions and, as a yardstick, another library's.
    let ours_columns = Columns { product: 2, speed: if options.precision == "bf16" { 9 } else { 6 } };
    let mut csv = String::from("threads,round,load,program,product,gflops\n");
    let mut tables = Vec::new();
    for &threads in &options.threads {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=options.pairs {
            let mut one = |name: &str, command: Command, columns: &Columns, rounds: &mut Vec<Round>| {
                let load = machine::load();
                let speeds = speeds(command, columns, PRODUCTS * shapes.len())?;
                for (product, gflops) in &speeds {
                    writeln!(csv, "{threads},{round},{load},{name},{product},{gflops}")
                        .expect("a string takes all");
                }
                rounds.push(speeds);
                eprintln!("  {threads} threads, round {round}/{}: {name}", options.pairs);
                Ok::<(), Failure>(())
            };
            let mut command = pinned(&kernels, threads);
            command.arg(threads.to_string()).arg(if options.quick { SMALL.name } else { "" });
            command.args([seconds, &options.precision]);
            one("phalanx", command, &ours_columns, &mut ours)?;
            if let Some(python) = &place.python {
                let mut command = python.script("gemm_torch.py", threads, threads);
                command.args([&options.precision, &threads.to_string(), seconds]).args(&shapes);
                one("torch", command, &Columns { product: 1, speed: 5 }, &mut theirs)?;
            }
        }
        tables.push(table(options, threads, &ours, &theirs)?);
    }
    Ok((tables, csv))
}

/// The program that measures our kernels: `cargo bench` builds it and says where it is.
fn build() -> Result<std::path::PathBuf, Failure> {
    let mut cargo = crate::cargo(&["bench", "-p", "phalanx-kernels", "--bench", "gemm", "--no-run"]);
    let output = cargo.output().map_err(|error| Failure::Usage(format!("cargo cannot be run: {error}")))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    let path = messages.lines().rev().find_map(|line| line.rsplit_once('(')?.1.strip_suffix(')'));
    match path.filter(|_| output.status.success()) {
        Some(path) => Ok(crate::root().join(Path::new(path))),
        None => Err(Failure::Failed(format!("the kernels' bench does not build:\n{messages}"))),
    }
}

fn speeds(mut command: Command, columns: &Columns, expected: usize) -> Result<Round, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|error| Failure::Usage(format!("{program} cannot be run: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let speeds: Round = text.lines().filter_map(|line| speed(line, columns)).collect();
    if output.status.success() && speeds.len() == expected {
        return Ok(speeds);
    }
    let (found, messages) = (speeds.len(), String::from_utf8_lossy(&output.stderr).into_owned());
    Err(Failure::Failed(format!("{found} of {expected} products were measured:\n{messages}")))
}

/// `forward 2048x1152x384` and its GFLOP/s, from a line of a table.
fn speed(line: &str, columns: &Columns) -> Option<(String, f64)> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [product, m, n, k] = cells.get(columns.product..columns.product + 4)? else { return None };
    Some((format!("{product} {m}x{n}x{k}"), cells.get(columns.speed)?.parse().ok()?))
}

fn table(options: &Options, threads: usize, ours: &[Round], theirs: &[Round]) -> Result<Table, Failure> {
    let names = |round: &Round| round.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    if theirs.first().is_some_and(|round| names(round) != names(&ours[0])) {
        return Err(Failure::Failed("the two programs multiply other shapes".to_owned()));
    }
    let column = |rounds: &[Round], at: usize| rounds.iter().map(|round| round[at].1).collect::<Vec<f64>>();
    let rows = (0..ours[0].len())
        .map(|at| {
            let (a, b) = (column(ours, at), column(theirs, at));
            Row {
                measure: ours[0][at].0.clone(),
                ours: median(&a),
                theirs: if b.is_empty() { f64::NAN } else { median(&b) },
                ratio: (!b.is_empty()).then(|| Estimate::of_ratios(&a, &b)),
            }
        })
        .collect();
    Ok(Table {
        title: format!("matrix products, {}, {threads} threads, GFLOP/s; m x n x k", options.precision),
        ours: "Phalanx".to_owned(),
        theirs: "PyTorch".to_owned(),
        rows,
        notes: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_programs_are_read() {
        let ours = "| small | forward | 2048 | 1152 | 384 | 43.5 | 41.0 | 1.06 | 30.1 | 29.9 |";
        let theirs = "| forward | 2048 | 1152 | 384 | 40.2 |";
        let name = "forward 2048x1152x384".to_owned();
        assert_eq!(speed(ours, &Columns { product: 2, speed: 6 }), Some((name.clone(), 43.5)));
        assert_eq!(speed(ours, &Columns { product: 2, speed: 9 }), Some((name.clone(), 30.1)));
        assert_eq!(speed(theirs, &Columns { product: 1, speed: 5 }), Some((name, 40.2)));
        assert_eq!(speed("|---|---|---|---|---|---|", &Columns { product: 1, speed: 5 }), None);
    }
}
