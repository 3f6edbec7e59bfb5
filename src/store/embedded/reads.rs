//! Reads: a bounded number of dedicated connections, outside the runtime's worker threads.

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{
    database::{self, BATCH_COLUMNS, Purpose, key, key_max, key_offset, read_batch},
    fault::SqliteFault,
};
use crate::{
    model::{Batch, Offset, Timestamp},
    telemetry::Cause,
};

/// The maximum number of concurrent reads; further reads wait.
const READERS_MAX: usize = 4;

/// The key range of one stream's rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowRange {
    pub(super) number: i64,
}

impl RowRange {
    fn keys(self) -> (i64, i64) {
        (key(self.number, Offset::START), key_max(self.number))
    }
}

/// Connections for reads, opened at first use and kept.
#[derive(Debug)]
pub(super) struct ReaderPool {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl ReaderPool {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, permits: Arc::new(Semaphore::new(READERS_MAX)), idle: Mutex::default() }
    }

    /// Runs `read` on a connection. If the caller stops waiting, the read still runs to its end.
    pub(super) async fn run<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, SqliteFault> + Send + 'static,
    ) -> Result<T, SqliteFault> {
        let closed = || SqliteFault::Failed(Cause::new("the store is closed"));
        let place = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| closed())?;
        let reading = tokio::task::spawn_blocking(move || {
            let connection = self.connection()?;
            let found = read(&connection);
            // A connection that met an error is not used for the next read.
            if found.is_ok() && !self.permits.is_closed() {
                self.idle.lock().push(connection);
            }
            drop(place);
            found
        });
        reading.await.unwrap_or_else(|error| Err(SqliteFault::Failed(Cause::new(error))))
    }

    /// Rejects further reads and closes the connections.
    pub(super) fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }

    fn connection(&self) -> Result<Connection, SqliteFault> {
        let idle = self.idle.lock().pop();
        idle.map_or_else(|| Ok(database::connect(&self.path, Purpose::Read)?), Ok)
    }
}

/// The batches that follow `after`, until `bytes_max` is reached; at least one if there is one.
pub(super) fn batches(
    connection: &Connection,
    range: RowRange,
    after: Offset,
    bytes_max: usize,
) -> Result<Vec<Arc<Batch>>, SqliteFault> {
    let (low, high) = range.keys();
    let wanted = key(range.number, after.next());
    let from = row_at(connection, low, wanted)?.unwrap_or(wanted);
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batch WHERE key BETWEEN ?1 AND ?2 ORDER BY key");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([from, high])?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while bytes < bytes_max
        && let Some(row) = rows.next()?
    {
        let batch = read_batch(row)?;
        if batch.last() > after {
            bytes += batch.bytes().len();
            found.push(Arc::new(batch));
        }
    }
    Ok(found)
}

/// The last offset whose entry was received before `moment`, by binary search. Where the wall clock was set back
/// between entries, several offsets may match; it is one of them.
pub(super) fn offset_before(
    connection: &Connection,
    range: RowRange,
    moment: Timestamp,
) -> Result<Offset, SqliteFault> {
    let snapshot = connection.unchecked_transaction()?;
    let (low, high) = range.keys();
    let ends = "SELECT min(key), max(key) FROM batch WHERE key BETWEEN ?1 AND ?2";
    let ends = snapshot.query_row(ends, [low, high], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(newest)): (Option<i64>, Option<i64>) = ends else { return Ok(Offset::START) };
    if received_first(&snapshot, low, first)? >= moment {
        return Ok(key_offset(first).previous());
    }
    // The row at `before` begins before the moment; the row at `beyond`, if it exists, does not.
    let (mut before, mut beyond) = (first, newest + 1);
    while beyond - before > 1 {
        let middle = before + (beyond - before) / 2;
        if received_first(&snapshot, low, middle)? < moment {
            before = middle;
        } else {
            beyond = middle;
        }
    }
    last_before(&snapshot, range, before, moment)
}

/// The key of the row that begins at or before `key`.
fn row_at(connection: &Connection, low: i64, key: i64) -> Result<Option<i64>, SqliteFault> {
    let mut statement = connection.prepare_cached("SELECT max(key) FROM batch WHERE key BETWEEN ?1 AND ?2")?;
    Ok(statement.query_row([low, key], |row| row.get(0))?)
}

/// The time at which the oldest entry of the row at or before `key` was received.
fn received_first(connection: &Connection, low: i64, key: i64) -> Result<Timestamp, SqliteFault> {
    let sql = "SELECT received_first FROM batch WHERE key BETWEEN ?1 AND ?2 ORDER BY key DESC LIMIT 1";
    Ok(connection.prepare_cached(sql)?.query_row([low, key], |row| row.get(0).map(Timestamp))?)
}

/// The last entry received before `moment` in the row at or before `key`, whose first entry was received before it.
fn last_before(connection: &Connection, range: RowRange, key: i64, moment: Timestamp) -> Result<Offset, SqliteFault> {
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batch WHERE key BETWEEN ?1 AND ?2 ORDER BY key DESC LIMIT 1");
    let mut statement = connection.prepare_cached(&sql)?;
    let batch = statement.query_row([range.keys().0, key], |row| Ok(read_batch(row)))??;
    let earlier = (0..batch.len()).take_while(|index| batch.entry(*index).received < moment).count();
    Ok(Offset(batch.first().0 + earlier as u64).previous())
}
