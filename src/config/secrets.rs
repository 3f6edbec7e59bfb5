//! Whether every secret can be found. It reads them to see that they are not empty (and one that seals, that it is a
//! key), and forgets them at once.

use std::{fs, path::Path};

use config::Value;

use crate::{
    auth::seal::Seal,
    model::{Secret, SecretRef},
    store::redis::address::Address,
};

use super::{
    Environment,
    finding::{Finding, KeyPath},
    logins,
    shape::{AccountSection, File, StoreKind, StoreSection, StoreUrl},
    source::location_of,
};

/// A larger file is no secret.
const SECRET_LEN_MAX: u64 = 64 << 10;

const NOT_ONE_LINE: &str = "holds more than one line, or a control character; a secret is one line of text";

/// A finding for every secret that is not there.
pub(super) fn check(tree: &Value, file: &File, environment: &Environment) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (StoreKind::Redis, Some(secret)) = (file.store.kind, &file.store.seal_key)
        && let Err(text) = read(secret, environment).and_then(|text| check_seal_key(secret, &text))
    {
        let path = KeyPath::of(&["store", "seal_key"]);
        findings.push(Finding::new(location_of(tree, &path), path, text));
    }
    if file.store.kind == StoreKind::Redis {
        for (key, text) in store(&file.store, environment) {
            let path = KeyPath::of(&["store", key]);
            findings.push(Finding::new(location_of(tree, &path), path, text));
        }
    }
    for (name, account) in &file.accounts {
        for (key, secret) in secrets(account) {
            if let Err(text) = read(secret, environment) {
                let path = KeyPath::of(&["accounts", name.as_str(), key]);
                findings.push(Finding::new(location_of(tree, &path), path, text));
            }
        }
    }
    findings
}

/// What is wrong with the secrets of a store in Redis, by their keys.
fn store(store: &StoreSection, environment: &Environment) -> Vec<(&'static str, String)> {
    let looked = logins::passwords(store).map(|(key, secret)| (key, read(secret, environment)));
    let mut found: Vec<_> = looked.filter_map(|(key, looked)| Some((key, looked.err()?))).collect();
    let Some(StoreUrl::Secret(secret)) = &store.url else { return found };
    match read(secret, environment).map(|text| text.parse::<Address>()) {
        Err(text) => found.push(("url", text)),
        Ok(Err(error)) => found.push(("url", format!("{} holds no address: {error}", describe(secret)))),
        Ok(Ok(address)) => {
            found.extend(logins::mistakes(&address, store).into_iter().map(|(key, text)| (key, text.to_owned())));
        }
    }
    found
}

/// The secrets that the account's grant uses.
fn secrets(account: &AccountSection) -> impl Iterator<Item = (&'static str, &SecretRef)> {
    let all = [
        ("client_id", &account.client_id),
        ("client_secret", &account.client_secret),
        ("refresh_token", &account.refresh_token),
        ("token", &account.token),
    ];
    let keys = account.grant.keys();
    all.into_iter().filter(move |(key, _)| keys.contains(key)).filter_map(|(key, secret)| Some((key, secret.as_ref()?)))
}

/// What seals has a shape, and one that is none is seen before the start.
fn check_seal_key(from: &SecretRef, text: &str) -> Result<(), String> {
    let key = Seal::read(&Secret::new(text));
    key.map(drop).map_err(|error| format!("{} holds no key: {error}", describe(from)))
}

fn describe(secret: &SecretRef) -> String {
    match secret {
        SecretRef::Env(name) => format!("the environment variable {name}"),
        SecretRef::File(path) => format!("the file {}", path.display()),
    }
}

/// The secret itself.
pub(super) fn read(secret: &SecretRef, environment: &Environment) -> Result<String, String> {
    match secret {
        SecretRef::Env(name) => variable(name, environment),
        SecretRef::File(path) => file(path),
    }
}

/// A name that is none is not shown: it is probably the secret itself.
fn variable(name: &str, environment: &Environment) -> Result<String, String> {
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err("env is not the name of an environment variable (not shown here)".to_owned());
    }
    match environment.get(name).map(Secret::trimmed) {
        None if environment.is_unreadable(name) => Err(format!("the environment variable {name} is not UTF-8 text")),
        None => Err(format!("the environment variable {name} is not set")),
        Some("") => Err(format!("the environment variable {name} is empty")),
        Some(text) if Secret::has_control_characters(text) => {
            Err(format!("the environment variable {name} {NOT_ONE_LINE}"))
        }
        Some(text) => Ok(text.to_owned()),
    }
}

fn file(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let about = fs::metadata(path).map_err(|error| format!("the file {shown} cannot be read: {error}"))?;
    if !about.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    if about.len() > SECRET_LEN_MAX {
        return Err(format!("the file {shown} is larger than 64 KiB: not a secret"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("the file {shown} cannot be read: {error}"))?;
    match Secret::trimmed(&text) {
        "" => Err(format!("the file {shown} is empty")),
        text if Secret::has_control_characters(text) => Err(format!("the file {shown} {NOT_ONE_LINE}")),
        secret => Ok(secret.to_owned()),
    }
}
