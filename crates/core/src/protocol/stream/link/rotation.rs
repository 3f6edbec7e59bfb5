//! Planned rotation: start the successor, overlap, close the old session.
//!
//! A successor that fails is tried again while the old session stays live.

use std::time::Duration;

use super::{
    super::{
        messages::{StreamReport, Trigger},
        settings::OVERLAP_MAX,
    },
    machine::{Link, send_flush_probe},
    output::PathInput,
    state::{BreakFirstSwap, LinkState, PendingRotation, overlap_end},
};
use crate::{
    connector::{Endpoint, Failure, Overlap, Resume, Verdict},
    model::{Gap, GapReason, Rotation},
    protocol::{
        Moment,
        backoff::BackoffCurve,
        session::{ProvisionedEndpoint, Session, SessionId},
    },
};

/// The minimum duration of an overlap. [`OVERLAP_MAX`] is the maximum.
const OVERLAP_MIN: Duration = Duration::from_secs(1);
/// The delay before a failed successor is tried again.
const SUCCESSOR_RETRY: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(250), cap: Duration::from_secs(10), jitter: 0.2 };
/// The delay before a successor is replaced that receives a closing notice before it is stable. The first is replaced
/// at once. Platforms document a notice about a minute before the close, so that the cap is early enough.
const NOTICE_RETRY: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(250), cap: Duration::from_secs(5), jitter: 0.2 };
/// A successor with fewer topics than the old session is tried again this many times (about a minute), then accepted.
const TOPIC_LOSS_RETRIES_MAX: u32 = 10;

impl Link {
    /// Schedules a planned rotation of the newest live session.
    pub(in crate::protocol::stream) fn retire(&mut self, trigger: Trigger, now: Moment) {
        let (LinkState::Live { rotation, .. } | LinkState::Overlapping { rotation, .. }) = &self.state else { return };
        let pending = match *rotation {
            None => PendingRotation { trigger, at: now.at + self.retire_delay(trigger, now), failures: 0 },
            Some(pending) => self.expedite(pending, trigger, now),
        };
        if let LinkState::Live { rotation, .. } | LinkState::Overlapping { rotation, .. } = &mut self.state {
            *rotation = Some(pending);
        }
    }

    /// Schedules a rotation for a reason that concerns one session. Nothing happens if that session is being replaced.
    pub(super) fn retire_session(&mut self, id: SessionId, trigger: Trigger, now: Moment) {
        if self.state.sessions().last().is_some_and(|newest| newest.id() == id) {
            self.retire(trigger, now);
        }
    }

    /// Schedules a rotation if the live session has an old token, also if the new token came while the session was
    /// connecting.
    pub(super) fn retire_if_outdated(&mut self, now: Moment) {
        if let LinkState::Live { session, rotation } = &self.state
            && rotation.is_none_or(|pending| pending.trigger == Trigger::Notice && pending.failures == 0)
            && session.generation() < self.tokens.newest()
        {
            self.retire(self.outdated_by(session), now);
        }
    }

    /// Why there is a newer token than that of this session.
    pub(super) fn outdated_by(&self, session: &Session) -> Trigger {
        if self.tokens.is_rejected(session.generation()) { Trigger::Revoked } else { Trigger::Token }
    }

    /// Notices that follow one another delay the rotation: the platform may close each new session too.
    fn retire_delay(&mut self, trigger: Trigger, now: Moment) -> Duration {
        if trigger != Trigger::Notice {
            return self.jitter(now);
        }
        let stable_after = self.settings.backoff.stable_after;
        if self.live_since.is_none_or(|since| now.at >= since + stable_after) {
            self.notices = 0;
        }
        let before = self.notices;
        self.notices = before.saturating_add(1);
        let delay = before.checked_sub(1).map(|before| NOTICE_RETRY.delay(before, now.random));
        delay.unwrap_or_default().max(self.jitter(now))
    }

    /// Another trigger brings a delayed rotation forward. After a failed successor only the operator does.
    fn expedite(&self, pending: PendingRotation, trigger: Trigger, now: Moment) -> PendingRotation {
        let is_delayed = pending.at > now.at + self.settings.rotation_jitter;
        let at = now.at + self.jitter(now);
        match trigger {
            Trigger::Operator if is_delayed => PendingRotation { at, ..pending },
            Trigger::Token | Trigger::ChannelEnd | Trigger::Revoked | Trigger::Gap
                if is_delayed && pending.failures == 0 =>
            {
                PendingRotation { trigger, at, ..pending }
            }
            Trigger::Token
            | Trigger::Notice
            | Trigger::ChannelEnd
            | Trigger::Revoked
            | Trigger::Operator
            | Trigger::Gap => pending,
        }
    }

    /// Replaces a live session.
    pub(super) fn replace(&mut self, old: Session, pending: PendingRotation, now: Moment) {
        let Some(generation) = self.tokens.usable() else {
            let at = now.at + SUCCESSOR_RETRY.delay(pending.failures, now.random);
            self.state = LinkState::Live { session: old, rotation: Some(PendingRotation { at, ..pending }) };
            return;
        };
        if pending.failures == 0 {
            self.report(StreamReport::RotationStarted(pending.trigger));
        }
        let overlaps = self.settings.rotation == Rotation::Overlap && self.capabilities.overlap == Overlap::Duplicate;
        if !overlaps {
            return self.break_first(old, pending.trigger, now);
        }
        self.apply(PathInput::OverlapStarted);
        let reuse = self.endpoints.take_spare(generation, now).or_else(|| {
            let previous = self.endpoints.take_previous(&old, generation, now);
            previous.filter(|_| pending.trigger == Trigger::Notice)
        });
        let new = self.start_session(generation, reuse, now).replacing();
        self.state = LinkState::Swapping { old, new, rotation: pending };
    }

