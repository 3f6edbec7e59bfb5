//! A key that verifies tokens, and the algorithms that it permits.
//!
//! The type of the key decides on the algorithms (RFC 8725 section 3.1): a public key never verifies an HMAC, so that a
//! token cannot be signed with the public key as a secret.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, Jwk, KeyOperations, PublicKeyUse},
};

use super::jose::SignedToken;
use crate::model::Secret;

/// The least bytes of an HMAC secret for HS256, HS384 and HS512: the length of the hash (RFC 7518 section 3.2).
const HMAC_LENGTHS: [usize; 3] = [32, 48, 64];
const HMAC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

/// The first is the one for new tokens.
const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
const P256: [Algorithm; 1] = [Algorithm::ES256];
const P384: [Algorithm; 1] = [Algorithm::ES384];
const ED: [Algorithm; 1] = [Algorithm::EdDSA];

/// Permitted sizes of an RSA key (RFC 7518 section 3.3). Larger ones are slow to verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a key cannot be used. It does not contain the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerificationKeyError {
    #[error("expected a secret of at least {} bytes, found {found}", HMAC_LENGTHS[0])]
    ShortSecret { found: usize },
    #[error("expected a public key in PEM (BEGIN PUBLIC KEY): RSA, EC P-256, EC P-384 or Ed25519")]
    NoPublicKey,
    #[error("found a private key, expected the public key (openssl pkey -pubout)")]
    PrivateKey,
    #[error("expected an RSA key of {} to {} bits, found {found}", RSA_BITS.start(), RSA_BITS.end())]
    RsaSize { found: usize },
    #[error("expected a private key in PEM (BEGIN PRIVATE KEY) of the same type as the public key")]
    NoPrivateKey,
    #[error("is not a key for signatures of a supported type")]
    OtherUse,
}

/// A key with the algorithms that it permits, never empty.
#[derive(Clone)]
pub(super) struct VerificationKey {
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

impl std::fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerificationKey").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

impl VerificationKey {
    /// An HMAC secret. It permits the algorithms for which it is long enough.
    pub(super) fn of_secret(secret: &Secret) -> Result<Self, VerificationKeyError> {
        let bytes = secret.expose().as_bytes();
        let long_enough = HMAC_LENGTHS.iter().filter(|least| bytes.len() >= **least).count();
        match long_enough {
            0 => Err(VerificationKeyError::ShortSecret { found: bytes.len() }),
            count => Ok(Self { key: DecodingKey::from_secret(bytes), algorithms: HMAC[..count].to_vec() }),
        }
    }

    /// A public key in PEM.
    pub(super) fn of_pem(pem: &str) -> Result<Self, VerificationKeyError> {
        if pem.contains("PRIVATE KEY-----") {
            return Err(VerificationKeyError::PrivateKey);
        }
        if !pem.contains("-----BEGIN PUBLIC KEY-----") && !pem.contains("-----BEGIN RSA PUBLIC KEY-----") {
            return Err(VerificationKeyError::NoPublicKey);
        }
        let pem = pem.as_bytes();
        let key = DecodingKey::from_ed_pem(pem).or_else(|_| DecodingKey::from_ec_pem(pem));
        let key = key.or_else(|_| DecodingKey::from_rsa_pem(pem)).map_err(|_| VerificationKeyError::NoPublicKey)?;
        let jwk = Jwk::from_decoding_key(&key, None).map_err(|_| VerificationKeyError::NoPublicKey)?;
        Self::of_jwk(&jwk)
    }

    /// A public key of an issuer (RFC 7517). A secret is rejected: what is published is not secret.
    pub(super) fn of_jwk(jwk: &Jwk) -> Result<Self, VerificationKeyError> {
        let common = &jwk.common;
        let verifies = common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        let signs = common.public_key_use.as_ref().is_none_or(|own| *own == PublicKeyUse::Signature);
        if !verifies || !signs {
            return Err(VerificationKeyError::OtherUse);
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|_| VerificationKeyError::NoPublicKey)?;
        let by_type = algorithms(jwk, &key)?;
        let algorithms: Vec<_> = match common.key_algorithm {
            None => by_type.to_vec(),
            Some(only) => by_type.iter().copied().filter(|known| Algorithm::try_from(only) == Ok(*known)).collect(),
        };
        if algorithms.is_empty() { Err(VerificationKeyError::OtherUse) } else { Ok(Self { key, algorithms }) }
    }

    pub(super) fn permits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// The algorithm and the family of keys for new tokens.
    pub(super) fn signs_with(&self) -> (Algorithm, AlgorithmFamily) {
        (self.algorithms[0], self.key.family())
    }

    /// Whether the signature of the token is valid, with an algorithm that this key permits.
    pub(super) fn verify(&self, token: &SignedToken<'_>) -> bool {
        let (parts, algorithm) = (&token.parts, token.algorithm());
        self.permits(algorithm)
            && jsonwebtoken::crypto::verify(parts.signature, parts.message.as_bytes(), &self.key, algorithm)
                .unwrap_or(false)
    }
}

/// The algorithms of a key by its type, if the key is valid.
fn algorithms(jwk: &Jwk, key: &DecodingKey) -> Result<&'static [Algorithm], VerificationKeyError> {
    let point = |algorithm: &'static dyn VerificationAlgorithm| {
        let bytes = key.try_get_as_bytes().map_err(|_| VerificationKeyError::NoPublicKey)?;
        ParsedPublicKey::new(algorithm, bytes).map(drop).map_err(|_| VerificationKeyError::NoPublicKey)
    };
    if let AlgorithmParameters::RSA(rsa) = &jwk.algorithm {
        check_rsa_size(&rsa.n)?;
        return Ok(&RSA);
    }
    if let AlgorithmParameters::EllipticCurve(_) = &jwk.algorithm {
        let p256 = point(&ECDSA_P256_SHA256_FIXED).map(|()| &P256[..]);
        return p256.or_else(|_| point(&ECDSA_P384_SHA384_FIXED).map(|()| &P384[..]));
    }
    if let AlgorithmParameters::OctetKeyPair(_) = &jwk.algorithm {
        point(&ED25519)?;
        return Ok(&ED);
    }
    Err(VerificationKeyError::OtherUse)
}

fn check_rsa_size(modulus: &str) -> Result<(), VerificationKeyError> {
    let bytes = URL_SAFE_NO_PAD.decode(modulus).map_err(|_| VerificationKeyError::NoPublicKey)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let first = bytes.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    let found = (bytes.len() - zeros) * 8 - first;
    if RSA_BITS.contains(&found) { Ok(()) } else { Err(VerificationKeyError::RsaSize { found }) }
}
