//! The other way: a session is lost, or cannot be had. What next follows from the connector's verdict.

use std::time::Duration;

use super::{
    Output, Stream, StreamReport,
    handover::StreamRole,
    link::{BackoffCause, BreakFirstSwap, LinkState},
    rotation::retry_rotation,
};
use crate::{
    connector::{Failure, PositionDoubt, Verdict},
    model::{Gap, GapReason},
    protocol::{
        Moment,
        backoff::{self, FailureKind},
        session::{Session, SessionId},
    },
};

/// Rejections of tokens under which this stream was never live, within this time …
const REJECTION_WINDOW: Duration = Duration::from_secs(300);
/// … are followed at once only so often.
const REJECTIONS_MAX: usize = 3;
/// One refusal may pass by; from so many in a row on, an operator must act, and trying goes on at the backoff's cap.
const REFUSALS_MAX: u32 = 3;
/// Frames that end the session at one place are met so often before the place is given up.
const POISON_MAX: u32 = 2;

impl Stream {
    pub(super) fn reject_token(&mut self, generation: u64) {
        if generation > self.rejected_token {
            self.rejected_token = generation;
            self.outputs.push_back(Output::TokenRejected(generation));
        }
    }

    pub(super) fn on_session_ended(&mut self, id: SessionId, failure: Failure, now: Moment) {
        self.outputs.push_back(Output::DropSocket(id));
        if let Some(index) = self.closing.iter().position(|session| session.id() == id) {
            let mut session = self.closing.swap_remove(index);
            if !matches!(failure, Failure::Closed { code: 1000, .. }) {
                self.mark_unflushed_before_held(&mut session, &failure, now);
            }
            self.mark_skipped_frame(&failure, now);
            self.previous_endpoint = session.provisioned().filter(|_| self.notices > 0).cloned();
            return self.end_overlap(now);
        }
        match std::mem::replace(&mut self.link, LinkState::Waiting) {
            LinkState::Opening { session, .. } => {
                if self.intake.position().is_none() {
                    self.mark_skipped_frame(&failure, now);
                }
                self.skip_poison_frame(&failure);
                self.on_failure(&session, failure, now);
            }
            LinkState::Live { mut session, .. } => {
                self.mark_unflushed_before_held(&mut session, &failure, now);
                self.on_session_lost(&session, failure, now);
            }
            LinkState::Swapping { old, new, retire } if new.id() == id => {
                self.successor_failed(old, &new, retire, failure, now);
            }
            LinkState::Swapping { mut old, mut new, retire } => {
                new.clear_replaces(now);
                self.mark_unflushed_before_held(&mut old, &failure, now);
                // The successor on its way is the immediate attempt.
                self.backoff.retired(now.at);
                self.mark_disconnected(id, &failure);
                self.report(StreamReport::SessionLost { failure, retry_in: None });
                let since = old.last_received_at();
                self.link =
                    LinkState::Opening { session: new, swap: Some(BreakFirstSwap { trigger: retire.trigger, since }) };
                self.end_overlap(now);
            }
            LinkState::Overlapping { mut old, new, retire, .. } => {
                self.mark_skipped_frame(&failure, now);
                // One of the two is enough; which one is left decides whether the rotation still has to be done.
                let (left, retire) = if old.id() == id {
                    self.mark_unflushed(&mut old, outage_reason(&failure), now);
                    (new, retire)
                } else {
                    self.intake.lose_successor();
                    if let StreamRole::Standby(standby_buffer) = &mut self.role {
                        standby_buffer.lose_successor(id);
                    }
                    let trigger = self.outdated_by(&old);
                    (old, Some(retry_rotation(trigger, now)))
                };
                self.link = LinkState::Live { session: left, retire };
                self.end_overlap(now);
                self.adopt_endpoint();
            }
            link @ (LinkState::Waiting | LinkState::BackingOff { .. } | LinkState::Paused | LinkState::Drained) => {
                self.link = link;
            }
        }
    }

