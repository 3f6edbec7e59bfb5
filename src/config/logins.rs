//! Credentials for Redis: users and passwords in the URL and in separate keys.

use crate::{
    model::SecretRef,
    store::redis::{
        Credentials,
        address::{Address, Topology},
    },
};

use super::{
    Environment,
    secrets::read,
    shape::{StoreSection, StoreUrl},
};

/// The address in the URL; `None` if there is no URL, or it cannot be read or parsed.
pub(super) fn address(store: &StoreSection, environment: &Environment) -> Option<Address> {
    match store.url.as_ref()? {
        StoreUrl::Text(text) => text.parse().ok(),
        StoreUrl::Secret(secret) => read(secret, environment).ok()?.parse().ok(),
    }
}

/// The credentials, which are read for each connection. An empty user counts as none.
pub(super) fn credentials(store: &StoreSection) -> Credentials {
    let user = |user: &Option<String>| user.clone().filter(|user| !user.is_empty());
    Credentials {
        url: match &store.url {
            Some(StoreUrl::Secret(secret)) => Some(secret.clone()),
            Some(StoreUrl::Text(_)) | None => None,
        },
        username: user(&store.username),
        password: store.password.clone(),
        sentinel_username: user(&store.sentinel_username),
        sentinel_password: store.sentinel_password.clone(),
        insecure: store.insecure,
    }
}

/// The secrets outside the URL, with their keys.
pub(super) fn passwords(store: &StoreSection) -> impl Iterator<Item = (&'static str, &SecretRef)> {
    let all = [("password", &store.password), ("sentinel_password", &store.sentinel_password)];
    all.into_iter().filter_map(|(key, secret)| Some((key, secret.as_ref()?)))
}

/// Errors between the address and the credential keys, as key and message.
pub(super) fn mistakes(address: &Address, store: &StoreSection) -> Vec<(&'static str, &'static str)> {
    const EXPOSED: &str = "the password is sent to another machine in plain text; write rediss in place of redis, \
                           or set insecure = true in the store (closed test networks only)";
    let Credentials { username, password, sentinel_username, sentinel_password, insecure, .. } = credentials(store);
    let mut found = Vec::new();
    let in_url = address.password.is_some();
    let presented =
        [(in_url, "url"), (password.is_some(), "password"), (sentinel_password.is_some(), "sentinel_password")];
    if !insecure && !address.tls && !address.is_loopback() {
        found.extend(presented.into_iter().find(|(is, _)| *is).map(|(_, key)| (key, EXPOSED)));
    }
    if username.is_some() && !in_url && password.is_none() {
        found.push((
            "username",
            "has no effect without a password; add password = { env = \"NAME\" } or { file = \"PATH\" }",
        ));
    }
    if address.topology == Topology::Single || address.topology == Topology::Cluster {
        let text = "has no effect: url has no Sentinels (redis+sentinel://); remove it";
        found.extend(sentinel_username.as_ref().map(|_| ("sentinel_username", text)));
        found.extend(sentinel_password.as_ref().map(|_| ("sentinel_password", text)));
    } else if sentinel_username.is_some() && sentinel_password.is_none() {
        found.push(("sentinel_username", "needs sentinel_password = { env = \"NAME\" } or { file = \"PATH\" }"));
    }
    found
}
