//! From a claimed directory to a sound database: what is found decides whether it is used, made, or put aside.
//!
//! A file of a newer schema, and trouble that is not damage (permissions, a full disk), refuse the start and leave
//! everything as it is.

use std::{io, path::Path, time::Duration};

use rusqlite::Connection;

use super::{
    OpenError,
    database::{self, Check, Purpose},
    directory::{Directory, Word},
    fault::Fault,
    life::{self, WalFound},
};

/// A start after a kill spends at most this on looking for damage; what it does not get to, reads will find.
const CHECK_TIME_MAX: Duration = Duration::from_secs(5);

/// A start after a reader met damage looks at everything; a check of this length is as good as without an end.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(3600);

/// What is to be done with the files, before SQLite has seen them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// There was nothing.
    Create,
    /// Closed in order.
    Trust,
    /// The last holder was killed, or its word is missing.
    Check,
    /// A reader met damage.
    Search,
    /// What was held is not there any more.
    Replace(&'static str),
}

/// The files that were found; an empty one is as good as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    database: bool,
    wal: bool,
}

fn plan(word: &Word, found: Found) -> Plan {
    match (word, found.database) {
        (Word::Unsaid, false) => Plan::Create,
        (Word::Clean | Word::Open | Word::Replaced | Word::Suspect(_), false) => Plan::Replace("the database is gone"),
        (Word::Suspect(_), true) => Plan::Search,
        // In use there is a write-ahead log from the first step to the orderly close: without it entries are gone.
        (Word::Open | Word::Replaced, true) if !found.wal => Plan::Replace("the write-ahead log is gone"),
        (Word::Clean, true) if !found.wal => Plan::Trust,
        (Word::Unsaid | Word::Clean | Word::Open | Word::Replaced, true) => Plan::Check,
    }
}

/// A database ready to be written, and whether it replaces one that was lost or damaged.
pub(super) fn open(directory: &Directory) -> Result<(Connection, bool), OpenError> {
    let before = directory.word();
    let unusable = |source| OpenError::Directory { path: directory.path().to_owned(), source };
    let plan = plan(&before, find(directory).map_err(unusable)?);
    let wal = life::find_wal(directory);
    let mut outcome = carry_out(directory, plan, &wal);
    if let Err(Refusal::NoRoom(_)) = outcome {
        directory.reserve().give_up().map_err(unusable)?;
        outcome = carry_out(directory, plan, &wal);
    }
    let (connection, replaced) = match outcome {
        Ok(connection) => (connection, before == Word::Replaced),
        Err(Refusal::Damaged(reason)) => {
            let aside = directory.put_aside().map_err(unusable)?;
            tracing::error!(reason, aside = %aside.display(), "the store is damaged; it was put aside and begins anew");
            (carry_out(directory, Plan::Create, &wal).map_err(|refusal| refusal.into_error(directory))?, true)
        }
        Err(refusal) => return Err(refusal.into_error(directory)),
    };
    directory.say_anew(if replaced { Word::Replaced } else { Word::Open }).map_err(unusable)?;
    Ok((connection, replaced))
}

fn find(directory: &Directory) -> io::Result<Found> {
    Ok(Found { database: len(&directory.database())? > 0, wal: len(&directory.wal())? > 0 })
}

