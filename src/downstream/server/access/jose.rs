//! The form of a signed token: three parts in base64url (RFC 7515 section 3.1), and the header.
//!
//! Headers with a key or the address of one (`jwk`, `jku`, `x5c`, `x5u`) are ignored. Headers that change the meaning of
//! the token are rejected.

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::TokenError;

/// Longer tokens are rejected before they are decoded.
pub(super) const TOKEN_LEN_MAX: usize = 8 * 1024;

/// The types of a token that gives access (RFC 7519 section 5.1, RFC 9068), without `application/`.
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// A token in the form of a JWS, not verified.
#[derive(Clone, Copy)]
pub(super) struct TokenParts<'a> {
    header: &'a str,
    claims: &'a str,
    pub(super) signature: &'a str,
    /// The signed text: header and claims.
    pub(super) message: &'a str,
}

/// A token with a supported header, not verified.
pub(super) struct SignedToken<'a> {
    pub(super) parts: TokenParts<'a>,
    algorithm: Algorithm,
    key_id: Option<String>,
}

#[derive(Deserialize)]
struct HeaderFields {
    alg: String,
    #[serde(default, deserialize_with = "present")]
    typ: Option<String>,
    #[serde(default, deserialize_with = "present")]
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    #[serde(default, deserialize_with = "present")]
    crit: Option<IgnoredAny>,
    /// The type of the content: a nested token.
    #[serde(default, deserialize_with = "present")]
    cty: Option<IgnoredAny>,
    /// Encryption and compression.
    #[serde(default, deserialize_with = "present")]
    enc: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "present")]
    zip: Option<IgnoredAny>,
    /// Claims that are not encoded (RFC 7797).
    #[serde(default, deserialize_with = "present")]
    b64: Option<IgnoredAny>,
}

/// A member that is null is present.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<'a> TokenParts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(TokenError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let is_part = |part: &&str| !part.is_empty() && !part.contains('.');
        let complete = [header, claims, signature].iter().all(is_part);
        complete.then_some(Self { header, claims, signature, message }).ok_or(TokenError::Malformed)
    }
}

impl<'a> SignedToken<'a> {
    /// Reads the header. Does not decode the claims.
    pub(super) fn read(token: &'a str) -> Result<Self, TokenError> {
        let parts = TokenParts::split(token)?;
        let header = HeaderFields::read(&decode(parts.header)?).ok_or(TokenError::Malformed)?;
        if let Some(name) = header.unsupported() {
            return Err(TokenError::Header(name));
        }
        let algorithm = Algorithm::from_str(&header.alg).map_err(|_| TokenError::Algorithm)?;
        Ok(Self { parts, algorithm, key_id: header.kid })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// The claims as JSON.
    pub(super) fn claims(&self) -> Result<String, TokenError> {
        decode(self.parts.claims)
    }
}

impl HeaderFields {
    /// The fields of a JSON object; a list in their order is none.
    fn read(text: &str) -> Option<Self> {
        text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok())?
    }

    /// The first header that this daemon does not support.
    fn unsupported(&self) -> Option<&'static str> {
        let present = [
            ("crit", self.crit.is_some()),
            ("cty", self.cty.is_some()),
            ("enc", self.enc.is_some()),
            ("zip", self.zip.is_some()),
            ("b64", self.b64.is_some()),
            ("typ", self.typ.as_deref().is_some_and(|typ| !is_access_token(typ))),
        ];
        present.into_iter().find_map(|(name, present)| present.then_some(name))
    }
}

fn is_access_token(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    TYPES.contains(&typ.strip_prefix("application/").unwrap_or(&typ))
}

/// Base64url without padding, in its canonical form only; UTF-8 text.
fn decode(part: &str) -> Result<String, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    String::from_utf8(bytes).map_err(|_| TokenError::Malformed)
}
