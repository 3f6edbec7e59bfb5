//! Classifies SQLite errors by their consequence for the store, in one exhaustive match.

use rusqlite::{Error, ErrorCode, ffi};

use crate::{store::AppendError, telemetry::chain};

/// Why a step was not applied.
#[derive(Debug, Clone)]
pub(super) enum SqliteFault {
    /// The step was rolled back; the same step may succeed later.
    Unavailable(String),
    /// The files are inconsistent.
    Damaged(String),
    /// It is unknown what reached the disk, or SQLite failed in an unexpected way: end the process and open the store
    /// again.
    Failed(String),
}

impl SqliteFault {
    /// The label of the metric.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "full",
            Self::Damaged(_) => "damaged",
            Self::Failed(_) => "io",
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Unavailable(text) | Self::Damaged(text) | Self::Failed(text) => text,
        }
    }
}

impl From<SqliteFault> for AppendError {
    fn from(fault: SqliteFault) -> Self {
        match fault {
            SqliteFault::Unavailable(text) => Self::Unavailable(text),
            SqliteFault::Damaged(text) | SqliteFault::Failed(text) => Self::Broken(text),
        }
    }
}

impl From<Error> for SqliteFault {
    #[expect(clippy::wildcard_enum_match_arm, reason = "rusqlite's own list, which may grow")]
    fn from(error: Error) -> Self {
        let text = chain(&error);
        match error {
            Error::SqliteFailure(failure, _) => {
                classify(failure, format!("{error} (SQLite {})", failure.extended_code))
            }
            // A value of the wrong type or a missing row: this code did not write it.
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::QueryReturnedNoRows
            | Error::Utf8Error(..) => Self::Damaged(text),
            _ => Self::Failed(text),
        }
    }
}

fn classify(failure: ffi::Error, text: String) -> SqliteFault {
    match (failure.code, failure.extended_code) {
        (_, ffi::SQLITE_READONLY_DBMOVED) => SqliteFault::Failed(text),
        (ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::DatabaseBusy, _) => SqliteFault::Unavailable(text),
        // After a rejected write, or without space for the index of the write-ahead log, nothing has changed. After a
        // failed fsync it is unknown what is on the disk.
        (_, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE) => SqliteFault::Unavailable(text),
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => SqliteFault::Damaged(text),
        // A failed read gives no information about the data on the disk: a later read may succeed.
        (_, ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_DATA) => SqliteFault::Damaged(text),
        _ => SqliteFault::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_rolled_back_is_tried_again_and_what_is_unknown_is_not() {
        let verdict = |code| match SqliteFault::from(Error::SqliteFailure(ffi::Error::new(code), None)) {
            SqliteFault::Unavailable(_) => "try again",
            SqliteFault::Damaged(_) => "put aside",
            SqliteFault::Failed(_) => "open anew",
        };
        for (code, expected) in [
            (ffi::SQLITE_FULL, "try again"),
            (ffi::SQLITE_READONLY, "try again"),
            (ffi::SQLITE_READONLY_DBMOVED, "open anew"),
            (ffi::SQLITE_IOERR_WRITE, "try again"),
            (ffi::SQLITE_IOERR_SHMSIZE, "try again"),
            (ffi::SQLITE_IOERR_FSYNC, "open anew"),
            (ffi::SQLITE_IOERR_DIR_FSYNC, "open anew"),
            (ffi::SQLITE_IOERR_READ, "open anew"),
            (ffi::SQLITE_IOERR_SHORT_READ, "put aside"),
            (ffi::SQLITE_CORRUPT, "put aside"),
            (ffi::SQLITE_NOTADB, "put aside"),
            (ffi::SQLITE_NOMEM, "open anew"),
        ] {
            assert_eq!(verdict(code), expected, "{code}");
        }
    }
}
