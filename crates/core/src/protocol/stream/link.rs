//! The connection side of a stream, with four verbs: it starts and replaces sessions, and passes on what they receive.
//!
//! It does not look into events, and has no access to the data path.

mod endpoints;
mod failures;
mod machine;
mod notices;
mod output;
mod rotation;
mod state;
mod tokens;

pub(super) use self::{
    machine::Link,
    notices::Notices,
    output::{BadFrame, DialRequest, LinkOutput, PathInput},
};

use std::time::{Duration, Instant};

use self::{
    machine::{send_flush_probe, unflushed_gap},
    state::{BackoffCause, BreakFirstSwap, LinkState, PendingRotation},
};
use super::{
    messages::{CallId, Input, Output, StreamReport, StreamState, Trigger},
    settings::OVERLAP_MAX,
};
use crate::{
    connector::Endpoint,
    model::{Gap, GapReason},
    protocol::{
        Moment,
        backoff::FailureKind,
        session::{self, Session, SessionId},
    },
};

/// A session that is not live after this time is replaced when an operator asks for a rotation.
const HUNG_AFTER: Duration = Duration::from_secs(2);

impl Link {
    /// Passes an input to a session.
    pub(super) fn handle(&mut self, id: SessionId, input: session::Input, now: Moment) {
        let Some(session) = self.all_sessions_mut().find(|session| session.id() == id) else { return };
        session.handle(input, now);
        self.drain_session(id, now);
    }

