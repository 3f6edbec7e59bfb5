//! Invariants of every world, checked at each step.

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    connector::{Failure, Frame},
    model::{Body, Checkpoint, Event, Timestamp},
    protocol::{
        session::{Dial, SessionId},
        stream::{LogHead, OverflowPolicy, StreamReport, StreamState},
    },
};

use super::{
    plan::{FaultProfile, WorldPlan},
    platform::position_in,
    schedule::{Schedule, WorldTime},
    store::ModelStore,
};

/// State of the checks of the running process.
#[derive(Debug)]
pub(super) struct RuleChecker {
    /// The newest sequence number that is stored or received.
    known: Option<u64>,
    /// When the platform last sent something, by the world's clock and by the wall clock.
    received_at: Option<WorldTime>,
    received_wall: Timestamp,
    /// The same moment in the checkpoint of the log that the process took over.
    log_wall: Timestamp,
    /// Only the owner may abandon the position.
    position_is_foreign: bool,
    /// Whether the position may be abandoned until the next numbered event.
    may_abandon_position: bool,
    poisoned: u32,
    pub(super) state: StreamState,
    pub(super) connected: bool,
    connected_since: Option<WorldTime>,
    /// A planned replacement is in progress.
    replacing: bool,
    /// When the current series of failures began.
    failing_since: Option<WorldTime>,
    failures: u32,
    refused: u64,
    first_uses: BTreeMap<SessionId, u64>,
    tokens: TokenCounters,
    wakes: (WorldTime, u32, u32),
    /// The newest attempt requested a position.
    requested_position: bool,
    /// The newest attempt was refused, possibly because of its position.
    position_refused: bool,
    pub(super) gaps: u32,
    /// Received events since the last reset.
    pub(super) received: Vec<usize>,
}

/// Token requests of one process.
#[derive(Debug, Default)]
struct TokenCounters {
    requested_at: WorldTime,
    granted: Option<WorldTime>,
    early: u32,
    allowances: u32,
}

/// The events of a frame, as far as the checks need them.
#[derive(Debug)]
pub(super) struct ReceivedEvents {
    newest_sequence: Option<u64>,
    pub(super) uids: Vec<usize>,
}

/// Limits of wake-ups at one moment and within one second.
const WAKES_AT_ONCE_MAX: u32 = 16;
const WAKES_A_SECOND_MAX: u32 = 80;
/// Events that wait for a missing number or may start a new numbering, and Trunkline's own entries.
const HOLDINGS: usize = 64 + 100 + 64;
/// During a shorter outage, no delay may be longer than the step.
const SHORT_OUTAGE: Duration = Duration::from_secs(6);
const SHORT_OUTAGE_STEP: Duration = Duration::from_millis(4_500);

impl ReceivedEvents {
    pub(super) fn from_frame(frame: &Frame) -> Self {
        let text: &str = match frame {
            Frame::Text(text) => text,
            Frame::Binary(_) | Frame::Pong | Frame::Answered { .. } => "",
        };
        let numbers = |key| text.split(key).skip(1).filter_map(leading_number);
        let uids = numbers("\"uid\":").filter_map(|uid| usize::try_from(uid).ok()).collect();
        Self { newest_sequence: numbers("\"sequenceId\":").max(), uids }
    }
}

impl RuleChecker {
    pub(super) fn new() -> Self {
        Self {
            known: None,
            received_at: None,
            received_wall: Timestamp(0),
            log_wall: Timestamp(0),
            position_is_foreign: false,
            may_abandon_position: false,
            poisoned: 0,
            state: StreamState::Starting,
            connected: false,
            connected_since: None,
            replacing: false,
            failing_since: None,
            failures: 0,
            refused: 0,
            first_uses: BTreeMap::new(),
            tokens: TokenCounters::default(),
            wakes: (WorldTime::ZERO, 0, 0),
            requested_position: false,
            position_refused: false,
            gaps: 0,
            received: Vec::new(),
        }
    }

    pub(super) fn on_process_start(&mut self, opening: &LogHead) {
        *self = Self { wakes: self.wakes, ..Self::new() };
        self.known = opening.checkpoint.as_ref().and_then(position);
        self.received_wall = opening.checkpoint.as_ref().map_or(Timestamp(0), |checkpoint| checkpoint.last_received_at);
    }

