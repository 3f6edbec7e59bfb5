//! Which sessions a stream has, and what they want done. How it gets from one to the next is the business of
//! `planned` and `trouble`.

use std::time::{Duration, Instant};

use super::{
    Output, Stream, StreamReport, StreamState, TopicCoverage, Trigger,
    handover::StreamRole,
    rotation::{OVERLAP_MAX, overlap_end},
};
use crate::{
    connector::{Endpoint, Item, Notice, Resume},
    model::{Gap, GapReason},
    protocol::{
        Moment,
        backoff::FailureKind,
        session::{self, Dial, ProvisionedEndpoint, Session, SessionId},
    },
};

/// What stands between the platform and us.
#[derive(Debug)]
pub(super) enum LinkState {
    /// No token that the platform might take.
    Waiting,
    /// A session is on its way; `swap` says since when there is none, if that was planned.
    Opening {
        session: Session,
        swap: Option<BreakFirstSwap>,
    },
    Live {
        session: Session,
        retire: Option<PendingRotation>,
    },
    /// The old session serves while its successor is on its way.
    Swapping {
        old: Session,
        new: Session,
        retire: PendingRotation,
    },
    /// Both serve, so that nothing is missed between them: for `least`, and until the old one has answered what it was
    /// asked when the successor was live (whatever it had to say before has been heard then), if that is before `most`.
    Overlapping {
        old: Session,
        new: Session,
        overlap_until: Instant,
        overlap_deadline: Instant,
        /// The successor is to be replaced too.
        retire: Option<PendingRotation>,
    },
    /// Backing off.
    BackingOff {
        until: Instant,
        cause: BackoffCause,
    },
    Paused,
    Drained,
}

/// Why no session is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackoffCause {
    Network,
    /// The token is refused and there is no newer one yet. A newer one ends the wait.
    TokenRejected,
    /// The platform refused several times in a row, and an operator must act. A newer token ends the wait.
    Refused,
}

/// A planned replacement that is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct PendingRotation {
    pub(super) trigger: Trigger,
    pub(super) at: Instant,
    /// How many successors failed so far: a count of its own, apart from network trouble.
    pub(super) failures: u32,
}

/// A planned replacement under way for which the old session was left first.
#[derive(Debug, Clone, Copy)]
pub(super) struct BreakFirstSwap {
    pub(super) trigger: Trigger,
    pub(super) since: Instant,
}

impl LinkState {
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::BackingOff { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    pub(super) fn sessions_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        let (one, two) = match self {
            Self::Opening { session, .. } | Self::Live { session, .. } => (Some(session), None),
            Self::Swapping { old, new, .. } | Self::Overlapping { old, new, .. } => (Some(old), Some(new)),
            Self::Waiting | Self::BackingOff { .. } | Self::Paused | Self::Drained => (None, None),
        };
        one.into_iter().chain(two)
    }

    /// Whether events can come in.
    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Live { .. } | Self::Swapping { .. } | Self::Overlapping { .. } => true,
            Self::Waiting | Self::Opening { .. } | Self::BackingOff { .. } | Self::Paused | Self::Drained => false,
        }
    }

    pub(super) fn state(&self) -> StreamState {
        match self {
            Self::Waiting => StreamState::Starting,
            Self::Opening { .. } => StreamState::Connecting,
            Self::Live { .. } | Self::Swapping { .. } | Self::Overlapping { .. } => StreamState::Live,
            Self::BackingOff { cause: BackoffCause::Network | BackoffCause::TokenRejected, .. } => {
                StreamState::BackingOff
            }
            Self::BackingOff { cause: BackoffCause::Refused, .. } => StreamState::Failed,
            Self::Paused | Self::Drained => StreamState::Paused,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Live { retire, .. } => retire.map(|retire| retire.at),
            Self::Overlapping { old, overlap_until: least, overlap_deadline: most, .. } => {
                Some(overlap_end(old, *least, *most))
            }
            Self::BackingOff { until, .. } => Some(*until),
            Self::Waiting | Self::Opening { .. } | Self::Swapping { .. } | Self::Paused | Self::Drained => None,
        }
    }
}

