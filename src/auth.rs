//! Access tokens of accounts: refresh, sharing between replicas, and token requests.
//!
//! [`Tokens`] is the handle that streams hold; the refresher behind it owns the HTTP client and the expiry. A stream
//! never requests a token: it watches for new ones.

mod refresh_token_store;
mod refresher;
pub mod seal;
mod secrets;
mod sharing;
mod token_response;
mod token_source;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::Instrument;

pub use self::sharing::TokenSharingSettings;
use self::{
    refresher::{Refresher, RefresherHandle, seconds_until},
    seal::Seal,
    secrets::Secrets,
    sharing::SharedTokens,
    token_source::{REQUEST_TIMEOUT, TokenSource},
};
use crate::{
    clock,
    model::{AccountName, Secret, SecretRef, StreamName},
    network::NetworkPolicy,
    protocol::refresh::{
        TokenPhase,
        usage::{RefusalScope, TokenUsage},
    },
    tasks::Tasks,
};

/// How an account authenticates, and when its token is refreshed.
#[derive(Debug, Clone)]
pub struct Settings {
    pub account: AccountName,
    pub grant: Grant,
    pub token_url: String,
    pub scope: String,
    /// Refresh this long before expiry (at most a quarter of the lifetime).
    pub refresh_buffer: Duration,
    /// Minimum time between refreshes. Scheduled refreshes are exempt, and those after a rejection of a token that had
    /// carried a live session.
    pub refresh_interval_min: Duration,
    /// Maximum random delay before a scheduled refresh.
    pub refresh_jitter: Duration,
    /// Lifetime of a token if neither the response nor its claims state one.
    pub lifetime_default: Duration,
    /// Directory that keeps a rotated refresh token across restarts.
    pub refresh_token_dir: PathBuf,
}

/// The source of an account's tokens.
#[derive(Debug, Clone)]
pub enum Grant {
    ClientCredentials(OAuthClient),
    /// The first refresh token; each response may contain the next one.
    RefreshToken {
        client: OAuthClient,
        refresh_token: SecretRef,
    },
    /// A token renewed by another program; read again when its file changes.
    Static {
        token: SecretRef,
    },
}

/// The OAuth client and the placement of its secret (RFC 6749 section 2.3.1).
#[derive(Debug, Clone)]
pub struct OAuthClient {
    pub id: SecretRef,
    pub secret: SecretRef,
    pub placement: ClientAuth,
}

/// Where the client id and secret are sent (RFC 6749 section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAuth {
    /// In the `Authorization` header.
    #[default]
    Basic,
    /// In the form body.
    Body,
}

/// An access token and its generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Rises by one with each token of the account, from 1.
    pub generation: u64,
    pub secret: Secret,
}

/// The status of an account in `status` and the admin API. No secrets.
#[derive(Debug, Clone, Serialize)]
pub struct AccountStatus {
    pub account: AccountName,
    /// One of `waiting` (no token yet), `valid`, `degraded` (valid, but the platform repeatedly rejects tokens),
    /// `renewing`, `rejected` (an operator must act).
    pub state: &'static str,
    pub generation: u64,
    pub remaining_seconds: Option<f64>,
    pub next_refresh_seconds: Option<f64>,
    pub refreshes: u64,
    /// The reason why a pending refresh waits.
    pub waiting_for: Option<&'static str>,
    /// Longest remaining wait, in seconds.
    pub waiting_seconds: Option<f64>,
    /// The newest failure. None after a newer token was adopted.
    pub last_error: Option<String>,
    /// When the failure happened (RFC 3339).
    pub last_error_at: Option<String>,
    /// The proxy of token requests, without login; none for direct connections.
    pub proxy: Option<String>,
}

/// Reads the keys that encrypt shared tokens. Without keys, tokens are not encrypted.
pub async fn read_seal(keys: Option<&SecretRef>) -> anyhow::Result<Seal> {
    let Some(keys) = keys else { return Ok(Seal::default()) };
    Ok(Seal::read(&Secrets::default().read(keys).await?)?)
}

/// The handle to one account's token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens {
    account: AccountName,
    handle: RefresherHandle,
    /// Network settings of the account's connections.
    network: NetworkPolicy,
    /// The proxy of its token requests.
    proxy: Option<String>,
}

impl Tokens {
    /// Starts the refresher of an account, which requests the first token immediately. Requires a Tokio runtime.
    pub fn start(settings: Settings, network: &NetworkPolicy, tasks: &mut Tasks) -> anyhow::Result<Self> {
        Self::start_refresher(settings, network, None, tasks)
    }

