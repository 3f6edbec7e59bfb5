//! How long things wait: the deadline of a token, tries after failures, the life of the lock and the looks at it.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{Failure, Refresh, Settings};
use crate::protocol::backoff::Curve;

/// In the last stretch of a token's life an unreachable endpoint is tried every few seconds.
const EMERGENCY: Duration = Duration::from_secs(60);

/// The longest pause between two tries in the emergency.
const EMERGENCY_STEP_MAX: Duration = Duration::from_secs(5);

/// The shortest such pause: the last seconds of a token must not turn the emergency into a spin.
const EMERGENCY_STEP_MIN: Duration = Duration::from_secs(1);

/// An endpoint that cannot be reached, or does not answer sensibly.
const UNREACHABLE: Curve = Curve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };

/// An endpoint that rejects the credentials. Only a person can help, so there is no hurry.
const REJECTED: Curve = Curve { first: Duration::from_secs(30), cap: Duration::from_secs(15 * 60), jitter: 0.2 };

/// Two scheduled requests are at least so far apart, however short the life of a token is.
const SCHEDULED_MIN: Duration = Duration::from_secs(1);

/// The lock lives so long, unless renewed: time for one request to a slow endpoint.
const LOCK_LIFE_MAX: Duration = Duration::from_secs(10);

/// The vault counts in milliseconds, and a lock must outlive its own taking.
const LOCK_LIFE_MIN: Duration = Duration::from_millis(100);

/// Whoever waits for another replica looks at least so often.
const POLL_MAX: Duration = Duration::from_secs(1);

/// Without the vault nobody knows who else asks: replicas spread over this time.
const ALONE_MAX: Duration = Duration::from_secs(10);

/// Failures of one kind, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Row {
    pub(super) failure: Failure,
    /// How many came before `failure`.
    before: u32,
}

impl Row {
    /// The row that `failure` goes on with, or begins.
    pub(super) fn after(past: Option<Self>, failure: Failure) -> Self {
        let before = past.filter(|row| row.is_like(failure)).map_or(0, |row| row.before.saturating_add(1));
        Self { failure, before }
    }

    pub(super) fn is_like(&self, failure: Failure) -> bool {
        mem::discriminant(&self.failure) == mem::discriminant(&failure)
    }

    /// The first failure that only a person can mend.
    pub(super) fn is_alarming(&self) -> bool {
        self.failure == Failure::Rejected && self.before == 0
    }

    /// The time to the next try; `patience` bounds it where hurry helps.
    pub(super) fn pause(&self, unit: f64, patience: Duration) -> Duration {
        match self.failure {
            Failure::Throttled(Some(pause)) => UNREACHABLE.told(pause, unit),
            Failure::Throttled(None) => UNREACHABLE.delay(self.before, unit),
            Failure::Unreachable => UNREACHABLE.delay(self.before, unit).min(patience),
            Failure::Rejected => REJECTED.delay(self.before, unit),
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
    pub(super) fn patience(&self, now: Instant) -> Duration {
        let Some((_, remaining)) = self.held.and_then(|held| held.left(now)) else {
            return Duration::MAX;
        };
        if remaining > EMERGENCY {
            EMERGENCY_STEP_MAX.max(remaining - EMERGENCY)
        } else {
            (remaining / 4).clamp(EMERGENCY_STEP_MIN, EMERGENCY_STEP_MAX)
        }
    }

    /// How long a lock that is taken at this moment lives: a holder's death must leave time for another's try.
    pub(super) fn lock_life(&self, now: Instant) -> Duration {
        let spare = self.lock_spare(now).unwrap_or(Duration::MAX);
        LOCK_LIFE_MAX.min(self.buffer() / 2).min(spare).max(LOCK_LIFE_MIN)
    }

    /// Whether there is time left in which one replica may keep the others waiting.
    pub(super) fn may_lock(&self, now: Instant) -> bool {
        self.lock_spare(now).is_none_or(|spare| spare > LOCK_LIFE_MIN)
    }

    /// How long a lock may live from this moment: the last quarter of the buffer is for the others.
    fn lock_spare(&self, now: Instant) -> Option<Duration> {
        let (_, left) = self.held?.left(now)?;
        Some(left.saturating_sub(self.buffer() / 4))
    }

    /// The time between two looks while another replica has the lock.
    pub(super) fn poll_pause(&self, unit: f64) -> Duration {
        POLL_MAX.min(self.buffer() / 8).mul_f64(0.5 + unit / 2.0)
    }

    /// Whether the running token is so near its end that whoever has the lock is not waited for.
    pub(super) fn is_pressed(&self, unit: f64, now: Instant) -> bool {
        let running = self.held.and_then(|held| held.left(now));
        running.is_some_and(|(_, left)| left <= (self.buffer() / 16).mul_f64(1.0 + unit))
    }

    /// How long a replica that is on its own waits before it asks: never beyond half of what the running token has.
    pub(super) fn alone_pause(&self, unit: f64, now: Instant) -> Duration {
        let running = self.held.and_then(|held| held.left(now));
        running.map_or(ALONE_MAX, |(_, left)| ALONE_MAX.min(left / 2)).mul_f64(unit)
    }

    /// The buffer in force, here or (for who has no token) where the vault's token is in use.
    fn buffer(&self) -> Duration {
        let whole = self.held.and_then(|held| held.life).map(|life| life.whole).or(self.life_seen);
        whole.map_or(self.settings.buffer, |whole| self.settings.buffer_of(whole))
    }
}