impl Stream {
    pub(super) fn on_token(&mut self, generation: u64, now: Moment) {
        if generation == self.newest_token && generation == self.rejected_token {
            return self.retry_rejected_token(now);
        }
        let is_newer = generation > self.newest_token;
        self.newest_token = self.newest_token.max(generation);
        match &self.link {
            LinkState::Waiting => self.open_session(None, now),
            // A token that was rejected may be what was given up for.
            LinkState::BackingOff { cause: BackoffCause::TokenRejected | BackoffCause::Refused, .. }
                if is_newer && self.usable_token().is_some() =>
            {
                self.open_session(None, now);
            }
            LinkState::Live { .. } => self.retire_if_outdated(now),
            LinkState::Opening { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained => (),
        }
    }

    /// The account offers the token again that this stream was refused: other streams use it, or it has never carried a
    /// session and a newer one may not be requested yet. It is tried again, at the pace of network trouble.
    fn retry_rejected_token(&mut self, now: Moment) {
        self.rejected_token = self.rejected_token.saturating_sub(1);
        if matches!(self.link, LinkState::Waiting) {
            let delay = self.backoff.failed(FailureKind::Restarting, now.at, now.random);
            self.link = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::TokenRejected };
        }
    }

    pub(super) fn usable_token(&self) -> Option<u64> {
        (self.newest_token > self.rejected_token).then_some(self.newest_token)
    }

    /// Hands an input to its session, and carries out what the session wants.
    pub(super) fn dispatch(&mut self, id: SessionId, input: session::Input, now: Moment) {
        let session = self.link.sessions_mut().chain(&mut self.closing).find(|session| session.id() == id);
        let Some(session) = session else { return };
        session.handle(input, now);
        self.drain_outputs(id, now);
    }

    pub(super) fn sessions_timeout(&mut self, now: Moment) {
        let mut ids = Vec::new();
        for session in self.link.sessions_mut().chain(&mut self.closing) {
            if session.poll_timeout().is_some_and(|at| now.at >= at) {
                session.handle_timeout(now);
                ids.push(session.id());
            }
        }
        for id in ids {
            self.drain_outputs(id, now);
        }
    }

    /// While frames are left unread for our own reasons, no session is silent and no copy late.
    pub(super) fn suspend_timers_under_backpressure(&mut self, now: Moment) {
        if self.wants_frames() {
            return;
        }
        self.link.sessions_mut().chain(&mut self.closing).for_each(|session| session.suspend_timers(now));
        self.intake.suspend_timers(now);
        if let LinkState::Overlapping { overlap_deadline: most, .. } = &mut self.link {
            *most = now.at + OVERLAP_MAX;
        }
    }

    pub(super) fn drain_outputs(&mut self, id: SessionId, now: Moment) {
        loop {
            let session = self.link.sessions_mut().chain(&mut self.closing).find(|session| session.id() == id);
            let Some(session) = session else { return };
            let generation = session.generation();
            let Some(output) = session.poll_output() else { return };
            match output {
                session::Output::Call(request) => {
                    let call = super::CallId::Session(id);
                    self.outputs.push_back(Output::Call { call, generation, request });
                }
                session::Output::Dial(endpoint) => match self.topic_loss(id, &endpoint) {
                    Some(failure) => return self.on_session_ended(id, failure, now),
                    None => self.dial(id, generation, &endpoint),
                },
                session::Output::Probe(probe) => self.outputs.push_back(Output::Probe { session: id, probe }),
                session::Output::Live => self.on_live(id, now),
                session::Output::Received(items) => self.on_items(id, items, now),
                session::Output::EndpointChanged(endpoint) => self.on_endpoint_changed(&endpoint),
                session::Output::EndpointExpiring => self.retire_session(id, Trigger::ChannelEnd, now),
                session::Output::Ended(failure) => return self.on_session_ended(id, failure, now),
            }
        }
    }

