//! The planned way from one session to the next: retire, replace, overlap, leave.
//!
//! It shares no counter with trouble: a successor that fails is tried again while the old session serves.

use std::time::{Duration, Instant};

use super::{
    Input, Output, Report, Rotation, Stream, Trigger,
    link::{Link, Retire, Swap, is_good},
};
use crate::{
    connector::{Endpoint, Failure, Overlap, Resume, Verdict},
    model::GapReason,
    protocol::{
        Now,
        backoff::Curve,
        session::{Minted, Session, SessionId},
    },
};

/// Two sockets serve at least this long …
const OVERLAP_MIN: Duration = Duration::from_secs(1);
/// … and the old one is given up as dead when it does not answer in this time.
pub(super) const OVERLAP_MAX: Duration = Duration::from_secs(5);
/// A successor that failed is tried again while the old session serves.
const SUCCESSOR_RETRY: Curve = Curve { first: Duration::from_millis(250), cap: Duration::from_secs(10), jitter: 0.2 };
/// Successors that are told to go before they have proved stable are replaced after these delays, the first at once.
/// The longest is well within the time (a minute, by the documents) that a notice is ahead of the close.
const NOTICES: Curve = Curve { first: Duration::from_millis(250), cap: Duration::from_secs(5), jitter: 0.2 };
/// An attempt that is older than this is begun anew when an operator wants a session.
const HANGS_AFTER: Duration = Duration::from_secs(2);
/// A successor that hears less than the old session is tried again so often (about a minute) before it is taken.
const LESSER_MAX: u32 = 10;

impl Stream {
    pub(super) fn overlap(&mut self, mut old: Session, new: Session, now: Now) {
        let (least, most) = match self.choices.resume {
            // The successor repeats what the old one may not have brought.
            Resume::Sequence => (now.at, now.at),
            Resume::None => {
                old.ask(now);
                self.intake.keep_back(new.id());
                (now.at + OVERLAP_MIN, now.at + OVERLAP_MAX)
            }
        };
        let id = old.id();
        self.link = Link::Overlapping { old, new, least, most, retire: None };
        self.obey(id, now);
        self.link_timeout(now);
    }

    /// What a successor brought goes its way as soon as it is known what the old session brought before it: when that
    /// one has answered, or is gone, or when there is no room to wait in.
    pub(super) fn let_successor_in(&mut self, now: Now) {
        if !self.intake.compares() {
            return;
        }
        if self.intake.is_full_of_successor() {
            self.write_off_all(now);
        }
        if self.link.sessions().chain(&self.leaving).all(Session::has_answered) {
            let taken = self.intake.let_in(now);
            self.report_taken(taken, now);
        }
    }

    /// A live session whose token is not the newest is replaced, also if that one came while it was on its way.
    pub(super) fn retire_if_outdated(&mut self, now: Now) {
        if let Link::Live { session, retire } = &self.link
            && retire.is_none_or(|retire| retire.trigger == Trigger::Notice && retire.failures == 0)
            && session.generation() < self.token
        {
            self.retire(self.outdated_by(session), now);
        }
    }

    /// Why there is a newer token than this session's.
    pub(super) fn outdated_by(&self, session: &Session) -> Trigger {
        if session.generation() > self.refused { Trigger::Token } else { Trigger::Revoked }
    }

    /// The one planned way to another session.
    pub(super) fn retire(&mut self, trigger: Trigger, now: Now) {
        let (Link::Live { retire, .. } | Link::Overlapping { retire, .. }) = &self.link else { return };
        let retire = match retire {
            None => Retire { trigger, at: now.at + self.retire_delay(trigger, now), failures: 0 },
            Some(known) => self.hastened(*known, trigger, now),
        };
        if let Link::Live { retire: known, .. } | Link::Overlapping { retire: known, .. } = &mut self.link {
            *known = Some(retire);
        }
    }

    fn jitter(&self, now: Now) -> Duration {
        self.settings.rotation_jitter.mul_f64(0.5 + now.unit / 2.0)
    }

    /// A platform that is about to close each new session, too, is not followed in a hurry.
    fn retire_delay(&mut self, trigger: Trigger, now: Now) -> Duration {
        if trigger != Trigger::Notice {
            return self.jitter(now);
        }
        let stable_after = self.settings.backoff.stable_after;
        if self.live_since.is_none_or(|since| now.at >= since + stable_after) {
            self.notices = 0;
        }
        let before = self.notices;
        self.notices = before.saturating_add(1);
        let delay = before.checked_sub(1).map(|before| NOTICES.delay(before, now.unit));
        delay.unwrap_or_default().max(self.jitter(now))
    }

