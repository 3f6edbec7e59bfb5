//! One stream: its sessions old and new, and what of their events goes into the log.
//!
//! There are two ways from one session to the next, and they share no counter. `Retire` is the planned one (a new
//! token, a notice, the end of a channel, an operator's wish): the successor is live before the old session is left,
//! where the platform allows two. Trouble is the other: back off, and try again for ever.

mod buffer;
mod dedup;
mod failures;
mod handover;
mod intake;
mod link;
mod messages;
mod recovery;
mod rotation;
mod sequencer;
mod standby;
#[cfg(test)]
mod tests;

pub use self::{
    buffer::OverflowPolicy,
    messages::{CallId, Input, LogHead, Output, StreamReport, StreamState, TopicCoverage, Trigger},
};

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use self::{
    buffer::GapTicket,
    handover::{Flush, StreamRole},
    intake::{Intake, IntakeOutcome},
    link::LinkState,
    recovery::SnapshotOutcome,
    standby::StandbyBuffer,
};
use super::{
    Moment, backoff,
    backoff::Backoff,
    session::{self, ProvisionedEndpoint, Session, SessionId, Timeouts},
};
use crate::{
    connector::{Capabilities, Connector, RestResponse, Resume},
    model::{Checkpoint, FeedId, Gap, GapReason, Mark, Position},
};

/// How a stream is kept.
#[derive(Debug, Clone)]
pub struct Settings {
    pub connector: Connector,
    /// What the connector reads: a position of another feed is worth nothing.
    pub feed: FeedId,
    pub rotation: Rotation,
    /// A planned rotation begins within this time (at least after half of it).
    pub rotation_jitter: Duration,
    /// How long the platform keeps events for resuming.
    pub retention: Duration,
    /// How many events may wait for the log.
    pub buffer: usize,
    /// How many bytes of events may wait for the log; one event more than fits may be among them.
    pub buffer_bytes: usize,
    /// How many events one append takes at most.
    pub append_max: usize,
    pub overflow: OverflowPolicy,
    pub timeouts: Timeouts,
    pub backoff: backoff::Settings,
}

/// The order of a planned swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// The successor is live before the old session is left.
    Overlap,
    /// The old session is left first.
    BreakFirst,
}

/// The machine of one stream.
#[derive(Debug)]
pub struct Stream {
    settings: Settings,
    capabilities: Capabilities,
    role: StreamRole,
    link: LinkState,
    /// Sessions to which farewell was said and which may still finish.
    closing: Vec<Session>,
    /// The newest token, and the newest that the platform rejected.
    newest_token: u64,
    rejected_token: u64,
    /// The newest token under which a session was live.
    proven_token: u64,
    /// When tokens were rejected that had carried no session.
    rejections: VecDeque<Instant>,
    /// Where a frame broke the protocol, and how often in a row.
    poison_frame: (Option<Position>, u32),
    /// When the newest session became live.
    live_since: Option<Instant>,
    /// How many sessions in a row were to be closed by a notice before they proved stable.
    notices: u32,
    /// The endpoint of the session that was left last, while notices come one after the other.
    previous_endpoint: Option<ProvisionedEndpoint>,
    /// How often in a row the platform refused.
    refusals: u32,
    /// The newest session that was asked to go on after a position.
    resumed_session: Option<SessionId>,
    /// The platform refused the position: the next session asks for none.
    position_refused: bool,
    endpoint: Option<ProvisionedEndpoint>,
    /// One that a successor made and did not become live on: the next attempt takes it.
    spare_endpoint: Option<ProvisionedEndpoint>,
    /// The topics of the newest live session.
    subscribed: Vec<String>,
    /// Not all that is configured is heard.
    degraded: bool,
    intake: Intake,
    backoff: Backoff,
    sessions: u64,
    last_received: LastReceived,
    appending: Option<Vec<(usize, GapTicket)>>,
    appending_len: usize,
    appending_bytes: usize,
    checkpointed_at: Instant,
    draining: bool,
    last_reported: (StreamState, bool, bool),
    outputs: VecDeque<Output>,
}