    pub(super) fn dial(&mut self, session: SessionId, generation: u64, endpoint: &Endpoint) {
        let resume = self.intake.resume().filter(|_| !self.position_refused);
        self.resumed_session = resume.map(|_| session);
        self.intake.record_resume(session, resume);
        if let StreamRole::Standby(standby_buffer) = &mut self.role {
            standby_buffer.record_resume(session, resume);
        }
        let url = self.settings.connector.url(endpoint, resume);
        let dial = Dial { url, credential: endpoint.credential };
        self.outputs.push_back(Output::Dial { session, generation, dial });
        if self.capabilities.resume == Resume::Sequence {
            self.report(StreamReport::Resuming(resume));
        }
    }

    /// Says what is heard by the endpoint in use, and what is not.
    fn report_topics(&mut self, endpoint: &Endpoint) {
        self.degraded = !endpoint.refused.is_empty();
        self.subscribed.clone_from(&endpoint.topics);
        let topics = TopicCoverage { subscribed: endpoint.topics.len(), missing: endpoint.refused.clone() };
        self.report(StreamReport::TopicCoverage(topics));
    }

    pub(super) fn on_items(&mut self, id: SessionId, items: Vec<Item>, now: Moment) {
        let closing = items.contains(&Item::Notice(Notice::Closing));
        let revoked = items.contains(&Item::Notice(Notice::TokenRevoked));
        if self.is_owner() {
            let taken = self.intake.accept_items(items, id, now);
            self.report_intake(taken, now);
        } else {
            self.buffer_items(id, items, now);
        }
        if closing {
            self.retire_session(id, Trigger::Notice, now);
        }
        if revoked {
            self.on_token_revoked(id, now);
        }
    }

    /// The socket still serves, but its token is dead: get another one and rotate as soon as it is there.
    pub(super) fn on_token_revoked(&mut self, id: SessionId, now: Moment) {
        let Some(generation) = self.link.sessions().find(|session| session.id() == id).map(Session::generation) else {
            return;
        };
        if generation < self.newest_token {
            return self.retire_session(id, Trigger::Revoked, now);
        }
        self.reject_token(generation);
    }

    pub(super) fn on_endpoint_changed(&mut self, endpoint: &Endpoint) {
        if let Some(provisioned) = self.endpoint.as_mut().filter(|provisioned| provisioned.endpoint.id == endpoint.id) {
            provisioned.endpoint = endpoint.clone();
        }
        self.intake.set_snapshot(self.settings.connector.snapshot(Some(endpoint)));
        self.report_topics(endpoint);
    }

    /// Opens the only session.
    pub(super) fn open_session(&mut self, swap: Option<BreakFirstSwap>, now: Moment) {
        let Some(generation) = self.usable_token() else {
            self.link = LinkState::Waiting;
            return;
        };
        if self.is_owner() {
            self.abandon_if_too_old(now);
        }
        let endpoint = self.endpoint.take_if(|provisioned| is_usable(provisioned, generation, now));
        let reuse =
            endpoint.or_else(|| self.spare_endpoint.take_if(|provisioned| is_usable(provisioned, generation, now)));
        let session = self.start_session(generation, reuse, now);
        let id = session.id();
        self.link = LinkState::Opening { session, swap };
        self.drain_outputs(id, now);
    }

    pub(super) fn start_session(
        &mut self,
        generation: u64,
        reuse: Option<session::ProvisionedEndpoint>,
        now: Moment,
    ) -> Session {
        self.sessions += 1;
        let id = SessionId(self.sessions);
        let wanted = session::StartOptions { reuse, subscribed: &self.subscribed };
        Session::start(id, generation, &self.settings.connector, self.settings.timeouts, wanted, now)
    }

