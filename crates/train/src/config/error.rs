//! What can be wrong with a configuration. Each message says what is wrong, where, and the remedy.

use std::path::PathBuf;

use super::Source;

/// What is wrong with a configuration; its `Display` is the whole message for the user.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said, with a remedy.
        reason: String,
    },
    /// The file is no text.
    #[error("{} is not a text file ({reason}); a configuration is TOML in UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// The file is no TOML.
    #[error("{}:{line}:{column} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// What the parser expected.
        message: String,
    },
    /// A table that does not exist.
    #[error("unknown table `{table}` {place}; did you mean `{nearest}`?")]
    UnknownTable {
        /// The table.
        table: String,
        /// Where it is written.
        place: Source,
        /// The known name nearest to it.
        nearest: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` {place}; did you mean `{nearest}`?")]
    UnknownKey {
        /// The key with its table.
        key: String,
        /// Where it is written.
        place: Source,
        /// The known key nearest to it.
        nearest: String,
    },
    /// A mesh axis that does not exist.
    #[error("unknown mesh axis `{axis}` {place}; did you mean `{nearest}`? Axes are {}", known.join(", "))]
    UnknownAxis {
        /// The axis.
        axis: String,
        /// Where it is written.
        place: Source,
        /// The known axis nearest to it.
        nearest: String,
        /// Every axis.
        known: Vec<&'static str>,
    },
    /// A mesh axis given twice.
    #[error("mesh axis `{axis}` is given twice {place}; keep one")]
    RepeatedAxis {
        /// The axis.
        axis: String,
        /// Where it is written.
        place: Source,
    },
    /// A value of another type.
    #[error("`{key}` must be {expected}, not {found} {place}")]
    WrongType {
        /// The key with its table.
        key: String,
        /// What is expected, with an article.
        expected: &'static str,
        /// What is written.
        found: String,
        /// Where it is written.
        place: Source,
    },
    /// A value that makes no sense.
    #[error("`{key}` is {value} {place}; it must be {allowed}")]
    OutOfRange {
        /// The key with its table.
        key: String,
        /// The value.
        value: String,
        /// Where it is written.
        place: Source,
        /// Which values are allowed.
        allowed: String,
    },
    /// A name that is none of those known.
    #[error("`{key}` is \"{value}\" {place}; did you mean \"{nearest}\"? Known: {}", known.join(", "))]
    UnknownName {
        /// The key with its table.
        key: String,
        /// The name.
        value: String,
        /// Where it is written.
        place: Source,
        /// The known name nearest to it.
        nearest: String,
        /// Every known name.
        known: Box<[&'static str]>,
    },
    /// A task that the family has no head for.
    #[error("`task` is \"{task}\" {place}, which {family} does not do; it does {supported}")]
    TaskOfFamily {
        /// The task.
        task: &'static str,
        /// Where it is written.
        place: Source,
        /// The family.
        family: &'static str,
        /// Its tasks.
        supported: String,
    },
    /// A key without which nothing can be built.
    #[error("`{key}` is missing; {remedy}")]
    Missing {
        /// The key with its table.
        key: &'static str,
        /// What to write.
        remedy: &'static str,
    },
    /// A number that should divide by another.
    #[error(
        "`{key}` = {value} {place} is not a multiple of `{by}` = {divisor} {by_place}; change one of them"
    )]
    NotDivisible {
        /// The key of the number.
        key: &'static str,
        /// The number.
        value: usize,
        /// Where it is written.
        place: Source,
        /// The key of the divisor.
        by: &'static str,
        /// The divisor.
        divisor: usize,
        /// Where the divisor is written.
        by_place: Source,
    },
    /// A number that is larger than others allow.
    #[error("`{key}` = {value} {place} is more than {limit_name} = {limit}; {remedy}")]
    TooLarge {
        /// The key of the number.
        key: &'static str,
        /// The number.
        value: String,
        /// Where it is written.
        place: Source,
        /// What limits it.
        limit_name: &'static str,
        /// The limit.
        limit: Box<str>,
        /// What to change.
        remedy: &'static str,
    },
    /// Two keys that exclude each other.
    #[error("`{key}` {place} cannot stand beside `{other}`: {reason}")]
    Conflict {
        /// A key.
        key: String,
        /// Where it is written.
        place: Source,
        /// The other key.
        other: &'static str,
        /// Why, and which to remove.
        reason: &'static str,
    },
    /// A schedule that cannot be made.
    #[error("`parallel.schedule` {place}: {error}")]
    Schedule {
        /// Where the schedule is written.
        place: Source,
        /// What is wrong with it.
        error: Box<schedule::ScheduleError>,
    },
    /// A file that has no schedule.
    #[error("`parallel.schedule`: {}: {reason}", path.display())]
    ScheduleFile {
        /// The file.
        path: PathBuf,
        /// What the system said, or what is wrong in it.
        reason: String,
    },
    /// An argument that is no assignment.
    #[error("cannot read \"{argument}\" {place}; {remedy}")]
    Malformed {
        /// The part that cannot be read.
        argument: String,
        /// Where it is written.
        place: Source,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A path that TOML cannot hold.
    #[error("`{key}` leads to {}, which is not UTF-8; rename the directory", path.display())]
    PathNotText {
        /// The key with its table.
        key: String,
        /// The path.
        path: PathBuf,
    },
}
