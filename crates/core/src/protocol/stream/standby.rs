//! The data path of a standby: its sessions are live, and a bounded buffer keeps the newest events for a takeover.
//!
//! The buffer does not look for duplicates or gaps before the takeover. It records whether it dropped events.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Instant,
};

use super::{dedup, link::PathInput, splice::BufferedEvent};
use crate::{
    connector::Item,
    model::{Event, Sequence},
    protocol::{Moment, session::SessionId},
};

/// The maximum number of events in the buffer, independent of the settings: a takeover compares all of them with the
/// log.
const STANDBY_EVENTS_MAX: usize = 20_000;
/// The buffer records the positions of at most this many sessions.
const SESSIONS_MAX: usize = 64;

/// The state of a stream while another replica owns the log.
#[derive(Debug)]
pub(super) struct Standby {
    pub(super) buffer: StandbyBuffer,
    /// The number of the log's last event, on a numbered stream.
    position: Option<Sequence>,
    is_position_abandoned: bool,
}

impl Standby {
    pub(super) fn new(buffer: StandbyBuffer) -> Self {
        Self { buffer, position: None, is_position_abandoned: false }
    }

    /// The owner's log ends with the event of this number.
    pub(super) fn follow(&mut self, position: Sequence) {
        self.position = Some(position);
        self.is_position_abandoned = false;
    }

    pub(super) fn position(&self) -> Option<Sequence> {
        self.position
    }

    /// The position for the next session; none if there is none or it was abandoned.
    pub(super) fn resume(&self) -> Option<Sequence> {
        self.position.filter(|_| !self.is_position_abandoned)
    }

    pub(super) fn abandon_position(&mut self) {
        self.is_position_abandoned = true;
    }

    pub(super) fn on_path_input(&mut self, input: &PathInput) {
        match input {
            PathInput::SuccessorLive(session) => self.buffer.on_live(*session),
            PathInput::SuccessorLost(session) => self.buffer.lose_successor(*session),
            PathInput::Discontinuity(session) => self.buffer.mark_discontinuity(*session),
            PathInput::Unflushed { session, only_if_held: false, .. } => self.buffer.mark_discontinuity(*session),
            PathInput::PositionAbandoned(_) => self.abandon_position(),
            // The owner marks gaps and removes duplicates; so does this replica after a takeover.
            PathInput::Unflushed { only_if_held: true, .. }
            | PathInput::OverlapStarted
            | PathInput::SuccessorHeld(_)
            | PathInput::OverlapEnded
            | PathInput::Outage(_)
            | PathInput::Gap(_)
            | PathInput::SnapshotRequests(_) => (),
        }
    }

    pub(super) fn accept_items(&mut self, items: Vec<Item>, session: SessionId, now: Moment) {
        for item in items {
            match item {
                Item::Event(event) => self.buffer.push(session, event, now.at),
                Item::Undecoded(frame) => self.buffer.push(session, Event::undecoded(frame, now.wall), now.at),
                // After a takeover the sessions start again at the position of the log.
                Item::Position(_) => (),
                Item::Notice(_) | Item::Heartbeat | Item::ProbeAck | Item::Accepted => (),
            }
        }
    }
}

/// The newest events of the live sessions.
#[derive(Debug)]
pub(super) struct StandbyBuffer {
    events: VecDeque<ReceivedEvent>,
    limit: usize,
    bytes: usize,
    bytes_max: usize,
    /// The buffer takes no events of sessions up to this one.
    cut_before: SessionId,
    /// The buffer dropped an event, or may have missed one, since it began.
    overflowed: bool,
    /// The highest sequence number that was dropped.
    dropped: Option<Sequence>,
    /// The first sequence number since the buffer began.
    first: Option<Sequence>,
    /// The position with which each session was dialled that was live since the buffer began; none: without a position.
    resumes: BTreeMap<SessionId, Option<Sequence>>,
    /// The newest session and the position with which it was dialled. It may not be live yet.
    last_dialed: Option<(SessionId, Option<Sequence>)>,
}

#[derive(Debug)]
struct ReceivedEvent {
    session: SessionId,
    received_at: Instant,
    event: Event,
}

