//! Which sessions a stream has, and what they want done. How it gets from one to the next is the business of
//! `planned` and `trouble`.

use std::time::{Duration, Instant};

use super::{
    Output, Report, State, Stream, Topics, Trigger,
    handover::Role,
    planned::{OVERLAP_MAX, overlap_end},
};
use crate::{
    connector::{Endpoint, Item, Notice, Resume},
    model::{Gap, GapReason},
    protocol::{
        Now,
        backoff::Trouble,
        session::{self, Dial, Minted, Session, SessionId},
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
    /// Backing off.
    Resting {
        until: Instant,
        cause: Cause,
    },
    Paused,
    Drained,
}

/// Why no session is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Trouble,
    /// The token is refused and there is no newer one yet. A newer one ends the wait.
    Token,
    /// The platform refused several times in a row, and an operator must act. A newer token ends the wait.
    GivenUp,
}

/// A planned replacement that is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retire {
    pub(super) trigger: Trigger,
    pub(super) at: Instant,
    /// How many successors failed so far: a count of its own, apart from network trouble.
    pub(super) failures: u32,
}

/// A planned replacement under way for which the old session was left first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Swap {
    pub(super) trigger: Trigger,
    pub(super) since: Instant,
}

impl Link {
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::Resting { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    pub(super) fn sessions_mut(&mut self) -> impl Iterator<Item = &mut Session> {
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
            Self::Resting { cause: Cause::Trouble | Cause::Token, .. } => State::BackingOff,
            Self::Resting { cause: Cause::GivenUp, .. } => State::Failed,
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
        if generation == self.token && generation == self.refused {
            return self.token_stays(now);
        }
        let is_newer = generation > self.token;
        self.token = self.token.max(generation);
        match &self.link {
            Link::Waiting => self.open(None, now),
            // A token that was rejected may be what was given up for.
            Link::Resting { cause: Cause::Token | Cause::GivenUp, .. } if is_newer && self.usable_token().is_some() => {
                self.open(None, now);
            }
            Link::Live { .. } => self.retire_if_outdated(now),
            Link::Opening { .. }
            | Link::Swapping { .. }
            | Link::Overlapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained => (),
        }
    }

    /// The account offers the token again that this stream was refused: other streams use it, or it has never carried a
    /// session and a newer one may not be requested yet. It is tried again, at the pace of network trouble.
    fn token_stays(&mut self, now: Now) {
        self.refused = self.refused.saturating_sub(1);
        if matches!(self.link, Link::Waiting) {
            let delay = self.backoff.failed(Trouble::Restarting, now.at, now.unit);
            self.link = Link::Resting { until: now.at + delay, cause: Cause::Token };
        }
    }

    pub(super) fn usable_token(&self) -> Option<u64> {
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

    pub(super) fn obey(&mut self, id: SessionId, now: Now) {
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
                session::Output::Dial(endpoint) => match self.hears_less(id, &endpoint) {
                    Some(failure) => return self.session_ended(id, failure, now),
                    None => self.dial(id, generation, &endpoint),
                },
                session::Output::Probe(probe) => self.outputs.push_back(Output::Probe { session: id, probe }),
                session::Output::Live => self.became_live(id, now),
                session::Output::Heard(items) => self.heard_items(id, items, now),
                session::Output::Tended(endpoint) => self.tended(&endpoint),
                session::Output::Aged => self.retire_session(id, Trigger::ChannelEnd, now),
                session::Output::Ended(failure) => return self.session_ended(id, failure, now),
            }
        }
    }

    pub(super) fn dial(&mut self, session: SessionId, generation: u64, endpoint: &Endpoint) {
        let resume = self.intake.resume().filter(|_| !self.position_refused);
        self.resumed = resume.map(|_| session);
        self.intake.resumes(session, resume);
        if let Role::Standby(ring) = &mut self.role {
            ring.resumes(session, resume);
        }
        let url = self.settings.connector.url(endpoint, resume);
        let dial = Dial { url, credential: endpoint.credential };
        self.outputs.push_back(Output::Dial { session, generation, dial });
        if self.choices.resume == Resume::Sequence {
            self.report(Report::Resuming(resume));
        }
    }

    /// Says what is heard by the endpoint in use, and what is not.
    fn report_topics(&mut self, endpoint: &Endpoint) {
        self.degraded = !endpoint.refused.is_empty();
        self.subscribed.clone_from(&endpoint.topics);
        let topics = Topics { subscribed: endpoint.topics.len(), missing: endpoint.refused.clone() };
        self.report(Report::Refused(topics));
    }

    pub(super) fn heard_items(&mut self, id: SessionId, items: Vec<Item>, now: Now) {
        let closing = items.contains(&Item::Notice(Notice::Closing));
        let revoked = items.contains(&Item::Notice(Notice::TokenRevoked));
        if self.is_owner() {
            let taken = self.intake.take_in(items, id, now);
            self.report_taken(taken, now);
        } else {
            self.keep(id, items, now);
        }
        if closing {
            self.retire_session(id, Trigger::Notice, now);
        }
        if revoked {
            self.revoked(id, now);
        }
    }

