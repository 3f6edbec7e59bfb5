//! One stream: the coordinator of its connection side and its data path.
//!
//! `Link` keeps sessions, `Role` stores what they receive. Neither uses the other: this machine passes the outputs
//! of one to the other, in order.

mod bad_frames;
mod buffer;
mod dedup;
mod flush;
mod intake;
mod last_received;
mod link;
mod messages;
mod owner;
mod ownership;
mod recovery;
mod reporter;
mod role;
mod sequencer;
mod settings;
mod splice;
mod standby;
mod takeover;
#[cfg(test)]
mod tests;

pub use self::{
    messages::{CallId, Input, LogHead, Output, StreamReport, StreamState, TopicCoverage, Trigger},
    settings::Settings,
};
pub use crate::model::{OverflowPolicy, Rotation};

use std::time::Instant;

use self::{
    bad_frames::BadFrames,
    flush::Flush,
    intake::IntakeOutcome,
    last_received::LastReceived,
    link::{BadFrame, DialRequest, Link, LinkOutput, Notices},
    messages::ValidatedHead,
    owner::Owner,
    recovery::SnapshotOutcome,
    reporter::{Reported, Reporter},
    role::Role,
    standby::{Standby, StandbyBuffer},
};
use super::{
    Moment,
    session::{self, Dial, SessionId},
};
use crate::{
    connector::{Capabilities, Item, RestResponse, Resume},
    model::{Checkpoint, FeedId, Gap, GapReason, Position},
};

/// The machine of one stream.
#[derive(Debug)]
pub struct Stream {
    settings: Settings,
    capabilities: Capabilities,
    link: Link,
    role: Role,
    last_received: LastReceived,
    bad_frames: BadFrames,
    draining: bool,
    reporter: Reporter,
}

impl Stream {
    /// A stream that owns its log and continues at its head. It waits for a token.
    pub fn new(settings: Settings, head: LogHead, now: Moment) -> Self {
        let capabilities = settings.connector.capabilities();
        let validated = head.validated_for(settings.feed, capabilities.resume);
        let owner = Owner::new(&settings, &capabilities, validated.head.position(), now);
        let mut stream = Self::with_role(settings, Role::Owner(Box::new(owner)), now);
        stream.last_received = LastReceived::restored(&validated.head, now);
        if validated.head.damaged {
            stream.mark_gap(Gap::unknown(GapReason::Store), now);
        }
        stream.apply_head(&validated);
        stream
    }

    /// A stream whose log belongs to another replica. It keeps sessions and the newest events, and appends nothing
    /// until [`Input::BecomeOwner`].
    pub fn standby(settings: Settings, now: Moment) -> Self {
        let buffer = StandbyBuffer::new(settings.buffer, settings.buffer_bytes);
        Self::with_role(settings, Role::Standby(Box::new(Standby::new(buffer))), now)
    }

    fn with_role(settings: Settings, role: Role, now: Moment) -> Self {
        Self {
            capabilities: settings.connector.capabilities(),
            link: Link::new(settings.clone()),
            settings,
            role,
            last_received: LastReceived::restored(&LogHead::default(), now),
            bad_frames: BadFrames::default(),
            draining: false,
            reporter: Reporter::new(),
        }
    }

