//! One session: one connection, from its endpoint to its close handshake.
//!
//! Prepare the endpoint → dial → verify → live → close. A session decodes frames and checks that the platform is alive.
//! It does not look into events.

use std::time::{Duration, Instant};

use super::Moment;
use crate::connector::{
    Capabilities, Connector, Credential, Endpoint, Failure, Frame, Item, Liveness, Notice, OpeningMessage,
    OpeningVerdict, Preparation, PreparationStep, Probe, RestRequest, RestResponse,
};

/// The number of a session within its stream, in the order of their starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The timeouts of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From dialling until the socket is open, and again until the session is live.
    pub connect: Duration,
    /// A live session ends if no frame arrives in this time.
    pub silence: Duration,
    /// A frame must be complete within this time after its first bytes.
    pub frame: Duration,
    /// From our close frame until the socket is dropped.
    pub close: Duration,
}

/// An input of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The answer to the REST call, or the reason why there is none.
    Response(Result<RestResponse, String>),
    /// The socket is open.
    Opened,
    /// The socket could not be opened.
    ConnectFailed(Failure),
    /// A frame has begun and is not complete.
    PartialFrame,
    Frame(Frame),
    /// The socket was closed.
    Closed(Failure),
}

/// An output of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Call(RestRequest),
    /// Open the endpoint's socket. The stream adds the position to its URL.
    Dial(Endpoint),
    /// Send a message of the opening exchange, with the token at its place.
    Send(OpeningMessage),
    Probe(Probe),
    /// The session is live.
    Live,
    Received(Vec<Item>),
    /// The endpoint of a live session changed: other topics are subscribed or refused.
    EndpointChanged(Endpoint),
    /// The endpoint expires soon.
    EndpointExpiring,
    /// The session has ended. The socket, if there is one, must be dropped.
    Ended(Failure),
}

/// An endpoint, and when it expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionedEndpoint {
    pub endpoint: Endpoint,
    /// The generation of the token that created it.
    pub generation: u64,
    /// When it must be replaced; none if it does not expire.
    pub expires_at: Option<Instant>,
}

/// The machine of one session.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    generation: u64,
    connector: Connector,
    capabilities: Capabilities,
    timeouts: Timeouts,
    /// It replaces a live session, so it is live only after a frame has arrived.
    replaces: bool,
    state: SessionState,
    started_at: Instant,
    provisioned: Option<ProvisionedEndpoint>,
    last_received_at: Instant,
    /// When the frame that has begun must be complete.
    frame_deadline: Option<Instant>,
    /// How many probes were sent since the last frame, and when the newest was sent.
    probes: u32,
    probed_at: Instant,
    /// When the last probe was sent, or the socket opened.
    sent_at: Instant,
    /// How many probes were ever sent, and how many were answered.
    probes_sent: u64,
    probes_acked: u64,
    /// How many answers the last flush probe requires.
    probes_required: u64,
    outputs: std::collections::VecDeque<Output>,
}

#[derive(Debug)]
enum SessionState {
    /// A REST call is in flight.
    Preparing(Preparation),
    Dialling {
        until: Instant,
    },
    /// The socket is open. At `assume_live_at` the session counts as live without a frame.
    Verifying {
        until: Instant,
        assume_live_at: Option<Instant>,
    },
    Live {
        refresh_at: Option<Instant>,
        refresh: Option<Preparation>,
        expiring: bool,
    },
    Closing {
        until: Instant,
    },
    Ended,
}

/// Without frames, probes are sent after these quarters of the silence timeout.
const PROBE_QUARTERS: [u32; 2] = [2, 3];
/// A keepalive probe is sent when nothing was sent for the silence timeout divided by this.
const KEEPALIVE_PART: u32 = 2;

/// The options of a new session.
#[derive(Debug)]
pub struct StartOptions<'a> {
    /// An endpoint that is still usable.
    pub reuse: Option<ProvisionedEndpoint>,
    /// The topics of the previous session.
    pub subscribed: &'a [String],
}

