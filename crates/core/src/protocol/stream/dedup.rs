//! Equal events of an overlap: on a platform that numbers nothing, both sockets carry each event, and one is kept.
//!
//! Two equal events on *one* socket are both kept: the log gets as many as the socket that carried most.
//!
//! What the successor brings waits until the old session has said all that it had to say before: if the old one turns
//! out to be dead, the gap stands in front of it.

use std::{
    collections::{HashMap, VecDeque, hash_map::DefaultHasher},
    hash::{BuildHasherDefault, Hash, Hasher},
    time::{Duration, Instant},
};

use crate::{
    model::{Body, Event},
    protocol::session::SessionId,
};

/// The two copies of an event come within this time of one another, and this long after an overlap they are looked for.
pub(super) const DEDUP_WINDOW: Duration = Duration::from_secs(5);
/// More different events than this within the time are not looked after: the oldest are forgotten first.
const DEDUP_MAX: usize = 100_000;

/// The memory of one overlap. It exists only while there is one, and [`TWIN_WAIT`] longer.
#[derive(Debug, Default)]
pub(super) struct DedupWindow {
    counts: HashMap<u64, SessionCounts, BuildHasherDefault<DefaultHasher>>,
    ages: VecDeque<(Instant, u64)>,
    /// When the memory may be given up; none while sockets overlap.
    ends_at: Option<Instant>,
    /// Until then frames were left unread, or waited: what was remembered before is as old as this.
    suspended_until: Option<Instant>,
    successor: Option<HeldSuccessor>,
}

/// The new sessions of an overlap whose old one was asked and has not answered.
#[derive(Debug)]
struct HeldSuccessor {
    first: SessionId,
    held: Vec<HeldItem>,
    bytes: usize,
    /// The old session will not answer.
    predecessor_abandoned: bool,
}

/// What waits for the old session.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a break among the events is rare")]
pub(super) enum HeldItem {
    Event(SessionId, Event),
    /// Here one successor was lost, and the next began. It is a hole if the old session did not fill it.
    Discontinuity,
}

/// How often each socket carried an event. Few sockets overlap, so a list is the quickest map.
#[derive(Debug, Default)]
struct SessionCounts(Vec<(SessionId, u32)>);

impl DedupWindow {
    /// Whether the event is new; false for the copy of one that the other socket carried already.
    pub(super) fn insert(&mut self, event: &Event, session: SessionId, now: Instant) -> bool {
        if self.successor.is_some() {
            self.suspended_until = Some(now);
        }
        self.evict(now);
        let key = key(event);
        let counts = self.counts.entry(key).or_insert_with(|| {
            self.ages.push_back((now, key));
            SessionCounts::default()
        });
        counts.increment(session)
    }

    /// The sockets no longer overlap: copies may still be on their way for a while.
    pub(super) fn end(&mut self, now: Instant) {
        self.ends_at.get_or_insert(now + DEDUP_WINDOW);
    }

    /// Another overlap begins before this one's memory was given up.
    pub(super) fn resume(&mut self) {
        self.ends_at = None;
    }

    /// From here on the events of this session, and of later ones, wait.
    pub(super) fn hold_from(&mut self, session: SessionId) {
        self.successor.get_or_insert(HeldSuccessor {
            first: session,
            held: Vec::new(),
            bytes: 0,
            predecessor_abandoned: false,
        });
    }

    /// The newest of them is lost.
    pub(super) fn lose_successor(&mut self) {
        if let Some(successor) = &mut self.successor
            && matches!(successor.held.last(), Some(HeldItem::Event(..)))
        {
            successor.held.push(HeldItem::Discontinuity);
        }
    }

    /// The old session will not answer: nobody else fills the holes between them.
    pub(super) fn abandon_predecessor(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.predecessor_abandoned = true;
        }
    }

    /// Keeps the event back if its session has to wait; else it is given back.
    pub(super) fn hold(&mut self, event: Event, session: SessionId) -> Option<Event> {
        match &mut self.successor {
            Some(successor) if session >= successor.first => {
                successor.bytes += event.weight();
                successor.held.push(HeldItem::Event(session, event));
                None
            }
            Some(_) | None => Some(event),
        }
    }

    pub(super) fn held(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.held.len())
    }

    /// What the kept events weigh.
    pub(super) fn held_bytes(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.bytes)
    }

    /// What waited is to be taken in now; the breaks that are left are holes.
    pub(super) fn release(&mut self, now: Instant) -> Vec<HeldItem> {
        let Some(mut successor) = self.successor.take() else { return Vec::new() };
        self.suspended_until = Some(now);
        if !successor.predecessor_abandoned {
            successor.held.retain(|held| *held != HeldItem::Discontinuity);
        }
        successor.held
    }

    /// Frames are left unread for our own reasons: copies wait in the sockets, and nothing grows old.
    pub(super) fn suspend_timers(&mut self, now: Instant) {
        self.suspended_until = Some(now);
        self.ends_at = self.ends_at.map(|ends| ends.max(now + DEDUP_WINDOW));
    }

    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.ends_at
    }

    fn evict(&mut self, now: Instant) {
        while let Some((at, key)) = self.ages.front() {
            let at = self.suspended_until.map_or(*at, |until| until.max(*at));
            if at + DEDUP_WINDOW >= now && self.ages.len() < DEDUP_MAX {
                return;
            }
            self.counts.remove(key);
            self.ages.pop_front();
        }
    }
}