    /// A session that is not the only one has met a frame beyond `frame_max`. Whether the other brings what was in it is
    /// not known.
    fn mark_skipped_frame(&mut self, failure: &Failure, now: Moment) {
        if *failure == Failure::Oversize {
            self.mark_gap(Gap::unknown(GapReason::Oversize), now);
        }
    }

    /// The only live session is gone, unplanned.
    pub(super) fn on_session_lost(&mut self, session: &Session, failure: Failure, now: Moment) {
        self.mark_disconnected(session.id(), &failure);
        self.on_failure(session, failure, now);
    }

    /// What the old session was sent before its successor was live, nobody else brings: if it never answered what it
    /// was asked then, some of that may be missing.
    pub(super) fn mark_unflushed(&mut self, old: &mut Session, reason: GapReason, now: Moment) {
        if let Some(gap) = unflushed_gap(old, reason, now) {
            self.intake.abandon_predecessor();
            self.mark_discontinuity(old.id());
            self.mark_gap(gap, now);
        }
    }

    /// The same while it goes on.
    pub(super) fn mark_all_unflushed(&mut self, now: Moment) {
        let sessions = self.link.sessions_mut().chain(&mut self.closing);
        let gaps = sessions.filter_map(|session| unflushed_gap(session, GapReason::NoReplay, now));
        if let Some(gap) = gaps.last() {
            self.intake.abandon_predecessor();
            self.mark_gap(gap, now);
        }
    }

    /// The same, if a successor is gone before it and has left something behind.
    fn mark_unflushed_before_held(&mut self, old: &mut Session, failure: &Failure, now: Moment) {
        if self.intake.held_for_predecessor() > 0 {
            self.mark_unflushed(old, outage_reason(failure), now);
        }
    }

    pub(super) fn mark_disconnected(&mut self, lost: SessionId, failure: &Failure) {
        self.mark_discontinuity(lost);
        self.intake.mark_disconnected(outage_reason(failure));
        self.skip_poison_frame(failure);
    }

    /// A data frame that cannot be taken in is sent again on resuming, for ever: the stream goes on without an oversized
    /// one at once, and without one that breaks the protocol or does not end after [`POISON_MAX`] times. A close is a
    /// lost connection whatever its code: it says nothing about the next event.
    pub(super) fn skip_poison_frame(&mut self, failure: &Failure) {
        if *failure == Failure::Oversize {
            self.intake.abandon_position(GapReason::Oversize);
        }
        if !matches!(failure, Failure::Unfinished { .. } | Failure::Unreadable(_)) {
            return;
        }
        let place = self.intake.position();
        let met = if self.poison_frame.0 == place { self.poison_frame.1 + 1 } else { 1 };
        self.poison_frame = (place, met % POISON_MAX);
        if met == POISON_MAX {
            self.intake.abandon_position(GapReason::Jump);
        }
    }

    /// There is no session and none on its way: what next follows from the verdict.
    pub(super) fn on_failure(&mut self, session: &Session, failure: Failure, now: Moment) {
        self.end_overlap(now);
        self.endpoint = session.provisioned().cloned();
        if self.is_position_refused(session.id(), &failure) {
            return self.resume_without_position(failure, now);
        }
        // Whatever it was, the position was not the cause.
        self.position_refused = false;
        let verdict = self.settings.connector.classify(&failure);
        if verdict == Verdict::NewEndpoint {
            self.endpoint = None;
        } else if verdict == Verdict::Refused {
            // One that is not subscribed yet was made for nothing so far.
            self.endpoint = self.endpoint.take().filter(|provisioned| !provisioned.endpoint.subscribed);
        }
        if failure.is_refusal() {
            return self.on_refused(FailureKind::Dropped, failure, now);
        }
        match verdict {
            Verdict::RefreshToken => self.on_token_rejected(session.generation(), failure, now),
            Verdict::NewEndpoint | Verdict::BackOff => self.back_off(FailureKind::Dropped, failure, now),
            Verdict::Restarting => self.back_off(FailureKind::Restarting, failure, now),
            Verdict::WaitFor(wait) => self.back_off(FailureKind::RetryAfter(wait), failure, now),
            // Somebody else took over: no immediate attempt, or the two would take turns.
            Verdict::Refused => self.on_refused(FailureKind::Restarting, failure, now),
        }
    }

