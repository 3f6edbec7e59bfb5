//! What a standby hears: kept unread until the log is ours, and read then as if its session had just brought it.
//!
//! Bounded: the oldest give way, and it is remembered that they did.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    planned::OVERLAP_MAX,
    twins::{self, TWIN_WAIT},
};
use crate::{
    model::{Event, Position, Sequence, Timestamp},
    protocol::session::SessionId,
};

/// However large the buffer is: all that is kept is compared with the log at once, and memory of copies has a bound too.
const KEPT_MAX: usize = 20_000;
/// The copies that two sessions of an overlap bring are heard within this time of one another.
const COPY_WAIT: Duration = OVERLAP_MAX.saturating_add(TWIN_WAIT);
/// A run of so many equal events is the same in the log and in the ring.
const RUN_MIN: usize = 3;
/// The wall clocks of two replicas differ by no more than this, in milliseconds.
const CLOCK_SKEW_MAX: i64 = 60_000;
/// No more sessions than this are remembered with their positions.
const SESSIONS_MAX: usize = 64;

/// The newest events of a log that another replica writes.
#[derive(Debug)]
pub(super) struct Ring {
    kept: VecDeque<Heard>,
    limit: usize,
    bytes: usize,
    bytes_max: usize,
    /// What sessions up to this one bring is cut off from the rest.
    cut: SessionId,
    /// Something that was heard since the ring began is not kept, or was not heard for certain.
    gave_way: bool,
    /// The highest number that is not kept.
    dropped: Option<Sequence>,
    /// The first number that was heard since the ring began.
    first: Option<Sequence>,
    /// What each session that was live since then was asked to go on after; none: it began at the present.
    asked: BTreeMap<SessionId, Option<Position>>,
    /// The same of the newest session, which may not be live yet.
    dialled: Option<(SessionId, Option<Position>)>,
}

#[derive(Debug)]
struct Heard {
    session: SessionId,
    at: Instant,
    event: Event,
}

/// An event of the ring, and the sessions that have brought it.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) event: Event,
    pub(super) key: u64,
    at: Instant,
    pub(super) by: Vec<SessionId>,
}

/// Where the newest entries of the log and the ring begin to be the same: what lies in front of it in the ring is in the
/// log too, or in a hole that the log tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    pub(super) entry: usize,
    pub(super) event: usize,
}

