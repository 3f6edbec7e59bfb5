//! Checks that every secret can be read and is not empty, and that the encryption key is valid. The values are not
//! kept.

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

/// The maximum size of a secret file in bytes.
const SECRET_LEN_MAX: u64 = 64 << 10;

const NOT_ONE_LINE: &str = "contains more than one line, or a control character; a secret is one line of text";

/// Reports every secret that cannot be read.
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
    if let Some(secret) = &file.admin.token
        && let Err(text) = read(secret, environment)
    {
        let path = KeyPath::of(&["admin", "token"]);
        findings.push(Finding::new(location_of(tree, &path), path, text));
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

/// Errors of the secrets of a Redis store, as key and message.
fn store(store: &StoreSection, environment: &Environment) -> Vec<(&'static str, String)> {
    let looked = logins::passwords(store).map(|(key, secret)| (key, read(secret, environment)));
    let mut found: Vec<_> = looked.filter_map(|(key, looked)| Some((key, looked.err()?))).collect();
    let Some(StoreUrl::Secret(secret)) = &store.url else { return found };
    match read(secret, environment).map(|text| text.parse::<Address>()) {
        Err(text) => found.push(("url", text)),
        Ok(Err(error)) => found.push(("url", format!("{} is not a valid URL: {error}", describe(secret)))),
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

/// Checks the encryption key, so that an invalid one is reported before the start.
fn check_seal_key(from: &SecretRef, text: &str) -> Result<(), String> {
    let key = Seal::read(&Secret::new(text));
    key.map(drop).map_err(|error| format!("{} is not a valid key: {error}", describe(from)))
}

pub(super) fn describe(secret: &SecretRef) -> String {
    match secret {
        SecretRef::Env(name) => format!("the environment variable {name}"),
        SecretRef::File(path) => format!("the file {}", path.display()),
    }
}

/// Reads the secret, which is one line. The error never contains its value.
pub(super) fn read(secret: &SecretRef, environment: &Environment) -> Result<String, String> {
    let text = read_lines(secret, environment)?;
    match Secret::has_control_characters(&text) {
        true => Err(format!("{} {NOT_ONE_LINE}", describe(secret))),
        false => Ok(text),
    }
}

/// Reads a secret that may have several lines. The error never contains its value.
pub(super) fn read_lines(secret: &SecretRef, environment: &Environment) -> Result<String, String> {
    match secret {
        SecretRef::Env(name) => variable(name, environment),
        SecretRef::File(path) => file(path),
    }
}

/// An invalid name is not shown, because it is probably the secret itself.
fn variable(name: &str, environment: &Environment) -> Result<String, String> {
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(
            "env must be the name of an environment variable (its value is not shown, because it may be a secret)"
                .to_owned(),
        );
    }
    match environment.get(name).map(Secret::trimmed) {
        None if environment.is_unreadable(name) => Err(format!("the environment variable {name} is not UTF-8 text")),
        None => Err(format!("the environment variable {name} is not set")),
        Some("") => Err(format!("the environment variable {name} is empty")),
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
        return Err(format!("the file {shown} is larger than 64 KiB; a secret is one line of text"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("the file {shown} cannot be read: {error}"))?;
    match Secret::trimmed(&text) {
        "" => Err(format!("the file {shown} is empty")),
        secret => Ok(secret.to_owned()),
    }
}
