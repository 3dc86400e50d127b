//! The `phalanx` command: flags and files become a `Config`, findings become text. The only place for the environment,
//! exit codes, printing and `anyhow`; nothing is computed here.

#![forbid(unsafe_code)]

mod arguments;
mod bench_comm;
mod evaluate;
mod explain;
mod export;
mod failure;
#[cfg(feature = "faults")]
mod faults;
mod generate;
mod gradients;
mod launch;
mod output;
mod parity;
mod place;
mod prepare;
mod profile;
mod progress;
mod schedule;
mod signals;
mod train;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::arguments::{Arguments, Command, DataCommand, TokenizerCommand};
use crate::failure::Verdict;

fn main() -> ExitCode {
    signals::die_with_launcher();
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Evaluate(arguments) => evaluate::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Gradients(arguments) => gradients::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Parity(arguments) => parity::run(&arguments),
        Command::Launch(arguments) => launch::run(&arguments),
        Command::BenchComm(arguments) => bench_comm::run(&arguments),
        Command::Profile(arguments) => profile::run(&arguments),
        Command::Schedule(arguments) => schedule::run(&arguments),
        Command::Data { command: DataCommand::Prepare(arguments) } => prepare::data(&arguments),
        Command::Tokenizer { command: TokenizerCommand::Train(arguments) } => prepare::tokenizer(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "phalanx", &mut script);
            output::bytes(&script).map(|()| Verdict::Success)
        }
    };
    let is_fine = result.is_ok();
    let code = failure::exit_code(result);
    place::end(is_fine);
    code
}
