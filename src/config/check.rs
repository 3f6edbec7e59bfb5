//! What keys mean together: references, required keys of a grant or connector, listeners, plain-text credentials.
//!
//! It trusts that each value by itself is right, and asks the tree, not the struct, whether a key was written: a value
//! that was already found wrong is not called missing on top.

use config::Value;
use reqwest::Url;

use crate::{
    connector::genesys_notifications,
    model::{Span, nearest},
    network::proxy::is_loopback,
};

use super::{
    finding::{Finding, KeyPath},
    keys::{CONNECTOR_KEYS, GRANT_KEYS, Keys, STORE_KEYS},
    listen::Listen,
    logins,
    shape::{Account, Backoff, Connector, File, Grant, Platform, Store, StoreKind, StoreUrl, Stream},
    source::{child, find, place_of, table},
};

/// Genesys Cloud says something on every channel about this often.
const GENESYS_HEARTBEAT: Span = Span(std::time::Duration::from_secs(30));

/// Query parameters that the relay adds to a sequenced stream's address by itself.
const OWN_PARAMETERS: [&str; 2] = ["sequenceId", "auth_token"];

/// What is wrong between keys.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Nothing may run before these are mended.
    pub(super) mistakes: Vec<Finding>,
    /// Parts that cannot work, and keep nothing else from working.
    pub(super) ineffective: Vec<Finding>,
}

/// Every mistake between keys. `tree` is what was written, `file` what could be read of it.
pub(super) fn check(tree: &Value, file: &File) -> Findings {
    let mut check = Check { tree, found: Findings::default() };
    check.listeners(file);
    check.store(&file.store);
    check.anything_to_do();
    for (name, account) in &file.accounts {
        check.account(&KeyPath::of(&["accounts", name.as_str()]), account);
    }
    for (name, stream) in &file.streams {
        check.stream(&KeyPath::of(&["streams", name.as_str()]), stream, file);
    }
    check.found
}

struct Check<'a> {
    tree: &'a Value,
    found: Findings,
}

