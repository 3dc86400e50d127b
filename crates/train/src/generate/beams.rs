//! Beam search behind one prompt: which continuations are kept, which are finished, and when nothing better can come.
//!
//! Source: `transformers` 5 (`GenerationMixin._beam_search`), whose outputs these are, choice for choice.

use std::str::FromStr;

use super::choose::best;

/// When a beam search is over, before the tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When there are as many finished texts as beams and the best running one, at its present length, is worse than all.
    Estimate,
    /// When there are as many finished texts as beams.
    Always,
    /// When no running text can become better than the worst finished one, however long it grows.
    Never,
}

impl FromStr for EarlyStopping {
    type Err = String;

    fn from_str(name: &str) -> Result<EarlyStopping, String> {
        match name {
            "estimate" => Ok(EarlyStopping::Estimate),
            "always" => Ok(EarlyStopping::Always),
            "never" => Ok(EarlyStopping::Never),
            _ => Err(format!("`{name}` is none; it is estimate, always or never")),
        }
    }
}

/// What a search goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    pub beams: usize,
    pub length_penalty: f64,
    pub early_stopping: EarlyStopping,
    /// Tokens of which each ends a text.
    pub ends: &'a [u32],
    /// Tokens to write at most.
    pub tokens: usize,
}

impl Rules<'_> {
    /// Candidates of a step: enough that as many as beams are left when others end.
    pub fn candidates(&self) -> usize {
        (1 + self.ends.len()).max(2) * self.beams
    }
}

/// A continuation that runs on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Running {
    pub tokens: Vec<u32>,
    /// Log probability.
    pub score: f64,
    /// The beam of the step before that it continues.
    pub parent: usize,
}

/// The search behind one prompt.
#[derive(Debug)]
pub(super) struct BeamSearch {
    running: Vec<Running>,
    /// Finished texts and their scores by length, best first.
    finished: Vec<(f64, Vec<u32>)>,
    over: bool,
}

impl BeamSearch {
    /// Nothing is written yet.
    pub fn new() -> BeamSearch {
        let nothing = Running { tokens: vec![], score: 0.0, parent: 0 };
        BeamSearch { running: vec![nothing], finished: vec![], over: false }
    }

    /// The continuations that need scores, in the order in which `advance` takes them; none when the search is over.
    pub fn running(&self) -> &[Running] {
        if self.over { &[] } else { &self.running }
    }

    /// Goes on by one token, given log probabilities of all tokens behind each running continuation.
    pub fn advance(&mut self, log_probabilities: &[Vec<f64>], rules: &Rules<'_>) {
        if self.over {
            return;
        }
        let scored =
            self.running.iter().zip(log_probabilities).enumerate().flat_map(|(beam, (running, all))| {
                all.iter().enumerate().map(move |(token, p)| (running.score + p, (beam, token as u32)))
            });
        let candidates = best(scored, rules.candidates());
        let length = self.running[0].tokens.len() + 1;
        let ends = |token: &u32| length == rules.tokens || rules.ends.contains(token);
        let tokens = |beam: usize, token: u32| [&self.running[beam].tokens[..], &[token]].concat();
        let (full, divisor) = (rules.beams, (length as f64).powf(rules.length_penalty));
        // Only the best count as finished; the others are there to go on with.
        let ended = candidates.iter().take(full).filter(|(_, (_, token))| ends(token));
        let ended = ended.map(|(score, (beam, token))| (score / divisor, tokens(*beam, *token)));
        self.finished.extend(ended);
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(full);
        let goes_on = candidates.iter().filter(|(_, (_, token))| !ends(token)).take(full);
        self.running = goes_on
            .map(|(score, (parent, token))| Running {
                tokens: tokens(*parent, *token),
                score: *score,
                parent: *parent,
            })
            .collect();
        self.over = self.is_over(length, rules);
    }

    fn is_over(&self, length: usize, rules: &Rules<'_>) -> bool {
        let Some(first) = self.running.first() else { return true };
        if self.finished.len() < rules.beams {
            return false;
        }
        let hoped_for = match rules.early_stopping {
            EarlyStopping::Always => return true,
            EarlyStopping::Never if rules.length_penalty > 0.0 => rules.tokens,
            _ => length,
        };
        let best_possible = first.score / (hoped_for as f64).powf(rules.length_penalty);
        self.finished.last().is_some_and(|(worst, _)| best_possible <= *worst)
    }

