//! Where a rotated refresh token survives a restart: one file an account, for its owner's eyes only.
//!
//! It never overrules the configuration: a rotated token is a descendant of the configured one, and is forgotten as
//! soon as another one is configured. Replicas tell one another of rotations: the one with the higher number is newer.

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

/// Only the owner reads and writes the file.
const FILE_MODE: u32 = 0o600;

/// Only the owner enters the directory, where it is made here.
const FOLDER_MODE: u32 = 0o700;

/// Longer files are not ours.
const FILE_LEN_MAX: u64 = 256 * 1024;

/// The rotated refresh token of one account.
#[derive(Debug)]
pub(super) struct RefreshTokenStore {
    path: PathBuf,
    cached: CachedToken,
}

#[derive(Debug)]
enum CachedToken {
    /// The file was not looked at yet.
    Unread,
    Missing,
    Loaded(RotatedToken),
}

/// A refresh token that the platform gave in place of another.
#[derive(Debug, Clone)]
pub(super) struct RotatedToken {
    /// Which configured token this one descends from.
    pub(super) ancestor: String,
    /// How many rotations that is ago.
    pub(super) number: u64,
    pub(super) refresh_token: Secret,
}

/// The file's shape.
#[derive(Serialize, Deserialize)]
struct RefreshTokenRecord {
    /// Digest of the configured token.
    configured: String,
    #[serde(default)]
    number: u64,
    refresh_token: String,
}

/// The file could not be written or read. What was rotated is known to this process only.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub(super) struct RefreshTokenStoreError {
    step: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

impl RefreshTokenStore {
    /// Nothing is read or made before a token is wanted.
    pub(super) fn new(folder: &Path, account: &AccountName) -> Self {
        Self { path: folder.join(format!("{account}.refresh")), cached: CachedToken::Unread }
    }

    /// The newest token that descends from the configured one, or that one itself.
    pub(super) async fn newest(&mut self, configured: &Secret) -> Secret {
        self.current(configured).await.map_or_else(|| configured.clone(), |kept| kept.refresh_token.clone())
    }

    /// The newest token that descends from the configured one.
    pub(super) async fn current(&mut self, configured: &Secret) -> Option<&RotatedToken> {
        if let CachedToken::Unread = self.cached {
            self.cached = self.load().await;
        }
        match &self.cached {
            CachedToken::Loaded(kept) if kept.ancestor == ancestor(configured) => Some(kept),
            CachedToken::Unread | CachedToken::Missing | CachedToken::Loaded(_) => None,
        }
    }

    /// Keeps a rotated token, durable when this returns. After an error it is kept in memory all the same.
    pub(super) async fn store_rotated(
        &mut self,
        configured: &Secret,
        rotated: Secret,
    ) -> Result<(), RefreshTokenStoreError> {
        let number = self.current(configured).await.map_or(0, |kept| kept.number) + 1;
        self.store(RotatedToken { ancestor: ancestor(configured), number, refresh_token: rotated }).await
    }

    /// Keeps what another replica was given, if it is newer.
    pub(super) async fn store_if_newer(
        &mut self,
        configured: &Secret,
        shared: RotatedToken,
    ) -> Result<(), RefreshTokenStoreError> {
        let known = self.current(configured).await.map_or(0, |kept| kept.number);
        if shared.ancestor == ancestor(configured) && shared.number > known { self.store(shared).await } else { Ok(()) }
    }

    async fn store(&mut self, kept: RotatedToken) -> Result<(), RefreshTokenStoreError> {
        self.cached = CachedToken::Loaded(kept.clone());
        let path = self.path.clone();
        let stored = run_blocking(move || write(&path, &kept)).await;
        stored.map_err(|cause| RefreshTokenStoreError {
            step: "write the rotated refresh token to",
            path: self.path.clone(),
            cause,
        })
    }

