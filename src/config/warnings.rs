//! Warnings about settings that work but are probably not intended: `check` prints them and `run` logs them.

use std::collections::BTreeSet;

use config::{Value, ValueKind};

use super::{
    Environment,
    finding::{Finding, KeyPath, SourceLocation},
    source::{OVERRIDE_PREFIX, find, location_of},
};
use crate::{listener::IpNetwork, model::nearest, store::redis::address::Address};

/// The prefix of all variables of Trunkline.
const OWN_PREFIX: &str = "TRUNKLINE_";
/// Variables that commands read directly.
const OWN_VARIABLES: [&str; 3] = ["TRUNKLINE_LOG", "TRUNKLINE_TOKEN", "TRUNKLINE_COMMIT"];

/// All warnings about a valid configuration.
pub(super) fn warnings(tree: &Value, environment: &Environment) -> Vec<Finding> {
    let mut found = unknown_variables(tree, environment);
    found.extend(plain_text_password(tree));
    found.extend(all_proxies_trusted(tree));
    found
}

/// Warns of a block of trusted proxies that contains all addresses.
fn all_proxies_trusted(tree: &Value) -> Vec<Finding> {
    let path = KeyPath::of(&["http", "trusted_proxies"]);
    let Some(ValueKind::Array(items)) = find(tree, &path).map(|value| &value.kind) else { return Vec::new() };
    let blocks = items.iter().map(ToString::to_string).filter(|text| text.parse().is_ok_and(IpNetwork::is_everything));
    let finding = |block: String| {
        let text = format!("{block:?} contains all addresses: every client can send a false client address");
        Finding::new(location_of(tree, &path), path.clone(), text)
    };
    blocks.map(finding).collect()
}

/// Warns of a password in the store's URL, without showing it.
fn plain_text_password(tree: &Value) -> Option<Finding> {
    const ADVICE: &str = "contains a password in plain text; remove the login from url, and set username and \
                          password = { env = \"NAME\" } or { file = \"PATH\" }";
    let path = KeyPath::of(&["store", "url"]);
    let ValueKind::String(url) = &find(tree, &path)?.kind else { return None };
    let address: Address = url.parse().ok()?;
    address.password.map(|_| Finding::new(location_of(tree, &path), path, ADVICE))
}

/// Warns of variables with the prefix of Trunkline and without effect. They are not errors: a container may have other
/// variables with this prefix, as Kubernetes sets them for a service of that name.
fn unknown_variables(tree: &Value, environment: &Environment) -> Vec<Finding> {
    let mut known = BTreeSet::from(OWN_VARIABLES.map(str::to_owned));
    secret_variables(tree, &mut known);
    let unknown = environment.names().filter(|name| {
        name.starts_with(OWN_PREFIX)
            && !name.starts_with(OVERRIDE_PREFIX)
            && !known.contains(*name)
            && !is_service_link(name)
    });
    unknown
        .map(|name| Finding::new(Some(SourceLocation::whole(name)), KeyPath::default(), advice(name, &known)))
        .collect()
}

fn advice(name: &str, known: &BTreeSet<String>) -> String {
    if let Some(near) = near(name, known) {
        return format!("unknown variable, ignored; did you mean {near}?");
    }
    let keys = name[OWN_PREFIX.len()..].trim_matches('_').replace("__", "_").replace('_', "__");
    format!("unknown variable, ignored; overrides need two underscores between keys, as in {OVERRIDE_PREFIX}{keys}")
}

/// The known variable that was probably intended. The common prefix is not compared.
fn near(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let bare = |name: &str| name.strip_prefix(OWN_PREFIX).unwrap_or(name).to_owned();
    let names: Vec<String> = known.iter().map(|name| bare(name)).collect();
    let near = nearest(&bare(name), names.iter().map(String::as_str))?;
    known.iter().find(|name| bare(name) == near).cloned()
}

/// Collects the variables that the configuration reads secrets from.
fn secret_variables(value: &Value, names: &mut BTreeSet<String>) {
    let ValueKind::Table(table) = &value.kind else { return };
    for (key, value) in table {
        if let ("env", ValueKind::String(name)) = (key.as_str(), &value.kind) {
            names.insert(name.clone());
        }
        secret_variables(value, names);
    }
}

/// Kubernetes sets variables of these forms in pods for each service of the namespace.
fn is_service_link(name: &str) -> bool {
    let mut parts = name.split('_').skip_while(|part| *part != "PORT").skip(1);
    let has_port = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.ends_with("_PORT") || has_port
}

#[cfg(test)]
mod tests {
    use crate::config::from_text;

    #[test]
    fn a_variable_without_effect_is_reported_and_one_that_is_used_is_not() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/genesys-cloud.toml")).unwrap();
        let text = text.replace("GENESYS_CLIENT_SECRET", "TRUNKLINE_CLIENT_SECRET");
        let warned = |name: &str| {
            let used = [("GENESYS_CLIENT_ID", "id"), ("TRUNKLINE_CLIENT_SECRET", "x"), ("TRUNKLINE_LOG", "info")];
            let environment = used.into_iter().chain([(name, "1")]).collect();
            let config = from_text("t.toml", &text, &environment).unwrap_or_else(|wrong| panic!("{wrong}"));
            config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let override_of = "unknown variable, ignored; overrides need two underscores between keys, as in";
        for (name, text) in [
            ("TRUNKLINE_STREAMS_QUEUES_X", format!("{override_of} TRUNKLINE__STREAMS__QUEUES__X")),
            ("TRUNKLINE_HTTP_LISTEN", format!("{override_of} TRUNKLINE__HTTP__LISTEN")),
            ("TRUNKLINE_LOGS", "unknown variable, ignored; did you mean TRUNKLINE_LOG?".to_owned()),
        ] {
            assert_eq!(warned(name), [format!("{name}: {text}")]);
        }
        for name in [
            "TRUNKLINE_SERVICE_HOST",
            "TRUNKLINE_SERVICE_PORT_HTTP",
            "TRUNKLINE_PORT",
            "TRUNKLINE_PORT_8080_TCP_ADDR",
            "TRUNKLINE_REDIS_PORT_6379_TCP",
            "OTHER_STREAMS_X",
        ] {
            assert_eq!(warned(name), [""; 0], "{name}");
        }
    }
}
