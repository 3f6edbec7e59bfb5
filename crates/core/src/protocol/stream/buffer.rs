//! The bounded queue in front of the log. Dropped events become a gap.

use std::collections::VecDeque;

use crate::model::{Event, Gap, GapReason, OverflowPolicy, Position, Timestamp};

/// One append has at most about this many bytes of bodies.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Identifies a gap entry until it is durable: its snapshot refers to its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GapTicket(pub(super) u64);

/// One entry to append.
#[derive(Debug)]
pub(super) struct PendingEntry {
    pub(super) event: Event,
    pub(super) ticket: Option<GapTicket>,
    /// The position after this entry; none if the entry does not change it.
    pub(super) position: Option<Position>,
}

impl PendingEntry {
    /// An event of a numbered stream.
    pub(super) fn numbered(event: Event) -> Self {
        Self { position: event.sequence.map(Position::Numbered), ..event.into() }
    }
}

impl From<Event> for PendingEntry {
    fn from(event: Event) -> Self {
        Self { event, ticket: None, position: None }
    }
}

/// The queue in front of the log.
#[derive(Debug)]
pub(super) struct Buffer {
    pending: VecDeque<PendingEntry>,
    limit: usize,
    bytes: usize,
    bytes_max: usize,
    append_max: usize,
    overflow: OverflowPolicy,
    shed: Option<Shed>,
    /// The position of the newest event that left the buffer or was dropped.
    last_passed: Option<Position>,
    /// How many entries were ever pushed.
    pushed_total: u64,
}

/// Events dropped since the last batch was taken.
#[derive(Debug)]
struct Shed {
    count: u64,
    after: Option<Position>,
}

/// The contents of one append.
#[derive(Debug)]
pub(super) struct AppendBatch {
    pub(super) events: Vec<Event>,
    /// The gap entries among them, by index.
    pub(super) tickets: Vec<(usize, GapTicket)>,
    pub(super) position: Option<Position>,
    /// The size of the events in bytes.
    pub(super) bytes: usize,
}

/// The limits of the buffer and of one append.
#[derive(Debug, Clone, Copy)]
pub(super) struct BufferLimits {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) append_max: usize,
}

