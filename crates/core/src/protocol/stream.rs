//! One stream: its sessions old and new, and what of their events goes into the log.
//!
//! There are two ways from one session to the next, and they share no counter. `Retire` is the planned one (a new
//! token, a notice, the end of a channel, an operator's wish): the successor is live before the old session is left,
//! where the platform allows two. Trouble is the other: back off, and try again for ever.

mod buffer;
mod handover;
mod intake;
mod link;
mod messages;
mod order;
mod planned;
mod recovery;
mod standby;
#[cfg(test)]
mod tests;
mod trouble;
mod twins;

pub use self::{
    buffer::Overflow,
    messages::{CallId, Input, Opening, Output, Report, State, Topics, Trigger},
};

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use self::{
    buffer::Ticket,
    handover::{Flush, Role},
    intake::{Intake, TakenIn},
    link::Link,
    recovery::Outcome,
    standby::Ring,
};
use super::{
    Now, backoff,
    backoff::Backoff,
    session::{self, Minted, Patience, Session, SessionId},
};
use crate::{
    connector::{Answer, Choices, Connector, Resume},
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
    pub overflow: Overflow,
    pub patience: Patience,
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
    choices: Choices,
    role: Role,
    link: Link,
    /// Sessions to which farewell was said and which may still finish.
    leaving: Vec<Session>,
    /// The newest token, and the newest that the platform rejected.
    token: u64,
    refused: u64,
    /// The newest token under which a session was live.
    carried: u64,
    /// When tokens were rejected that had carried no session.
    rejections: VecDeque<Instant>,
    /// Where a frame broke the protocol, and how often in a row.
    poison: (Option<Position>, u32),
    /// When the newest session became live.
    live_since: Option<Instant>,
    /// How many sessions in a row were to be closed by a notice before they proved stable.
    notices: u32,
    /// The endpoint of the session that was left last, while notices come one after the other.
    former: Option<Minted>,
    /// How often in a row the platform refused.
    refusals: u32,
    /// The newest session that was asked to go on after a position.
    resumed: Option<SessionId>,
    /// The platform refused the position: the next session asks for none.
    position_refused: bool,
    endpoint: Option<Minted>,
    /// One that a successor made and did not become live on: the next attempt takes it.
    spare: Option<Minted>,
    /// The topics of the newest live session.
    subscribed: Vec<String>,
    /// Not all that is configured is heard.
    degraded: bool,
    intake: Intake,
    backoff: Backoff,
    sessions: u64,
    heard: Heard,
    appending: Option<Vec<(usize, Ticket)>>,
    appending_len: usize,
    appending_bytes: usize,
    checkpointed_at: Instant,
    draining: bool,
    told: (State, bool, bool),
    outputs: VecDeque<Output>,
}

/// When the platform was last heard, by both clocks.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Option<Instant>,
    wall: crate::model::Timestamp,
}

/// A quiet stream's checkpoint is renewed this often, so that a restart knows how long nothing was heard.
const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(15);

impl Stream {
    /// A stream that goes on from what is known; it waits for a token.
    pub fn new(settings: Settings, opening: Opening, now: Now) -> Self {
        let choices = settings.connector.choices();
        let judged = opening.judged(settings.feed);
        let opening = judged.opening;
        let wall = opening.checkpoint.map_or(now.wall, |checkpoint| checkpoint.heard_at);
        let mut stream = Self {
            intake: Intake::new(&settings, &choices, opening.position()),
            backoff: Backoff::new(settings.backoff),
            choices,
            settings,
            role: Role::Owner(Flush::Idle),
            link: Link::Waiting,
            leaving: Vec::new(),
            token: 0,
            refused: 0,
            carried: 0,
            rejections: VecDeque::new(),
            poison: (None, 0),
            live_since: None,
            notices: 0,
            former: None,
            refusals: 0,
            resumed: None,
            position_refused: false,
            endpoint: None,
            spare: None,
            subscribed: Vec::new(),
            degraded: false,
            sessions: 0,
            heard: Heard { at: None, wall },
            appending: None,
            appending_len: 0,
            appending_bytes: 0,
            checkpointed_at: now.at,
            draining: false,
            told: (State::Starting, false, false),
            outputs: VecDeque::from([Output::Report(Report::State(State::Starting))]),
        };
        if opening.damaged {
            stream.mark_gap(Gap::unknown(GapReason::Store), now);
        }
        stream.take_verdict(judged);
        stream
    }

