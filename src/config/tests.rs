//! Tests of the whole configuration: defaults, precedence, output, and the shipped files.

use std::{fs, path::Path};

use proptest::prelude::*;
use serde_json::Value as Json;

use super::{source::Document, *};
use crate::{
    connector::Connector,
    model::{OverflowPolicy, Rotation},
};

const ACCOUNT: &str = r#"
[accounts.acme]
platform = "genesys-cloud"
region = "mypurecloud.com"
client_id = { env = "CLIENT_ID" }
client_secret = { env = "CLIENT_SECRET" }
"#;

const STREAMS: &str = r#"
[streams.queues]
account = "acme"
connector = "genesys-notifications"
topics = ["v2.analytics.queues.*.observations"]

[streams.summary]
account = "acme"
connector = "genesys-sequenced"
url = "wss://realtime.mypurecloud.com/stream"
"#;

#[test]
fn a_short_configuration_is_filled_in() {
    let config = good(&[&good_text()], &[]);
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.store.retention, Retention { events: 1_000_000, age: hours(24), bytes: 4 << 30 });
    let account = &config.accounts[&"acme".parse().unwrap()];
    assert_eq!(account.auth.token_url, "https://login.mypurecloud.com/oauth/token");
    assert_eq!(account.api_url.as_deref(), Some("https://api.mypurecloud.com"));
    assert_eq!(account.auth.refresh_token_dir, Path::new("data/vault"));
    let queues = &config.streams[&"queues".parse().unwrap()];
    assert_eq!(queues.overflow, OverflowPolicy::DropOldest, "nothing can be replayed");
    assert_eq!((queues.keys.buffer, queues.keys.frame_max), (5000, 16 << 20));
    let summary = &config.streams[&"summary".parse().unwrap()];
    assert_eq!(summary.overflow, OverflowPolicy::Backpressure, "what is not read can be replayed");
    assert_eq!(summary.connector.name(), "genesys-sequenced");
}