    /// One refusal backs off like any other trouble.
    fn on_refused(&mut self, kind: FailureKind, failure: Failure, now: Moment) {
        self.refusals = self.refusals.saturating_add(1);
        let refusals = self.refusals;
        if refusals < REFUSALS_MAX {
            self.back_off(kind, failure, now);
            self.refusals = refusals;
            return;
        }
        let delay = self.backoff.failed(FailureKind::Refused, now.at, now.random);
        self.link = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::Refused };
        self.report(StreamReport::ActionRequired { failure, retry_in: delay });
    }

    /// Whether the upgrade of this session was refused because of the position that it asked for.
    pub(super) fn is_position_refused(&self, id: SessionId, failure: &Failure) -> bool {
        match failure.position_doubt().filter(|_| self.resumed_session == Some(id)) {
            None => false,
            Some(PositionDoubt::Certain) => true,
            Some(PositionDoubt::WhenRepeated) => self.refusals > 0,
        }
    }

    /// At once again without the position. It is given up when that session is live: if that one is refused too, the
    /// position was not the cause, and is asked for again.
    fn resume_without_position(&mut self, failure: Failure, now: Moment) {
        self.position_refused = true;
        self.backoff.retired(now.at);
        let delay = backoff::IMMEDIATE_MAX.mul_f64(now.random);
        self.link = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::Network };
        self.report(StreamReport::SessionLost { failure, retry_in: Some(delay) });
    }

    pub(super) fn back_off(&mut self, kind: FailureKind, failure: Failure, now: Moment) {
        self.refusals = 0;
        let delay = self.backoff.failed(kind, now.at, now.random);
        self.link = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::Network };
        self.report(StreamReport::SessionLost { failure, retry_in: Some(delay) });
    }

    /// The platform does not take the token (any more): the next one is used at once. How often it is replaced is the
    /// account's to bound. One that is there already waits, if too many were rejected that carried no session.
    pub(super) fn on_token_rejected(&mut self, generation: u64, failure: Failure, now: Moment) {
        self.endpoint = None;
        self.backoff.retired(now.at);
        if generation >= self.newest_token {
            self.reject_token(generation);
        }
        self.rejections.retain(|at| now.at.saturating_duration_since(*at) < REJECTION_WINDOW);
        if generation > self.proven_token {
            self.rejections.push_back(now.at);
        }
        if self.rejections.len() >= REJECTIONS_MAX {
            self.rejections.pop_front();
            self.back_off(FailureKind::Restarting, failure, now);
            if self.usable_token().is_none()
                && let LinkState::BackingOff { cause, .. } = &mut self.link
            {
                *cause = BackoffCause::TokenRejected;
            }
            return;
        }
        self.report(StreamReport::SessionLost { failure, retry_in: None });
        let jitter = self.settings.rotation_jitter.mul_f64(0.5 + now.random / 2.0);
        self.link = match self.usable_token() {
            Some(_) => LinkState::BackingOff { until: now.at + jitter, cause: BackoffCause::Network },
            None => LinkState::Waiting,
        };
    }
}

fn unflushed_gap(old: &mut Session, reason: GapReason, now: Moment) -> Option<Gap> {
    let silence = now.at.saturating_duration_since(old.last_received_at());
    old.abandon_probe().then(|| Gap::unknown(reason).with_silence(silence))
}

/// Why nothing is heard of a platform that repeats nothing.
fn outage_reason(failure: &Failure) -> GapReason {
    if *failure == Failure::Oversize { GapReason::Oversize } else { GapReason::NoReplay }
}
