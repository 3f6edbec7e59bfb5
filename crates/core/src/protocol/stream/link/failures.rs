//! A session is lost, or cannot be started. The connector's verdict decides what follows.

use super::{
    super::messages::{Output, StreamReport},
    machine::Link,
    output::{BadFrame, LinkOutput, PathInput},
    rotation::retry_rotation,
    state::{BackoffCause, BreakFirstSwap, LinkState},
};
use crate::{
    connector::{Failure, Verdict},
    model::{Gap, GapReason},
    protocol::{
        Moment,
        backoff::{self, FailureKind},
        session::{Session, SessionId},
    },
};

/// After this many refusals in a row an operator must act. The stream then tries again at the backoff's cap.
const REFUSALS_MAX: u32 = 3;

impl Link {
    pub(super) fn on_session_ended(&mut self, id: SessionId, failure: Failure, now: Moment) {
        self.emit(Output::DropSocket(id));
        if let Some(index) = self.closing.iter().position(|session| session.id() == id) {
            return self.on_closing_session_ended(index, &failure, now);
        }
        match std::mem::replace(&mut self.state, LinkState::Waiting) {
            LinkState::Opening { session, .. } => {
                self.report_bad_frame(&failure, false);
                self.on_failure(&session, failure, now);
            }
            LinkState::Live { mut session, .. } => {
                self.mark_unflushed(&mut session, outage_reason(&failure), true, now);
                self.mark_disconnected(id, &failure);
                self.on_failure(&session, failure, now);
            }
            LinkState::Swapping { old, new, rotation } if new.id() == id => {
                self.on_successor_failed(old, &new, rotation, failure, now);
            }
            LinkState::Swapping { mut old, mut new, rotation } => {
                new.clear_replaces(now);
                self.mark_unflushed(&mut old, outage_reason(&failure), true, now);
                // The successor counts as the immediate attempt.
                self.backoff.retired(now.at);
                self.mark_disconnected(id, &failure);
                self.report(StreamReport::SessionLost { failure, retry_in: None });
                let swap = BreakFirstSwap { trigger: rotation.trigger, since: old.last_received_at() };
                self.state = LinkState::Opening { session: new, swap: Some(swap) };
                self.end_overlap();
            }
            LinkState::Overlapping { mut old, new, rotation, .. } => {
                self.mark_skipped_frame(&failure);
                let (session, rotation) = if old.id() == id {
                    self.mark_unflushed(&mut old, outage_reason(&failure), false, now);
                    (new, rotation)
                } else {
                    self.apply(PathInput::SuccessorLost(id));
                    let trigger = self.outdated_by(&old);
                    (old, Some(retry_rotation(trigger, now)))
                };
                self.state = LinkState::Live { session, rotation };
                self.end_overlap();
                self.adopt_endpoint();
            }
            state @ (LinkState::Waiting | LinkState::BackingOff { .. } | LinkState::Paused | LinkState::Drained) => {
                self.state = state;
            }
        }
    }

    fn on_closing_session_ended(&mut self, index: usize, failure: &Failure, now: Moment) {
        let mut session = self.closing.swap_remove(index);
        if !matches!(failure, Failure::Closed { code: 1000, .. }) {
            self.mark_unflushed(&mut session, outage_reason(failure), true, now);
        }
        self.mark_skipped_frame(failure);
        self.endpoints.previous = session.provisioned().filter(|_| self.notices > 0).cloned();
        self.end_overlap();
    }

    /// One of several sessions received a frame beyond `frame_max`. The other may not bring its events.
    fn mark_skipped_frame(&mut self, failure: &Failure) {
        if *failure == Failure::Oversize {
            self.apply(PathInput::Gap(Gap::unknown(GapReason::Oversize)));
        }
    }

    /// The only live session is lost.
    fn mark_disconnected(&mut self, lost: SessionId, failure: &Failure) {
        self.apply(PathInput::Discontinuity(lost));
        self.apply(PathInput::Outage(outage_reason(failure)));
        self.report_bad_frame(failure, true);
    }

