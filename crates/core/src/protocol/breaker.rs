//! The circuit breaker of connection attempts: it counts failures in a row.
//!
//! It computes no delays. While it is open, attempts continue at the backoff's cap.

use std::time::{Duration, Instant};

/// Counts failures in a row. It is open from the `after`th on. A stable connection closes it.
#[derive(Debug, Clone)]
pub struct Breaker {
    opens_after: u32,
    stable_after: Duration,
    failures: u32,
    live_since: Option<Instant>,
}

impl Breaker {
    /// A closed breaker. It opens after `after` failures in a row. A connection is stable after `stable_after`.
    pub fn new(after: u32, stable_after: Duration) -> Self {
        Self { opens_after: after, stable_after, failures: 0, live_since: None }
    }

    /// A connection is live. It is stable later. A connection that replaces another without an interruption inherits
    /// its start time.
    pub fn connected(&mut self, now: Instant) {
        self.live_since.get_or_insert(now);
    }

    /// The connection has ended. Returns whether it was stable. If so, the count is reset.
    pub fn disconnected(&mut self, now: Instant) -> bool {
        let stable = self.is_stable(now);
        if stable {
            self.failures = 0;
        }
        self.live_since = None;
        stable
    }

    /// Counts one more failure. Returns how many there were before it.
    pub fn failed(&mut self) -> u32 {
        let before = self.failures;
        self.failures = before.saturating_add(1);
        before
    }

    /// Whether there were enough failures, and the current connection is not stable yet.
    pub fn is_open(&self, now: Instant) -> bool {
        self.failures >= self.opens_after && !self.is_stable(now)
    }

    /// When the current connection counts as stable, which closes an open breaker.
    pub fn stable_at(&self) -> Option<Instant> {
        self.live_since?.checked_add(self.stable_after)
    }

    fn is_stable(&self, now: Instant) -> bool {
        self.stable_at().is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use super::*;

    const STABLE: Duration = Duration::from_secs(10);

    #[test]
    fn it_opens_at_the_fifth_failure_in_a_row() {
        let now = Instant::now();
        let mut breaker = Breaker::new(5, STABLE);
        let open: Vec<bool> = (0..7)
            .map(|_| {
                breaker.failed();
                breaker.is_open(now)
            })
            .collect();
        assert_eq!(open, [false, false, false, false, true, true, true]);
    }

    #[test]
    fn only_a_connection_that_lasted_closes_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1, STABLE);
        breaker.failed();
        breaker.connected(start);
        assert!(breaker.is_open(start + STABLE - Duration::from_millis(1)));
        assert!(!breaker.disconnected(start + STABLE - Duration::from_millis(1)));
        assert!(breaker.is_open(start + STABLE), "a short connection does not reset the count");

        breaker.connected(start);
        assert_eq!(breaker.stable_at(), Some(start + STABLE));
        assert!(!breaker.is_open(start + STABLE), "closed while the connection still lives");
        assert!(breaker.disconnected(start + STABLE));
        assert!(!breaker.is_open(start + STABLE));
    }

    #[test]
    fn planned_replacements_do_not_keep_a_connection_from_proving_stable() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1, STABLE);
        breaker.failed();
        for seconds in [0, 4, 8] {
            breaker.connected(start + Duration::from_secs(seconds));
        }
        assert!(!breaker.is_open(start + STABLE));
    }

    #[test]
    fn replacing_a_stable_connection_resets_the_failure_count() {
        let start = Instant::now();
        let mut breaker = Breaker::new(1, STABLE);
        breaker.failed();
        breaker.connected(start);
        breaker.connected(start + STABLE);
        assert!(!breaker.is_open(start + STABLE));
    }
}
