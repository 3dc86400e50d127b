//! Which pipeline rank holds which stage, as data. What a rank does with its stages is in `generate`.

/// How stages are laid over pipeline ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Placement {
    /// Consecutive stages share a rank: `0 0 1 1 2 2`.
    Linear,
    /// Round and round: `0 1 2 0 1 2`.
    Loop,
    /// Down and up again: `0 1 2 2 1 0`. The first and the last stage share a rank.
    V,
}

impl Placement {
    /// The pipeline rank of each of `num_ranks * chunks` stages.
    pub fn ranks(self, num_ranks: usize, chunks: usize) -> Vec<usize> {
        let rank = |stage: usize| match self {
            Placement::Linear => stage / chunks,
            Placement::V if (stage / num_ranks) % 2 == 1 => num_ranks - 1 - stage % num_ranks,
            Placement::Loop | Placement::V => stage % num_ranks,
        };
        (0..num_ranks * chunks).map(rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_holds_as_many_stages() {
        assert_eq!(Placement::Linear.ranks(3, 2), [0, 0, 1, 1, 2, 2]);
        assert_eq!(Placement::Loop.ranks(3, 2), [0, 1, 2, 0, 1, 2]);
        assert_eq!(Placement::V.ranks(3, 2), [0, 1, 2, 2, 1, 0]);
        assert_eq!(Placement::V.ranks(2, 4), [0, 1, 1, 0, 0, 1, 1, 0]);
        for placement in [Placement::Linear, Placement::Loop, Placement::V] {
            assert_eq!(placement.ranks(4, 1), [0, 1, 2, 3]);
        }
    }
}
