//! For what a refresh waits, and until when: for status and log.

use std::time::Instant;

use super::{GrantFailure, Refresh, RefreshState, sharing::VaultStep};

/// A refresh that is wanted and not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingRefresh {
    pub reason: WaitReason,
    /// When it goes on at the latest, if the machine knows that.
    pub until: Option<Instant>,
}

/// For what it waits.
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
    /// The words for people.
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
    /// For what a refresh waits at this moment. None: none is wanted before the scheduled one.
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

    /// A token that is due ahead of its schedule was asked for, and the minimal interval is not over.
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
