//! When the public keys of an issuer (JWKS) are fetched: ahead of their age limit, for an unknown key id, and after a
//! failure.
//!
//! It holds no keys. While fetches fail, the last good keys stay in use, and the machine retries without a limit.

use std::time::{Duration, Instant};

use super::backoff::BackoffCurve;

/// The minimum time between the starts of two fetches, however many tokens name unknown keys.
pub const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// The age limit of keys without a stated one, and the bounds of a stated one.
const AGE_DEFAULT: Duration = Duration::from_secs(600);
const AGE_MIN: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(3600);

/// Keys are fetched again after this part of their age limit, less a random part of it, so that replicas do not fetch at
/// the same time.
const REFRESH_AT: f64 = 0.8;
const REFRESH_JITTER: f64 = 0.1;

/// The delay after a failed fetch.
const RETRY: BackoffCurve = BackoffCurve { first: Duration::from_secs(2), cap: Duration::from_secs(60), jitter: 0.2 };

/// An input of the machine. `unit` is a random number from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub enum Input {
    /// Fetch the first keys. Sent once.
    Start,
    /// A token names a key that is not among the keys.
    UnknownKey,
    /// The endpoint returned keys, to be cached for at most `max_age`.
    Fetched { max_age: Option<Duration>, unit: f64 },
    /// The fetch failed, or returned no usable key.
    Failed { unit: f64 },
}

/// An action of the owner of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Fetch the keys, and report the result.
    Fetch,
}

/// The schedule of fetches. At most one is in flight.
#[derive(Debug)]
pub struct KeyRefresh {
    interval_min: Duration,
    schedule: FetchSchedule,
    /// When the last fetch started.
    last_started: Option<Instant>,
    /// Failed fetches in a row.
    failures: u32,
    output: Option<Output>,
}

#[derive(Debug)]
enum FetchSchedule {
    Unstarted,
    InFlight,
    At(Instant),
}