    pub fn handle(&mut self, input: Input, now: Moment) {
        match input {
            Input::Token(generation) => self.link.on_token(generation, now),
            Input::Response { call: CallId::Session(id), response } => {
                self.link.handle(id, session::Input::Response(response), now);
            }
            Input::Response { call: CallId::Snapshot(call), response } => {
                self.on_snapshot_response(call, response, now);
            }
            Input::Opened(id) => self.link.handle(id, session::Input::Opened, now),
            Input::ConnectFailed { session, failure } => {
                self.link.handle(session, session::Input::ConnectFailed(failure), now);
            }
            Input::PartialFrame(id) => self.link.handle(id, session::Input::PartialFrame, now),
            Input::Frame { session, frame } => {
                self.link.handle(session, session::Input::Frame(frame), now);
                // A new session measures the silence before this frame, so this frame counts after it.
                self.route(now);
                self.last_received = LastReceived::new(now);
            }
            Input::Closed { session, failure } => self.link.handle(session, session::Input::Closed(failure), now),
            Input::Appended(last) => {
                self.suspend_timers_under_backpressure(now);
                if let Some(owner) = self.role.as_owner_mut() {
                    owner.on_appended(last);
                }
            }
            Input::Rotate => self.link.rotate(self.draining, now),
            Input::Pause => self.link.pause(now),
            Input::Resume if self.draining => (),
            Input::Resume => self.link.resume(now),
            Input::Drain => self.drain(now),
            Input::Follow(position) => self.follow(position),
            Input::BecomeOwner { head, stored, covered } => self.take_ownership(head, stored, covered, now),
            Input::Flush => {
                if let Some(owner) = self.role.as_owner_mut() {
                    owner.flush = Flush::Requested;
                }
            }
            Input::Release => self.release(now),
        }
        self.settle(now);
    }

    pub fn handle_timeout(&mut self, now: Moment) {
        self.suspend_timers_under_backpressure(now);
        self.link.handle_timeout(now);
        self.route(now);
        if let Some(owner) = self.role.as_owner_mut() {
            let outcome = owner.intake.handle_timeout(now);
            self.report_intake(outcome, now);
        }
        self.settle(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = self.link.poll_timeout();
        let stable = self.link.stable_at().filter(|_| self.reporter.is_breaker_open());
        let intake = self.role.as_owner().and_then(|owner| owner.intake.poll_timeout());
        [link, stable, self.checkpoint_due(), intake].into_iter().flatten().min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.reporter.pop()
    }

    /// Whether the shell should read frames. If not, they stay in the socket until the log has caught up.
    pub fn wants_frames(&self) -> bool {
        !self.role.as_owner().is_some_and(Owner::applies_backpressure)
    }

    /// Whether a session is live.
    pub fn is_ready(&self) -> bool {
        self.link.is_live()
    }

    /// Whether a session is live without some of the configured topics.
    pub fn is_degraded(&self) -> bool {
        self.link.is_degraded()
    }

    /// How many events a standby has in its buffer.
    pub fn standby_len(&self) -> usize {
        self.role.as_standby().map_or(0, |standby| standby.buffer.len())
    }

    /// Whether a standby compares its buffer with the newest entries of the log when it becomes the owner.
    pub fn compares_with_log(&self) -> bool {
        self.capabilities.resume != Resume::Sequence
    }

    /// The feed that the stream reads.
    pub fn feed(&self) -> FeedId {
        self.settings.feed
    }

    /// The position of the last event, or of the log that a standby follows.
    pub fn position(&self) -> Option<Position> {
        self.role.position()
    }

    /// How many events are received and not durable yet.
    pub fn buffered(&self) -> usize {
        self.role.as_owner().map_or(0, Owner::buffered)
    }

    /// Whether the log has a gap whose snapshot is still missing, while events do not wait for it.
    pub fn snapshot_pending(&self) -> bool {
        self.role.as_owner().is_some_and(|owner| owner.intake.recovery.snapshot_pending())
    }

    /// When this process last received a frame.
    pub fn last_received_at(&self) -> Option<Instant> {
        self.last_received.at()
    }

    /// Why an operator's command would have no effect now. None if it has an effect, or if its effect is there already.
    pub fn objection(&self, command: &Input) -> Option<&'static str> {
        self.link.objection(command, self.draining)
    }

    /// Handles the outputs of the link.
    fn route(&mut self, now: Moment) {
        while let Some(output) = self.link.poll_output() {
            match output {
                LinkOutput::Emit(output) => self.reporter.push(output),
                LinkOutput::Dial(request) => self.dial(request),
                LinkOutput::Received { session, items } => self.on_items(session, items, now),
                LinkOutput::Starting => {
                    if self.role.as_owner().is_some() {
                        self.abandon_if_too_old(now);
                    }
                }
                LinkOutput::Connected(session) => self.on_connected(session, now),
                LinkOutput::BadFrame { frame, was_live } => self.on_bad_frame(frame, was_live, now),
                LinkOutput::Path(input) => {
                    let outcome = self.role.on_path_input(input, now);
                    self.report_intake(outcome, now);
                }
            }
        }
    }

