//! Which keys belong to which grant and kind of store. A key without effect is an error.

use super::shape::{GrantKind, StoreKind};

/// The keys of one choice, without those that all choices have.
#[derive(Debug)]
pub(super) struct RelevantKeys<'a> {
    /// Required keys.
    pub(super) required: &'a [&'a str],
    /// Optional keys.
    pub(super) accepted: &'a [&'a str],
}

impl RelevantKeys<'_> {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.required.contains(&key) || self.accepted.contains(&key)
    }
}

/// All keys that depend on the grant.
pub(super) const GRANT_KEYS: [&str; 6] =
    ["client_auth", "client_id", "client_secret", "scope", "refresh_token", "token"];

impl GrantKind {
    /// The value in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::Static => "static",
        }
    }

    pub(super) fn keys(self) -> RelevantKeys<'static> {
        match self {
            Self::ClientCredentials => {
                RelevantKeys { required: &["client_id", "client_secret"], accepted: &["client_auth", "scope"] }
            }
            Self::RefreshToken => RelevantKeys {
                required: &["client_id", "client_secret", "refresh_token"],
                accepted: &["client_auth", "scope"],
            },
            Self::Static => RelevantKeys { required: &["token"], accepted: &[] },
        }
    }
}

/// All keys that depend on the kind of store.
pub(super) const STORE_KEYS: [&str; 11] = [
    "url",
    "username",
    "password",
    "sentinel_username",
    "sentinel_password",
    "prefix",
    "seal_key",
    "durability",
    "lease",
    "streams_max",
    "insecure",
];

impl StoreKind {
    /// The value in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Redis => "redis",
        }
    }

    pub(super) fn keys(self) -> RelevantKeys<'static> {
        match self {
            Self::Embedded => RelevantKeys { required: &[], accepted: &[] },
            Self::Redis => RelevantKeys { required: &["url"], accepted: &STORE_KEYS },
        }
    }
}
