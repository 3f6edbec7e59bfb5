//! Reads entries and assembles them into batches.

use std::sync::Arc;

use redis::cmd;

use super::{
    connection::RedisConnection,
    head,
    keys::{LogKeys, entry_id},
    unreadable::quoted,
};
use crate::{
    model::{Batch, EnvelopeHeader, Epoch, Offset, StoredEntry, Timestamp},
    store::ReadError,
};

/// The number of entries in the first request, because their size is unknown. Each further request asks for the number
/// that fits into the remaining bytes, from the size of the entries so far.
pub(super) const COUNT_FIRST: usize = 4;
/// The maximum number of entries in one answer. It is the only bound if entries are much larger than the ones before.
const COUNT_MAX: usize = 512;

/// The approximate maximum size of a batch.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The first field of an entry.
const ENTRY_FIELD: &[u8] = b"event";

/// An entry in the protocol's form: its id, then names and values in turn.
pub(super) type RawEntry = (String, Vec<Vec<u8>>);

/// A decoded entry.
#[derive(Debug)]
pub(super) struct RedisEntry {
    pub(super) offset: Offset,
    pub(super) epoch: Epoch,
    pub(super) json: Vec<u8>,
    pub(super) kind: (u16, u16),
    pub(super) received: Timestamp,
}

/// The entries after `after` and up to `last`, until `bytes_max` is reached; at least one if there is one.
pub(super) async fn batches(
    connection: &RedisConnection,
    keys: &LogKeys,
    mut after: Offset,
    last: Offset,
    bytes_max: usize,
) -> Result<Vec<Arc<Batch>>, ReadError> {
    let (mut found, mut bytes, mut count) = (Vec::new(), 0, COUNT_FIRST);
    while after < last && (found.is_empty() || bytes < bytes_max) {
        let entries = range(connection, keys, after.next(), last, count).await?;
        let Some(newest) = entries.last() else { break };
        after = newest.offset;
        bytes += entries.iter().map(|entry| entry.json.len()).sum::<usize>();
        found.extend(entries);
        count = count_within(found.len(), bytes, bytes_max.saturating_sub(bytes));
    }
    to_batches(&found)
}

/// The number of entries to request so that their answer has about `room` bytes, if `read` entries had `bytes`.
pub(super) fn count_within(read: usize, bytes: usize, room: usize) -> usize {
    let average = (bytes / read.max(1)).max(1);
    (room / average).clamp(1, COUNT_MAX)
}

/// The last offset whose entry was received before `moment`, by binary search. Where the wall clock was set back
/// between entries, several offsets may match; it is one of them.
pub(super) async fn offset_before(
    connection: &RedisConnection,
    keys: &LogKeys,
    last: Offset,
    moment: Timestamp,
) -> Result<Offset, ReadError> {
    let Some(oldest) = at_or_after(connection, keys, Offset(1), last).await? else { return Ok(last) };
    if oldest.received >= moment {
        return Ok(oldest.offset.previous());
    }
    // The entry at `before` was received before the moment; the entry at `beyond`, if it exists, was not.
    let (mut before, mut beyond) = (oldest.offset, last.next());
    while before.next() < beyond {
        let middle = Offset(before.0 + (beyond.0 - before.0) / 2);
        match at_or_after(connection, keys, middle, last).await? {
            Some(entry) if entry.received < moment => before = entry.offset,
            Some(_) | None => beyond = middle,
        }
    }
    Ok(before)
}

async fn at_or_after(
    connection: &RedisConnection,
    keys: &LogKeys,
    from: Offset,
    last: Offset,
) -> Result<Option<RedisEntry>, ReadError> {
    Ok(range(connection, keys, from, last, 1).await?.pop())
}

async fn range(
    connection: &RedisConnection,
    keys: &LogKeys,
    from: Offset,
    last: Offset,
    count: usize,
) -> Result<Vec<RedisEntry>, ReadError> {
    let mut command = cmd("XRANGE");
    command.arg(&keys.log).arg(entry_id(from)).arg(entry_id(last)).arg("COUNT").arg(count);
    let entries: Vec<RawEntry> = connection.run(&command).await.map_err(ReadError::new)?;
    entries.into_iter().map(|entry| self::entry(&keys.log, entry)).collect()
}

/// Decodes an entry; the error names an entry that this version cannot read.
pub(super) fn entry(log: &str, wire: RawEntry) -> Result<RedisEntry, ReadError> {
    let id = quoted(&wire.0);
    parse_entry(wire).ok_or_else(|| ReadError::new(format!("{log} has the entry {id}, which this version cannot read")))
}

pub(super) fn parse_entry((id, fields): RawEntry) -> Option<RedisEntry> {
    // Ignores fields that a later version appends.
    let mut fields = fields.into_iter();
    let json = fields.next().filter(|name| name == ENTRY_FIELD).and_then(|_| fields.next())?;
    let EnvelopeHeader { epoch, kind, received } = EnvelopeHeader::of(&json)?;
    Some(RedisEntry { offset: head::parse_offset(id.strip_suffix("-0")?)?, epoch, json, kind, received })
}

/// Joins adjacent entries of one epoch into batches, up to a size. Stops at a hole: the next answer begins after it, so
/// the reader detects the missing entries.
pub(super) fn to_batches(mut entries: &[RedisEntry]) -> Result<Vec<Arc<Batch>>, ReadError> {
    let mut batches = Vec::new();
    while let Some(first) = entries.first() {
        let mut bytes = 0;
        let len = entries.iter().enumerate().take_while(|(index, entry)| {
            bytes += entry.json.len();
            let fits = *index == 0 || bytes <= BATCH_BYTES_MAX;
            let follows = entry.offset.0 == first.offset.0 + *index as u64;
            fits && follows && entry.epoch == first.epoch
        });
        let (now, later) = entries.split_at(len.count());
        let parts: Vec<StoredEntry<'_>> = now
            .iter()
            .map(|entry| StoredEntry { json: &entry.json, kind: entry.kind, received: entry.received })
            .collect();
        let batch = Batch::of(first.epoch, first.offset, &parts);
        batches.push(Arc::new(batch.ok_or_else(|| ReadError::new(format!("the entry {} is too long", first.offset)))?));
        if let Some(next) = later.first()
            && let Some(newest) = now.last()
            && next.offset != newest.offset.next()
        {
            break;
        }
        entries = later;
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_entries_are_asked_for_as_fit_into_what_is_left() {
        const MIB: usize = 1 << 20;
        for (read, bytes, room, expected) in [
            (4, 4 * MIB, 4 * MIB, 4),
            (4, 4 * MIB, 0, 1),
            (4, 4 * 1_024, MIB / 4, 256),
            (4, 4 * 1_024, MIB, COUNT_MAX),
            (4, 0, 1 << 30, COUNT_MAX),
            (0, 0, 0, 1),
        ] {
            assert_eq!(count_within(read, bytes, room), expected, "{read} {bytes} {room}");
        }
    }
}
