//! The ranks of this process: starts them, as threads of one world or as members of a job of several processes,
//! gathers what they return, and names the first cause when one fails.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use comm::threads::{Options, World};
use comm::{Communicator, Job};

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
    let members = World::new(world_size, options).into_iter().map(|member| {
        let number = member.rank();
        let join = move || Ok(Box::new(member) as Box<dyn Communicator>);
        (number, join)
    });
    gather(members.collect(), &rank)
}

/// Runs `rank` for every rank that this process has in `job` and returns their results in the order of ranks.
///
/// # Errors
/// As [`run`], and what keeps a rank from joining. The other processes are told at once.
pub fn run_in<T: Send>(
    job: &Job,
    deadline: Duration,
    rank: impl Fn(Box<dyn Communicator>) -> Result<T, TrainError> + Sync,
) -> Result<Vec<T>, TrainError> {
    let members = job.ranks().map(|number| {
        let join = move || Ok(job.join(number, deadline)?);
        (number, join)
    });
    gather(members.collect(), &|member: Box<dyn Communicator>| {
        let (number, abort) = (member.rank(), member.abort_handle());
        let result = rank(member);
        if let Err(error) = &result {
            // Ranks in other processes see no thread end; without this they would only see this one leave.
            abort.abort(&format!("rank {number} on {} failed: {error}", job.host));
        }
        result
    })
}

fn gather<T: Send, J>(
    members: Vec<(usize, J)>,
    rank: &(impl Fn(Box<dyn Communicator>) -> Result<T, TrainError> + Sync),
) -> Result<Vec<T>, TrainError>
where
    J: FnOnce() -> Result<Box<dyn Communicator>, TrainError> + Send,
{
    let results: Vec<Result<T, TrainError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = members
            .into_iter()
            .map(|(number, join)| {
                scope.spawn(move || {
                    std::panic::catch_unwind(AssertUnwindSafe(|| rank(join()?))).unwrap_or_else(|panic| {
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
