//! Turns a checked file into the settings of the parts: defaults that depend on other keys, URLs from regions.
//!
//! It reports no errors: the checks ran before.

use std::path::Path;

use crate::{
    auth,
    model::{AccountName, SecretRef},
    network,
};

use super::{
    AccountConfig, Config, Environment, RedisConfig, StoreBackend, StoreConfig, StreamConfig, logins, proxies,
    shape::{self, File, GrantKind},
    stream::StreamSection,
};

/// Rotated refresh tokens are stored next to the log, because both must survive a restart.
const VAULT_DIRECTORY: &str = "vault";

/// Fills in the defaults that depend on other keys, so that the effective configuration shows them.
pub(super) fn fill_defaults(file: &mut File) {
    for account in file.accounts.values_mut() {
        if let Some(region) = &account.region {
            let api_url = || format!("https://api.{region}");
            let token_url = || format!("https://login.{region}/oauth/token");
            account.api_url.get_or_insert_with(api_url);
            if account.grant != GrantKind::Static {
                account.token_url.get_or_insert_with(token_url);
            }
        }
    }
    for stream in file.streams.values_mut() {
        stream.head.overflow.get_or_insert(stream.connector.overflow_default());
    }
}

/// The settings of all parts, from a file that is checked and whose defaults are filled in.
pub(super) fn resolve(file: &File, environment: &Environment) -> Config {
    let vault = file.store.path.join(VAULT_DIRECTORY);
    Config {
        http: file.http.clone(),
        admin: file.admin.clone(),
        store: StoreConfig {
            kind: store(&file.store, environment),
            path: file.store.path.clone(),
            retention: file.store.retention,
        },
        accounts: file
            .accounts
            .iter()
            .map(|(name, from)| (name.clone(), account(name, from, &vault, environment)))
            .collect(),
        key_network: network::Settings {
            proxies: proxies::of_environment(environment),
            insecure: file.http.auth.as_ref().is_some_and(|auth| auth.jwt.insecure),
        },
        streams: file.streams.iter().map(|(name, from)| (name.clone(), stream(from))).collect(),
        consumers: file.consumers.clone(),
        ineffective: Vec::new(),
        warnings: Vec::new(),
    }
}

fn store(from: &shape::StoreSection, environment: &Environment) -> StoreBackend {
    match from.kind {
        shape::StoreKind::Embedded => StoreBackend::Embedded,
        shape::StoreKind::Redis => StoreBackend::Redis(Box::new(RedisConfig {
            address: logins::address(from, environment).expect("the checks require a URL"),
            credentials: logins::credentials(from),
            prefix: from.prefix.clone(),
            durability: from.durability,
            lease: from.lease,
            streams_max: from.streams_max,
            seal_key: from.seal_key.clone(),
        })),
    }
}

fn account(name: &AccountName, from: &shape::AccountSection, vault: &Path, environment: &Environment) -> AccountConfig {
    AccountConfig {
        platform: from.platform,
        api_url: from.api_url.clone(),
        auth: auth::Settings {
            account: name.clone(),
            grant: grant(from),
            token_url: from.token_url.clone().unwrap_or_default(),
            scope: from.scope.clone(),
            refresh_buffer: from.refresh_buffer.0,
            refresh_interval_min: from.refresh_interval_min.0,
            refresh_jitter: from.refresh_jitter.0,
            lifetime_default: from.lifetime_default.0,
            refresh_token_dir: vault.to_owned(),
        },
        network: network::Settings {
            proxies: proxies::of(from, environment).expect("the checks reject an invalid proxy"),
            insecure: from.insecure,
        },
    }
}

fn grant(from: &shape::AccountSection) -> auth::Grant {
    let present = |secret: &Option<SecretRef>| secret.clone().expect("the checks require the keys of a grant");
    let client = || auth::OAuthClient {
        id: present(&from.client_id),
        secret: present(&from.client_secret),
        placement: from.client_auth,
    };
    match from.grant {
        GrantKind::ClientCredentials => auth::Grant::ClientCredentials(client()),
        GrantKind::RefreshToken => {
            auth::Grant::RefreshToken { client: client(), refresh_token: present(&from.refresh_token) }
        }
        GrantKind::Static => auth::Grant::Static { token: present(&from.token) },
    }
}

fn stream(from: &StreamSection) -> StreamConfig {
    StreamConfig {
        account: from.head.account.parse().expect("the checks require an existing account"),
        connector: from.connector.clone(),
        overflow: from.head.overflow.expect("fill_defaults has set it"),
        keys: from.keys.clone(),
    }
}