    fn break_first(&mut self, old: Session, trigger: Trigger, now: Moment) {
        self.endpoints.current = None;
        self.apply(PathInput::Discontinuity(old.id()));
        self.close_session(old, 1000, "rotation", now);
        self.apply(PathInput::Outage(GapReason::NoReplay));
        self.open_session(Some(BreakFirstSwap { trigger, since: now.at }), now);
    }

    /// The successor is live: the overlap begins.
    pub(super) fn on_successor_live(&mut self, old: Session, new: Session, trigger: Trigger, now: Moment) {
        self.report(StreamReport::Rotated { trigger, silence: Duration::ZERO });
        self.apply(PathInput::SuccessorLive(new.id()));
        let loses_topic = loses_topic(&old, &new);
        self.overlap(old, new, now);
        self.adopt_endpoint();
        if loses_topic {
            self.apply(PathInput::Gap(Gap::unknown(GapReason::NoReplay)));
        }
    }

    /// Why a successor is not dialled: the platform refused it a topic of the old session.
    pub(super) fn topic_loss(&self, id: SessionId, endpoint: &Endpoint) -> Option<Failure> {
        let LinkState::Swapping { old, new, rotation } = &self.state else { return None };
        if new.id() != id || rotation.failures >= TOPIC_LOSS_RETRIES_MAX {
            return None;
        }
        let refused = old.provisioned()?.endpoint.topic_refused_by(endpoint)?;
        Some(Failure::Unsubscribed { topic: refused.topic.clone(), reason: refused.reason.clone() })
    }

    /// The successor is live.
    fn overlap(&mut self, mut old: Session, new: Session, now: Moment) {
        // It repeats what the old session may not have brought.
        let repeats = match self.capabilities.resume {
            Resume::Sequence => true,
            Resume::Opaque => self.resumed_session == Some(new.id()),
            Resume::None => false,
        };
        let (overlap_until, overlap_deadline) = if repeats {
            (now.at, now.at)
        } else {
            self.apply(PathInput::SuccessorHeld(new.id()));
            send_flush_probe(&mut old, &mut self.outputs, now);
            (now.at + OVERLAP_MIN, now.at + OVERLAP_MAX)
        };
        self.state = LinkState::Overlapping { old, new, overlap_until, overlap_deadline, rotation: None };
        self.end_overlap_if_due(now);
    }

    /// Closes the old session at the end of the overlap.
    pub(super) fn end_overlap_if_due(&mut self, now: Moment) {
        match std::mem::replace(&mut self.state, LinkState::Waiting) {
            LinkState::Overlapping { mut old, new, overlap_until, overlap_deadline, rotation }
                if now.at >= overlap_end(&old, overlap_until, overlap_deadline) =>
            {
                self.state = LinkState::Live { session: new, rotation };
                self.mark_unflushed(&mut old, GapReason::NoReplay, false, now);
                self.close_session(old, 1000, "replaced", now);
                self.retire_if_outdated(now);
            }
            state @ (LinkState::Waiting
            | LinkState::Opening { .. }
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => self.state = state,
        }
    }

    /// The successor failed while the old session is live: tries again. Network failures are counted separately.
    pub(super) fn on_successor_failed(
        &mut self,
        old: Session,
        new: &Session,
        mut pending: PendingRotation,
        failure: Failure,
        now: Moment,
    ) {
        let verdict = self.settings.connector.classify(&failure);
        if verdict == Verdict::RefreshToken && new.generation() >= self.tokens.newest() {
            self.reject_token(new.generation());
        }
        self.position_refused = self.is_position_refused(new.id(), &failure);
        let delay = match verdict {
            Verdict::WaitFor(wait) => wait,
            Verdict::BackOff
            | Verdict::Restarting
            | Verdict::RefreshToken
            | Verdict::NewEndpoint
            | Verdict::Refused => SUCCESSOR_RETRY.delay(pending.failures, now.random),
        };
        self.endpoints.spare = spare_endpoint(new, verdict, &failure);
        pending.failures = pending.failures.saturating_add(1);
        pending.at = now.at + delay;
        self.report(StreamReport::RotationFailed { trigger: pending.trigger, failure });
        self.state = LinkState::Live { session: old, rotation: Some(pending) };
        self.end_overlap();
    }
}

/// The endpoint of a failed successor that the next attempt can use: a platform limits the endpoints of a client.
fn spare_endpoint(new: &Session, verdict: Verdict, failure: &Failure) -> Option<ProvisionedEndpoint> {
    let spare = match verdict {
        Verdict::NewEndpoint | Verdict::RefreshToken => None,
        Verdict::WaitFor(_) | Verdict::BackOff | Verdict::Restarting | Verdict::Refused => new.provisioned().cloned(),
    }?;
    if matches!(failure, Failure::Unsubscribed { .. }) {
        return Some(ProvisionedEndpoint { endpoint: spare.endpoint.unsubscribed(), ..spare });
    }
    Some(spare)
}

/// The rotation after a successor was lost during the overlap.
pub(super) fn retry_rotation(trigger: Trigger, now: Moment) -> PendingRotation {
    PendingRotation { trigger, at: now.at + SUCCESSOR_RETRY.first, failures: 1 }
}

/// Whether the platform refused the successor a topic of the old session.
fn loses_topic(old: &Session, new: &Session) -> bool {
    let (old, new) = (old.provisioned(), new.provisioned());
    old.zip(new).is_some_and(|(old, new)| old.endpoint.topic_refused_by(&new.endpoint).is_some())
}
