//! Turns a checked file into the settings of the parts: defaults that depend on other keys, URLs from regions.
//!
//! It reports no errors: the checks ran before.

use std::{path::Path, time::Duration};

use crate::{
    auth,
    connector::{Connector, genesys_notifications, genesys_sequenced},
    model::{AccountName, OverflowPolicy, SecretRef},
    network,
};

use super::{
    AccountConfig, AdminConfig, Config, Environment, HttpConfig, RedisConfig, StoreBackend, StoreConfig, StreamConfig,
    logins, proxies,
    shape::{self, ConnectorName, File, GrantKind},
};

/// The longest time from the first byte of a frame to its last. No platform needs another value.
const FRAME_TIME_MAX: Duration = Duration::from_secs(30);
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
        stream.overflow.get_or_insert(match stream.connector {
            ConnectorName::GenesysNotifications => OverflowPolicy::DropOldest,
            ConnectorName::GenesysSequenced => OverflowPolicy::Backpressure,
        });
    }
}

/// The settings of all parts, from a file that is checked and whose defaults are filled in.
pub(super) fn resolve(file: &File, environment: &Environment) -> Config {
    let vault = file.store.path.join(VAULT_DIRECTORY);
    Config {
        http: http(&file.http),
        admin: AdminConfig { listen: file.admin.listen.address(), allowed_hosts: file.admin.allowed_hosts.clone() },
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
        streams: file.streams.iter().map(|(name, from)| (name.clone(), stream(from))).collect(),
        ineffective: Vec::new(),
        warnings: Vec::new(),
    }
}

fn http(from: &shape::HttpSection) -> HttpConfig {
    let count = |count: u64| usize::try_from(count).expect("the schema bounds it");
    let network = |text: &String| text.parse().expect("its format was checked");
    HttpConfig {
        listen: from.listen.address(),
        allowed_origins: from.allowed_origins.clone(),
        allowed_hosts: from.allowed_hosts.clone(),
        connections: count(from.connections),
        connections_per_address: count(from.connections_per_address),
        trusted_proxies: from.trusted_proxies.iter().map(network).collect(),
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
            lease: from.lease.0,
            streams_max: usize::try_from(from.streams_max).expect("the schema bounds it"),
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

fn stream(from: &shape::StreamSection) -> StreamConfig {
    StreamConfig {
        account: from.account.parse().expect("the checks require an existing account"),
        connector: connector(from),
        rotation: from.rotation,
        rotation_jitter: from.rotation_jitter.0,
        retention: from.retention.0,
        buffer: usize::try_from(from.buffer).expect("the schema bounds it"),
        buffer_bytes: usize::try_from(from.buffer_bytes.0).expect("the schema bounds it"),
        overflow: from.overflow.expect("fill_defaults has set it"),
        silence_max: from.silence_max.0,
        backoff: from.backoff,
        frame_max: usize::try_from(from.frame_max.0).expect("the schema bounds it"),
        frame_time_max: FRAME_TIME_MAX,
        standby: from.standby,
    }
}

fn connector(from: &shape::StreamSection) -> Connector {
    let required = "the checks require the keys of a connector";
    match from.connector {
        ConnectorName::GenesysNotifications => Connector::Notifications(genesys_notifications::Settings {
            topics: from.topics.clone().expect(required),
            channel_life: from.channel_life.0,
            discovery: from.discovery.0,
        }),
        ConnectorName::GenesysSequenced => Connector::Sequenced(genesys_sequenced::Settings {
            url: from.url.clone().expect(required),
            placement: from.auth,
            snapshot_url: from.snapshot_url.clone(),
        }),
    }
}
