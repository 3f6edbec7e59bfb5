//! One durable step: the changes of one transaction to its streams. They are visible only after the commit.

use std::{collections::BTreeMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{
    database::{PAGE_LEN, crc, key, key_max, key_offset, read_lineage},
    fault::SqliteFault,
    records::{self, RecordChange},
    stored_stream::{OldestBatch, StoredStream},
};
use crate::{
    model::{Batch, Checkpoint, Epoch, FeedId, Fence, Lineage, Offset, Position, Sequence, StreamName, Timestamp},
    random,
    store::{Append, AppendError, LogState, Retention},
    telemetry::Cause,
};

/// The streams that are open, as committed.
pub(super) type OpenStreams = BTreeMap<StreamName, StoredStream>;

/// A transaction in progress.
#[derive(Debug)]
pub(super) struct WriteStep<'a> {
    transaction: Transaction<'a>,
    committed: &'a OpenStreams,
    changed: OpenStreams,
    /// The approximate bytes that the transaction writes to the write-ahead log.
    wal_bytes: u64,
}

/// The state after the commit.
#[derive(Debug)]
pub(super) struct CommitOutcome {
    pub(super) changed: OpenStreams,
    pub(super) written: u64,
}

/// The approximate bytes that an append writes in addition to its data: the stream's page and the table's page.
const APPEND_OVERHEAD: u64 = 2 * PAGE_LEN as u64;

/// The approximate bytes that a change of a record writes.
const CHANGE_OVERHEAD: u64 = PAGE_LEN as u64;