    /// What waits is brought forward by another reason, and what failed by an operator.
    fn hastened(&self, known: Retire, trigger: Trigger, now: Now) -> Retire {
        let is_put_off = known.at > now.at + self.settings.rotation_jitter;
        let at = now.at + self.jitter(now);
        match trigger {
            Trigger::Operator if is_put_off => Retire { at, ..known },
            Trigger::Token | Trigger::ChannelEnd | Trigger::Revoked | Trigger::Gap
                if is_put_off && known.failures == 0 =>
            {
                Retire { trigger, at, ..known }
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
    pub(super) fn hears_less(&self, id: SessionId, endpoint: &Endpoint) -> Option<Failure> {
        let Link::Swapping { old, new, retire } = &self.link else { return None };
        if new.id() != id || retire.failures >= LESSER_MAX {
            return None;
        }
        let refused = old.minted()?.endpoint.refused_to(endpoint)?;
        Some(Failure::Unsubscribed { topic: refused.topic.clone(), reason: refused.reason.clone() })
    }

    /// The same for what was learned of one session: nothing, if that one is being replaced already.
    pub(super) fn retire_session(&mut self, id: SessionId, trigger: Trigger, now: Now) {
        if self.link.sessions().last().is_some_and(|newest| newest.id() == id) {
            self.retire(trigger, now);
        }
    }

    pub(super) fn link_timeout(&mut self, now: Now) {
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Live { session, retire: Some(retire) } if now.at >= retire.at => {
                self.replace(session, retire, now);
            }
            Link::Overlapping { mut old, new, least, most, retire } if now.at >= overlap_end(&old, least, most) => {
                self.link = Link::Live { session: new, retire };
                self.write_off(&mut old, GapReason::NoReplay, now);
                self.leave(old, 1000, "replaced", now);
                self.retire_if_outdated(now);
            }
            Link::Resting { until, .. } if now.at >= until => self.open(None, now),
            link @ (Link::Waiting
            | Link::Opening { .. }
            | Link::Live { .. }
            | Link::Swapping { .. }
            | Link::Overlapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained) => self.link = link,
        }
    }

    pub(super) fn replace(&mut self, old: Session, retire: Retire, now: Now) {
        let Some(generation) = self.usable_token() else {
            // It goes on as soon as there is a token to go on with.
            let at = now.at + SUCCESSOR_RETRY.delay(retire.failures, now.unit);
            self.link = Link::Live { session: old, retire: Some(Retire { at, ..retire }) };
            return;
        };
        if retire.failures == 0 {
            self.report(Report::RotationBegins(retire.trigger));
        }
        let two = self.settings.rotation == Rotation::Overlap && self.choices.overlap == Overlap::Duplicate;
        if !two {
            self.endpoint = None;
            self.cut_off(old.id());
            self.leave(old, 1000, "rotation", now);
            self.intake.deaf(GapReason::NoReplay);
            return self.open(Some(Swap { trigger: retire.trigger, since: now.at }), now);
        }
        self.intake.overlap_begins();
        let spare = self.spare.take_if(|minted| is_good(minted, generation, now));
        let reuse = spare.or_else(|| self.former_for(&old, retire.trigger, generation, now));
        let new = self.begin(generation, reuse, now).replacing();
        let id = new.id();
        self.link = Link::Swapping { old, new, retire };
        self.obey(id, now);
    }

    /// Where notices come one after the other, two endpoints take turns: a platform allows a client so many only. One that
    /// hears the same as the one in use.
    fn former_for(&mut self, old: &Session, trigger: Trigger, generation: u64, now: Now) -> Option<Minted> {
        let former = self.former.take().filter(|_| trigger == Trigger::Notice)?;
        let hears = |minted: &Minted| minted.endpoint.topics.clone();
        let is_same = old.minted().map(hears) == Some(hears(&former));
        (is_same && is_good(&former, generation, now)).then_some(former)
    }

    /// A session that was never live is not heard out: in front of what it would bring, no gap is marked.
    pub(super) fn leave(&mut self, mut session: Session, code: u16, reason: &'static str, now: Now) {
        if !session.is_live() {
            self.outputs.push_back(Output::Forget(session.id()));
            return;
        }
        session.leave(now);
        self.outputs.push_back(Output::Leave { session: session.id(), code, reason });
        self.leaving.push(session);
    }

    /// The successor failed while the old session serves: try again, without any effect on network trouble.
    pub(super) fn successor_failed(
        &mut self,
        old: Session,
        new: &Session,
        mut retire: Retire,
        failure: Failure,
        now: Now,
    ) {
        if self.settings.connector.classify(&failure) == Verdict::RefreshToken && new.generation() >= self.token {
            self.refuse(new.generation());
        }
        self.position_refused = self.is_position_refused(new.id(), &failure);
        let delay = match self.settings.connector.classify(&failure) {
            Verdict::WaitFor(wait) => wait,
            Verdict::BackOff
            | Verdict::Restarting
            | Verdict::RefreshToken
            | Verdict::NewEndpoint
            | Verdict::Refused => SUCCESSOR_RETRY.delay(retire.failures, now.unit),
        };
        // A channel that was made and is not used would be one of the client's few.
        self.spare = match self.settings.connector.classify(&failure) {
            Verdict::NewEndpoint | Verdict::RefreshToken => None,
            Verdict::WaitFor(_) | Verdict::BackOff | Verdict::Restarting | Verdict::Refused => new.minted().cloned(),
        };
        if matches!(failure, Failure::Unsubscribed { .. }) {
            let again = |minted: Minted| Minted { endpoint: minted.endpoint.unsubscribed(), ..minted };
            self.spare = self.spare.take().map(again);
        }
        retire.failures = retire.failures.saturating_add(1);
        retire.at = now.at + delay;
        self.report(Report::RotationFailed { trigger: retire.trigger, failure });
        self.link = Link::Live { session: old, retire: Some(retire) };
        self.overlap_ends(now);
    }

    /// Copies are looked for until the last socket that may still carry one is gone.
    pub(super) fn overlap_ends(&mut self, now: Now) {
        if self.leaving.is_empty() && self.link.sessions().count() < 2 {
            self.intake.overlap_ends(now);
        }
    }

    /// Why what an operator wants would have no effect now; none where it has one, or where it is so already.
    pub fn objection(&self, wanted: &Input) -> Option<&'static str> {
        let attempts = matches!(self.link, Link::Waiting | Link::Resting { .. });
        match (wanted, &self.link) {
            (Input::Rotate | Input::Pause | Input::Resume, Link::Drained) => Some("it is ending"),
            (Input::Rotate | Input::Resume, _) if self.draining => Some("it is ending"),
            (Input::Rotate, Link::Paused) => Some("it is paused: resume it first"),
            (Input::Rotate | Input::Resume, _) if attempts && self.usable_token().is_none() => {
                Some("it waits for a token that the platform accepts: see the account's status")
            }
            _ => None,
        }
    }

    /// An operator wants another session: as a planned rotation where one is live, at once where none is. An attempt that
    /// hangs is given up and begun anew, without what it was about to use: that may still be taken up there.
    pub(super) fn rotate(&mut self, now: Now) {
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Resting { .. } if !self.draining => self.open(None, now),
            Link::Opening { session, swap } if hangs(&session, now) => {
                self.outputs.push_back(Output::Forget(session.id()));
                self.open(swap, now);
            }
            Link::Swapping { old, new, retire } if hangs(&new, now) => {
                self.outputs.push_back(Output::Forget(new.id()));
                self.replace(old, Retire { failures: retire.failures.max(1), ..retire }, now);
            }
            link @ (Link::Waiting
            | Link::Opening { .. }
            | Link::Live { .. }
            | Link::Swapping { .. }
            | Link::Overlapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained) => {
                self.link = link;
                self.retire(Trigger::Operator, now);
            }
        }
    }

