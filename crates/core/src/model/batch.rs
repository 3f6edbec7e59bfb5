//! Consecutive log entries in one buffer, shared from the append to every subscriber.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use super::{Epoch, Event, Mark, Offset, Timestamp, envelope};

/// Where one entry ends in the batch's bytes, and the attributes that readers need without parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// End of the envelope in `bytes`. It starts at the end of the previous one.
    pub(super) end: u32,
    /// Where the `type` begins within the envelope, and its length (as written in JSON, escapes included).
    pub(super) kind_at: u16,
    pub(super) kind_len: u16,
    pub(super) received: Timestamp,
}

/// Entries `first..=last` of one stream, encoded once. Immutable.
#[derive(Debug)]
pub struct Batch {
    epoch: Epoch,
    first: Offset,
    bytes: Bytes,
    slots: Box<[Slot]>,
    frames: OnceLock<Rendering>,
    sse: OnceLock<Pieces>,
}

/// The entries of a batch in the encoding of a transport, created for the first subscriber.
#[derive(Debug)]
pub struct Rendering {
    /// All entries, back to back.
    pub bytes: Bytes,
    /// The end of each entry in `bytes`.
    pub ends: Box<[u32]>,
}

/// The entries of a batch in several renderings, each in its own allocation. Holding one does not keep the others in
/// memory.
#[derive(Debug)]
pub struct Pieces(Box<[Piece]>);

/// Consecutive entries of a batch, rendered.
#[derive(Debug)]
pub struct Piece {
    /// Index of the first in the batch.
    pub first: usize,
    pub rendering: Rendering,
}

impl Pieces {
    /// From pieces in the order of their entries. Entries may be missing.
    pub fn new(pieces: Vec<Piece>) -> Self {
        Self(pieces.into())
    }

    /// The bytes of the first entries of a run, as far as one piece has them, and their number. None if no piece has the
    /// first entry.
    pub fn slice_from(&self, run: &Range<usize>) -> Option<(Bytes, usize)> {
        let next = self.0.partition_point(|piece| piece.first <= run.start);
        let Piece { first, rendering } = self.0.get(next.checked_sub(1)?)?;
        let end = run.end.min(first + rendering.ends.len());
        let count = end.checked_sub(run.start).filter(|count| *count > 0)?;
        let part = rendering.span(&(run.start - first..end - first));
        Some((rendering.bytes.slice(part), count))
    }
}

impl Rendering {
    /// The bytes of a run of entries.
    pub fn span(&self, run: &Range<usize>) -> Range<usize> {
        let begin = |index: usize| index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        begin(run.start)..begin(run.end)
    }
}

impl Batch {
    pub(super) fn new(epoch: Epoch, first: Offset, bytes: Bytes, slots: Box<[Slot]>) -> Self {
        assert!(!slots.is_empty(), "a batch holds at least one entry");
        Self { epoch, first, bytes, slots, frames: OnceLock::new(), sse: OnceLock::new() }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn first(&self) -> Offset {
        self.first
    }

    pub fn last(&self) -> Offset {
        Offset(self.first.0 + self.slots.len() as u64 - 1)
    }

    /// The number of entries, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// All envelopes, back to back.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The envelopes of a run of entries, back to back.
    pub fn bytes_of(&self, run: &Range<usize>) -> &[u8] {
        let begin = |index: usize| index.checked_sub(1).map_or(0, |before| self.slots[before].end as usize);
        &self.bytes[begin(run.start)..begin(run.end)]
    }

    /// When the newest entry was received.
    pub fn received_last(&self) -> Timestamp {
        self.slots[self.slots.len() - 1].received
    }

    /// When the oldest entry was received.
    pub fn received_first(&self) -> Timestamp {
        self.slots[0].received
    }

    /// The entry at `index` of this batch.
    pub fn entry(&self, index: usize) -> Entry<'_> {
        let slot = self.slots[index];
        Entry {
            mark: Mark { epoch: self.epoch, offset: Offset(self.first.0 + index as u64) },
            json: self.bytes_of(&(index..index + 1)),
            kind: (slot.kind_at, slot.kind_len),
            received: slot.received,
        }
    }

