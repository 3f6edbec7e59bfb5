//! Failed token requests in a row, and the delay before the next one.

use std::{mem, time::Duration};

use super::messages::GrantFailure;
use crate::protocol::backoff::BackoffCurve;

/// The delay after no answer or an invalid answer.
const UNREACHABLE: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(30), jitter: 0.2 };

/// The delay after rejected credentials. An operator must act, so it is long.
const REJECTED: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(30), cap: Duration::from_secs(15 * 60), jitter: 0.2 };

/// Failures of the same kind in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FailureStreak {
    pub(super) failure: GrantFailure,
    /// How many failures came before `failure`.
    previous: u32,
}

impl FailureStreak {
    /// Adds `failure` to the streak, or begins a new one.
    pub(super) fn after(past: Option<Self>, failure: GrantFailure) -> Self {
        let before =
            past.filter(|streak| streak.is_same_kind(failure)).map_or(0, |streak| streak.previous.saturating_add(1));
        Self { failure, previous: before }
    }

    fn is_same_kind(&self, failure: GrantFailure) -> bool {
        mem::discriminant(&self.failure) == mem::discriminant(&failure)
    }

    /// Whether the endpoint asked for a pause.
    pub(super) fn is_throttled(&self) -> bool {
        self.is_same_kind(GrantFailure::Throttled(None))
    }

    /// Whether this is the first failure that requires an operator.
    pub(super) fn needs_operator(&self) -> bool {
        self.failure == GrantFailure::Rejected && self.previous == 0
    }

    /// The delay before the next attempt. `delay_max` limits it while the endpoint is unreachable.
    pub(super) fn delay(&self, unit: f64, delay_max: Duration) -> Duration {
        match self.failure {
            GrantFailure::Throttled(Some(pause)) => UNREACHABLE.at_least(pause, unit),
            GrantFailure::Throttled(None) => UNREACHABLE.delay(self.previous, unit),
            GrantFailure::Unreachable => UNREACHABLE.delay(self.previous, unit).min(delay_max),
            GrantFailure::Rejected => REJECTED.delay(self.previous, unit),
        }
    }
}
