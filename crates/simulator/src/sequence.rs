//! The numbered stream: the recent entries in one shared ring. Each socket reads it with its own cursor, so a slow
//! reader needs no memory of its own. Age, count and bytes are bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most entries held. At the bound, the effective retention is shorter than in the settings.
const ENTRIES_MAX: usize = 200_000;
/// Most bytes of text held.
const BYTES_MAX: usize = 256 * 1024 * 1024;
/// How long an entry stays readable for slow open sockets, if the retention is shorter.
const SLOW_MAX: Duration = Duration::from_secs(120);

/// A frame that is sent unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawFrame {
    Text(String),
    Binary(Vec<u8>),
    /// A text frame whose bytes may be invalid UTF-8.
    InvalidText(Vec<u8>),
    /// One text message in this many fragments.
    Fragments {
        text: String,
        pieces: usize,
    },
}

impl RawFrame {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Fragments { text, .. } => text.len(),
            Self::Binary(bytes) | Self::InvalidText(bytes) => bytes.len(),
        }
    }
}

#[derive(Clone, Debug)]
enum SequenceEntry {
    Event {
        sequence: u64,
        text: Arc<str>,
        /// Sent on a resume only.
        unsent: bool,
    },
    /// A repetition: sent to open sockets, not on a resume.
    Echo {
        text: Arc<str>,
    },
    Raw(Arc<RawFrame>),
}

impl SequenceEntry {
    fn len(&self) -> usize {
        match self {
            Self::Event { text, .. } | Self::Echo { text } => text.len(),
            Self::Raw(raw) => raw.len(),
        }
    }
}

#[derive(Debug)]
struct RingEntry {
    emitted_at: Instant,
    entry: SequenceEntry,
}

/// The read position of one socket. A resumed socket does not get numbers up to `floor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingCursor {
    index: u64,
    floor: u64,
    replay_end: u64,
}

/// The result of a read at a cursor.
#[derive(Debug)]
pub(super) enum RingRead {
    Events(Vec<Arc<str>>),
    Raw(Arc<RawFrame>),
    Nothing,
    /// The wanted entries are no longer held.
    Overrun,
}

#[derive(Debug)]
pub(super) struct SequenceRing {
    entries: VecDeque<RingEntry>,
    bytes: usize,
    /// The index of the first entry held; indices never restart.
    first: u64,
    /// The index at which the current numbering began.
    numbering_start: u64,
    last: u64,
    retention: Duration,
    reversal: Option<ReversalBuffer>,
    /// How many of the next events are not sent to open sockets.
    pub(super) unsent: u64,
}

/// Events that are held until their reversed batch is complete.
#[derive(Debug)]
struct ReversalBuffer {
    wanted: usize,
    events: Vec<(u64, Arc<str>)>,
}

