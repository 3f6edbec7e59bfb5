//! For what a refresh waits, and until when: for status and log.

use std::time::Instant;

use super::{Failure, Refresh, State, sharing::Step};

/// A refresh that is wanted and not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    pub reason: Reason,
    /// When it goes on at the latest, if the machine knows that.
    pub until: Option<Instant>,
}

/// For what it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Endpoint,
    Vault,
    AnotherReplica,
    VaultAway,
    IntervalMin,
    RetryAfter,
    Backoff,
    Jitter,
}

impl Reason {
    /// The words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "the answer of the token endpoint",
            Self::Vault => "an answer of Redis",
            Self::AnotherReplica => "another replica, which holds the refresh lock",
            Self::VaultAway => "a random delay, because Redis does not answer (other replicas may refresh, too)",
            Self::IntervalMin => "the minimal interval between two refreshes (refresh_interval_min)",
            Self::RetryAfter => "the pause that the token endpoint asked for (Retry-After)",
            Self::Backoff => "the next attempt after a failure",
            Self::Jitter => "the random delay before a scheduled refresh (refresh_jitter)",
        }
    }
}

impl Refresh {
    /// For what a refresh waits at this moment. None: none is wanted before the scheduled one.
    pub fn waiting(&self, now: Instant) -> Option<Waiting> {
        let for_ever = |reason| Some(Waiting { reason, until: None });
        let until = |reason, at| Some(Waiting { reason, until: Some(at) });
        match self.state {
            State::Idle => None,
            State::Resting { due } => self.rest_reason(due, now),
            State::Fetching { .. } => for_ever(Reason::Endpoint),
            State::Retrying { at, row } => until(reason_of(row.failure), at),
            State::Sharing { step, row } => match step {
                Step::Glancing { due, .. } | Step::Offering { due } => match (row, due) {
                    (Some(row), Some(at)) => until(reason_of(row.failure), at),
                    (None | Some(_), due) => self.rest_reason(due, now),
                },
                Step::Waiting { at } => until(Reason::AnotherReplica, at),
                Step::Alone { at } => until(Reason::VaultAway, at),
                Step::Looking { .. }
                | Step::Locking { .. }
                | Step::LookingAgain { .. }
                | Step::Publishing { .. }
                | Step::Conceding { .. } => for_ever(Reason::Vault),
            },
        }
    }

    /// A token that is due ahead of its schedule was asked for, and the minimal interval is not over.
    fn rest_reason(&self, due: Option<Instant>, now: Instant) -> Option<Waiting> {
        let at = due?;
        let life = self.held.and_then(|held| held.life);
        let Some(life) = life.filter(|life| at >= life.due) else {
            return Some(Waiting { reason: Reason::IntervalMin, until: Some(at) });
        };
        let planned = life.ends_at.checked_sub(self.settings.buffer_of(life.whole))?;
        (now >= planned).then_some(Waiting { reason: Reason::Jitter, until: Some(at) })
    }
}

fn reason_of(failure: Failure) -> Reason {
    match failure {
        Failure::Throttled(Some(_)) => Reason::RetryAfter,
        Failure::Throttled(None) | Failure::Unreachable | Failure::Rejected => Reason::Backoff,
    }
}
