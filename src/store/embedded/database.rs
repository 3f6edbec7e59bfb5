//! The SQLite file: its schema, the setup of connections, and integrity checks.
//!
//! One row holds one batch, not one event: the envelopes of a batch are concatenated in one value, with an index of
//! their ends in another column. The key consists of stream number and first offset, so a log is one range of one table
//! in key order. A file of a newer schema is rejected and stays unchanged.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, config::DbConfig, ffi, params};

use super::fault::SqliteFault;
use crate::{
    model::{Batch, EnvelopeHeader, Epoch, Lineage, Offset},
    telemetry::Cause,
};

/// The schema that this program writes and reads, stored in `user_version`.
pub(super) const SCHEMA: i64 = SCHEMA_STEPS.len() as i64;

/// What each schema adds to the one before, from schema 1 on.
const SCHEMA_STEPS: [&str; 6] =
    [TABLES, RECORD_TABLES, IDENTITY_TABLES, SINK_TABLES, POSITION_TEXT_COLUMN, CONSUMER_TABLE];

const TABLES: &str = "
CREATE TABLE stream (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    fence_number INTEGER NOT NULL,
    fence_nonce BLOB NOT NULL,
    last INTEGER NOT NULL,
    len INTEGER NOT NULL,
    position INTEGER,
    heard_at INTEGER,
    damaged INTEGER NOT NULL
) STRICT;
CREATE TABLE batch (
    key INTEGER PRIMARY KEY,
    last INTEGER NOT NULL,
    received_first INTEGER NOT NULL,
    received_last INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    slots BLOB NOT NULL,
    bytes BLOB NOT NULL
) STRICT;
";

