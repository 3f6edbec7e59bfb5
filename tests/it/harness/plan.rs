//! A configuration as a user writes it, with short times. The daemon validates it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use toml::{Table, Value};
use trunkline::config::{self, Config, Environment};

/// Metrics are global to the process, so every plan has unique names of account and streams.
static PLANS: AtomicU64 = AtomicU64::new(1);

/// The configuration of a relay, and its folder, which survives restarts.
pub(crate) struct RelayPlan {
    tables: Table,
    folder: TempDir,
    account: String,
    streams: Vec<String>,
    frame_time_max: Option<Duration>,
    environment: Vec<(String, String)>,
}

impl RelayPlan {
    /// A plan with one numbered stream of the platform at this address.
    pub(crate) fn numbered(platform: SocketAddr) -> Self {
        Self::new(platform).and_numbered("calls", platform)
    }

    /// A plan with one stream of notifications.
    pub(crate) fn topics(platform: SocketAddr, topics: &[&str]) -> Self {
        Self::new(platform).and_topics("queues", topics)
    }

    fn new(platform: SocketAddr) -> Self {
        let number = PLANS.fetch_add(1, Ordering::Relaxed);
        Self::named(platform, &format!("acme-{number}"))
    }

    /// A plan with an account and no streams.
    pub(crate) fn named(platform: SocketAddr, account: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tables = format!(
            r#"
            http = {{ listen = "127.0.0.1:0" }}
            admin = {{ listen = "127.0.0.1:0" }}
            store = {{ path = {} }}
            [accounts.{account}]
            platform = "genesys-cloud"
            token_url = "http://{platform}/oauth/token"
            api_url = "http://{platform}"
            refresh_interval_min = "0s"
            refresh_jitter = "0s"
            "#,
            Value::from(folder.path().join("data").display().to_string())
        );
        let plan = Self {
            tables: tables.parse().unwrap(),
            folder,
            account: account.to_owned(),
            streams: Vec::new(),
            frame_time_max: None,
            environment: Vec::new(),
        };
        plan.secret("client_id", "demo").secret("client_secret", "demo-secret")
    }

    /// Adds a numbered stream.
    pub(crate) fn and_numbered(self, name: &str, platform: SocketAddr) -> Self {
        let stream = format!(
            r#"
            connector = "genesys-sequenced"
            url = "ws://{platform}/api/v2/analytics/conversations/summary/stream"
            snapshot_url = "http://{platform}/api/v2/analytics/conversations/summary"
            "#
        );
        self.and(name, &stream)
    }

    /// Adds a stream of notifications.
    pub(crate) fn and_topics(self, name: &str, topics: &[&str]) -> Self {
        self.and(name, &format!("connector = \"genesys-notifications\"\ntopics = {topics:?}"))
    }

    fn and(mut self, name: &str, keys: &str) -> Self {
        let mut stream: Table = keys.parse().unwrap();
        stream.insert("account".to_owned(), self.account.clone().into());
        let name = self.account.replacen("acme", name, 1);
        self.table("streams").insert(name.clone(), stream.into());
        self.streams.push(name);
        self.stream("silence_max", "5s")
            .stream("rotation_jitter", "20ms")
            .stream("backoff.first", "20ms")
            .stream("backoff.cap", "200ms")
    }

    fn table(&mut self, name: &str) -> &mut Table {
        let table = self.tables.entry(name).or_insert_with(|| Table::new().into());
        table.as_table_mut().unwrap()
    }

    /// Sets a key of the newest stream.
    pub(crate) fn stream(mut self, key: &str, value: impl Into<Value>) -> Self {
        let stream = self.streams.last().unwrap().clone();
        set(self.table("streams")[&stream].as_table_mut().unwrap(), key, value.into());
        self
    }

    /// Sets the frame timeout, which is not a configuration key.
    pub(crate) fn frame_time_max(mut self, time: Duration) -> Self {
        self.frame_time_max = Some(time);
        self
    }

    /// Removes a key of the newest stream.
    pub(crate) fn stream_without(mut self, key: &str) -> Self {
        let stream = self.streams.last().unwrap().clone();
        self.table("streams")[&stream].as_table_mut().unwrap().remove(key);
        self
    }

    /// Sets a key of the account.
    pub(crate) fn account(mut self, key: &str, value: impl Into<Value>) -> Self {
        set(self.account_table(), key, value.into());
        self
    }

    /// Sets an environment variable for the configuration.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn account_table(&mut self) -> &mut Table {
        let account = self.account.clone();
        self.table("accounts")[&account].as_table_mut().unwrap()
    }

    /// Sets a key of the store.
    pub(crate) fn store(mut self, key: &str, value: impl Into<Value>) -> Self {
        set(self.table("store"), key, value.into());
        self
    }

    /// Sets a secret key of the account; the secret is in a file.
    pub(crate) fn secret(mut self, key: &str, secret: &str) -> Self {
        std::fs::write(self.secret_file(key), secret).unwrap();
        let file = Value::from(self.secret_file(key).display().to_string());
        self.account_table().insert(key.to_owned(), Table::from_iter([("file".to_owned(), file)]).into());
        self
    }

    /// The file of a secret of the account.
    pub(crate) fn secret_file(&self, key: &str) -> PathBuf {
        self.folder.path().join(key)
    }

    /// Moves the account and its numbered stream to another platform.
    pub(crate) fn with_platform(self, platform: SocketAddr) -> Self {
        let summary = format!("{platform}/api/v2/analytics/conversations/summary");
        self.account("token_url", format!("http://{platform}/oauth/token"))
            .account("api_url", format!("http://{platform}"))
            .stream("url", format!("ws://{summary}/stream"))
            .stream("snapshot_url", format!("http://{summary}"))
    }

    /// Removes keys of the account.
    pub(crate) fn without(mut self, keys: &[&str]) -> Self {
        for key in keys {
            self.account_table().remove(*key);
        }
        self
    }

    pub(crate) fn account_name(&self) -> &str {
        &self.account
    }

    /// The names of the streams, in the order of their addition.
    pub(crate) fn stream_names(&self) -> &[String] {
        &self.streams
    }

    pub(crate) fn config(&self) -> Config {
        let text = toml::to_string(&self.tables).unwrap();
        let environment = Environment::from_iter(self.environment.clone());
        let mut config =
            config::from_text("test.toml", &text, &environment).unwrap_or_else(|findings| panic!("{findings}"));
        for stream in config.streams.values_mut() {
            stream.keys.frame_time_max = self.frame_time_max.unwrap_or(stream.keys.frame_time_max);
        }
        config
    }
}

/// Sets a key; dots separate tables.
fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| Table::new().into());
            set(below.as_table_mut().unwrap(), rest, value);
        }
    }
}
