//! Checks every value against the schema: unknown and missing keys, types, choices, formats, bounds.
//!
//! It checks one value at a time; `check` checks keys against each other.

use std::str::FromStr;

use config::{Value, ValueKind};
use serde_json::Value as Schema;

use crate::model::{SettingError, Size, Span, StreamName, nearest};

use super::{
    finding::{Finding, KeyPath, SourceLocation},
    format,
    schema::{ExpectedValue, at_key, expected, or_secret, reserved},
    source::table,
};

/// The maximum number of characters of a value in a message.
const SHOWN_LEN_MAX: usize = 80;

/// The result of the walk.
#[derive(Debug, Default)]
pub(super) struct SchemaWalk {
    pub(super) findings: Vec<Finding>,
    /// Values that must be removed before the rest can be parsed.
    pub(super) broken: Vec<KeyPath>,
}

/// Checks every value of the tree against the schema.
pub(super) fn walk(tree: &Value, schema: &Schema) -> SchemaWalk {
    let mut walk = SchemaWalk::default();
    walk.value(tree, schema, &KeyPath::default(), None);
    walk
}

impl SchemaWalk {
    fn value(&mut self, value: &Value, schema: &Schema, path: &KeyPath, around: Option<&SourceLocation>) {
        let own = SourceLocation::of(value);
        let location = own.as_ref().or(around);
        if let Some(secret) = or_secret(schema).filter(|_| table(value).is_some()) {
            return self.secret(value, secret, path, location);
        }
        let result = match expected(schema) {
            ExpectedValue::Table => return self.table(value, schema, path, location),
            ExpectedValue::List => return self.list(value, schema, path, location),
            ExpectedValue::Secret => return self.secret(value, schema, path, location),
            ExpectedValue::OneOf(words) => check_keyword(value, &words, schema),
            ExpectedValue::Text(format) => check_text(value, format, schema),
            ExpectedValue::Integer => check_integer(value, schema),
            ExpectedValue::Number => check_number(value, schema),
            ExpectedValue::Boolean => check_boolean(value),
        };
        if let Err(wrong) = result {
            self.add_broken(location, path, wrong);
        }
    }

