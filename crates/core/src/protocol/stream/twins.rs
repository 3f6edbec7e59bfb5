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
pub(super) const TWIN_WAIT: Duration = Duration::from_secs(5);
/// More different events than this within the time are not looked after: the oldest are forgotten first.
const TWINS_MAX: usize = 100_000;

/// The memory of one overlap. It exists only while there is one, and [`TWIN_WAIT`] longer.
#[derive(Debug, Default)]
pub(super) struct Twins {
    counts: HashMap<u64, Counts, BuildHasherDefault<DefaultHasher>>,
    ages: VecDeque<(Instant, u64)>,
    /// When the memory may be given up; none while sockets overlap.
    ends: Option<Instant>,
    /// Until then frames were left unread, or waited: what was remembered before is as old as this.
    unread_until: Option<Instant>,
    successor: Option<Successor>,
}

/// The new sessions of an overlap whose old one was asked and has not answered.
#[derive(Debug)]
struct Successor {
    first: SessionId,
    kept: Vec<Kept>,
    bytes: usize,
    /// The old session will not answer.
    alone: bool,
}

/// What waits for the old session.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a break among the events is rare")]
pub(super) enum Kept {
    Event(SessionId, Event),
    /// Here one successor was lost, and the next began. It is a hole if the old session did not fill it.
    Break,
}

/// How often each socket carried an event. Few sockets overlap, so a list is the quickest map.
#[derive(Debug, Default)]
struct Counts(Vec<(SessionId, u32)>);

impl Twins {
    /// Whether the event is new; false for the copy of one that the other socket carried already.
    pub(super) fn is_new(&mut self, event: &Event, session: SessionId, now: Instant) -> bool {
        if self.successor.is_some() {
            self.unread_until = Some(now);
        }
        self.forget(now);
        let key = key(event);
        let counts = self.counts.entry(key).or_insert_with(|| {
            self.ages.push_back((now, key));
            Counts::default()
        });
        counts.rises(session)
    }

    /// The sockets no longer overlap: copies may still be on their way for a while.
    pub(super) fn end(&mut self, now: Instant) {
        self.ends.get_or_insert(now + TWIN_WAIT);
    }

    /// Another overlap begins before this one's memory was given up.
    pub(super) fn go_on(&mut self) {
        self.ends = None;
    }

    /// From here on the events of this session, and of later ones, wait.
    pub(super) fn hold(&mut self, session: SessionId) {
        self.successor.get_or_insert(Successor { first: session, kept: Vec::new(), bytes: 0, alone: false });
    }

    /// The newest of them is lost.
    pub(super) fn lose_successor(&mut self) {
        if let Some(successor) = &mut self.successor
            && matches!(successor.kept.last(), Some(Kept::Event(..)))
        {
            successor.kept.push(Kept::Break);
        }
    }

    /// The old session will not answer: nobody else fills the holes between them.
    pub(super) fn write_off(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.alone = true;
        }
    }

    /// Keeps the event back if its session has to wait; else it is given back.
    pub(super) fn keep_back(&mut self, event: Event, session: SessionId) -> Option<Event> {
        match &mut self.successor {
            Some(successor) if session >= successor.first => {
                successor.bytes += event.weight();
                successor.kept.push(Kept::Event(session, event));
                None
            }
            Some(_) | None => Some(event),
        }
    }

    pub(super) fn held(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.kept.len())
    }

    /// What the kept events weigh.
    pub(super) fn held_bytes(&self) -> usize {
        self.successor.as_ref().map_or(0, |successor| successor.bytes)
    }

    /// What waited is to be taken in now; the breaks that are left are holes.
    pub(super) fn release(&mut self, now: Instant) -> Vec<Kept> {
        let Some(mut successor) = self.successor.take() else { return Vec::new() };
        self.unread_until = Some(now);
        if !successor.alone {
            successor.kept.retain(|kept| *kept != Kept::Break);
        }
        successor.kept
    }

    /// Frames are left unread for our own reasons: copies wait in the sockets, and nothing grows old.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.unread_until = Some(now);
        self.ends = self.ends.map(|ends| ends.max(now + TWIN_WAIT));
    }

    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.ends
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, key)) = self.ages.front() {
            let at = self.unread_until.map_or(*at, |until| until.max(*at));
            if at + TWIN_WAIT >= now && self.ages.len() < TWINS_MAX {
                return;
            }
            self.counts.remove(key);
            self.ages.pop_front();
        }
    }
}

impl Counts {
    /// Counts one more on this socket; whether that is more than any had before.
    fn rises(&mut self, session: SessionId) -> bool {
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
        let (mut twins, now) = (Twins::default(), Instant::now());
        let kept = |word: &str| {
            let session = SessionId(word[1..].parse().unwrap());
            if twins.is_new(&event(&word[..1]), session, now) { word.to_uppercase() } else { word.to_owned() }
        };
        let told: Vec<String> = script.split_whitespace().map(kept).collect();
        assert_eq!(told.join(" "), expected);
    }

    #[test]
    fn an_event_that_both_sockets_carry_is_kept_once() {
        check("a1 a2 b2 b1 c1 c2", "A1 a2 B2 b1 C1 c2");
    }

    #[test]
    fn two_equal_events_of_one_socket_are_both_kept() {
        check("a1 a1 a2 a2", "A1 A1 a2 a2");
        check("a1 a2 a2 a1", "A1 a2 A2 a1");
    }

    #[test]
    fn a_copy_that_comes_much_later_is_another_event() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        assert!(twins.is_new(&event("a"), SessionId(1), now));
        assert!(!twins.is_new(&event("a"), SessionId(2), now + TWIN_WAIT));
        assert!(twins.is_new(&event("a"), SessionId(2), now + TWIN_WAIT * 3));
    }

    #[test]
    fn what_a_successor_brought_is_compared_when_it_is_released_however_late() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        assert!(twins.is_new(&event("a"), SessionId(1), now));
        twins.hold(SessionId(2));
        assert_eq!(twins.keep_back(event("a"), SessionId(2)), None);
        assert_eq!(twins.keep_back(event("b"), SessionId(1)), Some(event("b")));
        assert!(twins.is_new(&event("b"), SessionId(1), now + TWIN_WAIT * 2));
        let later = now + TWIN_WAIT * 3;
        assert_eq!(twins.release(later), [Kept::Event(SessionId(2), event("a"))]);
        assert!(!twins.is_new(&event("a"), SessionId(2), later));
    }

    #[test]
    fn between_two_successors_is_a_hole_unless_the_old_session_filled_it() {
        for alone in [false, true] {
            let (mut twins, now) = (Twins::default(), Instant::now());
            twins.hold(SessionId(2));
            twins.lose_successor();
            assert_eq!(twins.keep_back(event("a"), SessionId(2)), None);
            twins.lose_successor();
            twins.hold(SessionId(3));
            assert_eq!(twins.keep_back(event("b"), SessionId(3)), None);
            if alone {
                twins.write_off();
            }
            let breaks = twins.release(now).iter().filter(|kept| **kept == Kept::Break).count();
            assert_eq!(breaks, usize::from(alone));
        }
    }

    #[test]
    fn a_copy_that_we_left_unread_is_known_however_late() {
        let (mut twins, now) = (Twins::default(), Instant::now());
        twins.end(now);
        assert!(twins.is_new(&event("a"), SessionId(1), now));
        twins.excuse(now + TWIN_WAIT * 3);
        assert_eq!(twins.ends_at(), Some(now + TWIN_WAIT * 4));
        assert!(!twins.is_new(&event("a"), SessionId(2), now + TWIN_WAIT * 4));
    }
}
