//! Issues tokens with the configured key, for `trunkline token mint`. A new token is verified before it is returned.

use std::time::Duration;

use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey, Header};
use serde::Serialize;

use super::{
    KeySource, KeySourceError, Settings, TokenError, VerificationKeyError, key::VerificationKey, key_set::KeySet,
};
use crate::{
    model::{ClaimRules, Secret, StreamPattern, Subject, Timestamp},
    secrets,
};

/// What a new token states.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    pub subject: Subject,
    pub streams: Vec<StreamPattern>,
    pub ttl: Duration,
    pub filter: Option<String>,
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error(transparent)]
    Keys(#[from] KeySourceError),
    #[error("the keys of http.auth.jwt.jwks_url belong to the issuer, which issues the tokens")]
    ForeignKeys,
    #[error("http.auth.jwt.signing_key is required to issue tokens")]
    NoSigningKey,
    #[error("http.auth.jwt.signing_key does not belong to public_key")]
    OtherKey,
    #[error("the token would be rejected")]
    Rejected(#[source] TokenError),
}

/// Signs tokens of consumers.
#[derive(Debug)]
pub struct TokenSigner {
    key: EncodingKey,
    algorithm: Algorithm,
    rules: ClaimRules,
    keys: KeySet,
}

#[derive(Serialize)]
struct NewClaims<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    sub: &'a str,
    iat: i64,
    exp: i64,
    streams: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<&'a str>,
}

impl TokenSigner {
    /// Reads the configured keys.
    pub async fn read(settings: &Settings) -> Result<Self, SignError> {
        let (key, verification) = match settings.jwt.source().ok_or(KeySourceError::Undefined)? {
            KeySource::Jwks { .. } => return Err(SignError::ForeignKeys),
            KeySource::Hmac(secret) => {
                let secret = secrets::read(&secret).await.map_err(read_error("hmac"))?;
                let verification = VerificationKey::of_secret(&secret).map_err(key_error("hmac"))?;
                (EncodingKey::from_secret(secret.expose().as_bytes()), verification)
            }
            KeySource::PublicKey { signing: None, .. } => return Err(SignError::NoSigningKey),
            KeySource::PublicKey { public, signing: Some(signing) } => {
                let public = secrets::read_lines(&public).await.map_err(read_error("public_key"))?;
                let signing = secrets::read_lines(&signing).await.map_err(read_error("signing_key"))?;
                let verification = VerificationKey::of_pem(public.expose()).map_err(key_error("public_key"))?;
                let key = private_key(&signing, verification.signs_with().1).map_err(key_error("signing_key"))?;
                (key, verification)
            }
        };
        let (algorithm, _) = verification.signs_with();
        Ok(Self { key, algorithm, rules: settings.claim_rules(), keys: KeySet::Single(verification) })
    }

    /// A token that is valid from `now` for the requested time.
    pub fn sign(&self, request: &GrantRequest, now: Timestamp) -> Result<String, SignError> {
        let claims = NewClaims {
            iss: self.rules.issuer.as_deref(),
            aud: self.rules.audience.as_deref(),
            sub: request.subject.as_str(),
            iat: now.0.div_euclid(1000),
            exp: now.after(request.ttl).0.div_euclid(1000),
            streams: request.streams.iter().map(StreamPattern::as_str).collect(),
            filter: request.filter.as_deref(),
        };
        // The key is of another type, or damaged.
        let token = jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key)
            .map_err(|_| key_error("signing_key")(VerificationKeyError::NoPrivateKey))?;
        match super::verify(&token, &self.keys, &self.rules, now) {
            Ok(_) => Ok(token),
            Err(TokenError::Signature) => Err(SignError::OtherKey),
            Err(error) => Err(SignError::Rejected(error)),
        }
    }
}

fn read_error(key: &'static str) -> impl Fn(secrets::SecretError) -> KeySourceError {
    move |cause| KeySourceError::Secret { key, cause }
}

fn key_error(key: &'static str) -> impl Fn(VerificationKeyError) -> KeySourceError {
    move |cause| KeySourceError::Key { key, cause }
}

/// The private key in PEM, of the same type as the public key.
fn private_key(pem: &Secret, family: AlgorithmFamily) -> Result<EncodingKey, VerificationKeyError> {
    let pem = pem.expose().as_bytes();
    let key = match family {
        AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem),
        AlgorithmFamily::Ec => EncodingKey::from_ec_pem(pem),
        AlgorithmFamily::Ed => EncodingKey::from_ed_pem(pem),
        AlgorithmFamily::Hmac => return Err(VerificationKeyError::NoPrivateKey),
    };
    key.map_err(|_| VerificationKeyError::NoPrivateKey)
}
