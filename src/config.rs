//! The configuration: reads files and environment, and returns one checked value or all errors at once.
//!
//! `shape` defines the keys, `stream` those of a stream with its connector; `source` reads and merges the files, `walk` checks each value against the schema, `check`
//! checks keys against each other, `resolve` fills in the rest. An unknown key, a key without effect and a key of a
//! later version are errors. Messages never contain a secret.

mod check;
mod consumer_auth;
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
mod stream;
mod syntax;
#[cfg(test)]
mod tests;
mod walk;
mod warnings;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use config::Value;

use crate::{
    auth,
    downstream::consumers,
    model::{AccountName, ConsumerName, SecretRef, StreamName},
    network,
    store::{
        Retention,
        redis::{Credentials, Durability, address::Address},
    },
};

pub use consumer_auth::consumer_auth;
pub use finding::{Finding, Findings};
pub use host_check::check_host;
pub use listen::ListenAddress;
pub use schema::schema;
pub use shape::{AdminConfig, HttpConfig, PlatformKind};
pub use source::Environment;
pub use stream::{StreamConfig, StreamKeys};

use finding::KeyPath;
use shape::File;
use source::{Document, Layer};

/// The settings of all parts. All references are valid, and all defaults are filled in.
#[derive(Debug, Clone)]
pub struct Config {
    pub http: HttpConfig,
    pub admin: AdminConfig,
    pub store: StoreConfig,
    pub accounts: BTreeMap<AccountName, AccountConfig>,
    /// Proxies and TLS of requests for the keys of consumers.
    pub key_network: network::Settings,
    /// Each refers to an existing account.
    pub streams: BTreeMap<StreamName, StreamConfig>,
    /// Each reads existing streams.
    pub consumers: BTreeMap<ConsumerName, consumers::Settings>,
    /// Settings that cannot work; the rest works without them. Errors for `check`, log messages for `run`.
    pub ineffective: Vec<Finding>,
    /// Settings that work but are probably not intended.
    pub warnings: Vec<Finding>,
}

/// The store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub kind: StoreBackend,
    /// The directory of the embedded store, and with every kind of store of rotated refresh tokens.
    pub path: PathBuf,
    pub retention: Retention,
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
    /// Credentials outside the address; their secrets are read for each connection.
    pub credentials: Credentials,
    /// The prefix of all keys.
    pub prefix: String,
    pub durability: Durability,
    /// Lifetime of a replica's membership.
    pub lease: Duration,
    /// The maximum number of streams that this replica owns.
    pub streams_max: usize,
    /// Encrypts tokens at rest.
    pub seal_key: Option<SecretRef>,
}

/// Credentials at a platform.
#[derive(Debug, Clone)]
pub struct AccountConfig {
    pub platform: PlatformKind,
    /// The base URL of the REST API without a path; a generic platform may have none.
    pub api_url: Option<String>,
    /// `token_url` is empty with a static token, which is never refreshed.
    pub auth: auth::Settings,
    /// Proxies and TLS of its connections.
    pub network: network::Settings,
}

/// Reads the files and checks them, including their secrets. Later files override earlier ones, and the environment
/// overrides all.
///
/// # Errors
///
/// All errors of the files and of the environment.
pub fn load(files: &[PathBuf], environment: &Environment) -> Result<Config, Findings> {
    load_documents(&read(files)?, environment)
}

/// Parses and checks a configuration from a string; `name` stands for the file name in messages.
///
/// # Errors
///
/// All errors of the text and of the environment.
pub fn from_text(name: &str, text: &str, environment: &Environment) -> Result<Config, Findings> {
    load_documents(&[Document { name: name.to_owned(), text: text.to_owned() }], environment)
}

/// The effective configuration as TOML: every key with its value and its source, secrets as `***`. The secrets are not
/// read.
///
/// # Errors
///
/// All errors of the files, except for those of secrets.
pub fn effective(files: &[PathBuf], environment: &Environment) -> Result<String, Findings> {
    let (draft, findings) = draft(&read(files)?, environment)?;
    Findings::into_result(findings, show::show(&draft))
}

fn load_documents(documents: &[Document], environment: &Environment) -> Result<Config, Findings> {
    let (draft, mut findings) = draft(documents, environment)?;
    findings.extend(secrets::check(&draft.tree, &draft.file, environment));
    findings.extend(proxies::check(&draft.file, environment));
    if let Some(auth) = &draft.file.http.auth {
        findings.extend(consumer_auth::check(&draft.tree, auth, environment));
    }
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

fn parse(documents: &[Document]) -> Result<Vec<Layer>, Findings> {
    let mut layers = Vec::new();
    let mut findings = Vec::new();
    for document in documents {
        match document.parse() {
            Ok(layer) => layers.push(layer),
            Err(wrong) => findings.extend(wrong),
        }
    }
    Findings::into_result(findings, layers)
}

/// The merged input, and the part of it that could be parsed.
#[derive(Debug)]
struct Draft {
    tree: Value,
    file: File,
    /// Settings that cannot work; the rest works without them.
    ineffective: Vec<Finding>,
}

/// Returns a draft and all errors except for those of secrets.
///
/// # Errors
///
/// All errors found so far, if the input could not be parsed at all.
fn draft(documents: &[Document], environment: &Environment) -> Result<(Draft, Vec<Finding>), Findings> {
    let layers = parse(documents)?;
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

/// Parses the tree without the invalid values, so that the rest can be checked, too.
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
