//! How long to wait before connecting again. The random number is an argument.
//!
//! For network failures only. A planned rotation does not use these counters.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{breaker::Breaker, retry_after::RETRY_AFTER_MAX};
use crate::model::Span;

/// The immediate attempt after a stable session has a random delay up to this, so that many streams that lost the same
/// network do not connect at the same moment.
pub const IMMEDIATE_MAX: Duration = Duration::from_millis(250);

/// The minimum delay after close code 1013 (platform overloaded) without `Retry-After`.
pub const OVERLOADED_MIN: Duration = Duration::from_secs(5);

/// After an outage shorter than this the stream is live within five seconds.
const SHORT_OUTAGE: Duration = Duration::from_secs(6);
/// The maximum delay of an attempt while the outage may still be short. The rest of the five seconds is for the
/// handshake.
const SHORT_OUTAGE_STEP_MAX: Duration = Duration::from_millis(4_500);

/// Delays that double from `first` to `cap`, each with a random deviation of `jitter`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffCurve {
    pub first: Duration,
    pub cap: Duration,
    /// A fraction: 0.2 spreads a delay over ±20 %.
    pub jitter: f64,
}

/// The backoff settings of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The delay before the second attempt; it doubles with each further attempt.
    #[serde(with = "Span")]
    #[schemars(extend("x-minimum" = "10ms", "x-maximum" = "1h"))]
    pub first: Duration,
    /// The longest delay, and the retry interval while the circuit breaker is open.
    #[serde(with = "Span")]
    #[schemars(extend("x-minimum" = "10ms", "x-maximum" = "1h"))]
    pub cap: Duration,
    /// The random share by which each delay is longer or shorter, so that many daemons do not reconnect at the same
    /// time.
    #[schemars(range(min = 0.0, max = 1.0), extend("x-unit" = "share of the delay"))]
    pub jitter: f64,
    /// The circuit breaker opens after this number of consecutive failures: an error is logged, and one attempt is made
    /// per `cap`.
    #[schemars(range(min = 1, max = 1000), extend("x-unit" = "failures"))]
    pub breaker_after: u32,
    /// A connection that lasts this long resets the failure count.
    #[serde(with = "Span")]
    #[schemars(extend("x-maximum" = "1h"))]
    pub stable_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            jitter: 0.2,
            breaker_after: 5,
            stable_after: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// The key and the text of an error between the settings.
    pub fn mistake(&self) -> Option<(&'static str, String)> {
        let (first, cap) = (Span(self.first), Span(self.cap));
        (cap < first).then(|| ("cap", format!("{cap} is shorter than backoff.first, {first}")))
    }
}

/// The kind of a failure, as far as it matters for the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// A network failure, or an unplanned clean close.
    Dropped,
    /// The platform restarts (1011, 1012, 5xx) and has closed all connections: no immediate attempt.
    Restarting,
    /// The platform asked for this minimum delay (`Retry-After`; [`OVERLOADED_MIN`] for 1013).
    RetryAfter(Duration),
    /// The platform refused several times in a row. The next attempt follows after `cap`.
    Refused,
}

/// The failures in a row of one stream.
#[derive(Debug, Clone)]
pub struct Backoff {
    curve: BackoffCurve,
    breaker: Breaker,
    /// When the current row of failures began.
    failing_since: Option<Instant>,
}

impl BackoffCurve {
    /// The delay after a failure with `before` earlier ones in its row; `unit` is a random number from 0 to 1.
    pub fn delay(&self, before: u32, unit: f64) -> Duration {
        let factor = 2_u32.saturating_pow(before);
        self.jittered(self.first.saturating_mul(factor).min(self.cap), unit)
    }

    /// A delay of at least `delay`. The jitter only extends it, up to [`RETRY_AFTER_MAX`].
    pub fn at_least(&self, delay: Duration, unit: f64) -> Duration {
        scaled(delay, 1.0 + self.jitter * unit).min(RETRY_AFTER_MAX).max(delay)
    }

    fn jittered(&self, delay: Duration, unit: f64) -> Duration {
        scaled(delay, 1.0 + self.jitter * (2.0 * unit - 1.0))
    }
}

fn scaled(delay: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(delay.as_secs_f64() * factor).unwrap_or(delay)
}

impl Backoff {
    /// A stream without failures.
    pub fn new(settings: Settings) -> Self {
        let Settings { first, cap, jitter, breaker_after, stable_after } = settings;
        Self {
            curve: BackoffCurve { first, cap, jitter },
            breaker: Breaker::new(breaker_after, stable_after),
            failing_since: None,
        }
    }

    /// A session is live.
    pub fn connected(&mut self, now: Instant) {
        self.breaker.connected(now);
    }

    /// A session was closed as planned. This is no failure and causes no delay.
    pub fn retired(&mut self, now: Instant) {
        self.breaker.disconnected(now);
    }

    /// A session was lost or could not be opened. Returns the delay before the next attempt. After a stable session the
    /// first attempt is immediate and counts as no failure. `unit` is a random number from 0 to 1.
    pub fn failed(&mut self, kind: FailureKind, now: Instant, unit: f64) -> Duration {
        let was_stable = self.breaker.disconnected(now);
        if was_stable && kind == FailureKind::Dropped {
            return scaled(IMMEDIATE_MAX, unit);
        }
        let before = self.breaker.failed();
        let since = self.failing_since.filter(|_| before > 0).unwrap_or(now);
        self.failing_since = Some(since);
        let delay = match self.breaker.is_open(now) {
            true => self.curve.jittered(self.curve.cap, unit),
            false if now < since + SHORT_OUTAGE => self.curve.delay(before, unit).min(SHORT_OUTAGE_STEP_MAX),
            false => self.curve.delay(before, unit),
        };
        match kind {
            FailureKind::Dropped | FailureKind::Restarting => delay,
            FailureKind::RetryAfter(least) => delay.max(self.curve.at_least(least, unit)),
            FailureKind::Refused => self.curve.jittered(self.curve.cap, unit),
        }
    }

