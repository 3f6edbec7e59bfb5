//! Opens the store at the start, with retries until it succeeds. Meanwhile the process stays up and reports the reason.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::{
    admin::StartupProgress,
    clock,
    config::Config,
    event_log::EventLogs,
    protocol::backoff::BackoffCurve,
    store::{Retry, Store},
    telemetry::{chain, metrics},
};

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
                let delay = failures.delay(super::retry(&error));
                let reason = chain(error.as_ref());
                failures.log(&reason, delay);
                progress.failed(reason);
                tokio::time::sleep(delay).await;
            }
        }
    }
}

async fn attempt(config: &Config) -> anyhow::Result<(Store, EventLogs)> {
    let store = super::open_store(config).await?;
    match super::open_logs(config, &store).await {
        Ok(logs) => Ok((store, logs)),
        Err(error) => {
            store.close().await;
            Err(error)
        }
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
