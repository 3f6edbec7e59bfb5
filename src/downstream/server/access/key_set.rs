//! The keys in use, and the choice of the key for a token.

use jsonwebtoken::Algorithm;

use super::{TokenError, key::VerificationKey};

/// The keys in use.
#[derive(Debug)]
pub(super) enum KeySet {
    /// No key was fetched yet.
    Unavailable,
    /// The configured key. It verifies tokens with any key id, because no other key can be meant.
    Single(VerificationKey),
    /// The keys of an issuer.
    Issuer(Vec<IssuerKey>),
}

/// A key of an issuer, and its id.
#[derive(Debug)]
pub(super) struct IssuerKey {
    pub(super) id: Option<String>,
    pub(super) key: VerificationKey,
}

impl KeySet {
    /// The one key for a token. Key ids are compared, never used to find a file or an address.
    pub(super) fn select(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&VerificationKey, TokenError> {
        match self {
            Self::Unavailable => Err(TokenError::KeysUnavailable),
            Self::Single(key) if key.permits(algorithm) => Ok(key),
            Self::Single(_) => Err(TokenError::Algorithm),
            Self::Issuer(keys) => select(keys, id, algorithm),
        }
    }
}

fn select<'a>(
    keys: &'a [IssuerKey],
    id: Option<&str>,
    algorithm: Algorithm,
) -> Result<&'a VerificationKey, TokenError> {
    let mut named = keys.iter().filter(|key| id.is_none() || key.id.as_deref() == id).peekable();
    if named.peek().is_none() {
        return Err(TokenError::UnknownKey);
    }
    let mut usable = named.filter(|key| key.key.permits(algorithm));
    match (usable.next(), usable.next()) {
        (None, _) => Err(TokenError::Algorithm),
        (Some(only), None) => Ok(&only.key),
        (Some(_), Some(_)) => Err(TokenError::AmbiguousKey),
    }
}
