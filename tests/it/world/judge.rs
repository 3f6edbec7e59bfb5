//! What must hold in every world, checked as it goes along and again over the whole log.

use std::{collections::BTreeMap, time::Duration};

use trunkline::{
    connector::{Failure, Frame},
    model::{Body, Checkpoint, Event, Timestamp},
    protocol::{
        session::{Dial, SessionId},
        stream::{Opening, Overflow, Report, State},
    },
};

use super::{
    plan::{Night, Plan},
    platform::position_in,
    scene::{Moment, Scene},
    store::Store,
};

/// What the judge has seen of the process that runs.
#[derive(Debug)]
pub(super) struct Judge {
    /// The newest number that anybody can know: stored, or heard.
    known: Option<u64>,
    /// When the platform was last heard, by the world's clock and by the wall.
    heard_at: Option<Moment>,
    heard_wall: Timestamp,
    /// When the log that it took over says so.
    told_wall: Timestamp,
    /// The position is another's to give up.
    follows: bool,
    /// Why a position may be given up until the next numbered event.
    may_give_up: bool,
    poisoned: u32,
    pub(super) state: State,
    pub(super) connected: bool,
    connected_since: Option<Moment>,
    /// A planned replacement is under way.
    replacing: bool,
    /// When the present row of failures began.
    failing_since: Option<Moment>,
    failures: u32,
    refused: u64,
    first_uses: BTreeMap<SessionId, u64>,
    tokens: Tokens,
    wakes: (Moment, u32, u32),
    /// The newest attempt asked for a position.
    asked_position: bool,
    /// … and was refused, perhaps for that.
    position_refused: bool,
    pub(super) gaps: u32,
    /// What was heard, for as long as somebody wants to know.
    pub(super) heard: Vec<usize>,
}

/// The requests for tokens of one process.
#[derive(Debug, Default)]
struct Tokens {
    asked_at: Moment,
    granted: Option<Moment>,
    early: u32,
    excuses: u32,
}

/// What a frame brings, as far as the judge cares.
#[derive(Debug)]
pub(super) struct Heard {
    newest: Option<u64>,
    pub(super) uids: Vec<usize>,
}

/// No more wake-ups than this at one moment, and within one second.
const WAKES_AT_ONCE_MAX: u32 = 16;
const WAKES_A_SECOND_MAX: u32 = 80;
/// Events that wait for a missing number, or are suspected to be of a new numbering; and entries of the relay's own.
const HOLDINGS: usize = 64 + 100 + 64;
/// While an outage is shorter than this, no attempt need be put off for longer than the step.
const SHORT_OUTAGE: Duration = Duration::from_secs(6);
const SHORT_OUTAGE_STEP: Duration = Duration::from_millis(4_500);

impl Heard {
    pub(super) fn of(frame: &Frame) -> Self {
        let text: &str = match frame {
            Frame::Text(text) => text,
            Frame::Binary(_) | Frame::Pong => "",
        };
        let numbers = |key| text.split(key).skip(1).filter_map(leading_number);
        let uids = numbers("\"uid\":").filter_map(|uid| usize::try_from(uid).ok()).collect();
        Self { newest: numbers("\"sequenceId\":").max(), uids }
    }
}

impl Judge {
    pub(super) fn new() -> Self {
        Self {
            known: None,
            heard_at: None,
            heard_wall: Timestamp(0),
            told_wall: Timestamp(0),
            follows: false,
            may_give_up: false,
            poisoned: 0,
            state: State::Starting,
            connected: false,
            connected_since: None,
            replacing: false,
            failing_since: None,
            failures: 0,
            refused: 0,
            first_uses: BTreeMap::new(),
            tokens: Tokens::default(),
            wakes: (Moment::ZERO, 0, 0),
            asked_position: false,
            position_refused: false,
            gaps: 0,
            heard: Vec::new(),
        }
    }

    pub(super) fn process_starts(&mut self, opening: &Opening) {
        *self = Self { wakes: self.wakes, ..Self::new() };
        self.known = opening.checkpoint.and_then(|checkpoint| checkpoint.position).map(|position| position.0.0);
        self.heard_wall = opening.checkpoint.map_or(Timestamp(0), |checkpoint| checkpoint.heard_at);
    }

    pub(super) fn standby_starts(&mut self) {
        *self = Self { wakes: self.wakes, follows: true, ..Self::new() };
    }

    /// A standby is told where the log of another ends.
    pub(super) fn follows(&mut self, position: u64) {
        self.known = self.known.max(Some(position));
    }

    /// The log is its own now.
    pub(super) fn owns(&mut self, opening: &Opening, kept: usize, scene: &Scene) {
        self.follows = false;
        // What a lost session brought to a standby is forgotten.
        self.known = self.known.filter(|_| kept > 0);
        self.told_wall = opening.checkpoint.map_or(Timestamp(0), |checkpoint| checkpoint.heard_at);
        if !self.connected {
            self.begins_again();
        }
        let known = opening.checkpoint.filter(|checkpoint| checkpoint.position.is_some());
        self.may_give_up |= known.is_some_and(|known| scene.wall().since(known.heard_at) > scene.plan.stream.retention);
        self.known = self.known.max(known.and_then(|known| known.position).map(|position| position.0.0));
    }

