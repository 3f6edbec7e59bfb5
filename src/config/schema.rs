//! The JSON Schema (draft 2020-12) of the configuration, derived from `shape`, and its accessors for the checks.

use schemars::{Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

use super::shape::File;

/// The JSON Schema of a configuration file. Every key has its description, and its default if it has one.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| settings.inline_subschemas = true);
    let schema = settings.with_transform(without_null()).into_generator().into_root_schema_for::<File>();
    schema.to_value()
}

/// Removes null from a schema and all schemas in it.
fn without_null() -> RecursiveTransform<fn(&mut Schema)> {
    RecursiveTransform(drop_null)
}

/// Removes null from the schema: TOML has no null, and an optional key may be absent.
fn drop_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
    if let Some(Value::Array(types)) = object.get("type") {
        let non_null = types.iter().find(|name| *name != "null").cloned();
        object.insert("type".to_owned(), non_null.expect("nothing is null alone"));
    }
    let Some(Value::Array(choices)) = object.get("anyOf") else { return };
    let Some(Value::Object(some)) = choices.iter().find(|choice| choice["type"] != "null").cloned() else { return };
    object.remove("anyOf");
    for (key, value) in some {
        object.entry(key).or_insert(value);
    }
}

/// The type of value that a schema requires.
#[derive(Debug)]
pub(super) enum ExpectedValue<'a> {
    Table,
    List,
    Secret,
    /// One of these values.
    OneOf(Vec<&'a str>),
    /// Text of this format; empty for any text.
    Text(&'a str),
    Integer,
    Number,
    Boolean,
}

pub(super) fn expected(schema: &Value) -> ExpectedValue<'_> {
    let format = schema["format"].as_str().unwrap_or_default();
    if format == "secret" {
        return ExpectedValue::Secret;
    }
    let words = words(schema);
    if !words.is_empty() {
        return ExpectedValue::OneOf(words);
    }
    match schema["type"].as_str().unwrap_or_default() {
        "object" => ExpectedValue::Table,
        "array" => ExpectedValue::List,
        "integer" => ExpectedValue::Integer,
        "number" => ExpectedValue::Number,
        "boolean" => ExpectedValue::Boolean,
        _ => ExpectedValue::Text(format),
    }
}

/// The schema of the secret reference that is allowed in place of a string.
pub(super) fn or_secret(schema: &Value) -> Option<&Value> {
    schema["anyOf"].as_array()?.iter().find(|choice| choice["format"] == "secret")
}

/// The values of a choice: plain ones in `enum`, described ones in `oneOf`.
fn words(schema: &Value) -> Vec<&str> {
    let plain = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let described = schema["oneOf"].as_array().into_iter().flatten().filter_map(|choice| choice["const"].as_str());
    plain.chain(described).collect()
}

/// The keys or values that are reserved for later versions.
pub(super) fn reserved(schema: &Value) -> impl Iterator<Item = &str> {
    schema["x-not-yet"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The schema of a key in a table. In a table of user-defined names all keys have the same schema.
pub(super) fn at_key<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema["properties"].get(key).or_else(|| Some(&schema["additionalProperties"]).filter(|any| any.is_object()))
}

/// The schema of the value at a path.
pub(super) fn at_path<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(schema, |schema, key| at_key(schema, key))
}
