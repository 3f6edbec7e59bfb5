//! Detects whether a database is the original in this place, or a copy.
//!
//! A copy has the same bytes, but different file metadata: inode, birth time and time of the last change, which only a
//! change sets. The change time of the database is not usable, because the database changes constantly. So an empty
//! file, the seal, is created at each start and each orderly close, and does not change in between. The database stores
//! the metadata of all three files. Where it differs, the logs begin a new epoch; an unnecessary epoch does no damage.

use std::{fs::Metadata, io, os::unix::fs::MetadataExt, time::SystemTime};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{
    database::{earlier_text, read_lineage},
    directory::{Directory, open_private, remove_if_there, sync_directory},
    fault::SqliteFault,
};
use crate::{
    model::{Epoch, Offset},
    random,
};

/// Two names in alternation: the seal that the database names stays until the database names the next one.
const SEALS: [&str; 2] = ["trunkline.seal-a", "trunkline.seal-b"];

/// The identity that the database stores: metadata of its files and of the seal, and the name of the seal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StoreIdentity {
    database: String,
    /// Metadata of the write-ahead log, which is one file from a start to an orderly close, and removed after it.
    wal: String,
    name: String,
    seal: String,
}

/// The stored text for a missing file.
const ABSENT: &str = "-";

/// The result of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreOrigin {
    /// The files are the original ones.
    Original,
    /// A copy, or the files of an earlier version.
    Copy,
}

/// The metadata of the write-ahead log before SQLite opens it; none where the file is missing.
#[derive(Debug, Clone)]
pub(super) struct WalIdentity(Option<String>);

pub(super) fn read_wal_identity(directory: &Directory) -> WalIdentity {
    WalIdentity(directory.wal().metadata().ok().filter(|wal| wal.len() > 0).as_ref().map(file_id))
}

/// Whether the files are the original ones.
pub(super) fn origin(
    connection: &Connection,
    directory: &Directory,
    wal: &WalIdentity,
) -> Result<StoreOrigin, SqliteFault> {
    let Some(known) = load_identity(connection)? else { return Ok(StoreOrigin::Copy) };
    let seal = SEALS.iter().find(|name| **name == known.name);
    let found = seal.and_then(|name| read_identity(directory, name).ok());
    let is_same = |found: StoreIdentity| {
        let wal = wal.0.clone().unwrap_or_else(|| known.wal.clone());
        StoreIdentity { wal, ..found } == known
    };
    Ok(if found.is_some_and(is_same) { StoreOrigin::Original } else { StoreOrigin::Copy })
}

/// Creates the next seal. One transaction stores its name and, for a copy, begins new epochs.
pub(super) fn reseal(
    connection: &mut Connection,
    directory: &Directory,
    origin: StoreOrigin,
) -> Result<(), SqliteFault> {
    let former = load_identity(connection)?.map(|life| life.name);
    let name = if former.as_deref() == Some(SEALS[0]) { SEALS[1] } else { SEALS[0] };
    let made = make_seal(directory, name);
    let transaction = connection.transaction()?;
    if origin == StoreOrigin::Copy {
        start_epochs(&transaction)?;
    }
    if let Ok(life) = &made {
        save_identity(&transaction, life)?;
    }
    transaction.commit()?;
    match made {
        // A seal that could not be removed now is removed before its name is used again.
        Ok(_) => former.into_iter().filter(|former| former != name).for_each(|former| remove_seal(directory, &former)),
        Err(error) => tracing::warn!(%error, "cannot seal the store; a later start may begin a new epoch"),
    }
    Ok(())
}

fn remove_seal(directory: &Directory, name: &str) {
    if let Some(name) = SEALS.iter().find(|seal| **seal == name)
        && let Err(error) = remove_if_there(&directory.path().join(name))
    {
        tracing::debug!(%error, name, "cannot remove the former seal");
    }
}

/// Deletes and creates the file: an overwritten file keeps its inode and its birth time.
fn make_seal(directory: &Directory, name: &str) -> io::Result<StoreIdentity> {
    let path = directory.path().join(name);
    remove_if_there(&path)?;
    open_private(&path)?.sync_all()?;
    sync_directory(directory.path())?;
    read_identity(directory, name)
}

fn read_identity(directory: &Directory, name: &str) -> io::Result<StoreIdentity> {
    let seal = directory.path().join(name).metadata()?;
    let changed = format!("{} {}", seal.ctime(), seal.ctime_nsec());
    let database = directory.database().metadata()?;
    let wal = directory.wal().metadata().as_ref().map_or_else(|_| ABSENT.to_owned(), file_id);
    Ok(StoreIdentity {
        database: file_id(&database),
        wal,
        name: name.to_owned(),
        seal: format!("{} {changed}", file_id(&seal)),
    })
}

/// Inode and birth time. The device is omitted: its number may change when the machine restarts.
fn file_id(file: &Metadata) -> String {
    let born = file.created().ok().and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
    // Some file systems do not store it.
    let born = born.map_or_else(|| ABSENT.to_owned(), |born| born.as_nanos().to_string());
    format!("{} {born}", file.ino())
}

fn load_identity(connection: &Connection) -> Result<Option<StoreIdentity>, SqliteFault> {
    let mut statement = connection.prepare("SELECT database, wal, name, seal FROM life")?;
    let read = |row: &Row<'_>| {
        Ok(StoreIdentity { database: row.get(0)?, wal: row.get(1)?, name: row.get(2)?, seal: row.get(3)? })
    };
    Ok(statement.query_row((), read).optional()?)
}

fn save_identity(transaction: &Transaction<'_>, life: &StoreIdentity) -> Result<(), SqliteFault> {
    let StoreIdentity { database, wal, name, seal } = life;
    let sql = "INSERT OR REPLACE INTO life (number, database, wal, name, seal) VALUES (1, ?1, ?2, ?3, ?4)";
    transaction.execute(sql, params![database, wal, name, seal])?;
    Ok(())
}

/// Begins a new epoch for each log: the original may still be in use, so new entries here need different ids.
fn start_epochs(transaction: &Transaction<'_>) -> Result<(), SqliteFault> {
    let mut streams = transaction.prepare("SELECT number, epoch, earlier, last, name FROM stream")?;
    let mut change = transaction.prepare("UPDATE stream SET epoch = ?2, earlier = ?3 WHERE number = ?1")?;
    let mut rows = streams.query(())?;
    let mut begun = 0;
    while let Some(row) = rows.next()? {
        let (number, last) = (row.get::<_, i64>(0)?, Offset(row.get::<_, i64>(3)?.cast_unsigned()));
        let lineage = read_lineage(Epoch(row.get(1)?), &row.get::<_, String>(2)?)?;
        let next = lineage.start_epoch(Epoch(random::nonzero_u32()), last);
        change.execute(params![number, next.current().0, earlier_text(&next)])?;
        begun += 1;
    }
    if begun > 0 {
        tracing::warn!(
            logs = begun,
            "the store is a copy, was put back from one, or was written by an earlier version: its logs begin a new \
             epoch, cursors of the entries held stay good"
        );
    }
    Ok(())
}
