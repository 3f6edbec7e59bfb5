//! The states of a refresh.

use std::time::Instant;

use super::{
    failure_streak::FailureStreak,
    sharing::{HeldLock, VaultStep},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum RefreshState {
    NotStarted,
    Idle { refresh_at: Option<Instant> },
    Fetching { sent_at: Instant, streak: Option<FailureStreak>, lock: Option<HeldLock> },
    Retrying { at: Instant, streak: FailureStreak },
    Sharing { step: VaultStep, streak: Option<FailureStreak> },
}

impl RefreshState {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::NotStarted => None,
            Self::Idle { refresh_at } => *refresh_at,
            Self::Fetching { lock, .. } => (*lock)?.renew_at,
            Self::Retrying { at, .. } => Some(*at),
            Self::Sharing { step, .. } => step.wakes_at(),
        }
    }

    /// The failed requests since the last token.
    pub(super) fn streak(&self) -> Option<FailureStreak> {
        match self {
            Self::NotStarted | Self::Idle { .. } => None,
            Self::Fetching { streak, .. } | Self::Sharing { streak, .. } => *streak,
            Self::Retrying { streak, .. } => Some(*streak),
        }
    }

    /// The request in flight: when it was sent, the failures before it, and its lock.
    pub(super) fn request(&self) -> (Instant, Option<FailureStreak>, Option<HeldLock>) {
        match self {
            Self::Fetching { sent_at, streak, lock } => (*sent_at, *streak, *lock),
            Self::NotStarted | Self::Idle { .. } | Self::Retrying { .. } | Self::Sharing { .. } => {
                panic!("an answer without a request")
            }
        }
    }

    /// The step of a shared refresh, and the failures before it.
    pub(super) fn step(&self) -> (VaultStep, Option<FailureStreak>) {
        match self {
            Self::Sharing { step, streak } => (*step, *streak),
            Self::NotStarted | Self::Idle { .. } | Self::Fetching { .. } | Self::Retrying { .. } => {
                panic!("an answer of the store without a request")
            }
        }
    }

    /// Whether no refresh is in progress and none has failed.
    pub(super) fn is_quiet(mut self) -> bool {
        self.streak().is_none() && self.scheduled_mut().is_some()
    }

    /// The time of the next request, if none is in progress.
    pub(super) fn scheduled_mut(&mut self) -> Option<&mut Option<Instant>> {
        match self {
            Self::Idle { refresh_at } => Some(refresh_at),
            Self::Sharing { step, .. } => step.scheduled_mut(),
            Self::NotStarted | Self::Fetching { .. } | Self::Retrying { .. } => None,
        }
    }
}
