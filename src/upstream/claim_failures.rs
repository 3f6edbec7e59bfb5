//! Backoff for a log that is claimed but then rejects appends. Each claim opens sessions, so repeated claims wait.

use std::time::Duration;

use crate::protocol::backoff::BackoffCurve;

/// Delays between claims that were followed by a rejected append.
const CLAIM: BackoffCurve = BackoffCurve { first: Duration::from_secs(2), cap: Duration::from_secs(30), jitter: 0.2 };

/// Consecutive claims without a successful append.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClaimFailures {
    moved: bool,
    refusals: u32,
}

impl ClaimFailures {
    /// Counts a rejected append.
    pub(super) fn refused(&mut self) {
        self.refusals = self.refusals.saturating_add(1);
    }

    /// Records that the log changed outside this process. False the first time, which a rolled-back store explains.
    pub(super) fn moved(&mut self) -> bool {
        let again = std::mem::replace(&mut self.moved, true);
        if again {
            self.refused();
        }
        again
    }

    /// Resets the count after a successful append.
    pub(super) fn appended(&mut self) {
        *self = Self::default();
    }

    /// Whether only a successful append shows that the log is usable.
    pub(super) fn needs_append(self) -> bool {
        self.refusals > 0
    }

    /// Delay before the next claim. None before the first claim after a rejection.
    pub(super) fn delay(self, unit: f64) -> Option<Duration> {
        let waits = self.refusals.checked_sub(2)?;
        Some(CLAIM.delay(waits, unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_without_an_append_back_off() {
        let mut failures = ClaimFailures::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            failures.refused();
            waits.push(failures.delay(0.5));
        }
        assert_eq!(waits[0], None, "the first claim does not wait");
        let waits: Vec<Duration> = waits[1..].iter().map(|wait| wait.expect("it waits")).collect();
        assert!(waits.is_sorted() && waits[0] >= Duration::from_secs(1), "{waits:?}");
        assert!(waits[5..].iter().all(|wait| *wait >= Duration::from_secs(24)), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(36)), "{waits:?}");
        failures.appended();
        assert_eq!((failures.delay(0.5), failures.needs_append()), (None, false));
    }

    #[test]
    fn a_second_move_of_the_log_counts_as_a_failure() {
        let mut failures = ClaimFailures::default();
        assert!(!failures.moved() && !failures.needs_append());
        assert!(failures.moved() && failures.needs_append());
        assert!(failures.moved() && failures.delay(0.5).is_some());
        failures.appended();
        assert!(!failures.moved());
    }
}