    /// Whether the circuit breaker is open: the stream connects once each `cap`.
    pub fn is_open(&self, now: Instant) -> bool {
        self.breaker.is_open(now)
    }

    /// When the current session counts as stable, which closes an open breaker.
    pub fn stable_at(&self) -> Option<Instant> {
        self.breaker.stable_at()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn delays_double_until_the_breaker_opens_and_then_probe_once_each_cap() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(Settings::default());
        let delays = [(); 8].map(|()| {
            let delay = backoff.failed(FailureKind::Restarting, now, MIDDLE);
            now += delay;
            delay.as_secs()
        });
        assert_eq!(delays, [1, 2, 4, 8, 30, 30, 30, 30]);
        assert!(backoff.is_open(now));
    }

    #[test]
    fn with_any_jitter_an_attempt_follows_within_five_seconds_of_a_short_outage() {
        for unit in (0..=100).map(|percent| f64::from(percent) / 100.0) {
            let lost = Instant::now();
            let mut backoff = Backoff::new(Settings::default());
            backoff.connected(lost - Duration::from_secs(10));
            let (mut now, mut longest) = (lost, Duration::ZERO);
            while now < lost + SHORT_OUTAGE {
                let delay = backoff.failed(FailureKind::Dropped, now, unit);
                longest = longest.max(delay);
                now += delay;
            }
            assert!(longest < Duration::from_secs(5), "{longest:?} with {unit}");
        }
    }

    #[test]
    fn each_failure_kind_has_its_first_and_second_delay() {
        let retry_after = |secs| FailureKind::RetryAfter(Duration::from_secs(secs));
        // failure, was the session stable, delays in ms with the random number 0.5
        let table = [
            (FailureKind::Dropped, true, [125, 1_000]),
            (FailureKind::Dropped, false, [1_000, 2_000]),
            (FailureKind::Restarting, true, [1_000, 2_000]),
            (FailureKind::Restarting, false, [1_000, 2_000]),
            (FailureKind::RetryAfter(OVERLOADED_MIN), true, [5_500, 5_500]),
            (retry_after(100), false, [110_000, 110_000]),
            (retry_after(0), false, [1_000, 2_000]),
            (FailureKind::Refused, true, [30_000, 30_000]),
            (retry_after(3_600), false, [3_600_000, 3_600_000]),
        ];
        for (kind, stable, expected) in table {
            let start = Instant::now();
            let mut backoff = Backoff::new(Settings::default());
            backoff.connected(start);
            let lost = start + Duration::from_secs(if stable { 10 } else { 9 });
            let delays = [(); 2].map(|()| backoff.failed(kind, lost, MIDDLE).as_millis());
            assert_eq!(delays, expected, "{kind:?}, stable: {stable}");
        }
    }

    #[test]
    fn a_short_lived_connection_gets_no_immediate_retry_and_does_not_reset_the_count() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(Settings::default());
        let delays = [(); 6].map(|()| {
            backoff.connected(now);
            now += Duration::from_secs(2);
            backoff.failed(FailureKind::Dropped, now, MIDDLE).as_secs()
        });
        assert_eq!(delays, [1, 2, 4, 8, 30, 30]);
    }

    #[test]
    fn a_planned_end_is_no_failure() {
        let now = Instant::now();
        let mut backoff = Backoff::new(Settings::default());
        for _ in 0..20 {
            backoff.connected(now);
            backoff.retired(now);
        }
        assert!(!backoff.is_open(now));
        assert_eq!(backoff.failed(FailureKind::Dropped, now, MIDDLE).as_secs(), 1);
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_its_bounds(before in any::<u32>(), unit in 0.0..1.0_f64, asked in 0..7_200_u64) {
            let curve = curve();
            let delay = curve.delay(before, unit);
            prop_assert!(delay >= curve.first.mul_f64(0.8) && delay <= curve.cap.mul_f64(1.2));
            let asked = Duration::from_secs(asked);
            let mut backoff = Backoff::new(Settings::default());
            prop_assert!(backoff.failed(FailureKind::RetryAfter(asked), Instant::now(), unit) >= asked);
        }

        #[test]
        fn delays_never_shrink_during_an_outage(unit in 0.0..1.0_f64, failures in 2..100_usize) {
            let now = Instant::now();
            let mut backoff = Backoff::new(Settings::default());
            let delays: Vec<_> = (0..failures).map(|_| backoff.failed(FailureKind::Dropped, now, unit)).collect();
            prop_assert!(delays.is_sorted());
        }

        #[test]
        fn extreme_settings_do_not_panic(first in any::<u64>(), cap in any::<u64>(), before in any::<u32>()) {
            let curve = BackoffCurve { first: Duration::from_secs(first), cap: Duration::from_secs(cap), jitter: 1.0 };
            prop_assert!(curve.delay(before, 0.5) <= curve.cap.saturating_add(Duration::from_secs(1 + cap / 1_000_000)));
        }
    }

    fn curve() -> BackoffCurve {
        let Settings { first, cap, jitter, .. } = Settings::default();
        BackoffCurve { first, cap, jitter }
    }
}
