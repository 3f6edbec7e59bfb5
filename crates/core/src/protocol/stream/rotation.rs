//! The planned way from one session to the next: retire, replace, overlap, leave.
//!
//! It shares no counter with trouble: a successor that fails is tried again while the old session serves.

use std::time::{Duration, Instant};

use super::{
    Input, Output, Rotation, Stream, StreamReport, Trigger,
    link::{BreakFirstSwap, LinkState, PendingRotation, is_usable},
};
use crate::{
    connector::{Endpoint, Failure, Overlap, Resume, Verdict},
    model::GapReason,
    protocol::{
        Moment,
        backoff::BackoffCurve,
        session::{ProvisionedEndpoint, Session, SessionId},
    },
};

/// Two sockets serve at least this long …
const OVERLAP_MIN: Duration = Duration::from_secs(1);
/// … and the old one is given up as dead when it does not answer in this time.
pub(super) const OVERLAP_MAX: Duration = Duration::from_secs(5);
/// A successor that failed is tried again while the old session serves.
const SUCCESSOR_RETRY: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(250), cap: Duration::from_secs(10), jitter: 0.2 };
/// Successors that are told to go before they have proved stable are replaced after these delays, the first at once.
/// The longest is well within the time (a minute, by the documents) that a notice is ahead of the close.
const NOTICE_RETRY: BackoffCurve =
    BackoffCurve { first: Duration::from_millis(250), cap: Duration::from_secs(5), jitter: 0.2 };
/// An attempt that is older than this is begun anew when an operator wants a session.
const HUNG_AFTER: Duration = Duration::from_secs(2);
/// A successor that hears less than the old session is tried again so often (about a minute) before it is taken.
const TOPIC_LOSS_RETRIES_MAX: u32 = 10;

impl Stream {
    pub(super) fn overlap(&mut self, mut old: Session, new: Session, now: Moment) {
        let (least, most) = match self.capabilities.resume {
            // The successor repeats what the old one may not have brought.
            Resume::Sequence => (now.at, now.at),
            Resume::None => {
                old.send_flush_probe(now);
                self.intake.hold(new.id());
                (now.at + OVERLAP_MIN, now.at + OVERLAP_MAX)
            }
        };
        let id = old.id();
        self.link = LinkState::Overlapping { old, new, overlap_until: least, overlap_deadline: most, retire: None };
        self.drain_outputs(id, now);
        self.link_timeout(now);
    }

    /// What a successor brought goes its way as soon as it is known what the old session brought before it: when that
    /// one has answered, or is gone, or when there is no room to wait in.
    pub(super) fn release_successor(&mut self, now: Moment) {
        if !self.intake.uses_dedup() {
            return;
        }
        if self.intake.is_full_of_successor() {
            self.mark_all_unflushed(now);
        }
        if self.link.sessions().chain(&self.closing).all(Session::has_acked_probes) {
            let taken = self.intake.release_held(now);
            self.report_intake(taken, now);
        }
    }

    /// A live session whose token is not the newest is replaced, also if that one came while it was on its way.
    pub(super) fn retire_if_outdated(&mut self, now: Moment) {
        if let LinkState::Live { session, retire } = &self.link
            && retire.is_none_or(|retire| retire.trigger == Trigger::Notice && retire.failures == 0)
            && session.generation() < self.newest_token
        {
            self.retire(self.outdated_by(session), now);
        }
    }

    /// Why there is a newer token than this session's.
    pub(super) fn outdated_by(&self, session: &Session) -> Trigger {
        if session.generation() > self.rejected_token { Trigger::Token } else { Trigger::Revoked }
    }

    /// The one planned way to another session.
    pub(super) fn retire(&mut self, trigger: Trigger, now: Moment) {
        let (LinkState::Live { retire, .. } | LinkState::Overlapping { retire, .. }) = &self.link else { return };
        let retire = match retire {
            None => PendingRotation { trigger, at: now.at + self.retire_delay(trigger, now), failures: 0 },
            Some(known) => self.expedited(*known, trigger, now),
        };
        if let LinkState::Live { retire: known, .. } | LinkState::Overlapping { retire: known, .. } = &mut self.link {
            *known = Some(retire);
        }
    }

    fn jitter(&self, now: Moment) -> Duration {
        self.settings.rotation_jitter.mul_f64(0.5 + now.random / 2.0)
    }

    /// A platform that is about to close each new session, too, is not followed in a hurry.
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

    /// What waits is brought forward by another reason, and what failed by an operator.
    fn expedited(&self, known: PendingRotation, trigger: Trigger, now: Moment) -> PendingRotation {
        let is_put_off = known.at > now.at + self.settings.rotation_jitter;
        let at = now.at + self.jitter(now);
        match trigger {
            Trigger::Operator if is_put_off => PendingRotation { at, ..known },
            Trigger::Token | Trigger::ChannelEnd | Trigger::Revoked | Trigger::Gap
                if is_put_off && known.failures == 0 =>
            {
                PendingRotation { trigger, at, ..known }
            }
            Trigger::Token
            | Trigger::Notice
            | Trigger::ChannelEnd
            | Trigger::Revoked
            | Trigger::Operator
            | Trigger::Gap => known,
        }
    }

