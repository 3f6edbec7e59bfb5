//! The directory of the store: its lock, the state in which the last process left it, and the paths of its files.
//!
//! The lock file contains one marker about the state of the other files, so that the next start can choose its checks.
//! This module does not use SQLite. It deletes quarantined files only beyond `QUARANTINED_MAX`.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::{OpenError, reserve::Reserve};
use crate::clock;

const DATABASE: &str = "trunkline.db";
const LOCK: &str = "trunkline.lock";
const RESERVE: &str = "trunkline.reserve";

/// The prefix of all file names.
const PREFIX: &str = "trunkline.";

/// Only the daemon's user may read events and sealed tokens.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// The permission bits of group and others.
const GROUP_AND_OTHERS: u32 = 0o077;

/// Damaged databases that are kept for inspection; beyond this number the oldest are deleted.
const QUARANTINED_MAX: usize = 3;

/// The marker is padded to this length, so that a new one needs no additional space on a full disk.
const MARKER_LEN: usize = 512;

/// After the marker, the lock file names the process that holds the lock; a longer name is truncated.
const HOLDER_LEN: usize = 128;
/// The file in which Linux gives the name of the machine or the pod.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The state in which the files were left, as the lock file records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShutdownMarker {
    /// No marker was written: the directory is new or was assembled by hand.
    Missing,
    /// Orderly close: all data is in the database, and the write-ahead log is empty.
    Clean,
    /// In use. If a start finds it, the last process was killed.
    Open,
    /// In use, and the files replace lost or damaged ones.
    Replaced,
    /// A reader found damage.
    SuspectedDamage(String),
}

impl ShutdownMarker {
    fn parse(text: &str) -> Self {
        // A marker that was written by hand has no padding, but NUL bytes up to the holder's name.
        let text = text.trim_end_matches(|character: char| character.is_whitespace() || character == '\0');
        match text.split_once(' ').unwrap_or((text, "")) {
            ("clean", _) => Self::Clean,
            ("open", _) => Self::Open,
            ("replaced", _) => Self::Replaced,
            ("suspect", reason) => Self::SuspectedDamage(reason.to_owned()),
            _unsaid => Self::Missing,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Missing => String::new(),
            Self::Clean => "clean".to_owned(),
            Self::Open => "open".to_owned(),
            Self::Replaced => "replaced".to_owned(),
            Self::SuspectedDamage(reason) => format!("suspect {reason}"),
        }
    }
}

/// The directory, locked by this process until it is released or dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    lock: Mutex<(File, ShutdownMarker)>,
}

