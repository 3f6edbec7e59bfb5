//! `[http.auth]`: how consumers authenticate, read without the rest of the configuration.
//!
//! `trunkline token mint` needs only this section, and not the secrets of accounts and store.

use std::path::PathBuf;

use config::{Map, Value, ValueKind};

use super::{
    Environment,
    finding::{Finding, Findings, KeyPath},
    schema::schema,
    secrets,
    source::{self, find, location_of},
    walk::walk,
};
use crate::{
    downstream::server::access::{self, KeySource},
    model::Secret,
};

/// Reads and checks `[http.auth]`, including its keys. Later files override earlier ones, and the environment overrides
/// all.
///
/// # Errors
///
/// All errors of the section, or its absence.
pub fn consumer_auth(files: &[PathBuf], environment: &Environment) -> Result<access::Settings, Findings> {
    let schema = schema();
    let tree = source::merge(super::parse(&super::read(files)?)?, environment, &schema);
    let path = KeyPath::of(&["http", "auth"]);
    let Some(section) = find(&tree, &path) else {
        let text = "is required to issue tokens; write [http.auth] with jwt";
        return Err(Findings::of(vec![Finding::new(None, path, text)]));
    };
    let alone = table("http", table("auth", section.clone()));
    Findings::into_result(walk(&alone, &schema).findings, ())?;
    let settings: access::Settings = section.clone().try_deserialize().map_err(|error| {
        Findings::of(vec![Finding::new(location_of(&tree, &path), path.clone(), format!("could not be read: {error}"))])
    })?;
    Findings::into_result(check(&tree, &settings, environment), settings)
}

/// Reports errors between the keys of the section, and keys that cannot be read or used.
pub(super) fn check(tree: &Value, settings: &access::Settings, environment: &Environment) -> Vec<Finding> {
    let mistakes = settings.mistakes(has_origins(tree)).into_iter().chain(key_mistakes(settings, environment));
    let finding = |(key, text): (&str, String)| {
        let path = key.split('.').fold(KeyPath::of(&["http", "auth"]), |path, key| path.join(key));
        Finding::new(location_of(tree, &path), path, text)
    };
    mistakes.map(finding).collect()
}

fn table(key: &str, value: Value) -> Value {
    let mut table = Map::new();
    table.insert(key.to_owned(), value);
    Value::new(None, ValueKind::Table(table))
}

fn has_origins(tree: &Value) -> bool {
    let origins = find(tree, &KeyPath::of(&["http", "allowed_origins"]));
    origins.is_some_and(|origins| matches!(&origins.kind, ValueKind::Array(origins) if !origins.is_empty()))
}

/// Keys that cannot be read or used. The texts never contain a key.
fn key_mistakes(settings: &access::Settings, environment: &Environment) -> Vec<(&'static str, String)> {
    let mut mistakes = Vec::new();
    match settings.jwt.source() {
        Some(KeySource::Hmac(secret)) => {
            let text = secrets::read(&secret, environment);
            let checked = text.and_then(|text| {
                access::check_secret(&Secret::new(text))
                    .map_err(|error| format!("{}: {error}", secrets::describe(&secret)))
            });
            mistakes.extend(checked.err().map(|text| ("jwt.hmac", text)));
        }
        Some(KeySource::PublicKey { public, signing }) => {
            let checked = secrets::read_lines(&public, environment).and_then(|pem| {
                access::check_public_key(&pem).map_err(|error| format!("{}: {error}", secrets::describe(&public)))
            });
            mistakes.extend(checked.err().map(|text| ("jwt.public_key", text)));
            let signing = signing.and_then(|signing| secrets::read_lines(&signing, environment).err());
            mistakes.extend(signing.map(|text| ("jwt.signing_key", text)));
        }
        // `Settings::mistakes` reports a missing source.
        Some(KeySource::Jwks { .. }) | None => (),
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECRET: &str = "canary-secret-0123456789-abcdefghi";

    #[expect(clippy::unwrap_in_result, reason = "a broken fixture ends the test")]
    fn load(section: &str) -> Result<access::Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("short"), "canary").unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, section.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
        let environment = Environment::of([("KEY".into(), SECRET.into())]);
        let name = format!("{}/", folder.path().display());
        consumer_auth(&[path], &environment).map_err(|findings| findings.to_string().replace(&name, ""))
    }

    #[test]
    fn the_section_is_read_without_the_rest() {
        let text = r#"
[http]
listen = "0.0.0.0:8080"
allowed_origins = ["https://dash.example.com"]
[http.auth]
jwt = { hmac = { env = "KEY" } }
audience = "trunkline"
cookie = "trunkline"
bind = ["address", "user-agent"]
idle_max = "15m"
limits = { connections = 0, bytes_per_second = "0" }
[accounts.acme]
client_secret = { env = "NOT_SET" }
"#;
        let settings = load(text).unwrap();
        assert_eq!(settings.audience.as_deref(), Some("trunkline"));
        assert_eq!(settings.bind.len(), 2);
        assert_eq!(settings.idle_max.as_secs(), 900);
        assert_eq!((settings.limits.connections, settings.limits.streams), (0, 64));
        assert!(settings.first_message);
    }

    #[test]
    fn each_mistake_names_file_line_key_and_what_is_expected() {
        for (section, expected) in [
            ("[http]", "http.auth: is required to issue tokens"),
            ("[http.auth]\n", "a.toml:1: http.auth.jwt: is required"),
            ("[http.auth]\njwt = {}", "a.toml:2: http.auth.jwt: needs one of hmac, public_key and jwks_url"),
            ("[http.auth]\njwt = { hmac = \"canary\" }", "http.auth.jwt.hmac: a secret must not be in the file"),
            ("[http.auth]\njwt = { hmac = { env = \"NONE\" } }", "variable NONE is not set"),
            (
                "[http.auth]\njwt = { hmac = { file = \"FOLDER/short\" } }",
                "expected a secret of at least 32 bytes, found 6",
            ),
            ("[http.auth]\njwt = { public_key = { file = \"FOLDER/short\" } }", "expected a public key in PEM"),
            ("[http.auth]\njwt = { jwks_uri = \"https://a.test\" }", "unknown key; did you mean jwks_url?"),
            ("[http.auth]\njwt = { jwks_url = \"http://a.test\" }", "http.auth.jwt.jwks_url: http lets others"),
            (
                "[http.auth]\njwt = { hmac = { env = \"KEY\" } }\ncookie = \"a\"",
                "http.auth.cookie: requires http.allowed_origins",
            ),
            (
                "[http.auth]\njwt = { hmac = { env = \"KEY\" } }\nbind = [\"ip\"]",
                "item 1: expected one of address, user-agent",
            ),
            ("[http.auth]\njwt = { hmac = { env = \"KEY\" } }\nidle_max = \"31d\"", "\"31d\" is above the maximum"),
            ("[http.auth]\njwt = { hmac = { env = \"KEY\" } }\nlimits = { streams = -1 }", "below the minimum"),
        ] {
            let found = load(section).unwrap_err();
            assert!(found.contains(expected) && !found.contains("canary"), "{section}\n{found}");
        }
    }
}
