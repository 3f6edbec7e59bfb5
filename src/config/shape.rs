//! The shape of a configuration file: every key, its meaning, its default and its bounds.
//!
//! The JSON Schema, the checks of types and the effective configuration are derived from these structs, so that a key
//! is written down once. It refuses keys that it does not know. Beside the words of JSON Schema it uses `x-minimum` and
//! `x-maximum` (bounds of durations and sizes), `x-unit` (what a plain number counts), `x-decides` (an optional key on
//! which the meaning of its neighbours hangs) and `x-not-yet` (keys and words that are known but not offered).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::listen::ListenAddress;
use crate::model::{AccountName, SecretRef, Size, Span, StreamName};

/// The configuration of the relay.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-not-yet" = ["consumers", "redaction", "sinks"]))]
pub(crate) struct File {
    /// The listener for consumers.
    #[serde(default = "all_defaults::<HttpSection>")]
    pub http: HttpSection,
    /// The listener for health, metrics and status.
    #[serde(default = "all_defaults::<AdminSection>")]
    pub admin: AdminSection,
    /// Where the logs live.
    #[serde(default = "all_defaults::<StoreSection>")]
    pub store: StoreSection,
    /// Credentials at a platform, by a name of your own.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, AccountSection>", extend("propertyNames" = { "format": "name" }))]
    pub accounts: BTreeMap<AccountName, AccountSection>,
    /// The upstream feeds, by the name that consumers will use.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, StreamSection>", extend("propertyNames" = { "format": "name" }))]
    pub streams: BTreeMap<StreamName, StreamSection>,
}

/// The listener for consumers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-not-yet" = ["auth", "tls"]))]
pub(crate) struct HttpSection {
    /// Address and port where consumers connect, or a name and port, such as `localhost:8080`: its first address is
    /// taken, IPv4 before IPv6. Only loopback as long as consumers cannot be authenticated.
    #[serde(default = "loopback::<8080>")]
    #[schemars(with = "String", extend("format" = "address"))]
    pub listen: ListenAddress,
    /// Origins of the web pages that may connect, as in `https://dash.example.com`. None by default: a page of
    /// another site cannot read events through the browser of somebody who sits next to the relay.
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "format": "origin" }))]
    pub allowed_origins: Vec<String>,
    /// Hosts that it answers to beside its own addresses, as `relay.example.com`: for a proxy that keeps the `Host`.
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "format": "host" }))]
    pub allowed_hosts: Vec<String>,
    /// Connections in all; fewer where the system allows the process fewer open files. One more is answered with 503.
    #[serde(default = "count::<10_000>")]
    #[schemars(range(min = 1, max = 1_000_000), extend("x-unit" = "connections"))]
    pub connections: u64,
    /// Connections of one address, so that one cannot take them all. One more is answered with 429.
    #[serde(default = "count::<2_500>")]
    #[schemars(range(min = 1, max = 1_000_000), extend("x-unit" = "connections"))]
    pub connections_per_address: u64,
    /// Proxies, as `10.0.0.7` or `10.0.0.0/8`, whose `Forwarded` or `X-Forwarded-For` is believed: what they bring counts
    /// for the client that they name.
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "format": "network" }))]
    pub trusted_proxies: Vec<String>,
}

/// The listener for health, metrics and status.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-not-yet" = ["token", "drills"]))]
pub(crate) struct AdminSection {
    /// Address and port of the admin listener. Only loopback as long as operators cannot be authenticated.
    #[serde(default = "loopback::<9090>")]
    #[schemars(with = "String", extend("format" = "address"))]
    pub listen: ListenAddress,
    /// Hosts that it answers to beside its own addresses, as `relay.example.com`: for a proxy that keeps the `Host`.
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "format": "host" }))]
    pub allowed_hosts: Vec<String>,
}