impl Buffer {
    pub(super) fn new(limits: BufferLimits, overflow: OverflowPolicy, position: Option<Position>) -> Self {
        Self {
            pending: VecDeque::new(),
            limit: limits.events,
            bytes: 0,
            bytes_max: limits.bytes,
            append_max: limits.append_max,
            overflow,
            shed: None,
            last_passed: position,
            pushed_total: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// The position of the newest event that left the buffer or was dropped.
    pub(super) fn last_passed(&self) -> Option<Position> {
        self.last_passed.clone()
    }

    /// How many entries were ever pushed.
    pub(super) fn pushed_total(&self) -> u64 {
        self.pushed_total
    }

    /// Whether this number of entries has been taken, and the dropped ones are recorded as a gap.
    pub(super) fn has_drained(&self, count: u64) -> bool {
        self.shed.is_none() && self.pushed_total - self.pending.len() as u64 >= count
    }

    /// Whether this number of events, or of bytes, reaches a limit.
    pub(super) fn is_limit(&self, events: usize, bytes: usize) -> bool {
        events >= self.limit || bytes >= self.bytes_max
    }

    /// Whether the buffer is full, together with events that wait outside it.
    pub(super) fn is_full_with(&self, events: usize, bytes: usize) -> bool {
        self.is_limit(self.pending.len() + events, self.bytes + bytes)
    }

    /// Whether frames should not be read until there is room.
    pub(super) fn applies_backpressure(&self, events: usize, bytes: usize) -> bool {
        self.overflow == OverflowPolicy::Backpressure && self.is_full_with(events, bytes)
    }

    /// Adds an entry. Returns how many events were dropped.
    pub(super) fn push(&mut self, pending: PendingEntry) -> u64 {
        self.bytes += pending.event.weight();
        self.pending.push_back(pending);
        self.pushed_total += 1;
        if self.overflow == OverflowPolicy::Backpressure {
            return 0;
        }
        let mut shed = 0;
        // A single event beyond the limit stays for the next append.
        while self.pending.len() > self.limit || (self.bytes > self.bytes_max && self.pending.len() > 1) {
            match self.shed_oldest() {
                0 => break,
                dropped => shed += dropped,
            }
        }
        shed
    }

    /// Drops the oldest event. Gap and snapshot entries stay.
    fn shed_oldest(&mut self) -> u64 {
        let own = |pending: &PendingEntry| pending.event.kind.starts_with("trunkline.");
        let Some(oldest) = self.pending.iter().position(|pending| !own(pending)) else { return 0 };
        let Some(dropped) = self.pending.remove(oldest) else { return 0 };
        self.bytes -= dropped.event.weight();
        let after = &self.last_passed;
        self.shed.get_or_insert_with(|| Shed { count: 0, after: after.clone() }).count += 1;
        self.track_position(dropped.position);
        1
    }

    /// Everything in the queue is in front of this position.
    pub(super) fn set_position(&mut self, position: Position) {
        match self.pending.back_mut() {
            Some(newest) => newest.position = Some(position),
            None => self.last_passed = Some(position),
        }
    }

    fn track_position(&mut self, position: Option<Position>) {
        if position.is_some() {
            self.last_passed = position;
        }
    }

    /// Takes the next append; none if the buffer is empty.
    pub(super) fn take(&mut self, received: Timestamp) -> Option<AppendBatch> {
        let events = Vec::with_capacity(self.pending.len().min(self.append_max));
        let mut batch = AppendBatch { events, tickets: Vec::new(), position: None, bytes: 0 };
        if let Some(shed) = self.shed.take() {
            batch.events.push(self.shed_gap(&shed).event(received));
        }
        while batch.events.len() < self.append_max && batch.bytes < BATCH_BYTES_MAX {
            let Some(PendingEntry { event, ticket, position }) = self.pending.pop_front() else { break };
            batch.bytes += event.weight();
            self.track_position(position);
            batch.tickets.extend(ticket.map(|ticket| (batch.events.len(), ticket)));
            batch.events.push(event);
        }
        self.bytes -= batch.bytes;
        batch.position.clone_from(&self.last_passed);
        (!batch.events.is_empty()).then_some(batch)
    }

    fn shed_gap(&self, shed: &Shed) -> Gap {
        let next = self.pending.iter().find_map(|pending| pending.event.sequence);
        let gap = Gap::between(GapReason::Shed, shed.after.as_ref().and_then(Position::order), next);
        Gap { lost: Some(shed.count), ..gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Body, Sequence};

    fn limits(events: usize, append_max: usize) -> BufferLimits {
        BufferLimits { events, bytes: usize::MAX, append_max }
    }

    fn event(sequence: u64) -> PendingEntry {
        let mut event = Event::internal("e", &sequence, Timestamp(0));
        event.sequence = Some(Sequence(sequence));
        PendingEntry::numbered(event)
    }

    #[test]
    fn at_the_limit_the_oldest_are_dropped_and_a_gap_records_them() {
        let mut buffer = Buffer::new(limits(3, 10), OverflowPolicy::DropOldest, Some(Position::Numbered(Sequence(10))));
        let shed: u64 = (11..=16).map(|sequence| buffer.push(event(sequence))).sum();
        assert_eq!(shed, 3);
        let batch = buffer.take(Timestamp(0)).unwrap();
        let Body::Json(gap) = &batch.events[0].body else { panic!() };
        assert_eq!(gap, r#"{"reason":"shed","after":"10","before":"14","lost":3,"silence_ms":null}"#);
        let rest: Vec<u64> = batch.events[1..].iter().map(|event| event.sequence.unwrap().0).collect();
        assert_eq!((rest, batch.position), (vec![14, 15, 16], Some(Position::Numbered(Sequence(16)))));
        assert!(buffer.take(Timestamp(0)).is_none());
    }

    #[test]
    fn under_backpressure_nothing_is_dropped_and_reading_pauses() {
        let mut buffer = Buffer::new(limits(3, 10), OverflowPolicy::Backpressure, None);
        assert!((1..=2).all(|sequence| buffer.push(event(sequence)) == 0));
        assert!(!buffer.applies_backpressure(0, 0));
        assert!(buffer.applies_backpressure(1, 0));
        buffer.push(event(3));
        buffer.push(event(4));
        assert_eq!((buffer.len(), buffer.is_full_with(0, 0)), (4, true));
        assert_eq!(buffer.take(Timestamp(0)).unwrap().events.len(), 4);
    }

    #[test]
    fn bytes_are_limited_like_the_count() {
        let large = |sequence| {
            let mut pending = event(sequence);
            pending.event.body = Body::Json("x".repeat(1 << 20).into());
            pending
        };
        let limits = BufferLimits { events: 5_000, bytes: 8 << 20, append_max: 2_048 };
        let mut buffer = Buffer::new(limits, OverflowPolicy::Backpressure, None);
        let read = (1..100).take_while(|sequence| {
            buffer.push(large(*sequence));
            !buffer.applies_backpressure(0, 0)
        });
        assert_eq!(read.count(), 7, "the eighth fills it");
        buffer.take(Timestamp(0));
        assert!(!buffer.applies_backpressure(0, 0), "an append in flight makes room");
        assert!(buffer.applies_backpressure(0, 1 << 20), "unless it counts as waiting outside");

        let mut buffer = Buffer::new(limits, OverflowPolicy::DropOldest, Some(Position::Numbered(Sequence(0))));
        let shed: u64 = (1..=20).map(|sequence| buffer.push(large(sequence))).sum();
        assert_eq!((buffer.len(), shed), (7, 13));
        let gap = buffer.take(Timestamp(0)).unwrap().events.remove(0);
        assert_eq!(gap.body.len(), r#"{"reason":"shed","after":"0","before":"14","lost":13,"silence_ms":null}"#.len());

        let mut buffer = Buffer::new(BufferLimits { bytes: 1_000, ..limits }, OverflowPolicy::DropOldest, None);
        assert_eq!((buffer.push(large(1)), buffer.len()), (0, 1), "a single event beyond the limit is appended");
    }

    #[test]
    fn a_position_is_appended_with_the_events_in_front_of_it() {
        let text = |text| Position::opaque(text).unwrap();
        let opaque = || PendingEntry::from(Event::internal("e", &(), Timestamp(0)));
        let mut buffer = Buffer::new(limits(3, 2), OverflowPolicy::DropOldest, Some(text("a")));
        buffer.push(opaque());
        buffer.push(opaque());
        buffer.push(opaque());
        buffer.set_position(text("b"));
        assert_eq!(buffer.take(Timestamp(0)).unwrap().position, Some(text("a")), "the third event is missing");
        assert_eq!(buffer.take(Timestamp(0)).unwrap().position, Some(text("b")));
        buffer.set_position(text("c"));
        assert_eq!(buffer.last_passed(), Some(text("c")), "a position needs no event");
        buffer.push(opaque());
        buffer.set_position(text("d"));
        (0..3).for_each(|_| {
            buffer.push(opaque());
        });
        assert_eq!(buffer.last_passed(), Some(text("d")), "its event was dropped");
    }

    #[test]
    fn a_batch_is_bounded_by_count_and_its_gaps_stay_in_place() {
        let mut buffer = Buffer::new(limits(10_000, 2_000), OverflowPolicy::Backpressure, None);
        buffer.push(event(1));
        let gap = Gap::unknown(GapReason::Store).event(Timestamp(0));
        buffer.push(PendingEntry { ticket: Some(GapTicket(7)), ..gap.into() });
        (2..5_000).for_each(|sequence| {
            buffer.push(event(sequence));
        });
        let batch = buffer.take(Timestamp(0)).unwrap();
        assert_eq!((batch.events.len(), batch.tickets), (2_000, vec![(1, GapTicket(7))]));
    }
}