    pub(super) fn pause(&mut self, now: Now) {
        if !matches!(self.link, Link::Drained) {
            self.leave_all("paused", now);
            self.link = Link::Paused;
        }
    }

    pub(super) fn unpause(&mut self, now: Now) {
        if matches!(self.link, Link::Paused | Link::Resting { .. }) && !self.draining {
            self.open(None, now);
        }
    }

    pub(super) fn drain(&mut self, now: Now) {
        if !self.is_owner() {
            return self.release(now);
        }
        self.leave_all("draining", now);
        self.link = Link::Paused;
        self.draining = true;
        self.intake.recovery.stop_holding();
    }

    pub(super) fn leave_all(&mut self, reason: &'static str, now: Now) {
        let link = std::mem::replace(&mut self.link, Link::Waiting);
        // What an open socket still brings is heard; what comes after it is not.
        if link.sessions().any(Session::is_open) {
            self.backoff.retired(now.at);
            self.intake.deaf(GapReason::NoReplay);
        }
        self.cut_off(SessionId(self.sessions));
        match link {
            Link::Opening { session, .. } | Link::Live { session, .. } => self.leave(session, 1000, reason, now),
            Link::Swapping { old, new, .. } | Link::Overlapping { old, new, .. } => {
                self.leave(old, 1000, reason, now);
                self.leave(new, 1000, reason, now);
            }
            Link::Waiting | Link::Resting { .. } | Link::Paused | Link::Drained => (),
        }
    }
}

fn hangs(session: &Session, now: Now) -> bool {
    now.at >= session.begun_at() + HANGS_AFTER
}

pub(super) fn overlap_end(old: &Session, least: Instant, most: Instant) -> Instant {
    if old.has_answered() { least } else { most }
}

pub(super) fn again(trigger: Trigger, now: Now) -> Retire {
    Retire { trigger, at: now.at + SUCCESSOR_RETRY.first, failures: 1 }
}
