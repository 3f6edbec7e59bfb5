//! The metrics of accounts.

use std::time::Duration;

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Registry};

use super::{METRICS, counter_vec, float_vec};
use crate::model::AccountName;

const REFRESH_OUTCOMES: [&str; 4] = ["granted", "throttled", "unreachable", "rejected"];

/// The metrics of all accounts.
pub(super) struct AccountFamilies {
    refreshes: IntCounterVec,
    token_remaining: GaugeVec,
    token_lifetime: GaugeVec,
    token_claimed: GaugeVec,
    adoptions: IntCounterVec,
    refusals: IntCounterVec,
}

impl AccountFamilies {
    pub(super) fn register(r: &Registry) -> Self {
        Self {
            refreshes: counter_vec(r, "token_refreshes_total", "Token requests by outcome", &["account", "outcome"]),
            adoptions: counter_vec(r, "token_adoptions_total", "Tokens adopted from another replica", &["account"]),
            refusals: counter_vec(
                r,
                "token_refusals_total",
                "Tokens that the platform rejected before they expired",
                &["account"],
            ),
            token_remaining: float_vec(
                r,
                "token_remaining_seconds",
                "Remaining lifetime of the current token",
                &["account"],
            ),
            token_lifetime: float_vec(
                r,
                "token_lifetime_seconds",
                "Lifetime of the current token, which schedules its refresh",
                &["account"],
            ),
            token_claimed: float_vec(
                r,
                "token_claimed_lifetime_seconds",
                "Lifetime in the claims of the current token; 0 if it has none",
                &["account"],
            ),
        }
    }
}

/// The metrics of one account.
#[derive(Debug, Clone)]
pub struct AccountMetrics {
    name: AccountName,
    remaining: Gauge,
    lifetime: Gauge,
    claimed: Gauge,
    adoptions: IntCounter,
    refusals: IntCounter,
}

impl AccountMetrics {
    /// Creates all series of an account with value 0.
    pub fn new(name: &AccountName) -> Self {
        let label = &[name.as_str()];
        for outcome in REFRESH_OUTCOMES {
            METRICS.accounts.refreshes.with_label_values(&[name.as_str(), outcome]);
        }
        Self {
            remaining: METRICS.accounts.token_remaining.with_label_values(label),
            lifetime: METRICS.accounts.token_lifetime.with_label_values(label),
            claimed: METRICS.accounts.token_claimed.with_label_values(label),
            adoptions: METRICS.accounts.adoptions.with_label_values(label),
            refusals: METRICS.accounts.refusals.with_label_values(label),
            name: name.clone(),
        }
    }

    /// Counts a token request. The outcome is one of `granted`, `throttled`, `unreachable`, `rejected`.
    pub fn refreshed(&self, outcome: &'static str) {
        METRICS.accounts.refreshes.with_label_values(&[self.name.as_str(), outcome]).inc();
    }

    /// Sets the lifetime that schedules refreshes, and the one of the token's claims.
    pub fn set_lifetime(&self, lifetime: Duration, claimed: Option<Duration>) {
        self.lifetime.set(lifetime.as_secs_f64());
        self.claimed.set(claimed.unwrap_or_default().as_secs_f64());
    }

    /// Counts a token adopted from another replica.
    pub fn adopted(&self) {
        self.adoptions.inc();
    }

    /// Counts a rejection of the token in use.
    pub fn refused(&self) {
        self.refusals.inc();
    }

    pub fn set_remaining(&self, remaining: Duration) {
        self.remaining.set(remaining.as_secs_f64());
    }
}
