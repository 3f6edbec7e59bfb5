//! Stores a rotated refresh token across restarts: one file per account, readable by its owner only.
//!
//! A rotated token descends from the configured one and is ignored when another one is configured. Replicas share
//! rotated tokens; the higher number is newer.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

use super::secrets::fingerprint;
use crate::{
    model::{AccountName, Secret},
    protocol::refresh::GENERATION_MAX,
    telemetry::chain,
};

/// Mode of the file: access for the owner only.
const FILE_MODE: u32 = 0o600;

/// Mode of a created directory: access for the owner only.
const FOLDER_MODE: u32 = 0o700;

/// Maximum number of bytes read from the file.
const FILE_LEN_MAX: u64 = 256 * 1024;

/// The rotated refresh token of one account.
#[derive(Debug)]
pub(super) struct RefreshTokenStore {
    path: PathBuf,
    cached: CachedToken,
}

#[derive(Debug)]
enum CachedToken {
    /// The file was not read yet.
    Unread,
    Missing,
    Loaded(RotatedToken),
}

/// A refresh token that the platform issued in place of an earlier one.
#[derive(Debug, Clone)]
pub(super) struct RotatedToken {
    /// Digest of the configured token from which this one descends.
    pub(super) ancestor: String,
    /// Number of rotations since the configured token.
    pub(super) number: u64,
    pub(super) refresh_token: Secret,
}

/// The format of the file.
#[derive(Serialize, Deserialize)]
struct RefreshTokenRecord {
    /// Digest of the configured token.
    configured: String,
    #[serde(default)]
    number: u64,
    refresh_token: String,
}

/// The file cannot be written or read. The rotated token is in the memory of this process only.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub(super) struct RefreshTokenStoreError {
    step: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl RefreshTokenStore {
    /// Creates a store without file access.
    pub(super) fn new(folder: &Path, account: &AccountName) -> Self {
        Self { path: folder.join(format!("{account}.refresh")), cached: CachedToken::Unread }
    }

    /// The newest descendant of the configured token, or that token itself.
    pub(super) async fn newest(&mut self, configured: &Secret) -> Secret {
        self.current(configured).await.map_or_else(|| configured.clone(), |stored| stored.refresh_token.clone())
    }

    /// The newest descendant of the configured token.
    pub(super) async fn current(&mut self, configured: &Secret) -> Option<&RotatedToken> {
        if let CachedToken::Unread = self.cached {
            self.cached = self.load().await;
        }
        match &self.cached {
            CachedToken::Loaded(stored) if stored.ancestor == ancestor(configured) => Some(stored),
            CachedToken::Unread | CachedToken::Missing | CachedToken::Loaded(_) => None,
        }
    }

    /// Stores a rotated token durably. After an error it is kept in memory.
    pub(super) async fn store_rotated(
        &mut self,
        configured: &Secret,
        rotated: Secret,
    ) -> Result<(), RefreshTokenStoreError> {
        let number = self.current(configured).await.map_or(0, |stored| stored.number) + 1;
        self.store(RotatedToken { ancestor: ancestor(configured), number, refresh_token: rotated }).await
    }

    /// Stores the token of another replica, if it is newer.
    pub(super) async fn store_if_newer(
        &mut self,
        configured: &Secret,
        shared: RotatedToken,
    ) -> Result<(), RefreshTokenStoreError> {
        let known = self.current(configured).await.map_or(0, |stored| stored.number);
        if shared.ancestor == ancestor(configured) && shared.number > known { self.store(shared).await } else { Ok(()) }
    }

    async fn store(&mut self, stored: RotatedToken) -> Result<(), RefreshTokenStoreError> {
        self.cached = CachedToken::Loaded(stored.clone());
        let path = self.path.clone();
        let stored = run_blocking(move || write(&path, &stored)).await;
        stored.map_err(|cause| RefreshTokenStoreError {
            step: "write the rotated refresh token to",
            path: self.path.clone(),
            cause,
        })
    }

    /// Reads the file. An unreadable file must not stop other accounts, so it counts as missing.
    async fn load(&self) -> CachedToken {
        let path = self.path.clone();
        match run_blocking(move || read(&path)).await {
            Ok(stored) => stored.map_or(CachedToken::Missing, CachedToken::Loaded),
            Err(cause) => {
                let error = RefreshTokenStoreError {
                    step: "read the rotated refresh token from",
                    path: self.path.clone(),
                    cause,
                };
                tracing::error!(
                    error = chain(&error),
                    "cannot read the stored refresh token, falling back to the configured one"
                );
                CachedToken::Missing
            }
        }
    }
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The digest of a configured token in base64.
pub(super) fn ancestor(configured: &Secret) -> String {
    STANDARD_NO_PAD.encode(fingerprint(configured))
}

fn read(path: &Path) -> io::Result<Option<RotatedToken>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut text)?;
    // The error of the parser could quote the token.
    let stored: RefreshTokenRecord =
        serde_json::from_slice(&text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "damaged file"))?;
    let RefreshTokenRecord { configured, number, refresh_token } = stored;
    Ok(Some(RotatedToken {
        ancestor: configured,
        number: valid_number(number, path),
        refresh_token: Secret::new(refresh_token),
    }))
}