impl<'a> WriteStep<'a> {
    pub(super) fn begin(connection: &'a mut Connection, committed: &'a OpenStreams) -> Result<Self, SqliteFault> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        Ok(Self { transaction, committed, changed: OpenStreams::new(), wal_bytes: 0 })
    }

    pub(super) fn commit(self) -> Result<CommitOutcome, SqliteFault> {
        self.transaction.commit()?;
        Ok(CommitOutcome { changed: self.changed, written: self.wal_bytes })
    }

    /// Gives the log to a new owner, and creates it if it is missing, or to the owner of the fence `under`. `replaced`:
    /// the earlier data is lost.
    pub(super) fn claim(
        &mut self,
        stream: &StreamName,
        under: Option<Fence>,
        replaced: bool,
    ) -> Result<Result<LogState, AppendError>, SqliteFault> {
        let found = match self.stream(stream) {
            Some(held) => Some(held.clone()),
            None => load(&self.transaction, stream)?,
        };
        let held = match (found, under) {
            (Some(held), Some(fence)) if held.fence == fence => held,
            (Some(_) | None, Some(_)) => return Ok(Err(AppendError::Fenced)),
            (Some(held), None) => self.renew_fence(held)?,
            (None, None) => {
                let made = self.insert(stream, replaced)?;
                self.renew_fence(made)?
            }
        };
        let state = held.state();
        self.changed.insert(stream.clone(), held);
        Ok(Ok(state))
    }

    /// Applies an append, or returns why it was rejected; `Err` ends the whole step.
    pub(super) fn append(&mut self, append: &Append) -> Result<Result<(), AppendError>, SqliteFault> {
        let Some(mut held) = self.stream(&append.stream).filter(|held| held.fence == append.fence).cloned() else {
            return Ok(Err(AppendError::Fenced));
        };
        if let Some(text) = discontinuity(&held, append) {
            return Ok(Err(AppendError::Broken(Cause::new(text))));
        }
        for batch in &append.batches {
            let len = self.insert_batch(held.number, batch)?;
            held.record_append(batch, len);
        }
        held.checkpoint = Some(append.checkpoint.clone());
        self.save(&held)?;
        self.changed.insert(append.stream.clone(), held);
        Ok(Ok(()))
    }

    /// Changes a record outside the logs; false when it is not in the expected state.
    pub(super) fn change(
        &mut self,
        change: &RecordChange,
        now: Timestamp,
    ) -> Result<Result<bool, AppendError>, SqliteFault> {
        self.wal_bytes += CHANGE_OVERHEAD + change.bytes() as u64;
        records::change(&self.transaction, change, now)
    }

    /// Removes up to `batches_max` of the stream's expired batches; returns how many.
    pub(super) fn trim(
        &mut self,
        stream: &StreamName,
        retention: &Retention,
        now: Timestamp,
        batches_max: usize,
    ) -> Result<usize, SqliteFault> {
        let outlived = |held: &&StoredStream| held.expired(retention, now).is_some();
        let Some(mut held) = self.stream(stream).filter(outlived).cloned() else { return Ok(0) };
        let mut removed = 0;
        while removed < batches_max
            && let Some(oldest) = held.expired(retention, now)
        {
            self.delete_batch(held.number, oldest.first)?;
            held.len = held.len.saturating_sub(oldest.len);
            held.oldest = load_oldest(&self.transaction, held.number, oldest.last.next())?;
            removed += 1;
        }
        if removed > 0 {
            self.save(&held)?;
            self.changed.insert(stream.clone(), held);
        }
        Ok(removed)
    }

    /// Sets a new fence.
    fn renew_fence(&mut self, mut held: StoredStream) -> Result<StoredStream, SqliteFault> {
        held.fence = held.fence.next(random::u128());
        self.save(&held)?;
        Ok(held)
    }

    fn stream(&self, stream: &StreamName) -> Option<&StoredStream> {
        self.changed.get(stream).or_else(|| self.committed.get(stream))
    }

    fn insert(&self, stream: &StreamName, replaced: bool) -> Result<StoredStream, SqliteFault> {
        let epoch = Epoch(random::nonzero_u32());
        self.transaction.execute(
            "INSERT INTO stream (name, epoch, fence_number, fence_nonce, last, len, damaged)
             VALUES (?1, ?2, 0, zeroblob(16), 0, 0, ?3)",
            params![stream.as_str(), epoch.0, replaced],
        )?;
        Ok(StoredStream {
            number: self.transaction.last_insert_rowid(),
            lineage: Arc::new(Lineage::new(epoch)),
            fence: Fence::NONE,
            last: Offset::START,
            len: 0,
            checkpoint: None,
            damaged: replaced,
            oldest: None,
        })
    }

    fn save(&mut self, held: &StoredStream) -> Result<(), SqliteFault> {
        let checkpoint = held.checkpoint.as_ref();
        let (number, text) = match checkpoint.and_then(|checkpoint| checkpoint.position.as_ref()) {
            None => (None, None),
            Some(Position::Numbered(number)) => (Some(number.0.cast_signed()), None),
            Some(Position::Opaque(text)) => (None, Some(text.as_str())),
        };
        let feed = checkpoint.and_then(|checkpoint| checkpoint.feed);
        let mut statement = self.transaction.prepare_cached(
            "UPDATE stream SET fence_number = ?2, fence_nonce = ?3, last = ?4, len = ?5, position = ?6, heard_at = ?7,
             damaged = ?8, feed = ?9, position_text = ?10 WHERE number = ?1",
        )?;
        statement.execute(params![
            held.number,
            held.fence.number.cast_signed(),
            held.fence.nonce.to_le_bytes(),
            held.last.0.cast_signed(),
            held.len.cast_signed(),
            number,
            checkpoint.map(|checkpoint| checkpoint.last_received_at.0),
            held.damaged,
            feed.map(|feed| feed.0.cast_signed()),
            text,
        ])?;
        self.wal_bytes += APPEND_OVERHEAD;
        Ok(())
    }

    fn insert_batch(&mut self, number: i64, batch: &Batch) -> Result<u64, SqliteFault> {
        let slots = batch.index();
        let mut statement = self.transaction.prepare_cached(
            "INSERT INTO batch (key, last, received_first, received_last, crc, slots, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        statement.execute(params![
            key(number, batch.first()),
            batch.last().0.cast_signed(),
            batch.received_first().0,
            batch.received_last().0,
            crc(batch.first(), batch.last(), &slots, batch.bytes()),
            slots,
            &batch.bytes()[..],
        ])?;
        let len = (slots.len() + batch.bytes().len()) as u64;
        self.wal_bytes += len;
        Ok(len)
    }

    fn delete_batch(&mut self, number: i64, first: Offset) -> Result<(), SqliteFault> {
        let mut statement = self.transaction.prepare_cached("DELETE FROM batch WHERE key = ?1")?;
        let removed = statement.execute([key(number, first)])?;
        if removed != 1 {
            return Err(SqliteFault::damaged(format!("the batch of offset {first} is missing")));
        }
        self.wal_bytes += APPEND_OVERHEAD;
        Ok(())
    }
}

