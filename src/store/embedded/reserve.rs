//! Room on the disk that is given up when there is no other: what is in the write-ahead log can then still reach the
//! database, and positions, fences and retention can still be written. It never makes room for entries.

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use super::directory::{open_private, remove_if_there};

/// Four times what the write-ahead log holds before it is moved into the database.
const RESERVE_LEN: u64 = 16 * 1024 * 1024;

/// The file cannot be made, so no entries are taken.
#[derive(Debug, thiserror::Error)]
#[error("the file {} of {} MiB, kept for when the disk is full, cannot be written: {source}; free some space there", path.display(), RESERVE_LEN >> 20)]
pub(super) struct ReserveError {
    path: PathBuf,
    source: io::Error,
}

/// The file that holds the room.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes the file, unless it is there. What cannot be made whole is removed.
    pub(super) fn make(&self) -> Result<(), ReserveError> {
        let refused = |source| ReserveError { path: self.path.clone(), source };
        let made = self.fill();
        if made.is_err() {
            self.release().map_err(refused)?;
        }
        made.map_err(refused)
    }

    /// Frees the room.
    pub(super) fn release(&self) -> io::Result<()> {
        remove_if_there(&self.path)
    }

    fn fill(&self) -> io::Result<()> {
        let mut file = open_private(&self.path)?;
        let len = file.seek(SeekFrom::End(0))?;
        let missing = RESERVE_LEN.saturating_sub(len);
        io::copy(&mut io::repeat(0).take(missing), &mut file)?;
        Ok(())
    }
}
