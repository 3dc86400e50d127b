//! The flags of `cargo xtask bench`. What they do is the other files'.

use super::model::{LARGE, Model, SMALL, TINY};
use crate::Failure;

pub const HELP: &str = "\
cargo xtask bench [FLAGS]        Phalanx beside PyTorch on this machine, taking turns

  --model small|large            the model to train (default small)
  --precision f32|bf16           number format of computation (default f32)
  --threads 1,2                  thread counts to measure, one table each (default 1 and all cores up to 2)
  --pairs N                      rounds, each a run of every program (default 15 for small, 6 for large)
  --quick                        a tiny model and few steps: shows that the bench works, measures nothing
  --no-torch                     Phalanx alone; needs no Python
  --ranks                        instead: 2 ranks of one thread against one (dp, tp; PyTorch DDP), and bandwidth
  --gloo                         with --ranks: two processes over Gloo as well (needs Debian's libgloo-dev g++)
  --gemm                         instead: matrix products at the shapes of both models

PyTorch is installed by pip into target/bench/venv on the first run (several GB). Results: target/bench/*.json, *.csv.
";

/// What a call measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Training,
    Ranks,
    Gemm,
}

/// A call's flags.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub model: Model,
    pub precision: String,
    pub threads: Vec<usize>,
    pub pairs: usize,
    pub quick: bool,
    pub torch: bool,
    /// Ranks as processes over Gloo beside those that are threads.
    pub gloo: bool,
    pub subject: Subject,
}

impl Options {
    /// Reads the flags; `cores` is how many this machine has.
    pub fn parse(args: &[String], cores: usize) -> Result<Options, Failure> {
        let (mut model, mut precision, mut threads, mut pairs) = (None, "f32".to_owned(), None, None);
        let (mut quick, mut torch, mut gloo, mut subject) = (false, true, false, Subject::Training);
        let mut args = args.iter();
        while let Some(flag) = args.next() {
            let mut value = |allowed: &str| {
                let missing = || Failure::Usage(format!("{flag} needs a value: {allowed}"));
                args.next().cloned().ok_or_else(missing)
            };
            match flag.as_str() {
                "--model" => model = Some(named(&value("small or large")?)?),
                "--precision" => precision = value("f32 or bf16")?,
                "--threads" => threads = Some(counts(&value("as in 1,2")?, cores)?),
                "--pairs" => pairs = Some(count("--pairs", &value("a number")?)?),
                "--quick" => quick = true,
                "--no-torch" => torch = false,
                "--gloo" => gloo = true,
                "--ranks" => subject = Subject::Ranks,
                "--gemm" => subject = Subject::Gemm,
                other => {
                    return Err(Failure::Usage(format!(
                        "unknown flag {other}; see `cargo xtask bench --help`"
                    )));
                }
            }
        }
        if !["f32", "bf16"].contains(&precision.as_str()) {
            return Err(Failure::Usage(format!("--precision {precision}: write f32 or bf16")));
        }
        if subject == Subject::Ranks && cores < 2 {
            return Err(Failure::Usage("--ranks needs two cores; this machine has one".to_owned()));
        }
        if gloo && subject != Subject::Ranks {
            return Err(Failure::Usage("--gloo measures ranks: add --ranks".to_owned()));
        }
        let model = if quick { TINY } else { model.unwrap_or(SMALL) };
        let default_threads = if quick || cores == 1 { vec![1] } else { vec![1, 2] };
        Ok(Options {
            pairs: pairs.unwrap_or(model.pairs),
            threads: threads.unwrap_or(default_threads),
            model,
            precision,
            quick,
            torch,
            gloo,
            subject,
        })
    }
}

fn named(name: &str) -> Result<Model, Failure> {
    let found = [SMALL, LARGE].into_iter().find(|model| model.name == name);
    found.ok_or_else(|| Failure::Usage(format!("--model {name}: write small or large")))
}

fn count(flag: &str, text: &str) -> Result<usize, Failure> {
    let number = text.trim().parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Failure::Usage(format!("{flag} {text}: write a number of at least 1")))
}

fn counts(text: &str, cores: usize) -> Result<Vec<usize>, Failure> {
    let counts = text.split(',').map(|part| count("--threads", part)).collect::<Result<Vec<_>, _>>()?;
    match counts.iter().find(|&&threads| threads > cores) {
        Some(threads) => Err(Failure::Usage(format!("--threads {threads}: this machine has {cores} cores"))),
        None => Ok(counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, Failure> {
        let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args, 2)
    }

    #[test]
    fn flags_are_read_or_refused() {
        let options = parse("--model large --precision bf16 --threads 2 --pairs 3 --no-torch").unwrap();
        assert_eq!((options.model, options.pairs, options.torch), (LARGE, 3, false));
        assert_eq!((options.precision.as_str(), options.threads), ("bf16", vec![2]));
        let quick = parse("--quick --model large").unwrap();
        assert_eq!((quick.model, quick.threads, quick.pairs), (TINY, vec![1], TINY.pairs));
        for wrong in
            ["--model huge", "--pairs 0", "--threads 3", "--threads", "--precision f8", "--fast", "--gloo"]
        {
            assert!(matches!(parse(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
    }
}