impl SessionCounts {
    /// Counts one more on this socket; whether that is more than any had before.
    fn increment(&mut self, session: SessionId) -> bool {
        let most = self.0.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let count = match self.0.iter_mut().find(|(id, _)| *id == session) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                self.0.push((session, 1));
                1
            }
        };
        count > most
    }
}

/// What two copies have in common.
pub(super) fn key(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.subject.hash(&mut hasher);
    match &event.body {
        Body::Json(text) => text.hash(&mut hasher),
        Body::Binary(bytes) => bytes.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some moment to start from")]
mod tests {
    use bytestring::ByteString;

    use super::*;
    use crate::model::Timestamp;

    fn event(body: &str) -> Event {
        Event {
            kind: ByteString::from_static("e"),
            subject: Some(ByteString::from_static("t")),
            time: None,
            sequence: None,
            correlation: None,
            partition_key: None,
            body: Body::Json(body.into()),
            received: Timestamp(0),
        }
    }

    /// `a1` is event `a` by socket 1; the capital letters of the answer were kept.
    fn check(script: &str, expected: &str) {
        let (mut twins, now) = (DedupWindow::default(), Instant::now());
        let held = |word: &str| {
            let session = SessionId(word[1..].parse().unwrap());
            if twins.insert(&event(&word[..1]), session, now) { word.to_uppercase() } else { word.to_owned() }
        };
        let told: Vec<String> = script.split_whitespace().map(held).collect();
        assert_eq!(told.join(" "), expected);
    }

    #[test]
    fn an_event_from_both_sessions_is_stored_once() {
        check("a1 a2 b2 b1 c1 c2", "A1 a2 B2 b1 C1 c2");
    }

    #[test]
    fn two_equal_events_of_one_session_are_both_stored() {
        check("a1 a1 a2 a2", "A1 A1 a2 a2");
        check("a1 a2 a2 a1", "A1 a2 A2 a1");
    }

    #[test]
    fn a_copy_that_comes_much_later_is_another_event() {
        let (mut twins, now) = (DedupWindow::default(), Instant::now());
        assert!(twins.insert(&event("a"), SessionId(1), now));
        assert!(!twins.insert(&event("a"), SessionId(2), now + DEDUP_WINDOW));
        assert!(twins.insert(&event("a"), SessionId(2), now + DEDUP_WINDOW * 3));
    }

    #[test]
    fn events_of_a_successor_are_deduplicated_on_late_release() {
        let (mut twins, now) = (DedupWindow::default(), Instant::now());
        assert!(twins.insert(&event("a"), SessionId(1), now));
        twins.hold_from(SessionId(2));
        assert_eq!(twins.hold(event("a"), SessionId(2)), None);
        assert_eq!(twins.hold(event("b"), SessionId(1)), Some(event("b")));
        assert!(twins.insert(&event("b"), SessionId(1), now + DEDUP_WINDOW * 2));
        let later = now + DEDUP_WINDOW * 3;
        assert_eq!(twins.release(later), [HeldItem::Event(SessionId(2), event("a"))]);
        assert!(!twins.insert(&event("a"), SessionId(2), later));
    }

    #[test]
    fn between_two_successors_is_a_gap_unless_the_predecessor_covers_it() {
        for alone in [false, true] {
            let (mut twins, now) = (DedupWindow::default(), Instant::now());
            twins.hold_from(SessionId(2));
            twins.lose_successor();
            assert_eq!(twins.hold(event("a"), SessionId(2)), None);
            twins.lose_successor();
            twins.hold_from(SessionId(3));
            assert_eq!(twins.hold(event("b"), SessionId(3)), None);
            if alone {
                twins.abandon_predecessor();
            }
            let breaks = twins.release(now).iter().filter(|held| **held == HeldItem::Discontinuity).count();
            assert_eq!(breaks, usize::from(alone));
        }
    }

    #[test]
    fn a_copy_delayed_by_backpressure_is_still_a_duplicate() {
        let (mut twins, now) = (DedupWindow::default(), Instant::now());
        twins.end(now);
        assert!(twins.insert(&event("a"), SessionId(1), now));
        twins.suspend_timers(now + DEDUP_WINDOW * 3);
        assert_eq!(twins.ends_at(), Some(now + DEDUP_WINDOW * 4));
        assert!(!twins.insert(&event("a"), SessionId(2), now + DEDUP_WINDOW * 4));
    }
}