/// Where the logs live.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-decides" = "kind"))]
pub(crate) struct StoreSection {
    /// The kind of store.
    #[serde(default)]
    pub kind: StoreKind,
    /// The directory of the embedded store, relative to the working directory. One process uses it at a time. Rotated
    /// refresh tokens are kept in it with every kind of store.
    #[serde(default = "store_path")]
    pub path: PathBuf,
    /// Which Redis: `redis://HOST`, `redis+sentinel://HOST,HOST/NAME?db=0` or `redis-cluster://HOST,HOST`; with
    /// `rediss` for TLS. Or where it is found, if it holds a password: `{ env = "NAME" }` or `{ file = "PATH" }`.
    /// Required by the kind `redis`.
    pub url: Option<StoreUrl>,
    /// The user of Redis, in place of the one that the URL holds.
    pub username: Option<String>,
    /// The password of Redis, in place of the one that the URL holds. Read again for each connection.
    pub password: Option<SecretRef>,
    /// The user of the Sentinels, where it is not that of Redis.
    pub sentinel_username: Option<String>,
    /// The password of the Sentinels. Without it that of Redis is tried there. Read again for each connection.
    pub sentinel_password: Option<SecretRef>,
    /// The beginning of all keys in Redis. Relays that have nothing to do with each other need different ones.
    #[serde(default = "store_prefix")]
    #[schemars(extend("format" = "prefix"))]
    pub prefix: String,
    /// The key that seals tokens in Redis.
    pub seal_key: Option<SecretRef>,
    /// When an entry is shown to consumers: `written` by the primary, or `replicated` to at least one replica.
    #[serde(default)]
    pub durability: DurabilityConfig,
    /// Life of a replica's membership: a dead holder of a stream is noticed within it.
    #[serde(default = "secs::<2>")]
    #[schemars(extend("x-minimum" = "500ms", "x-maximum" = "60s"))]
    pub lease: Span,
    /// Streams that one replica keeps at most.
    #[serde(default = "count::<100_000>")]
    #[schemars(range(min = 1, max = 100_000), extend("x-unit" = "streams"))]
    pub streams_max: u64,
    /// Lets a password travel to Redis in plain text. For a closed test network only.
    #[serde(default)]
    pub insecure: bool,
    /// How much of each stream's log is kept; the first limit that is reached trims.
    #[serde(default = "all_defaults::<RetentionSection>")]
    pub retention: RetentionSection,
}

/// The URL of a store, or where it is found.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum StoreUrl {
    Text(String),
    Secret(SecretRef),
}

impl JsonSchema for StoreUrl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StoreUrl".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let secret = SecretRef::json_schema(generator);
        schemars::json_schema!({ "format": "redis-url", "anyOf": [{ "type": "string" }, secret] })
    }
}

/// The kinds of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreKind {
    /// A database in one directory of this machine.
    #[default]
    Embedded,
    /// Redis 7 or later, or Valkey.
    Redis,
}

/// When an entry in Redis counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityConfig {
    /// The primary has it.
    #[default]
    Written,
    /// A replica has it, too.
    Replicated,
}

/// How much of each stream's log is kept.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetentionSection {
    /// Entries per stream. A consumer that falls further behind is told of a gap.
    #[serde(default = "count::<1_000_000>")]
    #[schemars(range(min = 1), extend("x-unit" = "entries"))]
    pub events: u64,
    /// Age of the oldest entry.
    #[serde(default = "secs::<86_400>")]
    #[schemars(extend("x-minimum" = "1s"))]
    pub age: Span,
    /// Bytes per stream, counted as events without what the database adds.
    #[serde(default = "mib::<4096>")]
    #[schemars(extend("x-minimum" = "1MiB"))]
    pub bytes: Size,
}

/// Credentials at a platform: one token life, shared by every stream that names the account.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-decides" = "grant", "x-not-yet" = [
    "tenant", "discovery_url", "access_key_id", "access_key_secret", "access_key_form"
]))]
pub(crate) struct AccountSection {
    /// The platform.
    pub platform: PlatformKind,
    /// The platform's region as a domain, such as `mypurecloud.com`. Gives `token_url` and `api_url`.
    #[schemars(extend("format" = "domain"))]
    pub region: Option<String>,
    /// The OAuth token endpoint. By default `https://login.{region}/oauth/token`.
    #[schemars(extend("format" = "http-url"))]
    pub token_url: Option<String>,
    /// The REST API's base address. By default `https://api.{region}`.
    #[schemars(extend("format" = "http-url"))]
    pub api_url: Option<String>,
    /// How a token is got.
    #[serde(default)]
    pub grant: GrantKind,
    /// Where id and secret of the client are sent.
    #[serde(default)]
    pub client_auth: ClientAuthKind,
    /// The OAuth client's id. Required unless the grant is `static`.
    pub client_id: Option<SecretRef>,
    /// The OAuth client's secret. Required unless the grant is `static`.
    pub client_secret: Option<SecretRef>,
    /// The scopes asked for, with a space between; empty for all that the client has.
    #[serde(default)]
    pub scope: String,
    /// The first refresh token; later ones are kept beside the store. Required by the grant `refresh_token`.
    pub refresh_token: Option<SecretRef>,
    /// A token that somebody else renews; read again when its file changes. Required by the grant `static`.
    pub token: Option<SecretRef>,
    /// A token is renewed this long before its end; a quarter of its life, if that is shorter than four of these.
    #[serde(default = "secs::<300>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "24h"))]
    pub refresh_buffer: Span,
    /// At most one refresh in this time; scheduled ones and the first after a rejection are exempt.
    #[serde(default = "secs::<60>")]
    #[schemars(extend("x-maximum" = "1h"))]
    pub refresh_interval_min: Span,
    /// Upper bound of the random delay before a scheduled refresh, so that many relays do not ask at once.
    #[serde(default = "secs::<2>")]
    #[schemars(extend("x-maximum" = "60s"))]
    pub refresh_jitter: Span,
    /// Life of a token when neither the answer nor the token itself tells one.
    #[serde(default = "secs::<600>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "30d"))]
    pub lifetime_default: Span,
    /// The HTTP proxy of every connection of the account: `http://HOST:PORT`, or `https` for one that is reached over TLS,
    /// with `USER:PASSWORD@` before the host where it wants a login; `none` for direct connections. Without it the
    /// variables `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` hold. This machine is never reached by a proxy.
    #[schemars(extend("format" = "proxy-url"))]
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy: domains with all below them, addresses, networks such as `10.0.0.0/8`.
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "format": "proxy-exception" }))]
    pub no_proxy: Vec<String>,
    /// Allows credentials over plain `http` and `ws` to other machines. For a closed test network only.
    #[serde(default)]
    pub insecure: bool,
}

