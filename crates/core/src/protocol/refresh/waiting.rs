//! The reason why a refresh waits, and the end of the wait. For status and logs.

use std::time::Instant;

use super::{
    messages::GrantFailure,
    settings::Settings,
    sharing::{ReadPurpose, VaultStep},
    state::RefreshState,
    token::TokenLifetime,
};

/// A refresh that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingRefresh {
    pub reason: WaitReason,
    /// When it continues at the latest, if that is known.
    pub until: Option<Instant>,
}

/// The reason why a refresh waits.
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
            Self::Endpoint => "the response of the token endpoint",
            Self::Vault => "a response of Redis",
            Self::LockHeldElsewhere => "another replica, which holds the refresh lock",
            Self::VaultUnavailable => {
                "a random delay, because Redis does not respond (other replicas may also refresh)"
            }
            Self::IntervalMin => "the minimum time between two refreshes (refresh_interval_min)",
            Self::RetryAfter => "the delay that the token endpoint requested (Retry-After)",
            Self::Backoff => "the next attempt after a failure",
            Self::Jitter => "the random delay before a scheduled refresh (refresh_jitter)",
        }
    }
}

impl PendingRefresh {
    /// The reason why a refresh in this state waits. None if only the scheduled refresh is due. `lifetime`: of the token in
    /// use.
    pub(super) fn of(
        state: RefreshState,
        lifetime: Option<TokenLifetime>,
        settings: &Settings,
        now: Instant,
    ) -> Option<Self> {
        match state {
            RefreshState::NotStarted => None,
            RefreshState::Idle { refresh_at } => Self::of_scheduled(refresh_at?, lifetime, settings, now),
            RefreshState::Fetching { .. } => Some(Self { reason: WaitReason::Endpoint, until: None }),
            RefreshState::Retrying { at, streak } => Some(Self::of_retry(streak.failure, at)),
            RefreshState::Sharing {
                step:
                    VaultStep::Reading { purpose: ReadPurpose::Hint { refresh_at }, .. }
                    | VaultStep::Republishing { refresh_at },
                streak,
            } => match streak {
                Some(streak) => Some(Self::of_retry(streak.failure, refresh_at?)),
                None => Self::of_scheduled(refresh_at?, lifetime, settings, now),
            },
            RefreshState::Sharing { step, .. } => Some(Self::of_step(step)),
        }
    }

    fn of_retry(failure: GrantFailure, at: Instant) -> Self {
        Self { reason: reason_for(failure), until: Some(at) }
    }

    fn of_step(step: VaultStep) -> Self {
        let reason = match step {
            VaultStep::WaitingForLock { .. } => WaitReason::LockHeldElsewhere,
            VaultStep::WithoutVault { .. } => WaitReason::VaultUnavailable,
            VaultStep::Reading { .. }
            | VaultStep::Locking { .. }
            | VaultStep::Publishing { .. }
            | VaultStep::Republishing { .. } => WaitReason::Vault,
        };
        Self { reason, until: step.wakes_at() }
    }

    /// Whether a request at `at` waits for the minimum interval or for the random delay.
    fn of_scheduled(at: Instant, lifetime: Option<TokenLifetime>, settings: &Settings, now: Instant) -> Option<Self> {
        let Some(lifetime) = lifetime.filter(|lifetime| at >= lifetime.refresh_at) else {
            return Some(Self { reason: WaitReason::IntervalMin, until: Some(at) });
        };
        let planned = lifetime.expires_at.checked_sub(settings.buffer_of(lifetime.total))?;
        (now >= planned).then_some(Self { reason: WaitReason::Jitter, until: Some(at) })
    }
}

fn reason_for(failure: GrantFailure) -> WaitReason {
    match failure {
        GrantFailure::Throttled(Some(_)) => WaitReason::RetryAfter,
        GrantFailure::Throttled(None) | GrantFailure::Unreachable | GrantFailure::Rejected => WaitReason::Backoff,
    }
}
