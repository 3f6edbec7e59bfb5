//! Which sessions a stream has, and how it gets from one to the next: the planned way and the way of trouble.

use std::time::{Duration, Instant};

use super::{Output, Report, Rotation, State, Stream, Trigger};
use crate::{
    connector::{Endpoint, Failure, Item, Notice, Overlap, RefusedTopic, Resume, Verdict},
    model::{Gap, GapReason},
    protocol::{
        Now,
        backoff::{Curve, Trouble},
        session::{self, Dial, Session, SessionId},
    },
};

/// What stands between the platform and us.
#[derive(Debug)]
pub(super) enum Link {
    /// No token that the platform might take.
    Waiting,
    /// A session is on its way; `swap` says since when there is none, if that was planned.
    Opening {
        session: Session,
        swap: Option<Swap>,
    },
    Live {
        session: Session,
        retire: Option<Retire>,
    },
    /// The old session serves while its successor is on its way.
    Swapping {
        old: Session,
        new: Session,
        retire: Retire,
    },
    /// Both serve, so that nothing is missed between them: for `least`, and until the old one has answered what it was
    /// asked when the successor was live (whatever it had to say before has been heard then), if that is before `most`.
    Overlapping {
        old: Session,
        new: Session,
        least: Instant,
        most: Instant,
        /// The successor is to be replaced too.
        retire: Option<Retire>,
    },
    /// Backing off. `given_up`: an operator must act.
    Resting {
        until: Instant,
        given_up: bool,
    },
    Paused,
    Drained,
}

/// A planned replacement that is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retire {
    trigger: Trigger,
    at: Instant,
    /// How many successors failed so far: a count of its own, apart from network trouble.
    failures: u32,
}

/// A planned replacement under way for which the old session was left first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swap {
    trigger: Trigger,
    since: Instant,
}

/// Two sockets serve at least this long …
const OVERLAP_MIN: Duration = Duration::from_secs(1);
/// … and the old one is given up as dead when it does not answer in this time.
const OVERLAP_MAX: Duration = Duration::from_secs(5);
/// Rejections of new tokens within this time …
const REJECTION_WINDOW: Duration = Duration::from_secs(300);
/// … are followed at once only so often.
const REJECTIONS_MAX: usize = 3;
/// What an operator must mend is tried again this rarely.
const GIVEN_UP_WAIT: Duration = Duration::from_secs(300);
/// A successor that failed is tried again while the old session serves.
const SUCCESSOR_RETRY: Curve = Curve { first: Duration::from_millis(250), cap: Duration::from_secs(10), jitter: 0.2 };
/// Frames that end the session at one place are met so often before the place is given up.
const POISON_MAX: u32 = 2;

impl Link {
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::Resting { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    fn sessions_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::Resting { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// Whether events can come in.
    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Live { .. } | Self::Swapping { .. } | Self::Overlapping { .. } => true,
            Self::Waiting | Self::Opening { .. } | Self::Resting { .. } | Self::Paused | Self::Drained => false,
        }
    }

    pub(super) fn state(&self) -> State {
        match self {
            Self::Waiting => State::Starting,
            Self::Opening { .. } => State::Connecting,
            Self::Live { .. } | Self::Swapping { .. } | Self::Overlapping { .. } => State::Live,
            Self::Resting { given_up: false, .. } => State::BackingOff,
            Self::Resting { given_up: true, .. } => State::Failed,
            Self::Paused | Self::Drained => State::Paused,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Live { retire, .. } => retire.map(|retire| retire.at),
            Self::Overlapping { old, least, most, .. } => Some(overlap_end(old, *least, *most)),
            Self::Resting { until, .. } => Some(*until),
            Self::Waiting | Self::Opening { .. } | Self::Swapping { .. } | Self::Paused | Self::Drained => None,
        }
    }
}

impl Stream {
    pub(super) fn token_came(&mut self, generation: u64, now: Now) {
        self.token = self.token.max(generation);
        match &self.link {
            Link::Waiting => self.open(None, now),
            // A token that was rejected may be what was given up for.
            Link::Resting { given_up: true, .. } if self.usable_token().is_some() => self.open(None, now),
            Link::Live { session, .. } if session.generation() < self.token => self.retire(Trigger::Token, now),
            Link::Live { .. }
            | Link::Opening { .. }
            | Link::Swapping { .. }
            | Link::Overlapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained => (),
        }
    }

