//! Disk space that is released when the disk is full: the write-ahead log can then still be checkpointed, and
//! positions, fences and retention can still be written. It is never used for entries.

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use super::directory::{open_private, remove_if_there};

/// Four times the size of the write-ahead log at which a checkpoint starts.
const RESERVE_LEN: u64 = 16 * 1024 * 1024;

/// The file cannot be created, so the store accepts no entries.
#[derive(Debug, thiserror::Error)]
#[error("the file {} of {} MiB, kept for when the disk is full, cannot be written: {source}; free some space there", path.display(), RESERVE_LEN >> 20)]
pub(super) struct ReserveError {
    path: PathBuf,
    source: io::Error,
}

/// The file that reserves the space.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Creates the file if it is missing. Removes a file that could not be written completely.
    pub(super) fn make(&self) -> Result<(), ReserveError> {
        let refused = |source| ReserveError { path: self.path.clone(), source };
        let made = self.fill();
        if made.is_err() {
            self.release().map_err(refused)?;
        }
        made.map_err(refused)
    }

    /// Releases the space.
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
