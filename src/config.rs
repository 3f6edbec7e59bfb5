//! The configuration: files and environment in, one checked value out, or every mistake at once.
//!
//! `shape` says what may be written, `source` where it was written, `walk` holds each value against the schema,
//! `check` holds values against one another, `resolve` fills in the rest. Nothing is guessed and nothing is ignored:
//! an unknown key, a key without effect and a key of a later build are mistakes. No secret is ever shown.

mod check;
mod finding;
mod format;
#[cfg(test)]
mod golden;
mod guarantee;
mod host_check;
mod keys;
mod listen;
mod logins;
mod proxies;
mod resolve;
mod schema;
mod secrets;
mod shape;
mod show;
mod source;
mod syntax;
#[cfg(test)]
mod tests;
mod walk;
mod warnings;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use config::Value;

use crate::{
    auth,
    listener::IpNetwork,
    model::{AccountName, SecretRef, StreamName},
    network,
    store::redis::{Credentials, address::Address},
};

pub use finding::{Finding, Findings};
pub use guarantee::Guarantee;
pub use host_check::check_host;
pub use schema::schema;
pub use shape::{DurabilityConfig, OverflowConfig, PlatformKind, RotationConfig, SocketAuth};
pub use source::Environment;

use finding::KeyPath;
use shape::File;
use source::Document;

/// Everything the wiring needs. All references hold, all defaults are filled in.
#[derive(Debug, Clone)]
pub struct Config {
    pub http: HttpConfig,
    pub admin: AdminConfig,
    pub store: StoreConfig,
    pub accounts: BTreeMap<AccountName, AccountConfig>,
    /// Each names an account that is there.
    pub streams: BTreeMap<StreamName, StreamConfig>,
    /// Parts that cannot work and keep nothing else from working. `check` refuses them, `run` reports them.
    pub ineffective: Vec<Finding>,
    /// What is probably not meant, although it keeps nothing from running.
    pub warnings: Vec<Finding>,
}

/// The listener for consumers.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    /// As browsers write them in `Origin`.
    pub allowed_origins: Vec<String>,
    /// Hosts that it answers to beside its own addresses.
    pub allowed_hosts: Vec<String>,
    pub connections: usize,
    pub connections_per_address: usize,
    pub trusted_proxies: Vec<IpNetwork>,
}

/// The listener for operators.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    pub listen: SocketAddr,
    /// Hosts that it answers to beside its own addresses.
    pub allowed_hosts: Vec<String>,
}

/// The store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub kind: StoreBackend,
    /// The embedded store's directory; rotated refresh tokens are kept there with every kind.
    pub path: PathBuf,
    pub retention: RetentionConfig,
}

/// The kinds of store, with their own keys.
#[derive(Debug, Clone)]
pub enum StoreBackend {
    Embedded,
    Redis(Box<RedisConfig>),
}

/// A store in Redis.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    pub address: Address,
    /// Logins beside those of the address; secrets in them are not read yet.
    pub credentials: Credentials,
    /// The beginning of all keys.
    pub prefix: String,
    pub durability: DurabilityConfig,
    /// Life of a replica's membership.
    pub lease: Duration,
    /// Streams that one replica keeps at most.
    pub streams_max: usize,
    /// Seals tokens at rest.
    pub seal_key: Option<SecretRef>,
}

/// How much of each stream's log is kept; the first limit that is reached trims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionConfig {
    pub events: u64,
    pub age: Duration,
    pub bytes: u64,
}

/// Credentials at a platform.
#[derive(Debug, Clone)]
pub struct AccountConfig {
    pub platform: PlatformKind,
    /// The REST API's base address without a path; a generic platform may have none.
    pub api_url: Option<String>,
    /// `token_url` is empty with a static token, which never asks for another.
    pub auth: auth::Settings,
    /// How its connections are made.
    pub network: network::Settings,
}

/// One upstream feed.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    pub account: AccountName,
    pub connector: ConnectorConfig,
    pub rotation: RotationConfig,
    /// Upper bound of the random delay before a planned change of socket.
    pub rotation_jitter: Duration,
    /// For how long the platform can replay.
    pub retention: Duration,
    /// Events that may wait for the store.
    pub buffer: usize,
    /// Bytes of events that may wait for the store.
    pub buffer_bytes: usize,
    pub overflow: OverflowConfig,
    /// A socket that is silent for longer is taken for dead.
    pub silence_max: Duration,
    pub backoff: BackoffConfig,
    /// Bytes of the largest frame that is taken.
    pub frame_max: usize,
    /// From the first bytes of a frame until it is whole. The file has no key for it.
    pub frame_time_max: Duration,
    /// Another replica than the holder has a session ready.
    pub standby: bool,
}

