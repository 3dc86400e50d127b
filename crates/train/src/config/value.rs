//! One value with its key and source, and its reading as each type and range. No key's name is known here.

use std::path::{Path, PathBuf};

use super::names::nearest;
use super::source::shortened;
use super::{ConfigError, Name, Source};

/// The largest count: so that products of a few stay within 64 bits, and no one means more.
const MAX_COUNT: i64 = 1 << 40;

/// A TOML value, owned, without dates (they are kept as text to be refused).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    String(String),
    /// `None` where it does not fit 64 bits; with its text.
    Integer(Option<i64>, String),
    Float(f64, String),
    Bool(bool),
    Array(Vec<Raw>),
    Table(Vec<(String, Raw, Source)>),
    Date(String),
}

/// A value on its way to its key.
#[derive(Debug, Clone)]
pub(super) struct Value {
    /// With its table: `train.steps`.
    pub key: String,
    pub raw: Raw,
    pub place: Source,
    /// The text as written on the command line, where a bare word may be a string.
    pub bare: Option<String>,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
}

impl Value {
    /// The key within its table, of which the empty one is above all others.
    pub fn name_in(&self, table: &str) -> &str {
        if table.is_empty() { &self.key } else { &self.key[table.len() + 1..] }
    }

    /// The error of a value of another type than `expected`, which has an article.
    pub fn wrong_type(&self, expected: &'static str) -> ConfigError {
        let found = self.raw.describe();
        ConfigError::WrongType { key: self.key.clone(), expected, found, place: self.place.clone() }
    }

    fn out_of_range(&self, value: String, allowed: &str) -> ConfigError {
        let (key, place) = (self.key.clone(), self.place.clone());
        ConfigError::OutOfRange { key, value, place, allowed: allowed.to_string() }
    }

    fn integer(&self, least: i64, most: i64, allowed: &str) -> Result<i64, ConfigError> {
        match &self.raw {
            Raw::Integer(Some(number), _) if (least..=most).contains(number) => Ok(*number),
            Raw::Integer(_, text) => Err(self.out_of_range(shortened(text), allowed)),
            _ => Err(self.wrong_type("an integer")),
        }
    }

    /// An integer of at least `least`.
    pub fn count(&self, least: i64) -> Result<usize, ConfigError> {
        let allowed = format!("an integer from {least} to {MAX_COUNT}");
        Ok(self.integer(least, MAX_COUNT, &allowed)? as usize)
    }

    /// Integers of at least `least`.
    pub fn counts(&self, least: i64) -> Result<Vec<usize>, ConfigError> {
        let Raw::Array(items) = &self.raw else { return Err(self.wrong_type("an array of integers")) };
        items.iter().map(|raw| Value { raw: raw.clone(), ..self.clone() }.count(least)).collect()
    }

    /// An integer between bounds, both allowed.
    pub fn count_within(&self, least: i64, most: i64) -> Result<usize, ConfigError> {
        Ok(self.integer(least, most, &format!("an integer from {least} to {most}"))? as usize)
    }

    /// A random seed.
    pub fn seed(&self) -> Result<u64, ConfigError> {
        Ok(self.integer(0, i64::MAX, "an integer from 0 to 9223372036854775807")? as u64)
    }

    /// A finite number that passes `test`; `allowed` says which do.
    pub fn number(&self, allowed: &str, test: impl Fn(f64) -> bool) -> Result<f64, ConfigError> {
        let (number, text) = match &self.raw {
            Raw::Integer(Some(number), text) => (*number as f64, text),
            Raw::Integer(None, text) => return Err(self.out_of_range(shortened(text), allowed)),
            Raw::Float(number, text) => (*number, text),
            _ => return Err(self.wrong_type("a number")),
        };
        if number.is_finite() && test(number) {
            // A negative zero passes every test of 0 and would divide to minus infinity.
            Ok(number + 0.0)
        } else {
            Err(self.out_of_range(shortened(text), allowed))
        }
    }

    /// A number of at least 0.
    pub fn non_negative(&self) -> Result<f64, ConfigError> {
        self.number("a finite number of at least 0", |number| number >= 0.0)
    }

