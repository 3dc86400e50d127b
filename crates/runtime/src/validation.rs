//! Post-validation: an update made on an assumption stands if the assumption held, and is taken back otherwise.

use memory::Span;
use mesh::Tile;
use plan::{BufferId, Phase};

use crate::batch::{Batch, Destination};
use crate::error::RuntimeError;
use crate::step::Step;

/// How far a step got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a step may have to run again"]
pub enum Ran {
    /// To its end: results are this step's.
    Complete,
    /// To its end, but whether its update stands shows in the next step: results are those of the step before.
    Ahead,
    /// Not at all: the update of the step before did not stand. It was made again, results are that step's, and this one
    /// is to be run once more.
    Again,
}

/// What became of the step before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its update stands, or there was none to validate.
    Stands,
    /// It was made again.
    Refused,
}

impl Step<'_, '_> {
    /// Learns what is true of the step before and compares it with what its update assumed; if that differs, restores the
    /// states and updates again. All ranks come to the same verdict, for they compare the same numbers.
    pub fn validate(&mut self) -> Result<Verdict, RuntimeError> {
        if !self.executor.unsettled.take() {
            return Ok(Verdict::Stands);
        }
        self.only(Phase::Validate)?;
        let validation = self.bound.program.validation.as_ref().expect("an update to validate");
        let stands = self.bits(validation.scale)? == self.bits(validation.assumed)?;
        self.executor.trusting.set(stands);
        if stands {
            return Ok(Verdict::Stands);
        }
        self.finish_carried()?;
        let (saved, states) = self.saved();
        self.copy(saved, states)?;
        self.only(Phase::Amend)?;
        self.only(Phase::Apply)?;
        // An update that changes nothing leaves copies of what was taken back.
        self.executor.programs.iter().for_each(|bound| bound.derived.set(false));
        Ok(Verdict::Refused)
    }

    /// Waits for what the step before left under way.
    pub fn finish_carried(&mut self) -> Result<(), RuntimeError> {
        let under_way = std::mem::take(&mut *self.executor.in_flight.borrow_mut());
        under_way.into_iter().try_for_each(|(_, pending)| Ok(pending.wait()?))
    }

    /// Keeps all states as they are.
    pub fn save(&self) -> Result<(), RuntimeError> {
        let (saved, states) = self.saved();
        self.copy(states, saved)
    }

    /// Receives what peers sent ahead for a step that begins again.
    pub fn drop_unread(&mut self) -> Result<(), RuntimeError> {
        let validation = self.bound.program.validation.as_ref().expect("validates");
        validation
            .unread
            .iter()
            .try_for_each(|unread| self.one(unread.block, unread.index, unread.microbatch))
    }

    /// Where the copy of the states lies, and where they do.
    fn saved(&self) -> (Span, Span) {
        let program = &self.bound.program;
        let saved = program.saved();
        // Workspaces lie behind the states of all programs.
        let offset = saved.offset - program.state_bytes + self.executor.programs[0].program.state_bytes;
        (Span { offset, ..saved }, Span { offset: 0, len: saved.len })
    }

    fn copy(&self, from: Span, into: Span) -> Result<(), RuntimeError> {
        let source = self.executor.arena.read(from)?;
        self.executor.arena.write(into)?.as_mut_slice::<u8>().copy_from_slice(source.as_slice());
        Ok(())
    }

    fn bits(&self, id: BufferId) -> Result<u64, RuntimeError> {
        let region = self.executor.read(self.bound, id, 0)?;
        let bytes = region.as_slice::<u8>().iter().rev();
        Ok(bytes.fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

/// For work that reads no batch.
pub(crate) struct NoBatch;

impl Batch for NoBatch {
    fn load(&mut self, input: &str, _: &Tile, _: Destination<'_>) -> Result<(), RuntimeError> {
        Err(RuntimeError::Batch(format!("`{input}` is asked for outside of a step")))
    }
}
