//! Measuring on a machine that others use too.

use std::thread::sleep;
use std::time::Duration;

/// Measures until a result is good, ten times at most, with growing pauses: other work on the machine comes and goes, and
/// nothing looks better than it is by chance for long. Results in order; the last one counts.
pub fn measure<T>(mut once: impl FnMut() -> T, is_good: impl Fn(&T) -> bool) -> Vec<T> {
    let mut results = vec![once()];
    while results.len() < 10 && !results.last().is_some_and(&is_good) {
        sleep(Duration::from_millis(200 * results.len() as u64));
        results.push(once());
    }
    results
}