/// When the platform was last heard, by both clocks.
#[derive(Debug, Clone, Copy)]
struct LastReceived {
    at: Option<Instant>,
    wall: crate::model::Timestamp,
}

/// A quiet stream's checkpoint is renewed this often, so that a restart knows how long nothing was heard.
const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(15);

impl Stream {
    /// A stream that goes on from what is known; it waits for a token.
    pub fn new(settings: Settings, opening: LogHead, now: Moment) -> Self {
        let capabilities = settings.connector.capabilities();
        let validated = opening.validated_for(settings.feed);
        let opening = validated.head;
        let wall = opening.checkpoint.map_or(now.wall, |checkpoint| checkpoint.last_received_at);
        let mut stream = Self {
            intake: Intake::new(&settings, &capabilities, opening.position()),
            backoff: Backoff::new(settings.backoff),
            capabilities,
            settings,
            role: StreamRole::Owner(Flush::Idle),
            link: LinkState::Waiting,
            closing: Vec::new(),
            newest_token: 0,
            rejected_token: 0,
            proven_token: 0,
            rejections: VecDeque::new(),
            poison_frame: (None, 0),
            live_since: None,
            notices: 0,
            previous_endpoint: None,
            refusals: 0,
            resumed_session: None,
            position_refused: false,
            endpoint: None,
            spare_endpoint: None,
            subscribed: Vec::new(),
            degraded: false,
            sessions: 0,
            last_received: LastReceived { at: None, wall },
            appending: None,
            appending_len: 0,
            appending_bytes: 0,
            checkpointed_at: now.at,
            draining: false,
            last_reported: (StreamState::Starting, false, false),
            outputs: VecDeque::from([Output::Report(StreamReport::State(StreamState::Starting))]),
        };
        if opening.damaged {
            stream.mark_gap(Gap::unknown(GapReason::Store), now);
        }
        stream.apply_head(validated);
        stream
    }

    /// A stream whose log is another replica's: it holds a session, appends nothing, and keeps the newest of what it
    /// hears until [`Input::Own`].
    pub fn standby(settings: Settings, now: Moment) -> Self {
        let ring = StandbyBuffer::new(settings.buffer, settings.buffer_bytes);
        Self { role: StreamRole::Standby(ring), ..Self::new(settings, LogHead::default(), now) }
    }

    pub fn handle(&mut self, input: Input, now: Moment) {
        match input {
            Input::Token(generation) => self.on_token(generation, now),
            Input::Response { call: CallId::Session(id), response: answer } => {
                self.dispatch(id, session::Input::Response(answer), now);
            }
            Input::Response { call: CallId::Snapshot(call), response: answer } => {
                self.on_snapshot_response(call, answer, now);
            }
            Input::Opened(id) => self.dispatch(id, session::Input::Opened, now),
            Input::ConnectFailed { session, failure } => {
                self.dispatch(session, session::Input::ConnectFailed(failure), now);
            }
            Input::PartialFrame(id) => self.dispatch(id, session::Input::PartialFrame, now),
            Input::Frame { session, frame } => {
                // The frame that proves a new session ends a silence, so the silence is measured before it counts.
                self.dispatch(session, session::Input::Frame(frame), now);
                self.last_received = LastReceived { at: Some(now.at), wall: now.wall };
            }
            Input::Closed { session, failure } => self.dispatch(session, session::Input::Closed(failure), now),
            Input::Appended(last) => {
                self.suspend_timers_under_backpressure(now);
                self.on_appended(last);
            }
            Input::Rotate => self.rotate(now),
            Input::Pause => self.pause(now),
            Input::Resume => self.resume(now),
            Input::Drain => self.drain(now),
            Input::Follow(position) => self.follow(position),
            Input::BecomeOwner { head: opening, stored, covered } => self.take_ownership(opening, stored, covered, now),
            Input::Flush => self.request_flush(),
            Input::Release => self.release(now),
        }
        self.settle(now);
    }

