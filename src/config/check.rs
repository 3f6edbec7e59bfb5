//! Checks between keys: references, required keys of a grant or connector, listeners, plain-text credentials.
//!
//! `walk` has checked each single value. The tree, not the struct, shows whether a key is set: an invalid value must
//! not also be reported as missing.

use config::{Value, ValueKind};
use reqwest::Url;

use crate::{
    connector::{AccountContext, CheckContext, Connector, DialectKeys, SettingFinding, SettingKey, Severity},
    downstream::consumers,
    model::{Span, nearest},
    network::proxy::is_loopback,
};

use super::{
    finding::{Finding, KeyPath, SourceLocation},
    keys::{GRANT_KEYS, RelevantKeys, STORE_KEYS},
    listen::ListenAddress,
    logins,
    shape::{AccountSection, File, GrantKind, PlatformKind, StoreKind, StoreSection, StoreUrl},
    source::{child, find, location_of, table},
    stream::StreamSection,
};

/// The results of the checks between keys.
#[derive(Debug, Default)]
pub(super) struct CheckFindings {
    /// The daemon does not start with these.
    pub(super) mistakes: Vec<Finding>,
    /// Settings that cannot work; the rest of the configuration works without them.
    pub(super) ineffective: Vec<Finding>,
}

/// Checks the keys against each other. `tree` is the merged input, `file` the part of it that could be parsed.
pub(super) fn check(tree: &Value, file: &File) -> CheckFindings {
    let mut check = ConfigCheck { tree, findings: CheckFindings::default() };
    check.listeners(file);
    check.store(&file.store);
    check.require_a_stream();
    for (name, account) in &file.accounts {
        check.account(&KeyPath::of(&["accounts", name.as_str()]), account);
    }
    for (name, stream) in &file.streams {
        check.stream(&KeyPath::of(&["streams", name.as_str()]), stream, file);
    }
    for (name, consumer) in &file.consumers {
        check.consumer(&KeyPath::of(&["consumers", name.as_str()]), consumer);
    }
    check.findings
}

struct ConfigCheck<'a> {
    tree: &'a Value,
    findings: CheckFindings,
}