/// Replaces an invalid number by 1, because the token in the file may still be the newest.
fn valid_number(number: u64, path: &Path) -> u64 {
    if number < GENERATION_MAX {
        return number;
    }
    let path = path.display();
    tracing::error!(%path, number, expected_below = GENERATION_MAX, "invalid number of the stored refresh token; reset to 1");
    1
}

/// Writes a temporary file and renames it, so that a crash leaves the old or the new file.
fn write(path: &Path, stored: &RotatedToken) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    let temporary = path.with_extension("refresh.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    let stored = RefreshTokenRecord {
        configured: stored.ancestor.clone(),
        number: stored.number,
        refresh_token: stored.refresh_token.expose().to_owned(),
    };
    file.write_all(&serde_json::to_vec(&stored)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rotated_token_survives_a_restart_until_another_one_is_configured() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("vault");
        let (first, second, third) = (Secret::new("first"), Secret::new("second"), Secret::new("third"));

        let mut store = store(&folder);
        assert_eq!(store.newest(&first).await, first);
        store.store_rotated(&first, second.clone()).await.unwrap();
        assert_eq!(store.newest(&first).await, second);

        let mut restarted = self::store(&folder);
        assert_eq!(restarted.newest(&first).await, second);
        assert_eq!(restarted.newest(&third).await, third, "a newly configured one wins");
        restarted.store_rotated(&first, third.clone()).await.unwrap();
        assert_eq!(self::store(&folder).newest(&first).await, third);
    }

    #[tokio::test]
    async fn a_newer_token_of_another_replica_with_the_same_ancestor_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (configured, own, other) = (Secret::new("configured"), Secret::new("own"), Secret::new("other"));
        let shared = |number| RotatedToken { ancestor: ancestor(&configured), number, refresh_token: other.clone() };
        let mut store = store(folder.path());
        store.store_rotated(&configured, own.clone()).await.unwrap();
        store.store_if_newer(&configured, shared(1)).await.unwrap();
        assert_eq!(store.newest(&configured).await, own);
        store.store_if_newer(&configured, RotatedToken { ancestor: ancestor(&own), ..shared(9) }).await.unwrap();
        assert_eq!(store.newest(&configured).await, own);
        store.store_if_newer(&configured, shared(2)).await.unwrap();
        assert_eq!(store.newest(&configured).await, other);
        assert_eq!(self::store(folder.path()).current(&configured).await.unwrap().number, 2);
        store.store_rotated(&configured, own).await.unwrap();
        assert_eq!(store.current(&configured).await.unwrap().number, 3);
    }

    #[tokio::test]
    async fn an_invalid_number_keeps_the_refresh_token() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (Secret::new("first"), Secret::new("second"));
        for number in [u64::MAX, u64::MAX - 1, GENERATION_MAX] {
            let stored =
                RefreshTokenRecord { configured: ancestor(&first), number, refresh_token: "rotated".to_owned() };
            fs::write(folder.path().join("acme.refresh"), serde_json::to_vec(&stored).unwrap()).unwrap();
            let mut store = store(folder.path());
            assert_eq!(store.newest(&first).await.expose(), "rotated");
            store.store_rotated(&first, second.clone()).await.unwrap();
            assert_eq!(store.current(&first).await.unwrap().number, 2);
        }
    }

    #[tokio::test]
    async fn the_file_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("vault");
        let leftover = folder.join("acme.refresh.new");
        fs::create_dir_all(&folder).unwrap();
        fs::write(&leftover, "of a crash").unwrap();
        store(&folder).store_rotated(&Secret::new("first"), Secret::new("second")).await.unwrap();
        let mode = fs::metadata(folder.join("acme.refresh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, FILE_MODE);
        assert!(!leftover.exists());
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_stored_is_still_used() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("vault");
        fs::write(&blocked, "a file where a directory should be").unwrap();
        let mut store = store(&blocked);
        let (first, second) = (Secret::new("first"), Secret::new("canary"));
        let error = store.store_rotated(&first, second.clone()).await.unwrap_err();
        assert!(!format!("{error:?} {}", chain(&error)).contains("canary"));
        assert_eq!(store.newest(&first).await, second);
    }

    #[tokio::test]
    async fn a_damaged_file_leaves_the_configured_token() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("acme.refresh"), "{\"configured\":\"x\"").unwrap();
        let first = Secret::new("first");
        assert_eq!(store(folder.path()).newest(&first).await, first);
    }

    fn store(folder: &Path) -> RefreshTokenStore {
        RefreshTokenStore::new(folder, &"acme".parse().unwrap())
    }
}
