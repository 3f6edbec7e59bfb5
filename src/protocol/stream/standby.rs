//! What a standby hears: kept unread until the log is ours, and read then as if its session had just brought it.
//!
//! Bounded: the oldest give way, and it is remembered that they did.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use super::twins::{self, Twins};
use crate::{
    model::{Event, Position, Sequence},
    protocol::session::SessionId,
};

/// However large the buffer is: all that is kept is compared with the log at once, and memory of copies has a bound too.
const KEPT_MAX: usize = 50_000;
/// No more sessions than this are remembered with their positions.
const SESSIONS_MAX: usize = 64;

/// The newest events of a log that another replica writes.
#[derive(Debug)]
pub(super) struct Ring {
    kept: VecDeque<Heard>,
    limit: usize,
    /// What sessions up to this one bring is cut off from the rest.
    cut: SessionId,
    /// Something that was heard since the ring began is not kept, or was not heard for certain.
    gave_way: bool,
    /// The highest number that is not kept.
    dropped: Option<Sequence>,
    /// The first number that was heard since the ring began.
    first: Option<Sequence>,
    /// What each session was asked to go on after.
    asked: BTreeMap<SessionId, Option<Position>>,
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
    pub(super) by: Vec<SessionId>,
}

/// How the end of the log and the ring lie over one another.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Overlay {
    /// From this entry on the log holds what the ring holds, as far as either goes.
    FromEntry(usize),
    /// The log that is there begins with this event of the ring.
    FromEvent(usize),
    /// They do not follow one another event by event.
    Unclear,
}

impl Ring {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            limit: limit.min(KEPT_MAX),
            cut: SessionId(0),
            gave_way: false,
            dropped: None,
            first: None,
            asked: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// A session is asked to go on there, or from the present on.
    pub(super) fn resumes(&mut self, session: SessionId, after: Option<Position>) {
        if self.asked.len() >= SESSIONS_MAX {
            // The first is where the ring begins.
            let second = self.asked.keys().nth(1).copied();
            second.and_then(|second| self.asked.remove(&second));
        }
        self.asked.insert(session, after);
    }

    /// The only session is live: here the ring begins.
    pub(super) fn begin(&mut self, session: SessionId) {
        self.asked = self.asked.split_off(&session);
        self.gave_way = false;
    }

    /// What sessions up to this one brought, or will bring, does not reach up to what later ones bring.
    pub(super) fn cut_off(&mut self, session: SessionId) {
        self.cut = self.cut.max(session);
        self.asked = self.asked.split_off(&SessionId(self.cut.0 + 1));
        self.kept.retain(|heard| heard.session > session);
        self.gave_way = true;
        self.dropped = None;
        self.first = self.kept.iter().find_map(|heard| heard.event.sequence);
    }

    pub(super) fn keep(&mut self, session: SessionId, event: Event, at: Instant) {
        if session <= self.cut {
            return;
        }
        self.first = self.first.or(event.sequence);
        self.kept.push_back(Heard { session, at, event });
        while self.kept.len() > self.limit {
            let oldest = self.kept.pop_front();
            self.dropped = self.dropped.max(oldest.and_then(|oldest| oldest.event.sequence));
            self.gave_way = true;
        }
    }

    /// Whether something that belongs in front of what is kept may be in nobody's hands.
    pub(super) fn gave_way(&self) -> bool {
        self.gave_way
    }

    /// What this session was asked to go on after, if it was dialled.
    pub(super) fn asked(&self, session: SessionId) -> Option<Option<Position>> {
        self.asked.get(&session).copied()
    }

    /// The number behind which nothing was missed; none when the ring began at the present and has heard none.
    pub(super) fn start(&self) -> Option<Position> {
        let asked = self.asked.values().next().copied().flatten();
        asked.or_else(|| self.first.map(|first| Position(Sequence(first.0.saturating_sub(1)))))
    }

    /// Whether everything behind this position is kept, or will come.
    pub(super) fn reaches(&self, position: Position) -> bool {
        self.start().is_some_and(|start| start <= position) && self.dropped.is_none_or(|dropped| dropped <= position.0)
    }

    /// What was heard, as it came.
    pub(super) fn into_heard(self) -> impl Iterator<Item = (SessionId, Event)> {
        self.kept.into_iter().map(|heard| (heard.session, heard.event))
    }

    /// What was heard, without the copies that its own sessions brought while they overlapped. A session that is
    /// `alive` counts as having brought everything up to its newest event: it says what it says in order.
    pub(super) fn into_carried(self, alive: &[SessionId]) -> Vec<Carried> {
        let newest = |id: &SessionId| Some((*id, self.kept.iter().rposition(|heard| heard.session == *id)?));
        let reached: Vec<(SessionId, usize)> = alive.iter().filter_map(newest).collect();
        let mut twins = Twins::default();
        let mut carried = Vec::new();
        for (place, Heard { session, at, event }) in self.kept.into_iter().enumerate() {
            if !twins.is_new(&event, session, at) {
                continue;
            }
            let past = reached.iter().filter(|(_, newest)| place <= *newest);
            let mut by: Vec<SessionId> = past.map(|(id, _)| *id).collect();
            if by.is_empty() {
                by.push(session);
            }
            carried.push(Carried { event, by });
        }
        carried
    }
}

/// Where the newest entries of the log and the events of a ring are the same.
pub(super) fn lay_over(stored: &[u64], kept: &[u64]) -> Overlay {
    let agree = |stored: &[u64], kept: &[u64]| stored.iter().zip(kept).all(|(stored, kept)| stored == kept);
    if !kept.is_empty()
        && let Some(entry) = (0..stored.len()).find(|entry| agree(&stored[*entry..], kept))
    {
        return Overlay::FromEntry(entry);
    }
    let within = kept.len().checked_sub(stored.len()).filter(|_| !stored.is_empty());
    let event = within.and_then(|last| (0..=last).find(|event| agree(stored, &kept[*event..])));
    event.map_or(Overlay::Unclear, Overlay::FromEvent)
}

/// Whether between the log and what is kept something may have been said that nobody holds.
pub(super) fn is_hole_likely(stored: &[u64], kept: &[u64], gave_way: bool, covered: bool) -> bool {
    let is_stored = |key: &u64| stored.contains(key);
    if gave_way { !kept.first().is_some_and(is_stored) } else { !covered && !kept.iter().any(is_stored) }
}

/// What the events of a platform without numbers are compared by; the relay's own entries are no such events.
pub(super) fn keys_of<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<u64> {
    events.map(twins::key).collect()
}

/// Whether an entry of the log came from the platform.
pub(super) fn is_heard(entry: &Event) -> bool {
    !matches!(&*entry.kind, "trunkline.gap.v1" | "trunkline.snapshot.v1")
}