    fn table(&mut self, value: &Value, schema: &Schema, path: &KeyPath, location: Option<&SourceLocation>) {
        let Some(table) = table(value) else {
            return self.add_broken(location, path, format!("expected a table, found {}", describe(value)));
        };
        for (key, value) in table {
            self.key(key, value, schema, &path.join(key), location);
        }
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str);
        for key in required.filter(|key| !table.contains_key(*key)) {
            let wanted = schema["properties"].get(key).map(expected);
            self.add_broken(location, &path.join(key), missing_text(wanted));
        }
        self.mark_undecided(schema, path);
    }

    /// If a deciding key is invalid, the other keys of its table cannot be checked.
    fn mark_undecided(&mut self, schema: &Schema, path: &KeyPath) {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str);
        let deciding = required.chain(schema["x-decides"].as_str());
        if deciding.map(|key| path.join(key)).any(|key| self.broken.contains(&key)) {
            self.broken.push(path.clone());
        }
    }

    fn key(&mut self, key: &str, value: &Value, schema: &Schema, path: &KeyPath, location: Option<&SourceLocation>) {
        let Some(below) = at_key(schema, key) else {
            let own = SourceLocation::of(value);
            return self.add_broken(own.as_ref().or(location), path, unknown_key_text(key, schema));
        };
        let own_name = schema["propertyNames"]["format"] == "name";
        if own_name && let Err(error) = key.parse::<StreamName>() {
            let own = SourceLocation::of(value);
            self.add_broken(own.as_ref().or(location), path, error.to_string());
        }
        self.value(value, below, path, location);
    }

    fn list(&mut self, value: &Value, schema: &Schema, path: &KeyPath, location: Option<&SourceLocation>) {
        let ValueKind::Array(items) = &value.kind else {
            return self.add_broken(
                location,
                path,
                format!("expected a list such as [\"…\"], found {}", describe(value)),
            );
        };
        let item_schema = &schema["items"];
        let format = item_schema["format"].as_str().unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let checked = match expected(item_schema) {
                ExpectedValue::OneOf(words) => check_keyword(item, &words, item_schema),
                ExpectedValue::Table
                | ExpectedValue::List
                | ExpectedValue::Secret
                | ExpectedValue::Text(_)
                | ExpectedValue::Integer
                | ExpectedValue::Number
                | ExpectedValue::Boolean => check_text(item, format, item_schema),
            };
            if let Err(wrong) = checked {
                let own = SourceLocation::of(item);
                self.add_broken(own.as_ref().or(location), path, format!("item {}: {wrong}", index + 1));
            }
        }
        if let Some(most) = schema["maxItems"].as_u64().filter(|most| items.len() as u64 > *most) {
            self.add_broken(location, path, format!("has {} items; the maximum is {most}", items.len()));
        }
    }

    /// Never shows the value, because it may be the secret itself.
    fn secret(&mut self, value: &Value, schema: &Schema, path: &KeyPath, location: Option<&SourceLocation>) {
        const WRITE: &str = r#"write { env = "NAME" } or { file = "PATH" }"#;
        let Some(table) = table(value) else {
            return self.add_broken(location, path, format!("a secret must not be in the file; {WRITE}"));
        };
        if table.keys().any(|key| schema["properties"].get(key).is_none()) {
            return self.add_broken(location, path, format!("is not a reference to a secret; {WRITE}"));
        }
        if table.len() != 1 {
            return self.add_broken(location, path, format!("needs exactly one of env and file; {WRITE}"));
        }
        let named = table.values().all(|name| matches!(&name.kind, ValueKind::String(name) if !name.is_empty()));
        if !named {
            self.add_broken(location, path, format!("needs a name; {WRITE}"));
        }
    }

    fn add_broken(&mut self, location: Option<&SourceLocation>, path: &KeyPath, text: String) {
        self.findings.push(Finding::new(location.cloned(), path.clone(), text));
        self.broken.push(path.clone());
    }
}

fn missing_text(wanted: Option<ExpectedValue<'_>>) -> String {
    match wanted {
        Some(ExpectedValue::OneOf(words)) => format!("is required: one of {}", words.join(", ")),
        None
        | Some(
            ExpectedValue::Table
            | ExpectedValue::List
            | ExpectedValue::Secret
            | ExpectedValue::Text(_)
            | ExpectedValue::Integer
            | ExpectedValue::Number
            | ExpectedValue::Boolean,
        ) => "is required".to_owned(),
    }
}

fn unknown_key_text(key: &str, schema: &Schema) -> String {
    if reserved(schema).any(|later| later == key) {
        return "is reserved for a later version; remove it".to_owned();
    }
    let keys = || schema["properties"].as_object().into_iter().flat_map(|keys| keys.keys().map(String::as_str));
    match nearest(key, keys()) {
        Some(near) => format!("unknown key; did you mean {near}?"),
        None => format!("unknown key; known keys: {}", keys().collect::<Vec<_>>().join(", ")),
    }
}

fn check_keyword(value: &Value, words: &[&str], schema: &Schema) -> Result<(), String> {
    let ValueKind::String(found) = &value.kind else {
        return Err(format!("expected one of {}, found {}", words.join(", "), describe(value)));
    };
    if words.contains(&found.as_str()) {
        return Ok(());
    }
    if reserved(schema).any(|later| later == found) {
        return Err(format!("{found:?} is reserved for a later version; this version supports {}", words.join(", ")));
    }
    let guess = nearest(found, words.iter().copied()).map(|near| format!("; did you mean {near:?}?"));
    Err(format!("expected one of {}, found {}{}", words.join(", "), describe(value), guess.unwrap_or_default()))
}

fn check_text(value: &Value, format: &str, schema: &Schema) -> Result<(), String> {
    match format {
        "time-span" => check_quantity::<Span>(value, schema, "a duration such as \"300s\""),
        "size" => check_quantity::<Size>(value, schema, "a size such as \"16MiB\""),
        _ => {
            let ValueKind::String(text) = &value.kind else {
                return Err(format!("expected a string, found {}", describe(value)));
            };
            format::validate(format, text)
        }
    }
}

