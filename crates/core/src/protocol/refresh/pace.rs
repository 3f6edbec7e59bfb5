//! How long things wait: the deadline of a token, tries after failures, the life of the lock and the looks at it.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{GrantFailure, Refresh, Settings};
use crate::protocol::backoff::BackoffCurve;

/// In the last stretch of a token's life an unreachable endpoint is tried every few seconds.
const LAST_MINUTE: Duration = Duration::from_secs(60);

/// The longest pause between two tries in the emergency.
const LAST_MINUTE_DELAY_MAX: Duration = Duration::from_secs(5);

/// The shortest such pause: the last seconds of a token must not turn the emergency into a spin.
const LAST_MINUTE_DELAY_MIN: Duration = Duration::from_secs(1);

/// An endpoint that cannot be reached, or does not answer sensibly.
const UNREACHABLE: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };

/// An endpoint that rejects the credentials. Only a person can help, so there is no hurry.
const REJECTED: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(30), cap: Duration::from_secs(15 * 60), jitter: 0.2 };

/// Two scheduled requests are at least so far apart, however short the life of a token is.
const SCHEDULED_MIN: Duration = Duration::from_secs(1);

/// The lock lives so long, unless renewed: time for one request to a slow endpoint.
const LOCK_TTL_MAX: Duration = Duration::from_secs(10);

/// The vault counts in milliseconds, and a lock must outlive its own taking.
const LOCK_TTL_MIN: Duration = Duration::from_millis(100);

/// Whoever waits for another replica looks at least so often.
const POLL_MAX: Duration = Duration::from_secs(1);

/// Without the vault nobody knows who else asks: replicas spread over this time.
const UNSHARED_DELAY_MAX: Duration = Duration::from_secs(10);

/// Failures of one kind, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FailureStreak {
    pub(super) failure: GrantFailure,
    /// How many came before `failure`.
    previous: u32,
}

impl FailureStreak {
    /// The row that `failure` goes on with, or begins.
    pub(super) fn after(past: Option<Self>, failure: GrantFailure) -> Self {
        let before =
            past.filter(|streak| streak.is_same_kind(failure)).map_or(0, |streak| streak.previous.saturating_add(1));
        Self { failure, previous: before }
    }

    pub(super) fn is_same_kind(&self, failure: GrantFailure) -> bool {
        mem::discriminant(&self.failure) == mem::discriminant(&failure)
    }

    /// The first failure that only a person can mend.
    pub(super) fn needs_operator(&self) -> bool {
        self.failure == GrantFailure::Rejected && self.previous == 0
    }

    /// The time to the next try; `patience` bounds it where hurry helps.
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
    /// So long before its end a token of this life is renewed.
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
    /// The longest pause that the running token allows: none may swallow the rest of its life.
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

    /// How long a lock that is taken at this moment lives: a holder's death must leave time for another's try.
    pub(super) fn lock_ttl(&self, now: Instant) -> Duration {
        let spare = self.lock_time_left(now).unwrap_or(Duration::MAX);
        LOCK_TTL_MAX.min(self.buffer() / 2).min(spare).max(LOCK_TTL_MIN)
    }

    /// Whether there is time left in which one replica may keep the others waiting.
    pub(super) fn may_lock(&self, now: Instant) -> bool {
        self.lock_time_left(now).is_none_or(|spare| spare > LOCK_TTL_MIN)
    }

    /// How long a lock may live from this moment: the last quarter of the buffer is for the others.
    fn lock_time_left(&self, now: Instant) -> Option<Duration> {
        let (_, left) = self.current?.remaining(now)?;
        Some(left.saturating_sub(self.buffer() / 4))
    }

    /// The time between two looks while another replica has the lock.
    pub(super) fn lock_poll_delay(&self, unit: f64) -> Duration {
        POLL_MAX.min(self.buffer() / 8).mul_f64(0.5 + unit / 2.0)
    }

    /// Whether the running token is so near its end that whoever has the lock is not waited for.
    pub(super) fn is_urgent(&self, unit: f64, now: Instant) -> bool {
        let running = self.current.and_then(|held| held.remaining(now));
        running.is_some_and(|(_, left)| left <= (self.buffer() / 16).mul_f64(1.0 + unit))
    }

    /// How long a replica that is on its own waits before it asks: never beyond half of what the running token has.
    pub(super) fn unshared_delay(&self, unit: f64, now: Instant) -> Duration {
        let running = self.current.and_then(|held| held.remaining(now));
        running.map_or(UNSHARED_DELAY_MAX, |(_, left)| UNSHARED_DELAY_MAX.min(left / 2)).mul_f64(unit)
    }

    /// The buffer in force, here or (for who has no token) where the vault's token is in use.
    fn buffer(&self) -> Duration {
        let whole = self.current.and_then(|held| held.lifetime).map(|life| life.total).or(self.last_vault_lifetime);
        whole.map_or(self.settings.buffer, |whole| self.settings.buffer_of(whole))
    }
}