    pub(super) fn on_standby_start(&mut self) {
        *self = Self { wakes: self.wakes, position_is_foreign: true, ..Self::new() };
    }

    /// A standby reads where the owner's log ends.
    pub(super) fn on_log_end_read(&mut self, position: u64) {
        self.known = self.known.max(Some(position));
    }

    /// The standby becomes the owner.
    pub(super) fn on_takeover(&mut self, opening: &LogHead, kept: usize, schedule: &Schedule) {
        self.position_is_foreign = false;
        // A standby discards the events of a lost session.
        self.known = self.known.filter(|_| kept > 0);
        self.log_wall = opening.checkpoint.as_ref().map_or(Timestamp(0), |checkpoint| checkpoint.last_received_at);
        if !self.connected {
            self.on_restart();
        }
        let known = opening.checkpoint.as_ref().filter(|checkpoint| checkpoint.position.is_some());
        self.may_abandon_position |=
            known.is_some_and(|known| schedule.wall().since(known.last_received_at) > schedule.plan.stream.retention);
        self.known = self.known.max(known.and_then(position));
    }

    /// The process dropped its sessions and continues from the log.
    pub(super) fn on_restart(&mut self) {
        self.received_at = None;
        self.received_wall = self.log_wall;
    }

    pub(super) fn check_wake_up(&mut self, now: WorldTime) {
        let (at, at_moment, in_second) = self.wakes;
        let at_moment = if at == now { at_moment + 1 } else { 1 };
        let in_second = if at.as_secs() == now.as_secs() { in_second + 1 } else { 1 };
        assert!(at_moment <= WAKES_AT_ONCE_MAX, "{at_moment} wake-ups at one moment");
        assert!(in_second <= WAKES_A_SECOND_MAX, "{in_second} wake-ups within a second");
        self.wakes = (now, at_moment, in_second);
    }

    pub(super) fn check_buffer(&self, buffered: usize, plan: &WorldPlan) {
        let buffer = plan.stream.buffer;
        let limit = match plan.stream.overflow {
            OverflowPolicy::Backpressure => buffer + plan.frame_len_max as usize,
            // What is being appended, and what waits behind it.
            OverflowPolicy::DropOldest => 2 * buffer,
        };
        assert!(buffered <= limit + HOLDINGS, "{buffered} events are buffered, with a buffer of {buffer}");
    }

    pub(super) fn on_received(&mut self, received: &ReceivedEvents, now: WorldTime, wall: Timestamp) {
        self.received.extend(&received.uids);
        self.received_at = Some(now);
        self.received_wall = wall;
        if received.newest_sequence > self.known {
            self.known = received.newest_sequence;
            self.may_abandon_position = false;
            self.poisoned = 0;
        }
    }

    /// A session ended, or an attempt failed.
    pub(super) fn on_failure(&mut self, failure: &Failure) {
        match failure {
            Failure::Oversize => self.may_abandon_position = true,
            Failure::Unfinished { .. } | Failure::Unreadable(_) => {
                self.poisoned += 1;
                self.may_abandon_position |= self.poisoned >= 2;
            }
            // A platform may refuse a position that it holds; the relay abandons it anyway.
            Failure::Handshake { status: 404 | 410, .. } => self.position_refused = true,
            Failure::Closed { .. }
            | Failure::Handshake { .. }
            | Failure::Call { .. }
            | Failure::Unreachable(_)
            | Failure::Silent
            | Failure::Notice(_)
            | Failure::Unsubscribed { .. } => (),
        }
    }

