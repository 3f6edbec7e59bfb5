//! What a standby hears: kept unread until the log is ours, and read then as if its session had just brought it.
//!
//! Bounded: the oldest give way, and it is remembered that they did.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    dedup::{self, DEDUP_WINDOW},
    rotation::OVERLAP_MAX,
};
use crate::{
    model::{Event, Position, Sequence, Timestamp},
    protocol::session::SessionId,
};

/// However large the buffer is: all that is kept is compared with the log at once, and memory of copies has a bound too.
const STANDBY_EVENTS_MAX: usize = 20_000;
/// The copies that two sessions of an overlap bring are heard within this time of one another.
const DUPLICATE_WAIT: Duration = OVERLAP_MAX.saturating_add(DEDUP_WINDOW);
/// A run of so many equal events is the same in the log and in the ring.
const RUN_MIN: usize = 3;
/// The wall clocks of two replicas differ by no more than this, in milliseconds.
const CLOCK_SKEW_MAX: i64 = 60_000;
/// No more sessions than this are remembered with their positions.
const SESSIONS_MAX: usize = 64;

/// The newest events of a log that another replica writes.
#[derive(Debug)]
pub(super) struct StandbyBuffer {
    events: VecDeque<ReceivedEvent>,
    limit: usize,
    bytes: usize,
    bytes_max: usize,
    /// What sessions up to this one bring is cut off from the rest.
    cut_before: SessionId,
    /// Something that was heard since the ring began is not kept, or was not heard for certain.
    overflowed: bool,
    /// The highest number that is not kept.
    dropped: Option<Sequence>,
    /// The first number that was heard since the ring began.
    first: Option<Sequence>,
    /// What each session that was live since then was asked to go on after; none: it began at the present.
    resumes: BTreeMap<SessionId, Option<Position>>,
    /// The same of the newest session, which may not be live yet.
    last_dialed: Option<(SessionId, Option<Position>)>,
}

#[derive(Debug)]
struct ReceivedEvent {
    session: SessionId,
    received_at: Instant,
    event: Event,
}

/// An event of the ring, and the sessions that have brought it.
#[derive(Debug)]
pub(super) struct BufferedEvent {
    pub(super) event: Event,
    pub(super) key: u64,
    received_at: Instant,
    pub(super) sessions: Vec<SessionId>,
}

