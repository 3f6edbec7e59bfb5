//! Verifies the tokens of consumers: JSON Web Tokens (RFC 7519) with the precautions of RFC 8725.
//!
//! [`Verifier`] is the handle; the tasks behind it own the keys: they read key files again, and fetch the keys of an
//! issuer (JWKS). The key decides which algorithms are permitted, never the token. Errors show no part of a token.

mod control;
mod credential;
mod error;
mod first_message;
mod jose;
mod jwks;
mod key;
mod key_files;
mod key_set;
mod session_message;
mod sessions;
mod settings;
mod signer;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

pub use self::{
    control::AccessControl,
    error::{KeySourceError, TokenError},
    key::VerificationKeyError,
    sessions::{ConsumerSessions, SessionStatus},
    settings::{BindTarget, JwtSettings, KeySource, LimitSettings, Settings},
    signer::{GrantRequest, SignError, TokenSigner},
};
pub(super) use self::{
    control::{AccessError, Admission, Client, FIRST_MESSAGE_TIMEOUT, TICKET_TTL_MAX, permits},
    credential::{TICKET, reject_ticket},
    first_message::FirstMessage,
    session_message::{ClientMessage, MalformedMessage},
    sessions::{ConsumerSession, SessionRequest, due},
};
use self::{jose::SignedToken, jwks::JwksTask, key::VerificationKey, key_files::KeyFileTask, key_set::KeySet};
use crate::{
    clock,
    model::{ClaimRules, ConsumerGrant, Secret, Timestamp},
    network::NetworkPolicy,
    protocol::key_refresh::{FETCH_INTERVAL_MIN, KeyRefresh},
    tasks::Tasks,
};

/// How long a token with an unknown key waits for the keys of the issuer.
const KEY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Verifies tokens of consumers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: watch::Receiver<Arc<KeySet>>,
    /// The number of tokens whose key is unknown. A value, not a queue: the task fetches once for all of them.
    unknown: watch::Sender<u64>,
    rules: Arc<ClaimRules>,
}

/// The ends of a [`Verifier`] that the task behind it owns.
#[derive(Debug)]
struct KeyOwner {
    keys: watch::Sender<Arc<KeySet>>,
    unknown: watch::Receiver<u64>,
}

impl Verifier {
    /// Reads the configured key, or starts to fetch the keys of the issuer. `network` is used for `jwks_url` only.
    ///
    /// # Errors
    /// A key cannot be read or used. An issuer that cannot be reached is no error: tokens are rejected with
    /// [`TokenError::KeysUnavailable`] until its keys are fetched.
    pub async fn start(
        settings: &Settings,
        network: &NetworkPolicy,
        tasks: &mut Tasks,
    ) -> Result<Self, KeySourceError> {
        let source = settings.jwt.source().ok_or(KeySourceError::Undefined)?;
        match source {
            KeySource::Jwks { url } => {
                let task = JwksTask::new(url, network, jwks::LIMITS, KeyRefresh::new(FETCH_INTERVAL_MIN))?;
                let (verifier, owner) = Self::new(settings.claim_rules(), KeySet::Unavailable);
                tasks.start("consumer keys", task.run(owner, tasks.stop()));
                Ok(verifier)
            }
            KeySource::Hmac(_) | KeySource::PublicKey { .. } => {
                let (file, key) = KeyFileTask::read(source).await?;
                let (verifier, owner) = Self::new(settings.claim_rules(), KeySet::Single(key));
                tasks.start("consumer key", file.run(owner, tasks.stop()));
                Ok(verifier)
            }
        }
    }

    fn new(rules: ClaimRules, keys: KeySet) -> (Self, KeyOwner) {
        let (keys_sender, keys) = watch::channel(Arc::new(keys));
        let (unknown, unknown_receiver) = watch::channel(0);
        (Self { keys, unknown, rules: Arc::new(rules) }, KeyOwner { keys: keys_sender, unknown: unknown_receiver })
    }

    /// The grant of a valid token. A token with an unknown key causes a fetch of the keys; see
    /// [`Verifier::verify_or_wait`].
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<ConsumerGrant, TokenError> {
        let keys = Arc::clone(&self.keys.borrow());
        let verified = verify(token, &keys, &self.rules, now);
        if let Err(TokenError::UnknownKey | TokenError::KeysUnavailable) = &verified {
            self.unknown.send_modify(|count| *count = count.wrapping_add(1));
        }
        verified
    }

    /// The grant of a valid token. If its key is unknown, it waits for the next keys of the issuer, at most 5 s: after a
    /// rotation at the issuer the first token with the new key is valid, too.
    pub async fn verify_or_wait(&self, token: &str) -> Result<ConsumerGrant, TokenError> {
        let mut keys = self.keys.clone();
        keys.mark_unchanged();
        match self.verify(token, clock::wall()) {
            Err(TokenError::UnknownKey | TokenError::KeysUnavailable) => (),
            verified => return verified,
        }
        // Without new keys in time, or without a task that fetches some, the result is the same as before.
        drop(tokio::time::timeout(KEY_WAIT_MAX, keys.changed()).await);
        self.verify(token, clock::wall())
    }
}

/// Checks an HMAC secret.
pub fn check_secret(secret: &Secret) -> Result<(), VerificationKeyError> {
    VerificationKey::of_secret(secret).map(drop)
}

/// Checks a public key in PEM.
pub fn check_public_key(pem: &str) -> Result<(), VerificationKeyError> {
    VerificationKey::of_pem(pem).map(drop)
}

/// Checks the signature before the claims: nothing of a token is used before its signature is valid, except the
/// algorithm and the id of the key, to select the key.
fn verify(token: &str, keys: &KeySet, rules: &ClaimRules, now: Timestamp) -> Result<ConsumerGrant, TokenError> {
    let token = SignedToken::read(token)?;
    let key: &VerificationKey = keys.select(token.key_id(), token.algorithm())?;
    if !key.verify(&token) {
        return Err(TokenError::Signature);
    }
    Ok(rules.grant(&token.claims()?, now)?)
}
