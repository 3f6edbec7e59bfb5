//! Which keys belong to which grant and which connector. A key that would have no effect is a mistake, not a comment.

use super::shape::{ConnectorName, GrantKind, StoreKind};

/// The keys of one choice, beside those that every choice has.
#[derive(Debug)]
pub(super) struct RelevantKeys {
    /// Nothing works without these.
    pub(super) required: &'static [&'static str],
    /// These have an effect, and a default or a meaning when absent.
    pub(super) accepted: &'static [&'static str],
}

impl RelevantKeys {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.required.contains(&key) || self.accepted.contains(&key)
    }
}

/// Every key that some grant has and others have not.
pub(super) const GRANT_KEYS: [&str; 6] =
    ["client_auth", "client_id", "client_secret", "scope", "refresh_token", "token"];

/// Every key that some connector has and others have not.
pub(super) const CONNECTOR_KEYS: [&str; 6] = ["topics", "channel_life", "discovery", "url", "auth", "snapshot_url"];

impl GrantKind {
    /// The word of the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::Static => "static",
        }
    }

    pub(super) fn keys(self) -> RelevantKeys {
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

/// Every key that some kind of store has and others have not.
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
    /// The word of the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Redis => "redis",
        }
    }

    pub(super) fn keys(self) -> RelevantKeys {
        match self {
            Self::Embedded => RelevantKeys { required: &[], accepted: &[] },
            Self::Redis => RelevantKeys { required: &["url"], accepted: &STORE_KEYS },
        }
    }
}

impl ConnectorName {
    /// The word of the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GenesysNotifications => "genesys-notifications",
            Self::GenesysSequenced => "genesys-sequenced",
        }
    }

    pub(super) fn keys(self) -> RelevantKeys {
        match self {
            Self::GenesysNotifications => {
                RelevantKeys { required: &["topics"], accepted: &["channel_life", "discovery"] }
            }
            Self::GenesysSequenced => RelevantKeys { required: &["url"], accepted: &["auth", "snapshot_url"] },
        }
    }
}