/// Where the newest entries of the log and the ring begin to be the same: what lies in front of it in the ring is in the
/// log too, or in a hole that the log tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Splice {
    pub(super) entry: usize,
    pub(super) event: usize,
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

    /// A session is asked to go on there, or from the present on.
    pub(super) fn record_resume(&mut self, session: SessionId, after: Option<Position>) {
        self.last_dialed = Some((session, after));
    }

    /// Events come by this session.
    pub(super) fn on_live(&mut self, session: SessionId) {
        if self.resumes.len() >= SESSIONS_MAX {
            // The first is where the ring begins.
            let second = self.resumes.keys().nth(1).copied();
            second.and_then(|second| self.resumes.remove(&second));
        }
        let dialled = self.last_dialed.filter(|(dialled, _)| *dialled == session);
        self.resumes.insert(session, dialled.and_then(|(_, after)| after));
    }

    /// The only session is live: here the ring begins.
    pub(super) fn start_at(&mut self, session: SessionId) {
        self.on_live(session);
        self.overflowed = false;
    }

    /// What sessions up to this one brought, or will bring, does not reach up to what later ones bring.
    pub(super) fn mark_discontinuity(&mut self, session: SessionId) {
        self.cut_before = self.cut_before.max(session);
        self.resumes = self.resumes.split_off(&SessionId(self.cut_before.0 + 1));
        self.events.retain(|received| received.session > session);
        self.bytes = self.weight();
        self.overflowed = true;
        self.dropped = None;
        self.first = self.events.iter().find_map(|received| received.event.sequence);
    }

    /// A successor is lost, and the old session serves on: it has brought what this one did, or brings it still. If it
    /// turns out to be dead, what this one brought reaches neither back to it nor up to the next.
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

    /// Up to which position the log must reach to have this number. One that lies before the ring is of a numbering that
    /// started over, and no position tells whether the log has it.
    fn covering_position(&self, number: Sequence) -> Option<Sequence> {
        let in_order = self.start().is_none_or(|start| number > start.0);
        Some(if in_order { number } else { Sequence(u64::MAX) })
    }

    /// Whether something that belongs in front of what is kept may be in nobody's hands.
    pub(super) fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// What this session was asked to go on after, if it was dialled.
    pub(super) fn resume_of(&self, session: SessionId) -> Option<Option<Position>> {
        let dialled = self.last_dialed.filter(|(dialled, _)| *dialled == session).map(|(_, after)| after);
        self.resumes.get(&session).copied().or(dialled)
    }

    /// The number behind which nothing was missed; none when the ring began at the present and has heard none.
    fn start(&self) -> Option<Position> {
        let asked = self.resumes.values().next().copied().flatten();
        asked.or_else(|| self.first.map(|first| Position(Sequence(first.0.saturating_sub(1)))))
    }

    /// Whether the numbers that are kept have met the end of the log, wherever the sessions were asked to go on: lower
    /// numbers alone may be of a numbering that started over.
    fn touches(&self, position: Position) -> bool {
        let is_end = |number: Sequence| Position(number) == position || number == position.0.next();
        let first = self.first.filter(|first| *first <= position.0.next());
        first.is_some() && self.events.iter().filter_map(|received| received.event.sequence).any(is_end)
    }

    /// The session from which on everything behind this position is kept, or will come.
    pub(super) fn covering_session(&self, position: Position) -> Option<SessionId> {
        if self.dropped.is_some_and(|dropped| dropped > position.0) {
            return None;
        }
        if self.touches(position) {
            return Some(self.cut_before);
        }
        let mut sessions = self.resumes.iter();
        sessions.find(|(_, after)| after.is_some_and(|after| after <= position)).map(|(session, _)| *session)
    }

    /// The sessions that were heard or are `alive`, and behind which number each may repeat what the log has.
    pub(super) fn repeating(
        &self,
        alive: &[SessionId],
        position: Option<Position>,
    ) -> BTreeMap<SessionId, Option<Position>> {
        let sessions = self.events.iter().map(|received| received.session).chain(alive.iter().copied());
        let mut repeating = BTreeMap::new();
        for session in sessions {
            repeating.entry(session).or_insert_with(|| self.repeats_after(session, position));
        }
        repeating
    }

    /// Behind which number a session may repeat what a log with this position has.
    fn repeats_after(&self, session: SessionId, position: Option<Position>) -> Option<Position> {
        let asked = self.resume_of(session).flatten();
        let met = position.is_some_and(|position| self.touches(position));
        let first = self.first.filter(|_| met).map(|first| Position(Sequence(first.0.saturating_sub(1))));
        asked.into_iter().chain(first).min().or(self.start())
    }

    /// What was heard by this session and later ones, as it came.
    pub(super) fn take_from(&mut self, first: SessionId) -> impl Iterator<Item = (SessionId, Event)> + use<> {
        let kept = std::mem::take(&mut self.events).into_iter();
        kept.filter(move |received| received.session >= first).map(|received| (received.session, received.event))
    }

    /// What was heard, without the copies that its own sessions brought while they overlapped, in the order in which it
    /// was said: what a successor alone brought stands behind what the session before it had to say.
    pub(super) fn into_events(self, alive: &[SessionId]) -> Vec<BufferedEvent> {
        let mut received = Vec::from(self.events);
        received.sort_by_key(|received| received.session);
        let mut buffered: Vec<BufferedEvent> = Vec::new();
        let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
        // What this session alone has brought since its last copy of an older session's event.
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
                    // The older session said before this one what came before: it gave way.
                    let gave_way = alone.1.drain(..).filter(|_| self.overflowed);
                    gave_way.for_each(|place| buffered[place].sessions.clear());
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

impl BufferedEvent {
    /// Whether an equal event of this session, heard then, is a copy.
    fn expects_copy_from(&self, session: SessionId, at: Instant) -> bool {
        let apart = at.saturating_duration_since(self.received_at).max(self.received_at.saturating_duration_since(at));
        apart <= DUPLICATE_WAIT && !self.sessions.contains(&session)
    }
}

/// A session says what it says in order: one that lives has brought everything up to its newest event, or will never.
fn mark_delivered(buffered: &mut [BufferedEvent], alive: &[SessionId]) {
    let newest = |id: &SessionId| Some((*id, buffered.iter().rposition(|buffered| buffered.sessions.contains(id))?));
    let reached: Vec<(SessionId, usize)> = alive.iter().filter_map(newest).collect();
    for (place, buffered) in buffered.iter_mut().enumerate() {
        let past = reached.iter().filter(|(_, newest)| place <= *newest);
        let by: Vec<SessionId> = past.map(|(id, _)| *id).collect();
        if !by.is_empty() {
            buffered.sessions = by;
        }
    }
}

/// Lays the end of the log and a ring over one another; none if they do not follow one another event by event.
pub(super) fn find_splice(stored: &[u64], kept: &[u64]) -> Option<Splice> {
    let agree = |stored: &[u64], kept: &[u64]| stored.iter().zip(kept).all(|(stored, kept)| stored == kept);
    if stored.is_empty() || kept.is_empty() {
        return None;
    }
    if let Some(entry) = (0..stored.len()).find(|entry| agree(&stored[*entry..], kept)) {
        return Some(Splice { entry, event: 0 });
    }
    // By a few alone it may be chance.
    let enough = stored.len().min(kept.len().div_ceil(2));
    let mut places = 0..=kept.len() - enough;
    let begins = places.find(|event| agree(stored, &kept[*event..])).map(|event| Splice { entry: 0, event });
    begins.or_else(|| {
        // The last holder missed some of it and went on.
        let ends = (1..=kept.len()).rev().map(|event| (stored.len(), event));
        let ahead = (1..=stored.len()).rev().map(|entry| (entry, kept.len()));
        ends.chain(ahead).find_map(|(entry, event)| find_common_suffix(&stored[..entry], &kept[..event]))
    })
}

/// Behind which of the log's entries copies may still come: a session that lags behind the other of an overlap brings what
/// follows its newest event.
pub(super) fn copies_due_from(
    stored: &[u64],
    buffered: &[BufferedEvent],
    alive: &[SessionId],
    overlay: &Splice,
) -> usize {
    let newest = |id: &SessionId| buffered[..overlay.event].iter().rposition(|buffered| buffered.sessions.contains(id));
    let lags = |id: &&SessionId| !buffered[overlay.event..].iter().any(|buffered| buffered.sessions.contains(id));
    let entry_of = |place: usize| stored[..overlay.entry].iter().rposition(|key| *key == buffered[place].key);
    let behind = alive.iter().filter(lags).filter_map(newest).filter_map(entry_of).min();
    behind.map_or(overlay.entry, |entry| entry + 1)
}

/// Where the run begins by which both end, if it is long enough to be none by chance.
fn find_common_suffix(stored: &[u64], kept: &[u64]) -> Option<Splice> {
    let same = stored.iter().rev().zip(kept.iter().rev()).take_while(|(stored, kept)| stored == kept).count();
    (same >= RUN_MIN).then(|| Splice { entry: stored.len() - same, event: kept.len() - same })
}

/// Whether between the log and what is kept something may have been said that nobody holds.
pub(super) fn is_hole_likely(stored: &[u64], kept: &[u64], gave_way: bool, covered: bool) -> bool {
    let is_stored = |key: &u64| stored.contains(key);
    if gave_way { !kept.first().is_some_and(is_stored) } else { !covered && !kept.iter().any(is_stored) }
}

/// The newest gap that a log records, and what stands behind it.
#[derive(Debug)]
pub(super) struct RecordedGap {
    at: Timestamp,
    /// When the last entry behind it was received.
    last: Timestamp,
    behind: usize,
}

impl RecordedGap {
    /// None without a gap, or with nothing from the platform behind it.
    pub(super) fn find(stored: &[Event]) -> Option<Self> {
        let place = stored.iter().rposition(|entry| !is_platform_event(entry))?;
        let last = stored.last()?;
        let behind = stored.len() - 1 - place;
        (behind > 0).then_some(Self { at: stored[place].received, last: last.received, behind })
    }

    /// Lays the entries behind the gap over a ring that reaches back in front of it: what the ring holds in front of them
    /// lies in the gap. None if they follow one another in no place of the ring, or in more than one.
    pub(super) fn find_splice(&self, stored: &[u64], kept: &[u64]) -> Option<Splice> {
        let entry = stored.len() - self.behind;
        let agrees = |event: &usize| stored[entry..].iter().zip(&kept[*event..]).all(|(stored, kept)| stored == kept);
        let mut places = (0..kept.len()).filter(agrees);
        let event = places.next()?;
        places.next().is_none().then_some(Splice { entry, event })
    }

    /// Drops from a ring what may be older than the entries behind the gap: no log gets an older event behind a newer
    /// one, and the gap stands for what is missing. Returns whether anything was dropped.
    pub(super) fn drop_older(&self, stored: &[u64], buffered: &mut Vec<BufferedEvent>) -> bool {
        let Some(first) = buffered.first() else { return false };
        let begins_behind = stored[stored.len() - self.behind..].contains(&first.key);
        if begins_behind || first.event.received > plus_skew(self.at) {
            return false;
        }
        let before = buffered.len();
        buffered.retain(|buffered| buffered.event.received > plus_skew(self.last) || stored.contains(&buffered.key));
        buffered.len() < before
    }
}

fn plus_skew(at: Timestamp) -> Timestamp {
    Timestamp(at.0 + CLOCK_SKEW_MAX)
}

/// Whether an entry of the log came from the platform.
pub(super) fn is_platform_event(entry: &Event) -> bool {
    !matches!(&*entry.kind, "trunkline.gap.v1" | "trunkline.snapshot.v1")
}
