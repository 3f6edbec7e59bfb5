//! The tested files as values, and `trunkline check` for the configurations in them.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::Value;

/// Maximal nesting of `<<` in the files.
const MERGES_MAX: usize = 4;

/// A path in the repository.
pub(super) fn path(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

pub(super) fn text(of: &str) -> String {
    fs::read_to_string(path(of)).unwrap_or_else(|error| panic!("{of}: {error}"))
}

/// Every document of a YAML file, with merge keys resolved.
pub(super) fn documents(of: &str) -> Vec<Value> {
    let text = text(of);
    let read = |document: serde_yaml_ng::Deserializer<'_>| {
        let mut value = serde_yaml_ng::Value::deserialize(document).unwrap_or_else(|error| panic!("{of}: {error}"));
        // A merged value may contain merge keys.
        for _ in 0..MERGES_MAX {
            value.apply_merge().unwrap();
        }
        serde_json::to_value(value).unwrap()
    };
    serde_yaml_ng::Deserializer::from_str(&text).map(read).collect()
}

pub(super) fn document(of: &str) -> Value {
    let [only] = documents(of).try_into().unwrap_or_else(|all: Vec<Value>| panic!("{of}: {} documents", all.len()));
    only
}

/// The strings of a list.
pub(super) fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// The number of seconds in a text like `45s`.
pub(super) fn seconds(span: &str) -> u64 {
    span.strip_suffix('s').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{span}"))
}

/// Loopback addresses without a listener.
pub(super) fn free<const N: usize>() -> [SocketAddr; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

/// The longest drain in seconds, from the constant in the source.
pub(super) fn drain_secs_max() -> u64 {
    let source = text("src/app.rs");
    let grace = |group: &str| {
        let begin = format!("const {group}_GRACE: Duration = Duration::from_secs(");
        let value = source.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_else(|| panic!("{begin}"));
        value.trim_end_matches(");").parse::<u64>().unwrap()
    };
    let streams = grace("UPSTREAM") + grace("REPLICAS") + grace("DOWNSTREAM");
    grace("HANDOVER") + streams.max(grace("ACCOUNTS")) + grace("ADMIN")
}

/// Runs `trunkline check` with only these variables. Removes settings that this build does not support.
pub(super) fn assert_good(name: &str, config: &str, variables: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let redis = offers_redis();
    let config = if redis { config.to_owned() } else { without_redis(config) };
    fs::write(folder.path().join("trunkline.toml"), config).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let variables = variables.iter().filter(|(name, _)| redis || *name != "TRUNKLINE__STORE__URL");
    check.args(["check", "--config", "trunkline.toml"]).current_dir(&folder).envs(variables.copied());
    let output = check.output().unwrap();
    let output = (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    assert_eq!(output.0, Some(0), "{name}:\n{}", output.1);
}

fn offers_redis() -> bool {
    let schema = Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["config", "schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let later = schema.pointer("/properties/store/properties/kind/x-not-yet");
    !later.is_some_and(|words| strings(words).contains(&"redis"))
}

/// The `[store]` table without the lines of the Redis store.
fn without_redis(config: &str) -> String {
    let of_redis = |line: &&str| ["kind = ", "url = \"redis", "prefix = "].iter().any(|key| line.starts_with(key));
    config.lines().filter(|line| !of_redis(line)).map(|line| format!("{line}\n")).collect()
}
