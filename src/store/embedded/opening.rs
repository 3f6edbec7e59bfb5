//! Opens the database in a claimed directory: the state of the files decides whether they are used, created or
//! quarantined.
//!
//! A file of a newer schema, and errors that are not damage (permissions, a full disk), end the start and leave the
//! files unchanged.

use std::{io, path::Path, time::Duration};

use rusqlite::Connection;

use super::{
    OpenError,
    database::{self, CheckOutcome, Purpose},
    directory::{Directory, ShutdownMarker},
    fault::SqliteFault,
    identity::{self, WalIdentity},
};
use crate::telemetry::{Cause, chain};

/// A start after a kill checks for damage for at most this time; reads find the remaining damage.
const CHECK_TIME_MAX: Duration = Duration::from_secs(5);

/// A start after a reader found damage checks everything; this limit is never reached in practice.
const FULL_CHECK_TIME_MAX: Duration = Duration::from_secs(3600);

/// The action for the files, decided before SQLite opens them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenPlan {
    /// There are no files.
    Create,
    /// The store was closed in order.
    Trust,
    /// The last process was killed, or its marker is missing.
    Check,
    /// A reader found damage.
    FullCheck,
    /// Files of the store are missing.
    Replace(&'static str),
}

/// The files that exist; an empty file counts as missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExistingFiles {
    database: bool,
    wal: bool,
}

fn plan(word: &ShutdownMarker, found: ExistingFiles) -> OpenPlan {
    match (word, found.database) {
        (ShutdownMarker::Missing, false) => OpenPlan::Create,
        (
            ShutdownMarker::Clean
            | ShutdownMarker::Open
            | ShutdownMarker::Replaced
            | ShutdownMarker::SuspectedDamage(_),
            false,
        ) => OpenPlan::Replace("the database is gone"),
        (ShutdownMarker::SuspectedDamage(_), true) => OpenPlan::FullCheck,
        // An open store has a write-ahead log from its first step to the orderly close: if it is missing, entries are
        // lost.
        (ShutdownMarker::Open | ShutdownMarker::Replaced, true) if !found.wal => {
            OpenPlan::Replace("the write-ahead log is gone")
        }
        (ShutdownMarker::Clean, true) if !found.wal => OpenPlan::Trust,
        (ShutdownMarker::Missing | ShutdownMarker::Clean | ShutdownMarker::Open | ShutdownMarker::Replaced, true) => {
            OpenPlan::Check
        }
    }
}

/// A database that is ready for writes, and whether it replaces a lost or damaged one.
pub(super) fn open(directory: &Directory) -> Result<(Connection, bool), OpenError> {
    let before = directory.marker();
    let unusable = |source| OpenError::Directory { path: directory.path().to_owned(), source };
    let plan = plan(&before, find_files(directory).map_err(unusable)?);
    let wal = identity::read_wal_identity(directory);
    let mut outcome = execute(directory, plan, &wal);
    if let Err(OpenFailure::Unavailable(_)) = outcome {
        directory.reserve().release().map_err(unusable)?;
        outcome = execute(directory, plan, &wal);
    }
    let (connection, replaced) = match outcome {
        Ok(connection) => (connection, before == ShutdownMarker::Replaced),
        Err(OpenFailure::Damaged(cause)) => {
            let moved_to = directory.quarantine().map_err(unusable)?.display().to_string();
            tracing::error!(
                reason = chain(&cause),
                moved_to,
                "store damaged; files moved, an empty store replaces them"
            );
            (execute(directory, OpenPlan::Create, &wal).map_err(|refusal| refusal.into_error(directory))?, true)
        }
        Err(refusal) => return Err(refusal.into_error(directory)),
    };
    directory
        .overwrite_marker(if replaced { ShutdownMarker::Replaced } else { ShutdownMarker::Open })
        .map_err(unusable)?;
    Ok((connection, replaced))
}

fn find_files(directory: &Directory) -> io::Result<ExistingFiles> {
    Ok(ExistingFiles { database: len(&directory.database())? > 0, wal: len(&directory.wal())? > 0 })
}

fn len(path: &Path) -> io::Result<u64> {
    match path.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

enum OpenFailure {
    Damaged(Cause),
    Newer(i64),
    Unavailable(Cause),
    Failed(Cause),
    Io(io::Error),
}

impl OpenFailure {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(Cause::new(what.into()))
    }

    fn into_error(self, directory: &Directory) -> OpenError {
        let path = directory.path().to_owned();
        match self {
            Self::Newer(found) => OpenError::Newer { path, found, known: database::SCHEMA },
            Self::Damaged(cause) | Self::Unavailable(cause) | Self::Failed(cause) => {
                OpenError::Database { path, cause }
            }
            Self::Io(source) => OpenError::Directory { path, source },
        }
    }
}

impl From<SqliteFault> for OpenFailure {
    fn from(fault: SqliteFault) -> Self {
        match fault {
            SqliteFault::Damaged(cause) => Self::Damaged(cause),
            SqliteFault::Unavailable(cause) => Self::Unavailable(cause),
            SqliteFault::Failed(cause) => Self::Failed(cause),
        }
    }
}

