//! No secret is in any output or file, also during rotations and failures and with all log levels.
//!
//! Two simulated platforms with the same seed grant the same tokens, so the second one provides the expected tokens.

use std::{fs, path::Path, time::Duration};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use trunkline::simulator::{self, FaultTarget, PlatformFault, Settings, Simulator, TokenFailure, UndecodableFrame};

use super::{
    child::{Child, WAIT_MAX, eventually},
    relay::{RelayProcess, client},
    site::Site,
};

/// Has characters that each encoding changes.
const SECRET: &str = "c4nary/+s3cret=&?of the:client";
const CLIENT: &str = "canary client";
/// More tokens than a run uses.
const TOKENS: usize = 60;
/// Number of rotations of each stream.
const ROTATIONS: u64 = 2;

#[tokio::test]
async fn no_secret_is_printed_or_stored_anywhere() {
    let site = Site::start_with(settings(), &[]).await;
    write_three_streams(&site);
    let tokens = predicted_tokens().await;
    let mut relay = RelayProcess::start_with(&site, &[("TRUNKLINE_LOG", "trace")]).await;
    relay.wait_until_live().await;
    assert_genuine(&site, &tokens[0]).await;
    for fault in faults() {
        site.platform.inject(fault);
        site.platform.emit(3);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    rotates(&relay).await;
    is_rejected(&site, &relay).await;

    let mut outputs = vec![("metrics", relay.text(&relay.admin, "/metrics").await)];
    outputs.push(("status", relay.text(&relay.admin, "/admin/v1/status").await));
    outputs.push(("readiness", relay.text(&relay.admin, "/readyz").await));
    outputs.push(("streams", relay.text(&relay.consumers, "/v1/streams").await));
    for (what, arguments) in
        [("config show", ["config", "show", "--config"].as_slice()), ("check", &["check", "--connect", "--config"])]
    {
        let arguments = [arguments, &[site.config()]].concat();
        let mut child = Child::start_with(site.folder.path(), &arguments, &[("TRUNKLINE_LOG", "trace")]);
        child.wait_for_exit(WAIT_MAX).await;
        outputs.push((what, child.printed_output()));
    }
    relay.child.signal("TERM");
    assert_eq!(relay.child.wait_for_exit(WAIT_MAX).await, 0);
    outputs.push(("output of run", relay.child.printed_output()));
    assert!(relay.child.stderr().contains(r#""level":"DEBUG""#), "debug lines are logged");
    let granted = usize::try_from(site.platform.counters().grants_total()).unwrap();
    assert!(granted < TOKENS, "every token is known");

    let needles = secret_patterns(&tokens[..granted]);
    for (what, text) in &outputs {
        assert_clean(what, text.as_bytes(), &needles);
    }
    assert!(search_files(&site.store(), &needles) > 2, "there are files to search");
}

pub(super) fn settings() -> Settings {
    Settings {
        client_id: CLIENT.to_owned(),
        client_secret: SECRET.to_owned(),
        token_ttl: Duration::from_secs(3),
        heartbeat: Duration::from_secs(1),
        ..Settings::default()
    }
}

/// Three streams that send the token in a header, in a URL query, and with REST calls.
pub(super) fn write_three_streams(site: &Site) {
    let address = site.platform.address();
    let text = format!(
        r#"{}
[streams.calls]
account = "demo"
connector = "genesys-sequenced"
url = "ws://{address}/api/v2/analytics/conversations/summary/stream"
snapshot_url = "http://{address}/api/v2/analytics/conversations/summary"
[streams.events]
account = "demo"
connector = "genesys-sequenced"
url = "ws://{address}/api/v2/analytics/events/ws?channel=1"
auth = "query"
[streams.queues]
account = "demo"
connector = "genesys-notifications"
topics = ["v2.analytics.queues.*.observations"]
"#,
        site.base(&site.store())
    );
    fs::write(site.config(), text).unwrap();
}

/// The tokens that the platform will grant, in order.
pub(super) async fn predicted_tokens() -> Vec<String> {
    let second: Simulator = simulator::start(settings()).await.unwrap();
    let form = [("grant_type", "client_credentials"), ("client_id", CLIENT), ("client_secret", SECRET)];
    let mut tokens = Vec::new();
    for _ in 0..TOKENS {
        let answer = client().post(format!("{}/oauth/token", second.url())).form(&form).send().await.unwrap();
        let token: Value = answer.json().await.unwrap();
        tokens.push(token["access_token"].as_str().unwrap().to_owned());
    }
    second.stop().await;
    tokens
}

/// Checks that the relay's first token is this one.
async fn assert_genuine(site: &Site, token: &str) {
    let url = format!("{}/api/v2/analytics/conversations/summary", site.platform.url());
    assert_eq!(client().get(&url).bearer_auth("x").send().await.unwrap().status(), 401);
    assert_eq!(client().get(&url).bearer_auth(token).send().await.unwrap().status(), 200);
}

/// Faults that make a relay log errors about tokens, URLs and responses.
fn faults() -> Vec<PlatformFault> {
    let on = FaultTarget::All;
    let token = |failure| PlatformFault::Token { failure, times: 1 };
    vec![
        PlatformFault::Jump { n: 3 },
        PlatformFault::Drop { on },
        PlatformFault::Refuse { on, status: 401, times: 2, retry_after: None },
        PlatformFault::Drop { on },
        token(TokenFailure::Html),
        PlatformFault::TokenRevoked {},
        token(TokenFailure::Status { status: 500 }),
        PlatformFault::Close { on, code: 1008, reason: "expired".to_owned() },
        token(TokenFailure::Redirect { to: "http://127.0.0.1:1/other".to_owned() }),
        PlatformFault::Close { on, code: 1008, reason: "expired".to_owned() },
        PlatformFault::Rest { status: 401, times: 2, retry_after: None, path: None },
        PlatformFault::Undecodable { on, what: UndecodableFrame::InvalidJson },
        PlatformFault::Refuse { on, status: 404, times: 1, retry_after: None },
        PlatformFault::Drop { on },
        PlatformFault::Close { on: FaultTarget::Sequenced, code: 4001, reason: "expired".to_owned() },
    ]
}

async fn rotates(relay: &RelayProcess) {
    eventually("every stream has rotated", WAIT_MAX, async || {
        let status = relay.status().await;
        let enough = |stream: &Value| stream["rotations"].as_u64().is_some_and(|count| count >= ROTATIONS);
        status["streams"].as_array()?.iter().all(enough).then_some(())
    })
    .await;
}

/// Rejects the account. Must be the last failure, because the next token request follows only after a long time.
async fn is_rejected(site: &Site, relay: &RelayProcess) {
    site.platform.inject(PlatformFault::Token { failure: TokenFailure::InvalidClient, times: 1 });
    eventually("the account is rejected", WAIT_MAX, async || {
        (relay.status().await["accounts"][0]["state"] == "rejected").then_some(())
    })
    .await;
}

/// Each secret, plain and in common encodings.
pub(super) fn secret_patterns(tokens: &[String]) -> Vec<String> {
    let percent =
        |text: &str| reqwest::Url::parse_with_params("x:y", [("", text)]).unwrap().query().unwrap()[1..].to_owned();
    let mut needles = vec![STANDARD.encode(format!("{}:{}", percent(CLIENT), percent(SECRET)))];
    for secret in tokens.iter().map(String::as_str).chain([SECRET]) {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let escaped = json!(secret).to_string().trim_matches('"').to_owned();
        let encoded = [STANDARD.encode(secret), URL_SAFE_NO_PAD.encode(secret), hex, percent(secret), escaped];
        needles.extend(encoded);
        needles.push(secret.to_owned());
    }
    needles
}

pub(super) fn assert_clean(what: &str, bytes: &[u8], needles: &[String]) {
    for needle in needles {
        let Some(at) = memchr::memmem::find(bytes, needle.as_bytes()) else { continue };
        let (from, to) = (at.saturating_sub(300), (at + needle.len() + 100).min(bytes.len()));
        panic!("{what} shows {needle:?}: …{}…", String::from_utf8_lossy(&bytes[from..to]));
    }
}

/// Searches every file and returns their number.
fn search_files(folder: &Path, needles: &[String]) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += search_files(&path, needles);
        } else {
            assert_clean(&path.display().to_string(), &fs::read(&path).unwrap(), needles);
            count += 1;
        }
    }
    count
}

#[test]
fn the_secret_search_detects_a_secret() {
    let needles = secret_patterns(&["t0ken".to_owned()]);
    for text in ["a t0ken!", "74306b656e", "dDBrZW4=", "c4nary%2F%2Bs3cret%3D%26%3Fof+the%3Aclient"] {
        assert!(std::panic::catch_unwind(|| assert_clean("it", text.as_bytes(), &needles)).is_err(), "{text}");
    }
    assert_clean("it", b"no match here", &needles);
}
