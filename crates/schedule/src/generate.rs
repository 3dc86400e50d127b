//! The list of generators and the one way to call them. Each generator has a file of its own; it
//! emits compute alone, never a transfer.

mod auto;
mod dual_pipe_v;
mod gpipe;
mod interleaved;
mod list;
mod looped;
mod one_f_one_b;
mod search;
mod zb_h1;
mod zb_h2;
mod zb_v;

use crate::pipeline::check_counts;
use crate::{Action, Placement, Schedule, ScheduleError, Times};

/// What a schedule is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Number of pipeline ranks.
    pub num_ranks: usize,
    /// Number of microbatches in a step.
    pub num_microbatches: usize,
    /// Stages on each pipeline rank.
    pub chunks: usize,
    /// Times to order by; only `auto` looks at them.
    pub times: Times,
    /// The most live chunks a rank may hold. `auto` keeps to it (without one, to what 1F1B takes:
    /// `num_ranks * chunks`); a schedule of fixed order that needs more is refused.
    pub memory_cap: Option<usize>,
}

impl Request {
    /// A request with equal times of `F`, `I` and `W` and no cap.
    pub fn new(num_ranks: usize, num_microbatches: usize, chunks: usize) -> Request {
        let times = Times::new(1.0, 1.0, 1.0);
        Request { num_ranks, num_microbatches, chunks, times, memory_cap: None }
    }
}

/// A named generator of schedules.
#[derive(Debug, Clone, Copy)]
pub struct Generator {
    /// The name in configurations and on the command line.
    pub name: &'static str,
    /// What is particular about it, in one sentence.
    pub about: &'static str,
    /// Stages on each pipeline rank; `None` if any number will do.
    pub chunks: Option<usize>,
    build: fn(&Request) -> Result<Schedule, ScheduleError>,
}

/// Every generator, in the order of the literature.
pub fn generators() -> &'static [Generator] {
    &[
        gpipe::GENERATOR,
        looped::GENERATOR,
        one_f_one_b::GENERATOR,
        interleaved::GENERATOR,
        zb_h1::GENERATOR,
        zb_h2::GENERATOR,
        zb_v::GENERATOR,
        dual_pipe_v::GENERATOR,
        auto::GENERATOR,
    ]
}

/// The generator of that name.
///
/// # Errors
/// [`ScheduleError::UnknownName`] lists the known names and the nearest.
pub fn find(name: &str) -> Result<&'static Generator, ScheduleError> {
    if let Some(generator) = generators().iter().find(|generator| generator.name == name) {
        return Ok(generator);
    }
    let known: Vec<&'static str> = generators().iter().map(|generator| generator.name).collect();
    let nearest = known.iter().copied().min_by_key(|known| strsim::damerau_levenshtein(name, known));
    Err(ScheduleError::UnknownName { name: name.to_string(), nearest: nearest.unwrap_or_default(), known })
}

/// Makes the schedule of that name, with `chunks` stages on each pipeline rank.
///
/// # Errors
/// An unknown name, a count of 0, or counts that the schedule cannot have.
pub fn generate(
    name: &str,
    num_ranks: usize,
    num_microbatches: usize,
    chunks: usize,
) -> Result<Schedule, ScheduleError> {
    find(name)?.generate(&Request::new(num_ranks, num_microbatches, chunks))
}

impl Generator {
    /// Makes the schedule that is asked for.
    ///
    /// # Errors
    /// A count of 0, counts that the schedule cannot have, senseless times, or more memory than allowed.
    pub fn generate(&self, request: &Request) -> Result<Schedule, ScheduleError> {
        let Request { num_ranks, num_microbatches, chunks, times, memory_cap } = *request;
        if chunks == 0 {
            return Err(ScheduleError::ZeroCount { what: "chunks" });
        }
        check_counts(num_ranks, num_ranks.saturating_mul(chunks), num_microbatches)?;
        if let Some(needed) = self.chunks.filter(|&needed| needed != chunks) {
            return Err(ScheduleError::Chunks { name: self.name.to_string(), chunks, needed });
        }
        times.check()?;
        let schedule = (self.build)(request)?;
        memory_cap.map_or(Ok(()), |cap| schedule.check_memory(cap))?;
        Ok(schedule)
    }
}

impl Request {
    /// A schedule whose rank `d` performs `actions(d)`.
    fn schedule(
        &self,
        name: &str,
        placement: Placement,
        actions: impl FnMut(usize) -> Vec<Action>,
    ) -> Schedule {
        let ranks = (0..self.num_ranks).map(actions).collect();
        let placement = placement.ranks(self.num_ranks, self.chunks);
        Schedule::new(name, self.num_ranks, self.num_microbatches, placement, ranks)
    }
}

#[cfg(test)]
mod form_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generator_passes_the_check() {
        for generator in generators() {
            for chunks in generator.chunks.map_or(vec![1, 2, 3], |chunks| vec![chunks]) {
                for (num_ranks, num_microbatches) in (1..=5).flat_map(|p| [1, 3, 8, 10].map(|m| (p, m))) {
                    match generate(generator.name, num_ranks, num_microbatches, chunks) {
                        Ok(schedule) => schedule.check().unwrap(),
                        Err(ScheduleError::Rounds { .. }) => {
                            assert!(generator.name == "interleaved" && num_microbatches % num_ranks != 0);
                        }
                        Err(error) => panic!("{} {num_ranks} {num_microbatches}: {error}", generator.name),
                    }
                }
            }
        }
    }

    #[test]
    fn refusals_name_the_remedy() {
        let message = |name, ranks, microbatches, chunks| {
            generate(name, ranks, microbatches, chunks).unwrap_err().to_string()
        };
        assert_eq!(
            message("1b1f", 2, 2, 1),
            "unknown schedule `1b1f`; did you mean `1f1b`? Known: gpipe, looped, 1f1b, interleaved, zb-h1, zb-h2, zb-v, dualpipe-v, auto"
        );
        assert_eq!(
            message("gpipe", 2, 2, 2),
            "schedule `gpipe` has one stage per pipeline rank, not chunks = 2; set chunks = 1"
        );
        assert_eq!(
            message("zb-v", 2, 2, 1),
            "schedule `zb-v` has 2 stages per pipeline rank, not chunks = 1; set chunks = 2"
        );
        assert_eq!(
            message("interleaved", 4, 6, 2),
            "schedule `interleaved` takes microbatches in rounds of 4, one per pipeline rank, and 6 is no multiple of it; use 4 or 8 microbatches, or schedule `looped` or `auto`"
        );
        let capped = |name, chunks, cap| {
            let request = Request { memory_cap: Some(cap), ..Request::new(4, 8, chunks) };
            find(name)
                .unwrap()
                .generate(&request)
                .map(|schedule| schedule.peak_live())
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            capped("gpipe", 1, 7).unwrap_err(),
            "rank 0 holds 8 live chunks from `0F7` on, more than the cap of 7; raise the cap or use schedule `auto`"
        );
        assert_eq!(capped("gpipe", 1, 8).unwrap(), [8; 4]);
        assert_eq!(
            capped("auto", 2, 1).unwrap_err(),
            "a memory cap of 1 live chunks is too small for 2 stages per pipeline rank; allow at least 2"
        );
        assert_eq!(message("1f1b", 2, 0, 1), "num_microbatches is 0; a schedule needs at least 1");
        assert_eq!(message("1f1b", 2, 1, 0), "chunks is 0; a schedule needs at least 1");
        assert!(message("1f1b", usize::MAX, 2, usize::MAX).contains("use fewer"));
    }
}
