//! From a file's bytes and the command line's arguments to a `Config`. What a key means is in its
//! table's file; what keys mean together in `check`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::check::Places;
use super::source::shortened;
use super::value::{Raw, Value};
use super::{Config, ConfigError, Data, Model, Parallel, Source, Task, Train, keys, parse_layout};

/// A configuration is a page of text; a larger file is another file.
const MAX_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads a configuration file, then each `table.key=value` of `--set` in order, then `--mesh`, which
    /// replaces the whole mesh (and may carry other settings of `parallel` after a semicolon).
    ///
    /// The value of a `--set` is TOML, or else a bare string. A relative path is relative to the folder
    /// of the file it is written in, or on the command line to the working directory; in the result
    /// every path is absolute. None of them is opened but that of a schedule.
    ///
    /// # Errors
    /// The first fault, as one message with its place and remedy.
    pub fn load(path: &Path, overrides: &[String], mesh: Option<&str>) -> Result<Config, ConfigError> {
        Config::from_bytes(path, &read(path)?, overrides, mesh)
    }

    /// As [`Config::load`], of a file already read.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_bytes(
        path: &Path,
        bytes: &[u8],
        overrides: &[String],
        mesh: Option<&str>,
    ) -> Result<Config, ConfigError> {
        let text = text(path, bytes)?;
        let name =
            path.file_stem().map_or_else(|| "config".to_string(), |stem| stem.to_string_lossy().into_owned());
        let mut config = Config::plain(&name);
        let mut places = Places::default();
        for (table, value) in tables(path, text)? {
            config.set(&table, value.name_in(&table), &value)?;
            places.note(&value.key, value.place.clone());
        }
        for argument in overrides {
            let (table, value) = assignment(argument)?;
            config.set(&table, value.name_in(&table), &value)?;
            places.note(&value.key, value.place.clone());
        }
        if let Some(mesh) = mesh {
            config.parallel = parse_layout(mesh, &config.parallel)?;
            places.note_layout(mesh);
        }
        config.check_with(&places)?;
        // Last, so that a value that is wrong is named before one that is absent.
        if config.model.from.is_none() && !places.has("model.family") {
            let remedy =
                "set it to gpt2, llama, bert, t5 or vit, or set `model.from` to a Hugging Face directory";
            return Err(ConfigError::Missing { key: "model.family", remedy });
        }
        Ok(config)
    }

    /// All defaults, for a command that has flags instead of a file.
    pub fn plain(name: &str) -> Config {
        let (model, data, parallel, train) =
            (Model::default(), Data::default(), Parallel::default(), Train::default());
        Config { name: name.to_owned(), task: Task::CausalLm, model, data, parallel, train }
    }

    /// This configuration under another layout, in the form of `--mesh` (see [`parse_layout`]), checked.
    ///
    /// # Errors
    /// As [`parse_layout`] and [`Config::check`].
    pub fn with_layout(&self, layout: &str) -> Result<Config, ConfigError> {
        let config = Config { parallel: parse_layout(layout, &self.parallel)?, ..self.clone() };
        let mut places = Places::default();
        places.note_layout(layout);
        config.check_with(&places)?;
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let refuse = |reason: String| ConfigError::Unreadable { path: path.to_path_buf(), reason };
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => refuse("there is no such file; check the path".to_string()),
        std::io::ErrorKind::PermissionDenied => refuse("permission denied; make it readable".to_string()),
        _ => refuse(format!("{error}; name a TOML file")),
    };
    if std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Err(refuse("it is a directory; name a TOML file in it".to_string()));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, ConfigError> {
    let refuse = |reason| ConfigError::NotText { path: path.to_path_buf(), reason };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse(format!("it has more than {MAX_BYTES} bytes")));
    }
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err(refuse(format!("byte {at} is 0")));
    }
    std::str::from_utf8(bytes).map_err(|error| refuse(format!("byte {} is not UTF-8", error.valid_up_to())))
}

