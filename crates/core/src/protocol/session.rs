//! One session: the conversation on one connection, from its endpoint to its farewell.
//!
//! Acquire the endpoint → connect → prove → live → leave. It decodes frames and watches over silence; what the events
//! mean for the stream is the stream's business.

use std::time::{Duration, Instant};

use super::Moment;
use crate::connector::{
    Capabilities, Connector, Credential, Endpoint, Failure, Frame, Item, Liveness, Notice, OpeningMessage,
    OpeningVerdict, Preparation, PreparationStep, Probe, RestRequest, RestResponse,
};

/// Names a session within its stream, in the order in which they began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// How long the steps of a session may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From dialling until the socket is open, and again until it is proved.
    pub connect: Duration,
    /// The platform must be heard at least once in this time.
    pub silence: Duration,
    /// A frame must be whole so long after its first bytes.
    pub frame: Duration,
    /// After our farewell the platform may still finish what it was saying for this long.
    pub close: Duration,
}

/// What a session is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The answer to its REST call, or why there is none.
    Response(Result<RestResponse, String>),
    /// The socket is open.
    Opened,
    /// The socket could not be opened.
    ConnectFailed(Failure),
    /// A frame has begun that is not whole yet.
    PartialFrame,
    Frame(Frame),
    /// The socket is gone.
    Closed(Failure),
}

/// What a session wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Call(RestRequest),
    /// Open the endpoint's socket (the stream adds the position to its URL).
    Dial(Endpoint),
    /// Send a message of the opening exchange, with the token where it says.
    Send(OpeningMessage),
    Probe(Probe),
    /// It is live: events come by it from here on.
    Live,
    Received(Vec<Item>),
    /// The endpoint changed while live: other topics are subscribed or refused.
    EndpointChanged(Endpoint),
    /// The endpoint's life is nearly over.
    EndpointExpiring,
    /// It is over. The socket, if there still is one, is to be dropped.
    Ended(Failure),
}

/// An endpoint, and how long it may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionedEndpoint {
    pub endpoint: Endpoint,
    /// Which token made it.
    pub generation: u64,
    /// When it has to be replaced.
    pub expires_at: Option<Instant>,
}

/// One conversation.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    generation: u64,
    connector: Connector,
    capabilities: Capabilities,
    timeouts: Timeouts,
    /// It replaces a live session: it is not believed before it is heard.
    replaces: bool,
    state: SessionState,
    started_at: Instant,
    provisioned: Option<ProvisionedEndpoint>,
    last_received_at: Instant,
    /// When the frame that has begun must be whole.
    frame_deadline: Option<Instant>,
    /// How many probes went out since the platform was last heard, and when the newest did.
    probes: u32,
    probed_at: Instant,
    /// When we last sent anything.
    sent_at: Instant,
    /// How many probes ever went out, and how many were answered.
    probes_sent: u64,
    probes_acked: u64,
    /// So many have to be answered by now.
    probes_required: u64,
    outputs: std::collections::VecDeque<Output>,
}

#[derive(Debug)]
enum SessionState {
    /// A REST call is under way.
    Preparing(Preparation),
    Dialling {
        until: Instant,
    },
    /// Open, and not yet believed. `lives_at`: believed then, if nothing speaks against it.
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

/// Probes go out at these parts of the window of silence.
const PROBE_QUARTERS: [u32; 2] = [2, 3];
/// A probe goes out, whatever is heard, when nothing was sent for this part of the window.
const KEEPALIVE_PART: u32 = 2;

/// What a session begins with.
#[derive(Debug)]
pub struct StartOptions<'a> {
    /// An endpoint that is still good.
    pub reuse: Option<ProvisionedEndpoint>,
    /// The topics of the session before it.
    pub subscribed: &'a [String],
}

