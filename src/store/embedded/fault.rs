//! Classifies SQLite errors by their consequence for the store, in one exhaustive match.

use rusqlite::{Error, ErrorCode, ffi};

use crate::{store::AppendError, telemetry::Cause};

/// Why a step was not applied.
#[derive(Debug, Clone)]
pub(super) enum SqliteFault {
    /// The step was rolled back; the same step may succeed later.
    Unavailable(Cause),
    /// The files are inconsistent.
    Damaged(Cause),
    /// It is unknown what reached the disk, or SQLite failed in an unexpected way: end the process and open the store
    /// again.
    Failed(Cause),
}

/// A result code of SQLite. Failures with the same text have different extended codes.
#[derive(Debug, thiserror::Error)]
#[error("SQLite error {}", .failure.extended_code)]
struct SqliteError {
    failure: ffi::Error,
    #[source]
    cause: Error,
}

impl SqliteFault {
    pub(super) fn damaged(what: String) -> Self {
        Self::Damaged(Cause::new(what))
    }

    /// The label of the metric.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "full",
            Self::Damaged(_) => "damaged",
            Self::Failed(_) => "io",
        }
    }

    pub(super) fn cause(&self) -> &Cause {
        match self {
            Self::Unavailable(cause) | Self::Damaged(cause) | Self::Failed(cause) => cause,
        }
    }
}

impl From<SqliteFault> for AppendError {
    fn from(fault: SqliteFault) -> Self {
        match fault {
            SqliteFault::Unavailable(cause) => Self::Unavailable(cause),
            SqliteFault::Damaged(cause) | SqliteFault::Failed(cause) => Self::Broken(cause),
        }
    }
}

impl From<Error> for SqliteFault {
    #[expect(clippy::wildcard_enum_match_arm, reason = "rusqlite's own list, which may grow")]
    fn from(error: Error) -> Self {
        match error {
            Error::SqliteFailure(failure, _) => verdict(failure)(Cause::new(SqliteError { failure, cause: error })),
            // A value of the wrong type or a missing row: this code did not write it.
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::QueryReturnedNoRows
            | Error::Utf8Error(..) => Self::Damaged(Cause::new(error)),
            _ => Self::Failed(Cause::new(error)),
        }
    }
}

/// The variant for a result code of SQLite.
fn verdict(failure: ffi::Error) -> fn(Cause) -> SqliteFault {
    match (failure.code, failure.extended_code) {
        (_, ffi::SQLITE_READONLY_DBMOVED) => SqliteFault::Failed,
        (ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::DatabaseBusy, _) => SqliteFault::Unavailable,
        // After a rejected write, or without space for the index of the write-ahead log, nothing has changed. After a
        // failed fsync it is unknown what is on the disk.
        (_, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE) => SqliteFault::Unavailable,
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => SqliteFault::Damaged,
        // A failed read gives no information about the data on the disk: a later read may succeed.
        (_, ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_DATA) => SqliteFault::Damaged,
        _ => SqliteFault::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_rolled_back_is_tried_again_and_what_is_unknown_is_not() {
        let consequence = |code| match SqliteFault::from(Error::SqliteFailure(ffi::Error::new(code), None)) {
            SqliteFault::Unavailable(_) => "try again",
            SqliteFault::Damaged(_) => "quarantine",
            SqliteFault::Failed(_) => "open again",
        };
        for (code, expected) in [
            (ffi::SQLITE_FULL, "try again"),
            (ffi::SQLITE_READONLY, "try again"),
            (ffi::SQLITE_READONLY_DBMOVED, "open again"),
            (ffi::SQLITE_IOERR_WRITE, "try again"),
            (ffi::SQLITE_IOERR_SHMSIZE, "try again"),
            (ffi::SQLITE_IOERR_FSYNC, "open again"),
            (ffi::SQLITE_IOERR_DIR_FSYNC, "open again"),
            (ffi::SQLITE_IOERR_READ, "open again"),
            (ffi::SQLITE_IOERR_SHORT_READ, "quarantine"),
            (ffi::SQLITE_CORRUPT, "quarantine"),
            (ffi::SQLITE_NOTADB, "quarantine"),
            (ffi::SQLITE_NOMEM, "open again"),
        ] {
            assert_eq!(consequence(code), expected, "{code}");
        }
    }
}
