//! The shape of a configuration file: every key, its meaning, its default and its bounds.
//!
//! The JSON Schema, the type checks and the effective configuration are derived from these structs, so that each key is
//! defined once. Unknown keys are rejected. Extensions of JSON Schema: `x-minimum` and `x-maximum` (bounds of durations
//! and sizes), `x-unit` (the unit of a plain number), `x-decides` (an optional key that decides which other keys of its
//! table apply) and `x-not-yet` (keys and values that are reserved for later versions).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{listen::ListenAddress, stream::StreamSection};
use crate::{
    auth::ClientAuth,
    downstream::{consumers, server::access},
    listener::IpNetwork,
    model::{AccountName, ConsumerName, SecretRef, Span, StreamName},
    store::{Retention, redis::Durability},
};

/// The configuration of Trunkline.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-not-yet" = ["redaction", "sinks"]))]
pub(crate) struct File {
    /// The listener for consumers.
    #[serde(default)]
    pub http: HttpConfig,
    /// The listener for health, metrics and status.
    #[serde(default)]
    pub admin: AdminConfig,
    /// Where the logs are stored.
    #[serde(default)]
    pub store: StoreSection,
    /// Credentials at a platform. The key is a name that you choose.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, AccountSection>", extend("propertyNames" = { "format": "name" }))]
    pub accounts: BTreeMap<AccountName, AccountSection>,
    /// The upstream feeds. The key is the name that consumers use.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, StreamSection>", extend("propertyNames" = { "format": "name" }))]
    pub streams: BTreeMap<StreamName, StreamSection>,
    /// Durable consumers. The key is the name that a reader gives as `consumer`; its first use creates one as well.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, consumers::Settings>", extend("propertyNames" = { "format": "name" }))]
    pub consumers: BTreeMap<ConsumerName, consumers::Settings>,
}

/// The listener for consumers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("x-not-yet" = ["tls"]))]
pub struct HttpConfig {
    /// Address and port for consumers, or host name and port such as `localhost:8080`. A name is resolved once, and
    /// IPv4 is preferred. Must be a loopback address, unless consumers authenticate (`auth`).
    #[schemars(with = "String", extend("format" = "address"))]
    pub listen: ListenAddress,
    /// Origins of web pages that may connect, such as `https://dash.example.com`. None by default, so that no web page
    /// can read events through the browser of a user on this machine.
    #[schemars(extend("items" = { "type": "string", "format": "origin" }))]
    pub allowed_origins: Vec<String>,
    /// Accepted `Host` headers in addition to loopback, such as `relay.example.com`: for a proxy that keeps the `Host`.
    #[schemars(extend("items" = { "type": "string", "format": "host" }))]
    pub allowed_hosts: Vec<String>,
    /// The maximum number of connections; fewer if the limit of open files is lower. More connections get a 503.
    #[schemars(with = "u64", range(min = 1, max = 1_000_000), extend("x-unit" = "connections"))]
    pub connections: usize,
    /// The maximum number of connections per client address. More connections of that address get a 429.
    #[schemars(with = "u64", range(min = 1, max = 1_000_000), extend("x-unit" = "connections"))]
    pub connections_per_address: usize,
    /// Proxies, such as `10.0.0.7` or `10.0.0.0/8`, whose `Forwarded` or `X-Forwarded-For` header is trusted: their
    /// connections count for the client address in the header.
    #[schemars(with = "Vec<String>", extend("items" = { "type": "string", "format": "network" }))]
    pub trusted_proxies: Vec<IpNetwork>,
    /// How consumers authenticate. Without it, every client of a loopback listener may read everything.
    pub auth: Option<access::Settings>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: loopback(8080),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            connections: 10_000,
            connections_per_address: 2_500,
            trusted_proxies: Vec::new(),
            auth: None,
        }
    }
}

/// The listener for health, metrics and status.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("x-not-yet" = ["drills"]))]
pub struct AdminConfig {
    /// Address and port of the admin listener. Must be a loopback address without `token`.
    #[schemars(with = "String", extend("format" = "address"))]
    pub listen: ListenAddress,
    /// Accepted `Host` headers in addition to loopback, such as `relay.example.com`: for a proxy that keeps the `Host`.
    #[schemars(extend("items" = { "type": "string", "format": "host" }))]
    pub allowed_hosts: Vec<String>,
    /// The token of operators, as a Bearer token: required off loopback, for all but health, readiness and metrics. Read
    /// again for each request.
    pub token: Option<SecretRef>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: loopback(9090), allowed_hosts: Vec::new(), token: None }
    }
}