impl Session {
    /// Begins a session under a token.
    pub fn start(
        id: SessionId,
        generation: u64,
        connector: &Connector,
        timeouts: Timeouts,
        wanted: StartOptions<'_>,
        now: Moment,
    ) -> Self {
        let StartOptions { reuse, subscribed } = wanted;
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

    /// The same for one that replaces a live session: that one is left only when the platform was heard on this one.
    pub fn replacing(mut self) -> Self {
        self.replaces = true;
        self
    }

    /// The session that it was to replace is gone.
    pub fn clear_replaces(&mut self, now: Moment) {
        self.replaces = false;
        let quiet = self.quiet_period();
        if let SessionState::Verifying { assume_live_at: lives_at @ None, .. } = &mut self.state {
            *lives_at = quiet.map(|wait| now.at + wait);
        }
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The token that this session was begun with.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn provisioned(&self) -> Option<&ProvisionedEndpoint> {
        self.provisioned.as_ref()
    }

    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    /// When the platform was last heard on it.
    pub fn last_received_at(&self) -> Instant {
        self.last_received_at
    }

    /// Asks the platform whether it lives. What it sent before its answer is heard before it. Answers to older probes
    /// may be on their way, and a heartbeat: neither is taken for this one.
    pub fn send_flush_probe(&mut self, now: Moment) {
        self.probe(now);
        self.probes_required = self.probes_sent;
    }

    /// Whether nothing that it was asked is unanswered.
    pub fn has_acked_probes(&self) -> bool {
        self.probes_acked >= self.probes_required
    }

    /// No answer is expected any longer. Whether one was.
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

    /// Whether there is a socket to say farewell on.
    pub fn is_open(&self) -> bool {
        matches!(self.state, SessionState::Verifying { .. } | SessionState::Live { .. } | SessionState::Closing { .. })
    }

    /// Our farewell is said: what still arrives is heard, silence is no longer watched.
    pub fn close(&mut self, now: Moment) {
        self.state = SessionState::Closing { until: now.at + self.timeouts.close };
    }

    /// Frames are left unread for our own reasons: silence is not the platform's fault, and no answer or frame late.
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
            Input::Response(answer) => self.on_response(answer, now),
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
            SessionState::Verifying { until, assume_live_at: lives_at } => {
                if lives_at.is_some_and(|at| now.at >= at) {
                    self.on_quiet_period(*until, now);
                } else if now.at >= *until {
                    self.end(Failure::Silent);
                }
            }
            SessionState::Live { .. } => self.check_silence(now),
            SessionState::Closing { until } => {
                if now.at >= *until {
                    self.end(Failure::Closed { code: 1006, reason: "no farewell in time".to_owned() });
                }
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            SessionState::Preparing(_) | SessionState::Ended => None,
            SessionState::Dialling { until } | SessionState::Closing { until } => Some(*until),
            SessionState::Verifying { until, assume_live_at: lives_at } => {
                Some(lives_at.map_or(*until, |at| at.min(*until)))
            }
            SessionState::Live { refresh_at: tend_at, refresh: tending, expiring: aged } => {
                let ends = self.provisioned.as_ref().and_then(|provisioned| provisioned.expires_at).filter(|_| !aged);
                let tend = tend_at.filter(|_| tending.is_none());
                [Some(self.next_check()), self.frame_deadline, ends, tend].into_iter().flatten().min()
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn on_response(&mut self, answer: Result<RestResponse, String>, now: Moment) {
        match std::mem::replace(&mut self.state, SessionState::Ended) {
            SessionState::Preparing(mut preparation) => {
                let step = next_step(&mut preparation, answer);
                self.take_step(preparation, step, now);
            }
            SessionState::Live { refresh_at: tend_at, refresh: Some(mut preparation), expiring: aged } => {
                let step = next_step(&mut preparation, answer);
                self.state = SessionState::Live { refresh_at: tend_at, refresh: Some(preparation), expiring: aged };
                self.take_refresh_step(step, now);
            }
            stage @ (SessionState::Live { .. }
            | SessionState::Dialling { .. }
            | SessionState::Verifying { .. }
            | SessionState::Closing { .. }
            | SessionState::Ended) => self.state = stage,
        }
    }

    fn take_step(&mut self, preparation: Preparation, step: PreparationStep, now: Moment) {
        self.state = SessionState::Preparing(preparation);
        match step {
            PreparationStep::Call(request) => self.outputs.push_back(Output::Call(request)),
            PreparationStep::Ready(endpoint) => {
                let ends = self.expires_at(now);
                self.dial(ProvisionedEndpoint { endpoint, generation: self.generation, expires_at: ends }, now);
            }
            PreparationStep::Failed(failure) => {
                self.store_spare(now);
                self.end(failure);
            }
        }
    }

    /// An endpoint that was made and could not be subscribed is there for the next attempt.
    fn store_spare(&mut self, now: Moment) {
        let SessionState::Preparing(preparation) = &self.state else { return };
        let ends = self.expires_at(now);
        let generation = self.generation;
        self.provisioned = preparation.spare().map(|spare| ProvisionedEndpoint {
            endpoint: spare.clone(),
            generation,
            expires_at: ends,
        });
    }

    /// One that was made before lives no longer for being gone on with.
    fn expires_at(&self, now: Moment) -> Option<Instant> {
        let known = self.provisioned.as_ref().and_then(|provisioned| provisioned.expires_at);
        known.or_else(|| self.capabilities.endpoint_lifetime.map(|life| now.at + life))
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
        let (probes, lives_at) = match self.capabilities.liveness {
            _ if self.needs_acceptance() => (false, None),
            Liveness::Reply => (true, None),
            Liveness::ReplyOrQuietFor(_) => (true, quiet.filter(|_| !self.replaces)),
            Liveness::QuietFor(_) => (false, quiet),
        };
        self.state = SessionState::Verifying { until, assume_live_at: lives_at };
        if probes {
            self.probe(now);
        }
    }

    /// Nothing was said that speaks against it. Where another session serves that is not enough.
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
        let tend_at = self.capabilities.refresh_interval.map(|interval| now.at + pause.unwrap_or(interval));
        self.state = SessionState::Live { refresh_at: tend_at, refresh: None, expiring: false };
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
            // It may stand between the parts of another.
            Frame::Pong => (),
        }
        let mut items = Vec::new();
        self.connector.decode(frame, now.wall, &mut items);
        if let Some(refusal) = items.iter().find_map(fatal_notice) {
            return self.end(Failure::Notice(refusal));
        }
        let is_accepted = !self.needs_acceptance() || items.contains(&Item::Accepted);
        if is_accepted && matches!(self.state, SessionState::Verifying { .. }) {
            self.become_live(now);
        }
        let answers = items.iter().filter(|item| **item == Item::ProbeAck).count() as u64;
        self.probes_acked = self.probes_sent.min(self.probes_acked + answers);
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
        let SessionState::Live { refresh_at: tend_at, refresh: tending, expiring: aged } = &mut self.state else {
            return;
        };
        let ends = self.provisioned.as_ref().and_then(|provisioned| provisioned.expires_at);
        if !*aged && ends.is_some_and(|ends| now.at >= ends) {
            *aged = true;
            self.outputs.push_back(Output::EndpointExpiring);
        }
        if tending.is_none() && tend_at.is_some_and(|at| now.at >= at) {
            *tend_at = self.capabilities.refresh_interval.map(|interval| now.at + interval);
            let endpoint = self.provisioned.as_ref().map(|provisioned| &provisioned.endpoint);
            let Some((preparation, step)) = endpoint.map(|endpoint| self.connector.refresh_subscriptions(endpoint))
            else {
                return;
            };
            *tending = Some(preparation);
            self.take_refresh_step(step, now);
        }
    }

    /// When something is to be done about what is not heard, or not sent.
    fn next_check(&self) -> Instant {
        self.silence_probe_at().min(self.keepalive_at())
    }

    /// When the next probe is due because of silence, or the window of silence ends. A probe has a quarter of the window
    /// for its answer, also when it went out late because this process was stopped.
    fn silence_probe_at(&self) -> Instant {
        let quarters = PROBE_QUARTERS.get(self.probes as usize).copied().unwrap_or(4);
        let due = self.last_received_at + self.timeouts.silence * quarters / 4;
        if self.probes == 0 { due } else { due.max(self.probed_at + self.timeouts.silence / 4) }
    }

    /// Whether every probe of the window went out.
    fn has_probed_silence(&self) -> bool {
        self.probes as usize >= PROBE_QUARTERS.len()
    }

    /// When a probe is due because nothing was sent: a platform that speaks all the time may still close a client that
    /// does not.
    fn keepalive_at(&self) -> Instant {
        self.sent_at + self.timeouts.silence / KEEPALIVE_PART
    }

    /// Tending never harms a live session: what fails is tried again at the next turn.
    fn take_refresh_step(&mut self, step: PreparationStep, now: Moment) {
        let SessionState::Live { refresh: tending, refresh_at: tend_at, .. } = &mut self.state else { return };
        match step {
            PreparationStep::Call(request) => self.outputs.push_back(Output::Call(request)),
            PreparationStep::Failed(_) => *tending = None,
            PreparationStep::Ready(endpoint) => {
                *tending = None;
                *tend_at = endpoint.refresh_in.map(|pause| now.at + pause).or(*tend_at);
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

fn next_step(preparation: &mut Preparation, answer: Result<RestResponse, String>) -> PreparationStep {
    match answer {
        Ok(answer) => preparation.on_response(&answer),
        Err(why) => preparation.on_no_response(why),
    }
}

/// A notice after which nothing more comes by this session.
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

/// Where the socket is, and where the token goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    pub url: String,
    pub credential: Credential,
}