    /// The relay requests a position while the platform keeps it, and never after its retention.
    pub(super) fn check_dial(&mut self, dial: &Dial, schedule: &Schedule) {
        self.requested_position = position_in(&dial.url).is_some();
        let silence = match self.received_at {
            Some(at) => schedule.now.saturating_sub(at),
            None => schedule.wall().since(self.received_wall),
        };
        let Some(known) = self.known.filter(|_| !self.position_is_foreign) else { return };
        let too_old = silence > schedule.plan.stream.retention;
        self.may_abandon_position |= too_old;
        match position_in(&dial.url) {
            Some(asked) => {
                // While another session is live, the position stays recent.
                // After a takeover, the time in the log's checkpoint counts.
                let recent_in_log = schedule.wall().since(self.log_wall) <= schedule.plan.stream.retention;
                assert!(!too_old || recent_in_log || self.connected, "resumed after {asked}, silent for {silence:?}");
                assert!(asked <= known, "resumed after {asked}, which was never received");
                self.position_refused = false;
            }
            None => {
                self.may_abandon_position |= std::mem::take(&mut self.position_refused);
                assert!(self.may_abandon_position, "the position {known} was abandoned without a reason");
            }
        }
    }

    /// The time of a checkpoint is the moment when the platform last sent something.
    pub(super) fn check_append(&self, checkpoint: &Checkpoint, wall: Timestamp) {
        assert!(checkpoint.last_received_at <= wall, "a checkpoint has a time in the future");
        assert!(
            checkpoint.last_received_at >= self.received_wall || self.received_at.is_none(),
            "a checkpoint has an older time than the last frame"
        );
    }

    /// The stored position is never ahead of the stored events.
    pub(super) fn check_stored(&self, store: &ModelStore) {
        let position = store.checkpoint.as_ref().and_then(position);
        let newest = store.log.iter().rposition(|event| event.sequence.is_some());
        let number = newest.and_then(|place| store.log[place].sequence).map(|sequence| sequence.0);
        let shed = store.log[newest.map_or(0, |place| place + 1)..].iter().any(|event| reason(event) == Some("shed"));
        assert!(position == number || shed, "position {position:?} with the newest number {number:?}");
    }

    pub(super) fn report(&mut self, report: &StreamReport, schedule: &Schedule) {
        if schedule.plan.profile == FaultProfile::Planned {
            forbid_disruption(report);
        }
        match report {
            StreamReport::Connected(true) => {
                self.connected = true;
                self.connected_since.get_or_insert(schedule.now);
                self.replacing = false;
                self.received_at = Some(schedule.now);
                self.received_wall = schedule.wall();
            }
            StreamReport::Connected(false) => {
                self.settle_row(schedule);
                self.connected = false;
                // A planned change does not restart the stability period.
                self.connected_since = self.connected_since.filter(|_| self.replacing);
            }
            StreamReport::RotationStarted(_) => self.replacing = true,
            StreamReport::RotationFailed { .. } | StreamReport::Rotated { .. } => self.replacing = false,
            StreamReport::State(state) => self.state = *state,
            StreamReport::SessionLost { failure, retry_in: Some(delay) }
                if self.is_position_refused(failure, *delay) =>
            {
                self.settle_row(schedule);
                self.connected_since = None;
            }
            StreamReport::SessionLost { retry_in: Some(delay), .. } => self.check_backoff(*delay, schedule),
            StreamReport::ActionRequired { retry_in, .. } => self.check_backoff(*retry_in, schedule),
            StreamReport::Gap { .. } => self.gaps += 1,
            StreamReport::FeedChanged
            | StreamReport::Resuming(_)
            | StreamReport::Duplicates(_)
            | StreamReport::Undecoded { .. }
            | StreamReport::Shed(_)
            | StreamReport::SessionLost { retry_in: None, .. }
            | StreamReport::Breaker(_)
            | StreamReport::Snapshot(_)
            | StreamReport::TopicCoverage(_) => (),
        }
    }

    /// Only a stable connection ends a series of failures.
    fn settle_row(&mut self, schedule: &Schedule) {
        let lived = self.connected_since.map_or(Duration::ZERO, |since| schedule.now - since);
        if lived >= schedule.plan.stream.backoff.stable_after {
            self.failures = 0;
            self.failing_since = None;
        }
    }

    /// Whether the position was refused, so that the next attempt follows immediately and without it.
    fn is_position_refused(&self, failure: &Failure, delay: Duration) -> bool {
        let refused = matches!(failure, Failure::Handshake { status: 404 | 410, .. });
        refused && self.requested_position && delay <= Duration::from_millis(250)
    }