fn len(path: &Path) -> io::Result<u64> {
    match path.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

enum Refusal {
    Damaged(String),
    Newer(i64),
    NoRoom(String),
    Failed(String),
    Io(io::Error),
}

impl Refusal {
    fn into_error(self, directory: &Directory) -> OpenError {
        let path = directory.path().to_owned();
        match self {
            Self::Newer(found) => OpenError::Newer { path, found, known: database::SCHEMA },
            Self::Damaged(reason) | Self::NoRoom(reason) | Self::Failed(reason) => OpenError::Database { path, reason },
            Self::Io(source) => OpenError::Directory { path, source },
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Damaged(text) => Self::Damaged(text),
            Fault::NoRoom(text) => Self::NoRoom(text),
            Fault::Failed(text) => Self::Failed(text),
        }
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Fault::from(error).into()
    }
}

fn carry_out(directory: &Directory, plan: Plan, wal: &WalFound) -> Result<Connection, Refusal> {
    if let Plan::Replace(reason) = plan {
        return Err(Refusal::Damaged(reason.to_owned()));
    }
    if plan != Plan::Create {
        check_header(directory, plan)?;
    }
    directory.make_database().map_err(Refusal::Io)?;
    let mut connection = database::connect(&directory.database(), Purpose::Write)?;
    match database::schema(&connection)? {
        Some(database::SCHEMA) => examine(&connection, plan)?,
        Some(older @ (database::SCHEMA_WITHOUT_RECORDS | database::SCHEMA_WITHOUT_LIFE)) => {
            examine(&connection, plan)?;
            database::migrate(&mut connection, older)?;
        }
        Some(newer) if newer > database::SCHEMA => return Err(Refusal::Newer(newer)),
        Some(older) => return Err(Refusal::Damaged(format!("schema version {older} never existed"))),
        None if plan == Plan::Create || directory.word() == Word::Unsaid => database::create(&mut connection)?,
        None => return Err(Refusal::Damaged("the tables are gone".to_owned())),
    }
    move_what_was_left(&connection, plan)?;
    database::stamp(&connection)?;
    let origin = life::origin(&connection, directory, wal)?;
    life::renew(&mut connection, directory, origin)?;
    Ok(connection)
}

/// A write-ahead log of a holder that ended at any moment may be read from memory and not be on the disk: an `fsync`
/// failed, or none came. Nothing durable may stand behind that, so the next step begins the log anew.
fn move_what_was_left(connection: &Connection, plan: Plan) -> Result<(), Refusal> {
    match plan {
        Plan::Create | Plan::Trust | Plan::Replace(_) => Ok(()),
        Plan::Check | Plan::Search => match database::move_log(connection, true)?.all {
            true => Ok(()),
            false => Err(Refusal::Failed("a reader of another process holds up the write-ahead log".to_owned())),
        },
    }
}

fn check_header(directory: &Directory, plan: Plan) -> Result<(), Refusal> {
    let path = directory.database();
    let Some(header) = database::header(&path).map_err(Refusal::Io)? else {
        return Err(Refusal::Damaged("the file is no database".to_owned()));
    };
    if header.schema > database::SCHEMA {
        return Err(Refusal::Newer(header.schema));
    }
    let len = path.metadata().map_err(Refusal::Io)?.len();
    if plan == Plan::Trust && len < header.len {
        return Err(Refusal::Damaged(format!("the file has {len} of {} bytes", header.len)));
    }
    Ok(())
}

fn examine(connection: &Connection, plan: Plan) -> Result<(), Refusal> {
    let time_max = match plan {
        Plan::Create | Plan::Trust | Plan::Replace(_) => return Ok(database::check_ends(connection)?),
        Plan::Check => CHECK_TIME_MAX,
        Plan::Search => SEARCH_TIME_MAX,
    };
    match database::quick_check(connection, time_max)? {
        Check::Sound => (),
        Check::Unfinished => tracing::info!(?time_max, "the store was not checked to its end"),
        Check::Damaged(reason) => return Err(Refusal::Damaged(reason)),
    }
    if plan == Plan::Search {
        database::check_all(connection)?;
        tracing::warn!("a reader had met damage, but the store is sound");
    }
    Ok(database::check_ends(connection)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_decides_what_is_done() {
        let suspect = Word::Suspect("entry 5".to_owned());
        let gone = Plan::Replace("the database is gone");
        let cut = Plan::Replace("the write-ahead log is gone");
        for (word, database, wal, expected) in [
            (Word::Unsaid, false, false, Plan::Create),
            (Word::Unsaid, true, false, Plan::Check),
            (Word::Unsaid, true, true, Plan::Check),
            (Word::Clean, false, false, gone),
            (Word::Clean, true, false, Plan::Trust),
            (Word::Clean, true, true, Plan::Check),
            (Word::Open, false, true, gone),
            (Word::Open, true, false, cut),
            (Word::Open, true, true, Plan::Check),
            (Word::Replaced, false, false, gone),
            (Word::Replaced, true, false, cut),
            (Word::Replaced, true, true, Plan::Check),
            (suspect.clone(), false, false, gone),
            (suspect, true, true, Plan::Search),
        ] {
            assert_eq!(plan(&word, Found { database, wal }), expected, "{word:?} {database} {wal}");
        }
    }
}