/// All values of a file with their tables, in the order of the file.
fn tables(path: &Path, text: &str) -> Result<Vec<(String, Value)>, ConfigError> {
    let line = |at: usize| line_and_column(text, at).0;
    let file = |at: usize| Source::File { path: path.into(), line: line(at) };
    let parsed = DeTable::parse(text).map_err(|error| {
        let (line, column) = line_and_column(text, error.span().map_or(0, |span| span.start));
        let message = shortened(error.message());
        ConfigError::Syntax { path: path.to_path_buf(), line, column, message }
    })?;
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let mut values = Vec::new();
    for (table, content) in parsed.get_ref() {
        let (name, place) = (table.get_ref().as_ref(), file(table.span().start));
        if name == keys::TASK {
            let raw = raw(content.get_ref(), &file);
            let value = Value { key: name.to_owned(), raw, place, bare: None, folder: folder.clone() };
            values.push((table.span().start, String::new(), value));
            continue;
        }
        if !keys::TABLES.iter().any(|(known, _)| *known == name) {
            return Err(keys::unknown_table(name, &place));
        }
        let DeValue::Table(entries) = content.get_ref() else {
            let (key, found) = (name.to_string(), content.get_ref().type_str().to_string());
            return Err(ConfigError::WrongType { key, expected: "a table", found, place });
        };
        for (key, value) in entries {
            let (at, full) = (key.span().start, format!("{name}.{}", key.get_ref()));
            let raw = raw(value.get_ref(), &file);
            let value = Value { key: full, raw, place: file(at), bare: None, folder: folder.clone() };
            values.push((at, name.to_string(), value));
        }
    }
    values.sort_by_key(|(at, ..)| *at);
    Ok(values.into_iter().map(|(_, table, value)| (table, value)).collect())
}

fn raw(value: &DeValue<'_>, place: &impl Fn(usize) -> Source) -> Raw {
    match value {
        DeValue::String(text) => Raw::String(text.to_string()),
        DeValue::Integer(number) => {
            Raw::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok(), number.to_string())
        }
        DeValue::Float(number) => Raw::Float(number.as_str().parse().unwrap_or(f64::NAN), number.to_string()),
        DeValue::Boolean(switch) => Raw::Bool(*switch),
        DeValue::Datetime(date) => Raw::Date(date.to_string()),
        DeValue::Array(items) => Raw::Array(items.iter().map(|item| raw(item.get_ref(), place)).collect()),
        DeValue::Table(entries) => {
            let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                let key: &toml::Spanned<std::borrow::Cow<'_, str>> = key;
                (key.get_ref().to_string(), raw(value.get_ref(), place), place(key.span().start))
            };
            Raw::Table(entries.iter().map(entry).collect())
        }
    }
}

fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    (line, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}

/// `table.key=value` of a `--set`.
fn assignment(argument: &str) -> Result<(String, Value), ConfigError> {
    let place = Source::Set(argument.into());
    let remedy = "write table.key=value, as in train.steps=100";
    let malformed = || ConfigError::Malformed { argument: shortened(argument), place: place.clone(), remedy };
    let (name, written) = argument.split_once('=').ok_or_else(malformed)?;
    let (name, written) = (name.trim(), written.trim());
    if name.is_empty() {
        return Err(malformed());
    }
    if name == keys::TASK {
        let (raw, bare) = scalar_at(written, &place);
        let value = Value { key: name.to_owned(), raw, place, bare: Some(bare), folder: PathBuf::new() };
        return Ok((String::new(), value));
    }
    let (table, key) = name.split_once('.').ok_or_else(|| keys::unknown_table(name, &place))?;
    if table.is_empty() || key.is_empty() {
        return Err(malformed());
    }
    let (raw, bare) = scalar_at(written, &place);
    let key = format!("{table}.{key}");
    Ok((table.to_string(), Value { key, raw, place, bare: Some(bare), folder: PathBuf::new() }))
}

/// A value written on the command line: TOML, else a bare string; and its text.
pub(super) fn scalar(written: &str) -> (Raw, String) {
    scalar_at(written, &Source::Default)
}

fn scalar_at(written: &str, place: &Source) -> (Raw, String) {
    let bare = written.to_string();
    match DeValue::parse(written) {
        Ok(value) => (raw(value.get_ref(), &|_| place.clone()), bare),
        Err(_) => (Raw::String(bare.clone()), bare),
    }
}
