//! The dedup window of an overlap, on a platform without sequence numbers: both sessions bring each event, and one copy
//! is stored.
//!
//! Equal events of *one* session are all stored: the log gets as many copies as the session that brought most.
//!
//! Events of the successor wait until the old session has answered a probe. If it does not answer, a gap comes first.

use std::{
    collections::{HashMap, VecDeque, hash_map::DefaultHasher},
    hash::{BuildHasherDefault, Hash, Hasher},
    time::{Duration, Instant},
};

use crate::{
    model::{Body, Event, Position},
    protocol::session::SessionId,
};

/// Two copies of an event arrive within this time. The window stays open for this time after an overlap.
pub(super) const DEDUP_WINDOW: Duration = Duration::from_secs(5);
/// The maximum number of different events in the window. The oldest are evicted first.
const DEDUP_MAX: usize = 100_000;

/// The events of one overlap. The window exists during the overlap, and [`DEDUP_WINDOW`] longer.
#[derive(Debug, Default)]
pub(super) struct DedupWindow {
    counts: HashMap<u64, SessionCounts, BuildHasherDefault<DefaultHasher>>,
    ages: VecDeque<(Instant, u64)>,
    /// When the window closes; none while sessions overlap.
    ends_at: Option<Instant>,
    /// Frames were not read, or events waited, until this time. Older events count as received at this time.
    suspended_until: Option<Instant>,
    successor: Option<HeldSuccessor>,
}

/// The new sessions of an overlap whose old session has not answered its probe.
#[derive(Debug)]
struct HeldSuccessor {
    first: SessionId,
    held: Vec<HeldItem>,
    bytes: usize,
    /// The old session will not answer its probe.
    predecessor_abandoned: bool,
}

/// An item that waits for the old session.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a discontinuity is rare")]
pub(super) enum HeldItem {
    Event(SessionId, Event),
    Position(SessionId, Position),
    /// Here one successor was lost and the next began. It is a gap unless the old session answers its probe.
    Discontinuity,
}

/// How many times each session brought an event. Few sessions overlap, so a list is the fastest map.
#[derive(Debug, Default)]
struct SessionCounts(Vec<(SessionId, u32)>);

impl DedupWindow {
    /// Adds an event. Returns false if it is a copy of an event of another session.
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

    /// The overlap ends. Copies may arrive until the window closes.
    pub(super) fn end(&mut self, now: Instant) {
        self.ends_at.get_or_insert(now + DEDUP_WINDOW);
    }

    /// Another overlap begins before the window has closed.
    pub(super) fn resume(&mut self) {
        self.ends_at = None;
    }

    /// Events of this session and of later ones wait from here on.
    pub(super) fn hold_from(&mut self, session: SessionId) {
        self.successor.get_or_insert(HeldSuccessor {
            first: session,
            held: Vec::new(),
            bytes: 0,
            predecessor_abandoned: false,
        });
    }

    /// The newest session that waits is lost.
    pub(super) fn lose_successor(&mut self) {
        if let Some(successor) = &mut self.successor
            && !matches!(successor.held.last(), None | Some(HeldItem::Discontinuity))
        {
            successor.held.push(HeldItem::Discontinuity);
        }
    }

    /// The old session will not answer its probe: discontinuities between its successors are gaps.
    pub(super) fn abandon_predecessor(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.predecessor_abandoned = true;
        }
    }

    /// Holds the event if its session has to wait. Otherwise returns it.
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

    /// Holds a position if its session has to wait. Returns whether it does.
    pub(super) fn hold_position(&mut self, position: &Position, session: SessionId) -> bool {
        let successor = self.successor.as_mut().filter(|successor| session >= successor.first);
        successor.map(|successor| successor.held.push(HeldItem::Position(session, position.clone()))).is_some()
    }

    pub(super) fn held(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.held.len())
    }

    /// The size of the held events in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.bytes)
    }

    /// Takes the held items. Each discontinuity among them is a gap.
    pub(super) fn release(&mut self, now: Instant) -> Vec<HeldItem> {
        let Some(mut successor) = self.successor.take() else { return Vec::new() };
        self.suspended_until = Some(now);
        if !successor.predecessor_abandoned {
            successor.held.retain(|held| *held != HeldItem::Discontinuity);
        }
        successor.held
    }

    /// Frames are not read because the buffer is full: copies wait in the sockets, so no event expires.
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
    /// Counts one more for this session. Returns whether it is more than the highest count so far.
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

/// A hash that is equal for two copies of an event.
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

    /// `a1` is event `a` by session 1. In the expected text stored events have capital letters.
    fn check(script: &str, expected: &str) {
        let (mut window, now) = (DedupWindow::default(), Instant::now());
        let held = |word: &str| {
            let session = SessionId(word[1..].parse().unwrap());
            if window.insert(&event(&word[..1]), session, now) { word.to_uppercase() } else { word.to_owned() }
        };
        let results: Vec<String> = script.split_whitespace().map(held).collect();
        assert_eq!(results.join(" "), expected);
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
    fn an_equal_event_after_the_window_is_new() {
        let (mut window, now) = (DedupWindow::default(), Instant::now());
        assert!(window.insert(&event("a"), SessionId(1), now));
        assert!(!window.insert(&event("a"), SessionId(2), now + DEDUP_WINDOW));
        assert!(window.insert(&event("a"), SessionId(2), now + DEDUP_WINDOW * 3));
    }

    #[test]
    fn events_of_a_successor_are_deduplicated_on_late_release() {
        let (mut window, now) = (DedupWindow::default(), Instant::now());
        assert!(window.insert(&event("a"), SessionId(1), now));
        window.hold_from(SessionId(2));
        assert_eq!(window.hold(event("a"), SessionId(2)), None);
        assert_eq!(window.hold(event("b"), SessionId(1)), Some(event("b")));
        assert!(window.insert(&event("b"), SessionId(1), now + DEDUP_WINDOW * 2));
        let later = now + DEDUP_WINDOW * 3;
        assert_eq!(window.release(later), [HeldItem::Event(SessionId(2), event("a"))]);
        assert!(!window.insert(&event("a"), SessionId(2), later));
    }

    #[test]
    fn between_two_successors_is_a_gap_unless_the_predecessor_covers_it() {
        for is_abandoned in [false, true] {
            let (mut window, now) = (DedupWindow::default(), Instant::now());
            window.hold_from(SessionId(2));
            window.lose_successor();
            assert_eq!(window.hold(event("a"), SessionId(2)), None);
            window.lose_successor();
            window.hold_from(SessionId(3));
            assert_eq!(window.hold(event("b"), SessionId(3)), None);
            if is_abandoned {
                window.abandon_predecessor();
            }
            let discontinuities = window.release(now).iter().filter(|held| **held == HeldItem::Discontinuity).count();
            assert_eq!(discontinuities, usize::from(is_abandoned));
        }
    }

    #[test]
    fn a_copy_delayed_by_backpressure_is_still_a_duplicate() {
        let (mut window, now) = (DedupWindow::default(), Instant::now());
        window.end(now);
        assert!(window.insert(&event("a"), SessionId(1), now));
        window.suspend_timers(now + DEDUP_WINDOW * 3);
        assert_eq!(window.ends_at(), Some(now + DEDUP_WINDOW * 4));
        assert!(!window.insert(&event("a"), SessionId(2), now + DEDUP_WINDOW * 4));
    }
}