#[test]
fn later_files_and_then_variables_win_key_by_key() {
    let later = "[streams.queues]\nbuffer = 7\nsilence_max = \"50s\"\nbackoff = { cap = \"1m\" }\n\
                 [accounts.acme]\nclient_secret = { env = \"OTHER\" }\n";
    let variables = [
        ("OTHER", "x"),
        ("TRUNKLINE__STREAMS__QUEUES__BUFFER", "9"),
        ("TRUNKLINE__STREAMS__QUEUES__TOPICS", r#"["v2.users.*.presence"]"#),
        ("TRUNKLINE__STREAMS__QUEUES__BACKOFF__JITTER", "0.5"),
        ("TRUNKLINE__STORE__PATH", "2026"),
        ("TRUNKLINE__ACCOUNTS__ACME__CLIENT_ID__ENV", "OTHER"),
        ("TRUNKLINE__ACCOUNTS__ACME__INSECURE", "true"),
        ("TRUNKLINE_LOG", "debug"),
    ];
    let config = good(&[&good_text(), later], &variables);
    let queues = &config.streams[&"queues".parse().unwrap()];
    assert_eq!((queues.keys.buffer, queues.keys.silence_max), (9, Duration::from_secs(50)));
    assert_eq!((queues.keys.backoff.cap, queues.keys.backoff.jitter), (Duration::from_secs(60), 0.5));
    assert_eq!(queues.keys.backoff.first, Duration::from_secs(1), "its neighbours stay");
    assert_eq!(config.store.path, Path::new("2026"), "a text stays a text, whatever it looks like");
    let Connector::Notifications(settings) = &queues.connector else { panic!("{queues:?}") };
    assert_eq!(settings.topics, ["v2.users.*.presence"]);
    let grant = format!("{:?}", config.accounts[&"acme".parse().unwrap()].auth.grant);
    assert!(grant.matches(r#"Env("OTHER")"#).count() == 2, "{grant}");
}

#[test]
fn a_secret_reference_replaces_one_of_another_kind() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "hunter2\n").unwrap();
    let later = format!("[accounts.acme]\nclient_secret = {{ file = {:?} }}\n", secret.path());
    let config = good(&[&good_text(), &later], &[]);
    let grant = format!("{:?}", config.accounts[&"acme".parse().unwrap()].auth.grant);
    assert!(grant.contains(secret.path().to_str().unwrap()) && !grant.contains("CLIENT_SECRET"), "{grant}");
}

#[test]
fn a_stream_whose_name_no_variable_can_spell_is_found() {
    let text = good_text().replace("streams.queues", "streams.\"sales-eu.2\"");
    let config = good(&[&text], &[("TRUNKLINE__STREAMS__SALES_EU_2__BUFFER", "3")]);
    assert_eq!(config.streams[&"sales-eu.2".parse().unwrap()].keys.buffer, 3);
}

#[test]
fn a_channel_takes_a_thousand_topics_and_not_one_more() {
    let with = |count: usize| {
        let topics: Vec<_> = (0..count).map(|n| format!("\"v2.users.{n}.presence\"")).collect();
        good_text().replace("\"v2.analytics.queues.*.observations\"", &topics.join(","))
    };
    assert!(loaded(&[&with(1000)], &[]).is_ok());
    let findings = loaded(&[&with(1001)], &[]).unwrap_err().to_string();
    assert!(findings.contains("has 1001 items; the maximum is 1000"), "{findings}");
}

#[test]
fn plain_text_is_allowed_on_loopback_or_when_configured() {
    let addresses = |host: &str| {
        let both = format!("token_url = \"http://{host}/token\"\napi_url = \"http://{host}\"");
        ACCOUNT.replace("region = \"mypurecloud.com\"", &both)
            + &STREAMS.replace("wss://realtime.mypurecloud.com", &format!("ws://{host}"))
    };
    for host in ["127.0.0.1:1", "[::1]:1", "localhost:1"] {
        good(&[&addresses(host)], &[]);
    }
    assert_eq!(loaded(&[&addresses("10.0.0.1:1")], &[]).unwrap_err().iter().count(), 3);
    good(&[&addresses("10.0.0.1:1"), "[accounts.acme]\ninsecure = true\n"], &[]);
}

#[test]
fn the_effective_configuration_shows_every_value_with_its_origin_and_no_secret() {
    let variables = [("CLIENT_SECRET", "hunter2"), ("TRUNKLINE__HTTP__LISTEN", "127.0.0.1:7000")];
    let environment = variables.into_iter().collect();
    let (draft, findings) = draft(&documents(&[&good_text()]), &environment).unwrap();
    assert_eq!(findings, []);
    let shown = show::show(&draft);
    for line in [
        r#"listen = "127.0.0.1:7000"  # TRUNKLINE__HTTP__LISTEN"#,
        r#"kind = "embedded"  # default"#,
        r#"client_secret = "***"  # 0.toml:6, env CLIENT_SECRET"#,
        r#"token_url = "https://login.mypurecloud.com/oauth/token"  # from region"#,
        r#"overflow = "drop-oldest"  # default"#,
        r#"account = "acme"  # 0.toml:9"#,
        "buffer = 5000  # default",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("hunter2"), "{shown}");
    let queues = shown.split("[streams.queues]").nth(1).unwrap().split("[streams.").next().unwrap();
    assert!(!queues.contains("snapshot_url") && !queues.contains("auth"), "keys without effect:\n{queues}");
    let again = shown.replace("\"***\"", "{ env = \"CLIENT_ID\" }");
    good(&[&again], &[]);
}

#[test]
fn a_store_in_redis_is_shown_without_its_password_and_without_keys_of_the_other_kind() {
    let store = "[store]\nkind = \"redis\"\nurl = \"rediss://relay:hunter2@redis.test:1/2\"\n";
    let environment = [("CLIENT_SECRET", "secret")].into_iter().collect();
    let (draft, _) = draft(&documents(&[&good_text(), store]), &environment).unwrap();
    let shown = show::show(&draft);
    assert!(shown.contains("url = \"rediss://***@redis.test:1/2\""), "{shown}");
    assert!(!shown.contains("hunter2") && !shown.contains("seal_key"), "{shown}");
    let StoreBackend::Redis(redis) = good(&[&good_text(), store], &[]).store.kind else { panic!("it is redis") };
    assert_eq!(
        (redis.address.to_string(), redis.prefix),
        ("rediss://redis.test:1/2".to_owned(), "trunkline".to_owned())
    );
    assert!(!format!("{:?}", redis.address).contains("hunter2"));
}

/// A Redis store with these keys.
fn redis(keys: &str) -> String {
    format!("[store]\nkind = \"redis\"\n{keys}\n")
}

#[test]
fn credentials_next_to_the_url_are_used_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    fs::write(&path, "rediss+sentinel://ann:hunter2@redis.test/main\n").unwrap();
    for url in [
        "url = { env = \"REDIS_URL\" }".to_owned(),
        format!("url = {{ file = \"{}\" }}", path.display()),
        "url = \"rediss+sentinel://redis.test/main\"".to_owned(),
    ] {
        let keys = "username = \"bob\"\npassword = { env = \"PW\" }\nsentinel_username = \"eve\"\nsentinel_password = { env = \"PW\" }";
        let text = redis(&format!("{url}\n{keys}"));
        let variables = [("PW", "hunter2"), ("REDIS_URL", "rediss+sentinel://ann:hunter2@redis.test/main")];
        let config = good(&[&good_text(), &text], &variables);
        assert_eq!(config.warnings.len(), 0, "{:?}", config.warnings);
        let StoreBackend::Redis(redis) = config.store.kind else { panic!("it is redis") };
        assert_eq!(redis.address.to_string(), "rediss+sentinel://redis.test:26379/main?db=0");
        assert_eq!(redis.credentials.username.as_deref(), Some("bob"));
        assert_eq!(redis.credentials.sentinel_username.as_deref(), Some("eve"));
        let environment = variables.into_iter().collect();
        let (draft, _) = draft(&documents(&[&good_text(), &text]), &environment).unwrap();
        let shown = show::show(&draft);
        assert!(shown.contains("password = \"***\"  # ") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(url.contains('{'), shown.contains("url = \"***\"  # 1.toml:3, "), "{shown}");
    }
}

#[test]
fn a_password_in_the_url_of_the_store_is_a_warning_that_does_not_show_it() {
    let warned = |url: &str| {
        let config = good(&[&good_text(), &redis(&format!("url = \"{url}\""))], &[]);
        config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let warnings = warned("rediss://ann:hunter2@redis.test");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("1.toml:3: store.url: contains a password in plain text"), "{warnings:?}");
    assert!(!warnings[0].contains("hunter2"), "{warnings:?}");
    assert_eq!(warned("rediss://redis.test"), [""; 0]);
}

/// The errors of a valid configuration with these overrides.
fn finding_text(over: &str, environment: &Environment) -> String {
    let document = |name: &str, text: &str| Document { name: name.to_owned(), text: text.to_owned() };
    let documents = [document("good.toml", &good_text()), document("over.toml", over)];
    load_documents(&documents, environment).map(drop).unwrap_err().to_string()
}

fn environment(more: &[(&[u8], &[u8])]) -> Environment {
    use std::os::unix::ffi::OsStringExt;
    let text = |bytes: &[u8]| std::ffi::OsString::from_vec(bytes.to_vec());
    let usual: [(&[u8], &[u8]); 2] = [(b"CLIENT_ID", b"id"), (b"CLIENT_SECRET", b"hunter2")];
    Environment::of(usual.iter().chain(more).map(|(name, value)| (text(name), text(value))))
}

#[test]
fn an_unreadable_or_wrongly_cased_override_is_an_error() {
    for (name, value, expected) in [
        (
            b"TRUNKLINE__HTTP__LISTEN".as_slice(),
            b"127.0.0.1:1\xff".as_slice(),
            "TRUNKLINE__HTTP__LISTEN: name or value is not UTF-8",
        ),
        (b"TRUNKLINE__HTTP\xff", b"1", "TRUNKLINE__HTTP\u{fffd}: name or value is not UTF-8"),
        (
            b"trunkline__http__connections",
            b"7",
            "trunkline__http__connections: overrides are in upper case; write TRUNKLINE__HTTP__CONNECTIONS",
        ),
    ] {
        assert_eq!(finding_text("", &environment(&[(name, value)])), expected);
    }
    let others = environment(&[(b"OTHER\xff", b"\xff"), (b"TRUNKLINE__HTTP__connections", b"7")]);
    assert!(load_documents(&[Document { name: "good.toml".to_owned(), text: good_text() }], &others).is_ok());
}

#[test]
fn a_secret_of_several_lines_is_an_error_that_names_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let over = format!("[accounts.acme]\nclient_secret = {{ file = {file:?} }}\n");
    let broken = "contains more than one line, or a control character; a secret is one line of text";
    for text in ["hunter2\nsecond", "hunter2\0", "hun\tter2"] {
        fs::write(&file, text).unwrap();
        let message = finding_text(&over, &environment(&[]));
        assert!(message.ends_with(&format!("the file {} {broken}", file.display())), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    let over = "[accounts.acme]\nclient_secret = { env = \"OTHER\" }\n";
    for (value, expected) in [(b"hun\nter2".as_slice(), broken), (b"hunter2\xff", "is not UTF-8 text")] {
        let message = finding_text(over, &environment(&[(b"OTHER", value)]));
        assert!(message.ends_with(&format!("the environment variable OTHER {expected}")), "{message}");
    }
}

#[test]
fn every_proxy_address_trusted_is_a_warning() {
    for (block, warned) in [("0.0.0.0/0", true), ("::/0", true), ("10.0.0.0/8", false)] {
        let config = good(&[&good_text(), &format!("[http]\ntrusted_proxies = [\"{block}\"]\n")], &[]);
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.iter().any(|warning| warning.contains("http.trusted_proxies")), warned, "{warnings:?}");
    }
}

/// Keys that are reserved for later versions.
const LATER: &[(&str, &str)] = &[
    ("[redaction]\nkey = { env = \"X\" }\n", "redaction"),
    ("[sinks.wfm]\nkind = \"webhook\"\n", "sinks"),
    ("[http]\ntls = {}\n", "http.tls"),
    ("[admin]\ndrills = true\n", "admin.drills"),
    ("[accounts.acme]\ntenant = \"x\"\n", "accounts.acme.tenant"),
    ("[accounts.acme]\ndiscovery_url = \"x\"\n", "accounts.acme.discovery_url"),
    ("[accounts.acme]\naccess_key_id = \"x\"\n", "accounts.acme.access_key_id"),
    ("[accounts.acme]\naccess_key_secret = \"x\"\n", "accounts.acme.access_key_secret"),
    ("[accounts.acme]\naccess_key_form = \"x\"\n", "accounts.acme.access_key_form"),
    ("[streams.queues]\nlanes = {}\n", "streams.queues.lanes"),
    ("[streams.queues]\nredact = []\n", "streams.queues.redact"),
    ("[streams.queues]\nkeep_undecoded = true\n", "streams.queues.keep_undecoded"),
    ("[streams.queues]\nstate_key = \"x\"\n", "streams.queues.state_key"),
    ("[streams.queues]\nchannels_max = 3\n", "streams.queues.channels_max"),
    ("[streams.queues]\nstation_id = \"x\"\n", "streams.queues.station_id"),
    ("[streams.queues]\npoll_interval = \"5s\"\n", "streams.queues.poll_interval"),
    ("[streams.queues]\nuser_id = \"x\"\n", "streams.queues.user_id"),
];

#[test]
fn a_reserved_key_is_distinguished_from_an_unknown_one() {
    for (over, key) in LATER {
        let message = finding_text(over, &environment(&[]));
        assert!(message.contains(&format!("{key}: is reserved for a later version; remove it")), "{key}: {message}");
    }
    for connector in ["cxone-agent-session", "cxone-realtime-data", "cxone-event-hub", "generic"] {
        let message = finding_text(&format!("[streams.queues]\nconnector = \"{connector}\"\n"), &environment(&[]));
        assert!(message.contains(&format!("{connector:?} is reserved for a later version")), "{message}");
    }
}

#[test]
fn a_number_that_is_not_an_integer_or_too_large_is_rejected_with_the_expected_range() {
    for (written, shown) in [("10.0", "10.0"), ("1e3", "1000.0"), ("99999999999999999999", "99999999999999999999")] {
        let message = finding_text(&format!("[http]\nconnections = {written}\n"), &environment(&[]));
        let expected = format!("expected a whole number from 1 to 1000000, such as 10, found {shown}");
        assert!(message.ends_with(&expected), "{message}");
    }
}

#[test]
fn a_text_without_quotes_gets_a_hint_to_quote_it() {
    let message = finding_text("[http]\nlisten = 127.0.0.1:8080\n", &environment(&[]));
    assert!(
        message.starts_with("over.toml:2: column ") && message.ends_with("; put the text in quotes: listen = \"…\""),
        "{message}"
    );
}

#[test]
fn unusable_credentials_are_an_error() {
    let password = "password = { env = \"PW\" }";
    for (keys, mistake) in [
        (format!("url = \"redis://redis.test\"\n{password}"), "store.password: the password is sent"),
        (
            "url = \"redis://localhost\"\nusername = \"ann\"".to_owned(),
            "store.username: has no effect without a password",
        ),
        (format!("url = \"redis://localhost\"\nsentinel_{password}"), "store.sentinel_password: has no effect"),
        (
            "url = \"redis+sentinel://localhost/main\"\nsentinel_username = \"ann\"".to_owned(),
            "store.sentinel_username: needs",
        ),
        (
            "url = \"redis://localhost\"\npassword = { env = \"NONE\" }".to_owned(),
            "store.password: the environment variable NONE is not set",
        ),
        (
            "url = \"redis://localhost\"\npassword = \"hunter2\"".to_owned(),
            "store.password: a secret must not be in the file",
        ),
        ("url = { env = \"NONE\" }".to_owned(), "store.url: the environment variable NONE is not set"),
        (
            "url = { env = \"PW\" }".to_owned(),
            "store.url: the environment variable PW is not a valid URL: expected redis://",
        ),
        ("url = { env = \"EXPOSED\" }".to_owned(), "store.url: the password is sent"),
        ("url = { path = \"x\" }".to_owned(), "store.url: is not a reference to a secret"),
        ("url = 7".to_owned(), "store.url: expected a string"),
    ] {
        let variables = [("PW", "hunter2"), ("EXPOSED", "redis://:hunter2@redis.test")];
        let message = loaded(&[&good_text(), &redis(&keys)], &variables).unwrap_err().to_string();
        assert!(message.contains(mistake) && !message.contains("hunter2"), "{keys}\n{message}");
    }
    for keys in ["username = \"ann\"", password, "sentinel_username = \"ann\"", "sentinel_password = { env = \"PW\" }"]
    {
        let message = loaded(&[&good_text(), &format!("[store]\n{keys}\n")], &[("PW", "x")]).unwrap_err().to_string();
        assert!(message.contains("has no effect with kind embedded"), "{message}");
    }
}

#[test]
fn a_variable_can_set_the_reference_to_the_store_url() {
    for (name, value) in [
        ("TRUNKLINE__STORE__URL", "rediss://redis.test"),
        ("TRUNKLINE__STORE__URL", "{ env = \"REDIS_URL\" }"),
        ("TRUNKLINE__STORE__URL__ENV", "REDIS_URL"),
    ] {
        let config =
            good(&[&good_text(), "[store]\nkind = \"redis\""], &[(name, value), ("REDIS_URL", "rediss://redis.test")]);
        let StoreBackend::Redis(redis) = config.store.kind else { panic!("it is redis") };
        assert_eq!(redis.address.to_string(), "rediss://redis.test:6379/0");
    }
}

#[test]
fn every_example_is_a_valid_configuration() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    let secrets = [("GENESYS_CLIENT_ID", "id"), ("GENESYS_CLIENT_SECRET", "secret")];
    let mut seen = 0;
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let loaded = load(std::slice::from_ref(&path), &secrets.into_iter().collect());
        assert!(loaded.is_ok(), "{}:\n{}", path.display(), loaded.unwrap_err());
        seen += 1;
    }
    assert!(seen >= 2, "the examples were not found");
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default() {
    let text = shipped().lines().map(uncommented).collect::<Vec<_>>().join("\n");
    let documents = documents(&[&text]);
    let tree = source::merge(vec![documents[0].parse().unwrap()], &Environment::default(), &schema());
    let walk = walk::walk(&tree, &schema());
    assert_eq!(walk.findings, [], "a commented line is invalid");
    let shown: toml::Table = toml::from_str(&text).unwrap();
    let shown = serde_json::to_value(shown).unwrap();
    let mut seen = 0;
    each_key(&schema(), &mut Vec::new(), &mut |path, schema| {
        seen += 1;
        let values = values_at(&shown, path);
        assert!(!values.is_empty(), "{} is not in the shipped file", path.join("."));
        if let Some(default) = schema.get("default") {
            assert!(values.contains(&default), "{}: {values:?}, the default is {default}", path.join("."));
        }
    });
    assert!(seen > 40, "only {seen} keys were looked at");
}

