//! Detects whether the store's files are still under their names. The next start does not find data that is written to
//! a deleted, renamed or replaced file.

use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf};

use super::directory::Directory;

/// The files in use, and their numbers in the file system.
#[derive(Debug)]
pub(super) struct FilePresence {
    files: [(PathBuf, FileNumber); 2],
}

/// Device and inode: no other file has both while this one is open.
type FileNumber = (u64, u64);

impl FilePresence {
    /// The numbers of the files that are open now.
    pub(super) fn of(directory: &Directory) -> io::Result<Self> {
        let (lock, database) = (directory.lock_file(), directory.database());
        let of_database = number(&fs::metadata(&database)?);
        Ok(Self { files: [(lock, number(&directory.lock_metadata()?)), (database, of_database)] })
    }

    /// Describes the first file that is not under its name; none when all are. A file whose metadata cannot be read
    /// counts as present.
    pub(super) fn missing(&self) -> Option<String> {
        self.files.iter().find_map(|(path, known)| {
            let shown = path.display();
            match fs::metadata(path) {
                Ok(found) if number(&found) == *known => None,
                Ok(_) => {
                    Some(format!("{shown} was replaced by another file while it was in use; restart to use that one"))
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Some(
                    format!("{shown} was deleted or renamed while it was in use; put it back, or restart without it"),
                ),
                Err(_) => None,
            }
        })
    }
}

fn number(found: &fs::Metadata) -> FileNumber {
    (found.dev(), found.ino())
}