    /// Why a successor is not dialled while the old session serves: the platform refused it a topic that the old one
    /// hears.
    pub(super) fn topic_loss(&self, id: SessionId, endpoint: &Endpoint) -> Option<Failure> {
        let LinkState::Swapping { old, new, retire } = &self.link else { return None };
        if new.id() != id || retire.failures >= TOPIC_LOSS_RETRIES_MAX {
            return None;
        }
        let refused = old.provisioned()?.endpoint.topic_refused_by(endpoint)?;
        Some(Failure::Unsubscribed { topic: refused.topic.clone(), reason: refused.reason.clone() })
    }

    /// The same for what was learned of one session: nothing, if that one is being replaced already.
    pub(super) fn retire_session(&mut self, id: SessionId, trigger: Trigger, now: Moment) {
        if self.link.sessions().last().is_some_and(|newest| newest.id() == id) {
            self.retire(trigger, now);
        }
    }

    pub(super) fn link_timeout(&mut self, now: Moment) {
        match std::mem::replace(&mut self.link, LinkState::Waiting) {
            LinkState::Live { session, retire: Some(retire) } if now.at >= retire.at => {
                self.replace(session, retire, now);
            }
            LinkState::Overlapping { mut old, new, overlap_until: least, overlap_deadline: most, retire }
                if now.at >= overlap_end(&old, least, most) =>
            {
                self.link = LinkState::Live { session: new, retire };
                self.mark_unflushed(&mut old, GapReason::NoReplay, now);
                self.close_session(old, 1000, "replaced", now);
                self.retire_if_outdated(now);
            }
            LinkState::BackingOff { until, .. } if now.at >= until => self.open_session(None, now),
            link @ (LinkState::Waiting
            | LinkState::Opening { .. }
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => self.link = link,
        }
    }

    pub(super) fn replace(&mut self, old: Session, retire: PendingRotation, now: Moment) {
        let Some(generation) = self.usable_token() else {
            // It goes on as soon as there is a token to go on with.
            let at = now.at + SUCCESSOR_RETRY.delay(retire.failures, now.random);
            self.link = LinkState::Live { session: old, retire: Some(PendingRotation { at, ..retire }) };
            return;
        };
        if retire.failures == 0 {
            self.report(StreamReport::RotationStarted(retire.trigger));
        }
        let two = self.settings.rotation == Rotation::Overlap && self.capabilities.overlap == Overlap::Duplicate;
        if !two {
            self.endpoint = None;
            self.mark_discontinuity(old.id());
            self.close_session(old, 1000, "rotation", now);
            self.intake.mark_disconnected(GapReason::NoReplay);
            return self.open_session(Some(BreakFirstSwap { trigger: retire.trigger, since: now.at }), now);
        }
        self.intake.start_overlap();
        let spare = self.spare_endpoint.take_if(|provisioned| is_usable(provisioned, generation, now));
        let reuse = spare.or_else(|| self.reusable_endpoint(&old, retire.trigger, generation, now));
        let new = self.start_session(generation, reuse, now).replacing();
        let id = new.id();
        self.link = LinkState::Swapping { old, new, retire };
        self.drain_outputs(id, now);
    }

    /// Where notices come one after the other, two endpoints take turns: a platform allows a client so many only. One that
    /// hears the same as the one in use.
    fn reusable_endpoint(
        &mut self,
        old: &Session,
        trigger: Trigger,
        generation: u64,
        now: Moment,
    ) -> Option<ProvisionedEndpoint> {
        let former = self.previous_endpoint.take().filter(|_| trigger == Trigger::Notice)?;
        let hears = |provisioned: &ProvisionedEndpoint| provisioned.endpoint.topics.clone();
        let is_same = old.provisioned().map(hears) == Some(hears(&former));
        (is_same && is_usable(&former, generation, now)).then_some(former)
    }

    /// A session that was never live is not heard out: in front of what it would bring, no gap is marked.
    pub(super) fn close_session(&mut self, mut session: Session, code: u16, reason: &'static str, now: Moment) {
        if !session.is_live() {
            self.outputs.push_back(Output::DropSocket(session.id()));
            return;
        }
        session.close(now);
        self.outputs.push_back(Output::Close { session: session.id(), code, reason });
        self.closing.push(session);
    }

    /// The successor failed while the old session serves: try again, without any effect on network trouble.
    pub(super) fn successor_failed(
        &mut self,
        old: Session,
        new: &Session,
        mut retire: PendingRotation,
        failure: Failure,
        now: Moment,
    ) {
        if self.settings.connector.classify(&failure) == Verdict::RefreshToken && new.generation() >= self.newest_token
        {
            self.reject_token(new.generation());
        }
        self.position_refused = self.is_position_refused(new.id(), &failure);
        let delay = match self.settings.connector.classify(&failure) {
            Verdict::WaitFor(wait) => wait,
            Verdict::BackOff
            | Verdict::Restarting
            | Verdict::RefreshToken
            | Verdict::NewEndpoint
            | Verdict::Refused => SUCCESSOR_RETRY.delay(retire.failures, now.random),
        };
        // A channel that was made and is not used would be one of the client's few.
        self.spare_endpoint = match self.settings.connector.classify(&failure) {
            Verdict::NewEndpoint | Verdict::RefreshToken => None,
            Verdict::WaitFor(_) | Verdict::BackOff | Verdict::Restarting | Verdict::Refused => {
                new.provisioned().cloned()
            }
        };
        if matches!(failure, Failure::Unsubscribed { .. }) {
            let again = |provisioned: ProvisionedEndpoint| ProvisionedEndpoint {
                endpoint: provisioned.endpoint.unsubscribed(),
                ..provisioned
            };
            self.spare_endpoint = self.spare_endpoint.take().map(again);
        }
        retire.failures = retire.failures.saturating_add(1);
        retire.at = now.at + delay;
        self.report(StreamReport::RotationFailed { trigger: retire.trigger, failure });
        self.link = LinkState::Live { session: old, retire: Some(retire) };
        self.end_overlap(now);
    }

    /// Copies are looked for until the last socket that may still carry one is gone.
    pub(super) fn end_overlap(&mut self, now: Moment) {
        if self.closing.is_empty() && self.link.sessions().count() < 2 {
            self.intake.end_overlap(now);
        }
    }

    /// Why what an operator wants would have no effect now; none where it has one, or where it is so already.
    pub fn objection(&self, wanted: &Input) -> Option<&'static str> {
        let attempts = matches!(self.link, LinkState::Waiting | LinkState::BackingOff { .. });
        match (wanted, &self.link) {
            (Input::Rotate | Input::Pause | Input::Resume, LinkState::Drained) => Some("it is ending"),
            (Input::Rotate | Input::Resume, _) if self.draining => Some("it is ending"),
            (Input::Rotate, LinkState::Paused) => Some("it is paused: resume it first"),
            (Input::Rotate | Input::Resume, _) if attempts && self.usable_token().is_none() => {
                Some("it waits for a token that the platform accepts: see the account's status")
            }
            _ => None,
        }
    }