/// Why the batches do not follow the stored ones. Checked before any of them is written.
fn discontinuity(held: &StoredStream, append: &Append) -> Option<String> {
    let mut last = held.last;
    for batch in &append.batches {
        if batch.first() != last.next() || batch.epoch() != held.lineage.current() {
            return Some(format!("{}: the next offset is {}, not {}", append.stream, last.next(), batch.first()));
        }
        last = batch.last();
    }
    None
}

pub(super) fn load(connection: &Connection, stream: &StreamName) -> Result<Option<StoredStream>, SqliteFault> {
    let mut statement = connection.prepare(
        "SELECT number, epoch, fence_number, fence_nonce, last, len, position, heard_at, damaged, feed, earlier,
         position_text FROM stream WHERE name = ?1",
    )?;
    let found = statement.query_row([stream.as_str()], |row| Ok(read_stream(row))).optional()?;
    let Some(mut held) = found.transpose()? else { return Ok(None) };
    held.oldest = load_oldest(connection, held.number, Offset::START)?;
    Ok(Some(held))
}

/// The position of a stream's row. A text that no position can have is damage.
fn read_position(row: &Row<'_>) -> Result<Option<Position>, SqliteFault> {
    let number = row.get::<_, Option<i64>>(6)?.map(|number| Position::Numbered(Sequence(number.cast_unsigned())));
    let Some(text) = row.get::<_, Option<String>>(11)? else { return Ok(number) };
    let damaged = || SqliteFault::damaged("the position of a stream is not what was written".to_owned());
    Position::opaque(&text).map(Some).ok_or_else(damaged)
}

fn read_stream(row: &Row<'_>) -> Result<StoredStream, SqliteFault> {
    let position = read_position(row)?;
    let heard_at = row.get::<_, Option<i64>>(7)?.map(Timestamp);
    let feed = row.get::<_, Option<i64>>(9)?.map(|feed| FeedId(feed.cast_unsigned()));
    Ok(StoredStream {
        number: row.get(0)?,
        lineage: Arc::new(read_lineage(Epoch(row.get(1)?), &row.get::<_, String>(10)?)?),
        fence: Fence { number: row.get::<_, i64>(2)?.cast_unsigned(), nonce: u128::from_le_bytes(row.get(3)?) },
        last: Offset(row.get::<_, i64>(4)?.cast_unsigned()),
        len: row.get::<_, i64>(5)?.cast_unsigned(),
        checkpoint: heard_at.map(|heard_at| Checkpoint { position, last_received_at: heard_at, feed }),
        damaged: row.get(8)?,
        oldest: None,
    })
}

/// The first batch at or after `from`.
fn load_oldest(connection: &Connection, number: i64, from: Offset) -> Result<Option<OldestBatch>, SqliteFault> {
    let mut statement = connection.prepare_cached(
        "SELECT key, last, length(slots) + length(bytes), received_last FROM batch
         WHERE key BETWEEN ?1 AND ?2 ORDER BY key LIMIT 1",
    )?;
    let found = statement.query_row([key(number, from), key_max(number)], |row| {
        Ok(OldestBatch {
            first: key_offset(row.get(0)?),
            last: Offset(row.get::<_, i64>(1)?.cast_unsigned()),
            len: row.get::<_, i64>(2)?.cast_unsigned(),
            received_last: Timestamp(row.get(3)?),
        })
    });
    Ok(found.optional()?)
}