#[test]
fn the_schema_describes_every_key_and_counts_in_units() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    each_key(&schema, &mut Vec::new(), &mut |path, schema| {
        let path = path.join(".");
        let about = schema["description"].as_str().unwrap_or_default();
        assert!(about.len() > 10, "{path} is not described: {schema}");
        let number = matches!(schema["type"].as_str(), Some("integer" | "number"));
        assert!(!number || schema["x-unit"].is_string(), "{path} has no unit");
        assert!(!schema.to_string().contains("null"), "{path}: TOML has no null: {schema}");
    });
}

#[test]
fn every_connector_of_the_registry_is_in_the_schema_and_in_the_documents() {
    let schema = schema();
    let stream = &schema["properties"]["streams"]["additionalProperties"]["properties"];
    let names = stream["connector"]["oneOf"].as_array().unwrap().iter().map(|choice| choice["const"].as_str().unwrap());
    assert!(names.eq(Connector::dialects().iter().map(|dialect| dialect.name)));
    let (examples, documents) = (texts("config", "toml"), texts("docs/platforms", "md"));
    for dialect in Connector::dialects() {
        let name = dialect.name;
        assert!(examples.contains(&format!("connector = \"{name}\"")), "no example under config/ has {name}");
        assert!(documents.contains(name), "no page under docs/platforms/ describes {name}");
        for (key, own) in dialect.keys() {
            assert_eq!(stream[key].get("default"), own.get("default").filter(|default| !default.is_null()), "{key}");
            let about = stream[key]["description"].as_str().unwrap();
            assert!(about.contains(name), "{key} of {name} is a key of every stream: {about}");
        }
    }
}