/// The dialect of a stream with its own keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectorConfig {
    GenesysNotifications {
        /// The account's.
        api_url: String,
        topics: Vec<String>,
        channel_life: Duration,
        /// How often `*` in a topic is looked up anew.
        discovery: Duration,
    },
    GenesysSequenced {
        /// Without the resume parameter.
        url: String,
        auth: SocketAuth,
        snapshot_url: Option<String>,
    },
}

impl ConnectorConfig {
    /// The word of the file, which `status` and the metrics use too.
    pub fn name(&self) -> &'static str {
        match self {
            Self::GenesysNotifications { .. } => shape::ConnectorName::GenesysNotifications.name(),
            Self::GenesysSequenced { .. } => shape::ConnectorName::GenesysSequenced.name(),
        }
    }
}

/// How a lost connection is taken up again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffConfig {
    pub first: Duration,
    pub cap: Duration,
    /// The share by which each delay may be longer or shorter, 0 to 1.
    pub jitter: f64,
    pub breaker_after: u32,
    pub stable_after: Duration,
}

/// Reads the files, later ones over earlier ones and the environment over all, and checks everything that can be
/// checked on this machine, secrets included.
pub fn load(files: &[PathBuf], environment: &Environment) -> Result<Config, Findings> {
    load_documents(&read(files)?, environment)
}

/// The same for a text that is in no file; mistakes are reported under `name`.
pub fn from_text(name: &str, text: &str, environment: &Environment) -> Result<Config, Findings> {
    load_documents(&[Document { name: name.to_owned(), text: text.to_owned() }], environment)
}

/// The effective configuration as TOML: every key with its value and where it comes from, secrets as `***`.
/// Secrets need not be there.
pub fn effective(files: &[PathBuf], environment: &Environment) -> Result<String, Findings> {
    let (draft, findings) = draft(&read(files)?, environment)?;
    Findings::into_result(findings, show::show(&draft))
}

fn load_documents(documents: &[Document], environment: &Environment) -> Result<Config, Findings> {
    let (draft, mut findings) = draft(documents, environment)?;
    findings.extend(secrets::check(&draft.tree, &draft.file, environment));
    findings.extend(proxies::check(&draft.file, environment));
    Findings::into_result(findings, ())?;
    let warnings = warnings::warnings(&draft.tree, environment);
    Ok(Config { ineffective: draft.ineffective, warnings, ..resolve::resolve(&draft.file, environment) })
}

fn read(files: &[PathBuf]) -> Result<Vec<Document>, Findings> {
    let mut documents = Vec::new();
    let mut findings = Vec::new();
    for file in files {
        match Document::read(file) {
            Ok(document) => documents.push(document),
            Err(finding) => findings.push(finding),
        }
    }
    Findings::into_result(findings, documents)
}

/// What was written, and what could be read of it.
#[derive(Debug)]
struct Draft {
    tree: Value,
    file: File,
    /// Parts that cannot work and keep nothing else from working.
    ineffective: Vec<Finding>,
}

/// A draft with all mistakes but those of secrets; only the mistakes where nothing can be read at all.
fn draft(documents: &[Document], environment: &Environment) -> Result<(Draft, Vec<Finding>), Findings> {
    let mut layers = Vec::new();
    let mut findings = Vec::new();
    for document in documents {
        match document.parse() {
            Ok(layer) => layers.push(layer),
            Err(wrong) => findings.extend(wrong),
        }
    }
    Findings::into_result(findings, ())?;
    let schema = schema();
    let tree = source::merge(layers, environment, &schema);
    let walk::SchemaWalk { mut findings, broken } = walk::walk(&tree, &schema);
    findings.extend(environment.unreadable_overrides());
    match readable(&tree, &broken) {
        Ok(mut file) => {
            let check::CheckFindings { mistakes, ineffective } = check::check(&tree, &file);
            findings.extend(mistakes);
            resolve::fill_defaults(&mut file);
            Ok((Draft { tree, file, ineffective }, findings))
        }
        Err(error) => {
            let unread = Finding::new(None, KeyPath::default(), format!("could not be read: {error}"));
            Err(Findings::of(if findings.is_empty() { vec![unread] } else { findings }))
        }
    }
}

/// The file's shape without the values that were found wrong, so that the rest can be checked, too.
fn readable(tree: &Value, broken: &[KeyPath]) -> Result<File, config::ConfigError> {
    let mut tree = tree.clone();
    for path in broken {
        remove_at(&mut tree, &path.0);
    }
    tree.try_deserialize()
}

fn remove_at(tree: &mut Value, path: &[String]) {
    let (Some((key, rest)), config::ValueKind::Table(table)) = (path.split_first(), &mut tree.kind) else { return };
    if rest.is_empty() {
        table.remove(key);
    } else if let Some(below) = table.get_mut(key) {
        remove_at(below, rest);
    }
}