    /// The socket still serves, but its token is dead: get another one and rotate as soon as it is there.
    pub(super) fn revoked(&mut self, id: SessionId, now: Now) {
        let Some(generation) = self.link.sessions().find(|session| session.id() == id).map(Session::generation) else {
            return;
        };
        if generation < self.token {
            return self.retire_session(id, Trigger::Revoked, now);
        }
        self.refuse(generation);
    }

    pub(super) fn tended(&mut self, endpoint: &Endpoint) {
        if let Some(minted) = self.endpoint.as_mut().filter(|minted| minted.endpoint.id == endpoint.id) {
            minted.endpoint = endpoint.clone();
        }
        self.intake.set_snapshot(self.settings.connector.snapshot(Some(endpoint)));
        self.report_topics(endpoint);
    }

    /// Opens the only session.
    pub(super) fn open(&mut self, swap: Option<Swap>, now: Now) {
        let Some(generation) = self.usable_token() else {
            self.link = Link::Waiting;
            return;
        };
        if self.is_owner() {
            self.abandon_if_too_old(now);
        }
        let endpoint = self.endpoint.take_if(|minted| is_good(minted, generation, now));
        let reuse = endpoint.or_else(|| self.spare.take_if(|minted| is_good(minted, generation, now)));
        let session = self.begin(generation, reuse, now);
        let id = session.id();
        self.link = Link::Opening { session, swap };
        self.obey(id, now);
    }

    pub(super) fn begin(&mut self, generation: u64, reuse: Option<session::Minted>, now: Now) -> Session {
        self.sessions += 1;
        let id = SessionId(self.sessions);
        let wanted = session::Wanted { reuse, subscribed: &self.subscribed };
        Session::begin(id, generation, &self.settings.connector, self.settings.patience, wanted, now)
    }

    /// A position that the platform no longer holds is not asked for: what it would answer is silence about the hole.
    pub(super) fn abandon_if_too_old(&mut self, now: Now) {
        let unheard = self.unheard(now);
        if self.intake.resume().is_some() && unheard > self.settings.retention {
            self.intake.give_up_position(GapReason::Retention);
        }
    }

    /// For how long the platform was not heard: by the monotonic clock, and by the wall clock before this process.
    pub(super) fn unheard(&self, now: Now) -> Duration {
        match self.heard.at {
            Some(at) => now.at.saturating_duration_since(at),
            None => now.wall.since(self.heard.wall),
        }
    }

    pub(super) fn became_live(&mut self, id: SessionId, now: Now) {
        self.refusals = 0;
        let position_refused = std::mem::take(&mut self.position_refused);
        match std::mem::replace(&mut self.link, Link::Waiting) {
            Link::Opening { session, swap } => {
                self.link = Link::Live { session, retire: None };
                // First: the snapshot behind a gap is about the endpoint's topics.
                self.adopt_endpoint();
                if position_refused {
                    self.intake.give_up_position(GapReason::Retention);
                }
                self.listen(id, now);
                if let Some(Swap { trigger, since }) = swap {
                    self.report(Report::Rotated { trigger, silence: now.at.saturating_duration_since(since) });
                }
            }
            Link::Swapping { old, new, retire } if new.id() == id => {
                self.report(Report::Rotated { trigger: retire.trigger, silence: Duration::ZERO });
                if let Role::Standby(ring) = &mut self.role {
                    ring.hears(id);
                }
                let is_less = lacks(&old, &new);
                self.overlap(old, new, now);
                self.adopt_endpoint();
                if is_less {
                    self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
                }
            }
            link @ (Link::Waiting
            | Link::Live { .. }
            | Link::Swapping { .. }
            | Link::Overlapping { .. }
            | Link::Resting { .. }
            | Link::Paused
            | Link::Drained) => self.link = link,
        }
        if let Some(session) = self.link.sessions().find(|session| session.id() == id) {
            self.carried = self.carried.max(session.generation());
            self.outputs.push_back(Output::TokenCarried(session.generation()));
        }
        self.live_since = Some(now.at);
        self.backoff.connected(now.at);
        self.retire_if_outdated(now);
    }

    pub(super) fn listen(&mut self, id: SessionId, now: Now) {
        let silence = self.unheard(now);
        self.heard = super::Heard { at: Some(now.at), wall: now.wall };
        if let Role::Standby(ring) = &mut self.role {
            ring.begin(id);
        } else if let Some(gap) = self.intake.listening(silence, now) {
            self.mark_gap(gap, now);
        }
    }

    /// The newest live session's endpoint is the one to come back to.
    pub(super) fn adopt_endpoint(&mut self) {
        let newest = self.link.sessions().filter(|session| session.is_live()).last();
        let Some(minted) = newest.and_then(Session::minted).cloned() else { return };
        self.intake.set_snapshot(self.settings.connector.snapshot(Some(&minted.endpoint)));
        self.report_topics(&minted.endpoint);
        self.endpoint = Some(minted);
    }
}

/// Whether the platform refused the successor a topic that the old session hears.
fn lacks(old: &Session, new: &Session) -> bool {
    let (old, new) = (old.minted(), new.minted());
    old.zip(new).is_some_and(|(old, new)| old.endpoint.refused_to(&new.endpoint).is_some())
}

/// Whether an endpoint can be used under a token.
pub(super) fn is_good(minted: &Minted, generation: u64, now: Now) -> bool {
    minted.generation == generation && minted.ends.is_none_or(|ends| now.at < ends)
}
