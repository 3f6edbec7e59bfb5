//! Authentication of consumers: each way in over real sockets, renewal, revocation and limits.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::harness::{RelayFixture, RelaySetup, TestHttpClient, TestWsClient};
use crate::{
    clock,
    downstream::server::access::{GrantRequest, Settings, TokenSigner},
    model::{RevocationTarget, StreamPattern, Timestamp},
};

const QUEUES: &str = "/v1/streams/queues/events";

/// A relay whose consumers authenticate with an HMAC token, and the signer of its tokens.
struct Guarded {
    relay: RelayFixture,
    signer: TokenSigner,
    _key: tempfile::TempDir,
}

impl Guarded {
    async fn start(settings: Value) -> Self {
        let key = tempfile::tempdir().unwrap();
        let path = key.path().join("hmac");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef").unwrap();
        let mut access = json!({ "jwt": { "hmac": { "file": path } }, "cookie": "session" });
        access.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let mut setup = RelaySetup { access: Some(access.clone()), ..RelaySetup::default() };
        setup.server.allowed_origins = vec!["https://dash.test".to_owned()];
        let settings: Settings = serde_json::from_value(access).unwrap();
        let signer = TokenSigner::read(&settings).await.unwrap();
        Self { relay: RelayFixture::with(setup).await, signer, _key: key }
    }

    fn token(&self, subject: &str, streams: &[&str], ttl: u64) -> String {
        let streams = streams.iter().map(|text| text.parse::<StreamPattern>().unwrap()).collect();
        let ttl = Duration::from_secs(ttl);
        let request = GrantRequest { subject: subject.parse().unwrap(), streams, ttl, filter: None };
        self.signer.sign(&request, clock::wall()).unwrap()
    }

    /// The status, and the kind of problem if it is an error.
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut answer = self.relay.get(path, headers).await;
        let status = answer.status();
        (status, if status < 400 { String::new() } else { answer.problem().await.0 })
    }

    async fn subscribe(&self, path: &str, token: &str, subprotocol: Option<&str>) -> TestWsClient {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(subprotocol.map(|name| ("sec-websocket-protocol", name)));
        self.relay.offer(path, &headers).await.0
    }

    async fn ticket(&self, token: &str, body: &str) -> (u16, Value) {
        let headers = [("Authorization", format!("Bearer {token}")), ("Content-Length", body.len().to_string())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let path = "/v1/tickets";
        let mut answer = TestHttpClient::send_with_body(&self.relay.authority, "POST", path, &headers, body).await;
        (answer.status(), answer.json().await)
    }
}

fn message(kind: &str, data: &Value) -> Message {
    Message::text(json!({ "type": format!("trunkline.session.{kind}"), "data": data }).to_string())
}

#[tokio::test]
async fn every_way_in_gives_access_and_every_wrong_credential_is_named() {
    let guarded = Guarded::start(json!({})).await;
    let good = format!("Bearer {}", guarded.token("a", &["queues"], 60));
    let other = format!("Bearer {}", guarded.token("a", &["agents"], 60));
    let all = format!("Bearer {}", guarded.token("a", &["*"], 60));
    let cookie = format!("session={}", guarded.token("a", &["queues"], 60));
    let page = format!("{QUEUES}?from=first");
    let in_query = format!("{page}&access_token=x");
    let table: [(&str, &str, &str, (u16, &str)); 12] = [
        (&page, "authorization", &good, (200, "")),
        (&page, "authorization", &all, (200, "")),
        (&page, "cookie", &cookie, (200, "")),
        ("/v1/streams", "authorization", &good, (200, "")),
        ("/v1/streams", "accept", "*/*", (401, "credentials-required")),
        (&page, "accept", "*/*", (401, "credentials-required")),
        (&page, "authorization", &other, (403, "forbidden")),
        ("/v1/streams/unknown/events", "authorization", &good, (403, "forbidden")),
        ("/v1/streams/unknown/events", "authorization", &all, (404, "unknown-stream")),
        (&page, "authorization", "Bearer abc", (401, "token-invalid")),
        (&page, "authorization", "Basic YTpi", (400, "invalid-credentials")),
        (&in_query, "accept", "*/*", (400, "invalid-credentials")),
    ];
    for (path, name, value, expected) in table {
        let found = guarded.get(path, &[(name, value)]).await;
        assert_eq!((found.0, found.1.as_str()), expected, "{path} {name}");
    }
    let mut listed = guarded.relay.get("/v1/streams", &[("authorization", &good)]).await;
    let listed = listed.json().await;
    assert_eq!(listed["streams"].as_array().unwrap().len(), 1, "{listed}");
    guarded.relay.drain().await;
}

