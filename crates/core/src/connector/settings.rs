//! A dialect in the configuration: its keys with their schema, and the findings of its checks.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

use super::Connector;
use crate::model::Span;

/// A dialect and its keys in the table of a stream, without the keys that all dialects have.
///
/// All of it comes from the settings of the dialect: the doc comments describe the dialect and its keys, a field without
/// a default is a required key.
#[derive(Debug)]
pub struct DialectKeys {
    /// The value of `connector`.
    pub name: &'static str,
    schema: Value,
    read: fn(Value) -> serde_json::Result<Connector>,
}

impl DialectKeys {
    /// The keys of the settings `S`.
    pub(super) fn of<S: JsonSchema>(name: &'static str, read: fn(Value) -> serde_json::Result<Connector>) -> Self {
        let settings =
            SchemaSettings::draft2020_12().for_deserialize().with(|settings| settings.inline_subschemas = true);
        Self { name, schema: settings.into_generator().into_root_schema_for::<S>().to_value(), read }
    }

    /// What the dialect is, in one sentence.
    pub fn description(&self) -> &str {
        self.schema["description"].as_str().unwrap_or_default()
    }

    /// Each key with its JSON Schema.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.schema["properties"].as_object().into_iter().flatten().map(|(key, schema)| (key.as_str(), schema))
    }

    /// The keys without a default.
    pub fn required(&self) -> impl Iterator<Item = &str> {
        self.schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    /// Whether the dialect has this key.
    pub fn contains(&self, key: &str) -> bool {
        self.schema["properties"].get(key).is_some()
    }

    /// Reads the settings. A missing required key counts as empty, so that the other keys can be checked.
    ///
    /// # Errors
    ///
    /// A value has another type than the schema defines, or a key is unknown.
    pub fn read(&self, mut settings: Map<String, Value>) -> serde_json::Result<Connector> {
        for key in self.required() {
            let is_list = self.schema["properties"][key]["type"] == "array";
            let empty = || if is_list { Value::Array(Vec::new()) } else { Value::String(String::new()) };
            settings.entry(key).or_insert_with(empty);
        }
        (self.read)(Value::Object(settings))
    }
}

/// The settings outside the dialect that its checks need.
#[derive(Debug, Clone, Copy)]
pub struct CheckContext<'a> {
    pub silence_max: Span,
    pub retention: Span,
    /// The decoded names of the query parameters of the socket's URL.
    pub parameters: &'a [String],
    /// None if the stream names no existing account.
    pub account: Option<AccountContext>,
}

/// The settings of the account that the checks need.
#[derive(Debug, Clone, Copy)]
pub struct AccountContext {
    pub has_region: bool,
    /// Whether neither a region nor a key gives the URL of the REST API.
    pub lacks_api_url: bool,
}

/// An error in the settings of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingFinding {
    pub key: SettingKey,
    pub severity: Severity,
    pub text: String,
}

/// The key of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingKey {
    Stream(&'static str),
    /// An item of a list, counted from 0.
    StreamItem(&'static str, usize),
    Account(&'static str),
}

/// The effect of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is refused.
    Mistake,
    /// The setting cannot work. The rest works without it.
    Ineffective,
}

impl SettingFinding {
    /// A finding that refuses the configuration.
    pub(super) fn mistake(key: SettingKey, text: impl Into<String>) -> Self {
        Self { key, severity: Severity::Mistake, text: text.into() }
    }

    /// A finding about a setting without effect.
    pub(super) fn ineffective(key: SettingKey, text: impl Into<String>) -> Self {
        Self { key, severity: Severity::Ineffective, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_dialect_is_read_from_its_keys_and_shown_by_them() {
        for dialect in Connector::dialects() {
            let connector = dialect.read(Map::new()).unwrap_or_else(|error| panic!("{}: {error}", dialect.name));
            assert_eq!(connector.name(), dialect.name);
            assert!(!dialect.description().is_empty(), "{} is not described", dialect.name);
            let Value::Object(shown) = connector.settings() else { panic!("{}: no table", dialect.name) };
            let keys: Vec<&str> = dialect.keys().map(|(key, _)| key).collect();
            assert_eq!(shown.keys().map(String::as_str).collect::<Vec<_>>(), keys, "{}", dialect.name);
            assert_eq!(dialect.read(shown.clone()).unwrap().settings(), Value::Object(shown));
            let unknown = Map::from_iter([("no_such_key".to_owned(), Value::Null)]);
            assert!(dialect.read(unknown).is_err(), "{} accepts an unknown key", dialect.name);
        }
    }

    #[test]
    fn a_key_of_two_dialects_has_one_schema() {
        let mut schemas = BTreeMap::new();
        for (key, schema) in Connector::dialects().iter().flat_map(DialectKeys::keys) {
            let mut schema = schema.clone();
            schema.as_object_mut().unwrap().remove("description");
            assert_eq!(*schemas.entry(key).or_insert_with(|| schema.clone()), schema, "{key}");
        }
    }
}
