//! The numbered stream: what was said lately, in one shared ring that every socket reads by its own cursor, so
//! that a slow reader costs nothing. It refuses to grow: age, count and bytes are bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most entries held; at more, the effective retention is shorter than the one in the settings.
const ENTRIES_MAX: usize = 200_000;
/// Most text held.
const BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long an entry stays readable for sockets that are merely slow, when the retention is shorter.
const SLOW_MAX: Duration = Duration::from_secs(120);

/// A frame that goes out exactly as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    Text(String),
    Binary(Vec<u8>),
    /// A text frame whose bytes need not be UTF-8.
    InvalidText(Vec<u8>),
    /// One text message in this many frames.
    Fragments {
        text: String,
        pieces: usize,
    },
}

impl Raw {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Fragments { text, .. } => text.len(),
            Self::Binary(bytes) | Self::InvalidText(bytes) => bytes.len(),
        }
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Event {
        sequence: u64,
        text: Arc<str>,
        /// Only a resume brings it.
        unsent: bool,
    },
    /// Said again: for those who listen, not for those who resume.
    Echo {
        text: Arc<str>,
    },
    Raw(Arc<Raw>),
}

impl Entry {
    fn len(&self) -> usize {
        match self {
            Self::Event { text, .. } | Self::Echo { text } => text.len(),
            Self::Raw(raw) => raw.len(),
        }
    }
}

#[derive(Debug)]
struct Held {
    said_at: Instant,
    entry: Entry,
}

/// Where one socket is. `floor` hides from a resumed one what it had already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    index: u64,
    floor: u64,
    replay_end: u64,
}

/// What a cursor finds.
#[derive(Debug)]
pub(super) enum Found {
    Events(Vec<Arc<str>>),
    Raw(Arc<Raw>),
    Nothing,
    /// What it wanted is no longer held.
    Fallen,
}

#[derive(Debug)]
pub(super) struct Sequence {
    held: VecDeque<Held>,
    bytes: usize,
    /// The index of the first entry held; indices never start over.
    first: u64,
    /// The index at which the present numbering began.
    numbering: u64,
    last: u64,
    retention: Duration,
    reversing: Option<Reversal>,
    /// So many of the next events are not sent to open sockets.
    pub(super) unsent: u64,
}

/// Events held back until as many as wanted are there.
#[derive(Debug)]
struct Reversal {
    wanted: usize,
    kept: Vec<(u64, Arc<str>)>,
}

impl Sequence {
    pub(super) fn new(retention: Duration) -> Self {
        Self { held: VecDeque::new(), bytes: 0, first: 0, numbering: 0, last: 0, retention, reversing: None, unsent: 0 }
    }

    /// The highest number said in the present numbering.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Says one event; `write` is given its number.
    pub(super) fn say(&mut self, now: Instant, write: impl FnOnce(u64) -> String) {
        self.last += 1;
        let (sequence, text) = (self.last, Arc::<str>::from(write(self.last)));
        let Some(mut reversal) = self.reversing.take() else {
            let unsent = self.unsent > 0;
            self.unsent = self.unsent.saturating_sub(1);
            return self.push(now, Entry::Event { sequence, text, unsent });
        };
        reversal.kept.push((sequence, text));
        if reversal.kept.len() < reversal.wanted {
            self.reversing = Some(reversal);
            return;
        }
        for (sequence, text) in reversal.kept.into_iter().rev() {
            self.push(now, Entry::Event { sequence, text, unsent: false });
        }
    }

    pub(super) fn say_raw(&mut self, now: Instant, raw: Raw) {
        self.push(now, Entry::Raw(Arc::new(raw)));
    }

    /// The last `n` events are said again.
    pub(super) fn duplicate(&mut self, now: Instant, n: u64) {
        let count = usize::try_from(n).unwrap_or(usize::MAX);
        let texts = self.held.iter().rev().filter_map(|held| match &held.entry {
            Entry::Event { text, .. } => Some(text.clone()),
            Entry::Echo { .. } | Entry::Raw(_) => None,
        });
        let again: Vec<_> = texts.take(count).collect();
        for text in again.into_iter().rev() {
            self.push(now, Entry::Echo { text });
        }
    }

    /// Skips `n` numbers.
    pub(super) fn jump(&mut self, n: u64) {
        self.last = self.last.saturating_add(n);
    }