    fn usable_token(&self) -> Option<u64> {
        (self.token > self.refused).then_some(self.token)
    }

    /// Hands an input to its session, and carries out what the session wants.
    pub(super) fn tell(&mut self, id: SessionId, input: session::Input, now: Now) {
        let session = self.link.sessions_mut().chain(&mut self.leaving).find(|session| session.id() == id);
        let Some(session) = session else { return };
        session.handle(input, now);
        self.obey(id, now);
    }

    pub(super) fn sessions_timeout(&mut self, now: Now) {
        let mut ids = Vec::new();
        for session in self.link.sessions_mut().chain(&mut self.leaving) {
            if session.poll_timeout().is_some_and(|at| now.at >= at) {
                session.handle_timeout(now);
                ids.push(session.id());
            }
        }
        for id in ids {
            self.obey(id, now);
        }
    }

    /// While frames are left unread for our own reasons, no session is silent and no copy late.
    pub(super) fn excuse_if_unread(&mut self, now: Now) {
        if self.wants_frames() {
            return;
        }
        self.link.sessions_mut().chain(&mut self.leaving).for_each(|session| session.excuse(now));
        self.intake.excuse(now);
        if let Link::Overlapping { most, .. } = &mut self.link {
            *most = now.at + OVERLAP_MAX;
        }
    }

    fn obey(&mut self, id: SessionId, now: Now) {
        loop {
            let session = self.link.sessions_mut().chain(&mut self.leaving).find(|session| session.id() == id);
            let Some(session) = session else { return };
            let generation = session.generation();
            let Some(output) = session.poll_output() else { return };
            match output {
                session::Output::Call(request) => {
                    let call = super::CallId::Session(id);
                    self.outputs.push_back(Output::Call { call, generation, request });
                }
                session::Output::Dial(endpoint) => self.dial(id, generation, &endpoint),
                session::Output::Probe(probe) => self.outputs.push_back(Output::Probe { session: id, probe }),
                session::Output::Live => self.became_live(id, now),
                session::Output::Heard(items) => self.heard_items(id, items, now),
                session::Output::Tended(endpoint) => self.tended(&endpoint),
                session::Output::Aged => self.retire_session(id, Trigger::ChannelEnd, now),
                session::Output::Ended(failure) => return self.session_ended(id, failure, now),
            }
        }
    }

    fn dial(&mut self, session: SessionId, generation: u64, endpoint: &Endpoint) {
        let resume = self.intake.resume();
        self.intake.resumes(session, resume);
        let url = self.settings.connector.url(endpoint, resume);
        let dial = Dial { url, credential: endpoint.credential };
        self.outputs.push_back(Output::Dial { session, generation, dial });
        if self.choices.resume == Resume::Sequence {
            self.report(Report::Resuming(resume));
        }
        self.report_refused(endpoint.refused.clone());
    }

    fn report_refused(&mut self, refused: Vec<RefusedTopic>) {
        self.report(Report::Refused(refused));
    }

    fn heard_items(&mut self, id: SessionId, items: Vec<Item>, now: Now) {
        let closing = items.contains(&Item::Notice(Notice::Closing));
        let revoked = items.contains(&Item::Notice(Notice::TokenRevoked));
        let taken = self.intake.take_in(items, id, now);
        self.report_taken(taken);
        if closing {
            self.retire_session(id, Trigger::Notice, now);
        }
        if revoked {
            self.revoked(id, now);
        }
    }

    /// The socket still serves, but its token is dead: get another one and rotate as soon as it is there.
    fn revoked(&mut self, id: SessionId, now: Now) {
        let Some(generation) = self.link.sessions().find(|session| session.id() == id).map(Session::generation) else {
            return;
        };
        if generation < self.token {
            return self.retire_session(id, Trigger::Revoked, now);
        }
        self.refuse(generation);
    }

    fn refuse(&mut self, generation: u64) {
        if generation > self.refused {
            self.refused = generation;
            self.outputs.push_back(Output::RefuseToken(generation));
        }
    }

    fn tended(&mut self, endpoint: &Endpoint) {
        if let Some(minted) = self.endpoint.as_mut().filter(|minted| minted.endpoint.id == endpoint.id) {
            minted.endpoint = endpoint.clone();
        }
        self.intake.set_snapshot(self.settings.connector.snapshot(Some(endpoint)));
        self.report_refused(endpoint.refused.clone());
    }