impl Session {
    /// Starts a session under a token.
    pub fn start(
        id: SessionId,
        generation: u64,
        connector: &Connector,
        timeouts: Timeouts,
        options: StartOptions<'_>,
        now: Moment,
    ) -> Self {
        let StartOptions { reuse, subscribed } = options;
        let mut session = Self {
            id,
            generation,
            connector: connector.clone(),
            capabilities: connector.capabilities(),
            timeouts,
            replaces: false,
            state: SessionState::Ended,
            started_at: now.at,
            provisioned: None,
            last_received_at: now.at,
            frame_deadline: None,
            probes: 0,
            probed_at: now.at,
            sent_at: now.at,
            probes_sent: 0,
            probes_acked: 0,
            probes_required: 0,
            outputs: std::collections::VecDeque::new(),
        };
        match reuse {
            Some(provisioned) if provisioned.endpoint.subscribed => session.dial(provisioned, now),
            Some(provisioned) => {
                let (preparation, step) = connector.resume(&provisioned.endpoint, subscribed);
                session.provisioned = Some(provisioned);
                session.take_step(preparation, step, now);
            }
            None => {
                let (preparation, step) = connector.prepare(subscribed);
                session.take_step(preparation, step, now);
            }
        }
        session
    }

    /// Marks the session as the successor of a live session: it becomes live only after a frame has arrived.
    pub fn replacing(mut self) -> Self {
        self.replaces = true;
        self
    }