impl StandbyBuffer {
    pub(super) fn new(limit: usize, bytes_max: usize) -> Self {
        Self {
            events: VecDeque::new(),
            limit: limit.min(STANDBY_EVENTS_MAX),
            bytes: 0,
            bytes_max,
            cut_before: SessionId(0),
            overflowed: false,
            dropped: None,
            first: None,
            resumes: BTreeMap::new(),
            last_dialed: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// A session is dialled with this position, or without one.
    pub(super) fn record_resume(&mut self, session: SessionId, after: Option<Sequence>) {
        self.last_dialed = Some((session, after));
    }

    /// A session is live.
    pub(super) fn on_live(&mut self, session: SessionId) {
        if self.resumes.len() >= SESSIONS_MAX {
            // The position of the first session is where the buffer begins.
            let second = self.resumes.keys().nth(1).copied();
            second.and_then(|second| self.resumes.remove(&second));
        }
        let dialled = self.last_dialed.filter(|(dialled, _)| *dialled == session);
        self.resumes.insert(session, dialled.and_then(|(_, after)| after));
    }

    /// The only session is live: the buffer begins here.
    pub(super) fn start_at(&mut self, session: SessionId) {
        self.on_live(session);
        self.overflowed = false;
    }

    /// Events may be missing between the sessions up to this one and later sessions: drops what they brought.
    pub(super) fn mark_discontinuity(&mut self, session: SessionId) {
        self.cut_before = self.cut_before.max(session);
        self.resumes = self.resumes.split_off(&SessionId(self.cut_before.0 + 1));
        self.events.retain(|received| received.session > session);
        self.bytes = self.weight();
        self.overflowed = true;
        self.dropped = None;
        self.first = self.events.iter().find_map(|received| received.event.sequence);
    }

    /// A successor is lost while the old session is live. The old session brings all its events too. If the old session
    /// turns out to be dead, events are missing on both sides of the successor's.
    pub(super) fn lose_successor(&mut self, session: SessionId) {
        self.resumes.remove(&session);
        self.events.retain(|received| received.session != session);
        self.bytes = self.weight();
    }

    fn weight(&self) -> usize {
        self.events.iter().map(|received| received.event.weight()).sum()
    }

    pub(super) fn push(&mut self, session: SessionId, event: Event, at: Instant) {
        if session <= self.cut_before {
            return;
        }
        self.first = self.first.or(event.sequence);
        self.bytes += event.weight();
        self.events.push_back(ReceivedEvent { session, received_at: at, event });
        while self.events.len() > self.limit || (self.bytes > self.bytes_max && self.events.len() > 1) {
            let oldest = self.events.pop_front();
            self.bytes -= oldest.as_ref().map_or(0, |oldest| oldest.event.weight());
            self.dropped = self.dropped.max(oldest.and_then(|oldest| self.covering_position(oldest.event.sequence?)));
            self.overflowed = true;
        }
    }

    /// The position that a log must have reached to contain this number. A number from before the buffer began belongs
    /// to a numbering that started over: no position shows whether the log contains it.
    fn covering_position(&self, number: Sequence) -> Option<Sequence> {
        let in_order = self.start().is_none_or(|start| number > start);
        Some(if in_order { number } else { Sequence(u64::MAX) })
    }

    /// Whether events in front of the buffer may be missing in the log too.
    pub(super) fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// The position with which this session was dialled; none if it was not dialled.
    pub(super) fn resume_of(&self, session: SessionId) -> Option<Option<Sequence>> {
        let dialled = self.last_dialed.filter(|(dialled, _)| *dialled == session).map(|(_, after)| after);
        self.resumes.get(&session).copied().or(dialled)
    }

    /// The position after which nothing is missing; none if the buffer began without a position and has no number.
    fn start(&self) -> Option<Sequence> {
        let asked = self.resumes.values().next().copied().flatten();
        asked.or_else(|| self.first.map(|first| Sequence(first.0.saturating_sub(1))))
    }

    /// Whether the buffer contains the last number of the log or the next one, and began before it. Lower numbers alone
    /// may belong to a numbering that started over.
    fn touches(&self, position: Sequence) -> bool {
        let is_end = |number: Sequence| number == position || number == position.next();
        let first = self.first.filter(|first| *first <= position.next());
        first.is_some() && self.events.iter().filter_map(|received| received.event.sequence).any(is_end)
    }

    /// The session from which on the sessions bring everything after this position.
    pub(super) fn covering_session(&self, position: Sequence) -> Option<SessionId> {
        if self.dropped.is_some_and(|dropped| dropped > position) {
            return None;
        }
        if self.touches(position) {
            return Some(self.cut_before);
        }
        let mut sessions = self.resumes.iter();
        sessions.find(|(_, after)| after.is_some_and(|after| after <= position)).map(|(session, _)| *session)
    }

    /// The first session whose events can follow the log's position; none if events between the two are missing here,
    /// and the sessions must start again. `dialled`: the current session, which is not live if `is_live` is false.
    pub(super) fn first_usable_session(
        &self,
        position: Option<Sequence>,
        is_live: bool,
        dialled: Option<SessionId>,
    ) -> Option<SessionId> {
        let Some(position) = position else { return Some(SessionId(0)) };
        if is_live {
            return self.covering_session(position);
        }
        // A session that is not dialled yet will use the log's position.
        let after = dialled.and_then(|session| self.resume_of(session));
        after.is_none_or(|after| after.is_some_and(|after| after <= position)).then_some(SessionId(0))
    }

    /// For each session in the buffer or in `alive`: the position after which it may repeat events of the log.
    pub(super) fn repeating(
        &self,
        alive: &[SessionId],
        position: Option<Sequence>,
    ) -> BTreeMap<SessionId, Option<Sequence>> {
        let sessions = self.events.iter().map(|received| received.session).chain(alive.iter().copied());
        let mut repeating = BTreeMap::new();
        for session in sessions {
            repeating.entry(session).or_insert_with(|| self.repeats_after(session, position));
        }
        repeating
    }

    /// The position after which a session may repeat events of a log with this position.
    fn repeats_after(&self, session: SessionId, position: Option<Sequence>) -> Option<Sequence> {
        let asked = self.resume_of(session).flatten();
        let met = position.is_some_and(|position| self.touches(position));
        let first = self.first.filter(|_| met).map(|first| Sequence(first.0.saturating_sub(1)));
        asked.into_iter().chain(first).min().or(self.start())
    }

    /// Takes the events of this session and of later ones, in the order of arrival.
    pub(super) fn take_from(&mut self, first: SessionId) -> impl Iterator<Item = (SessionId, Event)> + use<> {
        let kept = std::mem::take(&mut self.events).into_iter();
        kept.filter(move |received| received.session >= first).map(|received| (received.session, received.event))
    }

    /// The events without the copies of overlapping sessions, in the platform's order: events that only a successor
    /// brought come after those of the session before it.
    pub(super) fn into_events(self, alive: &[SessionId]) -> Vec<BufferedEvent> {
        let mut received = Vec::from(self.events);
        received.sort_by_key(|received| received.session);
        let mut buffered: Vec<BufferedEvent> = Vec::new();
        let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
        // The events of this session alone since its last copy of an older session's event.
        let mut alone: (SessionId, Vec<usize>) = (SessionId(0), Vec::new());
        for ReceivedEvent { session, received_at: at, event } in received {
            if alone.0 != session {
                alone = (session, Vec::new());
            }
            let key = dedup::key(&event);
            let same = places.entry(key).or_default();
            match same.iter().find(|place| buffered[**place].expects_copy_from(session, at)) {
                Some(place) => {
                    buffered[*place].sessions.push(session);
                    // The older session brought the events before this copy too. The buffer dropped them there.
                    let dropped = alone.1.drain(..).filter(|_| self.overflowed);
                    dropped.for_each(|place| buffered[place].sessions.clear());
                }
                None => {
                    same.push(buffered.len());
                    alone.1.push(buffered.len());
                    buffered.push(BufferedEvent { event, key, received_at: at, sessions: vec![session] });
                }
            }
        }
        buffered.retain(|buffered| !buffered.sessions.is_empty());
        mark_delivered(&mut buffered, alive);
        buffered
    }
}

/// A session keeps the order: a live session has brought everything up to its newest event, and brings nothing older.
fn mark_delivered(buffered: &mut [BufferedEvent], alive: &[SessionId]) {
    let newest = |id: &SessionId| Some((*id, buffered.iter().rposition(|buffered| buffered.sessions.contains(id))?));
    let reached: Vec<(SessionId, usize)> = alive.iter().filter_map(newest).collect();
    for (place, buffered) in buffered.iter_mut().enumerate() {
        let done = reached.iter().filter(|(_, newest)| place <= *newest);
        let sessions: Vec<SessionId> = done.map(|(id, _)| *id).collect();
        if !sessions.is_empty() {
            buffered.sessions = sessions;
        }
    }
}
