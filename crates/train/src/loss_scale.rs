//! Dynamic loss scaling for half precision. What an overflow is, the Program says; here is what follows from it.

use serde::{Deserialize, Serialize};

/// The factor on the loss before the backward.
const FIRST: f64 = 65536.0;
/// Its growth after [`INTERVAL`] updates in a row.
const GROWTH: f64 = 2.0;
/// Its change after an overflow.
const BACKOFF: f64 = 0.5;
/// Updates without overflow before the scale grows.
const INTERVAL: u32 = 2000;
/// Below this there is no use in halving on: the gradients themselves are beyond the type.
const LEAST: f64 = 1.0 / 16384.0;

/// The scale and what decides its next change; the same on every rank, because overflow is decided over all.
///
/// # Source
/// Micikevicius et al., 2018, section 3.2.1, with the constants of PyTorch's `GradScaler`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The present factor.
    pub scale: f64,
    /// Updates since it last changed.
    pub clean_updates: u32,
    /// Steps skipped so far: they advance neither the optimizer's count nor the learning rate.
    pub skipped_steps: u64,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { scale: FIRST, clean_updates: 0, skipped_steps: 0 }
    }
}

impl LossScale {
    /// What the loss summed over tokens is multiplied by, for a step of `num_tokens` at most: scales are meant for mean
    /// losses, and how many tokens are unmasked shows only after the backward.
    pub fn factor(&self, num_tokens: usize) -> f64 {
        self.scale / num_tokens as f64
    }

    /// What a finished step changes.
    pub fn after(&mut self, overflowed: bool) {
        if overflowed {
            self.scale *= BACKOFF;
            self.clean_updates = 0;
            self.skipped_steps += 1;
            return;
        }
        self.clean_updates += 1;
        if self.clean_updates == INTERVAL {
            self.scale *= GROWTH;
            self.clean_updates = 0;
        }
    }

    /// Whether halving can still help.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.scale < LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_rule() {
        let mut scale = LossScale::default();
        let mut seen = vec![];
        for step in 0..6003 {
            scale.after([5, 2100].contains(&step));
            if seen.last() != Some(&(scale.scale, scale.skipped_steps)) {
                seen.push((scale.scale, scale.skipped_steps));
            }
        }
        // Halved at 5 and 2100, doubled after 2000 clean updates each: at 2005, 4100 and 6100 (not reached).
        assert_eq!(seen, [(65536.0, 0), (32768.0, 1), (65536.0, 1), (32768.0, 2), (65536.0, 2)]);
        assert_eq!(scale.clean_updates, 6003 - 4101);
    }
}
