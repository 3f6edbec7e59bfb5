//! Tokens: who has one, when it is renewed, and the HTTP calls that get it.
//!
//! [`Tokens`] is the handle that streams hold; the refresher behind it owns the HTTP client and the expiry. A stream
//! never fetches a token: it is told of a new one.

mod refresh_token_store;
mod refresher;
pub mod seal;
mod secrets;
mod sharing;
mod token_response;
mod token_source;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::PoisonError, time::Duration};

use anyhow::Context;
use serde::Serialize;
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

/// How an account authenticates and when it renews.
#[derive(Debug, Clone)]
pub struct Settings {
    pub account: AccountName,
    pub grant: Grant,
    pub token_url: String,
    pub scope: String,
    /// A token is renewed this long before its end (a quarter of its life, if that is shorter than four of these).
    pub refresh_buffer: Duration,
    /// At most one refresh in this time; exempt are scheduled ones, and those after the refusal of a token that had
    /// carried a live session.
    pub refresh_interval_min: Duration,
    /// Upper bound of the random delay before a scheduled refresh.
    pub refresh_jitter: Duration,
    /// Life of a token whose answer and claims do not tell one.
    pub lifetime_default: Duration,
    /// Where a rotated refresh token is kept across restarts (a directory).
    pub refresh_token_dir: PathBuf,
}

/// How a token is got.
#[derive(Debug, Clone)]
pub enum Grant {
    ClientCredentials(OAuthClient),
    /// The first refresh token; each answer may bring the next one.
    RefreshToken {
        client: OAuthClient,
        refresh_token: SecretRef,
    },
    /// A token that somebody else renews; read again when its file changes.
    Static {
        token: SecretRef,
    },
}

/// The OAuth client and where its secret goes (RFC 6749 section 2.3.1).
#[derive(Debug, Clone)]
pub struct OAuthClient {
    pub id: SecretRef,
    pub secret: SecretRef,
    pub placement: ClientAuth,
}

/// Where id and secret of the client are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Basic,
    Body,
}

/// An access token with its place in the order of tokens of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Rises by one with each token of the account, from 1.
    pub generation: u64,
    pub secret: Secret,
}

/// What `status` and the admin API show of an account. No secrets.
#[derive(Debug, Clone, Serialize)]
pub struct AccountStatus {
    pub account: AccountName,
    /// One of `waiting` (no token yet), `valid`, `degraded` (valid, but the platform keeps refusing tokens), `renewing`,
    /// `rejected` (an operator must act).
    pub state: &'static str,
    pub generation: u64,
    pub remaining_seconds: Option<f64>,
    pub next_refresh_seconds: Option<f64>,
    pub refreshes: u64,
    /// For what a refresh waits, if one is wanted and not done.
    pub waiting_for: Option<&'static str>,
    /// When that goes on at the latest, from this moment.
    pub waiting_seconds: Option<f64>,
    /// The newest failure, as an operator may read it. None once there is a newer token.
    pub last_error: Option<String>,
    /// When it happened (RFC 3339).
    pub last_error_at: Option<String>,
    /// The proxy that token requests go through, without login; none where they are direct.
    pub proxy: Option<String>,
}

/// Reads the keys that seal tokens; without any, they are not sealed.
pub async fn read_seal(keys: Option<&SecretRef>) -> anyhow::Result<Seal> {
    let Some(keys) = keys else { return Ok(Seal::default()) };
    Ok(Seal::read(&Secrets::default().read(keys).await?)?)
}

/// The handle to one account's token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens {
    account: AccountName,
    handle: RefresherHandle,
    /// How the account's connections are made.
    network: NetworkPolicy,
    /// Which proxy its token requests go through.
    proxy: Option<String>,
}

impl Tokens {
    /// Starts the refresher of an account, which gets the first token at once. To be called within a Tokio runtime.
    pub fn start(settings: Settings, network: &NetworkPolicy, tasks: &mut Tasks) -> anyhow::Result<Self> {
        Self::start_refresher(settings, network, None, tasks)
    }

    /// The same together with every replica that looks into the same vault: they make one request between them.
    pub fn start_shared(
        settings: Settings,
        network: &NetworkPolicy,
        sharing: TokenSharingSettings,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Self> {
        match settings.grant {
            // Reading a file again bothers nobody.
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
        let grants = TokenSource::new(&settings, network, REQUEST_TIMEOUT)
            .context("cannot build the HTTP client for the token endpoint")?;
        // At each level of the log its lines name the account.
        let span = tracing::error_span!("tokens", account = %settings.account);
        let shared = sharing.map(|sharing| {
            let (shared, listening) = SharedTokens::new(sharing, &settings.account, tasks.stop());
            tasks.start("token news", listening.instrument(span.clone()));
            shared
        });
        let (refresher, ends) = Refresher::new(&settings, grants, shared);
        tasks.start("tokens", refresher.run(tasks.stop()).instrument(span));
        Ok(Self { account: settings.account, handle: ends, network: network.clone(), proxy })
    }

    /// How every connection under this account's token is made.
    pub fn network(&self) -> &NetworkPolicy {
        &self.network
    }

    pub fn account(&self) -> &AccountName {
        &self.account
    }

    /// The newest token, and word of each later one.
    pub fn watch(&self) -> watch::Receiver<Option<Token>> {
        self.handle.tokens.clone()
    }

    /// A session of the stream is live under this generation.
    pub fn record_live(&self, stream: &StreamName, generation: u64) {
        if self.usage(|usage| usage.on_live(stream, generation)) {
            self.handle.requests.send_modify(|asked| {
                asked.cleared = asked.cleared.max(generation);
                asked.offers += 1;
            });
        }
    }

    /// The platform refuses this generation to the stream. Either another one is got, unless there is a newer one
    /// already, or the same one is offered again, because the trouble is the stream's. Both, where it has never carried
    /// a session: the interval between two requests may keep the next one away for long.
    pub fn refuse(&self, stream: &StreamName, generation: u64) {
        let ruling = self.usage(|usage| usage.on_refused(stream, generation, clock::now()));
        tracing::info!(%stream, account = %self.account, generation, ?ruling, "platform rejected the token");
        self.handle.requests.send_if_modified(|asked| match ruling {
            RefusalScope::Outdated => false,
            RefusalScope::Stream => {
                asked.offers += 1;
                true
            }
            RefusalScope::Account { proven: carried } => {
                let is_new = asked.refuse(generation, carried);
                // Until there is a newer one it is tried again.
                asked.offers += u64::from(!carried);
                is_new || !carried
            }
        });
    }

    fn usage<T>(&self, act: impl FnOnce(&mut TokenUsage) -> T) -> T {
        act(&mut self.handle.usage.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An operator wants a new token now (within `refresh_interval_min`).
    pub fn refresh(&self) {
        self.handle.requests.send_modify(|asked| asked.operator_requests += 1);
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