#[test]
fn no_file_of_the_configuration_names_a_connector() {
    let product = texts("src/config", "rs");
    for dialect in Connector::dialects() {
        let module = format!("{}::", dialect.name.replace('-', "_"));
        assert!(!product.contains(&module), "src/config/ has {module}");
    }
}

#[test]
fn possible_losses_are_documented_in_the_guarantee() {
    let config = good(&[&good_text()], &[]);
    let [queues, summary] = ["queues", "summary"].map(|name| config.streams[&name.parse().unwrap()].clone());
    assert!(queues.guarantee().lost.contains("no-replay"));
    assert!(queues.guarantee().lost.contains("5000"));
    assert!(
        summary.guarantee().lost.starts_with("nothing if a disconnection is shorter than the replay window of 60s")
    );
    assert!(summary.guarantee().lost.contains("snapshot_url"), "nothing would fill the gap");
    let shedding = StreamConfig { overflow: OverflowPolicy::DropOldest, ..summary };
    assert!(shedding.guarantee().lost.contains("shed"));
    let keys = StreamKeys { rotation: Rotation::BreakFirst, ..queues.keys };
    let alone = StreamConfig { keys, ..queues };
    assert!(alone.guarantee().lost.contains("every planned rotation"));
}

proptest! {
    #[test]
    fn no_line_of_a_configuration_makes_reading_it_panic(
        line in 0_usize..200, with in "[ -~]{0,20}", variable in "[A-Z_]{0,12}", value in "[ -~]{0,12}",
    ) {
        let shipped = shipped();
        let mut lines: Vec<String> = shipped.lines().map(uncommented).collect();
        let line = line % lines.len();
        lines[line] = with;
        let override_ = (format!("TRUNKLINE__{variable}"), value);
        let environment = [override_].into_iter().collect();
        let outcome = load_documents(&documents(&[&lines.join("\n")]), &environment);
        prop_assert!(outcome.is_err(), "the secrets are not set");
    }
}

