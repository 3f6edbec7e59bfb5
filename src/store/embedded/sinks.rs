//! The records of sinks in SQLite: leases, cursors and dead letters.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::{EmbeddedStore, fault::SqliteFault, group::Command, records::RecordChange};
use crate::{
    model::{ConsumerName, Fence, Mark, ReplicaId, StreamName, Timestamp},
    protocol::lease::LeaseRecord,
    store::{
        AppendError, ReadError,
        sinks::{DEAD_LETTERS_MAX, DeadLetter, SinkAdvance, StoredDeadLetter, dead_letters_full},
    },
};

impl EmbeddedStore {
    pub(in crate::store) async fn sink_lease(&self, sink: &ConsumerName) -> Result<Option<LeaseRecord>, ReadError> {
        let sink = sink.clone();
        self.query(move |connection| lease(connection, &sink)).await
    }

    pub(in crate::store) async fn change_sink_lease(
        &self,
        sink: &ConsumerName,
        expected: Option<Fence>,
        record: LeaseRecord,
    ) -> Result<bool, AppendError> {
        let change = RecordChange::SinkLease { sink: sink.clone(), expected, record };
        self.send(|reply| Command::Change(change, reply)).await
    }

    pub(in crate::store) async fn sink_cursor(
        &self,
        sink: &ConsumerName,
        stream: &StreamName,
    ) -> Result<Option<Mark>, ReadError> {
        let (sink, stream) = (sink.clone(), stream.clone());
        self.query(move |connection| cursor(connection, &sink, &stream)).await
    }

    pub(in crate::store) async fn advance_sink(&self, advance: SinkAdvance) -> Result<bool, AppendError> {
        self.send(|reply| Command::Change(RecordChange::SinkAdvance(advance), reply)).await
    }

    pub(in crate::store) async fn dead_letters(
        &self,
        sink: &ConsumerName,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredDeadLetter>, ReadError> {
        let sink = sink.clone();
        self.query(move |connection| letters(connection, &sink, after, limit)).await
    }

    pub(in crate::store) async fn remove_dead_letter(
        &self,
        sink: &ConsumerName,
        number: u64,
    ) -> Result<bool, AppendError> {
        let change = RecordChange::RemoveDeadLetter { sink: sink.clone(), number };
        self.send(|reply| Command::Change(change, reply)).await
    }

    /// Runs a query over a reader's connection.
    pub(super) async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, ReadError> {
        let pool = Arc::clone(&self.shared.readers);
        pool.run(query).await.map_err(|fault| self.shared.read_failed(&fault))
    }
}

pub(super) fn lease(connection: &Connection, sink: &ConsumerName) -> Result<Option<LeaseRecord>, SqliteFault> {
    let mut statement =
        connection.prepare_cached("SELECT fence_number, fence_nonce, owner FROM sink WHERE name = ?1")?;
    let found = statement.query_row([sink.as_str()], |row| {
        let fence = Fence { number: row.get::<_, i64>(0)?.cast_unsigned(), nonce: u128::from_le_bytes(row.get(1)?) };
        let owner = row.get::<_, Option<i64>>(2)?;
        Ok(LeaseRecord { holder: owner.map(|owner| ReplicaId(owner.cast_unsigned())), fence })
    });
    Ok(found.optional()?)
}

/// Replaces a lease by compare-and-set; returns whether `record` is the present one.
pub(super) fn change_lease(
    connection: &Connection,
    sink: &ConsumerName,
    expected: Option<Fence>,
    record: LeaseRecord,
) -> Result<bool, SqliteFault> {
    let found = lease(connection, sink)?.map(|found| found.fence);
    if found == Some(record.fence) {
        return Ok(true);
    }
    if found != expected {
        return Ok(false);
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO sink (name, fence_number, fence_nonce, owner, letter_next) VALUES (?1, ?2, ?3, ?4, 1)
         ON CONFLICT (name) DO UPDATE
         SET fence_number = excluded.fence_number, fence_nonce = excluded.fence_nonce, owner = excluded.owner",
    )?;
    let owner = record.holder.map(|owner| owner.0.cast_signed());
    statement.execute(params![
        sink.as_str(),
        record.fence.number.cast_signed(),
        record.fence.nonce.to_le_bytes(),
        owner
    ])?;
    Ok(true)
}

pub(super) fn cursor(
    connection: &Connection,
    sink: &ConsumerName,
    stream: &StreamName,
) -> Result<Option<Mark>, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT mark FROM sink_cursor WHERE sink = ?1 AND stream = ?2")?;
    let found = statement.query_row([sink.as_str(), stream.as_str()], |row| row.get::<_, String>(0)).optional()?;
    found.map(|text| read_mark(&text)).transpose()
}

