//! Faults on demand, of a binary built with the feature `faults` for tests: `PHALANX_FAULT=RANK:MOMENT:STEP:HOW` in the
//! environment makes a rank fail in the first life of a job. Moments: `rendezvous`, `forward`, `all_reduce`, `optimizer`,
//! `saving`; how: `kill`, `stop`, `exit`, `panic`.

use std::sync::Arc;

use anyhow::{Context, bail};
use phalanx::training::faults::{Fault, Moment};
use rustix::process::{Signal, getpid, kill_process};

use crate::output;

/// Where a fault is named.
const FAULT: &str = "PHALANX_FAULT";
/// Exit code of a rank that just leaves.
const LEFT: i32 = 3;

/// The fault that the environment asks for, unless the job has been started anew.
pub fn find() -> anyhow::Result<Option<Fault>> {
    let is_first_life = std::env::var("PHALANX_GENERATION").map_or(true, |generation| generation == "0");
    match std::env::var(FAULT) {
        Ok(text) if is_first_life => {
            parse(&text).with_context(|| format!("{FAULT} is `{text}`: RANK:MOMENT:STEP:HOW")).map(Some)
        }
        _ => Ok(None),
    }
}

fn parse(text: &str) -> anyhow::Result<Fault> {
    let [rank, moment, step, how] = text.split(':').collect::<Vec<_>>()[..] else { bail!("four parts") };
    let moment = match moment {
        "rendezvous" => Moment::Rendezvous,
        "forward" => Moment::Forward,
        "all_reduce" => Moment::AllReduce,
        "optimizer" => Moment::Optimizer,
        "saving" => Moment::Saving,
        other => bail!("no moment {other}"),
    };
    let fail: fn() = match how {
        "kill" => || signal(Signal::KILL),
        "stop" => || signal(Signal::STOP),
        "exit" => || std::process::exit(LEFT),
        "panic" => || panic!("a fault on demand"),
        other => bail!("no way {other}"),
    };
    let strike = Arc::new(move || {
        // Whoever measures how soon the others notice begins here.
        output::note("fault: now");
        fail();
    });
    Ok(Fault { rank: rank.parse()?, moment, step: step.parse()?, strike })
}

fn signal(signal: Signal) {
    // A process may always signal itself.
    let _ = kill_process(getpid(), signal);
}
