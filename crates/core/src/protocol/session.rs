//! One session: one connection, from its endpoint to its close handshake.
//!
//! Prepare the endpoint → dial → verify → live → close. A session decodes frames and checks that the platform is alive.
//! It does not look into events.

mod flush_probes;
mod messages;
mod silence;
mod state;
mod subscription_refresh;
mod verification;

pub use self::messages::{Dial, Input, Output, ProvisionedEndpoint, SessionId, StartOptions, Timeouts};

use std::{collections::VecDeque, time::Instant};

use self::{
    flush_probes::FlushProbes, silence::SilenceWatch, state::SessionState, subscription_refresh::SubscriptionRefresh,
    verification::Verification,
};
use super::Moment;
use crate::connector::{
    Capabilities, Connector, Endpoint, Failure, Frame, Item, Notice, Preparation, PreparationStep, RestResponse,
};

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
    silence: SilenceWatch,
    flush_probes: FlushProbes,
    outputs: VecDeque<Output>,
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
            silence: SilenceWatch::new(timeouts, now.at),
            flush_probes: FlushProbes::default(),
            outputs: VecDeque::new(),
        };
        match reuse {
            Some(provisioned) if provisioned.endpoint.subscribed => session.dial(provisioned, now),
            Some(provisioned) => {
                let preparation = connector.resume(&provisioned.endpoint, subscribed);
                session.provisioned = Some(provisioned);
                session.prepare(preparation, now);
            }
            None => session.prepare(connector.prepare(subscribed), now),
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
        let quiet = Verification::of(&self.capabilities, false).quiet_period;
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
        self.silence.last_received_at()
    }

    /// Sends a probe whose answer proves that everything before it has arrived. Answers to older probes and heartbeats
    /// do not count as its answer.
    pub fn send_flush_probe(&mut self, now: Moment) {
        self.probe(now);
        self.flush_probes.require_ack();
    }

    /// Whether the last flush probe is answered, or none was sent.
    pub fn has_acked_probes(&self) -> bool {
        self.flush_probes.has_acked()
    }

    /// Expects no more answers to flush probes. Returns whether one was expected.
    pub fn abandon_probe(&mut self) -> bool {
        self.flush_probes.abandon()
    }

    fn probe(&mut self, now: Moment) {
        self.flush_probes.on_sent();
        self.silence.on_sent(now.at);
        self.outputs.push_back(Output::Probe(self.capabilities.probe.clone()));
    }

    pub fn is_live(&self) -> bool {
        matches!(self.state, SessionState::Live { .. })
    }

    /// Whether the socket is open.
    pub fn is_open(&self) -> bool {
        self.state.is_open()
    }

    /// Our close frame was sent. Frames that still arrive count. The silence timeout does not apply any more.
    pub fn close(&mut self, now: Moment) {
        self.state = SessionState::Closing { until: now.at + self.timeouts.close };
    }

    /// Frames are not read because the buffer is full: all timeouts begin again.
    pub fn suspend_timers(&mut self, now: Moment) {
        self.silence.suspend(now.at);
        self.state.suspend(&self.timeouts, now.at);
    }

    pub fn handle(&mut self, input: Input, now: Moment) {
        match input {
            Input::Response(response) => self.on_response(response, now),
            Input::Opened => self.on_opened(now),
            Input::ConnectFailed(failure) | Input::Closed(failure) => self.end(failure),
            Input::PartialFrame => self.silence.on_partial_frame(now.at),
            Input::Frame(frame) => self.on_frame(frame, now),
        }
    }

    pub fn handle_timeout(&mut self, now: Moment) {
        if let SessionState::Verifying { until, assume_live_at: Some(at) } = self.state
            && now.at >= at
        {
            return self.on_quiet_period(until, now);
        }
        if self.is_live() {
            return self.check_live(now);
        }
        if let Some(failure) = self.state.timeout_failure(now.at) {
            self.end(failure);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.state.deadline();
        let SessionState::Live { expiring, .. } = self.state else { return deadline };
        let expires_at = self.endpoint_expires_at().filter(|_| !expiring);
        [Some(self.silence.deadline()), expires_at, deadline].into_iter().flatten().min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn on_response(&mut self, response: Result<RestResponse, String>, now: Moment) {
        match &mut self.state {
            SessionState::Preparing(preparation) => {
                let step = next_step(preparation, response);
                self.take_step(step, now);
            }
            SessionState::Live { refresh, .. } => {
                if let Some(preparation) = refresh.in_flight() {
                    let step = next_step(preparation, response);
                    self.take_refresh_step(step, now);
                }
            }
            SessionState::Dialling { .. }
            | SessionState::Verifying { .. }
            | SessionState::Closing { .. }
            | SessionState::Ended => (),
        }
    }

    fn prepare(&mut self, (preparation, step): (Preparation, PreparationStep), now: Moment) {
        self.state = SessionState::Preparing(preparation);
        self.take_step(step, now);
    }

    fn take_step(&mut self, step: PreparationStep, now: Moment) {
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
        self.endpoint_expires_at().or_else(|| self.capabilities.endpoint_lifetime.map(|lifetime| now.at + lifetime))
    }

    fn endpoint_expires_at(&self) -> Option<Instant> {
        self.provisioned.as_ref()?.expires_at
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
        self.silence.on_opened(now.at);
        let until = now.at + self.timeouts.connect;
        let messages = self.capabilities.opening.messages.iter().cloned();
        self.outputs.extend(messages.map(Output::Send));
        let Verification { sends_probe, quiet_period, .. } = Verification::of(&self.capabilities, self.replaces);
        self.state = SessionState::Verifying { until, assume_live_at: quiet_period.map(|wait| now.at + wait) };
        if sends_probe {
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

    fn become_live(&mut self, now: Moment) {
        let endpoint = self.provisioned.as_ref().map(|provisioned| &provisioned.endpoint);
        let refresh = SubscriptionRefresh::new(self.capabilities.refresh_interval, endpoint, now.at);
        self.state = SessionState::Live { refresh, expiring: false };
        self.outputs.push_back(Output::Live);
    }

    fn on_frame(&mut self, frame: Frame, now: Moment) {
        if matches!(self.state, SessionState::Ended) {
            return;
        }
        self.silence.on_frame(&frame, now.at);
        let mut items = Vec::new();
        self.connector.decode(frame, now.wall, &mut items);
        if let Some(notice) = items.iter().find_map(fatal_notice) {
            return self.end(Failure::Notice(notice));
        }
        if matches!(self.state, SessionState::Verifying { .. }) {
            let needs_acceptance = Verification::of(&self.capabilities, self.replaces).needs_acceptance;
            if !needs_acceptance || items.contains(&Item::Accepted) {
                self.become_live(now);
            }
        }
        let acks = items.iter().filter(|item| **item == Item::ProbeAck).count() as u64;
        self.flush_probes.on_acked(acks);
        items.retain(|item| !matches!(item, Item::Heartbeat | Item::ProbeAck | Item::Accepted));
        if !items.is_empty() {
            self.outputs.push_back(Output::Received(items));
        }
    }

    fn check_live(&mut self, now: Moment) {
        match self.silence.check(now.at) {
            Err(failure) => return self.end(failure),
            Ok(true) => self.probe(now),
            Ok(false) => (),
        }
        let expires_at = self.endpoint_expires_at();
        let SessionState::Live { refresh, expiring } = &mut self.state else { return };
        if !*expiring && expires_at.is_some_and(|at| now.at >= at) {
            *expiring = true;
            self.outputs.push_back(Output::EndpointExpiring);
        }
        if let Some(provisioned) = &self.provisioned
            && refresh.deadline().is_some_and(|at| now.at >= at)
        {
            let step = refresh.start(&self.connector, &provisioned.endpoint, now.at);
            self.take_refresh_step(step, now);
        }
    }

    fn take_refresh_step(&mut self, step: PreparationStep, now: Moment) {
        let SessionState::Live { refresh, .. } = &mut self.state else { return };
        refresh.record(&step, now.at);
        match step {
            PreparationStep::Call(request) => self.outputs.push_back(Output::Call(request)),
            PreparationStep::Failed(_) => (),
            PreparationStep::Ready(endpoint) => self.change_endpoint(endpoint),
        }
    }

    fn change_endpoint(&mut self, endpoint: Endpoint) {
        let changed = self.provisioned.as_mut().filter(|provisioned| provisioned.endpoint != endpoint);
        if let Some(provisioned) = changed {
            provisioned.endpoint = endpoint.clone();
            self.outputs.push_back(Output::EndpointChanged(endpoint));
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
        | Item::Position(_)
        | Item::Heartbeat
        | Item::ProbeAck
        | Item::Accepted
        | Item::Undecoded(_) => None,
    }
}
