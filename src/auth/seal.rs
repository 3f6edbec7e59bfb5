//! Encrypts tokens that are stored outside of this process, so that only replicas with the key can read them.
//!
//! AES-256-GCM with a random nonce. The ciphertext is bound to its context (kind, prefix, account, generation) and does
//! not open in another one. The first key seals and every key opens, so that keys can be rotated.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest::{SHA256, digest},
};
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::model::Secret;

/// Length of a key in bytes; keys are written in base64.
pub const KEY_LEN: usize = 32;

/// Length of a key id: the first bytes of the digest of the key.
const ID_LEN: usize = 4;

/// First byte of a text that is not sealed.
const PLAIN: u8 = 0;
/// First byte of a sealed text.
const SEALED: u8 = 1;

/// The sealing keys of an installation. Without keys, texts are stored unsealed.
#[derive(Debug, Default)]
pub struct Seal {
    keys: Vec<SealKey>,
}

struct SealKey {
    id: [u8; ID_LEN],
    key: RandomizedNonceKey,
}

/// The context that a sealed text is bound to.
#[derive(Debug, Clone, Copy)]
pub(super) struct SealContext<'a> {
    pub(super) kind: SealedKind,
    /// The key prefix of the installation in Redis.
    pub(super) prefix: &'a str,
    pub(super) account: &'a str,
    pub(super) generation: u64,
}

/// The kind of a sealed text. One kind does not open as the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SealedKind {
    AccessToken,
    RefreshToken,
}

/// An invalid sealing key. The error does not contain the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealing key is {KEY_LEN} random bytes in base64")]
pub struct KeyError;

/// Why a text cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SealError {
    #[error("sealed with a key that is not configured here")]
    UnknownKey,
    #[error("not sealed, but a sealing key is configured")]
    Plain,
    #[error("sealed data was altered or belongs to another account or generation")]
    Forged,
    #[error("encryption failed")]
    Unsealable,
}

impl Seal {
    /// The first of `keys` seals, all of them open.
    pub fn new(keys: &[Secret]) -> Result<Self, KeyError> {
        Ok(Self { keys: keys.iter().map(SealKey::read).collect::<Result<_, _>>()? })
    }

    /// Reads at least one key from a text with keys separated by white space.
    pub fn read(text: &Secret) -> Result<Self, KeyError> {
        let keys: Vec<Secret> = text.expose().split_whitespace().map(Secret::new).collect();
        if keys.is_empty() { Err(KeyError) } else { Self::new(&keys) }
    }

    pub(super) fn seal(&self, secret: &Secret, context: SealContext<'_>) -> Result<Vec<u8>, SealError> {
        let plain = secret.expose().as_bytes();
        let Some(SealKey { id, key }) = self.keys.first() else { return Ok([&[PLAIN], plain].concat()) };
        let mut sealed = plain.to_vec();
        let nonce = key
            .seal_in_place_append_tag(context.associated_data(id), &mut sealed)
            .map_err(|_| SealError::Unsealable)?;
        Ok([&[SEALED], &id[..], nonce.as_ref(), &sealed].concat())
    }

    pub(super) fn open(&self, text: &[u8], context: SealContext<'_>) -> Result<Secret, SealError> {
        match text.split_first() {
            Some((&PLAIN, plain)) if self.keys.is_empty() => utf8_secret(plain),
            Some((&PLAIN, _)) => Err(SealError::Plain),
            Some((&SEALED, rest)) => self.unseal(rest, context),
            Some(_) | None => Err(SealError::Forged),
        }
    }

    fn unseal(&self, rest: &[u8], context: SealContext<'_>) -> Result<Secret, SealError> {
        let (id, rest) = rest.split_first_chunk::<ID_LEN>().ok_or(SealError::Forged)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Forged)?;
        let key = self.keys.iter().find(|key| key.id == *id).ok_or(SealError::UnknownKey)?;
        let mut sealed = sealed.to_vec();
        let opened =
            key.key.open_in_place(Nonce::assume_unique_for_key(*nonce), context.associated_data(id), &mut sealed);
        utf8_secret(opened.map_err(|_| SealError::Forged)?)
    }
}

