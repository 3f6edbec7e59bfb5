//! The other way: a session is lost, or cannot be had. What next follows from the connector's verdict.

use std::time::Duration;

use super::{
    Output, Report, Stream,
    handover::Role,
    link::{Cause, Link, Swap},
    planned::again,
};
use crate::{
    connector::{Failure, PositionDoubt, Verdict},
    model::{Gap, GapReason},
    protocol::{
        Now,
        backoff::{self, Trouble},
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
    pub(super) fn refuse(&mut self, generation: u64) {
        if generation > self.refused {
            self.refused = generation;
            self.outputs.push_back(Output::RefuseToken(generation));
        }
    }

    pub(super) fn session_ended(&mut self, id: SessionId, failure: Failure, now: Now) {
        self.outputs.push_back(Output::Forget(id));
        if let Some(index) = self.leaving.iter().position(|session| session.id() == id) {
            let mut session = self.leaving.swap_remove(index);
            if !matches!(failure, Failure::Closed { code: 1000, .. }) {
                self.write_off_before_kept(&mut session, &failure, now);
            }
            self.mark_frame_given_up(&failure, now);
            self.former = session.minted().filter(|_| self.notices > 0).cloned();
            return self.overlap_ends(now);
        }
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Opening { session, .. } => {
                if self.intake.position().is_none() {
                    self.mark_frame_given_up(&failure, now);
                }
                self.give_up_place(&failure);
                self.trouble(&session, failure, now);
            }
            Link::Live { mut session, .. } => {
                self.write_off_before_kept(&mut session, &failure, now);
                self.lost(&session, failure, now);
            }
            Link::Swapping { old, new, retire } if new.id() == id => {
                self.successor_failed(old, &new, retire, failure, now);
            }
            Link::Swapping { mut old, mut new, retire } => {
                new.stands_alone(now);
                self.write_off_before_kept(&mut old, &failure, now);
                // The successor on its way is the immediate attempt.
                self.backoff.retired(now.at);
                self.deafen(id, &failure);
                self.report(Report::Lost { failure, retry_in: None });
                let since = old.heard_at();
                self.link = Link::Opening { session: new, swap: Some(Swap { trigger: retire.trigger, since }) };
                self.overlap_ends(now);
            }
            Link::Overlapping { mut old, new, retire, .. } => {
                self.mark_frame_given_up(&failure, now);
                // One of the two is enough; which one is left decides whether the rotation still has to be done.
                let (left, retire) = if old.id() == id {
                    self.write_off(&mut old, deaf_reason(&failure), now);
                    (new, retire)
                } else {
                    self.intake.lose_successor();
                    if let Role::Standby(ring) = &mut self.role {
                        ring.lose_successor(id);
                    }
                    let trigger = self.outdated_by(&old);
                    (old, Some(again(trigger, now)))
                };
                self.link = Link::Live { session: left, retire };
                self.overlap_ends(now);
                self.adopt_endpoint();
            }
            link @ (Link::Waiting | Link::Resting { .. } | Link::Paused | Link::Drained) => self.link = link,
        }
    }

    /// A session that is not the only one has met a frame beyond `frame_max`. Whether the other brings what was in it is
    /// not known.
    fn mark_frame_given_up(&mut self, failure: &Failure, now: Now) {
        if *failure == Failure::Oversize {
            self.mark_gap(Gap::unknown(GapReason::Oversize), now);
        }
    }

    /// The only live session is gone, unplanned.
    pub(super) fn lost(&mut self, session: &Session, failure: Failure, now: Now) {
        self.deafen(session.id(), &failure);
        self.trouble(session, failure, now);
    }

    /// What the old session was sent before its successor was live, nobody else brings: if it never answered what it
    /// was asked then, some of that may be missing.
    pub(super) fn write_off(&mut self, old: &mut Session, reason: GapReason, now: Now) {
        if let Some(gap) = written_off(old, reason, now) {
            self.intake.write_off();
            self.cut_off(old.id());
            self.mark_gap(gap, now);
        }
    }

    /// The same while it goes on.
    pub(super) fn write_off_all(&mut self, now: Now) {
        let sessions = self.link.sessions_mut().chain(&mut self.leaving);
        let gaps = sessions.filter_map(|session| written_off(session, GapReason::NoReplay, now));
        if let Some(gap) = gaps.last() {
            self.intake.write_off();
            self.mark_gap(gap, now);
        }
    }

    /// The same, if a successor is gone before it and has left something behind.
    fn write_off_before_kept(&mut self, old: &mut Session, failure: &Failure, now: Now) {
        if self.intake.kept_back() > 0 {
            self.write_off(old, deaf_reason(failure), now);
        }
    }

    pub(super) fn deafen(&mut self, lost: SessionId, failure: &Failure) {
        self.cut_off(lost);
        self.intake.deaf(deaf_reason(failure));
        self.give_up_place(failure);
    }

    /// A data frame that cannot be taken in is sent again on resuming, for ever: the stream goes on without an oversized
    /// one at once, and without one that breaks the protocol or does not end after [`POISON_MAX`] times. A close is a
    /// lost connection whatever its code: it says nothing about the next event.
    pub(super) fn give_up_place(&mut self, failure: &Failure) {
        if *failure == Failure::Oversize {
            self.intake.give_up_position(GapReason::Oversize);
        }
        if !matches!(failure, Failure::Unfinished { .. } | Failure::Unreadable(_)) {
            return;
        }
        let place = self.intake.position();
        let met = if self.poison.0 == place { self.poison.1 + 1 } else { 1 };
        self.poison = (place, met % POISON_MAX);
        if met == POISON_MAX {
            self.intake.give_up_position(GapReason::Jump);
        }
    }

    /// There is no session and none on its way: what next follows from the verdict.
    pub(super) fn trouble(&mut self, session: &Session, failure: Failure, now: Now) {
        self.overlap_ends(now);
        self.endpoint = session.minted().cloned();
        if self.is_position_refused(session.id(), &failure) {
            return self.go_on_without_position(failure, now);
        }
        // Whatever it was, the position was not the cause.
        self.position_refused = false;
        let verdict = self.settings.connector.classify(&failure);
        if verdict == Verdict::NewEndpoint {
            self.endpoint = None;
        } else if verdict == Verdict::Refused {
            // One that is not subscribed yet was made for nothing so far.
            self.endpoint = self.endpoint.take().filter(|minted| !minted.endpoint.subscribed);
        }
        if failure.is_refusal() {
            return self.refused_by_platform(Trouble::Dropped, failure, now);
        }
        match verdict {
            Verdict::RefreshToken => self.rejected(session.generation(), failure, now),
            Verdict::NewEndpoint | Verdict::BackOff => self.rest(Trouble::Dropped, failure, now),
            Verdict::Restarting => self.rest(Trouble::Restarting, failure, now),
            Verdict::WaitFor(wait) => self.rest(Trouble::Told(wait), failure, now),
            // Somebody else took over: no immediate attempt, or the two would take turns.
            Verdict::Refused => self.refused_by_platform(Trouble::Restarting, failure, now),
        }
    }

    /// One refusal backs off like any other trouble.
    fn refused_by_platform(&mut self, trouble: Trouble, failure: Failure, now: Now) {
        self.refusals = self.refusals.saturating_add(1);
        let refusals = self.refusals;
        if refusals < REFUSALS_MAX {
            self.rest(trouble, failure, now);
            self.refusals = refusals;
            return;
        }
        let delay = self.backoff.failed(Trouble::Refused, now.at, now.unit);
        self.link = Link::Resting { until: now.at + delay, cause: Cause::GivenUp };
        self.report(Report::GivenUp { failure, retry_in: delay });
    }

    /// Whether the upgrade of this session was refused because of the position that it asked for.
    pub(super) fn is_position_refused(&self, id: SessionId, failure: &Failure) -> bool {
        match failure.doubts_position().filter(|_| self.resumed == Some(id)) {
            None => false,
            Some(PositionDoubt::Certain) => true,
            Some(PositionDoubt::WhenRepeated) => self.refusals > 0,
        }
    }

    /// At once again without the position. It is given up when that session is live: if that one is refused too, the
    /// position was not the cause, and is asked for again.
    fn go_on_without_position(&mut self, failure: Failure, now: Now) {
        self.position_refused = true;
        self.backoff.retired(now.at);
        let delay = backoff::IMMEDIATE_MAX.mul_f64(now.unit);
        self.link = Link::Resting { until: now.at + delay, cause: Cause::Trouble };
        self.report(Report::Lost { failure, retry_in: Some(delay) });
    }

    pub(super) fn rest(&mut self, trouble: Trouble, failure: Failure, now: Now) {
        self.refusals = 0;
        let delay = self.backoff.failed(trouble, now.at, now.unit);
        self.link = Link::Resting { until: now.at + delay, cause: Cause::Trouble };
        self.report(Report::Lost { failure, retry_in: Some(delay) });
    }

    /// The platform does not take the token (any more): the next one is used at once. How often it is replaced is the
    /// account's to bound. One that is there already waits, if too many were rejected that carried no session.
    pub(super) fn rejected(&mut self, generation: u64, failure: Failure, now: Now) {
        self.endpoint = None;
        self.backoff.retired(now.at);
        if generation >= self.token {
            self.refuse(generation);
        }
        self.rejections.retain(|at| now.at.saturating_duration_since(*at) < REJECTION_WINDOW);
        if generation > self.carried {
            self.rejections.push_back(now.at);
        }
        if self.rejections.len() >= REJECTIONS_MAX {
            self.rejections.pop_front();
            self.rest(Trouble::Restarting, failure, now);
            if self.usable_token().is_none()
                && let Link::Resting { cause, .. } = &mut self.link
            {
                *cause = Cause::Token;
            }
            return;
        }
        self.report(Report::Lost { failure, retry_in: None });
        let jitter = self.settings.rotation_jitter.mul_f64(0.5 + now.unit / 2.0);
        self.link = match self.usable_token() {
            Some(_) => Link::Resting { until: now.at + jitter, cause: Cause::Trouble },
            None => Link::Waiting,
        };
    }
}

fn written_off(old: &mut Session, reason: GapReason, now: Now) -> Option<Gap> {
    let silence = now.at.saturating_duration_since(old.heard_at());
    old.write_off().then(|| Gap::unknown(reason).silent_for(silence))
}

/// Why nothing is heard of a platform that repeats nothing.
fn deaf_reason(failure: &Failure) -> GapReason {
    if *failure == Failure::Oversize { GapReason::Oversize } else { GapReason::NoReplay }
}
