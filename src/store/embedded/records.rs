//! Records that are not in the logs: consumers and their cursors, revocations, and sinks.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::{consumers, fault::SqliteFault, sinks};
use crate::{
    model::{ConsumerName, Fence, Mark, RevocationTarget, StreamName, Timestamp},
    protocol::{consumer::ConsumerRecord, lease::LeaseRecord},
    store::{AppendError, sinks::SinkAdvance},
};

/// A change of a record, in a transaction with others.
#[derive(Debug)]
pub(super) enum RecordChange {
    Cursor { consumer: ConsumerName, stream: StreamName, from: Option<Mark>, to: Mark },
    DeleteCursor { consumer: ConsumerName, stream: StreamName },
    Consumer { consumer: ConsumerName, from: Option<ConsumerRecord>, to: Option<ConsumerRecord> },
    Revocation { whose: RevocationTarget, at: Timestamp, ends_at: Timestamp },
    SinkLease { sink: ConsumerName, expected: Option<Fence>, record: LeaseRecord },
    SinkAdvance(SinkAdvance),
    RemoveDeadLetter { sink: ConsumerName, number: u64 },
}

impl RecordChange {
    /// Bytes of the values that it stores.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::SinkAdvance(advance) => {
                advance.dead_letters.iter().map(|letter| letter.cause.len() + letter.envelope.len()).sum()
            }
            Self::Cursor { .. }
            | Self::DeleteCursor { .. }
            | Self::Consumer { .. }
            | Self::Revocation { .. }
            | Self::SinkLease { .. }
            | Self::RemoveDeadLetter { .. } => 0,
        }
    }
}

/// Applies a change. Returns false when the record is not in the expected state; `Err` ends the whole transaction.
pub(super) fn change(
    connection: &Connection,
    change: &RecordChange,
    now: Timestamp,
) -> Result<Result<bool, AppendError>, SqliteFault> {
    match change {
        RecordChange::Cursor { consumer, stream, from, to } => {
            let found = cursor(connection, consumer, stream)?;
            let moves = found == *from;
            if moves {
                let mut statement = connection
                    .prepare_cached("INSERT OR REPLACE INTO cursor (consumer, stream, mark) VALUES (?1, ?2, ?3)")?;
                statement.execute(params![consumer.as_str(), stream.as_str(), to.to_string()])?;
            }
            Ok(Ok(moves || found == Some(*to)))
        }
        RecordChange::DeleteCursor { consumer, stream } => {
            Ok(Ok(consumers::delete_cursor(connection, consumer, stream)?))
        }
        RecordChange::Consumer { consumer, from, to } => consumers::change(connection, consumer, *from, *to),
        RecordChange::Revocation { whose, at, ends_at } => {
            connection.prepare_cached("DELETE FROM revocation WHERE ends_at <= ?1")?.execute([now.0])?;
            let mut statement = connection.prepare_cached(
                "INSERT INTO revocation (whose, at, ends_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (whose) DO UPDATE SET at = max(at, excluded.at), ends_at = max(ends_at, excluded.ends_at)",
            )?;
            statement.execute(params![whose.to_string(), at.0, ends_at.0])?;
            Ok(Ok(true))
        }
        RecordChange::SinkLease { sink, expected, record } => {
            Ok(Ok(sinks::change_lease(connection, sink, *expected, *record)?))
        }
        RecordChange::SinkAdvance(advance) => sinks::advance(connection, advance),
        RecordChange::RemoveDeadLetter { sink, number } => Ok(Ok(sinks::remove_letter(connection, sink, *number)?)),
    }
}

pub(super) fn cursor(
    connection: &Connection,
    consumer: &ConsumerName,
    stream: &StreamName,
) -> Result<Option<Mark>, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT mark FROM cursor WHERE consumer = ?1 AND stream = ?2")?;
    let found = statement.query_row([consumer.as_str(), stream.as_str()], |row| row.get::<_, String>(0)).optional()?;
    let damaged =
        |text: &str| SqliteFault::damaged(format!("{text:?} is not a cursor, but {consumer} has it in {stream}"));
    found.map(|text| text.parse().map_err(|_| damaged(&text))).transpose()
}

pub(super) fn revoked(
    connection: &Connection,
    now: Timestamp,
) -> Result<BTreeMap<RevocationTarget, Timestamp>, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT whose, at FROM revocation WHERE ends_at > ?1")?;
    let rows = statement.query_map([now.0], |row| Ok((row.get::<_, String>(0)?, Timestamp(row.get(1)?))))?;
    let read = |row: rusqlite::Result<(String, Timestamp)>| {
        let (text, at) = row?;
        let whose =
            text.parse().map_err(|_| SqliteFault::damaged(format!("{text:?} is not a target of a revocation")))?;
        Ok((whose, at))
    };
    rows.map(read).collect()
}