impl SealKey {
    fn read(written: &Secret) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(written.expose().trim()).map_err(|_| KeyError)?;
        let bytes: [u8; KEY_LEN] = bytes.try_into().map_err(|_| KeyError)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| KeyError)?;
        let digest = digest(&SHA256, &bytes);
        let id = digest.as_ref().first_chunk::<ID_LEN>().copied().ok_or(KeyError)?;
        Ok(Self { id, key })
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SealContext<'_> {
    /// The associated data. Length prefixes make it unambiguous.
    fn associated_data(self, id: &[u8; ID_LEN]) -> Aad<Vec<u8>> {
        let Self { kind, prefix, account, generation } = self;
        let kind = match kind {
            SealedKind::AccessToken => "token",
            SealedKind::RefreshToken => "refresh token",
        };
        let head = format!("trunkline {kind} {}:{prefix}{}:{account}{generation} ", prefix.len(), account.len());
        Aad::from([head.as_bytes(), id].concat())
    }
}

fn utf8_secret(text: &[u8]) -> Result<Secret, SealError> {
    std::str::from_utf8(text).map(Secret::new).map_err(|_| SealError::Forged)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SealContext<'_> =
        SealContext { kind: SealedKind::AccessToken, prefix: "trunkline", account: "acme", generation: 7 };

    #[test]
    fn a_sealed_secret_opens_only_in_its_context() {
        let seal = seal(&[1]);
        let sealed = seal.seal(&Secret::new("canary-token"), HERE).unwrap();
        assert_eq!(seal.open(&sealed, HERE), Ok(Secret::new("canary-token")));
        let others = [
            SealContext { kind: SealedKind::RefreshToken, ..HERE },
            SealContext { prefix: "trunklin", ..HERE },
            SealContext { account: "acme2", ..HERE },
            SealContext { generation: 8, ..HERE },
            SealContext { prefix: "trunkline4:a", account: "cme", ..HERE },
        ];
        for context in others {
            assert_eq!(seal.open(&sealed, context), Err(SealError::Forged), "{context:?}");
        }
    }

    #[test]
    fn a_changed_or_truncated_text_does_not_open() {
        let seal = seal(&[1]);
        let sealed = seal.seal(&Secret::new("canary-token"), HERE).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(seal.open(&changed, HERE).is_err(), "byte {at}");
            assert!(seal.open(&sealed[..at], HERE).is_err(), "the first {at} bytes");
        }
    }

    #[test]
    fn sealed_texts_are_unreadable_and_differ() {
        let seal = seal(&[1]);
        let token = Secret::new("canary-token");
        let sealed = seal.seal(&token, HERE).unwrap();
        assert!(!sealed.windows(4).any(|part| token.expose().as_bytes().windows(4).any(|known| known == part)));
        assert_ne!(sealed, seal.seal(&token, HERE).unwrap());
        assert!(!format!("{seal:?}").contains(&STANDARD.encode([1; KEY_LEN])));
    }

    #[test]
    fn keys_are_rotated_by_listing_both() {
        let (old, both, new) = (seal(&[1]), seal(&[2, 1]), seal(&[2]));
        let token = Secret::new("canary-token");
        let before = old.seal(&token, HERE).unwrap();
        let after = both.seal(&token, HERE).unwrap();
        assert_eq!(both.open(&before, HERE), Ok(token.clone()));
        assert_eq!(new.open(&after, HERE), Ok(token));
        assert_eq!(new.open(&before, HERE), Err(SealError::UnknownKey));
    }

    #[test]
    fn an_unsealed_text_opens_only_without_keys() {
        let (token, none) = (Secret::new("canary-token"), Seal::default());
        let plain = none.seal(&token, HERE).unwrap();
        assert_eq!(none.open(&plain, HERE), Ok(token));
        assert_eq!(seal(&[1]).open(&plain, HERE), Err(SealError::Plain));
        assert_eq!(none.open(b"", HERE), Err(SealError::Forged));
    }

    #[test]
    fn an_invalid_key_is_rejected_without_being_quoted() {
        for bad in ["", "canary", &STANDARD.encode([1; 31]), &STANDARD.encode([1; 33])] {
            assert_eq!(Seal::new(&[Secret::new(bad)]).unwrap_err(), KeyError, "{bad}");
        }
        assert_eq!(KeyError.to_string(), "a sealing key is 32 random bytes in base64");
    }

    fn seal(keys: &[u8]) -> Seal {
        let keys: Vec<Secret> = keys.iter().map(|byte| Secret::new(STANDARD.encode([*byte; KEY_LEN]))).collect();
        Seal::new(&keys).unwrap()
    }
}