/// The tables that the second schema adds to the first.
const RECORD_TABLES: &str = "
CREATE TABLE cursor (
    consumer TEXT NOT NULL,
    stream TEXT NOT NULL,
    mark TEXT NOT NULL,
    PRIMARY KEY (consumer, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE revocation (
    whose TEXT NOT NULL PRIMARY KEY,
    at INTEGER NOT NULL,
    ends_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// What the third schema adds to the second: ended epochs, the feed of a position, and the data that detects a copy.
const IDENTITY_TABLES: &str = "
ALTER TABLE stream ADD COLUMN earlier TEXT NOT NULL DEFAULT '';
ALTER TABLE stream ADD COLUMN feed INTEGER;
CREATE TABLE life (
    number INTEGER PRIMARY KEY,
    database TEXT NOT NULL,
    wal TEXT NOT NULL,
    name TEXT NOT NULL,
    seal TEXT NOT NULL
) STRICT;
";

/// The tables that the fourth schema adds to the third: leases, cursors and dead letters of sinks.
const SINK_TABLES: &str = "
CREATE TABLE sink (
    name TEXT NOT NULL PRIMARY KEY,
    fence_number INTEGER NOT NULL,
    fence_nonce BLOB NOT NULL,
    owner INTEGER,
    letter_next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sink_cursor (
    sink TEXT NOT NULL,
    stream TEXT NOT NULL,
    mark TEXT NOT NULL,
    PRIMARY KEY (sink, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE dead_letter (
    sink TEXT NOT NULL,
    number INTEGER NOT NULL,
    stream TEXT NOT NULL,
    mark TEXT NOT NULL,
    failed_at INTEGER NOT NULL,
    cause TEXT NOT NULL,
    envelope TEXT NOT NULL,
    PRIMARY KEY (sink, number)
) STRICT;
";

/// The column that the fifth schema adds to the fourth: an opaque position. Column `position` has that of a numbered
/// stream.
const POSITION_TEXT_COLUMN: &str = "ALTER TABLE stream ADD COLUMN position_text TEXT;";

/// The table that the sixth schema adds to the fifth: durable consumers.
const CONSUMER_TABLE: &str = "
CREATE TABLE consumer (
    name TEXT NOT NULL PRIMARY KEY,
    claim_number INTEGER NOT NULL,
    claim_nonce BLOB NOT NULL,
    used_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Bits of a row's key that hold the offset; the stream's number is above them.
const OFFSET_BITS: u32 = 44;

/// A page holds several small batches, and a large batch needs few pages: measured best between 4 and 32 KiB. (On a
/// busy machine 16 and 32 KiB cost a sixth less CPU time per event at full speed, on an idle machine no less; at 2,000
/// events/s a twentieth and a seventh more.)
pub(super) const PAGE_LEN: u32 = 8192;

/// How long a reader waits for a checkpoint that blocks it, and the writer for readers.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// SQLite truncates the write-ahead log to this size when it restarts the log.
const WAL_LEN_LIMIT: i64 = 16 * 1024 * 1024;

/// The key of the row that begins with `first`.
pub(super) fn key(number: i64, first: Offset) -> i64 {
    let offset = i64::try_from(first.0).expect("offsets are counted up from 1");
    assert!(offset < 1 << OFFSET_BITS, "an offset beyond the key's bits");
    (number << OFFSET_BITS) | offset
}

/// The first offset of the row with this key.
pub(super) fn key_offset(key: i64) -> Offset {
    Offset((key & ((1 << OFFSET_BITS) - 1)).cast_unsigned())
}

/// The largest key that a stream's rows can have.
pub(super) fn key_max(number: i64) -> i64 {
    (number << OFFSET_BITS) | ((1 << OFFSET_BITS) - 1)
}

/// The checksum of a stored batch, compared at each read.
pub(super) fn crc(first: Offset, last: Offset, slots: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&first.0.to_le_bytes());
    hasher.update(&last.0.to_le_bytes());
    hasher.update(slots);
    hasher.update(bytes);
    hasher.finalize()
}

/// The columns that [`read_batch`] expects, in its order.
pub(super) const BATCH_COLUMNS: &str = "key, last, crc, slots, bytes";

/// The batch of a row; [`SqliteFault::Damaged`] when it differs from what was written.
pub(super) fn read_batch(row: &Row<'_>) -> Result<Batch, SqliteFault> {
    let first = key_offset(row.get(0)?);
    let last = Offset(row.get::<_, i64>(1)?.cast_unsigned());
    let slots = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
    let bytes = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
    let damaged = || SqliteFault::damaged(format!("the entries from offset {first} on are not what was written"));
    if i64::from(crc(first, last, slots, bytes)) != row.get::<_, i64>(2)? {
        return Err(damaged());
    }
    let epoch = EnvelopeHeader::epoch_of(bytes).ok_or_else(damaged)?;
    let batch = Batch::restore(epoch, first, bytes::Bytes::copy_from_slice(bytes), slots);
    batch.filter(|batch| batch.last() == last).ok_or_else(damaged)
}

/// The ended epochs in the format of the stream's row: `7:17 9:30`, each with its last offset, oldest first.
pub(super) fn earlier_text(lineage: &Lineage) -> String {
    let ended = lineage.earlier().iter().map(|(epoch, end)| format!("{epoch}:{end}"));
    ended.collect::<Vec<_>>().join(" ")
}

/// A log's epochs, from the columns of its row.
pub(super) fn read_lineage(current: Epoch, earlier: &str) -> Result<Lineage, SqliteFault> {
    let ended = |text: &str| {
        let (epoch, end) = text.split_once(':')?;
        Some((Epoch(u32::from_str_radix(epoch, 16).ok()?), Offset(end.parse().ok()?)))
    };
    let earlier: Option<Vec<_>> = earlier.split_whitespace().map(ended).collect();
    let earlier =
        earlier.ok_or_else(|| SqliteFault::damaged("the epochs of a stream are not what was written".to_owned()))?;
    Ok(Lineage::with_earlier(current, earlier))
}

/// The purpose of a connection; each has its own cache size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Write,
    Read,
}

impl Purpose {
    /// Page cache in KiB.
    fn cache_kib(self) -> i64 {
        match self {
            Self::Write => 2048,
            Self::Read => 512,
        }
    }
}

/// Opens a connection with all settings that the store requires.
pub(super) fn connect(path: &Path, purpose: Purpose) -> rusqlite::Result<Connection> {
    let create = if purpose == Purpose::Write { OpenFlags::SQLITE_OPEN_CREATE } else { OpenFlags::empty() };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Closing a connection must not checkpoint: after a failure the next start needs the write-ahead log unchanged.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "cache_size", -purpose.cache_kib())?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    match purpose {
        Purpose::Read => connection.pragma_update(None, "query_only", true)?,
        Purpose::Write => {
            connection.pragma_update(None, "page_size", PAGE_LEN)?;
            let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
            if mode != "wal" {
                // SQLite opened a file without write permission as read-only.
                let failure = ffi::Error::new(ffi::SQLITE_READONLY);
                return Err(rusqlite::Error::SqliteFailure(failure, Some("the file cannot be written".to_owned())));
            }
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "wal_autocheckpoint", 0)?;
            connection.pragma_update(None, "journal_size_limit", WAL_LEN_LIMIT)?;
        }
    }
    Ok(connection)
}

/// The file's schema version; none for a file without a single table.
pub(super) fn schema(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok((tables > 0 || version != 0).then_some(version))
}

/// Creates the tables of an empty file, all or none.
pub(super) fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    migrate(connection, 0)
}

/// Adds what the schema `from` does not have, all or nothing.
pub(super) fn migrate(connection: &mut Connection, from: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for (_, step) in (0..).zip(SCHEMA_STEPS).filter(|(schema, _)| *schema >= from) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

/// One durable step that changes nothing: after it the write-ahead log exists until an orderly close.
pub(super) fn stamp(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "user_version", SCHEMA)
}

/// The result of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WalCheckpoint {
    /// Everything is in the database; otherwise readers blocked part of the checkpoint.
    pub(super) complete: bool,
    /// Bytes of the write-ahead log, checkpointed or not. SQLite restarts the log at the next write that no reader
    /// blocks.
    pub(super) wal_len: u64,
}

/// Checkpoints the write-ahead log into the database. `wait`: waits for readers, so that the next write always restarts
/// the log.
pub(super) fn checkpoint_wal(connection: &Connection, wait: bool) -> rusqlite::Result<WalCheckpoint> {
    let mode = if wait { "RESTART" } else { "PASSIVE" };
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), (), |row| {
        let (busy, frames, moved): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let log_len = u64::try_from(frames).unwrap_or(0) * u64::from(PAGE_LEN);
        Ok(WalCheckpoint { complete: !busy && frames == moved, wal_len: log_len })
    })
}

