//! The second request for missing numbers, by a session that resumes after the last number in order.

use std::time::{Duration, Instant};

use super::limits::REORDER_WAIT_MAX;
use crate::{
    model::Sequence,
    protocol::{backoff::BackoffCurve, session::SessionId},
};

/// A refetch fails if the new session brings nothing within this time.
const REFETCH_MAX: Duration = Duration::from_secs(5);
/// The delay after a failed refetch: a sparse numbering must not cause a session for each hole.
const REFETCH_PAUSE: BackoffCurve =
    BackoffCurve { first: Duration::from_secs(1), cap: Duration::from_secs(60), jitter: 0.0 };

/// The refetch in progress, and when the next one may begin.
#[derive(Debug, Default)]
pub(super) struct Refetches {
    current: Option<Refetch>,
    /// How many refetches in a row failed.
    failed: u32,
    next_at: Option<Instant>,
    /// The newest session that was dialled with a number, and that number.
    last_resume: Option<(SessionId, Sequence)>,
}

#[derive(Debug)]
struct Refetch {
    /// The refetch is complete when this number is reached.
    before: Sequence,
    /// Sessions after this one resume after the last number in order.
    newest: SessionId,
    until: Instant,
}

impl Refetches {
    pub(super) fn is_active(&self) -> bool {
        self.current.is_some()
    }

    /// When the refetch in progress fails.
    pub(super) fn until(&self) -> Option<Instant> {
        self.current.as_ref().map(|refetch| refetch.until)
    }

    pub(super) fn record_resume(&mut self, session: SessionId, after: Sequence) {
        self.last_resume = Some((session, after));
    }

    /// Starts a refetch of the numbers between `last` and `before`. Returns false after a recent failure, or if the
    /// newest session has just resumed after `last`: what it brings is the platform's answer.
    pub(super) fn start(&mut self, last: Option<Sequence>, before: Sequence, newest: SessionId, now: Instant) -> bool {
        let is_answered = self.last_resume.is_some_and(|(session, after)| session <= newest && Some(after) == last);
        if is_answered || self.next_at.is_some_and(|at| now < at) {
            return false;
        }
        self.current = Some(Refetch { before, newest, until: now + REFETCH_MAX });
        true
    }

    /// The number after the last one in order has arrived. Returns whether the refetch is complete.
    pub(super) fn on_progress(&mut self, last: Option<Sequence>, now: Instant) -> bool {
        let Some(refetch) = &mut self.current else { return false };
        if last.is_some_and(|last| last < refetch.before) {
            refetch.until = now + REORDER_WAIT_MAX;
            return false;
        }
        self.current = None;
        self.failed = 0;
        true
    }

    /// A new session brings a later number first. The missing number may still arrive a little out of order.
    pub(super) fn on_later_number(&mut self, session: SessionId, now: Instant) {
        if let Some(refetch) = self.current.as_mut().filter(|refetch| session > refetch.newest) {
            refetch.until = refetch.until.min(now + REORDER_WAIT_MAX);
        }
    }

    /// The platform has not sent the missing number again. Returns whether a refetch was in progress.
    pub(super) fn fail(&mut self, now: Instant) -> bool {
        let was_active = self.current.take().is_some();
        if was_active {
            self.next_at = Some(now + REFETCH_PAUSE.delay(self.failed, 0.5));
            self.failed = self.failed.saturating_add(1);
        }
        was_active
    }

    pub(super) fn cancel(&mut self) {
        self.current = None;
    }
}
