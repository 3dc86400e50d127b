//! What can be wrong with a schedule or with a request for one. Messages only; the tests for each
//! fault are where the fault is found.

use crate::{Action, Kind, Step};

/// What is wrong with a schedule, a request for one, or its text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// No generator has this name.
    #[error("unknown schedule `{name}`; did you mean `{nearest}`? Known: {}", known.join(", "))]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The known name nearest to it.
        nearest: &'static str,
        /// Every known name.
        known: Vec<&'static str>,
    },
    /// A count that must be positive is zero.
    #[error("{what} is 0; a schedule needs at least 1")]
    ZeroCount {
        /// The count: `num_ranks`, `num_stages`, `num_microbatches` or `chunks`.
        what: &'static str,
    },
    /// The generator has another number of stages per rank.
    #[error(
        "schedule `{name}` has {} per pipeline rank, not chunks = {chunks}; set chunks = {needed}",
        if *needed == 1 { "one stage".to_string() } else { format!("{needed} stages") }
    )]
    Chunks {
        /// The schedule's name.
        name: String,
        /// The chunks asked for.
        chunks: usize,
        /// The chunks it has.
        needed: usize,
    },
    /// A schedule that was read is of other counts than the run.
    #[error(
        "schedule `{name}` is of {} pipeline ranks, {} microbatches and {} stages on each rank, not of mesh.pp = {}, num_microbatches = {} and chunks = {}; set these to its own",
        has[0], has[1], has[2], asked[0], asked[1], asked[2]
    )]
    OtherCounts {
        /// The schedule's name.
        name: String,
        /// Its pipeline ranks, microbatches and stages per rank.
        has: [usize; 3],
        /// Those asked for.
        asked: [usize; 3],
    },
    /// A schedule has more stages on one pipeline rank than on another.
    #[error(
        "schedule `{name}` has {stages} stages on rank {rank} and {first} on rank 0; to train, every rank has as many"
    )]
    UnevenRanks {
        /// The schedule's name.
        name: String,
        /// The rank.
        rank: usize,
        /// Its stages.
        stages: usize,
        /// Those of rank 0.
        first: usize,
    },
    /// Microbatches do not come in rounds of one per rank.
    #[error(
        "schedule `{name}` takes microbatches in rounds of {num_ranks}, one per pipeline rank, and {num_microbatches} is no multiple of it; use {} or {} microbatches, or schedule `looped` or `auto`",
        (num_microbatches / num_ranks).max(1) * num_ranks,
        (num_microbatches / num_ranks + 1) * num_ranks
    )]
    Rounds {
        /// The schedule's name.
        name: String,
        /// Number of pipeline ranks.
        num_ranks: usize,
        /// Microbatches asked for.
        num_microbatches: usize,
    },
    /// No order at all fits under the cap on live chunks.
    #[error(
        "a memory cap of {cap} live chunks is too small for {chunks} stages per pipeline rank; allow at least {chunks}"
    )]
    CapTooSmall {
        /// The cap asked for.
        cap: usize,
        /// Stages per rank.
        chunks: usize,
    },
    /// A rank holds more live chunks than allowed.
    #[error(
        "rank {rank} holds {live} live chunks from `{action}` on, more than the cap of {cap}; raise the cap or use schedule `auto`"
    )]
    OverCap {
        /// The rank.
        rank: usize,
        /// The forward that is one too many.
        action: Action,
        /// Live chunks with it.
        live: usize,
        /// The cap.
        cap: usize,
    },
    /// An overlapped pair is not a forward and a backward.
    #[error(
        "the overlapped pair at rank {rank}, position {position} is no `F` followed by a backward of another chunk, or shares an action with another pair; pairs are in order, as (2F5;5B2)OVERLAP_F_B"
    )]
    Overlap {
        /// The rank.
        rank: usize,
        /// Position of the pair's first action, counted from 0.
        position: usize,
    },
    /// More actions than this crate will hold.
    #[error(
        "{num_stages} stages times {num_microbatches} microbatches is more than {limit} actions; use fewer"
    )]
    TooLarge {
        /// Stages asked for.
        num_stages: usize,
        /// Microbatches asked for.
        num_microbatches: usize,
        /// Largest number of actions.
        limit: usize,
    },
    /// `placement` or `ranks` does not have the length that the counts say.
    #[error("`{what}` has {found} entries, not {expected}")]
    Length {
        /// The field.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length the counts ask for.
        expected: usize,
    },
    /// A stage is placed on a rank that does not exist.
    #[error("stage {stage} is placed on rank {rank}, but there are {num_ranks} ranks")]
    Placement {
        /// The stage.
        stage: usize,
        /// Its rank.
        rank: usize,
        /// Number of pipeline ranks.
        num_ranks: usize,
    },
    /// A pipeline rank holds no stage.
    #[error("rank {rank} holds no stage; use fewer ranks or more stages")]
    IdleRank {
        /// The rank.
        rank: usize,
    },
    /// An action names a stage or a microbatch that does not exist.
    #[error(
        "`{action}` on rank {rank} is outside of {num_stages} stages and {num_microbatches} microbatches (counted from 0)"
    )]
    OutOfRange {
        /// The action.
        action: Action,
        /// The rank that lists it.
        rank: usize,
        /// Number of stages.
        num_stages: usize,
        /// Number of microbatches.
        num_microbatches: usize,
    },
    /// An action is listed on a rank that does not hold its stage.
    #[error("`{action}` is listed on rank {rank}, but stage {} is on rank {expected}", action.stage)]
    WrongRank {
        /// The action.
        action: Action,
        /// The rank that lists it.
        rank: usize,
        /// The rank that holds its stage.
        expected: usize,
    },
    /// An action is listed twice.
    #[error("`{action}` is listed {count} times on rank {rank}; once is right")]
    Repeated {
        /// The action.
        action: Action,
        /// The rank that lists it.
        rank: usize,
        /// How many times.
        count: usize,
    },
    /// An action is not listed.
    #[error("`{action}` is missing from rank {rank}")]
    Missing {
        /// The action.
        action: Action,
        /// The rank that should list it.
        rank: usize,
    },
    /// A microbatch has both a whole backward and a part of one.
    #[error(
        "stage {stage}, microbatch {microbatch} has both `B` and `{}`; `B` is `I` and `W` in one",
        part.letter()
    )]
    BackwardTwice {
        /// The stage.
        stage: usize,
        /// The microbatch.
        microbatch: usize,
        /// The part listed besides `B`.
        part: Kind,
    },
    /// An action comes before one that it needs, on the same rank.
    #[error("rank {rank} lists `{later}` before `{earlier}`, which it needs; list `{earlier}` first")]
    Order {
        /// The rank.
        rank: usize,
        /// The action listed first, wrongly.
        later: Action,
        /// The action it needs.
        earlier: Action,
    },
    /// Weight gradients of a stage are not accumulated in microbatch order.
    #[error(
        "rank {rank} lists `{later}` before `{earlier}`; a stage's weight gradients accumulate in microbatch order, so that every schedule gives the same bits"
    )]
    WeightOrder {
        /// The rank.
        rank: usize,
        /// The action listed first, wrongly.
        later: Action,
        /// The action of an earlier microbatch.
        earlier: Action,
    },
    /// Program order and data edges form a cycle: the ranks would wait for each other for ever.
    #[error("deadlock: {}; reorder one of these ranks", show_actions(cycle))]
    Cycle {
        /// The cycle: each action waits for the one before it, the first for the last.
        cycle: Vec<Action>,
    },
    /// A step stands before one that it needs.
    #[error(
        "rank {rank}, step {position}: `{step}` comes without `{needed}` before it; put `{needed}` there"
    )]
    Transfer {
        /// The rank.
        rank: usize,
        /// Position of the step, counted from 0.
        position: usize,
        /// The step.
        step: Step,
        /// What is missing before it.
        needed: Step,
    },
    /// What one rank sends another is not what that one receives.
    #[error(
        "from rank {from} to rank {to}, value {position} (counted from 0): sent is {}, received is {}; use one order on both",
        show_value(sent),
        show_value(received)
    )]
    Mismatch {
        /// The sending rank.
        from: usize,
        /// The receiving rank.
        to: usize,
        /// Which value on this channel, counted from 0.
        position: usize,
        /// What is sent.
        sent: Option<Action>,
        /// What is received.
        received: Option<Action>,
    },
    /// Ranks wait for each other's transfers for ever.
    #[error(
        "deadlock of transfers with room for {capacity} values on a channel: {}; reorder one of these ranks",
        show_steps(cycle)
    )]
    TransferCycle {
        /// Values that may be under way on a channel.
        capacity: usize,
        /// The cycle: each rank waits in its step for the next rank, the last for the first.
        cycle: Vec<(usize, Step)>,
    },
    /// Text that is no action.
    #[error("`{text}` is no action; write stage, one of F I W B, microbatch, as in `2F0`")]
    BadAction {
        /// The text.
        text: String,
    },
    /// A CSV cell that is no action.
    #[error(
        "line {line}, cell {cell}: `{text}` is no action; write stage, one of F I W B, microbatch, as in `2F0`"
    )]
    BadCell {
        /// Line, counted from 1.
        line: usize,
        /// Cell in the line, counted from 1.
        cell: usize,
        /// The cell's text.
        text: String,
    },
    /// A CSV text without actions.
    #[error("the schedule has no actions; write one line per pipeline rank, as in `0F0,0B0`")]
    Empty,
    /// Action times that no clock shows.
    #[error("time `{which}` is {seconds}; times are finite and not negative")]
    BadTime {
        /// Which of the times.
        which: &'static str,
        /// Its value.
        seconds: f64,
    },
}

/// Actions as a chain: `1F0 -> 0B0 -> ... -> 1F0`, each waiting for the one before; long chains are
/// cut in the middle.
pub fn show_actions(cycle: &[Action]) -> String {
    const SHOWN: usize = 12;
    let mut names: Vec<String> = cycle.iter().map(Action::to_string).collect();
    if names.len() > SHOWN {
        let hidden = names.len() - SHOWN;
        names.splice(SHOWN / 2..SHOWN / 2 + hidden, [format!("({hidden} more)")]);
    }
    names.extend(cycle.first().map(Action::to_string));
    names.join(" -> ")
}

fn show_value(value: &Option<Action>) -> String {
    value.map_or("nothing".to_string(), |action| format!("the value of `{action}`"))
}

fn show_steps(cycle: &[(usize, Step)]) -> String {
    let steps: Vec<String> =
        cycle.iter().map(|(rank, step)| format!("rank {rank} waits in `{step}`")).collect();
    steps.join(", ")
}