impl From<rusqlite::Error> for OpenFailure {
    fn from(error: rusqlite::Error) -> Self {
        SqliteFault::from(error).into()
    }
}

fn execute(directory: &Directory, plan: OpenPlan, wal: &WalIdentity) -> Result<Connection, OpenFailure> {
    if let OpenPlan::Replace(reason) = plan {
        return Err(OpenFailure::damaged(reason));
    }
    if plan != OpenPlan::Create {
        check_header(directory, plan)?;
    }
    directory.make_database().map_err(OpenFailure::Io)?;
    let mut connection = database::connect(&directory.database(), Purpose::Write)?;
    match database::schema(&connection)? {
        Some(database::SCHEMA) => check(&connection, plan)?,
        Some(older @ 1..database::SCHEMA) => {
            check(&connection, plan)?;
            database::migrate(&mut connection, older)?;
        }
        Some(newer) if newer > database::SCHEMA => return Err(OpenFailure::Newer(newer)),
        Some(older) => return Err(OpenFailure::damaged(format!("schema version {older} never existed"))),
        None if plan == OpenPlan::Create || directory.marker() == ShutdownMarker::Missing => {
            database::create(&mut connection)?;
        }
        None => return Err(OpenFailure::damaged("the tables are gone")),
    }
    checkpoint_leftovers(&connection, plan)?;
    database::stamp(&connection)?;
    let origin = identity::origin(&connection, directory, wal)?;
    identity::reseal(&mut connection, directory, origin)?;
    Ok(connection)
}

/// After a process ended at an arbitrary moment, its write-ahead log may be readable from the page cache and not be on
/// the disk: an `fsync` failed or did not run. Durable data must not depend on it, so it is checkpointed and the next
/// step restarts it.
fn checkpoint_leftovers(connection: &Connection, plan: OpenPlan) -> Result<(), OpenFailure> {
    match plan {
        OpenPlan::Create | OpenPlan::Trust | OpenPlan::Replace(_) => Ok(()),
        OpenPlan::Check | OpenPlan::FullCheck => match database::checkpoint_wal(connection, true)?.complete {
            true => Ok(()),
            false => Err(OpenFailure::Failed(Cause::new("a reader of another process delays the checkpoint"))),
        },
    }
}

fn check_header(directory: &Directory, plan: OpenPlan) -> Result<(), OpenFailure> {
    let path = directory.database();
    let Some(header) = database::header(&path).map_err(OpenFailure::Io)? else {
        return Err(OpenFailure::damaged("the file is no database"));
    };
    if header.schema > database::SCHEMA {
        return Err(OpenFailure::Newer(header.schema));
    }
    let len = path.metadata().map_err(OpenFailure::Io)?.len();
    if plan == OpenPlan::Trust && len < header.len {
        return Err(OpenFailure::damaged(format!("the file has {len} of {} bytes", header.len)));
    }
    Ok(())
}

fn check(connection: &Connection, plan: OpenPlan) -> Result<(), OpenFailure> {
    let time_max = match plan {
        OpenPlan::Create | OpenPlan::Trust | OpenPlan::Replace(_) => return Ok(database::check_ends(connection)?),
        OpenPlan::Check => CHECK_TIME_MAX,
        OpenPlan::FullCheck => FULL_CHECK_TIME_MAX,
    };
    match database::quick_check(connection, time_max)? {
        CheckOutcome::Sound => (),
        CheckOutcome::Unfinished => tracing::info!(?time_max, "store check stopped at its time limit"),
        CheckOutcome::Damaged(reason) => return Err(OpenFailure::Damaged(reason)),
    }
    if plan == OpenPlan::FullCheck {
        database::check_all(connection)?;
        tracing::warn!("a reader found damage, but the full check found none");
    }
    Ok(database::check_ends(connection)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_decides_what_is_done() {
        let suspect = ShutdownMarker::SuspectedDamage("entry 5".to_owned());
        let gone = OpenPlan::Replace("the database is gone");
        let cut = OpenPlan::Replace("the write-ahead log is gone");
        for (word, database, wal, expected) in [
            (ShutdownMarker::Missing, false, false, OpenPlan::Create),
            (ShutdownMarker::Missing, true, false, OpenPlan::Check),
            (ShutdownMarker::Missing, true, true, OpenPlan::Check),
            (ShutdownMarker::Clean, false, false, gone),
            (ShutdownMarker::Clean, true, false, OpenPlan::Trust),
            (ShutdownMarker::Clean, true, true, OpenPlan::Check),
            (ShutdownMarker::Open, false, true, gone),
            (ShutdownMarker::Open, true, false, cut),
            (ShutdownMarker::Open, true, true, OpenPlan::Check),
            (ShutdownMarker::Replaced, false, false, gone),
            (ShutdownMarker::Replaced, true, false, cut),
            (ShutdownMarker::Replaced, true, true, OpenPlan::Check),
            (suspect.clone(), false, false, gone),
            (suspect, true, true, OpenPlan::FullCheck),
        ] {
            assert_eq!(plan(&word, ExistingFiles { database, wal }), expected, "{word:?} {database} {wal}");
        }
    }
}