/// The platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("x-not-yet" = ["nice-cxone"]))]
pub enum PlatformKind {
    /// Genesys Cloud: the region gives every address.
    GenesysCloud,
    /// Any other that speaks OAuth: addresses are written out.
    Generic,
}

/// How a token is got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(extend("x-not-yet" = ["jwt_bearer", "access_key"]))]
pub(crate) enum GrantKind {
    /// With the client's id and secret (RFC 6749 section 4.4).
    #[default]
    ClientCredentials,
    /// With a refresh token that the platform may rotate (RFC 6749 section 6).
    RefreshToken,
    /// Not at all: the token is given.
    Static,
}

/// Where id and secret of the client are sent (RFC 6749 section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ClientAuthKind {
    /// In the `Authorization` header.
    #[default]
    Basic,
    /// In the form.
    Body,
}

/// One upstream feed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-not-yet" = [
    "state_key", "redact", "keep_undecoded", "lanes", "channels_max", "deployment_id", "origin", "api_url", "authenticated",
    "station_id", "station_phone_number", "session_id", "api_version", "poll_timeout", "resources", "poll_interval",
    "user_id", "endpoint", "credential", "renewal", "liveness", "resume", "subscribe", "retire", "decode"
]))]
pub(crate) struct StreamSection {
    /// The account whose token opens the feed: a NAME of `[accounts.NAME]`.
    pub account: String,
    /// The dialect that the platform speaks on this feed.
    pub connector: ConnectorName,
    /// Topics, at most 1,000. `*` in an id's place stands for every queue, user and so on.
    /// Required by `genesys-notifications`, and only its own.
    #[schemars(length(max = 1000), extend("items" = { "type": "string", "format": "topic" }))]
    pub topics: Option<Vec<String>>,
    /// Life of a notification channel: it is replaced before its end. `genesys-notifications` only.
    #[serde(default = "secs::<86_400>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "24h"))]
    pub channel_life: Span,
    /// How often `*` in a topic is looked up anew. `genesys-notifications` only.
    #[serde(default = "secs::<60>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "24h"))]
    pub discovery: Span,
    /// The socket's address without the resume parameter. Required by `genesys-sequenced`, and only its own.
    #[schemars(extend("format" = "ws-url"))]
    pub url: Option<String>,
    /// Where the token is put. `genesys-sequenced` only.
    #[serde(default)]
    pub auth: SocketAuth,
    /// Where a full picture is fetched after a gap; without it a gap stays a gap. `genesys-sequenced` only.
    #[schemars(extend("format" = "http-url"))]
    pub snapshot_url: Option<String>,
    /// What a planned change of socket looks like.
    #[serde(default)]
    pub rotation: RotationConfig,
    /// Upper bound of the random delay before a planned change, so that streams of one account do not move at once.
    #[serde(default = "millis::<100>")]
    #[schemars(extend("x-maximum" = "60s"))]
    pub rotation_jitter: Span,
    /// For how long the platform can replay. An older position is abandoned, and the gap is marked.
    #[serde(default = "secs::<60>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "30d"))]
    pub retention: Span,
    /// Events that may wait for the store.
    #[serde(default = "count::<5000>")]
    #[schemars(range(min = 1, max = 1_000_000), extend("x-unit" = "events"))]
    pub buffer: u64,
    /// Bytes of events that may wait for the store, however few they are. Beyond either bound `overflow` rules.
    #[serde(default = "mib::<64>")]
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "16GiB"))]
    pub buffer_bytes: Size,
    /// What happens when the buffer is full. By default `backpressure` where the platform can replay, else
    /// `drop-oldest`.
    pub overflow: Option<OverflowConfig>,
    /// A socket that is silent for longer is taken for dead. Longer than the platform's heartbeat.
    #[serde(default = "secs::<35>")]
    #[schemars(extend("x-minimum" = "100ms", "x-maximum" = "1h"))]
    pub silence_max: Span,
    /// How a lost connection is taken up again. A planned change of socket never waits.
    #[serde(default = "all_defaults::<BackoffSection>")]
    pub backoff: BackoffSection,
    /// With replicas on one Redis: a second one holds a session of its own ready, so that a dead holder is followed within
    /// half a second. It takes one more connection of the platform's.
    #[serde(default)]
    pub standby: bool,
    /// A larger frame closes the socket and is marked as a gap.
    #[serde(default = "mib::<16>")]
    #[schemars(extend("x-minimum" = "1KiB", "x-maximum" = "256MiB"))]
    pub frame_max: Size,
}

