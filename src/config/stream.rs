//! One stream in the file: a table with the keys of every stream and the keys of its connector.
//!
//! No connector is named here: the registry has the keys of each one with their schema, defaults and checks.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::{Map, Value, json};

use crate::{
    connector::{Connector, DialectKeys},
    model::{AccountName, OverflowPolicy, Rotation, Size, Span},
    protocol::backoff,
};

/// Connectors that are reserved for later versions.
const CONNECTORS_NOT_YET: [&str; 6] = [
    "cxone-offset",
    "cxone-agent-session",
    "cxone-realtime-data",
    "cxone-event-hub",
    "genesys-web-messaging",
    "generic",
];

/// The longest time from the first byte of a frame to its last. No platform needs another value.
const FRAME_TIME_MAX: Duration = Duration::from_secs(30);

/// One upstream feed.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// It exists.
    pub account: AccountName,
    pub connector: Connector,
    /// What happens when the buffer is full.
    pub overflow: OverflowPolicy,
    pub keys: StreamKeys,
}

/// One upstream feed, as far as its table could be read.
#[derive(Debug, Clone)]
pub(super) struct StreamSection {
    pub(super) head: StreamHead,
    pub(super) keys: StreamKeys,
    pub(super) dialect: &'static DialectKeys,
    pub(super) connector: Connector,
    /// Required keys of the connector without a valid value; they are empty in `connector`.
    pub(super) absent: Vec<&'static str>,
}

/// Account and connector, and what depends on the connector.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false, "x-not-yet" = [
    "state_key", "redact", "keep_undecoded", "lanes", "channels_max", "deployment_id", "origin", "api_url", "authenticated",
    "station_id", "station_phone_number", "session_id", "api_version", "poll_timeout", "resources", "poll_interval",
    "user_id", "endpoint", "credential", "renewal", "liveness", "resume", "subscribe", "retire", "decode"
]))]
pub(super) struct StreamHead {
    /// The account of the stream: a NAME of `[accounts.NAME]`.
    pub(super) account: String,
    /// The protocol of this feed.
    #[schemars(schema_with = "connector_schema")]
    connector: String,
    /// The policy of a full buffer. By default `backpressure` where the platform can replay, else
    /// `drop-oldest`.
    pub(super) overflow: Option<OverflowPolicy>,
}

/// The keys of every stream that depend on no other key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StreamKeys {
    /// How the socket is replaced in a planned rotation.
    pub rotation: Rotation,
    /// The maximum random delay before a planned rotation, so that streams of one account do not rotate at the same
    /// time.
    #[serde(with = "Span")]
    #[schemars(extend("x-maximum" = "60s"))]
    pub rotation_jitter: Duration,
    /// How long the platform can replay events. An older position is abandoned, and a gap is written.
    #[serde(with = "Span")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "30d"))]
    pub retention: Duration,
    /// The maximum number of events that wait for the store.
    #[schemars(with = "u64", range(min = 1, max = 1_000_000), extend("x-unit" = "events"))]
    pub buffer: usize,
    /// The maximum bytes of events that wait for the store. At either limit `overflow` applies.
    #[serde(with = "Size")]
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "16GiB"))]
    pub buffer_bytes: usize,
    /// A socket without data for longer is considered dead. Must be longer than the platform's heartbeat interval.
    #[serde(with = "Span")]
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "1h"))]
    pub silence_max: Duration,
    /// Delays between attempts after a lost connection. A planned rotation has no delay.
    pub backoff: backoff::Settings,
    /// With replicas on one Redis: a second replica keeps a session open, so that it replaces a dead owner within half
    /// a second. Uses one more connection to the platform.
    pub standby: bool,
    /// A larger frame closes the socket, and a gap is written.
    #[serde(with = "Size")]
    #[schemars(extend("x-minimum" = "1KiB", "x-maximum" = "256MiB"))]
    pub frame_max: usize,
    /// The longest time from the first byte of a frame to its last. Not a key of the file.
    #[serde(skip)]
    pub frame_time_max: Duration,
}