impl Directory {
    /// Creates the directory if it is missing, and locks it.
    pub(super) fn claim(path: &Path) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Directory { path: path.to_owned(), source };
        make_directory(path).map_err(unusable)?;
        let file = open_private(&path.join(LOCK)).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => (),
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { path: path.to_owned(), holder: read_holder(&file) });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let word = ShutdownMarker::parse(&read_marker(&file).map_err(unusable)?);
        if let Err(error) = write_holder(&file) {
            // For example on a full disk. Only the message of a process that waits for the lock is then shorter.
            tracing::debug!(path = %path.display(), %error, "the lock file does not name this process");
        }
        if let Err(error) = restrict_permissions(path) {
            tracing::warn!(path = %path.display(), %error, "other users can read the store's directory; set its mode to 0700");
        }
        Ok(Self { path: path.to_owned(), lock: Mutex::new((file, word)) })
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.path.join(LOCK)
    }

    /// The metadata of the open lock file, also after it was renamed or deleted.
    pub(super) fn lock_metadata(&self) -> io::Result<fs::Metadata> {
        self.lock.lock().0.metadata()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Creates the database file, so that SQLite gives its own files the same permissions, and syncs the directory.
    pub(super) fn make_database(&self) -> io::Result<()> {
        open_private(&self.database())?;
        sync_directory(&self.path)
    }

    /// SQLite's write-ahead log.
    pub(super) fn wal(&self) -> PathBuf {
        self.path.join(with_suffix(DATABASE, "-wal"))
    }

    fn shared_memory(&self) -> PathBuf {
        self.path.join(with_suffix(DATABASE, "-shm"))
    }

    /// Disk space that is released when the disk is full.
    pub(super) fn reserve(&self) -> Reserve {
        Reserve::new(self.path.join(RESERVE))
    }

    /// The marker in the lock file.
    pub(super) fn marker(&self) -> ShutdownMarker {
        self.lock.lock().1.clone()
    }

    /// Writes the marker durably. Keeps suspected damage until the next start has checked the files.
    pub(super) fn write_marker(&self, word: ShutdownMarker) -> io::Result<()> {
        let mut lock = self.lock.lock();
        if matches!(lock.1, ShutdownMarker::SuspectedDamage(_)) {
            return Ok(());
        }
        write_marker_text(&lock.0, &word)?;
        lock.1 = word;
        Ok(())
    }

    /// Writes the marker durably after the start has handled the earlier marker.
    pub(super) fn overwrite_marker(&self, word: ShutdownMarker) -> io::Result<()> {
        let mut lock = self.lock.lock();
        write_marker_text(&lock.0, &word)?;
        lock.1 = word;
        Ok(())
    }

    /// Releases the lock before this value is dropped.
    pub(super) fn release(&self) {
        if let Err(error) = self.lock.lock().0.unlock() {
            tracing::warn!(%error, "cannot release the lock of the store");
        }
    }

    /// Renames the damaged files for inspection, and returns the database's new name.
    pub(super) fn quarantine(&self) -> io::Result<PathBuf> {
        let moment = clock::wall().to_string().replace([':', '-'], "");
        let name = format!("{DATABASE}.damaged-{moment}");
        rename_if_there(&self.database(), &self.path.join(&name))?;
        rename_if_there(&self.wal(), &self.path.join(with_suffix(&name, "-wal")))?;
        remove_if_there(&self.shared_memory())?;
        self.remove_oldest_quarantined()?;
        sync_directory(&self.path)?;
        Ok(self.path.join(name))
    }

    fn remove_oldest_quarantined(&self) -> io::Result<()> {
        let prefix = format!("{DATABASE}.damaged-");
        let mut aside: Vec<OsString> = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let text = name.to_string_lossy();
            if text.starts_with(&prefix) && !text.ends_with("-wal") {
                aside.push(name);
            }
        }
        aside.sort();
        for name in aside.iter().rev().skip(QUARANTINED_MAX) {
            remove_if_there(&self.path.join(name))?;
            remove_if_there(&self.path.join(with_suffix(name, "-wal")))?;
        }
        Ok(())
    }
}

/// Creates the directory and its missing parents with permissions for this user alone, and syncs the parents.
fn make_directory(path: &Path) -> io::Result<()> {
    // The system reports that the file exists; the real cause is a file in place of a directory.
    if let Some(file) = path.ancestors().find(|at| at.exists()).filter(|at| !at.is_dir()) {
        let why = format!("{} is a file where a directory is expected", file.display());
        return Err(io::Error::new(io::ErrorKind::NotADirectory, why));
    }
    let missing: Vec<&Path> = path.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    for made in missing {
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_directory(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Syncs a directory. Skips one that is not readable, or whose file system has no such operation.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|directory| directory.sync_all()) {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => Ok(()),
        outcome => outcome,
    }
}

/// Opens a file of the store; creates it with permissions for this user alone if it is missing.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)
}

/// Removes permissions that an earlier version gave to others: on the store's files, and on the directory if it has no
/// other files.
fn restrict_permissions(path: &Path) -> io::Result<()> {
    let mut shared = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            restrict_to_owner(&entry.path())?;
        } else {
            shared = true;
        }
    }
    if !shared {
        return restrict_to_owner(path);
    }
    if fs::metadata(path)?.permissions().mode() & GROUP_AND_OTHERS != 0 {
        tracing::warn!(path = %path.display(), "other users can access the store's directory; it has foreign files, so only the store's own files were restricted");
    }
    Ok(())
}

fn restrict_to_owner(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & GROUP_AND_OTHERS == 0 {
        Ok(())
    } else {
        fs::set_permissions(path, Permissions::from_mode(mode & !GROUP_AND_OTHERS))
    }
}

fn read_marker(file: &File) -> io::Result<String> {
    let mut text = [0; MARKER_LEN];
    let len = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

fn write_marker_text(file: &File, word: &ShutdownMarker) -> io::Result<()> {
    let mut text = word.text().into_bytes();
    text.resize(MARKER_LEN - 1, b' ');
    text.push(b'\n');
    file.write_all_at(&text, 0)?;
    file.sync_all()
}

/// The name of the process that wrote to the lock file last and so holds the lock, safe to print.
fn read_holder(file: &File) -> String {
    let mut text = [0; HOLDER_LEN];
    let len = file.read_at(&mut text, MARKER_LEN as u64).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[..len]);
    let shown: String = text.trim_end().chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    if shown.is_empty() { "another process".to_owned() } else { shown }
}

