//! Exit codes and the one message of a failure.

use std::process::ExitCode;

use phalanx::TrainError;

use crate::{output, signals};

/// Exit code of a rank that only its peers kept from going on; under `phalanx launch` alone, which reads it.
pub const PEER_FAILED: u8 = 75;

/// Exit code of a rank that the watchdog ends, because a peer keeps it in a call that does not come back.
pub fn stuck_code() -> i32 {
    if signals::is_launched() { i32::from(PEER_FAILED) } else { 2 }
}

/// How a command that ran to its end ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Exit 0.
    Success,
    /// A check failed: exit 1.
    CheckFailed,
}

/// Stdout's reader has gone, as `head` does: the end, but nobody's fault.
#[derive(Debug)]
pub struct ReaderGone;

impl std::fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody reads the output")
    }
}

impl std::error::Error for ReaderGone {}

/// Prints a failure's message and gives the contract's exit code: 0 success, 1 a check failed, 2 the user's input or
/// environment; 101, as for any panic, for what is a bug.
pub fn exit_code(result: anyhow::Result<Verdict>) -> ExitCode {
    match result {
        Ok(Verdict::Success) => ExitCode::SUCCESS,
        Ok(Verdict::CheckFailed) => ExitCode::from(1),
        Err(error) if error.is::<ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            // Messages name their causes themselves.
            output::note(&format!("error: {error}"));
            if error.downcast_ref::<TrainError>().is_some_and(TrainError::is_bug) {
                output::note("this is a bug in Phalanx: please report it with the lines above");
                return ExitCode::from(101);
            }
            let is_of_peer = error.downcast_ref::<TrainError>().is_some_and(TrainError::is_of_peer);
            if is_of_peer && signals::is_launched() {
                return ExitCode::from(PEER_FAILED);
            }
            ExitCode::from(2)
        }
    }
}