/// Where the logs are stored.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("x-decides" = "kind"))]
pub(crate) struct StoreSection {
    /// The kind of store.
    pub kind: StoreKind,
    /// The directory of the embedded store, relative to the working directory. One process uses it at a time. With
    /// every kind of store, rotated refresh tokens are stored in it.
    pub path: PathBuf,
    /// The URL of Redis: `redis://HOST`, `redis+sentinel://HOST,HOST/NAME?db=0` or `redis-cluster://HOST,HOST`;
    /// `rediss` uses TLS. A URL with a password is a secret: `{ env = "NAME" }` or `{ file = "PATH" }`. Required by
    /// kind `redis`.
    pub url: Option<StoreUrl>,
    /// The Redis user; replaces the user in the URL.
    pub username: Option<String>,
    /// The Redis password; replaces the password in the URL. Read again for each connection.
    pub password: Option<SecretRef>,
    /// The user of the Sentinels. By default the Redis user.
    pub sentinel_username: Option<String>,
    /// The password of the Sentinels. By default the Redis password. Read again for each connection.
    pub sentinel_password: Option<SecretRef>,
    /// The prefix of all Redis keys. Deployments that share a Redis but not their streams need different prefixes.
    #[schemars(extend("format" = "prefix"))]
    pub prefix: String,
    /// The key that encrypts tokens in Redis.
    pub seal_key: Option<SecretRef>,
    /// When an entry is shown to consumers: `written` by the primary, or `replicated` to at least one replica.
    pub durability: Durability,
    /// The lifetime of a replica's membership. A dead owner of a stream is detected within this time.
    #[serde(with = "Span")]
    #[schemars(extend("x-minimum" = "500ms", "x-maximum" = "60s"))]
    pub lease: Duration,
    /// The maximum number of streams that one replica owns.
    #[schemars(with = "u64", range(min = 1, max = 100_000), extend("x-unit" = "streams"))]
    pub streams_max: usize,
    /// Allows a password in plain text on the network to Redis. For closed test networks only.
    pub insecure: bool,
    /// Limits of each stream's log; the oldest entries are trimmed at the first limit that is reached.
    pub retention: Retention,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            kind: StoreKind::default(),
            path: PathBuf::from("data"),
            url: None,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            prefix: "trunkline".to_owned(),
            seal_key: None,
            durability: Durability::default(),
            lease: Duration::from_secs(2),
            streams_max: 100_000,
            insecure: false,
            retention: Retention::default(),
        }
    }
}

/// The URL of a store, or a reference to it.
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

/// Credentials at a platform. All streams of the account share one token.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-decides" = "grant", "x-not-yet" = [
    "tenant", "discovery_url", "access_key_id", "access_key_secret", "access_key_form"
]))]
pub(crate) struct AccountSection {
    /// The platform.
    pub platform: PlatformKind,
    /// The platform's region as a domain, such as `mypurecloud.com`. Sets the defaults of `token_url` and `api_url`.
    #[schemars(extend("format" = "domain"))]
    pub region: Option<String>,
    /// The OAuth token endpoint. By default `https://login.{region}/oauth/token`.
    #[schemars(extend("format" = "http-url"))]
    pub token_url: Option<String>,
    /// The base URL of the REST API. By default `https://api.{region}`.
    #[schemars(extend("format" = "http-url"))]
    pub api_url: Option<String>,
    /// How Trunkline obtains a token.
    #[serde(default)]
    pub grant: GrantKind,
    /// Where the client id and secret are sent.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// The OAuth client's id. Required unless the grant is `static`.
    pub client_id: Option<SecretRef>,
    /// The OAuth client's secret. Required unless the grant is `static`.
    pub client_secret: Option<SecretRef>,
    /// The requested scopes, separated by spaces; empty for all scopes of the client.
    #[serde(default)]
    pub scope: String,
    /// The first refresh token; later ones are stored in the store's directory. Required by grant `refresh_token`.
    pub refresh_token: Option<SecretRef>,
    /// A token that another system renews; read again when its file changes. Required by grant `static`.
    pub token: Option<SecretRef>,
    /// A token is refreshed this long before it expires, or after three quarters of a lifetime shorter than four of
    /// these.
    #[serde(default = "secs::<300>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "24h"))]
    pub refresh_buffer: Span,
    /// The minimum time between two refreshes; scheduled ones and the first after a rejection are exempt.
    #[serde(default = "secs::<60>")]
    #[schemars(extend("x-maximum" = "1h"))]
    pub refresh_interval_min: Span,
    /// The maximum random delay before a scheduled refresh, so that many daemons do not request at the same time.
    #[serde(default = "secs::<2>")]
    #[schemars(extend("x-maximum" = "60s"))]
    pub refresh_jitter: Span,
    /// The lifetime of a token if neither the response nor the token contains one.
    #[serde(default = "secs::<600>")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "30d"))]
    pub lifetime_default: Span,
    /// The HTTP proxy of all connections of the account: `http://HOST:PORT`, `https` for TLS to the proxy, with
    /// `USER:PASSWORD@` before the host for a login; `none` for direct connections. By default the variables
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` apply. Connections to this machine never use a proxy.
    #[schemars(extend("format" = "proxy-url"))]
    pub proxy: Option<String>,
    /// Hosts that do not use the proxy: domains with their subdomains, addresses, networks such as `10.0.0.0/8`.
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "format": "proxy-exception" }))]
    pub no_proxy: Vec<String>,
    /// Allows credentials over plain `http` and `ws` to other machines. For closed test networks only.
    #[serde(default)]
    pub insecure: bool,
}

/// The platforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(extend("x-not-yet" = ["nice-cxone"]))]
pub enum PlatformKind {
    /// Genesys Cloud: `region` sets all URLs.
    GenesysCloud,
    /// Another platform with OAuth: `token_url` and `api_url` are set explicitly.
    Generic,
}

/// How Trunkline obtains a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(extend("x-not-yet" = ["jwt_bearer", "access_key"]))]
pub(crate) enum GrantKind {
    /// With the client id and secret (RFC 6749 section 4.4).
    #[default]
    ClientCredentials,
    /// With a refresh token that the platform may rotate (RFC 6749 section 6).
    RefreshToken,
    /// No request: the token is configured.
    Static,
}

fn loopback(port: u16) -> ListenAddress {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()
}

fn secs<const N: u64>() -> Span {
    Span(Duration::from_secs(N))
}