impl SequenceRing {
    pub(super) fn new(retention: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            first: 0,
            numbering_start: 0,
            last: 0,
            retention,
            reversal: None,
            unsent: 0,
        }
    }

    /// The highest number of the current numbering.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Adds one event; `write` gets its number.
    pub(super) fn push_event(&mut self, now: Instant, write: impl FnOnce(u64) -> String) {
        self.last += 1;
        let (sequence, text) = (self.last, Arc::<str>::from(write(self.last)));
        let Some(mut reversal) = self.reversal.take() else {
            let unsent = self.unsent > 0;
            self.unsent = self.unsent.saturating_sub(1);
            return self.push(now, SequenceEntry::Event { sequence, text, unsent });
        };
        reversal.events.push((sequence, text));
        if reversal.events.len() < reversal.wanted {
            self.reversal = Some(reversal);
            return;
        }
        for (sequence, text) in reversal.events.into_iter().rev() {
            self.push(now, SequenceEntry::Event { sequence, text, unsent: false });
        }
    }

    pub(super) fn push_raw(&mut self, now: Instant, raw: RawFrame) {
        self.push(now, SequenceEntry::Raw(Arc::new(raw)));
    }

    /// Repeats the last `n` events.
    pub(super) fn duplicate(&mut self, now: Instant, n: u64) {
        let count = usize::try_from(n).unwrap_or(usize::MAX);
        let texts = self.entries.iter().rev().filter_map(|held| match &held.entry {
            SequenceEntry::Event { text, .. } => Some(text.clone()),
            SequenceEntry::Echo { .. } | SequenceEntry::Raw(_) => None,
        });
        let again: Vec<_> = texts.take(count).collect();
        for text in again.into_iter().rev() {
            self.push(now, SequenceEntry::Echo { text });
        }
    }

    /// Skips `n` numbers.
    pub(super) fn jump(&mut self, n: u64) {
        self.last = self.last.saturating_add(n);
    }

    /// Restarts the numbering: the next event is 1, and older ones cannot be resumed.
    pub(super) fn reset(&mut self) {
        self.last = 0;
        self.numbering_start = self.end();
    }

    /// Sends the next `n` events in reverse order.
    pub(super) fn reverse(&mut self, n: usize) {
        if self.reversal.is_none() {
            self.reversal = Some(ReversalBuffer { wanted: n, events: Vec::new() });
        }
    }

    /// The index of the next entry.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The cursor of a socket that has everything up to `after`. Without a number, or with one that is too old or of
    /// another numbering, it starts at the current end, without a notice.
    pub(super) fn open_cursor(&self, after: Option<u64>, now: Instant) -> RingCursor {
        let end = self.end();
        let present = RingCursor { index: end, floor: 0, replay_end: end };
        let Some(after) = after else { return present };
        let is_held = |(_, oldest): (u64, u64)| oldest <= after.saturating_add(1);
        if !self.replayable(now).next().is_some_and(is_held) {
            return present;
        }
        match self.replayable(now).find(|(_, sequence)| *sequence > after) {
            Some((index, _)) => RingCursor { index, floor: after, replay_end: end },
            None => present,
        }
    }

    /// Events that can be resumed, as index and number, oldest first.
    fn replayable(&self, now: Instant) -> impl Iterator<Item = (u64, u64)> {
        let young = self.entries.partition_point(|held| now.duration_since(held.emitted_at) > self.retention);
        let begin = young.max(usize::try_from(self.numbering_start.saturating_sub(self.first)).unwrap_or(usize::MAX));
        self.entries.iter().enumerate().skip(begin).filter_map(|(offset, held)| match held.entry {
            SequenceEntry::Event { sequence, .. } => Some((self.first + offset as u64, sequence)),
            SequenceEntry::Echo { .. } | SequenceEntry::Raw(_) => None,
        })
    }

    /// Up to `max` events after the cursor, or one raw frame; the cursor moves past them.
    pub(super) fn read(&self, cursor: &mut RingCursor, max: usize) -> RingRead {
        if cursor.index < self.first {
            return RingRead::Overrun;
        }
        let mut events = Vec::new();
        let start = usize::try_from(cursor.index - self.first).unwrap_or(usize::MAX);
        for held in self.entries.iter().skip(start) {
            let replayed = cursor.index < cursor.replay_end;
            match &held.entry {
                SequenceEntry::Event { sequence, .. } if replayed && *sequence <= cursor.floor => (),
                SequenceEntry::Event { unsent: true, .. } if !replayed => (),
                SequenceEntry::Echo { .. } | SequenceEntry::Raw(_) if replayed => (),
                SequenceEntry::Raw(raw) if events.is_empty() => {
                    cursor.index += 1;
                    return RingRead::Raw(raw.clone());
                }
                SequenceEntry::Raw(_) => break,
                SequenceEntry::Event { text, .. } | SequenceEntry::Echo { text } => events.push(text.clone()),
            }
            cursor.index += 1;
            if events.len() >= max {
                break;
            }
        }
        if events.is_empty() { RingRead::Nothing } else { RingRead::Events(events) }
    }

    fn push(&mut self, now: Instant, entry: SequenceEntry) {
        self.bytes += entry.len();
        self.entries.push_back(RingEntry { emitted_at: now, entry });
        while self.is_full(now) {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= oldest.entry.len();
            self.first += 1;
        }
    }

    /// The newest entry always stays.
    fn is_full(&self, now: Instant) -> bool {
        let age = self.entries.front().map_or(Duration::ZERO, |held| now.duration_since(held.emitted_at));
        let over = self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX || age > self.retention.max(SLOW_MAX);
        over && self.entries.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    const RETENTION: Duration = Duration::from_secs(60);

    #[test]
    fn resume_replays_retained_events_and_otherwise_starts_at_the_end() {
        let begin = now();
        let mut sequence = SequenceRing::new(RETENTION);
        for number in 0..10 {
            sequence.push_event(begin + Duration::from_secs(10 * number), |n| n.to_string());
        }
        // After 90 s, events 1 to 3 are older than the retention.
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
            let mut cursor = sequence.open_cursor(after, now);
            assert_eq!(events(&sequence, &mut cursor), expected, "after {after:?}");
        }
    }

    #[test]
    fn from_nothing_resume_begins_with_the_first_event_while_it_is_held() {
        let (sequence, now) = filled(3);
        assert_eq!(events(&sequence, &mut sequence.open_cursor(Some(0), now)), ["1", "2", "3"]);
    }

    #[test]
    fn a_jump_skips_numbers_and_a_reset_restarts_at_one() {
        let (mut sequence, now) = filled(2);
        let mut live = sequence.open_cursor(None, now);
        sequence.jump(5);
        sequence.push_event(now, |n| n.to_string());
        sequence.reset();
        sequence.push_event(now, |n| n.to_string());
        sequence.push_event(now, |n| n.to_string());
        assert_eq!(events(&sequence, &mut live), ["8", "1", "2"]);
        assert_eq!(events(&sequence, &mut sequence.open_cursor(Some(1), now)), ["2"]);
    }

    #[test]
    fn duplicates_and_reversed_events_reach_live_readers_only() {
        let (mut sequence, now) = filled(3);
        let mut live = sequence.open_cursor(Some(3), now);
        sequence.duplicate(now, 2);
        sequence.reverse(3);
        for _ in 0..3 {
            sequence.push_event(now, |n| n.to_string());
        }
        assert_eq!(events(&sequence, &mut live), ["2", "3", "6", "5", "4"]);
        assert_eq!(events(&sequence, &mut sequence.open_cursor(Some(1), now)), ["2", "3", "6", "5", "4"]);
        assert_eq!(events(&sequence, &mut sequence.open_cursor(Some(4), now)), ["6", "5"]);
    }

    #[test]
    fn the_ring_is_bounded_and_a_slow_reader_overruns() {
        let begin = now();
        let mut sequence = SequenceRing::new(RETENTION);
        let mut slow = sequence.open_cursor(None, begin);
        for _ in 0..ENTRIES_MAX + 10 {
            sequence.push_event(begin, |_| String::new());
        }
        assert_eq!(sequence.entries.len(), ENTRIES_MAX);
        assert!(matches!(sequence.read(&mut slow, 10), RingRead::Overrun));
    }

    #[test]
    fn raw_frames_are_sent_separately_between_events() {
        let (mut sequence, now) = filled(0);
        let mut live = sequence.open_cursor(None, now);
        sequence.push_event(now, |n| n.to_string());
        sequence.push_raw(now, RawFrame::Text("?".to_owned()));
        sequence.push_event(now, |n| n.to_string());
        assert!(matches!(sequence.read(&mut live, 10), RingRead::Events(events) if events.len() == 1));
        assert!(matches!(sequence.read(&mut live, 10), RingRead::Raw(raw) if *raw == RawFrame::Text("?".to_owned())));
        assert!(matches!(sequence.read(&mut live, 10), RingRead::Events(events) if *events[0] == *"2"));
        assert!(matches!(sequence.read(&mut live, 10), RingRead::Nothing));
    }

    #[test]
    fn an_unsent_event_is_sent_on_resume_only() {
        let (mut sequence, now) = filled(1);
        let mut live = sequence.open_cursor(Some(1), now);
        sequence.unsent = 2;
        for _ in 0..3 {
            sequence.push_event(now, |n| n.to_string());
        }
        assert_eq!(events(&sequence, &mut live), ["4"]);
        assert_eq!(events(&sequence, &mut sequence.open_cursor(Some(1), now)), ["2", "3", "4"]);
    }

    fn filled(count: u64) -> (SequenceRing, Instant) {
        let now = now();
        let mut sequence = SequenceRing::new(RETENTION);
        for _ in 0..count {
            sequence.push_event(now, |n| n.to_string());
        }
        (sequence, now)
    }

    fn events(sequence: &SequenceRing, cursor: &mut RingCursor) -> Vec<String> {
        let mut all = Vec::new();
        while let RingRead::Events(events) = sequence.read(cursor, 2) {
            all.extend(events.iter().map(|text| text.to_string()));
        }
        all
    }
}
