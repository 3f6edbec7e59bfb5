//! Rejected tokens: how soon the next one is requested, and when the account is degraded.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// This many rejected tokens within [`REFUSALS_WINDOW`] degrade an account. The next ones are replaced no sooner than
/// `REFUSAL_INTERVAL` after the last request.
pub const REFUSALS_MAX: usize = 3;

/// How long a rejected token counts.
pub const REFUSALS_WINDOW: Duration = Duration::from_secs(300);

/// The minimum time between two requests while the platform rejects tokens again and again: a platform that closes each
/// new session costs one request in this time.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(5);

/// The newest rejected tokens of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Refusals {
    /// When they were rejected, at most [`REFUSALS_MAX`] of them.
    refused_at: VecDeque<Instant>,
    /// How many times in a row the endpoint granted the rejected token again.
    repeated_grants: u32,
}

impl Refusals {
    /// `repeated`: the endpoint granted the rejected token again.
    pub(super) fn on_granted(&mut self, repeated: bool) {
        self.repeated_grants = if repeated { self.repeated_grants.saturating_add(1) } else { 0 };
    }

    pub(super) fn record(&mut self, now: Instant) {
        if self.refused_at.len() == REFUSALS_MAX {
            self.refused_at.pop_front();
        }
        self.refused_at.push_back(now);
    }

    /// Until when the account is degraded because the platform rejected too many tokens.
    pub(super) fn degraded_until(&self) -> Option<Instant> {
        let oldest = self.refused_at.front().filter(|_| self.refused_at.len() == REFUSALS_MAX)?;
        Some(*oldest + REFUSALS_WINDOW)
    }

    /// The minimum time from the last request to the next one, for a token that is rejected now.
    ///
    /// A token that carried a live session is replaced at once, any other after `interval_min`. A token that the
    /// endpoint had granted again is replaced sooner, because it was no new token.
    pub(super) fn interval(&self, proven: bool, interval_min: Duration, now: Instant) -> Duration {
        let is_degraded = self.degraded_until().is_some_and(|until| now < until);
        let repeated = if is_degraded { REFUSAL_INTERVAL } else { Duration::ZERO };
        let unproven = match self.repeated_grants.checked_sub(1) {
            None => interval_min,
            Some(before) => REFUSAL_INTERVAL.saturating_mul(2_u32.saturating_pow(before)).min(interval_min),
        };
        if proven { repeated } else { repeated.max(unproven) }
    }
}