impl ConfigCheck<'_> {
    fn add_mistake(&mut self, path: KeyPath, text: impl Into<String>) {
        self.findings.mistakes.push(Finding::new(location_of(self.tree, &path), path, text));
    }

    fn add_ineffective(&mut self, path: KeyPath, text: impl Into<String>) {
        self.findings.ineffective.push(Finding::new(location_of(self.tree, &path), path, text));
    }

    fn is_set(&self, path: &KeyPath) -> bool {
        find(self.tree, path).is_some()
    }

    fn listeners(&mut self, file: &File) {
        let (http, admin) = (&file.http.listen, &file.admin.listen);
        if file.http.auth.is_none() {
            let text = "and consumers do not authenticate; configure [http.auth], or write";
            self.exposed_listener("http", http, text);
        }
        if file.admin.token.is_none() {
            self.exposed_listener("admin", admin, "and operators have no token; configure admin.token, or write");
        }
        if http.overlaps(admin) {
            let text = format!("{admin} is already used by http.listen; use another port");
            self.add_mistake(KeyPath::of(&["admin", "listen"]), text);
        }
    }

    fn exposed_listener(&mut self, section: &str, listen: &ListenAddress, text: &str) {
        let Some(exposed) = listen.exposed() else { return };
        let written = listen.to_string();
        let shown = if written == exposed.to_string() { written } else { format!("{written} ({})", exposed.ip()) };
        let port = exposed.port();
        let text = format!("{shown} is reachable from other machines, {text} \"127.0.0.1:{port}\"");
        self.add_mistake(KeyPath::of(&[section, "listen"]), text);
    }

    fn store(&mut self, store: &StoreSection) {
        let path = KeyPath::of(&["store"]);
        let kind = find(self.tree, &path.join("kind")).map(ToString::to_string);
        if kind.is_some_and(|kind| kind != store.kind.name()) {
            // The invalid kind is reported already, and the default in its place is not what the user meant.
            return;
        }
        self.keys(&path, &STORE_KEYS, &store.kind.keys(), &format!("kind {}", store.kind.name()));
        // A URL in a variable or file is checked together with the secrets.
        if let Some(StoreUrl::Text(url)) = &store.url
            && let Ok(address) = url.parse()
        {
            for (key, text) in logins::mistakes(&address, store) {
                self.add_mistake(path.join(key), text);
            }
        }
    }

    fn require_a_stream(&mut self) {
        let written = child(self.tree, "streams");
        if written.is_none_or(|streams| table(streams).is_some_and(|names| names.is_empty())) {
            self.add_mistake(
                KeyPath::of(&["streams"]),
                "no stream is configured; add [streams.NAME] with account and connector",
            );
        }
    }

    fn account(&mut self, path: &KeyPath, account: &AccountSection) {
        self.keys(path, &GRANT_KEYS, &account.grant.keys(), &format!("grant {}", account.grant.name()));
        self.addresses(path, account);
        for (key, url) in [("token_url", &account.token_url), ("api_url", &account.api_url)] {
            self.transport(path.join(key), url.as_deref(), account.insecure);
        }
    }

    /// Reports keys that have no effect with this choice, and missing keys that it requires.
    fn keys(&mut self, path: &KeyPath, all: &[&str], own: &RelevantKeys<'_>, choice: &str) {
        for key in all.iter().filter(|key| !own.contains(key)) {
            if self.is_set(&path.join(key)) {
                self.add_mistake(path.join(key), format!("has no effect with {choice}; remove it"));
            }
        }
        for key in own.required {
            if !self.is_set(&path.join(key)) {
                self.add_mistake(path.join(key), format!("is required by {choice}"));
            }
        }
    }

    fn addresses(&mut self, path: &KeyPath, account: &AccountSection) {
        let written = |key| self.is_set(&path.join(key));
        let (region, token_url, api_url) = (written("region"), written("token_url"), written("api_url"));
        let token_url_missing = !token_url && account.grant != GrantKind::Static;
        match account.platform {
            PlatformKind::GenesysCloud if !region && (token_url_missing || !api_url) => {
                let others = if account.grant == GrantKind::Static { "api_url" } else { "token_url and api_url" };
                self.add_mistake(path.join("region"), format!("is required, or set {others}"));
            }
            PlatformKind::Generic if region => {
                self.add_mistake(
                    path.join("region"),
                    "has no effect with platform generic; write token_url and api_url",
                );
            }
            PlatformKind::Generic if token_url_missing => {
                self.add_mistake(path.join("token_url"), "is required by platform generic");
            }
            PlatformKind::GenesysCloud | PlatformKind::Generic => (),
        }
    }

    fn transport(&mut self, path: KeyPath, url: Option<&str>, insecure: bool) {
        let Some(url) = url.and_then(|url| Url::parse(url).ok()) else { return };
        let plain = matches!(url.scheme(), "http" | "ws");
        if plain && !is_loopback(&url) && !insecure {
            let text = format!(
                "{0} sends credentials to another machine in plain text; write {0}s, \
                 or set insecure = true in the account (closed test networks only)",
                url.scheme()
            );
            self.add_mistake(path, text);
        }
    }

    fn stream(&mut self, path: &KeyPath, stream: &StreamSection, file: &File) {
        self.account_of(path, &stream.head.account);
        self.connector_keys(path, stream.dialect);
        if let Some((key, text)) = stream.keys.backoff.mistake() {
            self.add_mistake(path.join("backoff").join(key), text);
        }
        let named = |name: &str| name == stream.head.account;
        let account = file.accounts.iter().find(|(name, _)| named(name.as_str())).map(|(_, account)| account);
        self.connector(path, stream, account);
        if stream.keys.standby && file.store.kind == StoreKind::Embedded {
            let text =
                "has no effect with store kind embedded: a standby is another replica, and replicas need a Redis";
            self.add_ineffective(path.join("standby"), text);
        }
        let insecure = account.is_none_or(|account| account.insecure);
        let settings = stream.connector.settings();
        let is_url = |schema: &serde_json::Value| matches!(schema["format"].as_str(), Some("ws-url" | "http-url"));
        for (key, _) in stream.dialect.keys().filter(|(_, schema)| is_url(schema)) {
            self.transport(path.join(key), settings[key].as_str(), insecure);
        }
    }

    fn connector_keys(&mut self, path: &KeyPath, dialect: &DialectKeys) {
        let keys = |dialect: &'static DialectKeys| dialect.keys().map(|(key, _)| key);
        let all: Vec<_> = Connector::dialects().iter().flat_map(keys).collect();
        let (accepted, required) = (dialect.keys().map(|(key, _)| key), dialect.required());
        let (accepted, required): (Vec<_>, Vec<_>) = (accepted.collect(), required.collect());
        let own = RelevantKeys { required: &required, accepted: &accepted };
        self.keys(path, &all, &own, &format!("connector {}", dialect.name));
    }

    /// Each stream of a consumer is configured.
    fn consumer(&mut self, path: &KeyPath, consumer: &consumers::Settings) {
        let path = path.join("streams");
        if consumer.streams.is_empty() {
            self.add_mistake(path.clone(), "needs at least one stream such as [\"queues\"]");
        }
        for stream in &consumer.streams {
            if let Some(hint) = self.unknown("streams", stream.as_str(), "stream") {
                self.add_mistake(path.clone(), format!("unknown stream {:?}{hint}", stream.as_str()));
            }
        }
    }

    /// A hint about a name that is not in a table of the configuration.
    fn unknown(&self, section: &str, name: &str, what: &str) -> Option<String> {
        let entries = child(self.tree, section).and_then(table);
        if entries.is_some_and(|entries| entries.contains_key(name)) {
            return None;
        }
        let mut known: Vec<_> = entries.into_iter().flat_map(|entries| entries.keys().map(String::as_str)).collect();
        known.sort_unstable();
        Some(match nearest(name, known.iter().copied()) {
            Some(near) => format!("; did you mean {near:?}?"),
            None if known.is_empty() => format!("; no {what} is configured"),
            None => format!("; known: {}", known.join(", ")),
        })
    }

    fn account_of(&mut self, path: &KeyPath, name: &str) {
        if let Some(hint) = self.unknown("accounts", name, "account") {
            self.add_mistake(path.join("account"), format!("unknown account {name:?}{hint}"));
        }
    }

    /// The checks of the connector itself.
    fn connector(&mut self, path: &KeyPath, stream: &StreamSection, account: Option<&AccountSection>) {
        let parameters = query_parameters(stream.connector.socket_url());
        let context = CheckContext {
            silence_max: Span(stream.keys.silence_max),
            retention: Span(stream.keys.retention),
            parameters: &parameters,
            account: account.map(|account| AccountContext {
                has_region: account.region.is_some(),
                lacks_api_url: account.platform == PlatformKind::Generic && account.api_url.is_none(),
            }),
        };
        let is_absent = |finding: &SettingFinding| match finding.key {
            SettingKey::Stream(key) => stream.absent.contains(&key),
            SettingKey::StreamItem(..) | SettingKey::Account(_) => false,
        };
        let findings = stream.connector.check(&context);
        for finding in findings.into_iter().filter(|finding| !is_absent(finding)) {
            self.add_of_connector(path, &stream.head.account, finding);
        }
    }

    fn add_of_connector(&mut self, stream: &KeyPath, account: &str, finding: SettingFinding) {
        let SettingFinding { key, severity, text } = finding;
        let (location, path, text) = match key {
            SettingKey::Stream(key) => (None, stream.join(key), text),
            SettingKey::StreamItem(key, index) => {
                let path = stream.join(key);
                (self.item_location(&path, index), path, format!("item {}: {text}", index + 1))
            }
            SettingKey::Account(key) => (None, KeyPath::of(&["accounts", account, key]), text),
        };
        let finding = Finding::new(location.or_else(|| location_of(self.tree, &path)), path, text);
        match severity {
            Severity::Mistake => self.findings.mistakes.push(finding),
            Severity::Ineffective => self.findings.ineffective.push(finding),
        }
    }

    fn item_location(&self, path: &KeyPath, index: usize) -> Option<SourceLocation> {
        let ValueKind::Array(items) = &find(self.tree, path)?.kind else { return None };
        SourceLocation::of(items.get(index)?)
    }
}

/// The decoded names of the query parameters of a URL.
fn query_parameters(url: Option<&str>) -> Vec<String> {
    let url = url.and_then(|url| Url::parse(url).ok());
    url.iter().flat_map(Url::query_pairs).map(|(name, _)| name.into_owned()).collect()
}
