//! Reads secrets where the configuration says they are, and notices when a file has changed since.
//!
//! It keeps digests, never the secrets themselves, and no error says more than where a secret was looked for.

use std::{collections::BTreeMap, io, path::PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::io::AsyncReadExt;

use crate::{
    model::{Secret, SecretRef},
    telemetry::chain,
};

/// A secret file is no longer than this; what is, was mistaken for one.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Reads secrets and remembers which content of each file was read last.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    files: BTreeMap<PathBuf, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Digest of what was read last; none, if that failed.
    content: Option<Vec<u8>>,
    /// The file is missing or empty, which was said already.
    lamented: bool,
}

/// The secret is not where it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("environment variable {0} is not set")]
    NoVariable(String),
    #[error("environment variable {0} is empty")]
    EmptyVariable(String),
    #[error("could not read secret file {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("secret file {} is empty", .0.display())]
    EmptyFile(PathBuf),
}

impl Secrets {
    /// The secret as it is at this moment, without white space around it.
    pub(super) async fn read(&mut self, reference: &SecretRef) -> Result<Secret, SecretError> {
        match reference {
            SecretRef::Env(name) => variable(name),
            SecretRef::File(path) => {
                let read = file(path).await;
                let content = read.as_ref().ok().map(fingerprint);
                self.files.insert(path.clone(), Seen { content, lamented: false });
                read
            }
        }
    }

    /// Whether a file that was read before holds another secret than it did then. One that went missing or is empty
    /// has not changed: what it held stays in use.
    pub(super) async fn have_changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.files {
            match file(path).await {
                Ok(secret) => {
                    seen.lamented = false;
                    changed |= seen.content.as_ref() != Some(&fingerprint(&secret));
                }
                Err(error) if !seen.lamented => {
                    seen.lamented = true;
                    tracing::warn!(error = chain(&error), "a secret is gone; the one that was read stays in use");
                }
                Err(_) => (),
            }
        }
        changed
    }
}

/// Tells two secrets apart without keeping either.
pub(super) fn fingerprint(secret: &Secret) -> Vec<u8> {
    digest(&SHA256, secret.expose().as_bytes()).as_ref().to_vec()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a secret that the configuration refers to is read only where it is used"
)]
fn variable(name: &str) -> Result<Secret, SecretError> {
    let text = std::env::var(name).map_err(|_| SecretError::NoVariable(name.to_owned()))?;
    match Secret::trimmed(&text) {
        "" => Err(SecretError::EmptyVariable(name.to_owned())),
        text => Ok(Secret::new(text)),
    }
}

async fn file(path: &PathBuf) -> Result<Secret, SecretError> {
    let text = text_of(path).await.map_err(|cause| SecretError::Unreadable { path: path.clone(), cause })?;
    match Secret::trimmed(&text) {
        "" => Err(SecretError::EmptyFile(path.clone())),
        text => Ok(Secret::new(text)),
    }
}

async fn text_of(path: &PathBuf) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    let len = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).await?;
    if len as u64 > FILE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than a secret can be"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_file_has_changed_when_it_holds_another_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let reference = SecretRef::File(path.clone());
        let mut secrets = Secrets::default();

        assert!(secrets.read(&reference).await.is_err());
        assert!(!secrets.have_changed().await, "still missing");

        fs::write(&path, " first\n").unwrap();
        assert!(secrets.have_changed().await);
        assert_eq!(secrets.read(&reference).await.unwrap(), Secret::new("first"));
        assert!(!secrets.have_changed().await);

        fs::write(&path, "first").unwrap();
        assert!(!secrets.have_changed().await, "white space is no change");
        for useless in ["", " \n"] {
            fs::write(&path, useless).unwrap();
            assert!(!secrets.have_changed().await, "{useless:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(!secrets.have_changed().await);

        fs::write(&path, "second").unwrap();
        assert!(secrets.have_changed().await);
        assert!(secrets.have_changed().await, "until it is read");
    }

    #[tokio::test]
    async fn an_error_says_where_and_not_what() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        fs::write(&path, "canary".repeat(20_000)).unwrap();
        let mut secrets = Secrets::default();
        let long = secrets.read(&SecretRef::File(path)).await.unwrap_err();
        assert!(chain(&long).ends_with("long: longer than a secret can be"), "{}", chain(&long));
        let unset = secrets.read(&SecretRef::Env("TRUNKLINE_NO_SUCH_VARIABLE".to_owned())).await.unwrap_err();
        assert_eq!(unset.to_string(), "environment variable TRUNKLINE_NO_SUCH_VARIABLE is not set");
        assert!(!format!("{long:?}{secrets:?}").contains("canary"));
    }
}
