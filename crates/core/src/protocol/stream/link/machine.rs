//! The data of the connection side, and the steps that its rules share.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    super::{
        messages::{Output, StreamReport, TopicCoverage},
        settings::Settings,
    },
    endpoints::Endpoints,
    output::{LinkOutput, PathInput},
    state::{BreakFirstSwap, LinkState},
    tokens::Tokens,
};
use crate::{
    connector::{Capabilities, Endpoint, Failure, PositionDoubt},
    model::{Gap, GapReason},
    protocol::{
        Moment,
        backoff::Backoff,
        session::{self, ProvisionedEndpoint, Session, SessionId},
    },
};

/// The connection side of a stream: its sessions, and the ways from one session to the next.
///
/// A planned rotation starts the successor before it closes the old session, where the platform allows two sessions.
/// After a failure the link backs off and tries again without a limit. The two share no counter.
#[derive(Debug)]
pub(in crate::protocol::stream) struct Link {
    pub(super) settings: Settings,
    pub(super) capabilities: Capabilities,
    pub(super) state: LinkState,
    /// Sessions that sent a close frame and may still receive.
    pub(super) closing: Vec<Session>,
    pub(super) tokens: Tokens,
    pub(super) endpoints: Endpoints,
    pub(super) backoff: Backoff,
    /// When the newest session became live.
    pub(super) live_since: Option<Instant>,
    /// How many sessions in a row received a closing notice before they were stable.
    pub(super) notices: u32,
    /// How many times in a row the platform refused.
    pub(super) refusals: u32,
    /// The newest session that was dialled with a position.
    pub(super) resumed_session: Option<SessionId>,
    /// The platform refused the position. The next session is dialled without one.
    pub(super) position_refused: bool,
    sessions_started: u64,
    pub(super) outputs: VecDeque<LinkOutput>,
}