    /// Starts the refresher of an account that shares its tokens: all replicas with the same vault send one token request
    /// per lifetime. Requires a Tokio runtime.
    pub fn start_shared(
        settings: Settings,
        network: &NetworkPolicy,
        sharing: TokenSharingSettings,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        match settings.grant {
            // Each replica reads the file itself.
            Grant::Static { .. } => Self::start_refresher(settings, network, None, tasks),
            Grant::ClientCredentials(_) | Grant::RefreshToken { .. } => {
                Self::start_refresher(settings, network, Some(sharing), tasks)
            }
        }
    }

    fn start_refresher(
        settings: Settings,
        network: &NetworkPolicy,
        sharing: Option<TokenSharingSettings>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        let proxy = network.proxy_name(&settings.token_url);
        let token_source = TokenSource::new(&settings, network, REQUEST_TIMEOUT)
            .context("cannot build the HTTP client for the token endpoint")?;
        // An error span is enabled at every log level, so that each line has the account.
        let span = tracing::error_span!("tokens", account = %settings.account);
        let shared = sharing.map(|sharing| {
            let (shared, notifications) = SharedTokens::new(sharing, &settings.account, tasks.stop());
            tasks.start("token notifications", notifications.instrument(span.clone()));
            shared
        });
        let (refresher, handle) = Refresher::new(&settings, token_source, shared);
        tasks.start("tokens", refresher.run(tasks.stop()).instrument(span));
        Ok(Self { account: settings.account, handle, network: network.clone(), proxy })
    }

    /// Network settings of the account's connections.
    pub fn network(&self) -> &NetworkPolicy {
        &self.network
    }

    pub fn account(&self) -> &AccountName {
        &self.account
    }

    /// A receiver of the newest token.
    pub fn watch(&self) -> watch::Receiver<Option<Token>> {
        self.handle.tokens.clone()
    }

    /// Records that a session of the stream is live with this generation.
    pub fn record_live(&self, stream: &StreamName, generation: u64) {
        if self.usage(|usage| usage.on_live(stream, generation)) {
            self.handle.requests.send_modify(|requests| {
                requests.cleared = requests.cleared.max(generation);
                requests.offers += 1;
            });
        }
    }

    /// Records that the platform rejects this generation for the stream. If the account is affected, a new token is
    /// requested, unless there is a newer one. If only the stream is affected, the same token is offered again. Both happen
    /// if the token never carried a session, because the minimum interval may delay the request.
    pub fn refuse(&self, stream: &StreamName, generation: u64) {
        let scope = self.usage(|usage| usage.on_refused(stream, generation, clock::now()));
        tracing::info!(%stream, account = %self.account, generation, ?scope, "platform rejected the token");
        self.handle.requests.send_if_modified(|requests| match scope {
            RefusalScope::Outdated => false,
            RefusalScope::Stream => {
                requests.offers += 1;
                true
            }
            RefusalScope::Account { proven } => {
                let is_new = requests.refuse(generation, proven);
                // The stream retries with this token until there is a newer one.
                requests.offers += u64::from(!proven);
                is_new || !proven
            }
        });
    }

    fn usage<T>(&self, act: impl FnOnce(&mut TokenUsage) -> T) -> T {
        act(&mut self.handle.usage.lock())
    }

    /// Requests a new token for an operator, subject to `refresh_interval_min`.
    pub fn refresh(&self) {
        self.handle.requests.send_modify(|requests| requests.operator_requests += 1);
    }

    pub fn status(&self) -> AccountStatus {
        let report = self.handle.reports.borrow().clone();
        let degraded = report.degraded_until.is_some_and(|until| clock::now() < until);
        let (last_error, last_error_at) = report.last_error.map(|error| (error.text, error.at.to_string())).unzip();
        AccountStatus {
            account: self.account.clone(),
            state: if report.phase == TokenPhase::Valid && degraded { "degraded" } else { report.phase.as_str() },
            generation: report.generation,
            remaining_seconds: report.ends_at.map(seconds_until),
            next_refresh_seconds: report.next_at.map(seconds_until),
            refreshes: report.refreshes,
            waiting_for: report.waiting.map(|waiting| waiting.reason.as_str()),
            waiting_seconds: report.waiting.and_then(|waiting| waiting.until).map(seconds_until),
            last_error,
            last_error_at,
            proxy: self.proxy.clone(),
        }
    }
}
