//! All delays of a refresh: the deadline of a token, retries after failures, the lock, and the reads while it is held.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{GrantFailure, Refresh, Settings};
use crate::protocol::backoff::BackoffCurve;

/// In the last part of a token's lifetime an unreachable endpoint is tried every few seconds.
const LAST_MINUTE: Duration = Duration::from_secs(60);

/// The maximum delay between two attempts in the last part of a token's lifetime.
const LAST_MINUTE_DELAY_MAX: Duration = Duration::from_secs(5);

/// The minimum delay between two attempts in the last part of a token's lifetime.
const LAST_MINUTE_DELAY_MIN: Duration = Duration::from_secs(1);

/// The delay after no answer or an invalid answer.
const UNREACHABLE: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };

/// The delay after rejected credentials. An operator must act, so it is long.
const REJECTED: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(30), cap: Duration::from_secs(15 * 60), jitter: 0.2 };

/// The minimum time between two scheduled requests, also for a token with a short lifetime.
const SCHEDULED_MIN: Duration = Duration::from_secs(1);

/// The lifetime of the lock without an extension: time for one request to a slow endpoint.
const LOCK_TTL_MAX: Duration = Duration::from_secs(10);

/// The minimum lifetime of the lock. The store counts in milliseconds.
const LOCK_TTL_MIN: Duration = Duration::from_millis(100);

/// The maximum time between two reads while another replica has the lock.
const POLL_MAX: Duration = Duration::from_secs(1);

/// The maximum random delay of a request without the store, so that replicas do not request at the same time.
const UNSHARED_DELAY_MAX: Duration = Duration::from_secs(10);

/// Failures of the same kind in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FailureStreak {
    pub(super) failure: GrantFailure,
    /// How many failures came before `failure`.
    previous: u32,
}

impl FailureStreak {
    /// Adds `failure` to the row, or begins a new row.
    pub(super) fn after(past: Option<Self>, failure: GrantFailure) -> Self {
        let before =
            past.filter(|streak| streak.is_same_kind(failure)).map_or(0, |streak| streak.previous.saturating_add(1));
        Self { failure, previous: before }
    }

    pub(super) fn is_same_kind(&self, failure: GrantFailure) -> bool {
        mem::discriminant(&self.failure) == mem::discriminant(&failure)
    }

    /// Whether this is the first failure that requires an operator.
    pub(super) fn needs_operator(&self) -> bool {
        self.failure == GrantFailure::Rejected && self.previous == 0
    }

    /// The delay before the next attempt. `patience` limits it, unless the credentials are rejected.
    pub(super) fn delay(&self, unit: f64, delay_max: Duration) -> Duration {
        match self.failure {
            GrantFailure::Throttled(Some(pause)) => UNREACHABLE.at_least(pause, unit),
            GrantFailure::Throttled(None) => UNREACHABLE.delay(self.previous, unit),
            GrantFailure::Unreachable => UNREACHABLE.delay(self.previous, unit).min(delay_max),
            GrantFailure::Rejected => REJECTED.delay(self.previous, unit),
        }
    }
}

impl Settings {
    /// How long before its end a token with this lifetime is refreshed.
    pub(super) fn buffer_of(&self, life: Duration) -> Duration {
        if life < self.buffer.saturating_mul(4) { life / 4 } else { self.buffer }
    }

    /// From the sending of a request to the next scheduled one.
    pub(super) fn due_after(&self, life: Duration, unit: f64) -> Duration {
        (life - self.buffer_of(life) + self.jitter(life, unit)).max(SCHEDULED_MIN)
    }

    pub(super) fn jitter(&self, life: Duration, unit: f64) -> Duration {
        self.jitter_max.min(self.buffer_of(life) / 4).mul_f64(unit)
    }
}

impl Refresh {
    /// The maximum delay that the token in use allows: a delay must not exceed the rest of its lifetime.
    pub(super) fn retry_delay_max(&self, now: Instant) -> Duration {
        let Some((_, remaining)) = self.current.and_then(|held| held.remaining(now)) else {
            return Duration::MAX;
        };
        if remaining > LAST_MINUTE {
            LAST_MINUTE_DELAY_MAX.max(remaining - LAST_MINUTE)
        } else {
            (remaining / 4).clamp(LAST_MINUTE_DELAY_MIN, LAST_MINUTE_DELAY_MAX)
        }
    }

    /// The lifetime of a lock taken now. If its holder dies, another replica must have time for an attempt.
    pub(super) fn lock_ttl(&self, now: Instant) -> Duration {
        let spare = self.lock_time_left(now).unwrap_or(Duration::MAX);
        LOCK_TTL_MAX.min(self.buffer() / 2).min(spare).max(LOCK_TTL_MIN)
    }

    /// Whether there is time for the other replicas to wait for one.
    pub(super) fn may_lock(&self, now: Instant) -> bool {
        self.lock_time_left(now).is_none_or(|spare| spare > LOCK_TTL_MIN)
    }

    /// The maximum lifetime of a lock from now. The last quarter of the buffer is for other replicas.
    fn lock_time_left(&self, now: Instant) -> Option<Duration> {
        let (_, left) = self.current?.remaining(now)?;
        Some(left.saturating_sub(self.buffer() / 4))
    }

    /// The time between two reads while another replica has the lock.
    pub(super) fn lock_poll_delay(&self, unit: f64) -> Duration {
        POLL_MAX.min(self.buffer() / 8).mul_f64(0.5 + unit / 2.0)
    }

    /// Whether the token in use expires so soon that this replica does not wait for the lock.
    pub(super) fn is_urgent(&self, unit: f64, now: Instant) -> bool {
        let running = self.current.and_then(|held| held.remaining(now));
        running.is_some_and(|(_, left)| left <= (self.buffer() / 16).mul_f64(1.0 + unit))
    }

    /// The delay before a request without the store: at most half of the token's remaining lifetime.
    pub(super) fn unshared_delay(&self, unit: f64, now: Instant) -> Duration {
        let running = self.current.and_then(|held| held.remaining(now));
        running.map_or(UNSHARED_DELAY_MAX, |(_, left)| UNSHARED_DELAY_MAX.min(left / 2)).mul_f64(unit)
    }

    /// The current buffer of the token in use, or of the store's token if this replica has none.
    fn buffer(&self) -> Duration {
        let whole = self.current.and_then(|held| held.lifetime).map(|life| life.total).or(self.last_vault_lifetime);
        whole.map_or(self.settings.buffer, |whole| self.settings.buffer_of(whole))
    }
}
