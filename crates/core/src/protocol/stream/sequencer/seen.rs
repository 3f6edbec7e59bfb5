//! The digests of events that the sequencer has passed: they show whether an event with an old number is a repetition.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{Body, Event, Sequence};

/// The number of newest events whose digests are kept.
const RECENT_LEN: usize = 1024;
/// The number of newest strays whose digests are kept.
const STRAYS_MAX: usize = 64;
const EMPTY: (Sequence, u32) = (Sequence(u64::MAX), 0);

/// Sequence numbers and digests of passed events.
#[derive(Debug, Default)]
pub(super) struct SeenEvents {
    /// The newest events, by sequence number modulo [`RECENT_LEN`].
    recent: Vec<(Sequence, u32)>,
    /// The newest events of the numbering before the last reset. A reset that was assumed wrongly repeats them.
    previous_numbering: Vec<(Sequence, u32)>,
    /// Events that were stored without their number.
    strays: VecDeque<(Sequence, u32)>,
}

impl SeenEvents {
    pub(super) fn insert(&mut self, sequence: Sequence, digest: u32) {
        if self.recent.is_empty() {
            self.recent = vec![EMPTY; RECENT_LEN];
        }
        self.recent[slot(sequence)] = (sequence, digest);
    }

    /// Adds an event that this process has not passed itself, unless a newer event has its slot.
    pub(super) fn insert_older(&mut self, sequence: Sequence, digest: u32) {
        let newer = self.recent.get(slot(sequence)).map(|(newer, _)| *newer);
        if newer.is_none_or(|newer| newer < sequence || newer == EMPTY.0) {
            self.insert(sequence, digest);
        }
    }

    /// Adds an event that is stored without its number.
    pub(super) fn insert_stray(&mut self, sequence: Sequence, digest: u32) {
        if self.strays.len() == STRAYS_MAX {
            self.strays.pop_front();
        }
        self.strays.push_back((sequence, digest));
    }

    pub(super) fn has_number(&self, sequence: Sequence) -> bool {
        find_digest(&self.recent, sequence).is_some()
    }

    /// Whether this event was passed in this numbering, or stored without its number.
    pub(super) fn contains(&self, sequence: Sequence, digest: u32) -> bool {
        find_digest(&self.recent, sequence) == Some(digest) || self.strays.contains(&(sequence, digest))
    }

    /// Whether this event was passed before the last reset, or stored without its number.
    pub(super) fn was_stored_before(&self, sequence: Sequence, digest: u32) -> bool {
        find_digest(&self.previous_numbering, sequence) == Some(digest) || self.strays.contains(&(sequence, digest))
    }

    /// Whether another event with this number was passed.
    pub(super) fn differs(&self, sequence: Sequence, event: &Event) -> bool {
        find_digest(&self.recent, sequence).is_some_and(|known| known != digest(event))
    }

    /// How many of these events differ from the passed events with the same number.
    pub(super) fn count_different(&self, events: &BTreeMap<Sequence, Event>) -> usize {
        events.iter().filter(|(sequence, event)| self.differs(**sequence, event)).count()
    }

    /// The numbering starts over.
    pub(super) fn reset(&mut self) {
        self.previous_numbering = std::mem::take(&mut self.recent);
    }
}

fn find_digest(digests: &[(Sequence, u32)], sequence: Sequence) -> Option<u32> {
    let (known, digest) = *digests.get(slot(sequence))?;
    (known == sequence).then_some(digest)
}

fn slot(sequence: Sequence) -> usize {
    usize::try_from(sequence.0 % RECENT_LEN as u64).unwrap_or(0)
}

/// Two events with the same sequence number and digest count as the same event.
pub(super) fn digest(event: &Event) -> u32 {
    match &event.body {
        Body::Json(text) => crc32fast::hash(text.as_bytes()),
        Body::Binary(bytes) => crc32fast::hash(bytes),
    }
}