    /// An operator wants another session: as a planned rotation where one is live, at once where none is. An attempt that
    /// hangs is given up and begun anew, without what it was about to use: that may still be taken up there.
    pub(super) fn rotate(&mut self, now: Moment) {
        match std::mem::replace(&mut self.link, LinkState::Waiting) {
            LinkState::BackingOff { .. } if !self.draining => self.open_session(None, now),
            LinkState::Opening { session, swap } if is_hung(&session, now) => {
                self.outputs.push_back(Output::DropSocket(session.id()));
                self.open_session(swap, now);
            }
            LinkState::Swapping { old, new, retire } if is_hung(&new, now) => {
                self.outputs.push_back(Output::DropSocket(new.id()));
                self.replace(old, PendingRotation { failures: retire.failures.max(1), ..retire }, now);
            }
            link @ (LinkState::Waiting
            | LinkState::Opening { .. }
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => {
                self.link = link;
                self.retire(Trigger::Operator, now);
            }
        }
    }

    pub(super) fn pause(&mut self, now: Moment) {
        if !matches!(self.link, LinkState::Drained) {
            self.close_all("paused", now);
            self.link = LinkState::Paused;
        }
    }

    pub(super) fn resume(&mut self, now: Moment) {
        if matches!(self.link, LinkState::Paused | LinkState::BackingOff { .. }) && !self.draining {
            self.open_session(None, now);
        }
    }

    pub(super) fn drain(&mut self, now: Moment) {
        if !self.is_owner() {
            return self.release(now);
        }
        self.close_all("draining", now);
        self.link = LinkState::Paused;
        self.draining = true;
        self.intake.recovery.stop_holding();
    }

    pub(super) fn close_all(&mut self, reason: &'static str, now: Moment) {
        let link = std::mem::replace(&mut self.link, LinkState::Waiting);
        // What an open socket still brings is heard; what comes after it is not.
        if link.sessions().any(Session::is_open) {
            self.backoff.retired(now.at);
            self.intake.mark_disconnected(GapReason::NoReplay);
        }
        self.mark_discontinuity(SessionId(self.sessions));
        match link {
            LinkState::Opening { session, .. } | LinkState::Live { session, .. } => {
                self.close_session(session, 1000, reason, now);
            }
            LinkState::Swapping { old, new, .. } | LinkState::Overlapping { old, new, .. } => {
                self.close_session(old, 1000, reason, now);
                self.close_session(new, 1000, reason, now);
            }
            LinkState::Waiting | LinkState::BackingOff { .. } | LinkState::Paused | LinkState::Drained => (),
        }
    }
}

fn is_hung(session: &Session, now: Moment) -> bool {
    now.at >= session.started_at() + HUNG_AFTER
}

pub(super) fn overlap_end(old: &Session, least: Instant, most: Instant) -> Instant {
    if old.has_acked_probes() { least } else { most }
}

pub(super) fn retry_rotation(trigger: Trigger, now: Moment) -> PendingRotation {
    PendingRotation { trigger, at: now.at + SUCCESSOR_RETRY.first, failures: 1 }
}