    /// The session that this one replaces has ended.
    pub fn clear_replaces(&mut self, now: Moment) {
        self.replaces = false;
        let quiet = self.quiet_period();
        if let SessionState::Verifying { assume_live_at: assume_live_at @ None, .. } = &mut self.state {
            *assume_live_at = quiet.map(|wait| now.at + wait);
        }
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The generation of the token of this session.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn provisioned(&self) -> Option<&ProvisionedEndpoint> {
        self.provisioned.as_ref()
    }

    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    /// When the last frame arrived.
    pub fn last_received_at(&self) -> Instant {
        self.last_received_at
    }

    /// Sends a probe whose answer proves that everything before it has arrived. Answers to older probes and heartbeats
    /// do not count as its answer.
    pub fn send_flush_probe(&mut self, now: Moment) {
        self.probe(now);
        self.probes_required = self.probes_sent;
    }

    /// Whether the last flush probe is answered, or none was sent.
    pub fn has_acked_probes(&self) -> bool {
        self.probes_acked >= self.probes_required
    }

    /// Expects no more answers to flush probes. Returns whether one was expected.
    pub fn abandon_probe(&mut self) -> bool {
        let was_expected = !self.has_acked_probes();
        self.probes_required = 0;
        was_expected
    }

    fn probe(&mut self, now: Moment) {
        self.probes_sent += 1;
        self.sent_at = now.at;
        self.outputs.push_back(Output::Probe(self.capabilities.probe.clone()));
    }

    pub fn is_live(&self) -> bool {
        matches!(self.state, SessionState::Live { .. })
    }

    /// Whether the socket is open.
    pub fn is_open(&self) -> bool {
        matches!(self.state, SessionState::Verifying { .. } | SessionState::Live { .. } | SessionState::Closing { .. })
    }

    /// Our close frame was sent. Frames that still arrive count. The silence timeout does not apply any more.
    pub fn close(&mut self, now: Moment) {
        self.state = SessionState::Closing { until: now.at + self.timeouts.close };
    }

    /// Frames are not read because the buffer is full: all timeouts begin again.
    pub fn suspend_timers(&mut self, now: Moment) {
        self.last_received_at = now.at;
        self.probes = 0;
        self.frame_deadline = self.frame_deadline.map(|_| now.at + self.timeouts.frame);
        match &mut self.state {
            SessionState::Verifying { until, .. } => *until = now.at + self.timeouts.connect,
            SessionState::Closing { until } => *until = now.at + self.timeouts.close,
            SessionState::Preparing(_)
            | SessionState::Dialling { .. }
            | SessionState::Live { .. }
            | SessionState::Ended => (),
        }
    }

    pub fn handle(&mut self, input: Input, now: Moment) {
        match input {
            Input::Response(response) => self.on_response(response, now),
            Input::Opened => self.on_opened(now),
            Input::ConnectFailed(failure) | Input::Closed(failure) => self.end(failure),
            Input::PartialFrame => self.frame_deadline = Some(now.at + self.timeouts.frame),
            Input::Frame(frame) => self.on_frame(frame, now),
        }
    }

    pub fn handle_timeout(&mut self, now: Moment) {
        match &self.state {
            SessionState::Preparing(_) | SessionState::Ended => (),
            SessionState::Dialling { until } => {
                if now.at >= *until {
                    self.end(Failure::Unreachable("no connection in time".to_owned()));
                }
            }
            SessionState::Verifying { until, assume_live_at } => {
                if assume_live_at.is_some_and(|at| now.at >= at) {
                    self.on_quiet_period(*until, now);
                } else if now.at >= *until {
                    self.end(Failure::Silent);
                }
            }
            SessionState::Live { .. } => self.check_silence(now),
            SessionState::Closing { until } => {
                if now.at >= *until {
                    self.end(Failure::Closed { code: 1006, reason: "no close frame in time".to_owned() });
                }
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            SessionState::Preparing(_) | SessionState::Ended => None,
            SessionState::Dialling { until } | SessionState::Closing { until } => Some(*until),
            SessionState::Verifying { until, assume_live_at } => {
                Some(assume_live_at.map_or(*until, |at| at.min(*until)))
            }
            SessionState::Live { refresh_at, refresh, expiring } => {
                let expires_at =
                    self.provisioned.as_ref().and_then(|provisioned| provisioned.expires_at).filter(|_| !expiring);
                let refresh_due = refresh_at.filter(|_| refresh.is_none());
                [Some(self.next_check()), self.frame_deadline, expires_at, refresh_due].into_iter().flatten().min()
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn on_response(&mut self, response: Result<RestResponse, String>, now: Moment) {
        match std::mem::replace(&mut self.state, SessionState::Ended) {
            SessionState::Preparing(mut preparation) => {
                let step = next_step(&mut preparation, response);
                self.take_step(preparation, step, now);
            }
            SessionState::Live { refresh_at, refresh: Some(mut preparation), expiring } => {
                let step = next_step(&mut preparation, response);
                self.state = SessionState::Live { refresh_at, refresh: Some(preparation), expiring };
                self.take_refresh_step(step, now);
            }
            state @ (SessionState::Live { .. }
            | SessionState::Dialling { .. }
            | SessionState::Verifying { .. }
            | SessionState::Closing { .. }
            | SessionState::Ended) => self.state = state,
        }
    }

    fn take_step(&mut self, preparation: Preparation, step: PreparationStep, now: Moment) {
        self.state = SessionState::Preparing(preparation);
        match step {
            PreparationStep::Call(request) => self.outputs.push_back(Output::Call(request)),
            PreparationStep::Ready(endpoint) => {
                let expires_at = self.expires_at(now);
                self.dial(ProvisionedEndpoint { endpoint, generation: self.generation, expires_at }, now);
            }
            PreparationStep::Failed(failure) => {
                self.store_spare(now);
                self.end(failure);
            }
        }
    }

    /// Keeps an endpoint that was created but not subscribed for the next attempt.
    fn store_spare(&mut self, now: Moment) {
        let SessionState::Preparing(preparation) = &self.state else { return };
        let expires_at = self.expires_at(now);
        let generation = self.generation;
        self.provisioned =
            preparation.spare().map(|spare| ProvisionedEndpoint { endpoint: spare.clone(), generation, expires_at });
    }

    /// When the endpoint expires. Reuse does not extend its lifetime.
    fn expires_at(&self, now: Moment) -> Option<Instant> {
        let known = self.provisioned.as_ref().and_then(|provisioned| provisioned.expires_at);
        known.or_else(|| self.capabilities.endpoint_lifetime.map(|lifetime| now.at + lifetime))
    }

    fn dial(&mut self, provisioned: ProvisionedEndpoint, now: Moment) {
        self.state = SessionState::Dialling { until: now.at + self.timeouts.connect };
        self.outputs.push_back(Output::Dial(provisioned.endpoint.clone()));
        self.provisioned = Some(provisioned);
    }

    fn on_opened(&mut self, now: Moment) {
        if !matches!(self.state, SessionState::Dialling { .. }) {
            return;
        }
        self.last_received_at = now.at;
        self.sent_at = now.at;
        let until = now.at + self.timeouts.connect;
        let messages = self.capabilities.opening.messages.iter().cloned();
        self.outputs.extend(messages.map(Output::Send));
        let quiet = self.quiet_period().map(|wait| now.at + wait);
        let (probes, assume_live_at) = match self.capabilities.liveness {
            _ if self.needs_acceptance() => (false, None),
            Liveness::Reply => (true, None),
            Liveness::ReplyOrQuietFor(_) => (true, quiet.filter(|_| !self.replaces)),
            Liveness::QuietFor(_) => (false, quiet),
        };
        self.state = SessionState::Verifying { until, assume_live_at };
        if probes {
            self.probe(now);
        }
    }

    /// Nothing arrived in the quiet period, so the session counts as live. A successor sends a probe first.
    fn on_quiet_period(&mut self, until: Instant, now: Moment) {
        if !self.replaces {
            return self.become_live(now);
        }
        self.state = SessionState::Verifying { until, assume_live_at: None };
        self.probe(now);
    }

    /// The session is live only after a frame that accepts the opening exchange.
    fn needs_acceptance(&self) -> bool {
        self.capabilities.opening.verdict == OpeningVerdict::Frame
    }

    /// The time without any frame after which the session is live.
    fn quiet_period(&self) -> Option<Duration> {
        self.capabilities.liveness.quiet_period().filter(|_| !self.needs_acceptance())
    }

    fn become_live(&mut self, now: Moment) {
        let pause = self.provisioned.as_ref().and_then(|provisioned| provisioned.endpoint.refresh_in);
        let refresh_at = self.capabilities.refresh_interval.map(|interval| now.at + pause.unwrap_or(interval));
        self.state = SessionState::Live { refresh_at, refresh: None, expiring: false };
        self.outputs.push_back(Output::Live);
    }

    fn on_frame(&mut self, frame: Frame, now: Moment) {
        if matches!(self.state, SessionState::Ended) {
            return;
        }
        self.last_received_at = now.at;
        self.probes = 0;
        match frame {
            Frame::Text(_) | Frame::Binary(_) => self.frame_deadline = None,
            // A pong may arrive between the parts of a data frame.
            Frame::Pong => (),
        }
        let mut items = Vec::new();
        self.connector.decode(frame, now.wall, &mut items);
        if let Some(notice) = items.iter().find_map(fatal_notice) {
            return self.end(Failure::Notice(notice));
        }
        let is_accepted = !self.needs_acceptance() || items.contains(&Item::Accepted);
        if is_accepted && matches!(self.state, SessionState::Verifying { .. }) {
            self.become_live(now);
        }
        let acks = items.iter().filter(|item| **item == Item::ProbeAck).count() as u64;
        self.probes_acked = self.probes_sent.min(self.probes_acked + acks);
        items.retain(|item| !matches!(item, Item::Heartbeat | Item::ProbeAck | Item::Accepted));
        if !items.is_empty() {
            self.outputs.push_back(Output::Received(items));
        }
    }

    fn check_silence(&mut self, now: Moment) {
        let silence_due = self.silence_probe_at();
        if now.at >= silence_due && self.has_probed_silence() {
            return self.end(Failure::Silent);
        }
        if self.frame_deadline.is_some_and(|by| now.at >= by) {
            return self.end(Failure::Unfinished { within: self.timeouts.frame });
        }
        if now.at >= silence_due {
            self.probes += 1;
            self.probed_at = now.at;
            self.probe(now);
        } else if now.at >= self.keepalive_at() {
            self.probe(now);
        }
        let SessionState::Live { refresh_at, refresh, expiring } = &mut self.state else {
            return;
        };
        let expires_at = self.provisioned.as_ref().and_then(|provisioned| provisioned.expires_at);
        if !*expiring && expires_at.is_some_and(|at| now.at >= at) {
            *expiring = true;
            self.outputs.push_back(Output::EndpointExpiring);
        }
        if refresh.is_none() && refresh_at.is_some_and(|at| now.at >= at) {
            *refresh_at = self.capabilities.refresh_interval.map(|interval| now.at + interval);
            let endpoint = self.provisioned.as_ref().map(|provisioned| &provisioned.endpoint);
            let Some((preparation, step)) = endpoint.map(|endpoint| self.connector.refresh_subscriptions(endpoint))
            else {
                return;
            };
            *refresh = Some(preparation);
            self.take_refresh_step(step, now);
        }
    }

    /// When a probe or the silence timeout is due.
    fn next_check(&self) -> Instant {
        self.silence_probe_at().min(self.keepalive_at())
    }

    /// When the next silence probe or the silence timeout is due. A probe has a quarter of the timeout for its answer,
    /// even if it was sent late because the process was suspended.
    fn silence_probe_at(&self) -> Instant {
        let quarters = PROBE_QUARTERS.get(self.probes as usize).copied().unwrap_or(4);
        let due = self.last_received_at + self.timeouts.silence * quarters / 4;
        if self.probes == 0 { due } else { due.max(self.probed_at + self.timeouts.silence / 4) }
    }

    /// Whether all silence probes were sent.
    fn has_probed_silence(&self) -> bool {
        self.probes as usize >= PROBE_QUARTERS.len()
    }

    /// When a keepalive probe is due: a platform may close the connection of a client that sends nothing.
    fn keepalive_at(&self) -> Instant {
        self.sent_at + self.timeouts.silence / KEEPALIVE_PART
    }

    /// A failed refresh of subscriptions does not affect the live session. The next refresh tries again.
    fn take_refresh_step(&mut self, step: PreparationStep, now: Moment) {
        let SessionState::Live { refresh, refresh_at, .. } = &mut self.state else { return };
        match step {
            PreparationStep::Call(request) => self.outputs.push_back(Output::Call(request)),
            PreparationStep::Failed(_) => *refresh = None,
            PreparationStep::Ready(endpoint) => {
                *refresh = None;
                *refresh_at = endpoint.refresh_in.map(|pause| now.at + pause).or(*refresh_at);
                let Some(provisioned) =
                    self.provisioned.as_mut().filter(|provisioned| provisioned.endpoint != endpoint)
                else {
                    return;
                };
                provisioned.endpoint = endpoint.clone();
                self.outputs.push_back(Output::EndpointChanged(endpoint));
            }
        }
    }

    fn end(&mut self, failure: Failure) {
        if !matches!(self.state, SessionState::Ended) {
            self.state = SessionState::Ended;
            self.outputs.push_back(Output::Ended(failure));
        }
    }
}

fn next_step(preparation: &mut Preparation, response: Result<RestResponse, String>) -> PreparationStep {
    match response {
        Ok(response) => preparation.on_response(&response),
        Err(why) => preparation.on_no_response(why),
    }
}

/// A notice that ends the session.
fn fatal_notice(item: &Item) -> Option<Notice> {
    match item {
        Item::Notice(
            notice @ (Notice::TokenInvalid | Notice::EndpointGone | Notice::Displaced | Notice::OpeningRefused),
        ) => Some(notice.clone()),
        Item::Notice(Notice::Closing | Notice::TokenRevoked)
        | Item::Event(_)
        | Item::Heartbeat
        | Item::ProbeAck
        | Item::Accepted
        | Item::Undecoded(_) => None,
    }
}

/// The address of the socket, and where the token is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub url: String,
    pub credential: Credential,
}