#[tokio::test]
async fn a_ticket_is_used_once_and_has_no_more_rights_than_its_token() {
    let guarded = Guarded::start(json!({})).await;
    let token = guarded.token("a", &["queues"], 60);
    let (status, issued) = guarded.ticket(&token, "").await;
    assert_eq!((status, &issued["expires_in"]), (201, &json!(60)));
    let path = format!("{QUEUES}?from=first&ticket={}", issued["ticket"].as_str().unwrap());
    assert_eq!(guarded.get(&path, &[]).await.0, 200);
    assert_eq!(guarded.get(&path, &[]).await, (401, "ticket-invalid".to_owned()));
    for (body, expected) in [
        (r#"{"streams":["queues"],"ttl":"5s"}"#, 201),
        (r#"{"streams":["agents"]}"#, 403),
        (r#"{"streams":["*"]}"#, 403),
        (r#"{"streams":[]}"#, 400),
        (r#"{"ttl":"2h"}"#, 400),
        (r#"{"other":1}"#, 400),
    ] {
        assert_eq!(guarded.ticket(&token, body).await.0, expected, "{body}");
    }
    let (_, issued) = guarded.ticket(&token, "").await;
    let path = format!("{QUEUES}?ticket={}", issued["ticket"].as_str().unwrap());
    let mut socket = guarded.relay.subscribe(&path).await;
    guarded.relay.say("queues", 1..=1).await;
    assert_eq!(socket.event().await["sequence"], "1");
    guarded.relay.drain().await;
}

#[tokio::test]
async fn a_first_message_authenticates_a_socket_or_closes_it() {
    let guarded = Guarded::start(json!({})).await;
    let token = guarded.token("a", &["queues"], 60);
    let mut socket = guarded.relay.subscribe(QUEUES).await;
    socket.0.send(message("authenticate", &json!({ "token": token }))).await.unwrap();
    socket.0.send(message("refresh", &json!({ "token": token }))).await.unwrap();
    assert_eq!(socket.event().await["type"], "trunkline.session.refreshed");
    guarded.relay.say("queues", 1..=2).await;
    assert_eq!(socket.event().await["sequence"], "1");
    for (path, message, reason) in [
        (QUEUES, message("authenticate", &json!({ "token": "a.b.c" })), "token_invalid"),
        (QUEUES, message("authenticate", &json!({})), "token_invalid"),
        (QUEUES, Message::text("hello"), "token_invalid"),
        ("/v1/streams/agents/events", message("authenticate", &json!({ "token": token })), "token_invalid"),
    ] {
        let mut socket = guarded.relay.subscribe(path).await;
        socket.0.send(message).await.unwrap();
        assert_eq!(socket.closed().await, (1008, reason.to_owned()), "{path}");
    }
    let mut silent = guarded.relay.subscribe(QUEUES).await;
    assert_eq!(silent.closed().await, (1008, "auth_timeout".to_owned()));
    guarded.relay.drain().await;
}

#[tokio::test]
async fn a_session_is_announced_renewed_and_ended_with_a_reason() {
    let guarded = Guarded::start(json!({})).await;
    let mut socket = guarded.subscribe(QUEUES, &guarded.token("a", &["queues"], 3), Some("trunkline.v1")).await;
    let opened = socket.event().await;
    assert_eq!(opened["type"], "trunkline.session.opened");
    assert!(opened["data"]["session"].as_str().unwrap().len() == 16, "{opened}");
    assert_eq!(socket.event().await["type"], "trunkline.session.expiring");
    let renewed = guarded.token("a", &["queues"], 600);
    socket.0.send(message("refresh", &json!({ "token": renewed }))).await.unwrap();
    let refreshed = socket.event().await;
    assert_eq!(refreshed["type"], "trunkline.session.refreshed");
    assert!(refreshed["data"]["expires_in"].as_u64().unwrap() > 500, "{refreshed}");
    let stranger = guarded.token("b", &["queues"], 600);
    socket.0.send(message("refresh", &json!({ "token": stranger }))).await.unwrap();
    assert_eq!(socket.closed().await, (1008, "subject_changed".to_owned()));
    let mut short = guarded.subscribe(QUEUES, &guarded.token("a", &["queues"], 1), None).await;
    assert_eq!(short.closed().await, (1008, "token_expired".to_owned()));
    let bearer = format!("Bearer {}", guarded.token("a", &["queues"], 1));
    let headers = [("accept", "text/event-stream"), ("authorization", bearer.as_str())];
    let mut sse = guarded.relay.get(QUEUES, &headers).await;
    assert_eq!(sse.sse().await, None, "it ends with its token");
    guarded.relay.drain().await;
}

#[tokio::test]
async fn a_revocation_ends_one_session_or_all_of_a_subject_and_holds_for_old_tokens() {
    let guarded = Guarded::start(json!({})).await;
    let token = guarded.token("a", &["*"], 600);
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = guarded.subscribe(QUEUES, &token, Some("trunkline.v1")).await;
        let id = socket.event().await["data"]["session"].as_str().unwrap().to_owned();
        sockets.push((socket, id));
    }
    let mut neighbour = guarded.subscribe(QUEUES, &guarded.token("b", &["*"], 600), None).await;
    let access = guarded.relay.access.clone().unwrap();
    assert_eq!(access.sessions().status().len(), 4);
    let (mut first, id) = sockets.remove(0);
    access.revoke(RevocationTarget::Session(id)).await.unwrap();
    assert_eq!(first.closed().await, (1008, "revoked".to_owned()));
    guarded.relay.say("queues", 1..=1).await;
    for (socket, _) in &mut sockets {
        assert_eq!(socket.event().await["sequence"], "1", "the other sessions of the subject stay");
    }
    // As another replica writes it.
    let ttl = Duration::from_secs(60);
    let at = clock::wall();
    let target = RevocationTarget::Subject("a".to_owned());
    guarded.relay.store.revoke(&crate::model::Revocation { target, at, ttl }).await.unwrap();
    for (socket, _) in &mut sockets {
        assert_eq!(socket.closed().await, (1008, "revoked".to_owned()));
    }
    assert_eq!(neighbour.event().await["sequence"], "1");
    let bearer = format!("Bearer {token}");
    assert_eq!(guarded.get(QUEUES, &[("authorization", &bearer)]).await, (401, "revoked".to_owned()));
    let later = Timestamp(at.0 + 2_000);
    let request = GrantRequest {
        subject: "a".parse().unwrap(),
        streams: vec!["*".parse().unwrap()],
        ttl: Duration::from_secs(60),
        filter: None,
    };
    let newer = format!("Bearer {}", guarded.signer.sign(&request, later).unwrap());
    assert_eq!(guarded.get(QUEUES, &[("authorization", &newer)]).await.0, 200, "a newer token is good");
    guarded.relay.drain().await;
}

#[tokio::test]
async fn limits_of_a_subject_are_answered_with_429_and_idle_sessions_end() {
    let limits = json!({ "limits": { "connections": 1, "streams": 1, "bytes_per_second": "0" }, "idle_max": "2s" });
    let guarded = Guarded::start(limits).await;
    let token = guarded.token("a", &["*"], 600);
    let mut socket = guarded.subscribe(QUEUES, &token, None).await;
    let bearer = format!("Bearer {token}");
    let headers = [("accept", "text/event-stream"), ("authorization", bearer.as_str())];
    assert_eq!(guarded.get(QUEUES, &headers).await, (429, "limit".to_owned()));
    let two = "/v1/events?stream=queues&stream=agents";
    let others = format!("Bearer {}", guarded.token("b", &["*"], 600));
    let headers = [("accept", "text/event-stream"), ("authorization", others.as_str())];
    assert_eq!(guarded.get(two, &headers).await, (429, "limit".to_owned()));
    assert_eq!(socket.closed().await, (1008, "idle".to_owned()));
    assert_eq!(guarded.relay.get(QUEUES, &headers).await.status(), 200);
    guarded.relay.drain().await;
}

#[tokio::test]
async fn a_consumer_belongs_to_callers_who_may_read_all_its_streams() {
    let guarded = Guarded::start(json!({})).await;
    let bearer = |streams: &[&str]| format!("Bearer {}", guarded.token("a", streams, 60));
    let (both, queues, agents, all) =
        (bearer(&["queues", "agents"]), bearer(&["queues"]), bearer(&["agents"]), bearer(&["*"]));
    let read = "/v1/events?stream=queues&stream=agents&consumer=billing";
    assert_eq!(guarded.get(read, &[("Authorization", &queues)]).await, (403, "forbidden".to_owned()));
    assert_eq!(guarded.get(read, &[("Authorization", &both)]).await.0, 200);
    let takeover = format!("{QUEUES}?consumer=billing");
    let shown = "/v1/consumers/billing";
    for (token, path, status) in [
        (&both, shown, 200),
        (&all, shown, 200),
        (&queues, shown, 403),
        (&queues, "/v1/consumers/unknown", 403),
        (&both, "/v1/consumers/unknown", 403),
        (&all, "/v1/consumers/unknown", 404),
        (&queues, takeover.as_str(), 403),
        (&all, takeover.as_str(), 200),
    ] {
        assert_eq!(guarded.get(path, &[("Authorization", token)]).await.0, status, "{path}");
    }
    assert_eq!(guarded.get(shown, &[]).await, (401, "credentials-required".to_owned()));
    for (token, count) in [(&both, 1), (&agents, 0), (&all, 1)] {
        let mut listed = guarded.relay.get("/v1/consumers", &[("Authorization", token)]).await;
        assert_eq!(listed.json().await["consumers"].as_array().unwrap().len(), count);
    }
    for (method, path) in
        [("DELETE", shown), ("PUT", "/v1/consumers/billing/cursor"), ("POST", "/v1/consumers/billing/seek")]
    {
        let body = r#"{"stream":"queues","cursor":"4f2a-1"}"#
            .replace("cursor", if method == "POST" { "to" } else { "cursor" });
        let headers = [("Authorization", agents.as_str()), ("Content-Length", &*body.len().to_string())];
        let answer = TestHttpClient::send_with_body(&guarded.relay.authority, method, path, &headers, &body).await;
        assert_eq!(answer.status(), 403, "{method}");
    }
    let headers = [("Authorization", both.as_str())];
    let deleted = TestHttpClient::send(&guarded.relay.authority, "DELETE", shown, &headers).await;
    assert_eq!(deleted.status(), 204);
}