fn write_holder(file: &File) -> io::Result<()> {
    let host = fs::read_to_string(HOST_NAME).unwrap_or_default();
    let host = if host.trim().is_empty() { String::new() } else { format!(" on {}", host.trim()) };
    let mut text = format!("process {}{host}", std::process::id()).into_bytes();
    text.resize(HOLDER_LEN - 1, b' ');
    text.push(b'\n');
    file.write_all_at(&text, MARKER_LEN as u64)
}

fn with_suffix(name: impl AsRef<OsStr>, suffix: &str) -> OsString {
    let mut name = name.as_ref().to_owned();
    name.push(suffix);
    name
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Removes a file. A missing file is not an error.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_round_trips_and_anything_else_counts_as_missing() {
        let suspect = ShutdownMarker::SuspectedDamage("entry 5 of queues".to_owned());
        for word in
            [ShutdownMarker::Missing, ShutdownMarker::Clean, ShutdownMarker::Open, ShutdownMarker::Replaced, suspect]
        {
            assert_eq!(ShutdownMarker::parse(&word.text()), word);
        }
        assert_eq!(ShutdownMarker::parse("open    \n"), ShutdownMarker::Open);
        assert_eq!(ShutdownMarker::parse("open\n\0\0"), ShutdownMarker::Open);
        for torn in ["", "cle", "\0\0\0\0", "opened"] {
            assert_eq!(ShutdownMarker::parse(torn), ShutdownMarker::Missing, "{torn:?}");
        }
    }

    #[test]
    fn the_lock_file_names_its_holder_and_keeps_the_marker() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::claim(temporary.path()).unwrap();
        directory.write_marker(ShutdownMarker::Open).unwrap();
        let expected = format!("process {}", std::process::id());
        let second = Directory::claim(temporary.path());
        assert!(matches!(&second, Err(OpenError::InUse { holder, .. }) if holder.starts_with(&expected)), "{second:?}");
        drop(directory);
        assert_eq!(Directory::claim(temporary.path()).unwrap().marker(), ShutdownMarker::Open);
    }

    #[test]
    fn a_lock_file_without_a_holder_or_with_a_foreign_text_is_shown_safely() {
        let temporary = tempfile::tempdir().unwrap();
        let file = open_private(&temporary.path().join(LOCK)).unwrap();
        assert_eq!(read_holder(&file), "another process");
        file.write_all_at(b"process\x1b[31m 7\n", MARKER_LEN as u64).unwrap();
        assert_eq!(read_holder(&file), "process[31m 7");
    }

    #[test]
    fn suspected_damage_outlives_an_orderly_close() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::claim(temporary.path()).unwrap();
        directory.write_marker(ShutdownMarker::SuspectedDamage("why".to_owned())).unwrap();
        directory.write_marker(ShutdownMarker::Clean).unwrap();
        drop(directory);
        let directory = Directory::claim(temporary.path()).unwrap();
        assert_eq!(directory.marker(), ShutdownMarker::SuspectedDamage("why".to_owned()));
    }

    #[test]
    fn files_are_private_and_open_permissions_are_tightened() {
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let directory = Directory::claim(&path).unwrap();
        directory.make_database().unwrap();
        assert_eq!([mode(&path), mode(&temporary.path().join("a"))], [0o700; 2]);
        assert_eq!([mode(&directory.database()), mode(&path.join(LOCK))], [0o600; 2]);
        drop(directory);

        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(&path, 0o755);
        open(&path.join(DATABASE), 0o644);
        drop(Directory::claim(&path).unwrap());
        assert_eq!((mode(&path), mode(&path.join(DATABASE))), (0o700, 0o600));

        fs::write(path.join("notes"), "").unwrap();
        open(&path, 0o755);
        open(&path.join(DATABASE), 0o644);
        drop(Directory::claim(&path).unwrap());
        assert_eq!((mode(&path), mode(&path.join(DATABASE))), (0o755, 0o600), "others have files there, too");
    }

    #[test]
    fn only_the_newest_damaged_databases_are_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = Directory::claim(temporary.path()).unwrap();
        let mut names = Vec::new();
        for _ in 0..QUARANTINED_MAX + 2 {
            fs::write(directory.database(), "x").unwrap();
            fs::write(directory.wal(), "x").unwrap();
            names.push(directory.quarantine().unwrap());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let exists: Vec<bool> = names.iter().map(|name| name.exists()).collect();
        assert_eq!(exists, [false, false, true, true, true]);
        assert!(!directory.database().exists() && !directory.wal().exists());
    }
}