impl Ring {
    pub(super) fn new(limit: usize, bytes_max: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            limit: limit.min(KEPT_MAX),
            bytes: 0,
            bytes_max,
            cut: SessionId(0),
            gave_way: false,
            dropped: None,
            first: None,
            asked: BTreeMap::new(),
            dialled: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// A session is asked to go on there, or from the present on.
    pub(super) fn resumes(&mut self, session: SessionId, after: Option<Position>) {
        self.dialled = Some((session, after));
    }

    /// Events come by this session.
    pub(super) fn hears(&mut self, session: SessionId) {
        if self.asked.len() >= SESSIONS_MAX {
            // The first is where the ring begins.
            let second = self.asked.keys().nth(1).copied();
            second.and_then(|second| self.asked.remove(&second));
        }
        let dialled = self.dialled.filter(|(dialled, _)| *dialled == session);
        self.asked.insert(session, dialled.and_then(|(_, after)| after));
    }

    /// The only session is live: here the ring begins.
    pub(super) fn begin(&mut self, session: SessionId) {
        self.hears(session);
        self.gave_way = false;
    }

    /// What sessions up to this one brought, or will bring, does not reach up to what later ones bring.
    pub(super) fn cut_off(&mut self, session: SessionId) {
        self.cut = self.cut.max(session);
        self.asked = self.asked.split_off(&SessionId(self.cut.0 + 1));
        self.kept.retain(|heard| heard.session > session);
        self.bytes = self.weight();
        self.gave_way = true;
        self.dropped = None;
        self.first = self.kept.iter().find_map(|heard| heard.event.sequence);
    }

    /// A successor is lost, and the old session serves on: it has brought what this one did, or brings it still. If it
    /// turns out to be dead, what this one brought reaches neither back to it nor up to the next.
    pub(super) fn lose_successor(&mut self, session: SessionId) {
        self.asked.remove(&session);
        self.kept.retain(|heard| heard.session != session);
        self.bytes = self.weight();
    }

    fn weight(&self) -> usize {
        self.kept.iter().map(|heard| heard.event.weight()).sum()
    }

    pub(super) fn keep(&mut self, session: SessionId, event: Event, at: Instant) {
        if session <= self.cut {
            return;
        }
        self.first = self.first.or(event.sequence);
        self.bytes += event.weight();
        self.kept.push_back(Heard { session, at, event });
        while self.kept.len() > self.limit || (self.bytes > self.bytes_max && self.kept.len() > 1) {
            let oldest = self.kept.pop_front();
            self.bytes -= oldest.as_ref().map_or(0, |oldest| oldest.event.weight());
            self.dropped = self.dropped.max(oldest.and_then(|oldest| self.told_by(oldest.event.sequence?)));
            self.gave_way = true;
        }
    }

    /// Up to which position the log must reach to have this number. One that lies before the ring is of a numbering that
    /// started over, and no position tells whether the log has it.
    fn told_by(&self, number: Sequence) -> Option<Sequence> {
        let in_order = self.start().is_none_or(|start| number > start.0);
        Some(if in_order { number } else { Sequence(u64::MAX) })
    }

    /// Whether something that belongs in front of what is kept may be in nobody's hands.
    pub(super) fn gave_way(&self) -> bool {
        self.gave_way
    }

    /// What this session was asked to go on after, if it was dialled.
    pub(super) fn asked(&self, session: SessionId) -> Option<Option<Position>> {
        let dialled = self.dialled.filter(|(dialled, _)| *dialled == session).map(|(_, after)| after);
        self.asked.get(&session).copied().or(dialled)
    }

    /// The number behind which nothing was missed; none when the ring began at the present and has heard none.
    fn start(&self) -> Option<Position> {
        let asked = self.asked.values().next().copied().flatten();
        asked.or_else(|| self.first.map(|first| Position(Sequence(first.0.saturating_sub(1)))))
    }

    /// Whether the numbers that are kept have met the end of the log, wherever the sessions were asked to go on: lower
    /// numbers alone may be of a numbering that started over.
    fn met(&self, position: Position) -> bool {
        let is_end = |number: Sequence| Position(number) == position || number == position.0.next();
        let first = self.first.filter(|first| *first <= position.0.next());
        first.is_some() && self.kept.iter().filter_map(|heard| heard.event.sequence).any(is_end)
    }

    /// The session from which on everything behind this position is kept, or will come.
    pub(super) fn reaches(&self, position: Position) -> Option<SessionId> {
        if self.dropped.is_some_and(|dropped| dropped > position.0) {
            return None;
        }
        if self.met(position) {
            return Some(self.cut);
        }
        let mut sessions = self.asked.iter();
        sessions.find(|(_, after)| after.is_some_and(|after| after <= position)).map(|(session, _)| *session)
    }

    /// The sessions that were heard or are `alive`, and behind which number each may repeat what the log has.
    pub(super) fn repeating(
        &self,
        alive: &[SessionId],
        position: Option<Position>,
    ) -> BTreeMap<SessionId, Option<Position>> {
        let sessions = self.kept.iter().map(|heard| heard.session).chain(alive.iter().copied());
        let mut repeating = BTreeMap::new();
        for session in sessions {
            repeating.entry(session).or_insert_with(|| self.repeats_after(session, position));
        }
        repeating
    }

    /// Behind which number a session may repeat what a log with this position has.
    fn repeats_after(&self, session: SessionId, position: Option<Position>) -> Option<Position> {
        let asked = self.asked(session).flatten();
        let met = position.is_some_and(|position| self.met(position));
        let first = self.first.filter(|_| met).map(|first| Position(Sequence(first.0.saturating_sub(1))));
        asked.into_iter().chain(first).min().or(self.start())
    }

    /// What was heard by this session and later ones, as it came.
    pub(super) fn take_from(&mut self, first: SessionId) -> impl Iterator<Item = (SessionId, Event)> + use<> {
        let kept = std::mem::take(&mut self.kept).into_iter();
        kept.filter(move |heard| heard.session >= first).map(|heard| (heard.session, heard.event))
    }

    /// What was heard, without the copies that its own sessions brought while they overlapped, in the order in which it
    /// was said: what a successor alone brought stands behind what the session before it had to say.
    pub(super) fn into_carried(self, alive: &[SessionId]) -> Vec<Carried> {
        let mut heard = Vec::from(self.kept);
        heard.sort_by_key(|heard| heard.session);
        let mut carried: Vec<Carried> = Vec::new();
        let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
        // What this session alone has brought since its last copy of an older session's event.
        let mut alone: (SessionId, Vec<usize>) = (SessionId(0), Vec::new());
        for Heard { session, at, event } in heard {
            if alone.0 != session {
                alone = (session, Vec::new());
            }
            let key = twins::key(&event);
            let same = places.entry(key).or_default();
            match same.iter().find(|place| carried[**place].is_due_from(session, at)) {
                Some(place) => {
                    carried[*place].by.push(session);
                    // The older session said before this one what came before: it gave way.
                    let gave_way = alone.1.drain(..).filter(|_| self.gave_way);
                    gave_way.for_each(|place| carried[place].by.clear());
                }
                None => {
                    same.push(carried.len());
                    alone.1.push(carried.len());
                    carried.push(Carried { event, key, at, by: vec![session] });
                }
            }
        }
        carried.retain(|carried| !carried.by.is_empty());
        count_as_brought(&mut carried, alive);
        carried
    }
}

impl Carried {
    /// Whether an equal event of this session, heard then, is a copy.
    fn is_due_from(&self, session: SessionId, at: Instant) -> bool {
        let apart = at.saturating_duration_since(self.at).max(self.at.saturating_duration_since(at));
        apart <= COPY_WAIT && !self.by.contains(&session)
    }
}

/// A session says what it says in order: one that lives has brought everything up to its newest event, or will never.
fn count_as_brought(carried: &mut [Carried], alive: &[SessionId]) {
    let newest = |id: &SessionId| Some((*id, carried.iter().rposition(|carried| carried.by.contains(id))?));
    let reached: Vec<(SessionId, usize)> = alive.iter().filter_map(newest).collect();
    for (place, carried) in carried.iter_mut().enumerate() {
        let past = reached.iter().filter(|(_, newest)| place <= *newest);
        let by: Vec<SessionId> = past.map(|(id, _)| *id).collect();
        if !by.is_empty() {
            carried.by = by;
        }
    }
}

/// Lays the end of the log and a ring over one another; none if they do not follow one another event by event.
pub(super) fn lay_over(stored: &[u64], kept: &[u64]) -> Option<Overlay> {
    let agree = |stored: &[u64], kept: &[u64]| stored.iter().zip(kept).all(|(stored, kept)| stored == kept);
    if stored.is_empty() || kept.is_empty() {
        return None;
    }
    if let Some(entry) = (0..stored.len()).find(|entry| agree(&stored[*entry..], kept)) {
        return Some(Overlay { entry, event: 0 });
    }
    // By a few alone it may be chance.
    let enough = stored.len().min(kept.len().div_ceil(2));
    let mut places = 0..=kept.len() - enough;
    let begins = places.find(|event| agree(stored, &kept[*event..])).map(|event| Overlay { entry: 0, event });
    begins.or_else(|| {
        // The last holder missed some of it and went on.
        let ends = (1..=kept.len()).rev().map(|event| (stored.len(), event));
        let ahead = (1..=stored.len()).rev().map(|entry| (entry, kept.len()));
        ends.chain(ahead).find_map(|(entry, event)| run_in_front(&stored[..entry], &kept[..event]))
    })
}

/// Behind which of the log's entries copies may still come: a session that lags behind the other of an overlap brings what
/// follows its newest event.
pub(super) fn due_from(stored: &[u64], carried: &[Carried], alive: &[SessionId], overlay: &Overlay) -> usize {
    let newest = |id: &SessionId| carried[..overlay.event].iter().rposition(|carried| carried.by.contains(id));
    let lags = |id: &&SessionId| !carried[overlay.event..].iter().any(|carried| carried.by.contains(id));
    let entry_of = |place: usize| stored[..overlay.entry].iter().rposition(|key| *key == carried[place].key);
    let behind = alive.iter().filter(lags).filter_map(newest).filter_map(entry_of).min();
    behind.map_or(overlay.entry, |entry| entry + 1)
}

/// Where the run begins by which both end, if it is long enough to be none by chance.
fn run_in_front(stored: &[u64], kept: &[u64]) -> Option<Overlay> {
    let same = stored.iter().rev().zip(kept.iter().rev()).take_while(|(stored, kept)| stored == kept).count();
    (same >= RUN_MIN).then(|| Overlay { entry: stored.len() - same, event: kept.len() - same })
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
        let place = stored.iter().rposition(|entry| !is_heard(entry))?;
        let last = stored.last()?;
        let behind = stored.len() - 1 - place;
        (behind > 0).then_some(Self { at: stored[place].received, last: last.received, behind })
    }

