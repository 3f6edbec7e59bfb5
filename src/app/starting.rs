//! Opens the store at the start, with retries until it succeeds. Meanwhile the process stays up and reports the reason.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use crate::{
    admin::StartupProgress,
    clock,
    config::{self, Config},
    coordination,
    event_log::{self, EventLogs},
    model::{Source, StreamName},
    protocol::backoff::BackoffCurve,
    store::{
        self, Retry, Store,
        embedded::{self, EmbeddedStore},
        redis::{self, RedisStore, address::Address, connection::RedisTimeouts},
    },
    telemetry::{chain, metrics},
};

/// Bytes of a stream's newest entries that are served from memory.
const TAIL_BYTES: usize = 4 << 20;
/// Delays if the store may recover without an operator.
const RETRY_SOON: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(200), cap: Duration::from_secs(2), jitter: 0.2 };
/// Delays if an operator has to act. Secrets are read again before each attempt.
const RETRY_SLOWLY: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(2), cap: Duration::from_secs(10), jitter: 0.2 };
/// An unchanged reason is logged again after this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Timeout of one attempt. The check of an embedded store after a crash may take most of an hour; Redis has much
/// shorter timeouts.
const ATTEMPT_MAX: Duration = Duration::from_secs(2 * 3600);

/// Opens the configured store and every log, with retries. Cancel-safe.
pub(super) async fn open(config: &Config, progress: &StartupProgress) -> (Store, EventLogs) {
    let mut failures = Failures { count: 0, logged: None };
    loop {
        let attempt = tokio::time::timeout(ATTEMPT_MAX, attempt(config)).await;
        match attempt.unwrap_or_else(|_| Err(anyhow!("timed out"))) {
            Ok(opened) => {
                if failures.count > 0 {
                    tracing::info!(attempts = failures.count + 1, "store opened");
                }
                return opened;
            }
            Err(error) => {
                metrics::store_failed("open");
                let delay = failures.delay(retry(&error));
                let reason = chain(error.as_ref());
                failures.log(&reason, delay);
                progress.failed(reason);
                tokio::time::sleep(delay).await;
            }
        }
    }
}

async fn attempt(config: &Config) -> anyhow::Result<(Store, EventLogs)> {
    let store = open_store(config).await?;
    match open_logs(config, &store).await {
        Ok(logs) => Ok((store, logs)),
        Err(error) => {
            store.close().await;
            Err(error)
        }
    }
}

/// When to retry after this failure to open the store.
fn retry(error: &anyhow::Error) -> Retry {
    let redis = error.downcast_ref::<redis::UnsupportedServer>().map(redis::UnsupportedServer::retry);
    redis.or_else(|| error.downcast_ref::<embedded::OpenError>().map(embedded::OpenError::retry)).unwrap_or(Retry::Soon)
}

pub(super) async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let retention = config.store.retention;
    match &config.store.kind {
        config::StoreBackend::Embedded => {
            let settings = embedded::Settings { path: config.store.path.clone(), retention };
            let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&settings)).await?;
            Ok(Store::Embedded(opened?))
        }
        config::StoreBackend::Redis(from) => {
            let address = from.credentials.locate(&from.address).await?;
            let store = RedisStore::new(redis_settings(from, address, retention));
            let warnings = check_redis(&store).await.with_context(|| format!("store.url: {}", from.address))?;
            for warning in &warnings {
                tracing::warn!(address = %from.address, "{warning}");
            }
            store.set_warnings(warnings);
            Ok(Store::Redis(store))
        }
    }
}

/// Whether the server can be used, and warnings for the operator.
async fn check_redis(store: &RedisStore) -> Result<Vec<String>, redis::UnsupportedServer> {
    let mut warnings = store.preflight().await?;
    warnings.extend(coordination::settings_warning(store).await?);
    Ok(warnings)
}

fn redis_settings(from: &config::RedisConfig, address: Address, retention: store::Retention) -> redis::Settings {
    redis::Settings {
        address,
        credentials: from.credentials.clone(),
        prefix: from.prefix.clone(),
        durability: from.durability,
        retention,
        timeouts: RedisTimeouts::default(),
    }
}

pub(super) async fn open_logs(config: &Config, store: &Store) -> anyhow::Result<EventLogs> {
    let streams: Vec<(StreamName, Source)> =
        config.streams.iter().map(|(name, stream)| (name.clone(), Source::new(&stream.account, name))).collect();
    let settings = event_log::Settings { tail_bytes: TAIL_BYTES };
    EventLogs::open(store.clone(), &streams, &settings).await.context("cannot open the logs")
}

/// The result of opening a store.
#[derive(Debug)]
pub struct StoreCheck {
    pub summary: String,
    /// The warnings that the daemon logs at its start.
    pub warnings: Vec<String>,
}

/// Opens and closes the configured store.
pub async fn check_store(config: &Config) -> anyhow::Result<StoreCheck> {
    match open_store(config).await {
        Ok(store) => {
            let warnings = store.warnings().to_vec();
            store.close().await;
            let found = match &config.store.kind {
                config::StoreBackend::Embedded => format!("{} is usable", config.store.path.display()),
                config::StoreBackend::Redis(redis) => format!("{} is usable", redis.address),
            };
            Ok(StoreCheck { summary: found, warnings })
        }
        Err(error) => match error.downcast_ref() {
            Some(embedded::OpenError::InUse { path, holder }) => {
                let found = format!("{} is in use by a running daemon ({holder})", path.display());
                Ok(StoreCheck { summary: found, warnings: Vec::new() })
            }
            _ => Err(error),
        },
    }
}

/// The failed attempts, and the last logged reason.
struct Failures {
    count: u32,
    logged: Option<(String, Instant)>,
}

impl Failures {
    /// The delay until the next attempt.
    fn delay(&mut self, retry: Retry) -> Duration {
        let curve = match retry {
            Retry::Soon => RETRY_SOON,
            Retry::Slowly => RETRY_SLOWLY,
        };
        let delay = curve.delay(self.count, fastrand::f64());
        self.count = self.count.saturating_add(1);
        delay
    }

    fn log(&mut self, reason: &str, retry_in: Duration) {
        let now = clock::now();
        let is_known = self.logged.as_ref().is_some_and(|(logged, at)| logged == reason && now < *at + LOG_INTERVAL);
        if !is_known {
            tracing::error!(reason, ?retry_in, "cannot open the store, will retry");
            self.logged = Some((reason.to_owned(), now));
        }
    }
}