    /// A number above 0.
    pub fn positive(&self) -> Result<f64, ConfigError> {
        self.number("a finite number above 0", |number| number > 0.0)
    }

    /// A number from 0 to below 1.
    pub fn fraction(&self) -> Result<f64, ConfigError> {
        self.number("a number from 0 to below 1", |number| (0.0..1.0).contains(&number))
    }

    /// Two numbers from 0 to below 1.
    pub fn fractions(&self) -> Result<[f64; 2], ConfigError> {
        let Raw::Array(items) = &self.raw else { return Err(self.wrong_type("an array of two numbers")) };
        let [first, second] = items.as_slice() else {
            return Err(self.wrong_type("an array of two numbers"));
        };
        let item = |raw: &Raw| Value { raw: raw.clone(), ..self.clone() }.fraction();
        Ok([item(first)?, item(second)?])
    }

    /// `true` or `false`.
    pub fn switch(&self) -> Result<bool, ConfigError> {
        match self.raw {
            Raw::Bool(switch) => Ok(switch),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// A table from names to numbers of at least 0.
    pub fn weights(&self) -> Result<Vec<(String, f64)>, ConfigError> {
        let Raw::Table(entries) = &self.raw else {
            return Err(self.wrong_type("a table from labels to numbers"));
        };
        let entry = |(name, raw, place): &(String, Raw, Source)| {
            let value = Value { raw: raw.clone(), place: place.clone(), ..self.clone() };
            Ok((name.clone(), value.non_negative()?))
        };
        entries.iter().map(entry).collect()
    }

    /// Text; on the command line a bare word counts, even if it looks like a number.
    pub fn text(&self) -> Result<String, ConfigError> {
        match (&self.raw, &self.bare) {
            (Raw::String(text), _) => Ok(text.clone()),
            (_, Some(bare)) => Ok(bare.clone()),
            _ => Err(self.wrong_type("a string")),
        }
    }

    /// One of the names of `T`.
    pub fn name<T: Name>(&self) -> Result<T, ConfigError> {
        let name = self.text()?;
        T::from_name(&name).ok_or_else(|| {
            let (key, place, known) = (self.key.clone(), self.place.clone(), T::known());
            let nearest = nearest(&name, known.iter().copied());
            ConfigError::UnknownName { key, value: shortened(&name), place, nearest, known: known.into() }
        })
    }

    /// A path, made absolute from the folder of the file it is written in.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        let text = self.text()?;
        if text.is_empty() || text.contains('\0') {
            return Err(self.out_of_range(format!("\"{}\"", shortened(&text)), "a path"));
        }
        let joined = self.folder.join(Path::new(&text));
        let path = std::path::absolute(&joined).unwrap_or(joined);
        match path.to_str() {
            Some(_) => Ok(path),
            None => Err(ConfigError::PathNotText { key: self.key.clone(), path }),
        }
    }

    /// Paths; one string counts as a list of one.
    pub fn paths(&self) -> Result<Vec<PathBuf>, ConfigError> {
        let one = |raw: &Raw| Value { raw: raw.clone(), bare: None, ..self.clone() };
        match &self.raw {
            Raw::Array(items) if items.iter().all(|item| matches!(item, Raw::String(_))) => {
                items.iter().map(|item| one(item).path()).collect()
            }
            Raw::String(_) => Ok(vec![self.path()?]),
            _ => Err(self.wrong_type("an array of strings")),
        }
    }
}

impl Raw {
    fn describe(&self) -> String {
        match self {
            Raw::String(text) => format!("the string \"{}\"", shortened(text)),
            Raw::Integer(_, text) => format!("the integer {}", shortened(text)),
            Raw::Float(_, text) => format!("the float {}", shortened(text)),
            Raw::Bool(switch) => format!("{switch}"),
            Raw::Array(items) => format!("an array of {}", items.len()),
            Raw::Table(_) => "a table".to_string(),
            Raw::Date(text) => format!("the date {}", shortened(text)),
        }
    }
}