/// Checks a number with a unit against the bounds of the schema. For a number without unit the error suggests one.
fn check_quantity<Q: FromStr<Err = SettingError> + Ord>(
    value: &Value,
    schema: &Schema,
    expected: &str,
) -> Result<(), String> {
    let written = if let ValueKind::String(text) = &value.kind {
        text.clone()
    } else if let ValueKind::I64(number @ 0..) = &value.kind {
        number.to_string()
    } else {
        return Err(format!("expected {expected}, found {}", describe(value)));
    };
    let bound = |name: &str| Some((schema[name].as_str()?, schema[name].as_str()?.parse::<Q>().ok()?));
    let found: Q = match written.parse() {
        Ok(found) => found,
        Err(error) => return Err(with_hint_in_bounds(&error, bound("x-maximum"))),
    };
    if let Some((text, _)) = bound("x-minimum").filter(|(_, least)| found < *least) {
        return Err(format!("{written:?} is below the minimum of {text:?}"));
    }
    if let Some((text, _)) = bound("x-maximum").filter(|(_, most)| found > *most) {
        return Err(format!("{written:?} is above the maximum of {text:?}"));
    }
    Ok(())
}

/// The error with a suggestion that is within the bounds.
fn with_hint_in_bounds<Q: FromStr<Err = SettingError> + Ord>(error: &SettingError, most: Option<(&str, Q)>) -> String {
    let (SettingError::NoUnit { found, suggestion }, Some((text, most))) = (error, most) else {
        return error.to_string();
    };
    let fits = |hint: &String| hint.parse::<Q>().is_ok_and(|hint| hint <= most);
    let smaller = ["ms", "B"].map(|unit| format!("{found}{unit}"));
    match std::iter::once(suggestion).chain(&smaller).find(|hint| fits(hint)) {
        Some(hint) => format!("{found:?} has no unit; write {hint:?}"),
        None => format!("{found:?} has no unit; the maximum is {text:?}"),
    }
}

fn check_integer(value: &Value, schema: &Schema) -> Result<(), String> {
    let ValueKind::I64(found) = &value.kind else {
        let range = match (schema["minimum"].as_u64(), schema["maximum"].as_u64()) {
            (Some(least), Some(most)) => format!(" from {least} to {most}"),
            (Some(_) | None, _) => String::new(),
        };
        return Err(format!("expected a whole number{range}, such as 10, found {}", describe(value)));
    };
    check_range(*found as f64, schema)
}

fn check_number(value: &Value, schema: &Schema) -> Result<(), String> {
    if let ValueKind::I64(found) = &value.kind {
        return check_range(*found as f64, schema);
    }
    let ValueKind::Float(found) = &value.kind else {
        return Err(format!("expected a number, found {}", describe(value)));
    };
    check_range(*found, schema)
}

fn check_range(found: f64, schema: &Schema) -> Result<(), String> {
    let unit = schema["x-unit"].as_str().unwrap_or_default();
    let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
    if found.is_nan() || least.is_some_and(|least| found < least) {
        return Err(format!("{found} is below the minimum of {} ({unit})", least.unwrap_or_default()));
    }
    match most.filter(|most| found > *most) {
        Some(most) => Err(format!("{found} is above the maximum of {most} ({unit})")),
        None => Ok(()),
    }
}

fn check_boolean(value: &Value) -> Result<(), String> {
    let ValueKind::Boolean(_) = &value.kind else {
        return Err(format!("expected true or false, found {}", describe(value)));
    };
    Ok(())
}

/// A value as messages show it: short, and without the content of tables and lists.
fn describe(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Boolean(flag) => flag.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::I128(number) => number.to_string(),
        ValueKind::U64(number) => number.to_string(),
        ValueKind::U128(number) => number.to_string(),
        // With a decimal point, so that it does not look like a whole number.
        ValueKind::Float(number) => format!("{number:?}"),
        ValueKind::String(text) => format!("{:?}", text.chars().take(SHOWN_LEN_MAX).collect::<String>()),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
    }
}
