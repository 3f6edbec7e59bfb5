//! Files and environment variables, merged so that each value keeps its source location.
//!
//! Values are not checked here; only unreadable files and invalid TOML are errors.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    io::{ErrorKind, Read},
    path::Path,
};

use config::{Config, ConfigError, Map, Source, Value, ValueKind};
use toml::de::{DeTable, DeValue};

use super::{
    finding::{Finding, KeyPath, SourceLocation},
    schema::{ExpectedValue, at_key, at_path, expected, or_secret},
    syntax::{self, Duplicate},
};

/// The maximum size of a configuration file in bytes.
const FILE_LEN_MAX: u64 = 4 << 20;

/// The TOML library's message for a duplicate key or table.
const DUPLICATE_KEY: &str = "duplicate key";

/// The prefix of variables that override keys; `__` separates keys.
pub(super) const OVERRIDE_PREFIX: &str = "TRUNKLINE__";

/// The environment of the process, read once.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    text: BTreeMap<String, String>,
    /// Variables whose name or value is not UTF-8; invalid bytes of the name are replaced.
    unreadable: BTreeSet<String>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Self::of(std::env::vars_os())
    }

    pub(super) fn of(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut read = Self::default();
        for (name, value) in variables {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => drop(read.text.insert(name, value)),
                (Ok(name), Err(_)) => drop(read.unreadable.insert(name)),
                (Err(name), _) => drop(read.unreadable.insert(name.to_string_lossy().into_owned())),
            }
        }
        read
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.text.get(name).map(String::as_str)
    }

    /// Whether the variable is set, but its value is not UTF-8.
    pub(super) fn is_unreadable(&self, name: &str) -> bool {
        self.unreadable.contains(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.text.keys().map(String::as_str)
    }

    /// Reports overrides that would be ignored: not UTF-8, or the prefix is not in upper case.
    pub(super) fn unreadable_overrides(&self) -> Vec<Finding> {
        let finding =
            |name: &str, text: String| Finding::new(Some(SourceLocation::whole(name)), KeyPath::default(), text);
        let unreadable = self.unreadable.iter().filter(|name| is_override_in_any_case(name));
        let unreadable = unreadable.map(|name| finding(name, "name or value is not UTF-8".to_owned()));
        let lower = self.names().filter(|name| is_override_in_any_case(name) && !name.starts_with(OVERRIDE_PREFIX));
        let lower = lower
            .map(|name| finding(name, format!("overrides are in upper case; write {}", name.to_ascii_uppercase())));
        unreadable.chain(lower).collect()
    }

    fn overrides(&self) -> impl Iterator<Item = (&str, &str)> {
        let named = self.text.iter().filter(|(name, _)| name.starts_with(OVERRIDE_PREFIX));
        named.map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<S: Into<String>> FromIterator<(S, S)> for Environment {
    fn from_iter<I: IntoIterator<Item = (S, S)>>(variables: I) -> Self {
        let text = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { text, unreadable: BTreeSet::new() }
    }
}

fn is_override_in_any_case(name: &str) -> bool {
    name.get(..OVERRIDE_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(OVERRIDE_PREFIX))
}

/// A file's text, and the name that messages use for it.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) name: String,
    pub(super) text: String,
}

impl Document {
    pub(super) fn read(path: &Path) -> Result<Self, Finding> {
        let name = path.display().to_string();
        let mut text = String::new();
        let refused =
            |name: &str, why: String| Finding::new(Some(SourceLocation::whole(name)), KeyPath::default(), why);
        let file = fs::File::open(path).map_err(|error| refused(&name, format!("could not be opened: {error}")))?;
        let read = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text);
        read.map_err(|error| {
            let foreign = error.kind() == ErrorKind::InvalidData;
            let why = if foreign {
                "is not UTF-8 text; save it as UTF-8".to_owned()
            } else {
                format!("could not be read: {error}")
            };
            refused(&name, why)
        })?;
        if text.len() as u64 > FILE_LEN_MAX {
            return Err(refused(&name, "is larger than 4 MiB, the maximum for a configuration".to_owned()));
        }
        Ok(Self { name, text })
    }

    /// The file's values.
    ///
    /// # Errors
    ///
    /// Every syntax error. Messages do not quote the text: it may contain a secret.
    pub(super) fn parse(&self) -> Result<Layer, Vec<Finding>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        if errors.is_empty() {
            let place = |at| format!("{}:{}", self.name, line_column(&self.text, at).0);
            return Ok(Layer(Value::new(Some(&self.name), from_table(table.get_ref(), &place))));
        }
        if let Some(format) = syntax::other_format(&self.text) {
            let text =
                format!("looks like {format}; a configuration is TOML, as in [http] and listen = \"127.0.0.1:8080\"");
            return Err(vec![Finding::new(Some(SourceLocation::whole(&self.name)), KeyPath::default(), text)]);
        }
        Err(errors.iter().map(|error| self.syntax_finding(error)).collect())
    }

    fn syntax_finding(&self, error: &toml::de::Error) -> Finding {
        let span = error.span().unwrap_or_default();
        let (line, column) = line_column(&self.text, span.start);
        let name = self.text.get(span).unwrap_or_default();
        let twice = (error.message() == DUPLICATE_KEY).then(|| syntax::duplicate(&self.text, line, name)).flatten();
        let text = match twice {
            Some(Duplicate { path, first }) => format!("column {column}: duplicate {path}, first in line {first}"),
            None => {
                let names_quotes = error.message().contains("must be quoted");
                let unquoted = syntax::unquoted(&self.text, line).filter(|_| !names_quotes);
                let hint = unquoted.map(|key| format!("; put the text in quotes: {key} = \"…\""));
                format!("column {column}: {}{}", error.message(), hint.unwrap_or_default())
            }
        };
        Finding::new(Some(SourceLocation::line(&self.name, line)), KeyPath::default(), text)
    }
}

