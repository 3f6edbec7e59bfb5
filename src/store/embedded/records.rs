//! What is kept beside the logs: cursors of consumers, and who is refused.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::SqliteFault;
use crate::model::{ConsumerName, Mark, RevocationTarget, StreamName, Timestamp};

/// One change, done in a step with others.
#[derive(Debug)]
pub(super) enum RecordChange {
    Cursor { consumer: ConsumerName, stream: StreamName, from: Option<Mark>, to: Mark },
    Revocation { whose: RevocationTarget, at: Timestamp, ends_at: Timestamp },
}

/// Does a change; false when it is one of something that is not as the caller knows it.
pub(super) fn change(connection: &Connection, change: &RecordChange, now: Timestamp) -> Result<bool, SqliteFault> {
    match change {
        RecordChange::Cursor { consumer, stream, from, to } => {
            let found = cursor(connection, consumer, stream)?;
            let moves = found == *from;
            if moves {
                let mut statement = connection
                    .prepare_cached("INSERT OR REPLACE INTO cursor (consumer, stream, mark) VALUES (?1, ?2, ?3)")?;
                statement.execute(params![consumer.as_str(), stream.as_str(), to.to_string()])?;
            }
            Ok(moves || found == Some(*to))
        }
        RecordChange::Revocation { whose, at, ends_at } => {
            connection.prepare_cached("DELETE FROM revocation WHERE ends_at <= ?1")?.execute([now.0])?;
            let mut statement = connection.prepare_cached(
                "INSERT INTO revocation (whose, at, ends_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (whose) DO UPDATE SET at = max(at, excluded.at), ends_at = max(ends_at, excluded.ends_at)",
            )?;
            statement.execute(params![whose.to_string(), at.0, ends_at.0])?;
            Ok(true)
        }
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
        |text: &str| SqliteFault::Damaged(format!("{text:?} is no cursor, but {consumer} has it in {stream}"));
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
            text.parse().map_err(|_| SqliteFault::Damaged(format!("{text:?} is revoked, but that is nobody")))?;
        Ok((whose, at))
    };
    rows.map(read).collect()
}
