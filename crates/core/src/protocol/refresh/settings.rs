//! When the tokens of an account are refreshed as planned.

use std::time::Duration;

/// The minimum time between two scheduled requests, also for a token with a short lifetime.
const SCHEDULED_MIN: Duration = Duration::from_secs(1);

/// The refresh settings of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// A token is refreshed this long before it expires, but not before three quarters of its lifetime.
    pub buffer: Duration,
    /// The minimum time between two refreshes. Scheduled ones, and those after the rejection of a token that had
    /// carried a live session, are exempt.
    pub interval_min: Duration,
    /// The maximum random delay before a scheduled refresh, limited to a quarter of the current buffer.
    pub jitter_max: Duration,
    pub sharing: TokenSharing,
}

/// Whether a token is shared between replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenSharing {
    /// Not shared: this replica requests every token itself.
    None,
    /// Shared by all replicas with the same store: one of them requests it, under a lock.
    Vault,
}

impl Settings {
    /// How long before its end a token with this lifetime is refreshed.
    pub(super) fn buffer_of(&self, lifetime: Duration) -> Duration {
        if lifetime < self.buffer.saturating_mul(4) { lifetime / 4 } else { self.buffer }
    }

    /// From the sending of a request to the next scheduled one.
    pub(super) fn due_after(&self, lifetime: Duration, unit: f64) -> Duration {
        (lifetime - self.buffer_of(lifetime) + self.jitter(lifetime, unit)).max(SCHEDULED_MIN)
    }

    pub(super) fn jitter(&self, lifetime: Duration, unit: f64) -> Duration {
        self.jitter_max.min(self.buffer_of(lifetime) / 4).mul_f64(unit)
    }
}
