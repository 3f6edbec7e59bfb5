//! The accounts and streams of a configuration with a temporary log, to test them.

use std::collections::BTreeMap;

use anyhow::Context;
use tempfile::TempDir;

use super::{
    ACCOUNTS_GRACE, UPSTREAM_GRACE, start_accounts, start_streams,
    starting::{open_logs, open_store},
    stream_settings, temporary_folder,
};
use crate::{
    auth::{AccountStatus, Tokens},
    config::{self, Config},
    event_log::EventLogs,
    model::{AccountName, StreamName},
    store::Store,
    tasks::Tasks,
    upstream::{StreamRegistry, StreamStatus},
};

/// The accounts and streams of a configuration with a temporary log, to test them.
#[derive(Debug)]
pub struct Trial {
    config: Config,
    accounts: Tasks,
    upstream: Tasks,
    tokens: BTreeMap<AccountName, Tokens>,
    streams: StreamRegistry,
    logs: EventLogs,
    store: Store,
    folder: TempDir,
}

impl Trial {
    /// Starts every account and stream, without listeners.
    pub async fn start(mut config: Config) -> anyhow::Result<Self> {
        let folder = temporary_folder("check")?;
        config.store.kind = config::StoreBackend::Embedded;
        config.store.path = folder.path().to_owned();
        let store = open_store(&config).await?;
        let logs = open_logs(&config, &store).await?;
        let (mut accounts, mut upstream) = (Tasks::new("accounts"), Tasks::new("upstream"));
        let tokens = start_accounts(&config, None, &mut accounts)?;
        let streams = start_streams(&config, &logs, &tokens, BTreeMap::new(), &mut upstream).await?;
        Ok(Self { config, accounts, upstream, tokens, streams, logs, store, folder })
    }

    pub fn accounts(&self) -> Vec<AccountStatus> {
        self.tokens.values().map(Tokens::status).collect()
    }

    pub fn streams(&self) -> Vec<StreamStatus> {
        self.streams.statuses()
    }

    /// Requests the snapshot URL of a stream once; `None` if the stream has no such URL.
    pub async fn snapshot(&self, name: &StreamName) -> Option<SnapshotCheck> {
        let stream = self.config.streams.get(name)?;
        let tokens = self.tokens.get(&stream.account)?;
        let settings = stream_settings(name, stream, &self.config, tokens.network());
        let request = settings.configured_snapshot()?;
        let token = tokens.watch().borrow().clone();
        Some(match token {
            None => SnapshotCheck::NoToken,
            Some(token) => match settings.try_call(request, token.secret).await {
                Ok(good) => SnapshotCheck::Answered(good),
                Err(why) => SnapshotCheck::Failed(format!("streams.{name}.snapshot_url: {why}")),
            },
        })
    }

    /// Closes every session, and removes the temporary log.
    pub async fn end(self) -> anyhow::Result<()> {
        self.upstream.drain(UPSTREAM_GRACE).await?;
        self.accounts.drain(ACCOUNTS_GRACE).await?;
        self.logs.close();
        self.store.close().await;
        self.folder.close().context("cannot remove the temporary folder")
    }
}

/// The result of a request to a snapshot URL.
#[derive(Debug)]
pub enum SnapshotCheck {
    /// The account has no token.
    NoToken,
    Answered(String),
    Failed(String),
}
