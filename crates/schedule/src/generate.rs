//! The list of generators and the one way to call them. Each generator has a file of its own; it
//! emits compute alone, never a transfer.

mod gpipe;
mod one_f_one_b;

use crate::pipeline::check_counts;
use crate::{Schedule, ScheduleError};

/// What a generator is asked for; counts are positive and of sane size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub num_ranks: usize,
    pub num_microbatches: usize,
    pub chunks: usize,
}

/// A named generator of schedules.
#[derive(Debug, Clone, Copy)]
pub struct Generator {
    /// The name in configurations and on the command line.
    pub name: &'static str,
    /// What is particular about it, in one sentence.
    pub about: &'static str,
    build: fn(&Request) -> Result<Schedule, ScheduleError>,
}

/// Every generator, in the order of the literature.
pub fn generators() -> &'static [Generator] {
    &[gpipe::GENERATOR, one_f_one_b::GENERATOR]
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
/// An unknown name, a count of 0, or `chunks` that the schedule cannot have.
pub fn generate(
    name: &str,
    num_ranks: usize,
    num_microbatches: usize,
    chunks: usize,
) -> Result<Schedule, ScheduleError> {
    let generator = find(name)?;
    if chunks == 0 {
        return Err(ScheduleError::ZeroCount { what: "chunks" });
    }
    check_counts(num_ranks, num_ranks.saturating_mul(chunks), num_microbatches)?;
    (generator.build)(&Request { num_ranks, num_microbatches, chunks })
}

impl Request {
    /// A schedule with one stage per rank whose rank `d` performs `actions(d)`.
    fn one_stage_per_rank(
        &self,
        name: &str,
        actions: impl FnMut(usize) -> Vec<crate::Action>,
    ) -> Result<Schedule, ScheduleError> {
        if self.chunks != 1 {
            return Err(ScheduleError::Chunks { name: name.to_string(), chunks: self.chunks });
        }
        Ok(Schedule {
            name: name.to_string(),
            num_ranks: self.num_ranks,
            num_stages: self.num_ranks,
            num_microbatches: self.num_microbatches,
            placement: (0..self.num_ranks).collect(),
            ranks: (0..self.num_ranks).map(actions).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generator_passes_the_check() {
        for generator in generators() {
            for num_ranks in 1..=5 {
                for num_microbatches in 1..=9 {
                    generate(generator.name, num_ranks, num_microbatches, 1).unwrap().check().unwrap();
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
            "unknown schedule `1b1f`; did you mean `1f1b`? Known: gpipe, 1f1b"
        );
        assert_eq!(
            message("gpipe", 2, 2, 2),
            "schedule `gpipe` has one stage per pipeline rank, not chunks = 2; set chunks = 1"
        );
        assert_eq!(message("1f1b", 2, 0, 1), "num_microbatches is 0; a schedule needs at least 1");
        assert_eq!(message("1f1b", 2, 1, 0), "chunks is 0; a schedule needs at least 1");
        assert!(message("1f1b", usize::MAX, 2, usize::MAX).contains("use fewer"));
    }
}
