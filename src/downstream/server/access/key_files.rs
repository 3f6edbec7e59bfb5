//! The configured key: an HMAC secret or a public key. Its file is read again when it changes.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{KeyOwner, KeySource, error::KeySourceError, key::VerificationKey, key_set::KeySet};
use crate::{
    model::{Secret, SecretRef},
    secrets::{self, SecretError},
    tasks::TaskResult,
    telemetry::chain,
};

/// Interval of checks for a changed file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Watches the configured key.
#[derive(Debug)]
pub(super) struct KeyFileTask {
    source: KeySource,
    /// The text of the last read.
    seen: Secret,
    /// A warning about the present content was logged.
    warned: bool,
}

impl KeySource {
    /// The configuration key and the location of the text.
    fn location(&self) -> Option<(&'static str, &SecretRef)> {
        match self {
            Self::Hmac(secret) => Some(("hmac", secret)),
            Self::PublicKey { public, .. } => Some(("public_key", public)),
            Self::Jwks { .. } => None,
        }
    }

    async fn read(&self) -> Result<(&'static str, Secret), KeySourceError> {
        let (key, reference) = self.location().ok_or(KeySourceError::Undefined)?;
        let text = match self {
            Self::PublicKey { .. } => secrets::read_lines(reference).await,
            Self::Hmac(_) | Self::Jwks { .. } => secrets::read(reference).await,
        };
        let text = text.map_err(|cause: SecretError| KeySourceError::Secret { key, cause })?;
        Ok((key, text))
    }

    fn key_of(&self, key: &'static str, text: &Secret) -> Result<VerificationKey, KeySourceError> {
        let parsed = match self {
            Self::PublicKey { .. } => VerificationKey::of_pem(text.expose()),
            Self::Hmac(_) | Self::Jwks { .. } => VerificationKey::of_secret(text),
        };
        parsed.map_err(|cause| KeySourceError::Key { key, cause })
    }
}

impl KeyFileTask {
    /// Reads the key for the first time.
    pub(super) async fn read(source: KeySource) -> Result<(Self, VerificationKey), KeySourceError> {
        let (name, seen) = source.read().await?;
        let key = source.key_of(name, &seen)?;
        Ok((Self { source, seen, warned: false }, key))
    }

    /// Publishes the key of a changed file, until the stop signal. A file without a usable key changes nothing.
    pub(super) async fn run(mut self, owner: KeyOwner, stop: CancellationToken) -> TaskResult {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(CHECK_INTERVAL) => (),
            }
            match self.changed_key().await {
                Ok(Some(key)) => {
                    self.warned = false;
                    owner.keys.send_replace(Arc::new(KeySet::Single(key)));
                    tracing::info!("key for the tokens of consumers changed");
                }
                Ok(None) => self.warned = false,
                Err(error) if !self.warned => {
                    self.warned = true;
                    tracing::warn!(
                        error = chain(&error),
                        "key for the tokens of consumers not usable; the last one stays in use"
                    );
                }
                Err(_) => (),
            }
        }
    }

    async fn changed_key(&mut self) -> Result<Option<VerificationKey>, KeySourceError> {
        let (name, text) = self.source.read().await?;
        if text == self.seen {
            return Ok(None);
        }
        let key = self.source.key_of(name, &text)?;
        self.seen = text;
        Ok(Some(key))
    }
}
