//! A log that is claimed and then refuses appends, again and again: each further claim opens sessions, so it waits.

use std::time::Duration;

use crate::protocol::backoff::BackoffCurve;

/// Delays before a claim after the first one that led to nothing.
const CLAIM: BackoffCurve = BackoffCurve { first: Duration::from_secs(2), cap: Duration::from_secs(30), jitter: 0.2 };

/// Claims in a row after which nothing was appended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ClaimFailures {
    moved: bool,
    refusals: u32,
}

impl ClaimFailures {
    /// The store refused an append.
    pub(super) fn refused(&mut self) {
        self.refusals = self.refusals.saturating_add(1);
    }

    /// The log was not where it was left. Once is what a roll-back does: false then.
    pub(super) fn moved(&mut self) -> bool {
        let again = std::mem::replace(&mut self.moved, true);
        if again {
            self.refused();
        }
        again
    }

    /// An append was done.
    pub(super) fn appended(&mut self) {
        *self = Self::default();
    }

    /// Whether a claim alone does not show that the log can be used.
    pub(super) fn needs_append(self) -> bool {
        self.refusals > 0
    }

    /// How long the next claim waits. The first one after a refusal does not: it finds out more.
    pub(super) fn delay(self, unit: f64) -> Option<Duration> {
        let waits = self.refusals.checked_sub(2)?;
        Some(CLAIM.delay(waits, unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_after_which_nothing_is_appended_wait_longer_and_longer() {
        let mut relapses = ClaimFailures::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            relapses.refused();
            waits.push(relapses.delay(0.5));
        }
        assert_eq!(waits[0], None, "the first claim finds out why");
        let waits: Vec<Duration> = waits[1..].iter().map(|wait| wait.expect("it waits")).collect();
        assert!(waits.is_sorted() && waits[0] >= Duration::from_secs(1), "{waits:?}");
        assert!(waits[5..].iter().all(|wait| *wait >= Duration::from_secs(24)), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(36)), "{waits:?}");
        relapses.appended();
        assert_eq!((relapses.delay(0.5), relapses.needs_append()), (None, false));
    }

    #[test]
    fn a_log_that_moved_once_is_claimed_at_once_and_one_that_moves_again_is_doubted() {
        let mut relapses = ClaimFailures::default();
        assert!(!relapses.moved() && !relapses.needs_append());
        assert!(relapses.moved() && relapses.needs_append());
        assert!(relapses.moved() && relapses.delay(0.5).is_some());
        relapses.appended();
        assert!(!relapses.moved());
    }
}
