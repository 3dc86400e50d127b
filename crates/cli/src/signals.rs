//! Signals: which ones ask the launcher to end, how it passes them on, and how a child ends with its launcher.

use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
use signal_hook::iterator::Signals;

/// The signal that nobody can ignore.
pub const KILL: i32 = SIGKILL;
/// Names the launcher to the processes that it starts.
pub const PARENT: &str = "PHALANX_PARENT";

/// Tells the processes of a job that a launcher reads their exit codes.
pub const LAUNCHED: &str = "PHALANX_LAUNCHED";

/// Whether a launcher started this process, perhaps by way of `mpirun`.
pub fn is_launched() -> bool {
    std::env::var_os(LAUNCHED).is_some()
}

/// The signals that ask this process to end, as they come.
pub fn watch() -> anyhow::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for signals")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || signals.forever().try_for_each(|signal| sender.send(signal)));
    Ok(receiver)
}

/// Sends a signal to a process and all that it started. One that has ended is no error.
pub fn send_to_group(leader: u32, signal: i32) {
    if let (Some(leader), Some(signal)) = (Pid::from_raw(leader as i32), Signal::from_named_raw(signal)) {
        let _ = kill_process_group(leader, signal);
    }
}

/// If a launcher started this process: ends it when the launcher dies, however that happens.
pub fn die_with_launcher() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|text| text.parse::<i32>().ok()) else { return };
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get()) != Some(parent) {
        // It died between starting us and now.
        std::process::exit(2);
    }
}