    /// Starts the numbering over: the next event is 1, and older ones cannot be resumed.
    pub(super) fn reset(&mut self) {
        self.last = 0;
        self.numbering = self.end();
    }

    /// The next `n` events are said in reverse.
    pub(super) fn reverse(&mut self, n: usize) {
        if self.reversing.is_none() {
            self.reversing = Some(Reversal { wanted: n, kept: Vec::new() });
        }
    }

    /// Where the next entry will stand.
    pub(super) fn end(&self) -> u64 {
        self.first + self.held.len() as u64
    }

    /// The cursor of a socket that has everything up to `after`. Without a number, or with one that is too old
    /// or from another numbering, it starts at the present position and nobody says so.
    pub(super) fn enter(&self, after: Option<u64>, now: Instant) -> Cursor {
        let end = self.end();
        let present = Cursor { index: end, floor: 0, replay_end: end };
        let Some(after) = after else { return present };
        let is_held = |(_, oldest): (u64, u64)| oldest <= after.saturating_add(1);
        if !self.replayable(now).next().is_some_and(is_held) {
            return present;
        }
        match self.replayable(now).find(|(_, sequence)| *sequence > after) {
            Some((index, _)) => Cursor { index, floor: after, replay_end: end },
            None => present,
        }
    }

    /// Events that can be resumed, as index and number, oldest first.
    fn replayable(&self, now: Instant) -> impl Iterator<Item = (u64, u64)> {
        let young = self.held.partition_point(|held| now.duration_since(held.said_at) > self.retention);
        let begin = young.max(usize::try_from(self.numbering.saturating_sub(self.first)).unwrap_or(usize::MAX));
        self.held.iter().enumerate().skip(begin).filter_map(|(offset, held)| match held.entry {
            Entry::Event { sequence, .. } => Some((self.first + offset as u64, sequence)),
            Entry::Echo { .. } | Entry::Raw(_) => None,
        })
    }

    /// Up to `max` events after the cursor, or one raw frame; the cursor moves past them.
    pub(super) fn read(&self, cursor: &mut Cursor, max: usize) -> Found {
        if cursor.index < self.first {
            return Found::Fallen;
        }
        let mut events = Vec::new();
        let start = usize::try_from(cursor.index - self.first).unwrap_or(usize::MAX);
        for held in self.held.iter().skip(start) {
            let replayed = cursor.index < cursor.replay_end;
            match &held.entry {
                Entry::Event { sequence, .. } if replayed && *sequence <= cursor.floor => (),
                Entry::Event { unsent: true, .. } if !replayed => (),
                Entry::Echo { .. } | Entry::Raw(_) if replayed => (),
                Entry::Raw(raw) if events.is_empty() => {
                    cursor.index += 1;
                    return Found::Raw(raw.clone());
                }
                Entry::Raw(_) => break,
                Entry::Event { text, .. } | Entry::Echo { text } => events.push(text.clone()),
            }
            cursor.index += 1;
            if events.len() >= max {
                break;
            }
        }
        if events.is_empty() { Found::Nothing } else { Found::Events(events) }
    }

    fn push(&mut self, now: Instant, entry: Entry) {
        self.bytes += entry.len();
        self.held.push_back(Held { said_at: now, entry });
        while self.is_full(now) {
            let Some(oldest) = self.held.pop_front() else {
                break;
            };
            self.bytes -= oldest.entry.len();
            self.first += 1;
        }
    }

