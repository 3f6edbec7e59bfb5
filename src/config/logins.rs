//! How the relay presents itself to Redis: users and passwords in the URL and beside it.

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

/// The address that the URL names; none where it cannot be read or is no address, or there is no URL.
pub(super) fn address(store: &StoreSection, environment: &Environment) -> Option<Address> {
    match store.url.as_ref()? {
        StoreUrl::Text(text) => text.parse().ok(),
        StoreUrl::Secret(secret) => read(secret, environment).ok()?.parse().ok(),
    }
}

/// What is read for each connection. An empty user is none.
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

/// The secrets beside the URL, with their keys.
pub(super) fn passwords(store: &StoreSection) -> impl Iterator<Item = (&'static str, &SecretRef)> {
    let all = [("password", &store.password), ("sentinel_password", &store.sentinel_password)];
    all.into_iter().filter_map(|(key, secret)| Some((key, secret.as_ref()?)))
}

/// What is wrong between the address and the keys beside it.
pub(super) fn mistakes(address: &Address, store: &StoreSection) -> Vec<(&'static str, &'static str)> {
    const EXPOSED: &str = "the password would travel to another machine in plain text; write rediss in place of redis, \
                           or insecure = true in the store of a closed test network";
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
        let text = "has no effect: url names no Sentinels (redis+sentinel://); take it out";
        found.extend(sentinel_username.as_ref().map(|_| ("sentinel_username", text)));
        found.extend(sentinel_password.as_ref().map(|_| ("sentinel_password", text)));
    } else if sentinel_username.is_some() && sentinel_password.is_none() {
        found.push(("sentinel_username", "needs sentinel_password = { env = \"NAME\" } or { file = \"PATH\" }"));
    }
    found
}