/// The dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("x-not-yet" = [
    "cxone-offset", "cxone-agent-session", "cxone-realtime-data", "cxone-event-hub", "genesys-web-messaging", "generic"
]))]
pub(crate) enum ConnectorName {
    /// Genesys Cloud notifications: topics on a channel, without replay.
    GenesysNotifications,
    /// Numbered events, resumed by `sequenceId`.
    GenesysSequenced,
}

/// Where the token is put when a socket is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SocketAuth {
    /// `Authorization: Bearer`.
    #[default]
    Header,
    /// The query parameter `auth_token`: for platforms that take nothing else, since addresses end up in logs.
    Query,
}

/// What a planned change of socket looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RotationConfig {
    /// The new socket is live before the old one is closed.
    #[default]
    Overlap,
    /// The old socket is closed first: for platforms that allow one only.
    BreakFirst,
}

/// What happens when a stream's buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverflowConfig {
    /// The socket is not read until there is room: nothing is lost where the platform can replay.
    Backpressure,
    /// The oldest events are dropped, and the gap is marked.
    DropOldest,
}

/// How a lost connection is taken up again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackoffSection {
    /// Delay before the second attempt; each further one doubles it.
    #[serde(default = "secs::<1>")]
    #[schemars(extend("x-minimum" = "10ms", "x-maximum" = "1h"))]
    pub first: Span,
    /// The longest delay, and the pace of probes once the breaker is open.
    #[serde(default = "secs::<30>")]
    #[schemars(extend("x-minimum" = "10ms", "x-maximum" = "1h"))]
    pub cap: Span,
    /// Each delay is up to this share longer or shorter, so that relays do not come back in step.
    #[serde(default = "jitter")]
    #[schemars(range(min = 0.0, max = 1.0), extend("x-unit" = "share of the delay"))]
    pub jitter: f64,
    /// After so many failures in a row the breaker opens and an alarm is raised; attempts go on, once each `cap`.
    #[serde(default = "attempts")]
    #[schemars(range(min = 1, max = 1000), extend("x-unit" = "failures"))]
    pub breaker_after: u32,
    /// A connection that lives this long has proved stable: the count starts over.
    #[serde(default = "secs::<10>")]
    #[schemars(extend("x-maximum" = "1h"))]
    pub stable_after: Span,
}

/// A table of which every key has a default.
fn all_defaults<T: DeserializeOwned>() -> T {
    serde_json::from_str("{}").expect("every key of the table has a default")
}

fn loopback<const PORT: u16>() -> ListenAddress {
    SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).into()
}

fn store_path() -> PathBuf {
    PathBuf::from("data")
}

fn store_prefix() -> String {
    "trunkline".to_owned()
}

fn count<const N: u64>() -> u64 {
    N
}

fn secs<const N: u64>() -> Span {
    Span(Duration::from_secs(N))
}

fn millis<const N: u64>() -> Span {
    Span(Duration::from_millis(N))
}

fn mib<const N: u64>() -> Size {
    Size(N << 20)
}

fn jitter() -> f64 {
    0.2
}

fn attempts() -> u32 {
    5
}
