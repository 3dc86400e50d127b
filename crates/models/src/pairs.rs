//! What embeddings of pairs learn: that both of a pair lie close. The rows of a batch are first and second of each pair by
//! turns, so that one pass of the encoder reads both.

use graph::{Dim, Graph, Op, ValueId, ValueType};

use crate::parts::{self, Dims};
use crate::task::{Loss, loss};

/// How the embeddings of pairs are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PairLoss {
    /// The first of a pair has to find its second among those of the whole batch: cross-entropy over all cosines times
    /// `scale` (Henderson et al., 2017; `MultipleNegativesRankingLoss` of sentence-transformers).
    Ranking {
        /// Factor on cosines before softmax.
        scale: f64,
    },
    /// The cosine of a pair is to be its score: squared error (`CosineSimilarityLoss` of sentence-transformers).
    Cosine,
}

impl PairLoss {
    /// The loss of `embeddings` `[batch, embed]` of length 1. The second axis of their cosines is a dim that nothing
    /// splits, so a plan gathers the embeddings there, and sums what comes back.
    ///
    /// Inputs of `Ranking`: `targets` and `weights` `[batch]`, and `candidates` `[batch, others]`, which is 0 where a row may
    /// be found and far below elsewhere. Of `Cosine`: `partner` `[batch, others]` with 1 at the row's partner,
    /// `negative_scores` and `weights` `[batch]`.
    pub(crate) fn write(self, g: &mut Graph, d: &Dims, embeddings: ValueId) -> Loss {
        let others = g.dim("others", g.dim_info(d.batch).size);
        let pairs = [d.batch, others];
        let reals = |g: &mut Graph, name: &str, dims: &[Dim]| g.input(name, dims, ValueType::Float);
        let cosines = |g: &mut Graph| {
            let all = g.rename("all", embeddings, d.batch, others);
            g.contract("cosines", embeddings, all, &pairs)
        };
        match self {
            PairLoss::Ranking { scale } => {
                let candidates = reals(g, "candidates", &pairs);
                let scores = g.scoped("pairs", |g| {
                    let cosines = cosines(g);
                    let scaled = parts::scaled(g, cosines, scale);
                    g.add("scores", &[scaled, candidates])
                });
                loss(g, scores)
            }
            PairLoss::Cosine => {
                let partner = reals(g, "partner", &pairs);
                let negative_scores = reals(g, "negative_scores", &[d.batch]);
                let weights = reals(g, "weights", &[d.batch]);
                g.scoped("pairs", |g| {
                    let cosines = cosines(g);
                    let cosine = g.weighted_sum("cosine", cosines, partner);
                    let error = g.add("error", &[cosine, negative_scores]);
                    let squared = g.elementwise(Op::Multiply, "squared", &[error, error]);
                    let nll = g.elementwise(Op::Multiply, "weighted", &[squared, weights]);
                    Loss { nll, sum: g.sum("sum", nll, &[]), num_tokens: g.sum("num_tokens", weights, &[]) }
                })
            }
        }
    }
}
