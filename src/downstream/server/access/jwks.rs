//! The public keys of an issuer (JWKS, RFC 7517): one GET each, limited in time and bytes, to the configured URL only.
//!
//! It follows no redirect. The last good keys stay in use while the issuer cannot be reached.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::jwk::Jwk;
use reqwest::{
    Client, Response, Url,
    header::{ACCEPT, CACHE_CONTROL, HeaderMap},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::{
    KeyOwner,
    error::KeySourceError,
    key::VerificationKey,
    key_set::{IssuerKey, KeySet},
};
use crate::{
    clock,
    network::{self, HttpLimits, NetworkPolicy},
    protocol::key_refresh::{Input, KeyRefresh, Output},
    tasks::TaskResult,
    telemetry::chain,
};

/// The timeouts of a request.
pub(super) const LIMITS: HttpLimits = HttpLimits { connect: Duration::from_secs(3), total: Duration::from_secs(5) };

/// Responses have a few KiB; reading stops here.
const BODY_LEN_MAX: usize = 256 * 1024;

/// Issuers publish a few keys; a larger set is rejected.
const KEYS_MAX: usize = 64;

/// Why no keys were fetched.
#[derive(Debug, thiserror::Error)]
enum JwksError {
    #[error("cannot reach the issuer")]
    Unreachable(#[source] reqwest::Error),
    #[error("the issuer answered {0}; redirects are not followed")]
    Status(u16),
    #[error("the answer is longer than {BODY_LEN_MAX} bytes")]
    TooLong,
    #[error("the answer is not a JSON Web Key Set")]
    Unreadable,
    #[error("the set has more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error("the set has no key that can verify tokens: RSA, EC P-256, EC P-384 or Ed25519")]
    NoUsableKey,
}

/// A fetched set, and how long it may be cached.
#[derive(Debug)]
struct FetchedKeys {
    keys: Vec<IssuerKey>,
    max_age: Option<Duration>,
}

/// Fetches the keys of an issuer.
#[derive(Debug)]
pub(super) struct JwksTask {
    client: Client,
    url: Url,
    machine: KeyRefresh,
}

impl JwksTask {
    /// Builds the HTTP client. Opens no connection.
    pub(super) fn new(
        url: Url,
        network: &NetworkPolicy,
        limits: HttpLimits,
        machine: KeyRefresh,
    ) -> Result<Self, KeySourceError> {
        network.check_encryption(&url)?;
        let builder = network.http_client(limits).gzip(true).pool_max_idle_per_host(0);
        let builder = builder.user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
        let client = builder.build().map_err(KeySourceError::Client)?;
        Ok(Self { client, url, machine })
    }

    /// Keeps the keys fresh until the stop signal.
    pub(super) async fn run(mut self, mut owner: KeyOwner, stop: CancellationToken) -> TaskResult {
        self.machine.handle(Input::Start, clock::now());
        loop {
            while let Some(Output::Fetch) = self.machine.poll_output() {
                let fetched = tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    fetched = fetch(&self.client, &self.url) => fetched,
                };
                self.on_fetched(fetched, &mut owner);
            }
            let wake = self.machine.poll_timeout();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // Without a verifier there are no further requests.
                Ok(()) = owner.unknown.changed() => self.machine.handle(Input::UnknownKey, clock::now()),
                () = sleep_until(wake) => self.machine.handle_timeout(clock::now()),
            }
        }
    }

    fn on_fetched(&mut self, fetched: Result<FetchedKeys, JwksError>, owner: &mut KeyOwner) {
        let unit = fastrand::f64();
        match fetched {
            Ok(FetchedKeys { keys, max_age }) => {
                tracing::debug!(keys = keys.len(), max_age_secs = max_age.map(|age| age.as_secs()), "keys fetched");
                self.machine.handle(Input::Fetched { max_age, unit }, clock::now());
                // Tokens until now may have a key of this set.
                owner.unknown.mark_unchanged();
                owner.keys.send_replace(Arc::new(KeySet::Issuer(keys)));
            }
            Err(error) => {
                self.machine.handle(Input::Failed { unit }, clock::now());
                let retry_at = self.machine.poll_timeout();
                let retry_secs = retry_at.map(|at| at.saturating_duration_since(clock::now()).as_secs_f64());
                let url = network::without_secrets(&self.url);
                tracing::warn!(
                    url,
                    retry_secs,
                    error = chain(&error),
                    "cannot fetch the keys for the tokens of consumers; the last ones stay in use"
                );
            }
        }
    }
}

async fn sleep_until(wake: Option<std::time::Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

async fn fetch(client: &Client, url: &Url) -> Result<FetchedKeys, JwksError> {
    let request = client.get(url.clone()).header(ACCEPT, "application/jwk-set+json, application/json");
    let response = request.send().await.map_err(unreachable)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(JwksError::Status(response.status().as_u16()));
    }
    let max_age = max_age(response.headers());
    let keys = parse(&read_body(response).await?)?;
    Ok(FetchedKeys { keys, max_age })
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, JwksError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > BODY_LEN_MAX {
            return Err(JwksError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn unreachable(error: reqwest::Error) -> JwksError {
    JwksError::Unreachable(error.without_url())
}

/// The age limit in `Cache-Control`; zero for a response that must not be cached.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives = values.flat_map(|value| value.split(',')).map(|directive| directive.trim().to_ascii_lowercase());
    let ages = directives.filter_map(|directive| match directive.as_str() {
        "no-store" | "no-cache" => Some(Duration::ZERO),
        other => other.strip_prefix("max-age=")?.trim_matches('"').parse().ok().map(Duration::from_secs),
    });
    ages.min()
}

#[derive(Deserialize)]
struct JwkTexts<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The usable keys of a set. Keys of other types and for other uses are ignored (RFC 7517 section 5).
fn parse(body: &[u8]) -> Result<Vec<IssuerKey>, JwksError> {
    let set: JwkTexts<'_> = serde_json::from_slice(body).map_err(|_| JwksError::Unreadable)?;
    if set.keys.len() > KEYS_MAX {
        return Err(JwksError::TooManyKeys);
    }
    let keys: Vec<IssuerKey> = set.keys.into_iter().filter_map(|text| issuer_key(text.get())).collect();
    if keys.is_empty() { Err(JwksError::NoUsableKey) } else { Ok(keys) }
}

fn issuer_key(text: &str) -> Option<IssuerKey> {
    let jwk: Jwk = serde_json::from_str(text).ok()?;
    let key = VerificationKey::of_jwk(&jwk);
    let key = key.inspect_err(|error| tracing::debug!(%error, "key of the issuer ignored")).ok()?;
    Some(IssuerKey { id: jwk.common.key_id, key })
}