    /// Delays grow with each failure of a series.
    fn check_backoff(&mut self, delay: Duration, schedule: &Schedule) {
        let was_stable =
            self.connected_since.is_some_and(|since| schedule.now - since >= schedule.plan.stream.backoff.stable_after);
        self.settle_row(schedule);
        self.connected_since = None;
        if was_stable && delay <= Duration::from_millis(250) {
            return;
        }
        let settings = schedule.plan.stream.backoff;
        let grown = settings.first.saturating_mul(2_u32.saturating_pow(self.failures)).min(settings.cap);
        let since = *self.failing_since.get_or_insert(schedule.now);
        self.failures += 1;
        let may_be_short = schedule.now - since < SHORT_OUTAGE && delay >= SHORT_OUTAGE_STEP;
        assert!(
            may_be_short || delay >= grown.mul_f64(1.0 - settings.jitter - 0.001),
            "failure {} of a series is retried after {delay:?}",
            self.failures
        );
    }

    /// No session starts with a token that the platform rejected.
    pub(super) fn check_token_use(&mut self, session: SessionId, generation: u64) {
        let first = !self.first_uses.contains_key(&session);
        if first {
            assert!(generation > self.refused, "{session:?} starts with the rejected token {generation}");
            self.first_uses.insert(session, generation);
        }
    }

    pub(super) fn on_token_refused(&mut self, generation: u64) {
        assert!(generation > self.refused, "token {generation} is refused twice");
        self.refused = generation;
        self.tokens.allowances += 1;
    }

    pub(super) fn on_token_wanted(&mut self) {
        self.tokens.allowances += 1;
    }

    pub(super) fn on_token_requested(&mut self, now: WorldTime) {
        self.tokens.requested_at = now;
    }

    /// Only a rejection or an operator's command replaces a token before three quarters of its lifetime.
    pub(super) fn on_token_granted(&mut self, schedule: &Schedule) {
        let due = |before: WorldTime| before + schedule.plan.token_lifetime.mul_f64(0.75) - Duration::from_millis(1);
        if self.tokens.granted.is_some_and(|before| self.tokens.requested_at < due(before)) {
            self.tokens.early += 1;
        }
        self.tokens.granted = Some(self.tokens.requested_at);
        let TokenCounters { early, allowances: reasons, .. } = self.tokens;
        assert!(early <= reasons, "{early} early token requests, but {reasons} reasons");
    }
}

/// A planned change causes no failure, no gap and no time without a session.
fn forbid_disruption(report: &StreamReport) {
    match report {
        StreamReport::Gap { .. }
        | StreamReport::FeedChanged
        | StreamReport::SessionLost { .. }
        | StreamReport::ActionRequired { .. }
        | StreamReport::Shed(_)
        | StreamReport::RotationFailed { .. } => {
            panic!("a disruption in a planned profile: {report:?}");
        }
        StreamReport::Rotated { silence, .. } => {
            assert!(silence.is_zero(), "silence during a planned change: {report:?}");
        }
        StreamReport::State(_)
        | StreamReport::Connected(_)
        | StreamReport::Resuming(_)
        | StreamReport::Duplicates(_)
        | StreamReport::Undecoded { .. }
        | StreamReport::RotationStarted(_)
        | StreamReport::Breaker(_)
        | StreamReport::Snapshot(_)
        | StreamReport::TopicCoverage(_) => (),
    }
}

/// The reason of a gap entry; `None` for any other entry.
pub(super) fn reason(event: &Event) -> Option<&str> {
    (event.kind == "trunkline.gap.v1").then(|| text_of(event).split('"').nth(3)).flatten()
}

/// The index of the platform event in an entry.
pub(super) fn uid(event: &Event) -> Option<usize> {
    let number = text_of(event).split_once("\"uid\":").and_then(|(_, rest)| leading_number(rest))?;
    usize::try_from(number).ok()
}

pub(super) fn text_of(event: &Event) -> &str {
    match &event.body {
        Body::Json(text) => text,
        Body::Binary(_) => "",
    }
}

fn leading_number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The number of the last event that a checkpoint covers.
fn position(checkpoint: &Checkpoint) -> Option<u64> {
    checkpoint.position.as_ref()?.order().map(|number| number.0)
}