    /// A position that the platform no longer holds is not asked for: what it would answer is silence about the hole.
    pub(super) fn abandon_if_too_old(&mut self, now: Moment) {
        let unheard = self.silence(now);
        if self.intake.resume().is_some() && unheard > self.settings.retention {
            self.intake.abandon_position(GapReason::Retention);
        }
    }

    /// For how long the platform was not heard: by the monotonic clock, and by the wall clock before this process.
    pub(super) fn silence(&self, now: Moment) -> Duration {
        match self.last_received.at {
            Some(at) => now.at.saturating_duration_since(at),
            None => now.wall.since(self.last_received.wall),
        }
    }

    pub(super) fn on_live(&mut self, id: SessionId, now: Moment) {
        self.refusals = 0;
        let position_refused = std::mem::take(&mut self.position_refused);
        match std::mem::replace(&mut self.link, LinkState::Waiting) {
            LinkState::Opening { session, swap } => {
                self.link = LinkState::Live { session, retire: None };
                // First: the snapshot behind a gap is about the endpoint's topics.
                self.adopt_endpoint();
                if position_refused {
                    self.intake.abandon_position(GapReason::Retention);
                }
                self.mark_connected(id, now);
                if let Some(BreakFirstSwap { trigger, since }) = swap {
                    self.report(StreamReport::Rotated { trigger, silence: now.at.saturating_duration_since(since) });
                }
            }
            LinkState::Swapping { old, new, retire } if new.id() == id => {
                self.report(StreamReport::Rotated { trigger: retire.trigger, silence: Duration::ZERO });
                if let StreamRole::Standby(standby_buffer) = &mut self.role {
                    standby_buffer.on_live(id);
                }
                let is_less = loses_topic(&old, &new);
                self.overlap(old, new, now);
                self.adopt_endpoint();
                if is_less {
                    self.mark_gap(Gap::unknown(GapReason::NoReplay), now);
                }
            }
            link @ (LinkState::Waiting
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => self.link = link,
        }
        if let Some(session) = self.link.sessions().find(|session| session.id() == id) {
            self.proven_token = self.proven_token.max(session.generation());
            self.outputs.push_back(Output::TokenProven(session.generation()));
        }
        self.live_since = Some(now.at);
        self.backoff.connected(now.at);
        self.retire_if_outdated(now);
    }

    pub(super) fn mark_connected(&mut self, id: SessionId, now: Moment) {
        let silence = self.silence(now);
        self.last_received = super::LastReceived { at: Some(now.at), wall: now.wall };
        if let StreamRole::Standby(standby_buffer) = &mut self.role {
            standby_buffer.start_at(id);
        } else if let Some(gap) = self.intake.mark_connected(silence, now) {
            self.mark_gap(gap, now);
        }
    }

    /// The newest live session's endpoint is the one to come back to.
    pub(super) fn adopt_endpoint(&mut self) {
        let newest = self.link.sessions().filter(|session| session.is_live()).last();
        let Some(provisioned) = newest.and_then(Session::provisioned).cloned() else { return };
        self.intake.set_snapshot(self.settings.connector.snapshot(Some(&provisioned.endpoint)));
        self.report_topics(&provisioned.endpoint);
        self.endpoint = Some(provisioned);
    }
}

/// Whether the platform refused the successor a topic that the old session hears.
fn loses_topic(old: &Session, new: &Session) -> bool {
    let (old, new) = (old.provisioned(), new.provisioned());
    old.zip(new).is_some_and(|(old, new)| old.endpoint.topic_refused_by(&new.endpoint).is_some())
}

/// Whether an endpoint can be used under a token.
pub(super) fn is_usable(provisioned: &ProvisionedEndpoint, generation: u64, now: Moment) -> bool {
    provisioned.generation == generation && provisioned.expires_at.is_none_or(|ends| now.at < ends)
}