    /// It has dropped its sessions, and goes by what the log says.
    pub(super) fn begins_again(&mut self) {
        self.heard_at = None;
        self.heard_wall = self.told_wall;
    }

    pub(super) fn woke(&mut self, now: Moment) {
        let (at, at_once, in_second) = self.wakes;
        let at_once = if at == now { at_once + 1 } else { 1 };
        let in_second = if at.as_secs() == now.as_secs() { in_second + 1 } else { 1 };
        assert!(at_once <= WAKES_AT_ONCE_MAX, "woken {at_once} times at one moment");
        assert!(in_second <= WAKES_A_SECOND_MAX, "woken {in_second} times within a second");
        self.wakes = (now, at_once, in_second);
    }

    pub(super) fn bounded(&self, buffered: usize, plan: &Plan) {
        let buffer = plan.stream.buffer;
        let limit = match plan.stream.overflow {
            Overflow::Backpressure => buffer + plan.frame_len_max as usize,
            // What is being appended, and what waits behind it.
            Overflow::DropOldest => 2 * buffer,
        };
        assert!(buffered <= limit + HOLDINGS, "{buffered} events are buffered, with a buffer of {buffer}");
    }

    pub(super) fn hears(&mut self, heard: &Heard, now: Moment, wall: Timestamp) {
        self.heard.extend(&heard.uids);
        self.heard_at = Some(now);
        self.heard_wall = wall;
        if heard.newest > self.known {
            self.known = heard.newest;
            self.may_give_up = false;
            self.poisoned = 0;
        }
    }

    /// A session ended, or could not be had.
    pub(super) fn failed(&mut self, failure: &Failure) {
        match failure {
            Failure::Oversize => self.may_give_up = true,
            Failure::Unfinished { .. } | Failure::Unreadable(_) => {
                self.poisoned += 1;
                self.may_give_up |= self.poisoned >= 2;
            }
            // A platform may refuse a position that it holds: the relay believes it.
            Failure::Handshake { status: 404 | 410, .. } => self.position_refused = true,
            Failure::Closed { .. }
            | Failure::Handshake { .. }
            | Failure::Call { .. }
            | Failure::Unreachable(_)
            | Failure::Silent
            | Failure::Said(_)
            | Failure::Unsubscribed { .. } => (),
        }
    }

    /// A position is asked for as long as the platform keeps it, and never when it is known not to.
    pub(super) fn dials(&mut self, dial: &Dial, scene: &Scene) {
        self.asked_position = position_in(&dial.url).is_some();
        let unheard = match self.heard_at {
            Some(at) => scene.now.saturating_sub(at),
            None => scene.wall().since(self.heard_wall),
        };
        let Some(known) = self.known.filter(|_| !self.follows) else { return };
        let too_old = unheard > scene.plan.stream.retention;
        self.may_give_up |= too_old;
        match position_in(&dial.url) {
            Some(asked) => {
                // While another session serves, nothing grows old.
                // One that begins again where a log ends that it took over goes by what that says.
                let told = scene.wall().since(self.told_wall) <= scene.plan.stream.retention;
                assert!(!too_old || told || self.connected, "asked to go on after {asked}, unheard for {unheard:?}");
                assert!(asked <= known, "asked to go on after {asked}, which nobody heard");
                self.position_refused = false;
            }
            None => {
                self.may_give_up |= std::mem::take(&mut self.position_refused);
                assert!(self.may_give_up, "the position {known} was given up without a reason");
            }
        }
    }

    /// The time of a checkpoint is the moment when the platform was last heard.
    pub(super) fn appends(&self, checkpoint: &Checkpoint, wall: Timestamp) {
        assert!(checkpoint.heard_at <= wall, "a checkpoint of the future");
        assert!(
            checkpoint.heard_at >= self.heard_wall || self.heard_at.is_none(),
            "a checkpoint forgets that the platform was heard"
        );
    }

    /// Data first, position second.
    pub(super) fn stored(&self, store: &Store) {
        let position = store.checkpoint.and_then(|checkpoint| checkpoint.position).map(|position| position.0.0);
        let newest = store.log.iter().rposition(|event| event.sequence.is_some());
        let number = newest.and_then(|place| store.log[place].sequence).map(|sequence| sequence.0);
        let shed = store.log[newest.map_or(0, |place| place + 1)..].iter().any(|event| reason(event) == Some("shed"));
        assert!(position == number || shed, "position {position:?} beside the newest number {number:?}");
    }