/// The values of one file or variable, which override those of earlier ones.
#[derive(Debug, Clone)]
pub(super) struct Layer(Value);

/// The key of a layer's values while they are merged: `config` splits the outermost keys at dots.
const ROOT: &str = "root";

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(Map::from_iter([(ROOT.to_owned(), self.0.clone())]))
    }
}

/// Merges all layers into one tree: later ones override earlier ones, and the environment overrides all.
pub(super) fn merge(layers: Vec<Layer>, environment: &Environment, schema: &serde_json::Value) -> Value {
    let mut tree = Value::new(None, Map::<String, Value>::new());
    for layer in layers {
        tree = merged(&tree, &layer);
    }
    for (variable, text) in environment.overrides() {
        let layer = variable_layer(&tree, variable, text, schema);
        tree = merged(&tree, &layer);
    }
    tree
}

fn merged(under: &Value, over: &Layer) -> Value {
    let sources = Config::builder().add_source(Layer(under.clone())).add_source(over.clone());
    let built = sources.build().expect("the sources are in memory").cache;
    restored(child(&built, ROOT).cloned().unwrap_or_default(), Some(under), Some(&over.0))
}

/// The merged value with what the `config` crate drops: the locations of tables. A reference to a secret replaces another
/// reference as a whole.
fn restored(merged: Value, under: Option<&Value>, over: Option<&Value>) -> Value {
    if let Some(reference) = over.filter(|over| table(over).is_some_and(is_reference)) {
        return reference.clone();
    }
    let origin = over.and_then(Value::origin).or(under.and_then(Value::origin)).map(str::to_owned);
    let ValueKind::Table(entries) = merged.kind else { return Value::new(origin.as_ref(), merged.kind) };
    let entry = |(key, value): (String, Value)| {
        let (under, over) = (under.and_then(|under| child(under, &key)), over.and_then(|over| child(over, &key)));
        let value = restored(value, under, over);
        (key, value)
    };
    Value::new(origin.as_ref(), entries.into_iter().map(entry).collect::<Map<_, _>>())
}

/// Whether the table is a reference to a secret: it replaces another reference as a whole.
fn is_reference(table: &Map<String, Value>) -> bool {
    table.len() == 1 && (table.contains_key("env") || table.contains_key("file"))
}

/// The value of one variable below the keys in its name.
fn variable_layer(tree: &Value, variable: &str, text: &str, schema: &serde_json::Value) -> Layer {
    let path = key_path_of(tree, schema, &variable[OVERRIDE_PREFIX.len()..]);
    let leaf = from_variable(variable, text, at_path(schema, &path));
    let wrap =
        |inner: Value, key: &String| Value::new(Some(&variable.to_owned()), Map::from_iter([(key.clone(), inner)]));
    Layer(path.iter().rev().fold(leaf, wrap))
}

