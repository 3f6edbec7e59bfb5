//! Why a token is rejected, and why the keys cannot be used. No error contains a token, a part of one, or a key.

use super::VerificationKeyError;
use crate::{model::ClaimError, network::ConnectError, protocol::access::CloseReason, secrets::SecretError};

/// Why a token gives no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is longer than {} bytes", super::jose::TOKEN_LEN_MAX)]
    TooLong,
    #[error("the token is not a signed JWT")]
    Malformed,
    #[error("the token uses the header {0}, which is not supported")]
    Header(&'static str),
    #[error("the algorithm of the token is not permitted for the key")]
    Algorithm,
    #[error("the key of the token is unknown")]
    UnknownKey,
    #[error("the token does not name exactly one key")]
    AmbiguousKey,
    #[error("the keys of the issuer are not available yet")]
    KeysUnavailable,
    #[error("the signature of the token is invalid")]
    Signature,
    #[error(transparent)]
    Claims(#[from] ClaimError),
}

impl TokenError {
    /// The labels of all errors, to register their metrics at start.
    pub const LABELS: [&'static str; 15] = [
        "too_long",
        "malformed",
        "header",
        "algorithm",
        "unknown_key",
        "ambiguous_key",
        "keys_unavailable",
        "signature",
        "claims",
        "claim_missing",
        "claim_invalid",
        "issuer",
        "audience",
        "expired",
        "not_yet_valid",
    ];

    /// The stable reason for clients: `token_expired` or `token_invalid`.
    pub fn reason(self) -> CloseReason {
        match self {
            Self::Claims(ClaimError::Expired) => CloseReason::TokenExpired,
            Self::TooLong
            | Self::Malformed
            | Self::Header(_)
            | Self::Algorithm
            | Self::UnknownKey
            | Self::AmbiguousKey
            | Self::KeysUnavailable
            | Self::Signature
            | Self::Claims(
                ClaimError::Unreadable
                | ClaimError::Missing(_)
                | ClaimError::Invalid(_)
                | ClaimError::Issuer
                | ClaimError::Audience
                | ClaimError::NotYetValid,
            ) => CloseReason::TokenInvalid,
        }
    }

    /// Whether the same token may be valid later: respond with 503 in place of 401.
    pub fn is_temporary(self) -> bool {
        self == Self::KeysUnavailable
    }

    /// A short name, for metrics; one of [`TokenError::LABELS`].
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::Header(_) => "header",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::AmbiguousKey => "ambiguous_key",
            Self::KeysUnavailable => "keys_unavailable",
            Self::Signature => "signature",
            Self::Claims(error) => error.label(),
        }
    }
}

/// Why the keys for tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    #[error("http.auth.jwt needs exactly one of hmac, public_key and jwks_url")]
    Undefined,
    #[error("cannot read http.auth.jwt.{key}")]
    Secret {
        key: &'static str,
        #[source]
        cause: SecretError,
    },
    #[error("http.auth.jwt.{key} cannot be used")]
    Key {
        key: &'static str,
        #[source]
        cause: VerificationKeyError,
    },
    #[error("http.auth.jwt.jwks_url cannot be used")]
    Endpoint(#[from] ConnectError),
    #[error("cannot build the HTTP client for http.auth.jwt.jwks_url")]
    Client(#[source] reqwest::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_expired_token_has_a_reason_of_its_own() {
        for (error, reason) in [
            (TokenError::Claims(ClaimError::Expired), "token_expired"),
            (TokenError::Claims(ClaimError::NotYetValid), "token_invalid"),
            (TokenError::Signature, "token_invalid"),
        ] {
            assert_eq!(error.reason().as_str(), reason);
        }
    }

    #[test]
    fn every_label_is_in_the_list() {
        for error in [
            TokenError::TooLong,
            TokenError::Malformed,
            TokenError::Header("crit"),
            TokenError::Algorithm,
            TokenError::UnknownKey,
            TokenError::AmbiguousKey,
            TokenError::KeysUnavailable,
            TokenError::Signature,
            TokenError::Claims(ClaimError::Unreadable),
            TokenError::Claims(ClaimError::Missing("sub")),
            TokenError::Claims(ClaimError::Invalid("sub")),
            TokenError::Claims(ClaimError::Issuer),
            TokenError::Claims(ClaimError::Audience),
            TokenError::Claims(ClaimError::Expired),
            TokenError::Claims(ClaimError::NotYetValid),
        ] {
            assert!(TokenError::LABELS.contains(&error.label()), "{error:?}");
        }
    }
}