    fn dial(&mut self, request: DialRequest) {
        let DialRequest { session, generation, endpoint, with_position } = request;
        let position = self.role.resume().filter(|_| with_position);
        self.link.on_dialled(session, position.is_some());
        self.role.record_resume(session, position.as_ref());
        let url = self.settings.connector.url(&endpoint, position.as_ref());
        let dial = Dial { url, credential: endpoint.credential };
        self.reporter.push(Output::Dial { session, generation, dial });
        if self.capabilities.resume != Resume::None {
            self.reporter.report(StreamReport::Resuming(position));
        }
    }

    fn on_items(&mut self, session: SessionId, items: Vec<Item>, now: Moment) {
        let notices = Notices::of(&items);
        let outcome = self.role.accept_items(items, session, now);
        self.report_intake(outcome, now);
        self.link.on_notices(session, notices, now);
    }

    /// A position that is older than the platform's retention is abandoned: the platform would not report the gap.
    fn abandon_if_too_old(&mut self, now: Moment) {
        if self.role.resume().is_some() && self.last_received.silence(now) > self.settings.retention {
            self.role.abandon_position(GapReason::Retention);
        }
    }

    fn on_connected(&mut self, session: SessionId, now: Moment) {
        let silence = self.last_received.silence(now);
        self.last_received = LastReceived::new(now);
        match &mut self.role {
            Role::Owner(owner) => {
                if let Some(gap) = owner.intake.mark_connected(silence, now) {
                    self.mark_gap(gap, now);
                }
            }
            Role::Standby(standby) => standby.buffer.start_at(session),
            Role::Released => (),
        }
    }

    fn on_bad_frame(&mut self, frame: BadFrame, was_live: bool, now: Moment) {
        let position = self.role.position();
        if frame == BadFrame::Oversize && !was_live && position.is_none() {
            self.mark_gap(Gap::unknown(GapReason::Oversize), now);
        }
        if let Some(reason) = self.bad_frames.record(frame, position) {
            self.role.abandon_position(reason);
        }
    }

    fn on_snapshot_response(&mut self, call: u64, response: Result<RestResponse, String>, now: Moment) {
        let Some(owner) = self.role.as_owner_mut() else { return };
        let recovery = &mut owner.intake.recovery;
        match recovery.on_response(call, response, &self.settings.connector, now.at, now.random) {
            SnapshotOutcome::Pending => (),
            SnapshotOutcome::Complete => self.reporter.report(StreamReport::Snapshot(Ok(()))),
            SnapshotOutcome::Failed(why) => self.reporter.report(StreamReport::Snapshot(Err(why))),
        }
    }

    /// While frames are not read because the buffer is full, no timer may expire.
    fn suspend_timers_under_backpressure(&mut self, now: Moment) {
        let Some(owner) = self.role.as_owner_mut().filter(|owner| owner.applies_backpressure()) else { return };
        owner.intake.suspend_timers(now);
        self.link.suspend_timers(now);
    }

    /// What follows from every input: releases what waits, appends what can be appended, and reports a changed state.
    fn settle(&mut self, now: Moment) {
        self.route(now);
        self.release_successor(now);
        if let Some(owner) = self.role.as_owner_mut().filter(|owner| owner.must_end_refetch()) {
            let outcome = owner.intake.end_refetch(now);
            self.report_intake(outcome, now);
        }
        self.release_recovered(now);
        self.flush(now);
        self.append(now);
        self.report_state(now);
        if self.draining && self.link.is_idle() && self.role.as_owner().is_none_or(Owner::is_idle) {
            self.draining = false;
            self.link.finish_drain();
            self.reporter.push(Output::Drained);
        }
    }