    /// The index that is stored with the bytes, to restore the batch: 16 bytes per entry.
    pub fn index(&self) -> Vec<u8> {
        let mut index = Vec::with_capacity(self.slots.len() * SLOT_LEN);
        for slot in &self.slots {
            index.extend_from_slice(&slot.end.to_le_bytes());
            index.extend_from_slice(&slot.kind_at.to_le_bytes());
            index.extend_from_slice(&slot.kind_len.to_le_bytes());
            index.extend_from_slice(&slot.received.0.to_le_bytes());
        }
        index
    }

    /// Restores a stored batch. None if index and bytes disagree: the record is damaged.
    pub fn restore(epoch: Epoch, first: Offset, bytes: Bytes, index: &[u8]) -> Option<Self> {
        let (slots, rest) = index.as_chunks::<SLOT_LEN>();
        let slots: Box<[Slot]> = slots.iter().map(read_slot).collect();
        let rising = slots.windows(2).all(|pair| pair[0].end < pair[1].end);
        let complete = slots.last().is_some_and(|slot| slot.end as usize == bytes.len());
        (rest.is_empty() && rising && complete).then(|| Self::new(epoch, first, bytes, slots))
    }

    /// A batch of entries that were stored separately. None if there are none, or they are too long.
    pub fn of(epoch: Epoch, first: Offset, entries: &[StoredEntry<'_>]) -> Option<Self> {
        let mut bytes = Vec::with_capacity(entries.iter().map(|entry| entry.json.len()).sum());
        let mut slots = Vec::with_capacity(entries.len());
        for &StoredEntry { json, kind: (kind_at, kind_len), received } in entries {
            bytes.extend_from_slice(json);
            slots.push(Slot { end: u32::try_from(bytes.len()).ok()?, kind_at, kind_len, received });
        }
        (!slots.is_empty()).then(|| Self::new(epoch, first, bytes.into(), slots.into()))
    }

    /// The batch as WebSocket text frames; `render` runs once for all subscribers.
    pub fn frames(&self, render: impl FnOnce(&Self) -> Rendering) -> &Rendering {
        self.frames.get_or_init(|| render(self))
    }

    /// The batch as server-sent events; `render` runs once for all subscribers.
    pub fn sse(&self, render: impl FnOnce(&Self) -> Pieces) -> &Pieces {
        self.sse.get_or_init(|| render(self))
    }
}

/// An entry of a store that stores each entry separately.
#[derive(Debug, Clone, Copy)]
pub struct StoredEntry<'a> {
    /// The whole envelope.
    pub json: &'a [u8],
    /// Where the `type` begins within the envelope, and its length.
    pub kind: (u16, u16),
    pub received: Timestamp,
}

const SLOT_LEN: usize = 16;

fn read_slot(slot: &[u8; SLOT_LEN]) -> Slot {
    let [e0, e1, e2, e3, a0, a1, l0, l1, time @ ..] = *slot;
    Slot {
        end: u32::from_le_bytes([e0, e1, e2, e3]),
        kind_at: u16::from_le_bytes([a0, a1]),
        kind_len: u16::from_le_bytes([l0, l1]),
        received: Timestamp(i64::from_le_bytes(time)),
    }
}

/// One entry of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub mark: Mark,
    /// The whole envelope.
    pub json: &'a [u8],
    kind: (u16, u16),
    pub received: Timestamp,
}

impl Entry<'_> {
    /// Where the `type` begins within the envelope, and its length.
    pub fn kind_span(&self) -> (u16, u16) {
        self.kind
    }

    /// The event of the envelope, without the attributes that the envelope omits.
    pub fn event(&self) -> Option<Event> {
        envelope::parse_event(self.json, self.received)
    }

    /// The event's `type`, as written in the envelope.
    pub fn kind(&self) -> &str {
        let (at, len) = (usize::from(self.kind.0), usize::from(self.kind.1));
        self.json.get(at..at + len).and_then(|kind| std::str::from_utf8(kind).ok()).unwrap_or("")
    }
}

/// The unread part of a batch.
#[derive(Debug, Clone)]
pub struct BatchView {
    pub batch: Arc<Batch>,
    /// Index of the first unread entry.
    pub from: usize,
}

impl BatchView {
    /// The unread entries, oldest first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry<'_>> {
        (self.from..self.batch.len()).map(|index| self.batch.entry(index))
    }
}