    pub(super) fn report(&mut self, report: &Report, scene: &Scene) {
        if scene.plan.night == Night::Planned {
            forbid_trouble(report);
        }
        match report {
            Report::Connected(true) => {
                self.connected = true;
                self.connected_since.get_or_insert(scene.now);
                self.replacing = false;
                self.heard_at = Some(scene.now);
                self.heard_wall = scene.wall();
            }
            Report::Connected(false) => {
                self.settle_row(scene);
                self.connected = false;
                // A planned break does not begin the proof of stability anew.
                self.connected_since = self.connected_since.filter(|_| self.replacing);
            }
            Report::RotationBegins(_) => self.replacing = true,
            Report::RotationFailed { .. } | Report::Rotated { .. } => self.replacing = false,
            Report::State(state) => self.state = *state,
            Report::Lost { failure, retry_in: Some(delay) } if self.is_position_refused(failure, *delay) => {
                self.settle_row(scene);
                self.connected_since = None;
            }
            Report::Lost { retry_in: Some(delay), .. } => self.backed_off(*delay, scene),
            Report::GivenUp { retry_in, .. } => self.backed_off(*retry_in, scene),
            Report::Gap { .. } => self.gaps += 1,
            Report::OtherFeed
            | Report::Resuming(_)
            | Report::Duplicates(_)
            | Report::Undecoded { .. }
            | Report::Shed(_)
            | Report::Lost { retry_in: None, .. }
            | Report::Breaker(_)
            | Report::Snapshot(_)
            | Report::Refused(_) => (),
        }
    }

    /// Only a connection that lasted ends a row of failures.
    fn settle_row(&mut self, scene: &Scene) {
        let lived = self.connected_since.map_or(Duration::ZERO, |since| scene.now - since);
        if lived >= scene.plan.stream.backoff.stable_after {
            self.failures = 0;
            self.failing_since = None;
        }
    }

    /// Whether the position was refused: then the next attempt follows at once, without it.
    fn is_position_refused(&self, failure: &Failure, delay: Duration) -> bool {
        let refused = matches!(failure, Failure::Handshake { status: 404 | 410, .. });
        refused && self.asked_position && delay <= Duration::from_millis(250)
    }

    /// Delays grow with each failure of a row, whatever else happened in between.
    fn backed_off(&mut self, delay: Duration, scene: &Scene) {
        let was_stable =
            self.connected_since.is_some_and(|since| scene.now - since >= scene.plan.stream.backoff.stable_after);
        self.settle_row(scene);
        self.connected_since = None;
        if was_stable && delay <= Duration::from_millis(250) {
            return;
        }
        let settings = scene.plan.stream.backoff;
        let grown = settings.first.saturating_mul(2_u32.saturating_pow(self.failures)).min(settings.cap);
        let since = *self.failing_since.get_or_insert(scene.now);
        self.failures += 1;
        let may_be_short = scene.now - since < SHORT_OUTAGE && delay >= SHORT_OUTAGE_STEP;
        assert!(
            may_be_short || delay >= grown.mul_f64(1.0 - settings.jitter - 0.001),
            "failure {} of a row is followed after {delay:?}",
            self.failures
        );
    }

    /// No session begins under a token that the platform rejected.
    pub(super) fn uses_token(&mut self, session: SessionId, generation: u64) {
        let first = !self.first_uses.contains_key(&session);
        if first {
            assert!(generation > self.refused, "{session:?} begins under the rejected token {generation}");
            self.first_uses.insert(session, generation);
        }
    }

    pub(super) fn token_refused(&mut self, generation: u64) {
        assert!(generation > self.refused, "token {generation} is refused twice");
        self.refused = generation;
        self.tokens.excuses += 1;
    }

    pub(super) fn token_wanted(&mut self) {
        self.tokens.excuses += 1;
    }

    pub(super) fn token_asked(&mut self, now: Moment) {
        self.tokens.asked_at = now;
    }

    /// A token is replaced before three quarters of its life only for a rejection or an operator's wish.
    pub(super) fn token_granted(&mut self, scene: &Scene) {
        let due = |before: Moment| before + scene.plan.token_life.mul_f64(0.75) - Duration::from_millis(1);
        if self.tokens.granted.is_some_and(|before| self.tokens.asked_at < due(before)) {
            self.tokens.early += 1;
        }
        self.tokens.granted = Some(self.tokens.asked_at);
        let Tokens { early, excuses, .. } = self.tokens;
        assert!(early <= excuses, "{early} tokens were asked for early, with {excuses} reasons");
    }
}

/// A planned change is no trouble: nothing is missed, nothing is lost, nobody is without a session.
fn forbid_trouble(report: &Report) {
    match report {
        Report::Gap { .. }
        | Report::OtherFeed
        | Report::Lost { .. }
        | Report::GivenUp { .. }
        | Report::Shed(_)
        | Report::RotationFailed { .. } => {
            panic!("a planned night, and yet: {report:?}");
        }
        Report::Rotated { silence, .. } => assert!(silence.is_zero(), "a planned change was heard: {report:?}"),
        Report::State(_)
        | Report::Connected(_)
        | Report::Resuming(_)
        | Report::Duplicates(_)
        | Report::Undecoded { .. }
        | Report::RotationBegins(_)
        | Report::Breaker(_)
        | Report::Snapshot(_)
        | Report::Refused(_) => (),
    }
}

/// The reason of a gap entry; none for any other entry.
pub(super) fn reason(event: &Event) -> Option<&str> {
    (event.kind == "trunkline.gap.v1").then(|| text_of(event).split('"').nth(3)).flatten()
}

/// Which event of the platform an entry is.
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