/// The keys in a variable's name. A variable's name cannot contain `-` and `.`, so `_` also matches these.
fn key_path_of(tree: &Value, schema: &serde_json::Value, name: &str) -> Vec<String> {
    let mut below = Some(tree);
    let mut wanted = Some(schema);
    let mut path = Vec::new();
    for part in name.split("__") {
        let part = part.to_lowercase();
        let plain = |key: &str| key.replace(['-', '.'], "_");
        let keys = below.and_then(table).into_iter().flat_map(Map::keys);
        let key = match below.and_then(|value| child(value, &part)) {
            Some(_) => part,
            None => keys.into_iter().find(|key| plain(key) == part).cloned().unwrap_or(part),
        };
        below = below.and_then(|value| child(value, &key));
        wanted = wanted.and_then(|schema| at_key(schema, &key));
        path.push(key);
    }
    path
}

/// Parses a variable by the type of its key: strings and choices verbatim, everything else as TOML.
fn from_variable(variable: &str, text: &str, schema: Option<&serde_json::Value>) -> Value {
    let verbatim = || Value::new(Some(&variable.to_owned()), text);
    let is_reference = schema.is_some_and(|schema| or_secret(schema).is_some()) && text.trim_start().starts_with('{');
    match schema.map(expected) {
        None | Some(ExpectedValue::Text(_) | ExpectedValue::OneOf(_)) if !is_reference => verbatim(),
        None
        | Some(
            ExpectedValue::Text(_)
            | ExpectedValue::OneOf(_)
            | ExpectedValue::Table
            | ExpectedValue::List
            | ExpectedValue::Secret
            | ExpectedValue::Integer
            | ExpectedValue::Number
            | ExpectedValue::Boolean,
        ) => {
            let parsed = DeValue::parse(text);
            parsed.map_or_else(|_| verbatim(), |value| from_toml(value.get_ref(), variable, &|_| variable.to_owned()))
        }
    }
}

fn from_table(table: &DeTable<'_>, location: &dyn Fn(usize) -> String) -> Map<String, Value> {
    let entry = |(key, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
        (key.get_ref().to_string(), from_toml(value.get_ref(), &location(key.span().start), location))
    };
    table.iter().map(entry).collect()
}

fn from_toml(value: &DeValue<'_>, origin: &str, location: &dyn Fn(usize) -> String) -> Value {
    let kind = match value {
        DeValue::String(text) => ValueKind::String(text.to_string()),
        DeValue::Integer(number) => {
            let whole = i64::from_str_radix(number.as_str(), number.radix());
            let wide = || i128::from_str_radix(number.as_str(), number.radix()).map(ValueKind::I128);
            whole.map(ValueKind::I64).or_else(|_| wide()).unwrap_or_else(|_| ValueKind::String(number.to_string()))
        }
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| ValueKind::String(number.to_string()), ValueKind::Float)
        }
        DeValue::Boolean(flag) => ValueKind::Boolean(*flag),
        DeValue::Datetime(moment) => ValueKind::String(moment.to_string()),
        DeValue::Array(items) => {
            let item =
                |item: &toml::Spanned<DeValue<'_>>| from_toml(item.get_ref(), &location(item.span().start), location);
            ValueKind::Array(items.iter().map(item).collect())
        }
        DeValue::Table(table) => ValueKind::Table(from_table(table, location)),
    };
    Value::new(Some(&origin.to_owned()), kind)
}

/// Line and column of a byte, both from 1; the column counts characters.
fn line_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = memchr::memchr_iter(b'\n', before).count() + 1;
    let start = memchr::memrchr(b'\n', before).map_or(0, |newline| newline + 1);
    (line, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
}

pub(super) fn table(value: &Value) -> Option<&Map<String, Value>> {
    if let ValueKind::Table(table) = &value.kind { Some(table) } else { None }
}

pub(super) fn child<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    table(value)?.get(key)
}

/// The value at a path.
pub(super) fn find<'a>(tree: &'a Value, path: &KeyPath) -> Option<&'a Value> {
    path.0.iter().try_fold(tree, |value, key| child(value, key))
}

/// The location of the value at a path, else of the nearest table around it.
pub(super) fn location_of(tree: &Value, path: &KeyPath) -> Option<SourceLocation> {
    let mut nearest = SourceLocation::of(tree);
    let mut value = tree;
    for key in &path.0 {
        let Some(next) = child(value, key) else { break };
        value = next;
        nearest = SourceLocation::of(value).or(nearest);
    }
    nearest
}