    /// Opens the only session.
    fn open(&mut self, swap: Option<Swap>, now: Now) {
        let Some(generation) = self.usable_token() else {
            self.link = Link::Waiting;
            return;
        };
        self.abandon_if_too_old(now);
        let reuse = self
            .endpoint
            .take_if(|minted| minted.generation == generation && minted.ends.is_none_or(|ends| now.at < ends));
        let session = self.begin(generation, reuse, now);
        let id = session.id();
        self.link = Link::Opening { session, swap };
        self.obey(id, now);
    }

    fn begin(&mut self, generation: u64, reuse: Option<session::Minted>, now: Now) -> Session {
        self.sessions += 1;
        let id = SessionId(self.sessions);
        Session::begin(id, generation, &self.settings.connector, self.settings.patience, reuse, now)
    }

    /// A position that the platform no longer holds is not asked for: what it would answer is silence about the hole.
    fn abandon_if_too_old(&mut self, now: Now) {
        let unheard = self.unheard(now);
        if self.intake.resume().is_some() && unheard > self.settings.retention {
            self.intake.give_up_position(GapReason::Retention);
        }
    }

    /// For how long the platform was not heard: by the monotonic clock, and by the wall clock before this process.
    fn unheard(&self, now: Now) -> Duration {
        match self.heard.at {
            Some(at) => now.at.saturating_duration_since(at),
            None => now.wall.since(self.heard.wall),
        }
    }