    /// The newest entry always stays.
    fn is_full(&self, now: Instant) -> bool {
        let age = self.held.front().map_or(Duration::ZERO, |held| now.duration_since(held.said_at));
        let over = self.held.len() > ENTRIES_MAX || self.bytes > BYTES_MAX || age > self.retention.max(SLOW_MAX);
        over && self.held.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    const RETENTION: Duration = Duration::from_secs(60);

    #[test]
    fn resume_replays_what_retention_holds_and_else_starts_in_silence() {
        let begin = now();
        let mut sequence = Sequence::new(RETENTION);
        for number in 0..10 {
            sequence.say(begin + Duration::from_secs(10 * number), |n| n.to_string());
        }
        // Ninety seconds in, events 1 to 3 are older than retention.
        let now = begin + Duration::from_secs(90);
        let table = [
            (Some(10), vec![]),
            (Some(8), vec!["9", "10"]),
            (Some(3), vec!["4", "5", "6", "7", "8", "9", "10"]),
            (Some(2), vec![]),
            (Some(0), vec![]),
            (None, vec![]),
            (Some(99), vec![]),
        ];
        for (after, expected) in table {
            let mut cursor = sequence.enter(after, now);
            assert_eq!(events(&sequence, &mut cursor), expected, "after {after:?}");
        }
    }

    #[test]
    fn from_nothing_resume_begins_with_the_first_event_while_it_is_held() {
        let (sequence, now) = said(3);
        assert_eq!(events(&sequence, &mut sequence.enter(Some(0), now)), ["1", "2", "3"]);
    }

    #[test]
    fn a_jump_leaves_a_hole_and_a_reset_starts_at_one() {
        let (mut sequence, now) = said(2);
        let mut live = sequence.enter(None, now);
        sequence.jump(5);
        sequence.say(now, |n| n.to_string());
        sequence.reset();
        sequence.say(now, |n| n.to_string());
        sequence.say(now, |n| n.to_string());
        assert_eq!(events(&sequence, &mut live), ["8", "1", "2"]);
        assert_eq!(events(&sequence, &mut sequence.enter(Some(1), now)), ["2"]);
    }

    #[test]
    fn duplicates_and_reversed_events_are_for_those_who_listen() {
        let (mut sequence, now) = said(3);
        let mut live = sequence.enter(Some(3), now);
        sequence.duplicate(now, 2);
        sequence.reverse(3);
        for _ in 0..3 {
            sequence.say(now, |n| n.to_string());
        }
        assert_eq!(events(&sequence, &mut live), ["2", "3", "6", "5", "4"]);
        assert_eq!(events(&sequence, &mut sequence.enter(Some(1), now)), ["2", "3", "6", "5", "4"]);
        assert_eq!(events(&sequence, &mut sequence.enter(Some(4), now)), ["6", "5"]);
    }

    #[test]
    fn the_ring_is_bounded_and_a_reader_too_slow_is_told() {
        let begin = now();
        let mut sequence = Sequence::new(RETENTION);
        let mut slow = sequence.enter(None, begin);
        for _ in 0..ENTRIES_MAX + 10 {
            sequence.say(begin, |_| String::new());
        }
        assert_eq!(sequence.held.len(), ENTRIES_MAX);
        assert!(matches!(sequence.read(&mut slow, 10), Found::Fallen));
    }

    #[test]
    fn raw_frames_stand_alone_between_events() {
        let (mut sequence, now) = said(0);
        let mut live = sequence.enter(None, now);
        sequence.say(now, |n| n.to_string());
        sequence.say_raw(now, Raw::Text("?".to_owned()));
        sequence.say(now, |n| n.to_string());
        assert!(matches!(sequence.read(&mut live, 10), Found::Events(events) if events.len() == 1));
        assert!(matches!(sequence.read(&mut live, 10), Found::Raw(raw) if *raw == Raw::Text("?".to_owned())));
        assert!(matches!(sequence.read(&mut live, 10), Found::Events(events) if *events[0] == *"2"));
        assert!(matches!(sequence.read(&mut live, 10), Found::Nothing));
    }

    #[test]
    fn an_unsent_event_is_for_those_who_resume() {
        let (mut sequence, now) = said(1);
        let mut live = sequence.enter(Some(1), now);
        sequence.unsent = 2;
        for _ in 0..3 {
            sequence.say(now, |n| n.to_string());
        }
        assert_eq!(events(&sequence, &mut live), ["4"]);
        assert_eq!(events(&sequence, &mut sequence.enter(Some(1), now)), ["2", "3", "4"]);
    }

    fn said(count: u64) -> (Sequence, Instant) {
        let now = now();
        let mut sequence = Sequence::new(RETENTION);
        for _ in 0..count {
            sequence.say(now, |n| n.to_string());
        }
        (sequence, now)
    }

    fn events(sequence: &Sequence, cursor: &mut Cursor) -> Vec<String> {
        let mut all = Vec::new();
        while let Found::Events(events) = sequence.read(cursor, 2) {
            all.extend(events.iter().map(|text| text.to_string()));
        }
        all
    }
}