impl Link {
    /// A link that waits for a token.
    pub(in crate::protocol::stream) fn new(settings: Settings) -> Self {
        Self {
            capabilities: settings.connector.capabilities(),
            backoff: Backoff::new(settings.backoff),
            settings,
            state: LinkState::Waiting,
            closing: Vec::new(),
            tokens: Tokens::default(),
            endpoints: Endpoints::default(),
            live_since: None,
            notices: 0,
            refusals: 0,
            resumed_session: None,
            position_refused: false,
            sessions_started: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The next output. All outputs must be handled before the next input.
    pub(in crate::protocol::stream) fn poll_output(&mut self) -> Option<LinkOutput> {
        self.outputs.pop_front()
    }

    pub(super) fn emit(&mut self, output: Output) {
        self.outputs.push_back(LinkOutput::Emit(output));
    }

    pub(super) fn report(&mut self, report: StreamReport) {
        self.emit(Output::Report(report));
    }

    pub(super) fn apply(&mut self, input: PathInput) {
        self.outputs.push_back(LinkOutput::Path(input));
    }

    /// All sessions, those that close included.
    pub(super) fn all_sessions(&self) -> impl Iterator<Item = &Session> {
        self.state.sessions().chain(&self.closing)
    }

    pub(super) fn all_sessions_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.state.sessions_mut().chain(&mut self.closing)
    }

    pub(super) fn newest_session_id(&self) -> SessionId {
        SessionId(self.sessions_started)
    }

    /// Starts the only session, or waits for a token.
    pub(super) fn open_session(&mut self, swap: Option<BreakFirstSwap>, now: Moment) {
        let Some(generation) = self.tokens.usable() else {
            self.state = LinkState::Waiting;
            return;
        };
        self.outputs.push_back(LinkOutput::Starting);
        let reuse = self.endpoints.take_usable(generation, now);
        let session = self.start_session(generation, reuse, now);
        self.state = LinkState::Opening { session, swap };
    }

    pub(super) fn start_session(
        &mut self,
        generation: u64,
        reuse: Option<ProvisionedEndpoint>,
        now: Moment,
    ) -> Session {
        self.sessions_started += 1;
        let id = self.newest_session_id();
        let options = session::StartOptions { reuse, subscribed: &self.endpoints.subscribed };
        Session::start(id, generation, &self.settings.connector, self.settings.timeouts, options, now)
    }

    /// Sends a close frame on a live session, and drops any other: a gap is marked only in front of a live session, so
    /// that nothing may come from one that was never live.
    pub(super) fn close_session(&mut self, mut session: Session, code: u16, reason: &'static str, now: Moment) {
        if !session.is_live() {
            self.emit(Output::DropSocket(session.id()));
            return;
        }
        session.close(now);
        self.emit(Output::Close { session: session.id(), code, reason });
        self.closing.push(session);
    }

    pub(super) fn reject_token(&mut self, generation: u64) {
        if self.tokens.reject(generation) {
            self.emit(Output::TokenRejected(generation));
        }
    }

    /// The old session ends. If it has not answered its probe, events from before its successor was live may be
    /// missing: no other session brings them.
    pub(super) fn mark_unflushed(&mut self, old: &mut Session, reason: GapReason, only_if_held: bool, now: Moment) {
        if let Some(gap) = unflushed_gap(old, reason, now) {
            self.apply(PathInput::Unflushed { session: old.id(), gap, only_if_held });
        }
    }

    /// Copies may arrive until at most one session is left.
    pub(super) fn end_overlap(&mut self) {
        if self.closing.is_empty() && self.state.sessions().count() < 2 {
            self.apply(PathInput::OverlapEnded);
        }
    }

    /// Makes the endpoint of the newest live session the one that the next session uses.
    pub(super) fn adopt_endpoint(&mut self) {
        let newest = self.state.sessions().filter(|session| session.is_live()).last();
        let Some(provisioned) = newest.and_then(Session::provisioned).cloned() else { return };
        self.use_endpoint(&provisioned.endpoint);
        self.endpoints.current = Some(provisioned);
    }

    /// Reports the topics of the endpoint in use, and updates what depends on them.
    pub(super) fn use_endpoint(&mut self, endpoint: &Endpoint) {
        self.apply(PathInput::SnapshotRequests(self.settings.connector.snapshot(Some(endpoint))));
        self.endpoints.degraded = !endpoint.refused.is_empty();
        self.endpoints.subscribed.clone_from(&endpoint.topics);
        let topics = TopicCoverage { subscribed: endpoint.topics.len(), missing: endpoint.refused.clone() };
        self.report(StreamReport::TopicCoverage(topics));
    }

    /// Whether the platform refused the upgrade of this session because of the position.
    pub(super) fn is_position_refused(&self, id: SessionId, failure: &Failure) -> bool {
        match failure.position_doubt().filter(|_| self.resumed_session == Some(id)) {
            None => false,
            Some(PositionDoubt::Certain) => true,
            Some(PositionDoubt::WhenRepeated) => self.refusals > 0,
        }
    }

    /// A random delay between half of the rotation jitter and all of it.
    pub(super) fn jitter(&self, now: Moment) -> Duration {
        self.settings.rotation_jitter.mul_f64(0.5 + now.random / 2.0)
    }
}

/// Sends a probe on a session. Its answer proves that everything before it was received.
pub(super) fn send_flush_probe(session: &mut Session, outputs: &mut VecDeque<LinkOutput>, now: Moment) {
    session.send_flush_probe(now);
    while let Some(session::Output::Probe(probe)) = session.poll_output() {
        outputs.push_back(LinkOutput::Emit(Output::Probe { session: session.id(), probe }));
    }
}

/// The gap of a session that has not answered its probe. No answer is expected after this.
pub(super) fn unflushed_gap(old: &mut Session, reason: GapReason, now: Moment) -> Option<Gap> {
    let silence = now.at.saturating_duration_since(old.last_received_at());
    old.abandon_probe().then(|| Gap::unknown(reason).with_silence(silence))
}