    fn became_live(&mut self, id: SessionId, now: Now) {
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Opening { session, swap } => {
                self.link = Link::Live { session, retire: None };
                // First: the snapshot behind a gap is about the endpoint's topics.
                self.adopt_endpoint();
                self.listen(now);
                if let Some(Swap { trigger, since }) = swap {
                    self.report(Report::Rotated { trigger, silence: now.at.saturating_duration_since(since) });
                }
            }
            Link::Swapping { old, new, retire } if new.id() == id => {
                self.report(Report::Rotated { trigger: retire.trigger, silence: Duration::ZERO });
                self.overlap(old, new, now);
                self.adopt_endpoint();
            }
            link @ (Link::Waiting
            | Link::Live { .. }
            | Link::Swapping { .. }
            | Link::Overlapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained) => self.link = link,
        }
        self.backoff.connected(now.at);
        self.retire_if_outdated(now);
    }

    fn overlap(&mut self, mut old: Session, new: Session, now: Now) {
        let (least, most) = match self.choices.resume {
            // The successor repeats what the old one may not have brought.
            Resume::Sequence => (now.at, now.at),
            Resume::None => {
                old.ask();
                (now.at + OVERLAP_MIN, now.at + OVERLAP_MAX)
            }
        };
        let id = old.id();
        self.link = Link::Overlapping { old, new, least, most, retire: None };
        self.obey(id, now);
        self.link_timeout(now);
    }

    fn listen(&mut self, now: Now) {
        let silence = self.unheard(now);
        self.heard = super::Heard { at: Some(now.at), wall: now.wall };
        if let Some(gap) = self.intake.listening(silence, now) {
            self.mark_gap(gap, now);
        }
    }

    /// The newest live session's endpoint is the one to come back to.
    fn adopt_endpoint(&mut self) {
        let newest = self.link.sessions().filter(|session| session.is_live()).last();
        let Some(minted) = newest.and_then(Session::minted).cloned() else { return };
        self.intake.set_snapshot(self.settings.connector.snapshot(Some(&minted.endpoint)));
        self.endpoint = Some(minted);
    }

    /// A token that came while the session was on its way.
    fn retire_if_outdated(&mut self, now: Now) {
        if let Link::Live { session, retire: None } = &self.link
            && session.generation() < self.token
        {
            self.retire(Trigger::Token, now);
        }
    }

    /// The one planned way to another session.
    pub(super) fn retire(&mut self, trigger: Trigger, now: Now) {
        let jitter = self.settings.rotation_jitter.mul_f64(0.5 + now.unit / 2.0);
        if let Link::Live { retire, .. } | Link::Overlapping { retire, .. } = &mut self.link {
            retire.get_or_insert(Retire { trigger, at: now.at + jitter, failures: 0 });
        }
    }

    /// The same for what was learned of one session: nothing, if that one is being replaced already.
    fn retire_session(&mut self, id: SessionId, trigger: Trigger, now: Now) {
        if self.link.sessions().last().is_some_and(|newest| newest.id() == id) {
            self.retire(trigger, now);
        }
    }

    pub(super) fn link_timeout(&mut self, now: Now) {
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Live { session, retire: Some(retire) } if now.at >= retire.at => {
                self.replace(session, retire, now);
            }
            Link::Overlapping { old, new, least, most, retire } if now.at >= overlap_end(&old, least, most) => {
                self.link = Link::Live { session: new, retire };
                self.doubt(&old, GapReason::NoReplay, now);
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

    fn replace(&mut self, old: Session, retire: Retire, now: Now) {
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
            self.leave(old, 1000, "rotation", now);
            self.intake.deaf(GapReason::NoReplay);
            return self.open(Some(Swap { trigger: retire.trigger, since: now.at }), now);
        }
        self.intake.overlap_begins();
        let new = self.begin(generation, None, now);
        let id = new.id();
        self.link = Link::Swapping { old, new, retire };
        self.obey(id, now);
    }

    fn leave(&mut self, mut session: Session, code: u16, reason: &'static str, now: Now) {
        if !session.is_open() {
            self.outputs.push_back(Output::Forget(session.id()));
            return;
        }
        session.leave(now);
        self.outputs.push_back(Output::Leave { session: session.id(), code, reason });
        self.leaving.push(session);
    }

    fn session_ended(&mut self, id: SessionId, failure: Failure, now: Now) {
        self.outputs.push_back(Output::Forget(id));
        if let Some(index) = self.leaving.iter().position(|session| session.id() == id) {
            self.leaving.swap_remove(index);
            return self.overlap_ends(now);
        }
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Opening { session, .. } => {
                self.give_up_place(&failure);
                self.trouble(&session, failure, now);
            }
            Link::Live { session, .. } => self.lost(&session, failure, now),
            Link::Swapping { old, new, retire } if new.id() == id => {
                self.successor_failed(old, &new, retire, failure, now);
            }
            Link::Swapping { old, new, retire } => {
                // The successor on its way is the immediate attempt.
                self.backoff.retired(now.at);
                self.deafen(&failure);
                self.report(Report::Lost { failure, retry_in: None });
                let since = old.heard_at();
                self.link = Link::Opening { session: new, swap: Some(Swap { trigger: retire.trigger, since }) };
                self.overlap_ends(now);
            }
            Link::Overlapping { old, new, retire, .. } => {
                // One of the two is enough; which one is left decides whether the rotation still has to be done.
                let (left, retire) = if old.id() == id {
                    self.doubt(&old, deaf_reason(&failure), now);
                    (new, retire)
                } else {
                    (old, Some(again(now)))
                };
                self.link = Link::Live { session: left, retire };
                self.overlap_ends(now);
                self.adopt_endpoint();
            }
            link @ (Link::Waiting | Link::Resting { .. } | Link::Paused | Link::Drained) => self.link = link,
        }
    }

    /// The successor failed while the old session serves: try again, without any effect on network trouble.
    fn successor_failed(&mut self, old: Session, new: &Session, mut retire: Retire, failure: Failure, now: Now) {
        if self.settings.connector.classify(&failure) == Verdict::RefreshToken && new.generation() >= self.token {
            self.refuse(new.generation());
        }
        let delay = match self.settings.connector.classify(&failure) {
            Verdict::WaitFor(wait) => wait,
            Verdict::BackOff | Verdict::Restarting | Verdict::RefreshToken | Verdict::NewEndpoint | Verdict::GiveUp => {
                SUCCESSOR_RETRY.delay(retire.failures, now.unit)
            }
        };
        retire.failures = retire.failures.saturating_add(1);
        retire.at = now.at + delay;
        self.report(Report::RotationFailed { trigger: retire.trigger, failure });
        self.link = Link::Live { session: old, retire: Some(retire) };
        self.overlap_ends(now);
    }

    /// Copies are looked for until the last socket that may still carry one is gone.
    fn overlap_ends(&mut self, now: Now) {
        if self.leaving.is_empty() && self.link.sessions().count() < 2 {
            self.intake.overlap_ends(now);
        }
    }

    /// The only live session is gone, unplanned.
    fn lost(&mut self, session: &Session, failure: Failure, now: Now) {
        self.deafen(&failure);
        self.trouble(session, failure, now);
    }

    /// What the old session was sent before its successor was live, nobody else brings: if it never answered what it
    /// was asked then, some of that may be missing.
    fn doubt(&mut self, old: &Session, reason: GapReason, now: Now) {
        if self.choices.resume == Resume::None && !old.has_answered() {
            let silence = now.at.saturating_duration_since(old.heard_at());
            self.mark_gap(Gap::unknown(reason).silent_for(silence), now);
        }
    }

    fn deafen(&mut self, failure: &Failure) {
        self.intake.deaf(deaf_reason(failure));
        self.give_up_place(failure);
    }

    /// A frame that cannot be taken is sent again on resuming, for ever: an oversized one at once, and one that breaks
    /// the protocol after a few meetings, the stream goes on without it.
    fn give_up_place(&mut self, failure: &Failure) {
        if *failure == Failure::Oversize {
            self.intake.give_up_position(GapReason::Oversize);
        }
        if !matches!(failure, Failure::Closed { code: 1002 | 1003 | 1007, .. }) {
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
    fn trouble(&mut self, session: &Session, failure: Failure, now: Now) {
        self.overlap_ends(now);
        self.endpoint = session.minted().cloned();
        match self.settings.connector.classify(&failure) {
            Verdict::RefreshToken => self.rejected(session.generation(), failure, now),
            Verdict::NewEndpoint => {
                self.endpoint = None;
                self.rest(Trouble::Dropped, failure, now);
            }
            Verdict::BackOff => self.rest(Trouble::Dropped, failure, now),
            Verdict::Restarting => self.rest(Trouble::Restarting, failure, now),
            Verdict::WaitFor(wait) => self.rest(Trouble::Told(wait), failure, now),
            Verdict::GiveUp => {
                self.endpoint = None;
                self.backoff.retired(now.at);
                self.link = Link::Resting { until: now.at + GIVEN_UP_WAIT, given_up: true };
                self.report(Report::GivenUp(failure));
            }
        }
    }

    fn rest(&mut self, trouble: Trouble, failure: Failure, now: Now) {
        let delay = self.backoff.failed(trouble, now.at, now.unit);
        self.link = Link::Resting { until: now.at + delay, given_up: false };
        self.report(Report::Lost { failure, retry_in: Some(delay) });
    }

    /// The platform does not take the token (any more): the next one is used at once, unless that happens too often.
    fn rejected(&mut self, generation: u64, failure: Failure, now: Now) {
        self.endpoint = None;
        self.backoff.retired(now.at);
        if generation >= self.token {
            self.refuse(generation);
        }
        self.rejections.retain(|at| now.at.saturating_duration_since(*at) < REJECTION_WINDOW);
        self.rejections.push_back(now.at);
        if self.rejections.len() >= REJECTIONS_MAX {
            self.rejections.pop_front();
            return self.rest(Trouble::Restarting, failure, now);
        }
        self.report(Report::Lost { failure, retry_in: None });
        let jitter = self.settings.rotation_jitter.mul_f64(0.5 + now.unit / 2.0);
        self.link = match self.usable_token() {
            Some(_) => Link::Resting { until: now.at + jitter, given_up: false },
            None => Link::Waiting,
        };
    }

    pub(super) fn pause(&mut self, now: Now) {
        if !matches!(self.link, Link::Drained) {
            self.leave_all("paused", now);
            self.link = Link::Paused;
        }
    }

    pub(super) fn unpause(&mut self, now: Now) {
        if matches!(self.link, Link::Paused) && !self.draining {
            self.open(None, now);
        }
    }

    pub(super) fn drain(&mut self, now: Now) {
        self.leave_all("draining", now);
        self.link = Link::Paused;
        self.draining = true;
        self.intake.recovery.stop_holding();
    }

    fn leave_all(&mut self, reason: &'static str, now: Now) {
        let link = std::mem::replace(&mut self.link, Link::Waiting);
        // What an open socket still brings is heard; what comes after it is not.
        if link.sessions().any(Session::is_open) {
            self.backoff.retired(now.at);
            self.intake.deaf(GapReason::NoReplay);
        }
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

fn overlap_end(old: &Session, least: Instant, most: Instant) -> Instant {
    if old.has_answered() { least } else { most }
}

/// Why nothing is heard of a platform that repeats nothing.
fn deaf_reason(failure: &Failure) -> GapReason {
    if *failure == Failure::Oversize { GapReason::Oversize } else { GapReason::NoReplay }
}

fn again(now: Now) -> Retire {
    Retire { trigger: Trigger::Token, at: now.at + SUCCESSOR_RETRY.first, failures: 1 }
}