    /// Lays the entries behind the gap over a ring that reaches back in front of it: what the ring holds in front of them
    /// lies in the gap. None if they follow one another in no place of the ring, or in more than one.
    pub(super) fn lay_over(&self, stored: &[u64], kept: &[u64]) -> Option<Overlay> {
        let entry = stored.len() - self.behind;
        let agrees = |event: &usize| stored[entry..].iter().zip(&kept[*event..]).all(|(stored, kept)| stored == kept);
        let mut places = (0..kept.len()).filter(agrees);
        let event = places.next()?;
        places.next().is_none().then_some(Overlay { entry, event })
    }

    /// Drops from a ring what may be older than the entries behind the gap: no log gets an older event behind a newer
    /// one, and the gap stands for what is missing. Returns whether anything was dropped.
    pub(super) fn drop_older(&self, stored: &[u64], carried: &mut Vec<Carried>) -> bool {
        let Some(first) = carried.first() else { return false };
        let begins_behind = stored[stored.len() - self.behind..].contains(&first.key);
        if begins_behind || first.event.received > plus_skew(self.at) {
            return false;
        }
        let before = carried.len();
        carried.retain(|carried| carried.event.received > plus_skew(self.last) || stored.contains(&carried.key));
        carried.len() < before
    }
}

fn plus_skew(at: Timestamp) -> Timestamp {
    Timestamp(at.0 + CLOCK_SKEW_MAX)
}

/// Whether an entry of the log came from the platform.
pub(super) fn is_heard(entry: &Event) -> bool {
    !matches!(&*entry.kind, "trunkline.gap.v1" | "trunkline.snapshot.v1")
}
