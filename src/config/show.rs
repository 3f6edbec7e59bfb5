//! The effective configuration as TOML: every key that has an effect, its value, and where the value comes from.
//!
//! It never shows a secret, only the configured reference to it.

use std::fmt::Write;

use serde_json::Value as Schema;
use toml::{Table, Value};

use super::{
    Draft,
    finding::{KeyPath, SourceLocation},
    format::redact_credentials,
    keys::{GRANT_KEYS, STORE_KEYS},
    schema::{ExpectedValue, at_path, expected, or_secret, schema},
    shape::File,
    source::find,
};

/// The text of `trunkline config show`.
pub(super) fn show(draft: &Draft) -> String {
    let schema = schema();
    let table = Table::try_from(effective_values(draft)).expect("every key has a TOML form");
    let mut page = ConfigListing { draft, schema: &schema, text: String::new() };
    for (section, value) in &table {
        let Value::Table(inner) = value else { continue };
        match section.as_str() {
            "accounts" | "consumers" | "streams" => {
                for (name, entry) in inner {
                    page.section(&KeyPath::of(&[section, name]), entry);
                }
            }
            _ => page.section(&KeyPath::of(&[section]), value),
        }
    }
    page.text
}

/// The file without the keys of other grants and stores. A stream has only the keys of its connector.
fn effective_values(draft: &Draft) -> serde_json::Value {
    let file: &File = &draft.file;
    let mut value = serde_json::to_value(file).expect("every key has a JSON form");
    let kind = file.store.kind.keys();
    remove_keys(&mut value["store"], STORE_KEYS.into_iter().filter(|key| !kind.contains(key)));
    for (name, account) in &file.accounts {
        let entry = &mut value["accounts"][name.as_str()];
        remove_keys(entry, GRANT_KEYS.into_iter().filter(|key| !account.grant.keys().contains(key)));
    }
    remove_nulls(&mut value);
    value
}

fn remove_keys(entry: &mut serde_json::Value, keys: impl Iterator<Item = &'static str>) {
    let Some(entry) = entry.as_object_mut() else { return };
    for key in keys {
        entry.remove(key);
    }
}

/// Removes all keys without a value.
fn remove_nulls(entry: &mut serde_json::Value) {
    let Some(entry) = entry.as_object_mut() else { return };
    entry.retain(|_, value| !value.is_null());
    entry.values_mut().for_each(remove_nulls);
}

struct ConfigListing<'a> {
    draft: &'a Draft,
    schema: &'a Schema,
    text: String,
}

impl ConfigListing<'_> {
    fn section(&mut self, path: &KeyPath, entry: &Value) {
        let Value::Table(keys) = entry else { return };
        let blank = if self.text.is_empty() { "" } else { "\n" };
        self.line(format_args!("{blank}[{path}]"));
        for (key, value) in keys {
            let path = path.join(key);
            let (value, origin) = (self.value(&path, value), self.origin(&path));
            self.line(format_args!("{} = {value}  # {origin}", KeyPath::of(&[key])));
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to memory does not fail");
    }

    fn value(&self, path: &KeyPath, value: &Value) -> String {
        match at_path(self.schema, &path.0).map(expected) {
            Some(ExpectedValue::Secret) => "\"***\"".to_owned(),
            Some(ExpectedValue::Text("redis-url")) if value.is_table() => "\"***\"".to_owned(),
            Some(ExpectedValue::Text("redis-url" | "proxy-url")) => {
                Value::from(redact_credentials(value.as_str().unwrap_or_default())).to_string()
            }
            None
            | Some(
                ExpectedValue::Table
                | ExpectedValue::List
                | ExpectedValue::OneOf(_)
                | ExpectedValue::Text(_)
                | ExpectedValue::Integer
                | ExpectedValue::Number
                | ExpectedValue::Boolean,
            ) => value.to_string(),
        }
    }

    /// The source of a value; for a secret also its reference.
    fn origin(&self, path: &KeyPath) -> String {
        let Some(written) = find(&self.draft.tree, path) else { return default_origin(path).to_owned() };
        let place = SourceLocation::of(written).map_or_else(String::new, |place| place.to_string());
        let schema = at_path(self.schema, &path.0);
        let is_secret = schema.is_some_and(|schema| matches!(expected(schema), ExpectedValue::Secret));
        let is_reference = schema.and_then(or_secret).is_some() && super::source::table(written).is_some();
        if is_secret || is_reference {
            return format!("{place}, {}", reference(written));
        }
        place
    }
}

/// The origin of a value that is not set by the user.
fn default_origin(path: &KeyPath) -> &'static str {
    match path.0.last().map(String::as_str) {
        Some("token_url" | "api_url") => "from region",
        Some(_) | None => "default",
    }
}

/// `env NAME` or `file PATH`.
fn reference(secret: &config::Value) -> String {
    let table = super::source::table(secret);
    let first = table.and_then(|table| table.iter().next());
    first.map_or_else(String::new, |(kind, name)| format!("{kind} {name}"))
}