fn good_text() -> String {
    format!("{ACCOUNT}{STREAMS}")
}

fn good(texts: &[&str], variables: &[(&str, &str)]) -> Config {
    loaded(texts, variables).unwrap_or_else(|findings| panic!("{findings}"))
}

fn loaded(texts: &[&str], variables: &[(&str, &str)]) -> Result<Config, Findings> {
    let usual = [("CLIENT_ID", "id"), ("CLIENT_SECRET", "secret")];
    let environment = usual.iter().chain(variables).copied().collect();
    load_documents(&documents(texts), &environment)
}

fn documents(texts: &[&str]) -> Vec<Document> {
    let name = |(index, text): (usize, &&str)| Document { name: format!("{index}.toml"), text: (*text).to_owned() };
    texts.iter().enumerate().map(name).collect()
}

fn shipped() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/trunkline.toml")).unwrap()
}

/// A commented setting has no space after its `#`; prose has.
fn uncommented(line: &str) -> String {
    let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#']) && !rest.is_empty());
    setting.unwrap_or(line).to_owned()
}

/// The files with this ending in a folder, without this file.
fn texts(folder: &str, ending: &str) -> String {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
    let files = files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|own| own == ending));
    files.filter(|path| !path.ends_with("tests.rs")).map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

/// Visits every key that holds a value; `*` stands for user-defined names.
fn each_key(schema: &Json, path: &mut Vec<String>, see: &mut impl FnMut(&[String], &Json)) {
    let keys = schema["properties"].as_object().into_iter().flatten();
    let any = Some(&schema["additionalProperties"]).filter(|any| any.is_object());
    for (key, below) in keys.map(|(key, below)| (key.as_str(), below)).chain(any.map(|any| ("*", any))) {
        path.push(key.to_owned());
        if below["type"] == "object" && below["format"] != "secret" {
            each_key(below, path, see);
        } else {
            see(path, below);
        }
        path.pop();
    }
}

fn values_at<'a>(value: &'a Json, path: &[String]) -> Vec<&'a Json> {
    let Some((key, rest)) = path.split_first() else { return vec![value] };
    let table = value.as_object().into_iter().flatten();
    table.filter(|(name, _)| key == "*" || *name == key).flat_map(|(_, below)| values_at(below, rest)).collect()
}