impl KeyRefresh {
    /// A machine that waits for [`Input::Start`]. `interval_min` is the minimum time between fetches for unknown keys;
    /// usually [`FETCH_INTERVAL_MIN`].
    pub fn new(interval_min: Duration) -> Self {
        Self { interval_min, schedule: FetchSchedule::Unstarted, last_started: None, failures: 0, output: None }
    }

    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Start => self.start(now),
            Input::UnknownKey => self.on_unknown_key(now),
            Input::Fetched { max_age, unit } => {
                self.failures = 0;
                self.schedule = FetchSchedule::At(now + refresh_after(max_age, unit));
            }
            Input::Failed { unit } => {
                self.schedule = FetchSchedule::At(now + RETRY.delay(self.failures, unit));
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.start(now);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.schedule {
            FetchSchedule::Unstarted | FetchSchedule::InFlight => None,
            FetchSchedule::At(at) => Some(at),
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.output.take()
    }

    /// Advances the next fetch to the earliest permitted moment.
    fn on_unknown_key(&mut self, now: Instant) {
        let FetchSchedule::At(at) = self.schedule else { return };
        let earliest = self.last_started.map_or(now, |started| started + self.interval_min);
        self.schedule = FetchSchedule::At(at.min(earliest));
        self.handle_timeout(now);
    }

    fn start(&mut self, now: Instant) {
        self.schedule = FetchSchedule::InFlight;
        self.last_started = Some(now);
        self.output = Some(Output::Fetch);
    }
}

fn refresh_after(max_age: Option<Duration>, unit: f64) -> Duration {
    max_age.unwrap_or(AGE_DEFAULT).clamp(AGE_MIN, AGE_MAX).mul_f64(REFRESH_AT - REFRESH_JITTER * unit)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// A machine that has fetched at `now`.
    fn fetched(now: Instant, max_age: Option<Duration>, unit: f64) -> KeyRefresh {
        let mut machine = KeyRefresh::new(FETCH_INTERVAL_MIN);
        machine.handle(Input::Start, now);
        assert_eq!(machine.poll_output(), Some(Output::Fetch));
        machine.handle(Input::Fetched { max_age, unit }, now);
        machine
    }

    #[test]
    fn keys_are_fetched_ahead_of_a_bounded_age() {
        let now = Instant::now();
        for (max_age, unit, expected) in [
            (None, 0.0, 480),
            (None, 1.0, 420),
            (Some(secs(1000)), 0.0, 800),
            (Some(secs(0)), 0.0, 48),
            (Some(secs(86_400)), 0.0, 2880),
        ] {
            let mut machine = fetched(now, max_age, unit);
            assert_eq!(machine.poll_timeout(), Some(now + secs(expected)), "{max_age:?} {unit}");
            machine.handle_timeout(now + secs(expected - 1));
            assert_eq!(machine.poll_output(), None);
            machine.handle_timeout(now + secs(expected));
            assert_eq!(machine.poll_output(), Some(Output::Fetch));
            assert_eq!(machine.poll_timeout(), None, "in flight");
        }
    }

    #[test]
    fn an_unknown_key_makes_the_next_fetch_earlier() {
        let start = Instant::now();
        let mut machine = fetched(start, None, 0.5);
        machine.handle(Input::UnknownKey, start + secs(3));
        assert_eq!(machine.poll_output(), None);
        assert_eq!(machine.poll_timeout(), Some(start + FETCH_INTERVAL_MIN));
        let mut machine = fetched(start, None, 0.5);
        machine.handle(Input::UnknownKey, start + secs(100));
        assert_eq!(machine.poll_output(), Some(Output::Fetch));
        machine.handle(Input::UnknownKey, start + secs(200));
        assert_eq!(machine.poll_output(), None, "one is in flight");
    }

    #[test]
    fn a_failed_fetch_is_retried_with_growing_delays() {
        let mut now = Instant::now();
        let mut machine = fetched(now, None, 0.5);
        let mut delays = Vec::new();
        for _ in 0..8 {
            now = machine.poll_timeout().unwrap();
            machine.handle_timeout(now);
            assert_eq!(machine.poll_output(), Some(Output::Fetch));
            machine.handle(Input::Failed { unit: 0.5 }, now);
            delays.push((machine.poll_timeout().unwrap() - now).as_secs());
        }
        assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60, 60]);
        machine.handle(Input::UnknownKey, now);
        assert_eq!(machine.poll_timeout(), Some(now + FETCH_INTERVAL_MIN), "sooner than the backoff");
        machine.handle_timeout(now + FETCH_INTERVAL_MIN);
        assert_eq!(machine.poll_output(), Some(Output::Fetch));
        machine.handle(Input::Fetched { max_age: None, unit: 0.0 }, now);
        machine.handle_timeout(machine.poll_timeout().unwrap());
        machine.handle(Input::Failed { unit: 0.5 }, now);
        assert_eq!(machine.poll_timeout(), Some(now + secs(2)), "a success resets the count");
    }

    proptest! {
        #[test]
        fn unknown_keys_cause_at_most_one_fetch_in_each_interval(gaps in prop::collection::vec(0..4000_u64, 1..200)) {
            let start = Instant::now();
            let (mut now, mut fetches) = (start, 1);
            let mut machine = fetched(now, None, 0.5);
            for gap in gaps {
                now += Duration::from_millis(gap);
                machine.handle_timeout(now);
                machine.handle(Input::UnknownKey, now);
                if machine.poll_output().is_some() {
                    fetches += 1;
                    machine.handle(Input::Fetched { max_age: None, unit: 0.5 }, now);
                }
            }
            let most = 1 + (now - start).as_millis() / FETCH_INTERVAL_MIN.as_millis();
            prop_assert!(fetches <= most, "{fetches} fetches, at most {most}");
        }
    }
}