    /// A stream whose log is another replica's: it holds a session, appends nothing, and keeps the newest of what it
    /// hears until [`Input::Own`].
    pub fn standby(settings: Settings, now: Now) -> Self {
        let ring = Ring::new(settings.buffer, settings.buffer_bytes);
        Self { role: Role::Standby(ring), ..Self::new(settings, Opening::default(), now) }
    }

    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Token(generation) => self.token_came(generation, now),
            Input::Answered { call: CallId::Session(id), answer } => {
                self.tell(id, session::Input::Answered(answer), now);
            }
            Input::Answered { call: CallId::Snapshot(call), answer } => self.snapshot_answered(call, answer, now),
            Input::Opened(id) => self.tell(id, session::Input::Opened, now),
            Input::Refused { session, failure } => self.tell(session, session::Input::Refused(failure), now),
            Input::Begun(id) => self.tell(id, session::Input::Begun, now),
            Input::Frame { session, frame } => {
                // The frame that proves a new session ends a silence, so the silence is measured before it counts.
                self.tell(session, session::Input::Frame(frame), now);
                self.heard = Heard { at: Some(now.at), wall: now.wall };
            }
            Input::Closed { session, failure } => self.tell(session, session::Input::Closed(failure), now),
            Input::Appended(last) => {
                self.excuse_if_unread(now);
                self.appended(last);
            }
            Input::Rotate => self.rotate(now),
            Input::Pause => self.pause(now),
            Input::Resume => self.unpause(now),
            Input::Drain => self.drain(now),
            Input::Follow(position) => self.follow(position),
            Input::Own { opening, stored, covered } => self.own(opening, stored, covered, now),
            Input::Flush => self.want_flush(),
            Input::Release => self.release(now),
        }
        self.settle(now);
    }

    pub fn handle_timeout(&mut self, now: Now) {
        self.excuse_if_unread(now);
        self.sessions_timeout(now);
        self.link_timeout(now);
        if self.is_owner() {
            let taken = self.intake.handle_timeout(now);
            self.report_taken(taken, now);
        }
        self.settle(now);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.link.sessions().chain(&self.leaving).filter_map(Session::poll_timeout);
        let link = self.link.poll_timeout();
        let stable = self.backoff.stable_at().filter(|_| self.told.2);
        let checkpoint = self.checkpoint_due();
        let intake = self.intake.poll_timeout().filter(|_| self.is_owner());
        sessions.chain(link).chain(stable).chain(checkpoint).chain(intake).min()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether frames are wanted now. If not, they stay in the socket until the log has caught up.
    pub fn wants_frames(&self) -> bool {
        !self.intake.holds_back(self.appending_len, self.appending_bytes)
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
    pub fn kept(&self) -> usize {
        match &self.role {
            Role::Standby(ring) => ring.len(),
            Role::Owner(_) | Role::Released => 0,
        }
    }

    /// Whether a standby compares what it keeps with the newest entries of the log when it takes over.
    pub fn compares(&self) -> bool {
        self.choices.resume == Resume::None
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
    pub fn owes_snapshot(&self) -> bool {
        self.intake.recovery.owes()
    }

    /// When the platform was last heard by this process.
    pub fn heard_at(&self) -> Option<Instant> {
        self.heard.at
    }

    /// What follows from every step: what may be appended is, and changes of state are told.
    fn settle(&mut self, now: Now) {
        self.let_successor_in(now);
        if self.intake.is_refetching() && (!self.wants_frames() || self.intake.is_full_of_waiting()) {
            let taken = self.intake.end_refetch(now);
            self.report_taken(taken, now);
        }
        let shed = self.intake.release(now);
        self.report_shed(shed);
        if let Some((call, request)) = self.intake.recovery.next_call() {
            self.outputs.push_back(Output::Call { call: CallId::Snapshot(call), generation: self.token, request });
        }
        self.flush(now);
        if self.appending.is_none() && self.is_owner() {
            self.append(now);
        }
        self.report_state(now);
        if self.draining && self.is_idle() {
            self.draining = false;
            self.link = Link::Drained;
            self.outputs.push_back(Output::Drained);
        }
    }

    fn is_owner(&self) -> bool {
        matches!(self.role, Role::Owner(_))
    }

    fn is_idle(&self) -> bool {
        self.link.sessions().next().is_none()
            && self.leaving.is_empty()
            && self.appending.is_none()
            && self.intake.is_empty()
    }

    fn append(&mut self, now: Now) {
        if let Some(taken) = self.intake.take(now) {
            self.appending_len = taken.events.len();
            self.appending_bytes = taken.bytes;
            self.appending = Some(taken.tickets);
            self.checkpointed_at = now.at;
            let checkpoint = self.checkpoint(taken.position);
            self.outputs.push_back(Output::Append { events: taken.events, checkpoint });
        } else if self.checkpoint_due().is_some_and(|due| now.at >= due) {
            self.appending = Some(Vec::new());
            self.checkpointed_at = now.at;
            let checkpoint = self.checkpoint(self.intake.passed());
            self.outputs.push_back(Output::Append { events: Vec::new(), checkpoint });
        }
    }

    /// What is stored with everything up to this position.
    fn checkpoint(&self, position: Option<Position>) -> Checkpoint {
        let heard_at = self.heard.wall;
        Checkpoint { position, heard_at, feed: Some(self.settings.feed) }
    }

    /// When a quiet stream's checkpoint is to be renewed.
    fn checkpoint_due(&self) -> Option<Instant> {
        let interval = (self.settings.retention / 4).min(CHECKPOINT_INTERVAL_MAX);
        let quiet =
            self.is_owner() && self.link.is_live() && self.appending.is_none() && self.heard.at? > self.checkpointed_at;
        quiet.then(|| self.checkpointed_at + interval)
    }

    fn appended(&mut self, last: Mark) {
        let Some(tickets) = self.appending.take() else { return };
        let len = std::mem::take(&mut self.appending_len) as u64;
        self.appending_bytes = 0;
        for (index, ticket) in tickets {
            let offset = crate::model::Offset(last.offset.0 + 1 - len + index as u64);
            self.intake.recovery.appended(ticket, Mark { offset, ..last });
        }
    }

    fn snapshot_answered(&mut self, call: u64, answer: Result<Answer, String>, now: Now) {
        let outcome = self.intake.recovery.answered(call, answer, &self.settings.connector, now.at, now.unit);
        match outcome {
            Outcome::Pending => (),
            Outcome::Taken => self.report(Report::Snapshot(Ok(()))),
            Outcome::Failed(why) => self.report(Report::Snapshot(Err(why))),
        }
    }

    /// In a log that is another's nothing is marked.
    fn mark_gap(&mut self, gap: Gap, now: Now) {
        if !self.is_owner() {
            return;
        }
        let mut taken = TakenIn::default();
        self.intake.gap(gap, now, &mut taken);
        self.report_taken(taken, now);
    }

    fn report_taken(&mut self, taken: TakenIn, now: Now) {
        if taken.refetch {
            self.retire(Trigger::Gap, now);
        }
        for gap in taken.gaps {
            self.report(Report::Gap { reason: gap.reason, lost: gap.lost });
        }
        for bytes in taken.undecoded {
            self.report(Report::Undecoded { bytes });
        }
        if taken.duplicates > 0 {
            self.report(Report::Duplicates(taken.duplicates));
        }
        self.report_shed(taken.shed);
    }

    fn report(&mut self, report: Report) {
        self.outputs.push_back(Output::Report(report));
    }

    fn report_shed(&mut self, shed: u64) {
        if shed > 0 {
            self.report(Report::Shed(shed));
        }
    }

    fn report_state(&mut self, now: Now) {
        let recovering = self.intake.recovery.holds();
        let mut state = self.link.state();
        if state == State::Live && self.degraded {
            state = State::Degraded;
        } else if state == State::Live && recovering {
            state = State::Recovering;
        }
        let connected = self.link.is_live();
        let breaker = self.backoff.is_open(now.at);
        let before = std::mem::replace(&mut self.told, (state, connected, breaker));
        if before.0 != state {
            self.report(Report::State(state));
        }
        if before.1 != connected {
            self.report(Report::Connected(connected));
        }
        if before.2 != breaker {
            self.report(Report::Breaker(breaker));
        }
    }
}
