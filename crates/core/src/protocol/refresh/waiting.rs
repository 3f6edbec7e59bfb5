//! What a refresh waits for, and until when. For status and logs.

use std::time::Instant;

use super::{GrantFailure, Refresh, RefreshState, sharing::VaultStep};

/// A refresh that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingRefresh {
    pub reason: WaitReason,
    /// When it continues at the latest, if that is known.
    pub until: Option<Instant>,
}

/// What a refresh waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    Endpoint,
    Vault,
    LockHeldElsewhere,
    VaultUnavailable,
    IntervalMin,
    RetryAfter,
    Backoff,
    Jitter,
}

impl WaitReason {
    /// The text in status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "the answer of the token endpoint",
            Self::Vault => "an answer of Redis",
            Self::LockHeldElsewhere => "another replica, which holds the refresh lock",
            Self::VaultUnavailable => "a random delay, because Redis does not answer (other replicas may refresh, too)",
            Self::IntervalMin => "the minimal interval between two refreshes (refresh_interval_min)",
            Self::RetryAfter => "the pause that the token endpoint asked for (Retry-After)",
            Self::Backoff => "the next attempt after a failure",
            Self::Jitter => "the random delay before a scheduled refresh (refresh_jitter)",
        }
    }
}

impl Refresh {
    /// What a refresh waits for now. None if only the scheduled refresh is due.
    pub fn pending_refresh(&self, now: Instant) -> Option<PendingRefresh> {
        let without_end = |reason| Some(PendingRefresh { reason, until: None });
        let until = |reason, at| Some(PendingRefresh { reason, until: Some(at) });
        match self.state {
            RefreshState::NotStarted => None,
            RefreshState::Idle { refresh_at: due } => self.idle_reason(due, now),
            RefreshState::Fetching { .. } => without_end(WaitReason::Endpoint),
            RefreshState::Retrying { at, streak } => until(reason_for(streak.failure), at),
            RefreshState::Sharing { step, streak } => match step {
                VaultStep::Peeking { refresh_at: due, .. } | VaultStep::Republishing { refresh_at: due } => {
                    match (streak, due) {
                        (Some(streak), Some(at)) => until(reason_for(streak.failure), at),
                        (None | Some(_), due) => self.idle_reason(due, now),
                    }
                }
                VaultStep::WaitingForLock { at } => until(WaitReason::LockHeldElsewhere, at),
                VaultStep::WithoutVault { at } => until(WaitReason::VaultUnavailable, at),
                VaultStep::Reading { .. }
                | VaultStep::Locking { .. }
                | VaultStep::Rereading { .. }
                | VaultStep::Publishing { .. }
                | VaultStep::Yielding { .. } => without_end(WaitReason::Vault),
            },
        }
    }

    /// Whether an unscheduled refresh waits for the minimum interval.
    fn idle_reason(&self, due: Option<Instant>, now: Instant) -> Option<PendingRefresh> {
        let at = due?;
        let life = self.current.and_then(|held| held.lifetime);
        let Some(life) = life.filter(|life| at >= life.refresh_at) else {
            return Some(PendingRefresh { reason: WaitReason::IntervalMin, until: Some(at) });
        };
        let planned = life.expires_at.checked_sub(self.settings.buffer_of(life.total))?;
        (now >= planned).then_some(PendingRefresh { reason: WaitReason::Jitter, until: Some(at) })
    }
}

fn reason_for(failure: GrantFailure) -> WaitReason {
    match failure {
        GrantFailure::Throttled(Some(_)) => WaitReason::RetryAfter,
        GrantFailure::Throttled(None) | GrantFailure::Unreachable | GrantFailure::Rejected => WaitReason::Backoff,
    }
}
