//! What to generate, and which settings go together.

use super::beams::EarlyStopping;
use crate::config::Precision;
use crate::error::TrainError;

/// Largest number of beams and of tokens: beyond them, sizes of caches might leave 64 bits.
const MAX_BEAMS: usize = 1 << 10;
const MAX_TOKENS: usize = 1 << 20;

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Texts to continue.
    pub prompts: Vec<String>,
    /// Tokens to write at most, behind each.
    pub tokens: usize,
    /// 0 always takes the likeliest token; above, scores are divided by it and a token is drawn.
    pub temperature: f64,
    /// Draw from the likeliest tokens only: as many.
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens only: the fewest that together have this probability.
    pub top_p: Option<f64>,
    /// Makes tokens that the text has already less likely; 1 is none (Keskar et al., 2019).
    pub repetition_penalty: f64,
    /// Continuations that are kept at once; 1 is no beam search.
    pub beams: usize,
    /// Scores of beams are divided by their length to this power: above 0 prefers long ones.
    pub length_penalty: f64,
    /// When a beam search is over.
    pub early_stopping: EarlyStopping,
    /// Beams to return.
    pub best: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// Layout, instead of the one that trained the model: `tp=2,pp=2`.
    pub mesh: Option<String>,
    /// Instead of the run's own, or of f32 for a Hugging Face directory.
    pub precision: Option<Precision>,
    /// Tokens of which each ends a text, instead of the model's own.
    pub ends: Option<Vec<u32>>,
    /// Keep keys and values from token to token. Without, each token computes everything anew: to check and to measure.
    pub cache: bool,
}

impl Default for GenerateOptions {
    /// Up to 64 of the likeliest tokens behind no prompt.
    fn default() -> GenerateOptions {
        GenerateOptions {
            prompts: vec![],
            tokens: 64,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Estimate,
            best: 1,
            seed: 0,
            mesh: None,
            precision: None,
            ends: None,
            cache: true,
        }
    }
}

impl GenerateOptions {
    /// Refuses what is out of range and what has no meaning together.
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let refuse =
            |place: String, problem: &str| Err(TrainError::Generate { place, problem: problem.to_owned() });
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(format!("--temperature {}", self.temperature), "it must be at least 0");
        }
        if self.top_k == Some(0) {
            return refuse(
                "--top-k 0".to_owned(),
                "it must be at least 1; leave it out to draw from all tokens",
            );
        }
        if let Some(p) = self.top_p.filter(|p| !(positive(*p) && *p <= 1.0)) {
            return refuse(format!("--top-p {p}"), "it must be above 0 and at most 1");
        }
        if !positive(self.repetition_penalty) {
            let place = format!("--repetition-penalty {}", self.repetition_penalty);
            return refuse(place, "it must be above 0; 1 is no penalty");
        }
        if !self.length_penalty.is_finite() {
            return refuse(format!("--length-penalty {}", self.length_penalty), "it must be a number");
        }
        if !(1..=MAX_BEAMS).contains(&self.beams) {
            let problem = format!("it must be from 1, which is no beam search, to {MAX_BEAMS}");
            return refuse(format!("--beams {}", self.beams), &problem);
        }
        if self.tokens > MAX_TOKENS {
            let problem = format!("it must be at most {MAX_TOKENS}; write on from what was written");
            return refuse(format!("--tokens {}", self.tokens), &problem);
        }
        if self.best == 0 || self.best > self.beams {
            let problem = format!("it must be from 1 to --beams {}", self.beams);
            return refuse(format!("--best {}", self.best), &problem);
        }
        if self.beams > 1 {
            let draws = [
                ("--temperature", self.temperature > 0.0),
                ("--top-k", self.top_k.is_some()),
                ("--top-p", self.top_p.is_some()),
            ];
            if let Some((option, _)) = draws.iter().find(|(_, given)| *given) {
                let problem =
                    format!("beams keep the likeliest texts and draw nothing; leave {option} or --beams out");
                return refuse(format!("--beams {} with {option}", self.beams), &problem);
            }
            return Ok(());
        }
        let of_beams = [
            ("--length-penalty", self.length_penalty != 1.0),
            ("--early-stopping", self.early_stopping != EarlyStopping::Estimate),
        ];
        match of_beams.iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                refuse(option.to_string(), "it is a setting of beam search; give --beams 2 or more with it")
            }
            None => Ok(()),
        }
    }
}