    /// Stores what a successor brought as soon as the old session has answered its probe or is gone, or when the buffer
    /// for it is full.
    fn release_successor(&mut self, now: Moment) {
        let Role::Owner(owner) = &mut self.role else { return };
        if !owner.intake.uses_dedup() {
            return;
        }
        let mut outcome = IntakeOutcome::default();
        if owner.intake.is_full_of_successor()
            && let Some(gap) = self.link.abandon_probes(now)
        {
            outcome = owner.mark_unflushed(gap, now);
        }
        if self.link.has_acked_probes() {
            owner.intake.release_held(now, &mut outcome);
        }
        self.report_intake(outcome, now);
    }

    fn release_recovered(&mut self, now: Moment) {
        let Role::Owner(owner) = &mut self.role else { return };
        let shed = owner.intake.release(now);
        let call = owner.intake.recovery.next_call();
        self.reporter.report_shed(shed);
        if let Some((call, request)) = call {
            let call = CallId::Snapshot(call);
            self.reporter.push(Output::Call { call, generation: self.link.newest_token(), request });
        }
    }

    fn flush(&mut self, now: Moment) {
        while let Role::Owner(owner) = &mut self.role {
            let is_appending = owner.is_appending();
            let is_resumable = owner.is_resumable(self.capabilities.resume);
            let next = owner.flush.next(&owner.intake, is_appending, is_resumable, &mut self.link, now);
            let Some(next) = next else { return };
            owner.flush = next;
            self.route(now);
            if next == Flush::Idle {
                self.reporter.push(Output::Flushed);
            }
        }
    }

    fn append(&mut self, now: Moment) {
        let is_checkpoint_due = self.checkpoint_due().is_some_and(|due| now.at >= due);
        let Some(owner) = self.role.as_owner_mut() else { return };
        if let Some((events, position)) = owner.next_append(is_checkpoint_due, now) {
            let last_received_at = self.last_received.wall();
            let checkpoint = Checkpoint { position, last_received_at, feed: Some(self.settings.feed) };
            self.reporter.push(Output::Append { events, checkpoint });
        }
    }

    fn checkpoint_due(&self) -> Option<Instant> {
        let owner = self.role.as_owner().filter(|_| self.link.is_live())?;
        owner.checkpoint_due(self.last_received.at(), self.settings.retention)
    }

    fn drain(&mut self, now: Moment) {
        let Some(owner) = self.role.as_owner_mut() else { return self.release(now) };
        owner.intake.recovery.stop_holding();
        self.link.close_all("draining", now);
        self.draining = true;
    }

    /// Another replica owns the log. It reads again, or marks as a gap, what is not durable.
    fn release(&mut self, now: Moment) {
        self.link.close_all("released", now);
        self.route(now);
        self.role = Role::Released;
        self.draining = true;
    }

    /// Applies the facts in the log's head: a changed feed, and the outage before the first session.
    fn apply_head(&mut self, validated: &ValidatedHead) {
        if validated.is_other_feed {
            self.reporter.report(StreamReport::FeedChanged);
        }
        if let (Some(reason), Some(owner)) = (validated.gap_reason, self.role.as_owner_mut()) {
            owner.intake.mark_disconnected(reason);
        }
    }

    /// Only the owner marks gaps.
    fn mark_gap(&mut self, gap: Gap, now: Moment) {
        if let Some(owner) = self.role.as_owner_mut() {
            let outcome = owner.mark_gap(gap, now);
            self.report_intake(outcome, now);
        }
    }

    fn report_intake(&mut self, outcome: IntakeOutcome, now: Moment) {
        if outcome.refetch {
            self.link.retire(Trigger::Gap, now);
        }
        self.reporter.report_intake(outcome);
    }

    fn report_state(&mut self, now: Moment) {
        let is_recovering = self.role.as_owner().is_some_and(|owner| owner.intake.recovery.is_holding());
        let mut state = self.link.state();
        if state == StreamState::Live && is_recovering {
            state = StreamState::Recovering;
        }
        let (is_connected, is_breaker_open) = (self.link.is_live(), self.link.is_breaker_open(now));
        let reported = Reported { state, is_connected, is_breaker_open };
        self.reporter.report_changes(reported);
    }
}