impl Check<'_> {
    fn wrong(&mut self, path: KeyPath, text: impl Into<String>) {
        self.found.mistakes.push(Finding::new(place_of(self.tree, &path), path, text));
    }

    fn ineffective(&mut self, path: KeyPath, text: impl Into<String>) {
        self.found.ineffective.push(Finding::new(place_of(self.tree, &path), path, text));
    }

    fn written(&self, path: &KeyPath) -> bool {
        find(self.tree, path).is_some()
    }

    fn listeners(&mut self, file: &File) {
        let (http, admin) = (&file.http.listen, &file.admin.listen);
        self.listener("http", http, "consumers");
        self.listener("admin", admin, "operators");
        if http.overlaps(admin) {
            let text = format!("{admin} is taken by http.listen; consumers and operators have a port each");
            self.wrong(KeyPath::of(&["admin", "listen"]), text);
        }
    }

    fn listener(&mut self, section: &str, listen: &Listen, who: &str) {
        let Some(exposed) = listen.exposed() else { return };
        let written = listen.to_string();
        let shown = if written == exposed.to_string() { written } else { format!("{written} ({})", exposed.ip()) };
        let text = format!(
            "{shown} can be reached from other machines, and this build cannot authenticate {who} yet; \
             write \"127.0.0.1:{}\"",
            exposed.port()
        );
        self.wrong(KeyPath::of(&[section, "listen"]), text);
    }

    fn store(&mut self, store: &Store) {
        let path = KeyPath::of(&["store"]);
        let kind = find(self.tree, &path.join("kind")).map(ToString::to_string);
        if kind.is_some_and(|kind| kind != store.kind.name()) {
            // A wrong word is told already, and what it leaves in its place was not meant.
            return;
        }
        self.keys(&path, &STORE_KEYS, &store.kind.keys(), &format!("kind {}", store.kind.name()));
        // An address that is found elsewhere is held against them when secrets are looked for.
        if let Some(StoreUrl::Text(url)) = &store.url
            && let Ok(address) = url.parse()
        {
            for (key, text) in logins::mistakes(&address, store) {
                self.wrong(path.join(key), text);
            }
        }
    }

    fn anything_to_do(&mut self) {
        let written = child(self.tree, "streams");
        if written.is_none_or(|streams| table(streams).is_some_and(|names| names.is_empty())) {
            self.wrong(KeyPath::of(&["streams"]), "there is none; add [streams.NAME] with its account and connector");
        }
    }

    fn account(&mut self, path: &KeyPath, account: &Account) {
        self.keys(path, &GRANT_KEYS, &account.grant.keys(), &format!("grant {}", account.grant.name()));
        self.addresses(path, account);
        for (key, url) in [("token_url", &account.token_url), ("api_url", &account.api_url)] {
            self.transport(path.join(key), url.as_deref(), account.insecure);
        }
    }

    /// Keys of other choices, and keys of this one that are missing.
    fn keys(&mut self, path: &KeyPath, all: &[&str], own: &Keys, choice: &str) {
        for key in all.iter().filter(|key| !own.has(key)) {
            if self.written(&path.join(key)) {
                self.wrong(path.join(key), format!("has no effect with {choice}; take it out"));
            }
        }
        for key in own.needed {
            if !self.written(&path.join(key)) {
                self.wrong(path.join(key), format!("is required by {choice}"));
            }
        }
    }

    fn addresses(&mut self, path: &KeyPath, account: &Account) {
        let written = |key| self.written(&path.join(key));
        let (region, token_url, api_url) = (written("region"), written("token_url"), written("api_url"));
        let token_url_missing = !token_url && account.grant != Grant::Static;
        match account.platform {
            Platform::GenesysCloud if !region && (token_url_missing || !api_url) => {
                let others = if account.grant == Grant::Static { "api_url" } else { "token_url and api_url" };
                self.wrong(path.join("region"), format!("is required, or else {others}"));
            }
            Platform::Generic if region => {
                self.wrong(path.join("region"), "has no effect with platform generic; write token_url and api_url");
            }
            Platform::Generic if token_url_missing => {
                self.wrong(path.join("token_url"), "is required by platform generic");
            }
            Platform::GenesysCloud | Platform::Generic => (),
        }
    }

    fn transport(&mut self, path: KeyPath, url: Option<&str>, insecure: bool) {
        let Some(url) = url.and_then(|url| Url::parse(url).ok()) else { return };
        let plain = matches!(url.scheme(), "http" | "ws");
        if plain && !is_loopback(&url) && !insecure {
            let text = format!(
                "{0} would carry credentials to another machine in plain text; write {0}s, \
                 or insecure = true in the account of a closed test network",
                url.scheme()
            );
            self.wrong(path, text);
        }
    }

    fn stream(&mut self, path: &KeyPath, stream: &Stream, file: &File) {
        self.account_of(path, stream);
        let choice = format!("connector {}", stream.connector.name());
        self.keys(path, &CONNECTOR_KEYS, &stream.connector.keys(), &choice);
        self.backoff(&path.join("backoff"), &stream.backoff);
        let account =
            file.accounts.iter().find(|(name, _)| name.as_str() == stream.account).map(|(_, account)| account);
        match stream.connector {
            Connector::GenesysNotifications => self.notifications(path, stream, account),
            Connector::GenesysSequenced => self.sequenced(path, stream),
        }
        if stream.standby && file.store.kind == StoreKind::Embedded {
            let text =
                "true has no effect with kind embedded: a standby is another replica, and replicas share a Redis";
            self.ineffective(path.join("standby"), text);
        }
        let insecure = account.is_none_or(|account| account.insecure);
        for (key, url) in [("url", &stream.url), ("snapshot_url", &stream.snapshot_url)] {
            self.transport(path.join(key), url.as_deref(), insecure);
        }
    }

    fn account_of(&mut self, path: &KeyPath, stream: &Stream) {
        let accounts = child(self.tree, "accounts").and_then(table);
        if accounts.is_some_and(|accounts| accounts.contains_key(&stream.account)) {
            return;
        }
        let mut known: Vec<_> = accounts.into_iter().flat_map(|accounts| accounts.keys().map(String::as_str)).collect();
        known.sort_unstable();
        let hint = match nearest(&stream.account, known.iter().copied()) {
            Some(near) => format!("; did you mean {near:?}?"),
            None if known.is_empty() => "; there is none".to_owned(),
            None => format!("; known: {}", known.join(", ")),
        };
        self.wrong(path.join("account"), format!("there is no account {:?}{hint}", stream.account));
    }

    fn backoff(&mut self, path: &KeyPath, backoff: &Backoff) {
        if backoff.cap < backoff.first {
            let text = format!("{} is shorter than first, {}", backoff.cap, backoff.first);
            self.wrong(path.join("cap"), text);
        }
    }

    fn notifications(&mut self, path: &KeyPath, stream: &Stream, account: Option<&Account>) {
        if let Some(topics) = &stream.topics {
            self.topics(&path.join("topics"), topics);
        }
        let Some(account) = account else { return };
        if account.platform == Platform::Generic && account.api_url.is_none() {
            let text = "is required by the stream's connector genesys-notifications";
            self.wrong(KeyPath::of(&["accounts", &stream.account, "api_url"]), text);
        }
        if account.region.is_some() && stream.silence_max <= GENESYS_HEARTBEAT {
            let text = format!(
                "{} of silence are normal: Genesys Cloud says something about every {GENESYS_HEARTBEAT}; \
                 write \"35s\" or longer",
                stream.silence_max
            );
            self.wrong(path.join("silence_max"), text);
        }
    }

    fn topics(&mut self, path: &KeyPath, topics: &[String]) {
        if topics.is_empty() {
            self.wrong(path.clone(), "is empty: the stream would hear nothing");
        }
        for (index, topic) in topics.iter().enumerate() {
            if topics[..index].contains(topic) {
                self.wrong(path.clone(), format!("item {}: {topic:?} is there twice", index + 1));
            }
            if let Some(text) = unknown_star(topic) {
                self.ineffective(path.clone(), format!("item {}: {text}", index + 1));
            }
        }
    }

    fn sequenced(&mut self, path: &KeyPath, stream: &Stream) {
        if stream.silence_max >= stream.retention {
            let text = format!(
                "{} is not below retention, {}: a dead socket would be noticed only when the platform \
                 has forgotten what was missed",
                stream.silence_max, stream.retention
            );
            self.wrong(path.join("silence_max"), text);
        }
        let Some(url) = stream.url.as_deref().and_then(|url| Url::parse(url).ok()) else { return };
        for own in OWN_PARAMETERS {
            if url.query_pairs().any(|(key, _)| key == own) {
                self.wrong(path.join("url"), format!("the parameter {own} is added by the relay; take it out"));
            }
        }
    }
}

/// Why `*` in a topic stands for nothing.
fn unknown_star(topic: &str) -> Option<String> {
    match topic.matches('*').count() {
        0 => None,
        1 if genesys_notifications::expands(topic) => None,
        1 => Some(format!(
            "* is looked up for {} only, not in {topic:?}; write a topic for each id",
            genesys_notifications::EXPANDED.join(" and ")
        )),
        _ => Some(format!("{topic:?} has more than one *; write the other ids")),
    }
}