/// Closes a connection after a full checkpoint, and removes the write-ahead log.
pub(super) fn close_checkpointed(connection: Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    connection.close().map_err(|(_, error)| error)
}

/// The contents of the file header, read without SQLite, because SQLite could change the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DatabaseHeader {
    pub(super) schema: i64,
    /// The length that the database should have when the write-ahead log is empty.
    pub(super) len: u64,
}

const HEADER_LEN: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";

/// The header of a database; none for any other file.
pub(super) fn header(path: &Path) -> io::Result<Option<DatabaseHeader>> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    File::open(path)?.take(HEADER_LEN as u64).read_to_end(&mut header)?;
    let Ok(header) = <[u8; HEADER_LEN]>::try_from(header) else { return Ok(None) };
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    // Two bytes hold the page length; 1 means 65,536.
    let page_len = match number(16) >> 16 {
        1 => 65_536,
        len => u64::from(len),
    };
    let found = DatabaseHeader { schema: i64::from(number(60)), len: page_len * u64::from(number(28)) };
    Ok(header.starts_with(MAGIC).then_some(found))
}

/// The result of a structure check.
#[derive(Debug)]
pub(super) enum CheckOutcome {
    Sound,
    /// No fault was found in the time given.
    Unfinished,
    Damaged(Cause),
}