    pub fn handle_timeout(&mut self, now: Moment) {
        self.suspend_timers_under_backpressure(now);
        self.sessions_timeout(now);
        self.link_timeout(now);
        if self.is_owner() {
            let outcome = self.intake.handle_timeout(now);
            self.report_intake(outcome, now);
        }
        self.settle(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.link.sessions().chain(&self.closing).filter_map(Session::poll_timeout);
        let link = self.link.poll_timeout();
        let stable = self.backoff.stable_at().filter(|_| self.last_reported.2);
        let checkpoint = self.checkpoint_due();
        let intake = self.intake.poll_timeout().filter(|_| self.is_owner());
        sessions.chain(link).chain(stable).chain(checkpoint).chain(intake).min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether frames are wanted now. If not, they stay in the socket until the log has caught up.
    pub fn wants_frames(&self) -> bool {
        !self.intake.applies_backpressure(self.appending_len, self.appending_bytes)
    }

    /// Whether a session is there that events come by.
    pub fn is_ready(&self) -> bool {
        self.link.is_live()
    }

    /// Whether it is live and does not hear all that is configured.
    pub fn is_degraded(&self) -> bool {
        self.degraded && self.link.is_live()
    }

    /// How many events a standby keeps.
    pub fn standby_len(&self) -> usize {
        match &self.role {
            StreamRole::Standby(ring) => ring.len(),
            StreamRole::Owner(_) | StreamRole::Released => 0,
        }
    }

    /// Whether a standby compares what it keeps with the newest entries of the log when it takes over.
    pub fn compares_with_log(&self) -> bool {
        self.capabilities.resume == Resume::None
    }

    /// What it reads.
    pub fn feed(&self) -> FeedId {
        self.settings.feed
    }

    /// Where the platform would be asked to go on.
    pub fn position(&self) -> Option<Position> {
        self.intake.position()
    }

    /// Events heard and not yet durable.
    pub fn buffered(&self) -> usize {
        self.intake.len() + self.appending_len
    }

    /// Whether a snapshot is still owed to the log.
    pub fn snapshot_pending(&self) -> bool {
        self.intake.recovery.snapshot_pending()
    }

    /// When the platform was last heard by this process.
    pub fn last_received_at(&self) -> Option<Instant> {
        self.last_received.at
    }

    /// What follows from every step: what may be appended is, and changes of state are told.
    fn settle(&mut self, now: Moment) {
        self.release_successor(now);
        if self.intake.is_refetching() && (!self.wants_frames() || self.intake.is_reorder_full()) {
            let outcome = self.intake.end_refetch(now);
            self.report_intake(outcome, now);
        }
        let shed = self.intake.release(now);
        self.report_shed(shed);
        if let Some((call, request)) = self.intake.recovery.next_call() {
            self.outputs.push_back(Output::Call {
                call: CallId::Snapshot(call),
                generation: self.newest_token,
                request,
            });
        }
        self.flush(now);
        if self.appending.is_none() && self.is_owner() {
            self.append(now);
        }
        self.report_state(now);
        if self.draining && self.is_idle() {
            self.draining = false;
            self.link = LinkState::Drained;
            self.outputs.push_back(Output::Drained);
        }
    }

    fn is_owner(&self) -> bool {
        matches!(self.role, StreamRole::Owner(_))
    }

    fn is_idle(&self) -> bool {
        self.link.sessions().next().is_none()
            && self.closing.is_empty()
            && self.appending.is_none()
            && self.intake.is_empty()
    }

    fn append(&mut self, now: Moment) {
        if let Some(outcome) = self.intake.take(now) {
            self.appending_len = outcome.events.len();
            self.appending_bytes = outcome.bytes;
            self.appending = Some(outcome.tickets);
            self.checkpointed_at = now.at;
            let checkpoint = self.checkpoint(outcome.position);
            self.outputs.push_back(Output::Append { events: outcome.events, checkpoint });
        } else if self.checkpoint_due().is_some_and(|due| now.at >= due) {
            self.appending = Some(Vec::new());
            self.checkpointed_at = now.at;
            let checkpoint = self.checkpoint(self.intake.last_passed());
            self.outputs.push_back(Output::Append { events: Vec::new(), checkpoint });
        }
    }

    /// What is stored with everything up to this position.
    fn checkpoint(&self, position: Option<Position>) -> Checkpoint {
        let heard_at = self.last_received.wall;
        Checkpoint { position, last_received_at: heard_at, feed: Some(self.settings.feed) }
    }

    /// When a quiet stream's checkpoint is to be renewed.
    fn checkpoint_due(&self) -> Option<Instant> {
        let interval = (self.settings.retention / 4).min(CHECKPOINT_INTERVAL_MAX);
        let quiet = self.is_owner()
            && self.link.is_live()
            && self.appending.is_none()
            && self.last_received.at? > self.checkpointed_at;
        quiet.then(|| self.checkpointed_at + interval)
    }

    fn on_appended(&mut self, last: Mark) {
        let Some(tickets) = self.appending.take() else { return };
        let len = std::mem::take(&mut self.appending_len) as u64;
        self.appending_bytes = 0;
        for (index, ticket) in tickets {
            let offset = crate::model::Offset(last.offset.0 + 1 - len + index as u64);
            self.intake.recovery.on_gap_appended(ticket, Mark { offset, ..last });
        }
    }

    fn on_snapshot_response(&mut self, call: u64, answer: Result<RestResponse, String>, now: Moment) {
        let outcome = self.intake.recovery.on_response(call, answer, &self.settings.connector, now.at, now.random);
        match outcome {
            SnapshotOutcome::Pending => (),
            SnapshotOutcome::Complete => self.report(StreamReport::Snapshot(Ok(()))),
            SnapshotOutcome::Failed(why) => self.report(StreamReport::Snapshot(Err(why))),
        }
    }

    /// In a log that is another's nothing is marked.
    fn mark_gap(&mut self, gap: Gap, now: Moment) {
        if !self.is_owner() {
            return;
        }
        let mut outcome = IntakeOutcome::default();
        self.intake.record_gap(gap, now, &mut outcome);
        self.report_intake(outcome, now);
    }

    fn report_intake(&mut self, outcome: IntakeOutcome, now: Moment) {
        if outcome.refetch {
            self.retire(Trigger::Gap, now);
        }
        for gap in outcome.gaps {
            self.report(StreamReport::Gap { reason: gap.reason, lost: gap.lost });
        }
        for bytes in outcome.undecoded {
            self.report(StreamReport::Undecoded { bytes });
        }
        if outcome.duplicates > 0 {
            self.report(StreamReport::Duplicates(outcome.duplicates));
        }
        self.report_shed(outcome.shed);
    }

    fn report(&mut self, report: StreamReport) {
        self.outputs.push_back(Output::Report(report));
    }

    fn report_shed(&mut self, shed: u64) {
        if shed > 0 {
            self.report(StreamReport::Shed(shed));
        }
    }

    fn report_state(&mut self, now: Moment) {
        let recovering = self.intake.recovery.is_holding();
        let mut state = self.link.state();
        if state == StreamState::Live && self.degraded {
            state = StreamState::Degraded;
        } else if state == StreamState::Live && recovering {
            state = StreamState::Recovering;
        }
        let connected = self.link.is_live();
        let breaker = self.backoff.is_open(now.at);
        let before = std::mem::replace(&mut self.last_reported, (state, connected, breaker));
        if before.0 != state {
            self.report(StreamReport::State(state));
        }
        if before.1 != connected {
            self.report(StreamReport::Connected(connected));
        }
        if before.2 != breaker {
            self.report(StreamReport::Breaker(breaker));
        }
    }
}
