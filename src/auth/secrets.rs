//! Reads the secrets of an account and detects changed files.
//!
//! It keeps digests, never the secrets themselves. Errors contain only the location of a secret.

use std::{collections::BTreeMap, path::PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

use crate::{
    model::{Secret, SecretRef},
    secrets::{self, SecretError},
    telemetry::chain,
};

/// Reads secrets and remembers the digest of each file.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    files: BTreeMap<PathBuf, SecretFileState>,
}

#[derive(Debug, Default)]
struct SecretFileState {
    /// Digest of the last read; none if it failed.
    content: Option<Vec<u8>>,
    /// A warning about a missing or empty file was logged.
    warned: bool,
}

impl Secrets {
    /// The current secret, without surrounding white space.
    pub(super) async fn read(&mut self, reference: &SecretRef) -> Result<Secret, SecretError> {
        let read = secrets::read(reference).await;
        if let SecretRef::File(path) = reference {
            let content = read.as_ref().ok().map(fingerprint);
            self.files.insert(path.clone(), SecretFileState { content, warned: false });
        }
        read
    }

    /// Whether a file has another secret than at the last read. A missing or empty file counts as unchanged.
    pub(super) async fn have_changed(&mut self) -> bool {
        let mut changed = false;
        for (path, seen) in &mut self.files {
            match secrets::read(&SecretRef::File(path.clone())).await {
                Ok(secret) => {
                    seen.warned = false;
                    changed |= seen.content.as_ref() != Some(&fingerprint(&secret));
                }
                Err(error) if !seen.warned => {
                    seen.warned = true;
                    tracing::warn!(error = chain(&error), "secret file missing or empty; the last value stays in use");
                }
                Err(_) => (),
            }
        }
        changed
    }
}

/// The digest of a secret, for comparison.
pub(super) fn fingerprint(secret: &Secret) -> Vec<u8> {
    digest(&SHA256, secret.expose().as_bytes()).as_ref().to_vec()
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
    async fn an_error_names_the_location_and_not_the_content() {
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