impl Default for StreamKeys {
    fn default() -> Self {
        Self {
            rotation: Rotation::default(),
            rotation_jitter: Duration::from_millis(100),
            retention: Duration::from_secs(60),
            buffer: 5_000,
            buffer_bytes: 64 << 20,
            silence_max: Duration::from_secs(35),
            backoff: backoff::Settings::default(),
            standby: false,
            frame_max: 16 << 20,
            frame_time_max: FRAME_TIME_MAX,
        }
    }
}

/// Each part reads its own keys. `walk` has rejected unknown keys, and `check` rejects the keys of other connectors.
impl<'de> Deserialize<'de> for StreamSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = Map::<String, Value>::deserialize(deserializer)?;
        let head: StreamHead = read(&table)?;
        let keys = read(&table)?;
        let dialect = Connector::dialects().iter().find(|dialect| dialect.name == head.connector);
        let dialect = dialect.ok_or_else(|| D::Error::custom("the connector is unknown"))?;
        let own: Map<_, _> = table.into_iter().filter(|(key, _)| dialect.contains(key)).collect();
        let absent = dialect.required().filter(|key| !own.contains_key(*key)).collect();
        let connector = dialect.read(own).map_err(D::Error::custom)?;
        Ok(Self { head, keys, dialect, connector, absent })
    }
}

fn read<T: serde::de::DeserializeOwned, E: serde::de::Error>(table: &Map<String, Value>) -> Result<T, E> {
    serde_json::from_value(Value::Object(table.clone())).map_err(E::custom)
}

impl Serialize for StreamSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let head = serde_json::to_value(&self.head).map_err(S::Error::custom)?;
        let keys = serde_json::to_value(&self.keys).map_err(S::Error::custom)?;
        let parts = [head, keys, self.connector.settings()];
        serializer.collect_map(parts.iter().filter_map(Value::as_object).flatten())
    }
}

impl JsonSchema for StreamSection {
    fn schema_name() -> Cow<'static, str> {
        "StreamSection".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = StreamHead::json_schema(generator);
        let keys = StreamKeys::json_schema(generator);
        let table = schema.ensure_object();
        let mut properties = table.remove("properties").unwrap_or_default();
        if let (Value::Object(properties), Some(Value::Object(keys))) = (&mut properties, keys.get("properties")) {
            properties.extend(keys.clone());
            for (key, schema) in Connector::dialects().iter().flat_map(DialectKeys::keys) {
                properties.entry(key).or_insert_with(|| with_connectors(key, schema));
            }
        }
        if let Some(Value::Array(later)) = table.get_mut("x-not-yet") {
            later.retain(|key| properties.get(key.as_str().unwrap_or_default()).is_none());
        }
        table.insert("properties".to_owned(), properties);
        table.insert("description".to_owned(), "One upstream feed.".into());
        schema
    }
}

/// The names of the connectors, of this version and of later ones.
fn connector_schema(_: &mut SchemaGenerator) -> Schema {
    let dialects = Connector::dialects();
    let name = |dialect: &DialectKeys| json!({ "const": dialect.name, "description": dialect.description(), "type": "string" });
    let is_later = |name: &&str| dialects.iter().all(|dialect| dialect.name != *name);
    let later: Vec<_> = CONNECTORS_NOT_YET.into_iter().filter(is_later).collect();
    json_schema!({ "oneOf": dialects.iter().map(name).collect::<Vec<_>>(), "x-not-yet": later })
}

/// The schema of a connector's key; the description also names the connectors that have it.
fn with_connectors(key: &str, schema: &Value) -> Value {
    let names = |has: &dyn Fn(&DialectKeys) -> bool| {
        let dialects = Connector::dialects().iter().filter(|dialect| has(dialect));
        dialects.map(|dialect| format!("`{}`", dialect.name)).collect::<Vec<_>>().join(" and ")
    };
    let having = names(&|dialect| dialect.contains(key));
    let requiring = names(&|dialect| dialect.required().any(|required| required == key));
    let note = match requiring.as_str() {
        "" => format!("{having} only."),
        all if all == having => format!("Required by {having}; not allowed with other connectors."),
        some => format!("{having} only; required by {some}."),
    };
    let mut schema = schema.clone();
    let about = schema["description"].as_str().unwrap_or_default();
    schema["description"] = format!("{about} {note}").into();
    schema
}