    pub(super) fn handle_timeout(&mut self, now: Moment) {
        let mut ids = Vec::new();
        for session in self.all_sessions_mut() {
            if session.poll_timeout().is_some_and(|at| now.at >= at) {
                session.handle_timeout(now);
                ids.push(session.id());
            }
        }
        for id in ids {
            self.drain_session(id, now);
        }
        self.change_state_if_due(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.all_sessions().filter_map(Session::poll_timeout).chain(self.state.poll_timeout()).min()
    }

    /// When the circuit breaker closes, if it is open.
    pub(super) fn stable_at(&self) -> Option<Instant> {
        self.backoff.stable_at()
    }

    pub(super) fn is_breaker_open(&self, now: Moment) -> bool {
        self.backoff.is_open(now.at)
    }

    pub(super) fn is_live(&self) -> bool {
        self.state.is_live()
    }

    /// Whether the platform refused some of the configured topics.
    pub(super) fn is_degraded(&self) -> bool {
        self.endpoints.degraded && self.state.is_live()
    }

    pub(super) fn state(&self) -> StreamState {
        if self.is_degraded() { StreamState::Degraded } else { self.state.stream_state() }
    }

    /// Whether there is no session, not even one that closes.
    pub(super) fn is_idle(&self) -> bool {
        self.all_sessions().next().is_none()
    }

    pub(super) fn newest_token(&self) -> u64 {
        self.tokens.newest()
    }

    pub(super) fn session_ids(&self) -> Vec<SessionId> {
        self.all_sessions().map(Session::id).collect()
    }

    /// The first session that does not close.
    pub(super) fn first_session(&self) -> Option<SessionId> {
        self.state.sessions().next().map(Session::id)
    }

    /// The account offers a token of this generation.
    pub(super) fn on_token(&mut self, generation: u64, now: Moment) {
        if self.tokens.is_rejected_newest(generation) {
            return self.retry_rejected_token(now);
        }
        let is_newer = self.tokens.offer(generation);
        match &self.state {
            LinkState::Waiting => self.open_session(None, now),
            LinkState::BackingOff { cause: BackoffCause::TokenRejected | BackoffCause::Refused, .. }
                if is_newer && self.tokens.usable().is_some() =>
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
        self.drain_newest(now);
    }

    /// The account offers a token again that the platform rejected: other streams use it, or it has never carried a
    /// session and a newer one may not be requested yet. It is tried again after a backoff.
    fn retry_rejected_token(&mut self, now: Moment) {
        self.tokens.allow_retry();
        if matches!(self.state, LinkState::Waiting) {
            let delay = self.backoff.failed(FailureKind::Restarting, now.at, now.random);
            self.state = LinkState::BackingOff { until: now.at + delay, cause: BackoffCause::TokenRejected };
        }
    }

    /// A session was dialled. `resumed`: with a position.
    pub(super) fn on_dialled(&mut self, session: SessionId, resumed: bool) {
        self.resumed_session = resumed.then_some(session);
    }

    /// Acts on notices of the platform. `LinkOutput::Received` comes first, so that the events in front of them are
    /// stored.
    pub(super) fn on_notices(&mut self, id: SessionId, notices: Notices, now: Moment) {
        if notices.closing {
            self.retire_session(id, Trigger::Notice, now);
        }
        if notices.token_revoked {
            self.on_token_revoked(id, now);
        }
    }

    /// The session stays live, but its token is revoked: requests another token, and rotates when it is there.
    fn on_token_revoked(&mut self, id: SessionId, now: Moment) {
        let Some(session) = self.state.sessions().find(|session| session.id() == id) else { return };
        let generation = session.generation();
        if generation < self.tokens.newest() {
            return self.retire_session(id, Trigger::Revoked, now);
        }
        self.reject_token(generation);
    }

    /// Frames are not read because the buffer is full: no timer of a session or an overlap may expire.
    pub(super) fn suspend_timers(&mut self, now: Moment) {
        self.all_sessions_mut().for_each(|session| session.suspend_timers(now));
        if let LinkState::Overlapping { overlap_deadline, .. } = &mut self.state {
            *overlap_deadline = now.at + OVERLAP_MAX;
        }
    }

    /// Whether every session has answered its probe.
    pub(super) fn has_acked_probes(&self) -> bool {
        self.all_sessions().all(Session::has_acked_probes)
    }

    /// Expects no more answers to probes. Returns the gap if one was expected.
    pub(super) fn abandon_probes(&mut self, now: Moment) -> Option<Gap> {
        self.all_sessions_mut().filter_map(|session| unflushed_gap(session, GapReason::NoReplay, now)).last()
    }

    /// Sends a probe on the live session. None if a rotation is in progress or no session is live.
    pub(super) fn probe_live_session(&mut self, now: Moment) -> Option<SessionId> {
        let LinkState::Live { session, .. } = &mut self.state else { return None };
        send_flush_probe(session, &mut self.outputs, now);
        Some(session.id())
    }

    /// Whether this session has answered its probe. None if it does not exist any more.
    pub(super) fn has_session_acked(&self, id: SessionId) -> Option<bool> {
        self.state.sessions().find(|session| session.id() == id).map(Session::has_acked_probes)
    }

    /// The successor of an old session that has not answered its probe.
    pub(super) fn successor_of_unflushed(&self) -> Option<SessionId> {
        self.state.successor_of_unflushed().map(Session::id)
    }

    /// Repeats the outputs about the endpoint in use, for a new data path.
    pub(super) fn announce_endpoint(&mut self) {
        self.adopt_endpoint();
    }

    /// Looks whether the sessions of an overlap are gone, for a new data path.
    pub(super) fn check_overlap(&mut self) {
        self.end_overlap();
    }

    /// Why a command would have no effect now. None if it has an effect, or if its effect is there already.
    pub(super) fn objection(&self, command: &Input, draining: bool) -> Option<&'static str> {
        self.state.objection(command, draining, self.tokens.usable().is_some())
    }

    /// An operator asks for another session. A live session is rotated. An attempt that hangs is started again without
    /// its endpoint, which the platform may still use for the first attempt.
    pub(super) fn rotate(&mut self, draining: bool, now: Moment) {
        match std::mem::replace(&mut self.state, LinkState::Waiting) {
            LinkState::BackingOff { .. } if !draining => self.open_session(None, now),
            LinkState::Opening { session, swap } if is_hung(&session, now) => {
                self.emit(Output::DropSocket(session.id()));
                self.open_session(swap, now);
            }
            LinkState::Swapping { old, new, rotation } if is_hung(&new, now) => {
                self.emit(Output::DropSocket(new.id()));
                let failures = rotation.failures.max(1);
                self.replace(old, PendingRotation { failures, ..rotation }, now);
            }
            state @ (LinkState::Waiting
            | LinkState::Opening { .. }
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => {
                self.state = state;
                self.retire(Trigger::Operator, now);
            }
        }
        self.drain_newest(now);
    }

    pub(super) fn pause(&mut self, now: Moment) {
        if !matches!(self.state, LinkState::Drained) {
            self.close_all("paused", now);
        }
    }

    pub(super) fn resume(&mut self, now: Moment) {
        if matches!(self.state, LinkState::Paused | LinkState::BackingOff { .. }) {
            self.open_session(None, now);
            self.drain_newest(now);
        }
    }

    /// Nothing is left to store: the link does not start again.
    pub(super) fn finish_drain(&mut self) {
        self.state = LinkState::Drained;
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state, LinkState::Paused | LinkState::Drained)
    }

    /// Drops all sessions, and starts a new one from the position of the log.
    pub(super) fn restart(&mut self, now: Moment) {
        for session in self.session_ids() {
            self.emit(Output::DropSocket(session));
        }
        self.closing.clear();
        // The platform refused another position.
        self.position_refused = false;
        self.backoff.retired(now.at);
        self.open_session(None, now);
        self.drain_newest(now);
    }

    /// Closes all sessions. Events that still arrive are stored.
    pub(super) fn close_all(&mut self, reason: &'static str, now: Moment) {
        let state = std::mem::replace(&mut self.state, LinkState::Paused);
        if state.sessions().any(Session::is_open) {
            self.backoff.retired(now.at);
            self.apply(PathInput::Outage(GapReason::NoReplay));
        }
        self.apply(PathInput::Discontinuity(self.newest_session_id()));
        match state {
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

    fn change_state_if_due(&mut self, now: Moment) {
        match std::mem::replace(&mut self.state, LinkState::Waiting) {
            LinkState::Live { session, rotation: Some(pending) } if now.at >= pending.at => {
                self.replace(session, pending, now);
            }
            LinkState::BackingOff { until, .. } if now.at >= until => self.open_session(None, now),
            state @ (LinkState::Waiting
            | LinkState::Opening { .. }
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => {
                self.state = state;
                self.end_overlap_if_due(now);
            }
        }
        self.drain_newest(now);
    }

    /// Handles the outputs of a session that was just started.
    fn drain_newest(&mut self, now: Moment) {
        self.drain_session(self.newest_session_id(), now);
    }

    fn drain_session(&mut self, id: SessionId, now: Moment) {
        loop {
            let Some(session) = self.all_sessions_mut().find(|session| session.id() == id) else { return };
            let generation = session.generation();
            let Some(output) = session.poll_output() else { return };
            match output {
                session::Output::Call(request) => {
                    self.emit(Output::Call { call: CallId::Session(id), generation, request });
                }
                session::Output::Dial(endpoint) => match self.topic_loss(id, &endpoint) {
                    Some(failure) => return self.on_session_ended(id, failure, now),
                    None => self.dial(id, generation, endpoint),
                },
                session::Output::Send(message) => self.emit(Output::Send { session: id, generation, message }),
                session::Output::Probe(probe) => self.emit(Output::Probe { session: id, probe }),
                session::Output::Live => self.on_live(id, now),
                session::Output::Received(items) => {
                    self.outputs.push_back(LinkOutput::Received { session: id, items });
                }
                session::Output::EndpointChanged(endpoint) => self.on_endpoint_changed(&endpoint),
                session::Output::EndpointExpiring => self.retire_session(id, Trigger::ChannelEnd, now),
                session::Output::Ended(failure) => return self.on_session_ended(id, failure, now),
            }
        }
    }

    fn dial(&mut self, session: SessionId, generation: u64, endpoint: Endpoint) {
        let with_position = !self.position_refused;
        self.outputs.push_back(LinkOutput::Dial(DialRequest { session, generation, endpoint, with_position }));
    }

    fn on_endpoint_changed(&mut self, endpoint: &Endpoint) {
        let current = self.endpoints.current.as_mut();
        if let Some(provisioned) = current.filter(|provisioned| provisioned.endpoint.id == endpoint.id) {
            provisioned.endpoint = endpoint.clone();
        }
        self.use_endpoint(endpoint);
    }

    fn on_live(&mut self, id: SessionId, now: Moment) {
        self.refusals = 0;
        let position_refused = std::mem::take(&mut self.position_refused);
        match std::mem::replace(&mut self.state, LinkState::Waiting) {
            LinkState::Opening { session, swap } => {
                self.state = LinkState::Live { session, rotation: None };
                self.on_only_session_live(id, swap, position_refused, now);
            }
            LinkState::Swapping { old, new, rotation } if new.id() == id => {
                self.on_successor_live(old, new, rotation.trigger, now);
            }
            state @ (LinkState::Waiting
            | LinkState::Live { .. }
            | LinkState::Swapping { .. }
            | LinkState::Overlapping { .. }
            | LinkState::BackingOff { .. }
            | LinkState::Paused
            | LinkState::Drained) => self.state = state,
        }
        let generation = self.state.sessions().find(|session| session.id() == id).map(Session::generation);
        if let Some(generation) = generation {
            self.tokens.prove(generation);
            self.emit(Output::TokenProven(generation));
        }
        self.live_since = Some(now.at);
        self.backoff.connected(now.at);
        self.retire_if_outdated(now);
    }

    fn on_only_session_live(
        &mut self,
        id: SessionId,
        swap: Option<BreakFirstSwap>,
        position_refused: bool,
        now: Moment,
    ) {
        // The snapshot behind a gap needs the endpoint's topics, so the endpoint comes first.
        self.adopt_endpoint();
        if position_refused {
            self.apply(PathInput::PositionAbandoned(GapReason::Retention));
        }
        self.outputs.push_back(LinkOutput::Connected(id));
        if let Some(BreakFirstSwap { trigger, since }) = swap {
            self.report(StreamReport::Rotated { trigger, silence: now.at.saturating_duration_since(since) });
        }
    }
}

fn is_hung(session: &Session, now: Moment) -> bool {
    now.at >= session.started_at() + HUNG_AFTER
}