    /// A file that cannot be read costs an operator a new refresh token at worst; it must not stop the others.
    async fn load(&self) -> CachedToken {
        let path = self.path.clone();
        match run_blocking(move || read(&path)).await {
            Ok(kept) => kept.map_or(CachedToken::Missing, CachedToken::Loaded),
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

/// The name of a configured token; it tells nothing of it.
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
    // the parser's own error could quote the token
    let stored: RefreshTokenRecord =
        serde_json::from_slice(&text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "damaged file"))?;
    let RefreshTokenRecord { configured, number, refresh_token } = stored;
    Ok(Some(RotatedToken {
        ancestor: configured,
        number: valid_number(number, path),
        refresh_token: Secret::new(refresh_token),
    }))
}

/// A number that no rotation leads to is taken for the first one: the token beside it may be the newest there is.
fn valid_number(number: u64, path: &Path) -> u64 {
    if number < GENERATION_MAX {
        return number;
    }
    let path = path.display();
    tracing::error!(%path, number, expected_below = GENERATION_MAX, "invalid number of the stored refresh token; reset to 1");
    1
}

/// Beside the old file and then over it, so that a crash leaves the one or the other.
fn write(path: &Path, kept: &RotatedToken) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    let temporary = path.with_extension("refresh.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    let stored = RefreshTokenRecord {
        configured: kept.ancestor.clone(),
        number: kept.number,
        refresh_token: kept.refresh_token.expose().to_owned(),
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

        let mut vault = vault(&folder);
        assert_eq!(vault.newest(&first).await, first);
        vault.store_rotated(&first, second.clone()).await.unwrap();
        assert_eq!(vault.newest(&first).await, second);

        let mut restarted = self::vault(&folder);
        assert_eq!(restarted.newest(&first).await, second);
        assert_eq!(restarted.newest(&third).await, third, "a newly configured one wins");
        restarted.store_rotated(&first, third.clone()).await.unwrap();
        assert_eq!(self::vault(&folder).newest(&first).await, third);
    }

    #[tokio::test]
    async fn what_another_replica_was_given_counts_if_it_is_newer_and_of_the_same_line() {
        let folder = tempfile::tempdir().unwrap();
        let (configured, own, other) = (Secret::new("configured"), Secret::new("own"), Secret::new("other"));
        let told = |number| RotatedToken { ancestor: ancestor(&configured), number, refresh_token: other.clone() };
        let mut vault = vault(folder.path());
        vault.store_rotated(&configured, own.clone()).await.unwrap();
        vault.store_if_newer(&configured, told(1)).await.unwrap();
        assert_eq!(vault.newest(&configured).await, own);
        vault.store_if_newer(&configured, RotatedToken { ancestor: ancestor(&own), ..told(9) }).await.unwrap();
        assert_eq!(vault.newest(&configured).await, own);
        vault.store_if_newer(&configured, told(2)).await.unwrap();
        assert_eq!(vault.newest(&configured).await, other);
        assert_eq!(self::vault(folder.path()).current(&configured).await.unwrap().number, 2);
        vault.store_rotated(&configured, own).await.unwrap();
        assert_eq!(vault.current(&configured).await.unwrap().number, 3);
    }

    #[tokio::test]
    async fn a_number_that_no_rotation_leads_to_costs_no_refresh_token() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (Secret::new("first"), Secret::new("second"));
        for number in [u64::MAX, u64::MAX - 1, GENERATION_MAX] {
            let stored =
                RefreshTokenRecord { configured: ancestor(&first), number, refresh_token: "rotated".to_owned() };
            fs::write(folder.path().join("acme.refresh"), serde_json::to_vec(&stored).unwrap()).unwrap();
            let mut vault = vault(folder.path());
            assert_eq!(vault.newest(&first).await.expose(), "rotated");
            vault.store_rotated(&first, second.clone()).await.unwrap();
            assert_eq!(vault.current(&first).await.unwrap().number, 2);
        }
    }

    #[tokio::test]
    async fn the_file_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("vault");
        let leftover = folder.join("acme.refresh.new");
        fs::create_dir_all(&folder).unwrap();
        fs::write(&leftover, "of a crash").unwrap();
        vault(&folder).store_rotated(&Secret::new("first"), Secret::new("second")).await.unwrap();
        let mode = fs::metadata(folder.join("acme.refresh")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, FILE_MODE);
        assert!(!leftover.exists());
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_stored_is_used_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("vault");
        fs::write(&blocked, "a file where a directory should be").unwrap();
        let mut vault = vault(&blocked);
        let (first, second) = (Secret::new("first"), Secret::new("canary"));
        let error = vault.store_rotated(&first, second.clone()).await.unwrap_err();
        assert!(!format!("{error:?} {}", chain(&error)).contains("canary"));
        assert_eq!(vault.newest(&first).await, second);
    }

    #[tokio::test]
    async fn a_damaged_file_leaves_the_configured_token() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("acme.refresh"), "{\"configured\":\"x\"").unwrap();
        let first = Secret::new("first");
        assert_eq!(vault(folder.path()).newest(&first).await, first);
    }

    fn vault(folder: &Path) -> RefreshTokenStore {
        RefreshTokenStore::new(folder, &"acme".parse().unwrap())
    }
}
