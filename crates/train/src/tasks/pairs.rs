//! What a model of embeddings reads beside tokens: for each row of a batch, whose partners stand beside each other, where
//! to look for the partner, or how alike both are.

use models::PairLoss;

use crate::feed::{Input, Inputs};

/// Added to the score of what is no candidate: `exp` of it is 0 in every type, and every type has it.
const FAR_BELOW: f64 = -1e4;

/// The mean over the tokens of each row.
pub(super) fn insert_means(sources: &[Vec<i32>], seq: usize, inputs: &mut Inputs) {
    let mut select = vec![0.0; sources.len() * seq];
    for (row, source) in sources.iter().enumerate() {
        // A sequence without a token is embedded as its padding.
        let num = source.len().max(1);
        select[row * seq..row * seq + num].fill(1.0 / num as f64);
    }
    inputs.insert("select", Input::Reals(select));
}

/// What the loss of pairs reads. `scores` has an element for each pair, none for padding.
pub(super) fn insert_partners(loss: PairLoss, scores: &[Option<f64>], inputs: &mut Inputs) {
    let num_rows = 2 * scores.len();
    let is_first = |row: usize| row.is_multiple_of(2);
    let weight = |row: usize| f64::from(u8::from(is_first(row) && scores[row / 2].is_some()));
    inputs.insert("weights", Input::Reals((0..num_rows).map(weight).collect()));
    let pairs = (0..num_rows).flat_map(|row| (0..num_rows).map(move |other| (row, other)));
    match loss {
        PairLoss::Ranking { .. } => {
            // Padding has to find itself, for its loss to be finite.
            let is_candidate = |(row, other): (usize, usize)| match scores[row / 2] {
                Some(_) => !is_first(other) && scores[other / 2].is_some(),
                None => row / 2 == other / 2,
            };
            let bias = pairs.map(|pair| if is_candidate(pair) { 0.0 } else { FAR_BELOW });
            inputs.insert("candidates", Input::Reals(bias.collect()));
            inputs.insert("targets", Input::Ints((0..num_rows as i32).map(|row| row | 1).collect(), 0));
        }
        PairLoss::Cosine => {
            let partner = pairs.map(|(row, other)| f64::from(u8::from(other == row ^ 1)));
            inputs.insert("partner", Input::Reals(partner.collect()));
            let negative = (0..num_rows).map(|row| -scores[row / 2].unwrap_or(0.0));
            inputs.insert("negative_scores", Input::Reals(negative.collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::batch::tests::reals;

    #[test]
    fn the_first_of_a_pair_looks_for_its_second_among_all_seconds() {
        let mut inputs = Inputs::new();
        insert_partners(PairLoss::Ranking { scale: 20.0 }, &[Some(0.0), Some(0.0), None], &mut inputs);
        assert_eq!(reals(&inputs, "weights"), [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        let candidates = reals(&inputs, "candidates");
        for row in [0, 2] {
            let seen: Vec<usize> = (0..6).filter(|other| candidates[row * 6 + other] == 0.0).collect();
            assert_eq!(seen, [1, 3]);
        }
        let Input::Ints(targets, _) = &inputs["targets"] else { panic!("targets are integers") };
        assert_eq!(targets, &[1, 1, 3, 3, 5, 5]);
        assert!(targets.iter().enumerate().all(|(row, at)| candidates[row * 6 + *at as usize] == 0.0));
    }

    #[test]
    fn a_pair_with_a_score_looks_at_its_partner() {
        let mut inputs = Inputs::new();
        insert_partners(PairLoss::Cosine, &[Some(0.5), None], &mut inputs);
        assert_eq!(reals(&inputs, "weights"), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(reals(&inputs, "negative_scores"), [-0.5, -0.5, 0.0, 0.0]);
        assert_eq!(reals(&inputs, "partner")[..4], [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_mean_leaves_padding_out() {
        let mut inputs = Inputs::new();
        insert_means(&[vec![3, 4], vec![]], 3, &mut inputs);
        assert_eq!(reals(&inputs, "select"), [0.5, 0.5, 0.0, 1.0, 0.0, 0.0]);
    }
}
