//! Whether every secret can be found. It reads them to see that they are not empty (and one that seals, that it is a
//! key), and forgets them at once.

use std::{fs, path::Path};

use config::Value;

use crate::{
    auth::seal::Seal,
    model::{Secret, SecretRef},
};

use super::{
    Environment,
    finding::{Finding, KeyPath},
    shape::{Account, File, StoreKind},
    source::place_of,
};

/// A larger file is no secret.
const SECRET_LEN_MAX: u64 = 64 << 10;

/// A finding for every secret that is not there.
pub(super) fn check(tree: &Value, file: &File, environment: &Environment) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (StoreKind::Redis, Some(secret)) = (file.store.kind, &file.store.seal_key)
        && let Err(text) = look(secret, environment).and_then(|text| seals(secret, &text))
    {
        let path = KeyPath::of(&["store", "seal_key"]);
        findings.push(Finding::new(place_of(tree, &path), path, text));
    }
    for (name, account) in &file.accounts {
        for (key, secret) in secrets(account) {
            if let Err(text) = look(secret, environment) {
                let path = KeyPath::of(&["accounts", name.as_str(), key]);
                findings.push(Finding::new(place_of(tree, &path), path, text));
            }
        }
    }
    findings
}

/// The secrets that the account's grant uses.
fn secrets(account: &Account) -> impl Iterator<Item = (&'static str, &SecretRef)> {
    let all = [
        ("client_id", &account.client_id),
        ("client_secret", &account.client_secret),
        ("refresh_token", &account.refresh_token),
        ("token", &account.token),
    ];
    let keys = account.grant.keys();
    all.into_iter().filter(move |(key, _)| keys.has(key)).filter_map(|(key, secret)| Some((key, secret.as_ref()?)))
}

/// What seals has a shape, and one that is none is seen before the start.
fn seals(from: &SecretRef, text: &str) -> Result<(), String> {
    let place = match from {
        SecretRef::Env(name) => format!("the environment variable {name}"),
        SecretRef::File(path) => format!("the file {}", path.display()),
    };
    Seal::read(&Secret::new(text)).map(drop).map_err(|error| format!("{place} holds no key: {error}"))
}

/// The secret itself.
fn look(secret: &SecretRef, environment: &Environment) -> Result<String, String> {
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
        return Err(format!("the file {shown} is larger than 64 KiB: not a secret"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("the file {shown} cannot be read: {error}"))?;
    match Secret::trimmed(&text) {
        "" => Err(format!("the file {shown} is empty")),
        secret => Ok(secret.to_owned()),
    }
}
