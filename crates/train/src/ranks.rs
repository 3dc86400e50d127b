//! Ranks as threads of this process: starts them, gathers what they return, and names the first cause when one fails.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use comm::Communicator;
use comm::threads::{Options, World};

use crate::error::TrainError;

/// Runs `rank` on `world_size` threads and returns their results in the order of ranks.
///
/// # Errors
/// The cause, not an echo: if one rank fails and the others are woken by it, the one's error. A panic of a rank becomes
/// [`TrainError::Panicked`].
pub fn run<T: Send>(
    world_size: usize,
    deadline: Duration,
    rank: impl Fn(Box<dyn Communicator>) -> Result<T, TrainError> + Sync,
) -> Result<Vec<T>, TrainError> {
    let options = Options { deadline, ..Options::default() };
    let members = World::new(world_size, options);
    let rank = &rank;
    let results: Vec<Result<T, TrainError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = members
            .into_iter()
            .map(|member| {
                scope.spawn(move || {
                    let number = member.rank();
                    let member: Box<dyn Communicator> = Box::new(member);
                    std::panic::catch_unwind(AssertUnwindSafe(|| rank(member))).unwrap_or_else(|panic| {
                        Err(TrainError::Panicked { rank: number, message: message_of(&*panic) })
                    })
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("panics were caught")).collect()
    });
    let mut values = Vec::new();
    let mut failure: Option<TrainError> = None;
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) if failure.as_ref().is_none_or(TrainError::is_echo) => failure = Some(error),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(values), Err)
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
