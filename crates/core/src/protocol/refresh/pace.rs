//! The delays that depend on the token in use: retries, the lock, and the reads while another replica has the lock.

use std::time::Duration;

/// In the last part of a token's lifetime an unreachable endpoint is tried every few seconds.
const LAST_MINUTE: Duration = Duration::from_secs(60);

/// The maximum delay between two attempts in the last part of a token's lifetime.
const LAST_MINUTE_DELAY_MAX: Duration = Duration::from_secs(5);

/// The minimum delay between two attempts in the last part of a token's lifetime.
const LAST_MINUTE_DELAY_MIN: Duration = Duration::from_secs(1);

/// The lifetime of the lock without an extension: time for one request to a slow endpoint.
const LOCK_TTL_MAX: Duration = Duration::from_secs(10);

/// The minimum lifetime of the lock. The store counts in milliseconds.
const LOCK_TTL_MIN: Duration = Duration::from_millis(100);

/// The maximum time between two reads while another replica has the lock.
const POLL_MAX: Duration = Duration::from_secs(1);

/// The maximum random delay of a request without the store, so that replicas do not request at the same time.
const UNSHARED_DELAY_MAX: Duration = Duration::from_secs(10);

/// The time that the token in use leaves for a refresh.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLeft {
    /// The rest of its lifetime; none if there is no usable token, or if its lifetime is unknown.
    pub(super) remaining: Option<Duration>,
    /// How long before its end it is refreshed.
    pub(super) buffer: Duration,
}

impl TimeLeft {
    /// The maximum delay before a retry: a delay must not exceed the rest of the token's lifetime.
    pub(super) fn retry_delay_max(&self) -> Duration {
        let Some(remaining) = self.remaining else { return Duration::MAX };
        if remaining > LAST_MINUTE {
            LAST_MINUTE_DELAY_MAX.max(remaining - LAST_MINUTE)
        } else {
            (remaining / 4).clamp(LAST_MINUTE_DELAY_MIN, LAST_MINUTE_DELAY_MAX)
        }
    }

    /// The lifetime of a lock taken now. If its holder dies, another replica must have time for an attempt.
    pub(super) fn lock_ttl(&self) -> Duration {
        let spare = self.lock_time_left().unwrap_or(Duration::MAX);
        LOCK_TTL_MAX.min(self.buffer / 2).min(spare).max(LOCK_TTL_MIN)
    }

    /// Whether there is time for the other replicas to wait for one.
    pub(super) fn may_lock(&self) -> bool {
        self.lock_time_left().is_none_or(|spare| spare > LOCK_TTL_MIN)
    }

    /// The maximum lifetime of a lock from now. The last quarter of the buffer is for other replicas.
    fn lock_time_left(&self) -> Option<Duration> {
        Some(self.remaining?.saturating_sub(self.buffer / 4))
    }

    /// The time between two reads while another replica has the lock.
    pub(super) fn lock_poll_delay(&self, unit: f64) -> Duration {
        POLL_MAX.min(self.buffer / 8).mul_f64(0.5 + unit / 2.0)
    }

    /// Whether the token in use expires so soon that this replica does not wait for the lock.
    pub(super) fn is_urgent(&self, unit: f64) -> bool {
        self.remaining.is_some_and(|left| left <= (self.buffer / 16).mul_f64(1.0 + unit))
    }

    /// The delay before a request without the store: at most half of the token's remaining lifetime.
    pub(super) fn unshared_delay(&self, unit: f64) -> Duration {
        self.remaining.map_or(UNSHARED_DELAY_MAX, |left| UNSHARED_DELAY_MAX.min(left / 2)).mul_f64(unit)
    }
}