    /// The best finished texts and their scores.
    pub fn into_best(self, count: usize) -> impl Iterator<Item = (f64, Vec<u32>)> {
        self.finished.into_iter().take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 0;

    /// Runs a search whose next token depends on the last one alone.
    fn search(table: &[[f64; 3]], rules: &Rules<'_>) -> Vec<(f64, Vec<u32>)> {
        let mut search = BeamSearch::new();
        while !search.running().is_empty() {
            let row = |r: &Running| table[r.tokens.last().map_or(0, |t| *t as usize)].map(f64::ln).to_vec();
            let scores: Vec<Vec<f64>> = search.running().iter().map(row).collect();
            search.advance(&scores, rules);
        }
        search.into_best(rules.beams).collect()
    }

    fn rules(beams: usize, early_stopping: EarlyStopping, length_penalty: f64) -> Rules<'static> {
        Rules { beams, length_penalty, early_stopping, ends: &[END], tokens: 4 }
    }

    /// All texts of at most `tokens` tokens, by score.
    fn exhaustive(table: &[[f64; 3]], rules: &Rules<'_>) -> Vec<(f64, Vec<u32>)> {
        let (mut open, mut all) = (vec![(0.0, vec![])], vec![]);
        while let Some((score, tokens)) = open.pop() {
            let last = tokens.last().map_or(0, |t: &u32| *t as usize);
            for (token, p) in table[last].iter().enumerate() {
                let text = ([&tokens[..], &[token as u32]].concat(), score + p.ln());
                if token as u32 == END || text.0.len() == rules.tokens {
                    all.push((text.1 / (text.0.len() as f64).powf(rules.length_penalty), text.0));
                } else {
                    open.push((text.1, text.0));
                }
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        all
    }

    const TABLE: [[f64; 3]; 3] = [[0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.85, 0.05, 0.1]];

    #[test]
    fn wide_beams_that_never_stop_early_find_the_best() {
        for length_penalty in [0.0, 1.0] {
            let rules = rules(8, EarlyStopping::Never, length_penalty);
            let (found, all) = (search(&TABLE, &rules), exhaustive(&TABLE, &rules));
            assert_eq!(found[0].1, all[0].1);
            assert!((found[0].0 - all[0].0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_narrow_beam_sees_what_greedy_does_not() {
        // Greedy begins with 1, the best text is 2, end.
        let found = search(&TABLE, &rules(2, EarlyStopping::Never, 0.0));
        assert_eq!(found[0].1, [2, END]);
        assert!((found[0].0 - (0.4f64 * 0.85).ln()).abs() < 1e-12);
    }

    #[test]
    fn ends_among_the_best_leave_as_many_beams_running() {
        let running = |ends: &[u32], steps: &[&[&[f64]]]| {
            let rules = Rules { ends, tokens: 8, ..rules(2, EarlyStopping::Never, 1.0) };
            let mut search = BeamSearch::new();
            for rows in steps {
                let log_probabilities = rows.iter().map(|row| row.iter().map(|p| p.ln()).collect());
                search.advance(&log_probabilities.collect::<Vec<_>>(), &rules);
            }
            search.running().iter().map(|r| (r.tokens.clone(), r.parent)).collect::<Vec<_>>()
        };
        // The end is the best token behind everything.
        let first: &[&[f64]] = &[&[0.5, 0.3, 0.2]];
        assert_eq!(running(&[END], &[first]), [(vec![1], 0), (vec![2], 0)]);
        let second: &[&[f64]] = &[&[0.6, 0.3, 0.1], &[0.6, 0.25, 0.15]];
        assert_eq!(running(&[END], &[first, second]), [(vec![1, 1], 0), (vec![2, 1], 1)]);
        // Two ends are best behind both beams: four of the best five candidates end, and the sixth goes on.
        let first: &[&[f64]] = &[&[0.4, 0.3, 0.2, 0.1]];
        assert_eq!(running(&[0, 1], &[first]), [(vec![2], 0), (vec![3], 0)]);
        let second: &[&[f64]] = &[&[0.4, 0.3, 0.2, 0.1], &[0.5, 0.35, 0.1, 0.05]];
        assert_eq!(running(&[0, 1], &[first, second]), [(vec![2, 2], 0), (vec![2, 3], 0)]);
    }

    #[test]
    fn stopping_early_keeps_what_came_first() {
        let always = search(&TABLE, &rules(2, EarlyStopping::Always, 1.0));
        assert!(always.iter().all(|(_, tokens)| tokens.len() <= 3), "{always:?}");
        assert_eq!(always.len(), 2);
    }
}