/// SQLite's own check of the structure, for at most `time_max`.
pub(super) fn quick_check(connection: &Connection, time_max: Duration) -> Result<CheckOutcome, SqliteFault> {
    let interrupt = connection.get_interrupt_handle();
    let (finished, waiting) = sync_channel::<()>(0);
    let found = std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(time_max) == Err(RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
        });
        let found = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get::<_, String>(0));
        drop(finished);
        found
    });
    match found {
        Ok(text) if text == "ok" => Ok(CheckOutcome::Sound),
        Ok(text) if is_failed_read(&text) => Err(SqliteFault::Failed(Cause::new(text))),
        Ok(text) => Ok(CheckOutcome::Damaged(Cause::new(text))),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok(CheckOutcome::Unfinished)
        }
        Err(error) => match SqliteFault::from(error) {
            SqliteFault::Damaged(cause) => Ok(CheckOutcome::Damaged(cause)),
            fault @ (SqliteFault::Unavailable(_) | SqliteFault::Failed(_)) => Err(fault),
        },
    }
}

/// Whether the check met a page that the system could not read: SQLite reports this as text with its own error code.
fn is_failed_read(text: &str) -> bool {
    let code = text.split_once("error code=").and_then(|(_, code)| {
        let digits = code.find(|other: char| !other.is_ascii_digit()).unwrap_or(code.len());
        code[..digits].parse().ok()
    });
    let kind = |code: i32| code & 0xff == ffi::SQLITE_IOERR && code != ffi::SQLITE_IOERR_SHORT_READ;
    code.is_some_and(kind)
}

/// Checks that each stream's newest batch matches the stream's row.
pub(super) fn check_ends(connection: &Connection) -> Result<(), SqliteFault> {
    let mut streams = connection.prepare("SELECT number, name, last FROM stream")?;
    let mut rows = streams.query(())?;
    while let Some(row) = rows.next()? {
        let (number, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let last = Offset(row.get::<_, i64>(2)?.cast_unsigned());
        let newest = newest_batch(connection, number)?.map_or(Offset::START, |batch| batch.last());
        if newest != last {
            return Err(SqliteFault::damaged(format!("{name} ends at {newest}, its record says {last}")));
        }
    }
    Ok(())
}

fn newest_batch(connection: &Connection, number: i64) -> Result<Option<Batch>, SqliteFault> {
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batch WHERE key BETWEEN ?1 AND ?2 ORDER BY key DESC LIMIT 1");
    let mut statement = connection.prepare(&sql)?;
    let found = statement
        .query_row(params![key(number, Offset::START), key_max(number)], |row| Ok(read_batch(row)))
        .optional()?;
    found.transpose()
}

/// Reads every batch of every stream and checks its checksum and that it follows the batch before.
pub(super) fn check_all(connection: &Connection) -> Result<(), SqliteFault> {
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batch ORDER BY key");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query(())?;
    let mut expected: Option<i64> = None;
    while let Some(row) = rows.next()? {
        let found: i64 = row.get(0)?;
        let stream = found >> OFFSET_BITS;
        if expected.is_some_and(|expected| expected >> OFFSET_BITS == stream && expected != found) {
            return Err(SqliteFault::damaged(format!("entries before offset {} are missing", key_offset(found))));
        }
        let batch = read_batch(row)?;
        expected = Some(key(stream, batch.last().next()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_could_not_be_read_is_no_damage() {
        for (text, failed) in [
            ("Tree 2 page 7: unable to get the page. error code=266", true),
            ("unable to get the page. error code=10", true),
            ("unable to get the page. error code=522", false),
            ("unable to get the page. error code=11", false),
            ("Tree 2 page 7 cell 3: invalid page number 99", false),
            ("error code=", false),
        ] {
            assert_eq!(is_failed_read(text), failed, "{text}");
        }
    }
}
