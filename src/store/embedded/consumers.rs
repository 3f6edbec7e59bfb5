//! The records of durable consumers in SQLite, and the cursors of all consumers of a stream.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{EmbeddedStore, fault::SqliteFault, group::Command, records::RecordChange};
use crate::{
    model::{ConsumerName, Fence, Mark, StreamName, Timestamp},
    protocol::consumer::ConsumerRecord,
    store::{
        AppendError, ReadError,
        consumers::{CONSUMERS_MAX, consumers_full},
    },
};

impl EmbeddedStore {
    pub(in crate::store) async fn consumer(
        &self,
        consumer: &ConsumerName,
    ) -> Result<Option<ConsumerRecord>, ReadError> {
        let consumer = consumer.clone();
        self.query(move |connection| record(connection, &consumer)).await
    }

    pub(in crate::store) async fn consumers(&self) -> Result<BTreeMap<ConsumerName, ConsumerRecord>, ReadError> {
        self.query(records).await
    }

    pub(in crate::store) async fn cursors(
        &self,
        stream: &StreamName,
    ) -> Result<BTreeMap<ConsumerName, Mark>, ReadError> {
        let stream = stream.clone();
        self.query(move |connection| cursors(connection, &stream)).await
    }

    pub(in crate::store) async fn change_consumer(
        &self,
        consumer: &ConsumerName,
        from: Option<ConsumerRecord>,
        to: Option<ConsumerRecord>,
    ) -> Result<bool, AppendError> {
        let change = RecordChange::Consumer { consumer: consumer.clone(), from, to };
        self.send(|reply| Command::Change(change, reply)).await
    }

    pub(in crate::store) async fn delete_cursor(
        &self,
        consumer: &ConsumerName,
        stream: &StreamName,
    ) -> Result<(), AppendError> {
        let change = RecordChange::DeleteCursor { consumer: consumer.clone(), stream: stream.clone() };
        self.send(|reply| Command::Change(change, reply)).await.map(drop)
    }
}

/// Creates, changes or deletes a record by compare-and-set; returns whether it is `to`.
pub(super) fn change(
    connection: &Connection,
    consumer: &ConsumerName,
    from: Option<ConsumerRecord>,
    to: Option<ConsumerRecord>,
) -> Result<Result<bool, AppendError>, SqliteFault> {
    let found = record(connection, consumer)?;
    if found == to || found != from {
        return Ok(Ok(found == to));
    }
    let Some(ConsumerRecord { claim, used_at }) = to else {
        connection.prepare_cached("DELETE FROM consumer WHERE name = ?1")?.execute([consumer.as_str()])?;
        return Ok(Ok(true));
    };
    if found.is_none() && count(connection)? >= CONSUMERS_MAX {
        return Ok(Err(consumers_full()));
    }
    let mut statement = connection.prepare_cached(
        "INSERT OR REPLACE INTO consumer (name, claim_number, claim_nonce, used_at) VALUES (?1, ?2, ?3, ?4)",
    )?;
    let (number, nonce) = (claim.number.cast_signed(), claim.nonce.to_le_bytes());
    statement.execute(params![consumer.as_str(), number, nonce, used_at.0])?;
    Ok(Ok(true))
}

pub(super) fn delete_cursor(
    connection: &Connection,
    consumer: &ConsumerName,
    stream: &StreamName,
) -> Result<bool, SqliteFault> {
    let mut statement = connection.prepare_cached("DELETE FROM cursor WHERE consumer = ?1 AND stream = ?2")?;
    Ok(statement.execute([consumer.as_str(), stream.as_str()])? == 1)
}

fn count(connection: &Connection) -> Result<u64, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT count(*) FROM consumer")?;
    Ok(statement.query_row((), |row| row.get::<_, i64>(0))?.cast_unsigned())
}

fn record(connection: &Connection, consumer: &ConsumerName) -> Result<Option<ConsumerRecord>, SqliteFault> {
    let mut statement =
        connection.prepare_cached("SELECT name, claim_number, claim_nonce, used_at FROM consumer WHERE name = ?1")?;
    Ok(statement.query_row([consumer.as_str()], read_record).optional()?)
}

fn records(connection: &Connection) -> Result<BTreeMap<ConsumerName, ConsumerRecord>, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT name, claim_number, claim_nonce, used_at FROM consumer")?;
    let mut rows = statement.query(())?;
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next()? {
        found.insert(read_name(row)?, read_record(row)?);
    }
    Ok(found)
}

fn read_record(row: &Row<'_>) -> rusqlite::Result<ConsumerRecord> {
    let claim = Fence { number: row.get::<_, i64>(1)?.cast_unsigned(), nonce: u128::from_le_bytes(row.get(2)?) };
    Ok(ConsumerRecord { claim, used_at: Timestamp(row.get(3)?) })
}

fn cursors(connection: &Connection, stream: &StreamName) -> Result<BTreeMap<ConsumerName, Mark>, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT consumer, mark FROM cursor WHERE stream = ?1")?;
    let mut rows = statement.query([stream.as_str()])?;
    let mut found = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (consumer, text) = (read_name(row)?, row.get::<_, String>(1)?);
        let damaged = || SqliteFault::damaged(format!("{text:?} is not a cursor, but {consumer} has it in {stream}"));
        let mark = text.parse().map_err(|_| damaged())?;
        found.insert(consumer, mark);
    }
    Ok(found)
}

/// The consumer in the first column.
fn read_name(row: &Row<'_>) -> Result<ConsumerName, SqliteFault> {
    let name: String = row.get(0)?;
    name.parse().map_err(|_| SqliteFault::damaged(format!("{name:?} is not the name of a consumer")))
}
