//! What the refresher and its handles exchange: requests, and reports of the state.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    auth::Token,
    clock,
    model::Timestamp,
    protocol::refresh::{PendingRefresh, Refresh, TokenPhase, WaitReason, usage::TokenUsage},
};

/// Requests from handles to the refresher. A value, not a queue, so repeated requests have no effect.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::auth) struct RefreshRequests {
    /// The newest rejected generation, and whether it had carried a live session.
    pub(super) refused: (u64, bool),
    /// The newest generation that carried a live session after it was rejected.
    pub(in crate::auth) cleared: u64,
    /// Number of requests to offer the current token again to streams for which it was rejected.
    pub(in crate::auth) offers: u64,
    /// Number of refresh requests by operators.
    pub(in crate::auth) operator_requests: u64,
}

impl RefreshRequests {
    /// Records a rejected generation. True if it was not recorded before.
    pub(in crate::auth) fn refuse(&mut self, generation: u64, proven: bool) -> bool {
        let refused = (generation, proven);
        let is_new = self.refused < refused || self.cleared >= generation;
        self.refused = if self.cleared >= generation { refused } else { self.refused.max(refused) };
        // A later rejection overrides a cleared one.
        self.cleared = self.cleared.min(generation.saturating_sub(1));
        is_new
    }
}

/// A failed refresh.
#[derive(Debug, Clone)]
pub(in crate::auth) struct RefreshError {
    pub(in crate::auth) text: String,
    pub(in crate::auth) at: Timestamp,
}

/// State of the refresher, for handles.
#[derive(Debug, Clone)]
pub(in crate::auth) struct TokenReport {
    pub(in crate::auth) phase: TokenPhase,
    pub(in crate::auth) generation: u64,
    pub(in crate::auth) ends_at: Option<Instant>,
    pub(in crate::auth) next_at: Option<Instant>,
    pub(in crate::auth) refreshes: u64,
    pub(in crate::auth) degraded_until: Option<Instant>,
    pub(in crate::auth) waiting: Option<PendingRefresh>,
    pub(in crate::auth) last_error: Option<RefreshError>,
}

/// The channels of a handle.
#[derive(Debug, Clone)]
pub(in crate::auth) struct RefresherHandle {
    pub(in crate::auth) requests: watch::Sender<RefreshRequests>,
    pub(in crate::auth) tokens: watch::Receiver<Option<Token>>,
    pub(in crate::auth) reports: watch::Receiver<TokenReport>,
    pub(in crate::auth) usage: Arc<Mutex<TokenUsage>>,
}

/// The report of the machine's state.
pub(super) fn report(
    machine: &Refresh,
    refreshes: u64,
    request_ends: Option<Instant>,
    last_error: Option<RefreshError>,
) -> TokenReport {
    let waiting = machine.pending_refresh(clock::now()).map(|waiting| match waiting.reason {
        WaitReason::Endpoint => PendingRefresh { until: request_ends, ..waiting },
        WaitReason::Vault
        | WaitReason::LockHeldElsewhere
        | WaitReason::VaultUnavailable
        | WaitReason::IntervalMin
        | WaitReason::RetryAfter
        | WaitReason::Backoff
        | WaitReason::Jitter => waiting,
    });
    TokenReport {
        degraded_until: machine.degraded_until(),
        waiting,
        phase: machine.phase(),
        generation: machine.generation(),
        ends_at: machine.expires_at(),
        next_at: machine.next_at(),
        refreshes,
        last_error,
    }
}

/// Seconds from now; 0 for a past instant.
pub(in crate::auth) fn seconds_until(at: Instant) -> f64 {
    at.saturating_duration_since(clock::now()).as_secs_f64()
}