/// Moves a cursor by compare-and-set under the sink's fence and stores the dead letters; `Err` ends the whole step.
pub(super) fn advance(
    connection: &Connection,
    advance: &SinkAdvance,
) -> Result<Result<bool, AppendError>, SqliteFault> {
    let SinkAdvance { sink, fence, stream, from, to, dead_letters } = advance;
    if lease(connection, sink)?.is_none_or(|lease| lease.fence != *fence) {
        return Ok(Err(AppendError::Fenced));
    }
    let found = cursor(connection, sink, stream)?;
    if found == Some(*to) || found != *from {
        return Ok(Ok(found == Some(*to)));
    }
    if !dead_letters.is_empty() && !insert_letters(connection, sink, dead_letters)? {
        return Ok(Err(dead_letters_full(sink)));
    }
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO sink_cursor (sink, stream, mark) VALUES (?1, ?2, ?3)")?;
    statement.execute(params![sink.as_str(), stream.as_str(), to.to_string()])?;
    Ok(Ok(true))
}

/// Stores dead letters; returns false, and stores none, where they exceed the bound.
fn insert_letters(connection: &Connection, sink: &ConsumerName, letters: &[DeadLetter]) -> Result<bool, SqliteFault> {
    let mut span = connection.prepare_cached(
        "SELECT letter_next, coalesce((SELECT min(number) FROM dead_letter WHERE sink = ?1), letter_next)
         FROM sink WHERE name = ?1",
    )?;
    let (next, oldest): (i64, i64) = span.query_row([sink.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let end = next.saturating_add_unsigned(letters.len() as u64);
    if (end - oldest).cast_unsigned() > DEAD_LETTERS_MAX {
        return Ok(false);
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO dead_letter (sink, number, stream, mark, failed_at, cause, envelope)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for (number, letter) in (next..).zip(letters) {
        let DeadLetter { stream, mark, failed_at, cause, envelope } = letter;
        let (sink, stream, envelope) = (sink.as_str(), stream.as_str(), &**envelope);
        statement.execute(params![sink, number, stream, mark.to_string(), failed_at.0, cause, envelope])?;
    }
    connection
        .prepare_cached("UPDATE sink SET letter_next = ?2 WHERE name = ?1")?
        .execute(params![sink.as_str(), end])?;
    Ok(true)
}

pub(super) fn letters(
    connection: &Connection,
    sink: &ConsumerName,
    after: u64,
    limit: usize,
) -> Result<Vec<StoredDeadLetter>, SqliteFault> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(
        "SELECT number, stream, mark, failed_at, cause, envelope FROM dead_letter
         WHERE sink = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
    )?;
    let mut rows = statement.query(params![sink.as_str(), after, limit as i64])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let stream: String = row.get(1)?;
        let damaged = || SqliteFault::damaged(format!("{stream:?} in a dead letter is not a stream name"));
        let letter = DeadLetter {
            stream: stream.parse().map_err(|_| damaged())?,
            mark: read_mark(&row.get::<_, String>(2)?)?,
            failed_at: Timestamp(row.get(3)?),
            cause: row.get(4)?,
            envelope: row.get::<_, String>(5)?.into(),
        };
        found.push(StoredDeadLetter { number: row.get::<_, i64>(0)?.cast_unsigned(), letter });
    }
    Ok(found)
}

pub(super) fn remove_letter(connection: &Connection, sink: &ConsumerName, number: u64) -> Result<bool, SqliteFault> {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached("DELETE FROM dead_letter WHERE sink = ?1 AND number = ?2")?;
    Ok(statement.execute(params![sink.as_str(), number])? == 1)
}

fn read_mark(text: &str) -> Result<Mark, SqliteFault> {
    text.parse().map_err(|_| SqliteFault::damaged(format!("{text:?} is not a cursor of a sink")))
}
