//! Progress of a run on stderr: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use phalanx::{EvaluationReport, Event, Prepared, StepReport};

use crate::output;

/// Plain lines in a run, about.
const LINES: u64 = 20;
/// Weight of the newest step in the speed that is shown.
const NEWEST: f64 = 0.2;

/// Shows a run's events.
pub struct Progress {
    on_terminal: bool,
    state: Mutex<State>,
}

struct State {
    bar: Option<ProgressBar>,
    first_step: u64,
    steps: u64,
    started: Instant,
    tokens_per_second: f64,
}

impl Progress {
    /// On stderr.
    pub fn new() -> Progress {
        let state =
            State { bar: None, first_step: 1, steps: 0, started: Instant::now(), tokens_per_second: 0.0 };
        Progress { on_terminal: std::io::stderr().is_terminal(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what happened.
    pub fn event(&self, event: &Event<'_>) {
        let mut state = self.state();
        match event {
            Event::Prepared(prepared) => self.prepared(&mut state, prepared),
            Event::Step(step) => state.step(step),
            Event::Evaluation(evaluation) => state.say(&format!(
                "step {}: held-out loss {:.4}{}",
                evaluation.step,
                evaluation.validation_loss,
                scores(evaluation)
            )),
            Event::Checkpoint { step, dir, seconds } => {
                state.say(&format!("step {step}: checkpoint {} ({seconds:.2} s)", dir.display()));
            }
            _ => {}
        }
    }

    fn prepared(&self, state: &mut State, prepared: &Prepared) {
        let arenas: u64 = prepared.arena_bytes.iter().sum();
        let plural = if prepared.world_size == 1 { "rank" } else { "ranks" };
        state.say(&format!(
            "{} parameters, vocabulary {}, on {} {plural} ({}); arenas {:.1} MiB",
            prepared.num_parameters,
            prepared.vocab_size,
            prepared.world_size,
            prepared.layout,
            arenas as f64 / f64::from(1 << 20)
        ));
        let new = &prepared.new_parameters;
        if !new.is_empty() {
            state.say(&format!(
                "{} parameters are not in the directory and start anew: {}",
                new.len(),
                new.join(", ")
            ));
        }
        state.say(&format!(
            "{} {} to train on, {} held out; run {} ({:.1} s to prepare)",
            prepared.train_tokens,
            if prepared.task == "causal-lm" { "tokens" } else { "examples" },
            prepared.heldout_tokens,
            prepared.run_dir.display(),
            prepared.seconds
        ));
        (state.first_step, state.steps, state.started) =
            (prepared.first_step, prepared.steps, Instant::now());
        if self.on_terminal {
            let bar = ProgressBar::with_draw_target(Some(prepared.steps), ProgressDrawTarget::stderr());
            let template = "{bar:30.cyan/blue} {pos}/{len} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_position(prepared.first_step.saturating_sub(1));
            state.bar = Some(bar);
        }
    }

    /// Takes the bar away, after success and failure alike.
    pub fn finish(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// The metrics of an evaluation in words.
pub fn scores(evaluation: &EvaluationReport) -> String {
    let bits = evaluation.bits_per_byte.map(|bits| format!(", {bits:.4} bits per byte"));
    // A text's perplexity says what its bits per byte say.
    let metrics = evaluation.metrics.iter().filter(|_| bits.is_none());
    let metrics = metrics.map(|(name, value)| {
        let baseline = evaluation.baseline.as_ref().and_then(|baseline| baseline.metrics.get(name));
        format!(", {name} {value:.4}{}", baseline.map_or(String::new(), |b| format!(" (baseline {b:.4})")))
    });
    bits.clone().into_iter().chain(metrics).collect()
}

impl State {
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn step(&mut self, step: &StepReport) {
        let is_first = step.step == self.first_step;
        let weight = if is_first { 1.0 } else { NEWEST };
        self.tokens_per_second += weight * (step.tokens_per_second - self.tokens_per_second);
        let left = left_seconds(self.started.elapsed().as_secs_f64(), self.first_step, step.step, self.steps);
        let speed = self.tokens_per_second;
        match &self.bar {
            Some(bar) => {
                bar.set_position(step.step);
                bar.set_message(format!(
                    "loss {:.4}, {speed:.0} tokens/s, {} left",
                    step.loss,
                    duration(left)
                ));
            }
            None if is_first || step.step == self.steps || step.step.is_multiple_of(interval(self.steps)) => {
                output::note(&format!(
                    "step {}/{}: loss {:.4}, gradient norm {:.3}, lr {:.2e}, {speed:.0} tokens/s, {} left",
                    step.step,
                    self.steps,
                    step.loss,
                    step.grad_norm,
                    step.lr,
                    duration(left)
                ));
            }
            None => {}
        }
    }
}

/// Steps between plain lines.
fn interval(steps: u64) -> u64 {
    steps.div_ceil(LINES).max(1)
}

/// Time left, if steps go on as they went.
fn left_seconds(elapsed: f64, first: u64, now: u64, last: u64) -> f64 {
    let done = (now + 1).saturating_sub(first).max(1) as f64;
    elapsed / done * last.saturating_sub(now) as f64
}

/// `12 s`, `2 min 41 s`, `1 h 02 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=59 => format!("{whole} s"),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!([0.4, 12.0, 161.0, 3720.0].map(duration), ["0 s", "12 s", "2 min 41 s", "1 h 02 min"]);
        assert_eq!(left_seconds(10.0, 1, 5, 10), 10.0);
        assert_eq!(left_seconds(10.0, 101, 105, 110), 10.0);
        assert_eq!((interval(300), interval(1), interval(21)), (15, 1, 2));
    }
}