    fn report_bad_frame(&mut self, failure: &Failure, was_live: bool) {
        if let Some(frame) = BadFrame::of(failure) {
            self.outputs.push_back(LinkOutput::BadFrame { frame, was_live });
        }
    }

    /// No session is live and none is connecting.
    fn on_failure(&mut self, session: &Session, failure: Failure, now: Moment) {
        self.end_overlap();
        self.endpoints.current = session.provisioned().cloned();
        if self.is_position_refused(session.id(), &failure) {
            return self.retry_without_position(failure, now);
        }
        self.position_refused = false;
        let verdict = self.settings.connector.classify(&failure);
        if verdict == Verdict::NewEndpoint {
            self.endpoints.current = None;
        } else if verdict == Verdict::Refused {
            self.endpoints.current.take_if(|provisioned| provisioned.endpoint.subscribed);
        }
        if failure.is_refusal() {
            return self.on_refused(FailureKind::Dropped, failure, now);
        }
        match verdict {
            Verdict::RefreshToken => self.on_token_rejected(session.generation(), failure, now),
            Verdict::NewEndpoint | Verdict::BackOff => self.back_off(FailureKind::Dropped, failure, now),
            Verdict::Restarting => self.back_off(FailureKind::Restarting, failure, now),
            Verdict::WaitFor(wait) => self.back_off(FailureKind::RetryAfter(wait), failure, now),
            // Another client took over. An immediate attempt would displace it in turn.
            Verdict::Refused => self.on_refused(FailureKind::Restarting, failure, now),
        }
    }

    /// The platform refused. The first refusals are handled like a network failure.
    fn on_refused(&mut self, kind: FailureKind, failure: Failure, now: Moment) {
        self.refusals = self.refusals.saturating_add(1);
        let refusals = self.refusals;
        if refusals < REFUSALS_MAX {
            self.back_off(kind, failure, now);
            self.refusals = refusals;
            return;
        }
        let delay = self.backoff.failed(FailureKind::Refused, now.at, now.random);
        self.state = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::Refused };
        self.report(StreamReport::ActionRequired { failure, retry_in: delay });
    }

    /// Tries again without the position. The position is abandoned when that session is live. If it is refused too, the
    /// position was not the cause, and the next session uses it again.
    fn retry_without_position(&mut self, failure: Failure, now: Moment) {
        self.position_refused = true;
        self.backoff.retired(now.at);
        let delay = backoff::IMMEDIATE_MAX.mul_f64(now.random);
        self.state = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::Network };
        self.report(StreamReport::SessionLost { failure, retry_in: Some(delay) });
    }

    fn back_off(&mut self, kind: FailureKind, failure: Failure, now: Moment) {
        self.refusals = 0;
        let delay = self.backoff.failed(kind, now.at, now.random);
        self.state = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::Network };
        self.report(StreamReport::SessionLost { failure, retry_in: Some(delay) });
    }

    /// The platform rejected the token. The next token is used at once, unless too many tokens were rejected that had
    /// carried no session. The account limits how often it requests a token.
    fn on_token_rejected(&mut self, generation: u64, failure: Failure, now: Moment) {
        self.endpoints.current = None;
        self.backoff.retired(now.at);
        if generation >= self.tokens.newest() {
            self.reject_token(generation);
        }
        let usable = self.tokens.usable();
        if self.tokens.has_too_many_rejections(generation, now.at) {
            self.back_off(FailureKind::Restarting, failure, now);
            if usable.is_none()
                && let LinkState::BackingOff { cause, .. } = &mut self.state
            {
                *cause = BackoffCause::TokenRejected;
            }
            return;
        }
        self.report(StreamReport::SessionLost { failure, retry_in: None });
        self.state = match usable {
            Some(_) => LinkState::BackingOff { until: now.at + self.jitter(now), cause: BackoffCause::Network },
            None => LinkState::Waiting,
        };
    }
}

/// The reason of the gap after an outage, on a platform that does not replay.
fn outage_reason(failure: &Failure) -> GapReason {
    if *failure == Failure::Oversize { GapReason::Oversize } else { GapReason::NoReplay }
}
