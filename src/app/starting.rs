//! Opening the store when the process starts: again and again until it succeeds. Whatever the reason
//! is, the process stays up and says it.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::{
    admin::StartupProgress,
    clock,
    config::Config,
    event_log::EventLogs,
    protocol::backoff::BackoffCurve,
    store::{Retry, Store},
    telemetry::metrics,
};

/// Delays where the store may come by itself.
const RETRY_SOON: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(200), cap: Duration::from_secs(2), jitter: 0.2 };
/// Delays where an operator has to act. Secrets are read again before each attempt.
const RETRY_SLOWLY: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(2), cap: Duration::from_secs(10), jitter: 0.2 };
/// The same reason is logged again after this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// One attempt may take so long. A store that is checked after a crash has most of an hour of its own; Redis has
/// deadlines of its own that are far shorter.
const ATTEMPT_MAX: Duration = Duration::from_secs(2 * 3600);

/// Opens the configured store and looks at every log. Returns when it has succeeded; cancel-safe.
pub(super) async fn open(config: &Config, progress: &StartupProgress) -> (Store, EventLogs) {
    let mut failures = Failures { count: 0, logged: None };
    loop {
        let attempt = tokio::time::timeout(ATTEMPT_MAX, attempt(config)).await;
        match attempt.unwrap_or_else(|_| Err(anyhow!("it takes too long"))) {
            Ok(opened) => {
                if failures.count > 0 {
                    tracing::info!(attempts = failures.count + 1, "store opened");
                }
                return opened;
            }
            Err(error) => {
                metrics::store_failed("open");
                let delay = failures.delay(super::retry(&error));
                let reason = format!("{error:#}");
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

/// Attempts that failed, and what was logged of them.
struct Failures {
    count: u32,
    logged: Option<(String, Instant)>,
}

impl Failures {
    /// Until the next attempt.
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
            tracing::error!(reason, ?retry_in, "the store cannot be opened; trying again until it can");
            self.logged = Some((reason.to_owned(), now));
        }
    }
}
