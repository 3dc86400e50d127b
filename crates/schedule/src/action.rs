//! One action of a pipeline and its text form (PyTorch's). What order actions may take is in `check`.

use std::fmt;
use std::str::FromStr;

use crate::ScheduleError;

/// What an action does with its chunk. `B` is `I` and `W` in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `F`: the forward pass.
    Forward,
    /// `I`: the gradient of the stage's input, which the stage before waits for.
    BackwardInput,
    /// `W`: the gradients of the stage's weights, which nobody waits for.
    BackwardWeight,
    /// `B`: `I` and `W` together.
    Backward,
}

impl Kind {
    /// Every kind, in the order of [`Kind::index`].
    pub const ALL: [Kind; 4] = [Kind::Forward, Kind::BackwardInput, Kind::BackwardWeight, Kind::Backward];

    /// The letter of PyTorch's form.
    pub fn letter(self) -> char {
        match self {
            Kind::Forward => 'F',
            Kind::BackwardInput => 'I',
            Kind::BackwardWeight => 'W',
            Kind::Backward => 'B',
        }
    }

    /// Position in [`Kind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether this is `I`, `W` or `B`.
    pub fn is_backward(self) -> bool {
        self != Kind::Forward
    }
}

/// One action: a kind on one microbatch of one stage (a global id; also called chunk).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Action {
    /// What is done.
    pub kind: Kind,
    /// Global stage id, counted along the model from 0.
    pub stage: usize,
    /// Microbatch, counted from 0.
    pub microbatch: usize,
}

impl Action {
    /// An action of any kind.
    pub fn new(kind: Kind, stage: usize, microbatch: usize) -> Action {
        Action { kind, stage, microbatch }
    }

    /// `F` of `microbatch` on `stage`.
    pub fn forward(stage: usize, microbatch: usize) -> Action {
        Action::new(Kind::Forward, stage, microbatch)
    }

    /// `I` of `microbatch` on `stage`.
    pub fn backward_input(stage: usize, microbatch: usize) -> Action {
        Action::new(Kind::BackwardInput, stage, microbatch)
    }

    /// `W` of `microbatch` on `stage`.
    pub fn backward_weight(stage: usize, microbatch: usize) -> Action {
        Action::new(Kind::BackwardWeight, stage, microbatch)
    }

    /// `B` of `microbatch` on `stage`.
    pub fn backward(stage: usize, microbatch: usize) -> Action {
        Action::new(Kind::Backward, stage, microbatch)
    }

    /// A number for each action of a schedule, dense from 0.
    pub(crate) fn place(self, num_microbatches: usize) -> usize {
        (self.stage * num_microbatches + self.microbatch) * Kind::ALL.len() + self.kind.index()
    }
}

/// PyTorch's form, stage first: `2F0`, `1I3`, `0W3`, `0B7`.
impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}{}", self.stage, self.kind.letter(), self.microbatch)
    }
}

impl FromStr for Action {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Action, ScheduleError> {
        let refuse = || ScheduleError::BadAction { text: text.to_string() };
        let at = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(refuse)?;
        let (stage, rest) = text.split_at(at);
        let letter = rest.chars().next().ok_or_else(refuse)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.letter() == letter).ok_or_else(refuse)?;
        let microbatch = &rest[letter.len_utf8()..];
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(stage) || !digits(microbatch) {
            return Err(refuse());
        }
        let number = |part: &str| part.parse::<usize>().map_err(|_| refuse());
        Ok(Action { kind, stage: number(stage)?, microbatch: number(microbatch)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for kind in Kind::ALL {
            let action = Action::new(kind, 12, 305);
            assert_eq!(action.to_string().parse::<Action>().unwrap(), action);
            assert_eq!(Kind::ALL[kind.index()], kind);
        }
        assert_eq!("2F0".parse::<Action>().unwrap(), Action::forward(2, 0));
        assert_eq!("1I3".parse::<Action>().unwrap(), Action::backward_input(1, 3));
        assert_eq!("0W3".parse::<Action>().unwrap(), Action::backward_weight(0, 3));
        assert_eq!("0B7".parse::<Action>().unwrap(), Action::backward(0, 7));
    }

    #[test]
    fn refuses_other_text() {
        let other = [
            "",
            "F",
            "1F",
            "F1",
            "1X2",
            "1F2x",
            "1é2",
            "-1F0",
            "1F+2",
            "99999999999999999999999F0",
            "0SEND_F1",
        ];
        for text in other {
            assert!(matches!(text.parse::<Action>(), Err(ScheduleError::BadAction { .. })), "{text}");
        }
    }
}
