//! Which keys belong to which grant and which connector. A key that would have no effect is a mistake, not a comment.

use super::shape::{Connector, Grant, StoreKind};

/// The keys of one choice, beside those that every choice has.
#[derive(Debug)]
pub(super) struct Keys {
    /// Nothing works without these.
    pub(super) needed: &'static [&'static str],
    /// These have an effect, and a default or a meaning when absent.
    pub(super) taken: &'static [&'static str],
}

impl Keys {
    pub(super) fn has(&self, key: &str) -> bool {
        self.needed.contains(&key) || self.taken.contains(&key)
    }
}

/// Every key that some grant has and others have not.
pub(super) const GRANT_KEYS: [&str; 6] =
    ["client_auth", "client_id", "client_secret", "scope", "refresh_token", "token"];

/// Every key that some connector has and others have not.
pub(super) const CONNECTOR_KEYS: [&str; 6] = ["topics", "channel_life", "discovery", "url", "auth", "snapshot_url"];

impl Grant {
    /// The word of the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientCredentials => "client_credentials",
            Self::RefreshToken => "refresh_token",
            Self::Static => "static",
        }
    }

    pub(super) fn keys(self) -> Keys {
        match self {
            Self::ClientCredentials => {
                Keys { needed: &["client_id", "client_secret"], taken: &["client_auth", "scope"] }
            }
            Self::RefreshToken => {
                Keys { needed: &["client_id", "client_secret", "refresh_token"], taken: &["client_auth", "scope"] }
            }
            Self::Static => Keys { needed: &["token"], taken: &[] },
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

    pub(super) fn keys(self) -> Keys {
        match self {
            Self::Embedded => Keys { needed: &[], taken: &[] },
            Self::Redis => Keys { needed: &["url"], taken: &STORE_KEYS },
        }
    }
}

impl Connector {
    /// The word of the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GenesysNotifications => "genesys-notifications",
            Self::GenesysSequenced => "genesys-sequenced",
        }
    }

    pub(super) fn keys(self) -> Keys {
        match self {
            Self::GenesysNotifications => Keys { needed: &["topics"], taken: &["channel_life", "discovery"] },
            Self::GenesysSequenced => Keys { needed: &["url"], taken: &["auth", "snapshot_url"] },
        }
    }
}
